package unwind_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/symbol"
	"github.com/stoker-profiler/stoker/bpf/unwind"
)

func TestFramesOfARunningProgram(t *testing.T) {
	for _, c := range []struct {
		name  string
		flags []string
	}{
		{"PIE", []string{"-pie", "-fPIE", "-pthread"}},
		{"fixed address", []string{"-no-pie", "-pthread"}},
		{"fixed address, high", []string{"-no-pie", "-pthread", "-Wl,-Ttext-segment=0x10000000"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := build(t, "target", "target.c", c.flags...)
			p := start(t, exec.Command(file))
			b := newBench(t, nil)
			got := b.stack(p.id, scope, nil,
				frame(p.at["leaf"], false), frame(p.at["middle"], true), frame(p.at["behind"], true), frame(p.at["main"], false))
			// behind is the address after the last instruction of calls_last: only pc-1 is in it.
			if names(got) != "leaf middle calls_last main" {
				t.Errorf("got %s", names(got))
			}
			sym := symbols(t, file)
			if got[0].Address != sym["leaf"].Value || got[0].Mapping.File != file {
				t.Errorf("leaf is at %x in %s, want %x in %s", got[0].Address, got[0].Mapping.File, sym["leaf"].Value, file)
			}
			if want := fmt.Sprintf("%x", buildID(t, file)); got[0].Mapping.BuildID != want {
				t.Errorf("build id %s, want %s", got[0].Mapping.BuildID, want)
			}
			if puts := b.resolve(p, p.at["puts"]); !strings.Contains(puts, "puts") {
				t.Errorf("puts is called %q", puts)
			}
			if n := b.Stats().Frames; n["symbol"] != 5 || n["unknown"] != 0 {
				t.Errorf("counted %v", n)
			}
		})
	}
}

func TestAFrameWithoutSymbolIsFileAndAddress(t *testing.T) {
	file := build(t, "target", "target.c", "-no-pie", "-pthread")
	leaf := symbols(t, file)["leaf"].Value
	run(t, "strip", "--strip-all", file)
	p := start(t, exec.Command(file))
	b := newBench(t, nil)
	for _, off := range []uint64{0, 1} { // wherever in the function it is
		if got, want := b.resolve(p, p.at["leaf"]+off), fmt.Sprintf("target!0x%x", leaf); got != want {
			t.Errorf("%d bytes into the function: got %s, want %s", off, got, want)
		}
	}
	if n := b.Stats().Frames; n["address"] != 2 {
		t.Errorf("counted %v", n)
	}
}

func TestGoFramesHaveLines(t *testing.T) {
	id := identify(t, os.Getpid())
	pc := reflect.ValueOf(TestGoFramesHaveLines).Pointer()
	f := runtime.FuncForPC(pc)
	file, line := f.FileLine(pc)
	got := newBench(t, nil).stack(id, scope, nil, frame(uint64(pc), false))[0].Line[0]
	if got.Function.Name != f.Name() || got.Function.Filename != file || got.Line != int64(line) || got.Function.StartLine != int64(line) {
		t.Errorf("got %+v line %d, want %s %s:%d", got.Function, got.Line, f.Name(), file, line)
	}
}

func TestTheSameFileGivesTheSameLocations(t *testing.T) {
	file := build(t, "target", "target.c", "-pie", "-fPIE", "-pthread")
	one, two := start(t, exec.Command(file)), start(t, exec.Command(file))
	if one.at["leaf"] == two.at["leaf"] {
		t.Fatal("addresses are not random here: the test proves nothing")
	}
	b := newBench(t, nil)
	x := b.stack(one.id, 1, nil, frame(one.at["leaf"], false))
	y := b.stack(two.id, 2, nil, frame(two.at["leaf"], false))
	if x[0] != y[0] {
		t.Errorf("two locations: %+v, %+v", x[0], y[0])
	}
}

func TestVDSO(t *testing.T) {
	object, err := symbol.VDSO()
	if err != nil {
		t.Fatal(err)
	}
	file := build(t, "target", "target.c", "-pthread")
	p := start(t, exec.Command(file))
	for _, m := range mappings(t, p.id) {
		if m.Path != "[vdso]" {
			continue
		}
		// Look for any address that has a name: which functions there are depends on the architecture.
		for a := m.Start; a < m.End; a += 16 {
			at, ok := object.Address(symbol.FileOffset(m.FileOffset(a)))
			if lines := object.Lookup(nil, at); ok && len(lines) > 0 {
				got := newBench(t, nil).stack(p.id, scope, nil, frame(a, false))
				if names(got) != lines[0].Function || got[0].Mapping.File != "[vdso]" {
					t.Errorf("got %s in %s, want %s in [vdso]", names(got), got[0].Mapping.File, lines[0].Function)
				}
				return
			}
		}
	}
	t.Error("no function in the vDSO")
}

// A signal's handler returns to a function that nothing has called: what is before it has no name.
func TestReturnToTheFirstInstructionOfAFunctionOfTheVDSO(t *testing.T) {
	object, err := symbol.VDSO()
	if err != nil {
		t.Fatal(err)
	}
	file := build(t, "target", "target.c", "-pthread")
	p := start(t, exec.Command(file))
	name := func(m *process.Mapping, a uint64) string {
		at, ok := object.Address(symbol.FileOffset(m.FileOffset(a)))
		if lines := object.Lookup(nil, at); ok && len(lines) > 0 {
			return lines[0].Function
		}
		return ""
	}
	for _, m := range mappings(t, p.id) {
		if m.Path != "[vdso]" {
			continue
		}
		for a := m.Start + 1; a < m.End; a++ {
			if want := name(&m, a); want != "" && name(&m, a-1) == "" {
				b := newBench(t, nil)
				if got := names(b.stack(p.id, scope, nil, frame(a, true))); got != want {
					t.Errorf("a return to the first instruction of %s is in %s", want, got)
				}
				// What runs there is there, and has no name.
				if got := names(b.stack(p.id, scope, nil, frame(a-1, false))); !strings.Contains(got, "!0x") {
					t.Errorf("the byte before %s is in %s", want, got)
				}
				return
			}
		}
	}
	t.Error("no function in the vDSO with a gap before it")
}

func TestJustInTimeCodeIsOneFunction(t *testing.T) {
	file := build(t, "target", "target.c", "-pthread")
	p := start(t, exec.Command(file))
	b := newBench(t, nil)
	code := p.do("jit")
	got := b.stack(p.id, scope, nil, frame(code+1, false), frame(code+100, true), frame(p.at["main"], false))
	if names(got[:2]) != "[jit] [jit]" || got[0] != got[1] {
		t.Errorf("got %s", names(got))
	}
	if n := b.Stats().Frames; n["jit"] != 2 {
		t.Errorf("counted %v", n)
	}
}

func TestAddressesNowhere(t *testing.T) {
	file := build(t, "target", "target.c", "-pthread")
	p := start(t, exec.Command(file))
	b := newBench(t, nil)
	got := b.stack(p.id, scope, nil, frame(0, false), frame(0, true), frame(1<<64-1, true), frame(0xdead_0000, true), frame(p.at["leaf"], false))
	if names(got) != "[unknown] [unknown] [unknown] [unknown] leaf" {
		t.Errorf("got %s", names(got))
	}
	if n := b.Stats().Frames; n["unknown"] != 4 {
		t.Errorf("counted %v", n)
	}
	// A slot that no unwinder has, and a stack without frames.
	if got := names(b.stack(p.id, scope, nil, unwind.RawFrame{Unwinder: 9, Kind: 1, A: 1})); got != unwind.Unknown {
		t.Errorf("frame of an unknown slot: %s", got)
	}
	if got := names(b.stack(p.id, scope, nil)); got != unwind.Unknown {
		t.Errorf("no frames: %s", got)
	}
}

func TestMarks(t *testing.T) {
	b := newBench(t, nil)
	id := process.ID{PID: 1 << 22, StartBoottime: 5, ExecID: 1}
	got := b.stack(id, scope, nil, unwind.RawFrame{Kind: unwind.KindKernel, A: 0xffffffff81000000},
		unwind.RawFrame{Kind: unwind.KindTruncated, A: 3})
	if names(got) != "[kernel] [truncated]" {
		t.Errorf("got %s", names(got))
	}
	if n := b.Stats().Processes.Processes; n != 0 {
		t.Errorf("%d processes were asked for a stack without user frames", n)
	}
	if l, ok := b.Locations(unwind.Key{Process: id, Scope: scope}); !ok || names(l) != unwind.StackNotDelivered {
		t.Errorf("stackless key: %s, %v", names(l), ok)
	}
	if l, ok := b.Locations(unwind.Key{Hash: 1 << 40, Process: id, Scope: scope}); ok || names(l) != unwind.StackLost {
		t.Errorf("lost stack: %s, %v", names(l), ok)
	}
	if got := names(b.NotCounted()); got != unwind.StackNotCounted {
		t.Errorf("not counted: %s", got)
	}
}

func TestKernelFrames(t *testing.T) {
	root := t.TempDir()
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, "kallsyms"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const image = "ffffffff81000000 T _text\nffffffff81000100 T do_work\nffffffff81000200 t helper\nffffffff81000300 T the_end\n"
	write(image)
	kernel, err := symbol.NewKernel(root)
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t, func(c *unwind.SymbolizerConfig) { c.Kernel = kernel })
	k := func(a uint64, returns bool) unwind.RawFrame {
		return unwind.RawFrame{Kind: unwind.KindKernel, A: a, ReturnAddress: returns}
	}
	got := b.stack(process.ID{}, scope, nil, k(0xffffffff81000110, false), k(0xffffffff81000300, true), k(0xffffffff81000118, false))
	if names(got) != "do_work helper do_work" || got[0].Mapping.File != "[kernel.kallsyms]" || got[0].Address != 0 {
		t.Errorf("got %s in %s at %x", names(got), got[0].Mapping.File, got[0].Address)
	}
	if got[0] != got[2] {
		t.Error("one function is two locations")
	}
	// A module comes: its first unknown address makes us look.
	write(image + "ffffffffc0000000 t probe\t[netthing]\nffffffffc0000100 t remove\t[netthing]\n")
	got = b.stack(process.ID{}, scope, nil, k(0xffffffffc0000010, false))
	if names(got) != "probe" || got[0].Mapping.File != "[netthing]" {
		t.Errorf("got %s in %s", names(got), got[0].Mapping.File)
	}
	// What stays unknown does not make us look again and again.
	for range 100 {
		if got := names(b.stack(process.ID{}, scope, nil, k(0x1234, false))); got != unwind.KernelUnknown {
			t.Errorf("got %s", got)
		}
		b.WindowEnd(nil)
	}
	if n := b.Stats().KernelReads; n < 2 || n > 12 {
		t.Errorf("the kernel's symbols were read %d times in 100 windows", n)
	}
}

func TestLibraryLoadedLater(t *testing.T) {
	file := build(t, "target", "target.c", "-pthread")
	lib := build(t, "lib.so", "library.c", "-shared", "-fPIC", "-DNAME=early")
	p := start(t, exec.Command(file))
	b := newBench(t, nil)
	b.resolve(p, p.at["leaf"])
	if got := b.resolve(p, p.do("open %s", lib)); got != "exported" {
		t.Errorf("got %s", got)
	}
	if len(b.raised) != 0 {
		t.Errorf("stacks were asked for again although none had an unknown frame: %v", b.raised)
	}
}

func TestRereadIsLatched(t *testing.T) {
	file := build(t, "target", "target.c", "-pthread")
	lib := build(t, "lib.so", "library.c", "-shared", "-fPIC", "-DNAME=early")
	p := start(t, exec.Command(file))
	b := newBench(t, nil)
	for range 1000 {
		b.resolve(p, 0xdead_0000)
	}
	if s := b.Stats().Processes; s.Reads > 6 || s.Held < 900 {
		t.Errorf("1000 unknown addresses at once: maps read %d times, %d reads held", s.Reads, s.Held)
	}
	at := p.do("open %s", lib)
	if got := b.resolve(p, at); got != unwind.Unknown {
		t.Errorf("got %s while reading is latched", got)
	}
	// The end of the window reads them in any case; then the stack is asked for again.
	b.WindowEnd(map[process.ID]uint32{p.id: scope})
	if len(b.raised) != 1 || b.raised[0].PID != p.id.PID {
		t.Errorf("raised %v, want the process", b.raised)
	}
	if got := b.resolve(p, at); got != "exported" {
		t.Errorf("got %s", got)
	}
	before := b.Stats().Processes.Reads
	for range 24 { // two minutes
		b.now = b.now.Add(5 * time.Second)
		b.resolve(p, 0xdead_0000)
	}
	if n := b.Stats().Processes.Reads - before; n > 13 {
		t.Errorf("an address that stays unknown had the maps read %d times in two minutes", n)
	}
}

func TestOtherCodeAtTheSameAddress(t *testing.T) {
	file := build(t, "target", "target.c", "-pthread")
	one := build(t, "one.so", "library.c", "-shared", "-fPIC", "-DNAME=one")
	two := build(t, "two.so", "library.c", "-shared", "-fPIC", "-DNAME=two")
	a, z := symbols(t, one)["one"].Value, symbols(t, two)["two"].Value
	if a != z || a&^0xfff != 0x1000 {
		t.Fatalf("the linker has put the functions at %x and %x, not at one place of page 1", a, z)
	}
	p := start(t, exec.Command(file))
	b := newBench(t, nil)
	at := p.do("map %s 1000 1000 0", one) + a - 0x1000
	if got := b.resolve(p, at); got != "one" {
		t.Errorf("got %s", got)
	}
	p.do("map %s 1000 1000 %x", two, at&^0xfff)
	b.WindowEnd(map[process.ID]uint32{p.id: scope})
	if len(b.raised) != 1 {
		t.Errorf("the epoch was raised %d times, want once", len(b.raised))
	}
	next := p.id
	next.Epoch = 1
	if got := names(b.stack(next, scope, nil, frame(at, false))); got != "two" {
		t.Errorf("got %s", got)
	}
	b.WindowEnd(map[process.ID]uint32{p.id: scope, next: scope})
	if len(b.raised) != 1 {
		t.Errorf("the epoch was raised without a reason: %d times", len(b.raised))
	}
}

func TestAStackOfWhatWasUnmappedMeanwhile(t *testing.T) {
	file := build(t, "target", "target.c", "-pthread")
	lib := build(t, "lib.so", "library.c", "-shared", "-fPIC", "-DNAME=early")
	p := start(t, exec.Command(file))
	b := newBench(t, nil)
	code := p.do("map %s 1000 1000 0", lib)
	at := code + symbols(t, lib)["early"].Value - 0x1000
	b.resolve(p, at)
	// The library goes; something that is no code comes to its place.
	p.do("map %s 0 1000 %x", "/dev/zero", code)
	b.WindowEnd(map[process.ID]uint32{p.id: scope})
	if got := b.resolve(p, at); got != "early" && got != "[jit]" {
		t.Errorf("got %s", got)
	}
}

func TestGoneButItsExecWasSeen(t *testing.T) {
	file := build(t, "target", "target.c", "-pie", "-fPIE", "-pthread")
	p := start(t, exec.Command(file))
	b := newBench(t, nil)
	b.Exec(p.id, scope)
	p.kill()
	got := b.stack(p.id, scope, nil, frame(p.at["leaf"], false), frame(p.at["middle"], true))
	if names(got) != "leaf middle" {
		t.Errorf("got %s", names(got))
	}
	if n := b.Stats(); n.Frames["symbol"] != 2 || n.Processes.Gone != 0 {
		t.Errorf("counted %+v", n)
	}
}

func TestGoneAndAnotherProcessHasTheFile(t *testing.T) {
	file := build(t, "target", "target.c", "-pie", "-fPIE", "-pthread")
	lib := build(t, "lib.so", "library.c", "-shared", "-fPIC", "-DNAME=early", "-Wl,--build-id=none")
	for _, c := range []string{"sibling", "peer"} {
		t.Run(c, func(t *testing.T) {
			p, other := start(t, exec.Command(file)), start(t, exec.Command(file))
			at := p.do("open %s", lib)
			b := newBench(t, nil)
			b.resolve(p, p.at["leaf"]) // the maps are known, the library's symbols are not
			p.kill()
			if c == "sibling" {
				other.do("open %s", lib)
				b.resolve(other, other.at["leaf"])
			} else {
				b.peers[scope] = []int{1 << 22, int(other.id.PID)}
			}
			if got := b.resolve(p, at); got != "exported" {
				t.Errorf("got %s", got)
			}
			if n := b.Stats().Unwinders["native"]; n["files_donated"] != 1 {
				t.Errorf("counted %v", n)
			}
		})
	}
}

func TestGoneAndOnlyHintsAreLeft(t *testing.T) {
	file := build(t, "target", "target.c", "-pie", "-fPIE", "-pthread")
	other := start(t, exec.Command(file))
	gone := func(t *testing.T) (*target, []unwind.Hint, []unwind.RawFrame) {
		p := start(t, exec.Command(file))
		hints := []unwind.Hint{hintFor(t, p.id, p.at["leaf"], file), hintFor(t, p.id, p.at["middle"], file)}
		p.kill()
		return p, hints, []unwind.RawFrame{frame(p.at["leaf"], false), frame(p.at["middle"], true), frame(0xdead_0000, true)}
	}
	t.Run("a file that was seen in the container", func(t *testing.T) {
		b := newBench(t, nil)
		b.resolve(other, other.at["main"])
		p, hints, frames := gone(t)
		if got := names(b.stack(p.id, scope, hints, frames...)); got != "leaf middle [unknown]" {
			t.Errorf("got %s", got)
		}
		if n := b.Stats(); n.Frames["hint"] != 2 || n.Frames["unknown"] != 1 || n.Processes.Gone != 1 {
			t.Errorf("counted %+v", n)
		}
		// A later stack of the same process comes without hints.
		if got := b.resolve(p, p.at["main"]); got != "main" {
			t.Errorf("later stack: got %s", got)
		}
	})
	t.Run("a file that another process of the container has", func(t *testing.T) {
		b := newBench(t, nil)
		b.peers[scope] = []int{int(other.id.PID)}
		p, hints, frames := gone(t)
		if got := names(b.stack(p.id, scope, hints, frames...)); got != "leaf middle [unknown]" {
			t.Errorf("got %s", got)
		}
	})
	t.Run("a file of another container", func(t *testing.T) {
		b := newBench(t, nil)
		b.stack(other.id, scope+1, nil, frame(other.at["main"], false))
		p, hints, frames := gone(t)
		got := b.stack(p.id, scope, hints, frames...)
		if want := fmt.Sprintf("unknown!0x%x", hints[0].Offset); names(got[:1]) != want {
			t.Errorf("got %s, want %s", names(got), want)
		}
		if want := fmt.Sprintf("%x", buildID(t, file)); got[0].Mapping.BuildID != want {
			t.Errorf("build id %q, want %q: whoever has the file could name it", got[0].Mapping.BuildID, want)
		}
	})
}

func TestGoneChildSharesItsParentsAddresses(t *testing.T) {
	file := build(t, "target", "target.c", "-pie", "-fPIE", "-pthread")
	lib := build(t, "lib.so", "library.c", "-shared", "-fPIC", "-DNAME=early", "-Wl,--build-id=none")
	parent, stranger := start(t, exec.Command(file)), start(t, exec.Command(file))
	at := parent.do("open %s", lib)
	stranger.do("open %s", lib)
	pid := int(parent.do("fork"))
	child := identify(t, pid)
	hints := []unwind.Hint{hintFor(t, child, parent.at["leaf"], file)}
	kill(t, pid, parent)

	b := newBench(t, nil)
	b.resolve(stranger, stranger.at["leaf"])
	frames := []unwind.RawFrame{frame(at, false), frame(parent.at["leaf"], false)}
	if got := names(b.stack(child, scope, hints, frames...)); got != "[unknown] leaf" {
		t.Errorf("with a stranger only: got %s", got)
	}
	b = newBench(t, nil)
	b.resolve(stranger, stranger.at["leaf"])
	b.resolve(parent, parent.at["leaf"])
	if got := names(b.stack(child, scope, hints, frames...)); got != "exported leaf" {
		t.Errorf("with its parent: got %s", got)
	}
	if n := b.Stats().Unwinders["native"]["address_spaces_same"]; n != 1 {
		t.Errorf("counted %d", n)
	}
}

// kill ends a child of a target and waits until /proc shows it no more, or as a zombie without mappings.
func kill(t *testing.T, pid int, parent *target) {
	t.Helper()
	p, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
		if err != nil || len(text) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("pid %d does not end", pid)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestMapsOfAnotherProgramAreNotUsed(t *testing.T) {
	file := build(t, "target", "target.c", "-pie", "-fPIE", "-pthread")
	p := start(t, exec.Command(file))
	t.Run("the PID has a new owner", func(t *testing.T) {
		b := newBench(t, nil)
		old := p.id
		old.StartBoottime -= 20_000_000
		if got := names(b.stack(old, scope, nil, frame(p.at["leaf"], false))); got != unwind.Unknown {
			t.Errorf("got %s", got)
		}
		if n := b.Stats().Processes.Gone; n != 1 {
			t.Errorf("counted %d gone", n)
		}
	})
	t.Run("it has exec'd", func(t *testing.T) {
		b := newBench(t, nil)
		b.current = func(process.ID) bool { return false }
		if got := b.resolve(p, p.at["leaf"]); got != unwind.Unknown {
			t.Errorf("got %s", got)
		}
		if n := b.Stats().Processes.Stale; n == 0 {
			t.Errorf("counted %d stale", n)
		}
	})
	t.Run("the kernel does not know it, but the evidence does", func(t *testing.T) {
		b := newBench(t, nil)
		b.current = func(process.ID) bool { return false }
		hints := []unwind.Hint{hintFor(t, p.id, p.at["leaf"], file)}
		if got := names(b.stack(p.id, scope, hints, frame(p.at["leaf"], false), frame(p.at["middle"], true))); got != "leaf middle" {
			t.Errorf("got %s", got)
		}
	})
	t.Run("it exec'd twice before we looked", func(t *testing.T) {
		b := newBench(t, nil)
		first, second := p.id, p.id
		second.ExecID++
		b.current = func(id process.ID) bool { return id.ExecID == second.ExecID }
		b.Exec(first, scope) // what is read is the second program's already
		b.Exec(second, scope)
		if got := names(b.stack(first, scope, nil, frame(p.at["leaf"], false))); got != unwind.Unknown {
			t.Errorf("first program: got %s", got)
		}
		if got := names(b.stack(second, scope, nil, frame(p.at["leaf"], false))); got != "leaf" {
			t.Errorf("second program: got %s", got)
		}
	})
	t.Run("an exec that the kernel side had not met", func(t *testing.T) {
		b := newBench(t, nil)
		known := false
		b.current = func(process.ID) bool { return known }
		b.Exec(p.id, scope) // it was never sampled
		known = true
		if got := b.resolve(p, p.at["leaf"]); got != "leaf" {
			t.Errorf("got %s", got)
		}
	})
}

func TestFirstThreadEnded(t *testing.T) {
	file := build(t, "target", "target.c", "-pthread")
	p := start(t, exec.Command(file, "end"))
	deadline := time.Now().Add(10 * time.Second)
	for {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.id.PID))
		if err != nil {
			t.Fatal(err)
		}
		if regexp.MustCompile(`\) Z `).Match(stat) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the first thread does not end: %s", stat)
		}
		time.Sleep(time.Millisecond)
	}
	if got := newBench(t, nil).resolve(p, p.at["leaf"]); got != "leaf" {
		t.Errorf("got %s", got)
	}
}

func TestExecStormIsBounded(t *testing.T) {
	b := newBench(t, nil)
	for i := range 10_000 {
		b.Exec(process.ID{PID: 1 << 22, StartBoottime: uint64(i), ExecID: 1}, 1)
	}
	if s := b.Stats(); s.Processes.Reads > 1000 || s.ExecsHeld < 9000 {
		t.Errorf("%d maps read, %d execs held", s.Processes.Reads, s.ExecsHeld)
	}
	file := build(t, "target", "target.c", "-pthread")
	p := start(t, exec.Command(file))
	b.Exec(p.id, 2) // another container
	p.kill()
	if got := names(b.stack(p.id, 2, nil, frame(p.at["leaf"], false))); got != "leaf" {
		t.Errorf("another container: got %s", got)
	}
}

func TestExitAgesAndForgets(t *testing.T) {
	file := build(t, "target", "target.c", "-pthread")
	p := start(t, exec.Command(file))
	b := newBench(t, nil)
	b.Exec(p.id, scope)
	b.resolve(p, p.at["leaf"])
	b.Exit(p.id)
	p.kill()
	b.WindowEnd(map[process.ID]uint32{p.id: scope})
	if got := b.resolve(p, p.at["main"]); got != "main" {
		t.Errorf("a late stack: got %s", got)
	}
	b.WindowEnd(nil)
	if n := b.Stats().Processes.Processes; n != 0 {
		t.Errorf("%d processes two windows after the exit", n)
	}

	// An exit that nobody told us of.
	q := start(t, exec.Command(file))
	b.resolve(q, q.at["leaf"])
	q.kill()
	b.Sweep()
	b.WindowEnd(nil)
	b.WindowEnd(nil)
	if s := b.Stats().Processes; s.Processes != 0 || s.Swept != 1 || s.Mappings != 0 {
		t.Errorf("after a sweep: %+v", s)
	}
}

func TestForgottenStacksLeaveNothing(t *testing.T) {
	file := build(t, "target", "target.c", "-pthread")
	p := start(t, exec.Command(file))
	b := newBench(t, nil)
	var keys []unwind.Key
	for i := range 100 {
		k := unwind.Key{Hash: uint64(i + 1), Process: p.id, Scope: uint32(i % 3), Context: unwind.ContextUser}
		keys = append(keys, k)
		b.Stack(unwind.Stack{Key: k, Frames: []unwind.RawFrame{frame(p.at["leaf"]+uint64(i%2), false), frame(p.at["middle"], true)}})
		b.Stack(unwind.Stack{Key: k, Frames: []unwind.RawFrame{frame(p.at["main"], false)}}) // an upsert
	}
	if s := b.Stats(); s.Stacks != 100 || s.Bytes <= 0 {
		t.Errorf("holds %d stacks in %d bytes", s.Stacks, s.Bytes)
	}
	for _, k := range keys {
		b.Forget(k)
		b.Forget(k)
	}
	if s := b.Stats(); s.Stacks != 0 || s.Bytes != 0 {
		t.Errorf("holds %d stacks in %d bytes after all were forgotten", s.Stacks, s.Bytes)
	}
}

func TestOneContainerCannotHaveAllMemory(t *testing.T) {
	file := build(t, "target", "target.c", "-pthread")
	p := start(t, exec.Command(file))
	b := newBench(t, func(c *unwind.SymbolizerConfig) { c.MaxBytes = 64 << 10 })
	frames := make([]unwind.RawFrame, 100)
	for i := range 100 {
		for j := range frames { // all different
			frames[j] = frame(p.at["puts"]+uint64(1000*i+j), false)
		}
		b.stack(p.id, 1, nil, frames...)
	}
	s := b.Stats()
	if s.OverBudget < 90 || s.Bytes > 32<<10 {
		t.Errorf("%d stacks over budget, %d bytes held", s.OverBudget, s.Bytes)
	}
	if got := names(b.stack(p.id, 1, nil, frames...)); got != unwind.StackOverBudget {
		t.Errorf("got %.100s", got)
	}
	if got := names(b.stack(p.id, 2, nil, frame(p.at["leaf"], false))); got != "leaf" {
		t.Errorf("another container: got %s", got)
	}
}

func TestHostileNames(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                         "plain",
		"naïve":                         "naïve",
		"a\xffb":                        "a\uFFFDb",
		"a\x00b\nc":                     "a\uFFFDb\uFFFDc",
		strings.Repeat("é", 2000):       strings.Repeat("é", 512) + "…",
		"x" + strings.Repeat("é", 2000): "x" + strings.Repeat("é", 511) + "…",
	} {
		if got := unwind.Clean(in); got != want {
			t.Errorf("%.20q: got %q", in, got)
		}
	}
}

func TestRecentKeepsWhatIsUsed(t *testing.T) {
	r := unwind.NewRecent[int, int](100)
	r.Put(-1, -1, 1)
	for i := range 1000 {
		r.Put(i, i, 1)
		if v, ok := r.Get(-1); !ok || v != -1 {
			t.Fatalf("after %d others: %d, %v", i, v, ok)
		}
	}
	if n := r.Len(); n > 101 {
		t.Errorf("holds %d", n)
	}
	if _, ok := r.Get(1); ok {
		t.Error("an old value is still there")
	}
}

func BenchmarkStack(b *testing.B) {
	file := build(b, "target", "target.c", "-pthread")
	p := start(b, exec.Command(file))
	s := newBench(b, nil)
	frames := make([]unwind.RawFrame, 12)
	for i := range frames {
		frames[i] = frame(p.at["puts"]+uint64(16*i), i > 0)
	}
	key := unwind.Key{Hash: 1, Process: p.id, Scope: scope, Context: unwind.ContextUser}
	b.ReportAllocs()
	for b.Loop() {
		s.Stack(unwind.Stack{Key: key, Frames: frames})
		s.Forget(key)
		key.Hash++
	}
}
