//go:build root

package node

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/test/nodejs"
)

func memoryOf(pid int) process.Memory { return process.Memory{PID: uint32(pid)} }

// site is a frame as the program itself sees it.
type site struct {
	Function, File string
	Line, Column   int
}

// TestStacks compares whole stacks of every version, in every tier of V8's, with what Error.stack says in the program itself: function,
// file, line and column of each frame.
func TestStacks(t *testing.T) {
	for _, b := range nodejs.Binaries(t) {
		l := layoutOf(t, b.Path)
		t.Run(b.Version, func(t *testing.T) {
			for _, tier := range []struct {
				name  string
				flags []string
				exact bool
			}{
				{"interpreted", []string{"--no-opt", "--no-maglev", "--no-sparkplug", "testdata/stack.js", "2"}, true},
				{"baseline", []string{"--no-opt", "--no-maglev", "--always-sparkplug", "testdata/stack.js", "20"}, true},
				{"optimized", []string{"--no-maglev", "testdata/stack.js", "30000"}, true},
				{"maglev", []string{"--maglev", "--no-opt", "testdata/stack.js", "1000"}, false},
				{"default", []string{"testdata/stack.js", "3000"}, false},
			} {
				t.Run(tier.name, func(t *testing.T) {
					if l.Version.Major < 11 { // has no such compiler
						tier.flags = slices.DeleteFunc(tier.flags, func(f string) bool { return strings.HasSuffix(f, "maglev") })
					}
					s := stop(t, b.Path, tier.flags)
					compare(t, s.frames(t, NewHeap(l, memoryOf(s.pid))), s.want, tier.exact)
				})
			}
		})
	}
}

func layoutOf(t *testing.T, path string) *Layout {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	l, err := ReadLayout(f, st.Size())
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return l
}

// compare checks that each frame is what the program says. Frames may be left out, and lines unknown, only if not exact.
func compare(t *testing.T, got []Frame, want []site, exact bool) {
	t.Helper()
	say := func() {
		for i := range max(len(got), len(want)) {
			var g, w string
			if i < len(got) {
				g = fmt.Sprintf("%+v", got[i])
			}
			if i < len(want) {
				w = fmt.Sprintf("%+v", want[i])
			}
			t.Logf("%-110s | %s", g, w)
		}
	}
	i, lines := 0, 0
	for _, w := range want {
		if w.File == "" && w.Function == "map" { // inlined, it has no frame of its own
			if i < len(got) && got[i].Function == "map" {
				i++
			}
			continue
		}
		if i == len(got) || got[i].Function != w.Function || got[i].File != w.File {
			if exact || i == len(got) && len(got) < 5 {
				say()
				t.Fatalf("frame %d is not %+v", i, w)
			}
			continue
		}
		if got[i].Line == w.Line && got[i].Column == w.Column {
			lines++
		} else if exact || got[i].Line != 0 {
			say()
			t.Fatalf("%+v is not %+v", got[i], w)
		}
		i++
	}
	if i != len(got) {
		say()
		t.Fatalf("%+v is no frame of the program's, or is not where it should be", got[i])
	}
	t.Logf("%d of %d frames, %d with their lines", i, len(want), lines)
}

// stopped is a node that has stopped itself in testdata/stack.js.
type stopped struct {
	pid  int
	want []site // from the function that called halt on
}

func stop(t *testing.T, bin string, args []string) stopped {
	t.Helper()
	cmd := exec.Command(bin, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatalf("%s %v says nothing: %v", bin, args, err)
	}
	s := stopped{pid: cmd.Process.Pid}
	if err := json.Unmarshal(line, &s.want); err != nil {
		t.Fatal(err)
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(s.pid, &ws, unix.WUNTRACED, nil); err != nil || !ws.Stopped() {
		t.Fatalf("%s %v did not stop: status %#x, %v", bin, args, ws, err)
	}
	for i, w := range s.want {
		if w.Function == "halt" {
			s.want = s.want[i+1:]
			break
		}
	}
	return s
}

// words are what the kernel side reads of a frame of JavaScript.
type words struct {
	shared, pc  uint64
	id, code    uint16
	interpreted bool
	offset      int
}

// walk finds the frames of JavaScript of the process's first thread by the chain of frame pointers. C++ keeps none: the chain begins where
// ten frames follow each other.
func (s stopped) walk(t *testing.T, h *Heap) []words {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", s.pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text))
	var sp uint64
	if _, err := fmt.Sscanf(fields[len(fields)-2], "0x%x", &sp); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	maps, err := process.Reader{}.MapsOf(uint32(s.pid))
	if err != nil {
		t.Fatal(err)
	}
	code := maps.Code()
	mapping := func(a uint64) *process.Mapping {
		for i := range code {
			if a >= code[i].Start && a < code[i].End {
				return &code[i]
			}
		}
		return nil
	}
	stack := make([]byte, 256<<10)
	n, _ := memoryOf(s.pid).ReadAt(stack, int64(sp))
	stack = stack[:n&^7]
	word := func(at uint64) uint64 {
		if at < sp || at&7 != 0 || at-sp >= uint64(len(stack)) {
			return 0
		}
		return binary.LittleEndian.Uint64(stack[at-sp:])
	}
	chain := func(fp uint64) (frames [][2]uint64) {
		for next := word(fp); next > fp && mapping(word(fp+8)) != nil; fp, next = next, word(next) {
			frames = append(frames, [2]uint64{word(fp + 8), next})
		}
		return frames
	}
	var frames [][2]uint64
	for at := sp; len(frames) < 10 && at < sp+uint64(len(stack)); at += 8 {
		frames = chain(at)
	}
	var all []words
	for _, f := range frames {
		pc, fp := f[0], f[1]
		function := word(fp + uint64(h.l.frame.function))
		at, typ, err := h.object(function)
		if word(fp+uint64(h.l.frame.marker))&1 == 0 || err != nil || typ < h.l.types.functionLow || typ > h.l.types.functionHigh {
			continue
		}
		w := words{pc: pc}
		if w.shared, err = h.word(at + h.l.function.shared); err != nil {
			t.Fatal(err)
		}
		if w.id, err = h.Identity(w.shared); err != nil {
			t.Fatal(err)
		}
		if w.code, err = h.CodeIdentity(pc, true); err != nil {
			t.Fatal(err)
		}
		offset := word(fp + uint64(h.l.frame.bytecodeOffset))
		_, typ, err = h.object(word(fp + uint64(h.l.frame.bytecodeArray)))
		if mapping(pc).Backed() {
			if w.interpreted = err == nil && typ == h.l.types.bytecodeArray && isSmall(offset); w.interpreted {
				w.offset = small(offset)
			}
		}
		all = append(all, w)
	}
	return all
}

// frames reads the stack up to the function that called halt.
func (s stopped) frames(t *testing.T, h *Heap) []Frame {
	t.Helper()
	var frames []Frame
	for _, w := range s.walk(t, h) {
		var err error
		if w.interpreted {
			frames, err = h.Interpreted(frames, w.shared, w.id, w.offset)
		} else {
			frames, err = h.Compiled(frames, w.shared, w.id, w.pc, true, w.code)
		}
		if err != nil {
			t.Fatalf("%+v: %v", w, err)
		}
	}
	for i, f := range frames {
		if f.Function == "halt" {
			return frames[i+1:]
		}
	}
	t.Fatalf("halt is not in the stack: %+v", frames)
	return nil
}

// TestMoved asks for functions and code that are no longer what was sampled: nothing is named by them.
func TestMoved(t *testing.T) {
	b := nodejs.Binaries(t)[0]
	l := layoutOf(t, b.Path)
	s := stop(t, b.Path, []string{"testdata/stack.js", "30000"})
	h := NewHeap(l, memoryOf(s.pid))
	compiled := 0
	for _, w := range s.walk(t, h) {
		if w.interpreted {
			if f, err := h.Interpreted(nil, w.shared, w.id+1, w.offset); !errors.Is(err, ErrMoved) || len(f) != 0 {
				t.Errorf("another function in its place gave %+v, %v", f, err)
			}
			if f, err := h.Interpreted(nil, w.shared+8, w.id, w.offset); !errors.Is(err, ErrMoved) || len(f) != 0 {
				t.Errorf("no function in its place gave %+v, %v", f, err)
			}
			continue
		}
		right, err := h.Compiled(nil, w.shared, w.id, w.pc, true, w.code)
		if err != nil {
			t.Fatal(err)
		}
		if right[0].Line == 0 {
			continue
		}
		compiled++
		f, err := h.Compiled(nil, w.shared, w.id, w.pc, true, w.code+1)
		if err != nil || len(f) != 1 || f[0].Line != 0 || f[0].Function != right[len(right)-1].Function {
			t.Errorf("other code in its place gave %+v, %v", f, err)
		}
		if f, err := h.Compiled(nil, w.shared, w.id+1, w.pc, true, w.code); !errors.Is(err, ErrMoved) || len(f) != 0 {
			t.Errorf("another function of the code gave %+v, %v", f, err)
		}
	}
	if compiled == 0 {
		t.Error("nothing was compiled")
	}
}

// TestHostile reads stacks of a process whose memory is changed at every place that was read, one after the other: there is an error or a
// frame, within bounds.
func TestHostile(t *testing.T) {
	b := nodejs.Binaries(t)[0]
	l := layoutOf(t, b.Path)
	s := stop(t, b.Path, []string{"testdata/stack.js", "30000"})
	all := s.walk(t, NewHeap(l, memoryOf(s.pid)))
	for _, evil := range []uint64{0, 1, ^uint64(0), 1 << 62, 0x7fffffff00000000, 0xffffffff00000000} {
		for n := 0; ; n += 1 + n/40 {
			mem := &liar{Memory: memoryOf(s.pid), at: n, evil: evil}
			h := NewHeap(l, mem)
			for _, w := range all {
				if w.interpreted {
					_, _ = h.Interpreted(nil, w.shared, w.id, w.offset)
				} else {
					_, _ = h.Compiled(nil, w.shared, w.id, w.pc, true, w.code)
				}
			}
			if mem.bytes > 64<<20 {
				t.Fatalf("read %d of %#x made us read %d bytes", n, evil, mem.bytes)
			}
			if mem.reads <= n {
				break
			}
		}
	}
}

// liar changes one read.
type liar struct {
	process.Memory
	at    int
	evil  uint64
	reads int
	bytes int
}

func (l *liar) ReadAt(p []byte, off int64) (int, error) {
	n, err := l.Memory.ReadAt(p, off)
	if l.reads++; l.reads-1 == l.at {
		for i := 0; i+8 <= len(p); i += 8 {
			binary.LittleEndian.PutUint64(p[i:], l.evil)
		}
	}
	l.bytes += len(p)
	return n, err
}
