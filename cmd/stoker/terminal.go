package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// terminal reports whether w is a terminal, and how wide and high it is.
func terminal(w io.Writer) (columns, rows int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile {
		return 0, 0, false
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0, false
	}
	// A serial console says 0 × 0: it is a terminal all the same, of the usual size.
	if size.Col == 0 || size.Row == 0 {
		return 80, 24, true
	}
	return int(size.Col), int(size.Row), true
}

// width is the width that a table on standard output may have; 0 means any, in a pipe.
func (a *app) width() int {
	columns, _, _ := terminal(a.stdout)
	return columns
}

// colour reports whether standard output takes colours: a terminal that is not "dumb", and nobody said NO_COLOR.
func (a *app) colour() bool {
	_, _, ok := terminal(a.stdout)
	return ok && a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb"
}

// progress is one line on standard error that is rewritten in place; in a pipe it says nothing. Safe for concurrent use.
type progress struct {
	mu    sync.Mutex
	w     io.Writer
	shown bool
	last  time.Time
}

// progress returns a line for long work.
func (a *app) progress() *progress {
	if _, _, ok := terminal(a.stderr); !ok {
		return &progress{}
	}
	return &progress{w: a.stderr}
}

// set replaces the line.
func (p *progress) set(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.w == nil {
		return
	}
	columns, _, _ := terminal(p.w)
	// \r and "erase to the end of the line" are understood by everything that calls itself a terminal.
	fmt.Fprintf(p.w, "\r%s\x1b[K", cut(clean(fmt.Sprintf(format, args...)), max(columns-1, 1)))
	p.shown, p.last = true, time.Now()
}

// done removes the line.
func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.w != nil && p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}

// bar draws how far something is, in n characters.
func bar(done, total time.Duration, n int) string {
	full := 0
	if total > 0 {
		full = min(max(int(int64(n)*int64(done)/int64(total)), 0), n)
	}
	return strings.Repeat("█", full) + strings.Repeat("░", n-full)
}
