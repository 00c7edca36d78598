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

	"github.com/stoker-profiler/stoker/internal/unixsocket"
)

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
	peers := make(chan unixsocket.Peer, 1)
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
	if p := <-peers; p.PID != int32(os.Getpid()) || p.UID != uint32(os.Geteuid()) || !mayRecord(p, "no-such-group") {
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
		peer unixsocket.Peer
		want bool
	}{{unixsocket.Peer{UID: 0, GID: 12345}, true}, {unixsocket.Peer{UID: uint32(os.Geteuid())}, true}, {unixsocket.Peer{UID: 4_000_000, GID: 4_000_000}, false}} {
		if got := mayRecord(c.peer, "no-such-group"); got != c.want {
			t.Errorf("%+v: %v", c.peer, got)
		}
	}
	// A member by primary group.
	if !mayRecord(unixsocket.Peer{UID: 4_000_000, GID: 0}, "root") {
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
