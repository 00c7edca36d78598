package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/symbol"
)

// TestMain lets this test binary be a program that compiles code while it runs: it has memory that may be executed and is of no file.
func TestMain(m *testing.M) {
	if os.Getenv("MAKE_CODE") == "1" {
		if _, err := unix.Mmap(-1, 0, 4*madeCode, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON); err != nil {
			panic(err)
		}
	}
	if os.Getenv("MAKE_CODE") != "" {
		fmt.Println("ready")
		io.Copy(io.Discard, os.Stdin)
		return
	}
	os.Exit(m.Run())
}

// running starts a program that says a line when it is ready and ends with its standard input.
func running(t *testing.T, environ string, name string) (pid int) {
	t.Helper()
	cmd := exec.Command(name)
	cmd.Env = append(os.Environ(), environ)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return cmd.Process.Pid
}

const waits = `#include <stdio.h>
int main(void) { puts("ready"); fflush(stdout); while (getchar() != EOF); return 0; }`

// compiled builds a program that waits.
func compiled(t *testing.T, flags ...string) string {
	t.Helper()
	dir := t.TempDir()
	source, program := filepath.Join(dir, "waits.c"), filepath.Join(dir, "waits")
	if err := os.WriteFile(source, []byte(waits), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", append(flags, "-o", program, source)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program
}

func TestSymbolsSayWhyThereAreNone(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	has, named := running(t, "MAKE_CODE=1", self), running(t, "MAKE_CODE=1", self)
	perfMap := fmt.Sprintf("/tmp/perf-%d.map", named)
	if err := os.WriteFile(perfMap, []byte("1000 10 f\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(perfMap) })

	// A library without all names but those that it exports.
	lib := filepath.Join(t.TempDir(), "libexports.so")
	source := filepath.Join(filepath.Dir(lib), "lib.c")
	if err := os.WriteFile(source, []byte("static int hidden(int n) { return n * 2; }\nint exported(int n) { return hidden(n); }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-shared", "-s", "-Wl,--build-id=none", "-o", lib, source).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	// The debug file of a stripped program beside it, as .gnu_debuglink names it.
	linked := compiled(t, "-static", "-g", "-Wl,--build-id=none")
	for _, args := range [][]string{{"--only-keep-debug", linked, linked + ".debug"}, {"--strip-all", "--add-gnu-debuglink=" + linked + ".debug", linked}} {
		if out, err := exec.Command("objcopy", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name    string
		pids    []int
		fetched bool
		state   State // "": nothing is said
		want    []string
		remedy  string
	}{
		{"names", []int{running(t, "MAKE_CODE=0", self)}, false, OK, []string{"with all names"}, ""},
		{"symtab", []int{running(t, "", compiled(t, "-static"))}, false, OK, []string{"1 file with all names"}, ""},
		{"library", []int{running(t, "LD_PRELOAD="+lib, compiled(t))}, false, OK, []string{"with all names", "with those that they export (", "libexports.so"}, ""},
		{"debug file", []int{running(t, "", linked)}, false, OK, []string{"with all names"}, ""},
		{"stripped", []int{running(t, "", compiled(t, "-s", "-Wl,--build-id=0x0123456789"))}, false, Degraded, []string{"waits is stripped", "its debug file is not on this machine"}, ".build-id/01/23456789.debug; or set symbols.debuginfod.urls"},
		{"stripped, and servers are asked", []int{running(t, "", compiled(t, "-s", "-Wl,--build-id=0x0123456789"))}, true, Degraded, []string{"asks its debuginfod servers"}, "dbgsym"},
		{"stripped, no build id", []int{running(t, "", compiled(t, "-s", "-Wl,--build-id=none"))}, false, Degraded, []string{"no build id"}, "without strip"},
		{"made", []int{has}, false, Degraded, []string{"compiles code while it runs", "with all names"}, "perf map"},
		{"made and named", []int{named}, false, OK, []string{"with all names"}, ""},
		{"gone", []int{gone.Process.Pid}, false, "", nil, ""},
		{"empty", nil, false, "", nil, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			check := Symbols(func(context.Context) ([]Container, error) {
				return []Container{{c.name, func() ([]int, error) { return c.pids, nil }}, {"removed", func() ([]int, error) { return nil, fs.ErrNotExist }}}, nil
			}, c.fetched)
			rows := Run(t.Context(), []Check{check}, SymbolsPatience)
			if c.state == "" {
				if len(rows) != 0 {
					t.Errorf("%+v", rows)
				}
				return
			}
			if len(rows) != 1 || rows[0].Check != c.name || rows[0].State != c.state || !strings.Contains(rows[0].Remedy, c.remedy) || (rows[0].Remedy == "") != (c.remedy == "") {
				t.Fatalf("%+v", rows)
			}
			for _, want := range c.want {
				if !strings.Contains(rows[0].Detail, want) {
					t.Errorf("%q does not say %q", rows[0].Detail, want)
				}
			}
		})
	}
}

// What the time does not suffice for is said, and a list that cannot be had is a finding.
func TestSymbolsWithoutTimeOrContainers(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	three := func(context.Context) ([]Container, error) { return make([]Container, 3), nil }
	if f := Symbols(three, false).Run(ctx); len(f) != 1 || !strings.Contains(f[0].Detail, "3 more containers were not looked at") {
		t.Errorf("%+v", f)
	}
	none := func(context.Context) ([]Container, error) { return nil, errors.New("no answer") }
	if f := Symbols(none, false).Run(t.Context()); len(f) != 1 || f[0].State != Degraded || !strings.Contains(f[0].Detail, "no answer") {
		t.Errorf("%+v", f)
	}
}

func TestUnreadableFiles(t *testing.T) {
	for _, c := range []struct {
		err     error
		deleted bool
		want    string
	}{
		{process.ErrGone, false, ""},
		{symbol.ErrNotRegular, false, ""},
		{process.ErrReplaced, false, "replaced while it runs"},
		{fmt.Errorf("open: %w", fs.ErrPermission), true, "may not be read"},
		{process.ErrDenied, false, "may not be read"},
		{fs.ErrNotExist, true, "deleted while it runs"},
		{errors.New("stale handle"), false, "stale handle"},
	} {
		why, remedy := unreadable(c.err, c.deleted)
		if !strings.Contains(why, c.want) || (why == "") != (c.want == "") || (remedy == "") != (c.want == "") {
			t.Errorf("%v: %q, %q", c.err, why, remedy)
		}
	}
	if got := base("/x/" + strings.Repeat("é", 100)); len([]rune(got)) != 61 {
		t.Errorf("%q", got)
	}
}
