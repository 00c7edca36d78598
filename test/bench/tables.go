package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/bpf/unwind/native/cfi"
)

// tableFiles are files whose unwind tables are measured: small, usual, large, and the largest there are. Of each pattern the first
// that is there.
var tableFiles = [][]string{
	{"/lib/*-linux-gnu/libc.so.6"},
	{"/usr/lib/*-linux-gnu/libstdc++.so.6"},
	{"/usr/lib/*-linux-gnu/libnode.so.*", "/usr/bin/node", "/usr/local/bin/node"},
	{"/usr/lib/llvm-*/lib/libLLVM-??.*.so", "/usr/lib/*-linux-gnu/libLLVM*.so*"},
}

// tableRow is what the unwind rows of one file are, all pages of it, and how long it takes to make them. The agent makes only those
// of the pages that samples hit.
type tableRow struct {
	name              string
	text              int64
	pages, rows       int
	rules             int
	opened, all, most time.Duration
}

// bytes is what the rows and rules need in the kernel's maps.
func (r *tableRow) bytes() int64 { return 4*int64(r.rows) + 8*int64(r.rules) }

// tables prints the unwind rows of some files.
func (b *bench) tables() error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "== unwind rows\ttext\trows\trules\tbytes\tof the text\topened in\tall pages\tper MiB of text\ta page, at most")
	for _, patterns := range tableFiles {
		path := ""
		for _, p := range patterns {
			if found, err := filepath.Glob(p); err != nil {
				return err
			} else if len(found) > 0 && path == "" {
				path = found[0]
			}
		}
		if path == "" {
			return fmt.Errorf("none of %v is here: run packaging/setup.sh bench", patterns)
		}
		r, err := measureTables(path)
		if err != nil {
			return fmt.Errorf("unwind rows of %s: %w", path, err)
		}
		text := float64(r.text) / (1 << 20)
		fmt.Fprintf(w, "%s\t%.1f MiB\t%d\t%d\t%s\t%.1f %%\t%s\t%s\t%.1f ms\t%s\n", r.name, text, r.rows, r.rules, mib(r.bytes()),
			100*float64(r.bytes())/float64(r.text), r.opened.Round(time.Microsecond), r.all.Round(100*time.Microsecond),
			1e3*r.all.Seconds()/text, r.most.Round(10*time.Microsecond))
	}
	w.Flush()
	fmt.Println()
	return nil
}

// threadTime is the CPU time of the calling thread: what else the machine does is not in it.
func threadTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0 // cannot be: the clock is there since Linux 2.6.12
	}
	return time.Duration(ts.Nano())
}

// measureTables makes all rows of a file three times and returns the fastest, in CPU time.
func measureTables(path string) (best tableRow, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return best, err
	}
	file, err := os.Open(real)
	if err != nil {
		return best, err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return best, err
	}
	for try := range 3 {
		r := tableRow{name: filepath.Base(real)}
		rules := map[cfi.Rule]uint16{}
		intern := func(rule cfi.Rule) (uint16, bool) {
			n, ok := rules[rule]
			if !ok {
				n = uint16(len(rules) + 1)
				rules[rule] = n
			}
			return n, true
		}
		began := threadTime()
		f, err := cfi.Open(file, st.Size())
		if err != nil {
			return best, err
		}
		r.opened = threadTime() - began
		var page []cfi.CompactRow
		for _, code := range f.Code() {
			r.text += int64(code.Size)
			for n := cfi.PageOf(code.Address); n <= cfi.PageOf(code.End()-1); n++ {
				began := threadTime()
				if page, err = f.Page(file, page[:0], n, intern, nil); err != nil {
					return best, err
				}
				took := threadTime() - began
				r.all, r.most = r.all+took, max(r.most, took)
				r.pages, r.rows = r.pages+1, r.rows+len(page)
			}
		}
		if r.rules = len(rules); r.text == 0 {
			return best, errors.New("it has no code")
		}
		if try == 0 || r.all < best.all {
			best = r
		}
	}
	return best, nil
}
