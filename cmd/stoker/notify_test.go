package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/cmd/stoker/config"
)

// manager plays the service manager: it gives each message that it is sent, in order.
func manager(t *testing.T) <-chan string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	said := make(chan string, 16)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := l.Read(buf)
			if err != nil {
				return
			}
			said <- string(buf[:n])
		}
	}()
	return said
}

// A reload is announced and its end too, also when the new configuration is refused: systemd would wait for ever.
func TestReloadTellsTheServiceManagerWhenItBeginsAndEnds(t *testing.T) {
	said := manager(t)
	log := slog.New(slog.DiscardHandler)
	for _, err := range []error{nil, errors.New("a mistake")} {
		load := func() (*config.Loaded, error) { return &config.Loaded{Config: config.Default()}, err }
		ctx, cancel := context.WithCancel(t.Context())
		hangups := make(chan os.Signal, 1)
		done := make(chan struct{})
		go func() {
			defer close(done)
			r := reloader{load: load, inForce: config.Default(), level: new(slog.LevelVar), log: log, notify: notifier{log}}
			r.run(ctx, hangups)
		}()
		hangups <- syscall.SIGHUP
		if got := <-said; !regexp.MustCompile(`^RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*\n$`).MatchString(got) {
			t.Errorf("first message %q", got)
		}
		if got := <-said; got != "READY=1" {
			t.Errorf("second message %q", got)
		}
		cancel()
		<-done
	}
}

// The unit's patience counts, unless three windows are longer.
func TestWatchdogWaitsForThreeWindows(t *testing.T) {
	said := manager(t)
	n := notifier{slog.New(slog.DiscardHandler)}
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	t.Setenv("WATCHDOG_USEC", fmt.Sprint(time.Minute.Microseconds()))
	n.starting(10 * time.Second)
	n.starting(time.Minute)
	n.stopping()
	if got := <-said; got != "WATCHDOG_USEC=180000000" {
		t.Errorf("%q", got)
	}
	if got := <-said; got != "STOPPING=1" {
		t.Errorf("%q", got)
	}
}

// No service manager, or one that is gone, is no trouble.
func TestNobodyToNotify(t *testing.T) {
	var out strings.Builder
	n := notifier{slog.New(slog.NewTextHandler(&out, nil))}
	t.Setenv("NOTIFY_SOCKET", "")
	n.ready()
	if out.Len() != 0 {
		t.Errorf("said %s", &out)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "gone"))
	n.ready()
	if !strings.Contains(out.String(), "READY=1") {
		t.Errorf("said %s", &out)
	}
}
