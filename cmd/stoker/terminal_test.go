package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// screen is a terminal of 60 × 14 that remembers what was written to it.
type screen struct {
	slave *os.File
	mu    sync.Mutex
	text  strings.Builder
}

func newScreen(t *testing.T) *screen {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	s := &screen{}
	if s.slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(s.slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 14, Col: 60}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for buf := make([]byte, 4096); ; {
			n, err := master.Read(buf)
			s.mu.Lock()
			s.text.Write(buf[:n])
			s.mu.Unlock()
			if err != nil { // EIO: the last slave is closed
				return
			}
		}
	}()
	t.Cleanup(func() {
		s.slave.Close()
		<-done
		master.Close()
	})
	return s
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// waitFor returns when the screen has shown text n times.
func (s *screen) waitFor(t *testing.T, text string, n int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); strings.Count(s.String(), text) < n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the terminal never shows %q %d times: %q", text, n, s.String())
		}
	}
}

// TestTopOnATerminal: one table per window on a screen of its own, that fits, until Ctrl-C, which is no error and leaves the
// terminal as it was.
func TestTopOnATerminal(t *testing.T) {
	b := &fakeBackend{}
	a, _, stderr := testApp(t, b, "TERM=xterm")
	s := newScreen(t)
	a.stdout = s.slave
	ctx, cancel := context.WithCancel(context.Background())
	code := make(chan int)
	go func() { code <- a.execute(ctx, []string{"top"}) }()
	s.waitFor(t, "SELF", 1)
	cancel()
	if c := <-code; c != 0 {
		t.Errorf("exit code %d after Ctrl-C: %s", c, stderr)
	}
	s.waitFor(t, "\x1b[?1049l", 1)
	text := s.String()
	for _, want := range []string{"\x1b[?1049h", "\x1b[?25l", "\x1b[?25h", "\x1b[1m", "shop/web"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %q", want, text)
		}
	}
	_, frame, _ := strings.Cut(text, "\x1b[H\x1b[2J")
	frame, _, _ = strings.Cut(frame, "\x1b[?25h")
	lines := strings.Split(strings.NewReplacer("\x1b[1m", "", "\x1b[0m", "").Replace(frame), "\r\n")
	if len(lines) > 14 {
		t.Errorf("%d lines on a screen of 14", len(lines))
	}
	for _, l := range lines {
		if n := len([]rune(l)); n > 60 {
			t.Errorf("%d characters in a line of 60: %q", n, l)
		}
	}
}

// TestNoColour: NO_COLOR and a dumb terminal are respected.
func TestNoColour(t *testing.T) {
	for _, e := range []string{"NO_COLOR=1", "TERM=dumb"} {
		a, _, _ := testApp(t, &fakeBackend{}, e)
		s := newScreen(t)
		a.stdout = s.slave
		if code := a.execute(context.Background(), []string{"top", "--once"}); code != 0 {
			t.Errorf("exit code %d", code)
		}
		s.waitFor(t, "SELF", 1)
		if strings.Contains(s.String(), "\x1b") {
			t.Errorf("%s: %q", e, s)
		}
	}
}

// TestProgressIsForTerminals: long work moves a line on standard error and removes it; a pipe sees nothing of it.
func TestProgressIsForTerminals(t *testing.T) {
	a, stdout, _ := testApp(t, &fakeBackend{frames: []string{"leaf"}})
	s := newScreen(t)
	a.stderr = s.slave
	if code := a.execute(context.Background(), []string{"record", "-d", "4s"}); code != 0 {
		t.Errorf("exit code %d", code)
	}
	s.waitFor(t, "██████████░░░░░░░░░░ 2s of 4s  3 samples in 1 containers", 1)
	s.waitFor(t, "\r\x1b[K", 1)
	if !strings.Contains(stdout.String(), "leaf") || strings.Contains(stdout.String(), "█") {
		t.Errorf("standard output: %s", stdout)
	}

	a, _, _ = testApp(t, &fakeBackend{err: errors.New("broken")})
	s = newScreen(t)
	a.stderr = s.slave
	if code := a.execute(context.Background(), []string{"record"}); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	// The line is gone before the error is written.
	s.waitFor(t, "\r\x1b[Kstoker: broken", 1)
}
