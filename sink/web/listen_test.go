package web

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestSocketHasItsModeAndGoesAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "stoker.sock")
	l, err := Listen("unix:"+path, "no-such-group")
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
	if _, err := Listen("unix:"+path, ""); err == nil || !strings.Contains(err.Error(), "another stoker") {
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
	l, err := Listen("unix:"+path, "")
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
	if _, err := Listen("unix:"+path, ""); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("the file is %q, %v", b, err)
	}
	if _, err := Listen("unix:relative.sock", ""); err == nil {
		t.Error("a relative path was taken")
	}
}

func TestAnAddressInUseIsSaid(t *testing.T) {
	l, err := Listen("127.0.0.1:0", "")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Listen(l.Addr().String(), ""); err == nil || !strings.Contains(err.Error(), "web.listen") {
		t.Errorf("got %v, want the remedy", err)
	}
}

func TestServeKnowsThePeerAndEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen("unix:"+path, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	peers := make(chan Peer, 1)
	go func() {
		served <- Serve(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p, ok := PeerOf(r.Context())
			if !ok {
				t.Error("no peer")
			}
			peers <- p
		}), slog.New(slog.DiscardHandler))
	}()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	resp, err := client.Get("http://agent/")
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if p := <-peers; p.PID != int32(os.Getpid()) || p.UID != uint32(os.Geteuid()) || !p.mayRecord("no-such-group") {
		t.Errorf("the peer is %+v", p)
	}
	cancel()
	select {
	case err := <-served:
		if err != nil {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it did not end")
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestStrangersMayNotRecord(t *testing.T) {
	for _, c := range []struct {
		peer Peer
		want bool
	}{{Peer{UID: 0, GID: 12345}, true}, {Peer{UID: uint32(os.Geteuid())}, true}, {Peer{UID: 4_000_000, GID: 4_000_000}, false}} {
		if got := c.peer.mayRecord("no-such-group"); got != c.want {
			t.Errorf("%+v: %v", c.peer, got)
		}
	}
	// A member by primary group.
	if !(Peer{UID: 4_000_000, GID: 0}).mayRecord("root") {
		t.Error("a member of the group may not record")
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	l, err := Listen("127.0.0.1:0", "")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, maxConns+10)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	for range maxConns + 1 { // the last one waits in the kernel's queue
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	first := <-accepted
	for range maxConns - 1 {
		defer (<-accepted).Close()
	}
	select {
	case <-accepted:
		t.Fatal("one connection too many was taken")
	case <-time.After(50 * time.Millisecond):
	}
	first.Close()
	first.Close() // as net/http does
	select {
	case c := <-accepted:
		c.Close()
	case <-time.After(time.Minute):
		t.Fatal("a free place is not given away")
	}
}
