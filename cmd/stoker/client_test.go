package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/cmd/stoker/config"
	"github.com/stoker-profiler/stoker/sink/store"
	"github.com/stoker-profiler/stoker/sink/web"
)

// socketDir is short: the address of a unix socket has 107 bytes, a test's own directory may need more.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "stoker")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// agentApp is an app beside a running agent: the real handler on a real socket, only the backend is made up. A sampler of
// our own must not be started.
func agentApp(t *testing.T, b *fakeBackend) (a *app, stdout, stderr *bytes.Buffer) {
	t.Helper()
	dir := socketDir(t)
	db, err := store.Open(store.Config{Path: filepath.Join(dir, "s.db"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	h, err := web.Handler(b, db, web.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := web.Listen("unix:"+socket, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- web.Serve(ctx, l, h, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, db.Close()); err != nil {
			t.Error(err)
		}
	})
	a, stdout, stderr = testApp(t, nil, "STOKER_SOCKET="+socket)
	a.local = func(context.Context, config.Config, *slog.Logger) (web.Backend, func() error, error) {
		return nil, nil, errors.New("a sampler was started although an agent runs")
	}
	return a, stdout, stderr
}

// TestCommandsAskTheAgent: over its socket the answers are those of the backend.
func TestCommandsAskTheAgent(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"ps", "testdata/tables/ps.txt"}, {"ps --output json", "testdata/tables/ps-json.txt"}, {"top", "testdata/tables/top.txt"},
		{"record -d 1s", "testdata/tables/record.txt"},
	} {
		t.Run(c.args, func(t *testing.T) {
			a, stdout, stderr := agentApp(t, &fakeBackend{frames: []string{"leaf", "main"}})
			if code := a.execute(context.Background(), strings.Fields(c.args)); code != 0 {
				t.Fatalf("exit code %d: %s", code, stderr)
			}
			if want, err := os.ReadFile(c.want); err != nil || stdout.String() != string(want) {
				t.Errorf("%v, got\n%s", err, stdout)
			}
		})
	}
}

// TestAgentsRefusalsKeepTheirCode: what the agent says reaches the user with its exit code.
func TestAgentsRefusalsKeepTheirCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
	}{
		{&web.Error{Status: http.StatusNotFound, Message: "no such container", Remedy: "look at ps"}, exitNoTarget},
		{&web.Error{Status: http.StatusBadRequest, Message: "the agent samples at 97 Hz", Remedy: "leave it out"}, exitUsage},
		{&web.Error{Status: http.StatusUnprocessableEntity, Message: "nothing was sampled", Remedy: "record for longer"}, exitFailed},
		{errors.New("broken"), exitFailed},
	} {
		a, _, stderr := agentApp(t, &fakeBackend{err: c.err})
		code := a.execute(context.Background(), []string{"record", "web"})
		if code != c.code || !strings.Contains(stderr.String(), c.err.Error()) {
			t.Errorf("%v: exit code %d, want %d; said %s", c.err, code, c.code, stderr)
		}
	}
}

// TestWhateverListens: programs that are no agent, or an agent that is ill, give a line that says so.
func TestWhateverListens(t *testing.T) {
	for _, c := range []struct {
		name  string
		serve func(net.Conn)
		says  string
	}{
		{"closes", func(c net.Conn) {}, "ask the agent"},
		{"speaks something else", func(c net.Conn) { io.WriteString(c, "220 smtp ready\r\n") }, "ask the agent"},
		{"is another web server", func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
		}, "is it a stoker agent?"},
		{"answers nonsense", func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n<html")
		}, "read the agent's answer"},
		{"breaks off", func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 500\r\nConnection: close\r\n\r\n{\"progress\":{}}")
		}, "broke off"},
	} {
		t.Run(c.name, func(t *testing.T) {
			socket := filepath.Join(socketDir(t), "s")
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						defer conn.Close()
						// The first bytes of the request, so that closing does not reset what we wrote.
						_, _ = conn.Read(make([]byte, 64<<10))
						c.serve(conn)
					}()
				}
			}()
			command := "ps"
			if c.name == "breaks off" {
				command = "record"
			}
			a, _, stderr := testApp(t, nil, "STOKER_SOCKET="+socket)
			if code := a.execute(context.Background(), []string{command}); code != exitFailed || !strings.Contains(stderr.String(), c.says) {
				t.Errorf("exit code %d, said %q, want %q in it", code, stderr, c.says)
			}
		})
	}
}

// TestStaleSocket: a socket that nobody listens on any more is like none.
func TestStaleSocket(t *testing.T) {
	socket := filepath.Join(socketDir(t), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	a, stdout, stderr := testApp(t, &fakeBackend{}, "STOKER_SOCKET="+socket)
	if code := a.execute(context.Background(), []string{"ps"}); code != 0 || !strings.Contains(stdout.String(), "web") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// TestHangingAgentIsGivenUp: the wait is bounded by the caller's context, as it is by the timeout.
func TestHangingAgentIsGivenUp(t *testing.T) {
	socket := filepath.Join(socketDir(t), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
	defer cancel()
	_, err = newClient(socket).Containers(ctx)
	if err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("got %v", err)
	}
	ctx, cancel = context.WithCancel(context.Background())
	cancel()
	if _, err = newClient(socket).Record(ctx, web.RecordRequest{}, nil); message(err) != "interrupted" {
		t.Errorf("got %v, that is %q", err, message(err))
	}
	if code := exitCode(fmt.Errorf("x: %w", context.Canceled)); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
}
