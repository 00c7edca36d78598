package replay

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestStacksOfKnownCallsAreExact holds whole stacks against the calls that the sources write down, as compilers make them of it.
func TestStacksOfKnownCallsAreExact(t *testing.T) {
	const libc = "libc.so.6"
	trampoline := "libc" // of signals
	if runtime.GOARCH == "arm64" {
		trampoline = "[vdso] libc" // the kernel's own, and then raise
	}
	calls := []struct{ kind, stack string }{ // innermost first; of the C library only that it is there
		{"recurse", "libc wait_here " + strings.Repeat("recurse ", 10) + "main libc _start"},
		{"tail", "libc wait_here last tail main libc _start"}, // gone has left no frame
		{"realigned", "libc wait_here moving realigned main libc _start"},
		{"interrupted", "libc wait_here handler " + trampoline + " interrupted main libc _start"},
		{"threads", "libc wait_here of_thread libc"},
		{"vforks", "libc wait_here of_child vforks main libc _start"},
		{"contexts", "libc wait_here coroutine libc"},
		{"through_rax", "leaves_rax finds_by_rax through_rax main libc _start"}, // x86-64
	}
	if runtime.GOARCH != "amd64" {
		calls = calls[:len(calls)-1]
	}
	for _, build := range []struct {
		name, compiler string
		args           []string
	}{
		{"O2", "gcc", nil},
		{"O3", "gcc", []string{"-O3", "-fomit-frame-pointer"}},
		{"LTO", "gcc", []string{"-O3", "-flto=1", "-no-pie"}},
		{"O0", "gcc", []string{"-O0"}},
	} {
		path := compile(t, build.compiler, "known.c", build.args...)
		for _, c := range calls {
			if c.kind == "tail" && build.name == "O0" {
				c.stack = "libc wait_here last gone tail main libc _start"
			}
			t.Run(build.name+"/"+c.kind, func(t *testing.T) {
				wantStack(t, path, strings.Fields(strings.ReplaceAll(c.stack, "libc", libc)), c.kind)
			})
		}
	}
	t.Run("coroutine", func(t *testing.T) {
		path := compile(t, "g++", "coroutine.cc", "-std=c++20")
		wantStack(t, path, []string{libc, "wait_here", "inner", "resume", "outer", "resume", "main", libc, "_start"})
	})
}

// wantStack runs a program until it is where it wants to be, and compares what is found there.
func wantStack(t *testing.T, path string, want []string, args ...string) {
	t.Helper()
	cmd := exec.Command(path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its child too, which it waits for
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the program says %q (%v)", line, err)
	}
	pid, tid := waiting(t, cmd.Process.Pid)
	var names []string
	for deadline := time.Now().Add(20 * time.Second); len(names) == 0 || names[0] != want[0]; { // it says so a moment before
		if time.Now().After(deadline) {
			t.Fatalf("the program does not come to %s; it is in %v", want[0], names)
		}
		s, err := Record(pid, tid, path)
		if err != nil {
			t.Fatal(err)
		}
		frames, end, err := s.Walk()
		if names = functions(t, s, frames, path); names[0] == want[0] && (err != nil || end != Complete) {
			t.Errorf("the walk ends with %v, %v", end, err)
		}
	}
	var got []string
	for _, name := range names {
		// _ZL5innerv.Frame.actor, or with its frame as parameter: the compiler's function for the body of a coroutine
		for _, body := range []string{"inner", "outer"} {
			if strings.HasPrefix(name, "_Z") && strings.Contains(name, body) {
				name = body
			}
		}
		if len(got) == 0 || name != got[len(got)-1] || !strings.HasPrefix(name, "libc.so") {
			got = append(got, name)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %s\nwant %s", strings.Join(got, " "), strings.Join(want, " "))
	}
}

// waiting returns the thread that said that it waits: the last that was made, in the child if there is one.
func waiting(t *testing.T, pid int) (int, int) {
	t.Helper()
	dir := filepath.Join("/proc", strconv.Itoa(pid), "task")
	children, err := os.ReadFile(filepath.Join(dir, strconv.Itoa(pid), "children"))
	if err != nil {
		t.Fatal(err)
	}
	if f := strings.Fields(string(children)); len(f) > 0 {
		child, err := strconv.Atoi(f[0])
		if err != nil {
			t.Fatal(err)
		}
		return child, child
	}
	tasks, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	tid := 0
	for _, e := range tasks {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		tid = max(tid, n)
	}
	return pid, tid
}
