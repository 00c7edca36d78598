package web

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/stoker-profiler/stoker/internal/unixsocket"
)

// Group is the group whose members may use the agent's socket.
const Group = "stoker"

// maxConns bounds the file descriptors that local strangers can make the agent hold. A browser uses six.
const maxConns = 128

// Listen opens addr: "127.0.0.1:4041", or "unix:/run/stoker/stoker.sock". A socket belongs to group where that group
// exists, has mode 0660 from the moment its name appears, takes the place of one that nobody listens on any more, and is
// removed by Close. An address that is not loopback is opened as asked; the caller decides whether that is wise.
func Listen(addr, group string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		l, err := unixsocket.Listen(path, unixsocket.Config{Network: "unix", Mode: 0o660, Group: group})
		if err != nil {
			return nil, err
		}
		return newLimited(l), nil
	}
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listen on %s: %w; another program, maybe another stoker, uses it: stop it or set web.listen", addr, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return newLimited(l), nil
}

// limited is a listener with a bounded number of open connections.
type limited struct {
	net.Listener
	slots chan struct{}
	done  chan struct{}
	once  sync.Once
}

func newLimited(l net.Listener) *limited {
	return &limited{Listener: l, slots: make(chan struct{}, maxConns), done: make(chan struct{})}
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: c, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

func (l *limited) Close() error {
	err := net.ErrClosed
	l.once.Do(func() {
		close(l.done)
		err = l.Listener.Close()
	})
	return err
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.release()
	return err
}

// mayRecord says whether a peer may make the agent sample: root, whoever runs the agent, and the members of group. The
// socket's mode already keeps others out; this holds too when somebody widened it.
func mayRecord(p unixsocket.Peer, group string) bool {
	if p.UID == 0 || int(p.UID) == os.Geteuid() {
		return true
	}
	gid, ok := unixsocket.GroupID(group)
	if !ok {
		return false
	}
	if int(p.GID) == gid {
		return true
	}
	u, err := user.LookupId(strconv.FormatUint(uint64(p.UID), 10))
	if err != nil {
		return false
	}
	ids, err := u.GroupIds()
	return err == nil && slices.Contains(ids, strconv.Itoa(gid))
}

type peerKey struct{}

// PeerOf returns the peer of a request that came over a Unix socket.
func PeerOf(ctx context.Context) (unixsocket.Peer, bool) {
	p, ok := ctx.Value(peerKey{}).(unixsocket.Peer)
	return p, ok
}

// ConnContext puts the peer into the context of each connection; it goes into [http.Server.ConnContext]. [Serve] does so.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	if l, ok := c.(*limitedConn); ok {
		c = l.Conn
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	p, err := unixsocket.PeerOf(u)
	if err != nil {
		// Without credentials the connection counts as one that came over TCP: it may look, not record.
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, p)
}

// Serve answers on l with h until ctx ends, then lets open requests finish for a few seconds. It returns nil when ctx
// ended, or what made the listener fail.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	s := &http.Server{
		Handler:           h,
		ConnContext:       ConnContext,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		// Handlers that take longer move their own deadline.
		WriteTimeout:   2 * time.Minute,
		IdleTimeout:    2 * time.Minute,
		MaxHeaderBytes: 64 << 10,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext:    func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	failed := make(chan error, 1)
	go func() { failed <- s.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	if err := s.Shutdown(grace); err != nil {
		log.Debug("requests were still open when the web server stopped", "err", err)
		s.Close()
	}
	<-failed
	return nil
}
