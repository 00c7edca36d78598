package unwind_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/symbol/debuginfod"
	"github.com/stoker-profiler/stoker/bpf/unwind"
	"github.com/stoker-profiler/stoker/bpf/unwind/native"
)

// full returns functions with the base names of their files and lines, innermost first.
func full(l *profile.Location) string {
	var out []string
	for _, line := range l.Line {
		out = append(out, fmt.Sprintf("%s %s:%d", line.Function.Name, filepath.Base(line.Function.Filename), line.Line))
	}
	return strings.Join(out, ", ")
}

const inlinedLines = "innermost inlined.c:8, between inlined.c:17, outermost inlined.c:22"

// A stack is named at once by the symbol table; what was inlined comes when the debug information has been read, into the stack
// that is held, without a new stack from the kernel.
func TestInlinedFunctionsComeFromDebugInformation(t *testing.T) {
	p := start(t, exec.Command(build(t, "inlined", "inlined.c", "-g", "-O2")))
	b := newBench(t, nil)
	if got := b.resolve(p, p.at["inlined"]); got != "outermost" {
		t.Errorf("at first: %s", got)
	}
	if got := full(b.better(t)); got != inlinedLines {
		t.Errorf("got %s", got)
	}
	// Whoever comes to that place later has the same location.
	if got := full(b.stack(p.id, scope, nil, frame(p.at["inlined"], false))[0]); got != inlinedLines {
		t.Errorf("another stack: %s", got)
	}
	if len(b.raised) > 0 {
		t.Error("stacks were asked for again")
	}
	// Another container with the same file has names of its own: debug information is no part of what files share.
	if got := b.stack(p.id, scope+1, nil, frame(p.at["inlined"], false)); names(got) != "outermost" {
		t.Errorf("another container: %s", names(got))
	}
}

// better waits until the last stack has more lines, as windows end.
func (b *bench) better(t *testing.T) *profile.Location {
	t.Helper()
	var l *profile.Location
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		b.WindowBegin()
		locations, ok := b.Locations(b.last)
		if !ok {
			t.Fatal("the stack is gone")
		}
		if l = locations[0]; len(l.Line) > 1 || l.Line[0].Line != 0 {
			break
		}
	}
	return l
}

// The debug file of a stripped program is found beside it, also by a process in another root.
func TestSeparateDebugFile(t *testing.T) {
	file := build(t, "inlined", "inlined.c", "-g", "-O2")
	debug := filepath.Join(filepath.Dir(file), ".debug", "inlined.debug")
	run(t, "mkdir", filepath.Dir(debug))
	run(t, "objcopy", "--only-keep-debug", file, debug)
	run(t, "objcopy", "--strip-all", "--add-gnu-debuglink="+debug, file)
	p := start(t, exec.Command(file))
	b := newBench(t, nil)
	if got := b.resolve(p, p.at["inlined"]); !strings.HasPrefix(got, "inlined!0x") {
		t.Errorf("at first: %s", got)
	}
	if got := full(b.better(t)); got != inlinedLines {
		t.Errorf("got %s", got)
	}
}

// Split debug information is found where the compiler left it, and a package of it beside the program, also by a process in another root.
func TestSplitDebugInformation(t *testing.T) {
	for _, packed := range []bool{false, true} {
		file := build(t, "inlined", "inlined.c", "-gdwarf-4", "-O2", "-gsplit-dwarf")
		if packed {
			split, err := filepath.Glob(filepath.Join(filepath.Dir(file), "*.dwo"))
			if err != nil || len(split) != 1 {
				t.Fatalf("split files %q, %v", split, err)
			}
			run(t, "dwp", "-e", file, "-o", file+".dwp")
			if err := os.Remove(split[0]); err != nil {
				t.Fatal(err)
			}
		}
		p := start(t, exec.Command(file))
		b := newBench(t, nil)
		if got := b.resolve(p, p.at["inlined"]); got != "outermost" {
			t.Errorf("at first: %s", got)
		}
		if got := full(b.better(t)); got != inlinedLines {
			t.Errorf("packed %t: got %s", packed, got)
		}
		if n := b.Stats().Unwinders["native"]["line_reads_incomplete"]; n != 0 {
			t.Errorf("packed %t: %d readings incomplete", packed, n)
		}
	}
}

// A debug file that is nowhere on the node comes from a debuginfod server, into the stack that is held; nothing waits for it.
func TestDebugFileFromDebuginfod(t *testing.T) {
	file := build(t, "inlined", "inlined.c", "-g", "-O2", "-Wl,--build-id=0x0123456789abcdef0123456789abcdef01234567")
	debug := filepath.Join(t.TempDir(), "debug")
	run(t, "objcopy", "--only-keep-debug", file, debug)
	run(t, "objcopy", "--strip-all", file)
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-release
		if r.URL.Path != "/buildid/0123456789abcdef0123456789abcdef01234567/debuginfo" {
			http.NotFound(w, r) // the C library and others
			return
		}
		http.ServeFile(w, r, debug)
	}))
	defer server.Close()
	client, err := debuginfod.New(debuginfod.Config{URLs: []string{server.URL}, Dir: t.TempDir(), MaxBytes: 16 << 20, Timeout: time.Minute,
		Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- client.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	p := start(t, exec.Command(file))
	b := newBench(t, func(c *unwind.SymbolizerConfig) {
		code := native.New()
		code.FetchDebugFiles(client.Open)
		c.Unwinders = []unwind.Unwinder{code}
	})
	if got := b.resolve(p, p.at["inlined"]); !strings.HasPrefix(got, "inlined!0x") {
		t.Errorf("at first: %s", got)
	}
	key := b.last
	wait := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
			b.WindowBegin()
			b.WindowEnd(map[process.ID]uint32{p.id: scope})
		}
	}
	wait("nobody asks the server", func() bool { return client.Stats().Waiting > 0 })
	close(release)
	now := func() string {
		locations, ok := b.Locations(key)
		if !ok {
			t.Fatal("the stack is gone")
		}
		return full(locations[0])
	}
	wait("no lines", func() bool { return strings.Contains(now(), "inlined.c") })
	if got := now(); got != inlinedLines {
		t.Errorf("got %s", got)
	}
}

// A debug file of another build is not believed.
func TestSeparateDebugFileOfAnotherBuild(t *testing.T) {
	file := build(t, "inlined", "inlined.c", "-g", "-O2")
	other := build(t, "other", "inlined.c", "-g", "-O0")
	debug := filepath.Join(filepath.Dir(file), "inlined.debug")
	run(t, "objcopy", "--only-keep-debug", other, debug)
	run(t, "objcopy", "--strip-all", "--add-gnu-debuglink="+debug, file)
	p := start(t, exec.Command(file))
	b := newBench(t, nil)
	before := b.resolve(p, p.at["inlined"])
	for deadline := time.Now().Add(20 * time.Second); b.Stats().Unwinders["native"]["lines_absent"] == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody looked")
		}
		b.WindowBegin()
	}
	if got := b.resolve(p, p.at["inlined"]); got != before {
		t.Errorf("got %s, before %s", got, before)
	}
}

// perfMapOf writes the perf map of a process, as its runtime would.
func perfMapOf(t *testing.T, p *target, text string) {
	t.Helper()
	file := fmt.Sprintf("/tmp/perf-%d.map", p.id.PID)
	t.Cleanup(func() { os.Remove(file) })
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Code that a program made has the names that its runtime wrote down, also when it did so after the sample.
func TestPerfMapNamesGeneratedCode(t *testing.T) {
	p := start(t, exec.Command(build(t, "target", "target.c", "-pthread")))
	data := filepath.Join(t.TempDir(), "code.bin")
	if err := os.WriteFile(data, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	at := p.do("map %s 0 2000 0", data)
	b := newBench(t, nil)
	perfMapOf(t, p, fmt.Sprintf("%x 80 LazyCompile:*add /app/server.js:12:3\n", at))
	if got := names(b.stack(p.id, scope, nil, frame(at+0x10, false), frame(at+0x101, true))); got != "LazyCompile:*add /app/server.js:12:3 [jit]" {
		t.Errorf("at first: %s", got)
	}
	// More code is made, at the same place too. It is read in the next window, because a frame had no name.
	perfMapOf(t, p, fmt.Sprintf("%x 80 LazyCompile:*add /app/server.js:12:3\n%x 80 Script:~main\n%x 20 Eval:new\n", at, at+0x100, at))
	b.WindowEnd(nil)
	b.WindowEnd(nil)
	for deadline := time.Now().Add(20 * time.Second); len(b.raised) == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody asks for the stacks again")
		}
		b.WindowBegin()
	}
	if got := names(b.stack(p.id, scope, nil, frame(at+0x10, false), frame(at+0x101, true))); got != "Eval:new Script:~main" {
		t.Errorf("got %s", got)
	}
}

// jitDump is what a runtime writes for perf: one function (jitdump-specification.txt in the kernel's tools/perf/Documentation).
func jitDump(pid uint32, start uint64, name string) []byte {
	le := binary.LittleEndian
	var b []byte
	for _, v := range []uint32{0x4a695444, 1, 40, 62, 0, pid} {
		b = le.AppendUint32(b, v)
	}
	b = append(b, make([]byte, 16)...)
	code := make([]byte, 0x80)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, uint32(16+40+len(name)+1+len(code)))
	b = append(b, make([]byte, 8)...)
	b = le.AppendUint32(le.AppendUint32(b, pid), pid)
	for _, v := range []uint64{start, start, uint64(len(code)), 1} {
		b = le.AppendUint64(b, v)
	}
	return append(append(append(b, name...), 0), code...)
}

// A JIT dump is found by the page of it that the runtime has mapped, as perf finds it, wherever it lies.
func TestJITDumpNamesGeneratedCode(t *testing.T) {
	p := start(t, exec.Command(build(t, "target", "target.c", "-pthread")))
	dir := t.TempDir()
	data, dump := filepath.Join(dir, "code.bin"), filepath.Join(dir, fmt.Sprintf("jit-%d.dump", p.id.PID))
	if err := os.WriteFile(data, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	at := p.do("map %s 0 2000 0", data)
	if err := os.WriteFile(dump, jitDump(p.id.PID, at, "Handler.serve"), 0o644); err != nil {
		t.Fatal(err)
	}
	p.do("map %s 0 1000 0", dump)
	got := newBench(t, nil).stack(p.id, scope, nil, frame(at+0x10, false), frame(at+0x101, true))
	if names(got) != "Handler.serve [jit]" {
		t.Errorf("got %s", names(got))
	}
}
