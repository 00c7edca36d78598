package unixsocket

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

var stream = Config{Network: "unix", Mode: 0o660, Group: "no-such-group"}

func TestSocketHasItsModeAndGoesAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "stoker.sock")
	l, err := Listen(path, stream)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Perm() != 0o660 || info.Mode().Type() != fs.ModeSocket {
		t.Errorf("the socket is %v, %v", info.Mode(), err)
	}
	left, _ := os.ReadDir(filepath.Dir(path))
	if len(left) != 1 {
		t.Errorf("something is left beside the socket: %v", left)
	}
	if _, err := Listen(path, stream); err == nil || !strings.Contains(err.Error(), "another stoker") {
		t.Errorf("a second one: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestStaleSocketIsReplacedAndAForeignFileIsNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	l, err := Listen(path, stream)
	if err != nil {
		t.Fatalf("a stale socket is in the way: %v", err)
	}
	// Another agent took the name since: closing the first must not take it away.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := Listen(path, stream); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("the file is %q, %v", b, err)
	}
	if _, err := Listen("relative.sock", stream); err == nil {
		t.Error("a relative path was taken")
	}
}

func TestAFullBacklogIsFeltAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path, Config{Network: "unixpacket", Mode: 0o666, Backlog: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("the socket is %v, %v", info.Mode(), err)
	}
	for n := 0; ; n++ {
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer syscall.Close(fd)
		if err = syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}); errors.Is(err, syscall.EAGAIN) {
			return
		}
		if err != nil || n > 10 {
			t.Fatalf("connection %d to a backlog of 1: %v", n, err)
		}
	}
}

func TestPeerIsWhoConnected(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path, stream)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if p, err := PeerOf(s); err != nil || p != (Peer{PID: int32(os.Getpid()), UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}) {
		t.Errorf("the peer is %+v, %v", p, err)
	}
}
