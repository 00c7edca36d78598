package systemd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// bus is a place where systemd answers D-Bus calls.
type bus struct {
	path  string
	hello bool // a daemon is between us and systemd, which wants to be greeted
}

// systemBuses are systemd's own socket, which takes root alone and needs no daemon, and the system bus.
var systemBuses = []bus{{path: "/run/systemd/private"}, {path: "/run/dbus/system_bus_socket", hello: true}}

// connectionTime is how long a connection may last; it serves one batch of questions.
const connectionTime = 30 * time.Second

// connect connects to the first bus that lets us in. Close ends the connection; it ends by itself with ctx or after
// connectionTime, whatever the other side does.
func connect(ctx context.Context, buses []bus) (*sd.Conn, error) {
	var errs []error
	for _, b := range buses {
		c, err := sd.NewConnection(func() (*dbus.Conn, error) { return b.dial(ctx) })
		if err == nil {
			return c, nil
		}
		errs = append(errs, fmt.Errorf("connect to systemd at %s: %w", b.path, err))
	}
	return nil, errors.Join(errs...)
}

func (b bus) dial(ctx context.Context) (*dbus.Conn, error) {
	var d net.Dialer
	socket, err := d.DialContext(ctx, "unix", b.path)
	if err != nil {
		return nil, err
	}
	// The library waits for some answers without a context; the deadline ends that too.
	if err := socket.SetDeadline(time.Now().Add(connectionTime)); err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	conn, err := dbus.NewConn(&guard{Conn: socket}, dbus.WithContext(ctx))
	if err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	if err = conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Getuid()))}); err == nil && b.hello {
		err = conn.Hello()
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// What the other side may send. The properties of a service are about 20 kB.
const (
	maxAuthBytes       = 16 << 10
	maxMessageBytes    = 1 << 20
	maxConnectionBytes = 32 << 20
)

// guard is a connection that refuses messages that are too long before anybody makes room for them: the library takes the
// length in a message's header at its word, up to 128 MiB and, where the sum of two lengths overflows, beyond. The library reads from one
// goroutine and writes from others, but BEGIN, the only thing looked at in what is written, is before the first message
// and in the goroutine that read the answers so far.
type guard struct {
	net.Conn
	messages bool // the handshake is over
	total    int
	header   []byte // of the current message, until it is whole
	rest     int    // bytes of the current message that are still to come
}

// headerBytes is the fixed part of a message's header (D-Bus specification, Message Format): byte order, type, flags, version,
// length of the body, serial, length of the array of header fields.
const headerBytes = 16

var begin = []byte("BEGIN\r\n")

// Write implements [net.Conn].
func (g *guard) Write(p []byte) (int, error) {
	if !g.messages && bytes.HasSuffix(p, begin) {
		g.messages, g.total = true, 0
	}
	return g.Conn.Write(p)
}

// Read implements [net.Conn].
func (g *guard) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	if checked := g.check(p[:n]); checked != nil {
		return 0, checked
	}
	return n, err
}

// check follows the stream from message to message.
func (g *guard) check(p []byte) error {
	g.total += len(p)
	if !g.messages {
		if g.total > maxAuthBytes {
			return fmt.Errorf("more than %d bytes of handshake", maxAuthBytes)
		}
		return nil
	}
	if g.total > maxConnectionBytes {
		return fmt.Errorf("more than %d bytes on one connection", maxConnectionBytes)
	}
	for len(p) > 0 {
		if g.rest > 0 {
			n := min(g.rest, len(p))
			g.rest -= n
			p = p[n:]
			continue
		}
		n := min(headerBytes-len(g.header), len(p))
		g.header = append(g.header, p[:n]...)
		p = p[n:]
		if len(g.header) < headerBytes {
			return nil
		}
		var order binary.ByteOrder = binary.LittleEndian
		switch g.header[0] {
		case 'l':
		case 'B':
			order = binary.BigEndian
		default:
			return fmt.Errorf("a message begins with %q, which names no byte order", g.header[0])
		}
		body, fields := int64(order.Uint32(g.header[4:])), int64(order.Uint32(g.header[12:]))
		length := (fields+7)&^7 + body // fields are padded to 8 bytes
		if length > maxMessageBytes {
			return fmt.Errorf("a message of %d bytes; at most %d are read", length, maxMessageBytes)
		}
		g.rest, g.header = int(length), g.header[:0]
	}
	return nil
}
