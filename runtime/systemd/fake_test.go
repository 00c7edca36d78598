package systemd

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/internal/sourcetest"
	"github.com/stoker-profiler/stoker/runtime/registry"
)

// fakeBus answers as systemd does on its private socket (D-Bus specification, "Authentication Protocol" and "Message Protocol";
// org.freedesktop.systemd1(5)): properties of units, and nothing else.
type fakeBus struct {
	t    *testing.T
	path string

	mu    sync.Mutex
	units map[string]map[string]dbus.Variant // by name; all interfaces together
	serve func(net.Conn) bool                // true: it has dealt with the connection
	asked int
}

func newFakeBus(t *testing.T) *fakeBus {
	t.Helper()
	dir, err := os.MkdirTemp("", "stoker-fake-") // short: it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	b := &fakeBus{t: t, path: filepath.Join(dir, "private"), units: map[string]map[string]dbus.Variant{}}
	l, err := net.Listen("unix", b.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Close()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go b.connection(c)
		}
	}()
	return b
}

func (b *fakeBus) has(unit string, properties map[string]any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.units[unit] = map[string]dbus.Variant{}
	for k, v := range properties {
		b.units[unit][k] = dbus.MakeVariant(v)
	}
}

func (b *fakeBus) connection(c net.Conn) {
	defer c.Close()
	b.mu.Lock()
	serve := b.serve
	b.mu.Unlock()
	if serve != nil && serve(c) {
		return
	}
	r := bufio.NewReader(c)
	if _, err := r.ReadByte(); err != nil { // a zero byte
		return
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		answer := "ERROR\r\n"
		switch word, _, _ := strings.Cut(strings.TrimSpace(line), " "); word {
		case "AUTH":
			if answer = "OK 0123456789abcdef0123456789abcdef\r\n"; strings.TrimSpace(line) == "AUTH" {
				answer = "REJECTED EXTERNAL\r\n"
			}
		case "BEGIN":
			b.messages(c, r)
			return
		}
		if _, err := io.WriteString(c, answer); err != nil {
			return
		}
	}
}

func (b *fakeBus) messages(c net.Conn, r io.Reader) {
	for serial := uint32(1); ; serial++ {
		m, err := dbus.DecodeMessage(r)
		if err != nil {
			return
		}
		path, _ := m.Headers[dbus.FieldPath].Value().(dbus.ObjectPath)
		unit := unescape(strings.TrimPrefix(string(path), "/org/freedesktop/systemd1/unit/"))
		b.mu.Lock()
		b.asked++
		properties, ok := b.units[unit]
		b.mu.Unlock()
		reply := &dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{dbus.FieldReplySerial: dbus.MakeVariant(m.Serial())}}
		switch member, _ := m.Headers[dbus.FieldMember].Value().(string); {
		case member == "AddMatch": // the library asks for signals; none come
		case member != "GetAll":
			b.t.Errorf("systemd is asked for %s, which may change something", member)
			return
		case ok:
			reply.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(properties))
			reply.Body = []any{properties}
		default:
			reply.Type = dbus.TypeError
			reply.Headers[dbus.FieldErrorName] = dbus.MakeVariant("org.freedesktop.DBus.Error.UnknownObject")
			reply.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(""))
			reply.Body = []any{"Unknown object."}
		}
		if err := send(c, reply, serial); err != nil {
			return
		}
	}
}

// send writes a message with a serial number, which the library gives to its own messages only.
func send(w io.Writer, m *dbus.Message, serial uint32) error {
	var b bytes.Buffer
	if err := m.EncodeTo(&b, binary.LittleEndian); err != nil {
		return err
	}
	binary.LittleEndian.PutUint32(b.Bytes()[8:], serial)
	_, err := w.Write(b.Bytes())
	return err
}

// unescape is the inverse of how systemd makes object paths of unit names: _2e for a dot.
func unescape(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '_' && i+2 < len(s) {
			const digits = "0123456789abcdef"
			hi, lo := strings.IndexByte(digits, s[i+1]), strings.IndexByte(digits, s[i+2])
			if hi >= 0 && lo >= 0 {
				out.WriteByte(byte(hi<<4 | lo))
				i += 2
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

// bench is a source on a tree that the test makes, feeding a registry.
type bench struct {
	*Source
	*sourcetest.Bench
	t    *testing.T
	tree string
}

func newBench(t *testing.T, socket string, patterns ...string) *bench {
	t.Helper()
	tree := t.TempDir()
	s := New(Config{Patterns: patterns, Hierarchy: cgroupfs.Hierarchy{Mount: tree}})
	s.buses, s.booted = []bus{{path: socket}}, tree
	return &bench{Source: s, Bench: sourcetest.New(t), t: t, tree: tree}
}

func (b *bench) run() {
	b.t.Helper()
	sourcetest.Run(b.t, b.Source, b.Apply)
}

// unit makes the cgroup of a unit, with a process in it as far as anybody can tell.
func (b *bench) unit(path string) {
	b.t.Helper()
	dir := filepath.Join(b.tree, path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.events"), []byte("populated 1\nfrozen 0\n"), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) remove(path string) {
	b.t.Helper()
	if err := os.RemoveAll(filepath.Join(b.tree, path)); err != nil {
		b.t.Fatal(err)
	}
	// Other file systems than cgroupfs give the number of a directory that is gone to the next one.
	if err := os.WriteFile(filepath.Join(b.tree, "taken"), nil, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func profiled(r registry.Record) bool { return r.State == registry.Profiled }
func gone(r registry.Record) bool     { return r.State == registry.Gone }
