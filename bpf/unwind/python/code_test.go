package python

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stoker-profiler/stoker/bpf/unwind/python/offsets"
)

// program waits in a chain of functions of every kind, the innermost in native code, and says which lines they stand at.
const program = `import sys
def leaf():
    print(*sys.version_info[:2], flush=True); return sys.stdin.read()

def größe():
    return [leaf() for _ in
            range(1)]

def gen():
    yield größe()

class Thing:
    def method(self):
        return next(gen())

def ключ(x):
    return (1 +
            len(Thing().method()))

def 関数():
    return sorted([1],
                  key=ключ)
` + "def 𝔵():\n    関数()\n𝔵()\n"

// want is that chain, leaf first: name (of 3.11 on; earlier ones have the last part) and line.
var want = []struct {
	name string
	line int
}{
	{"leaf", 3}, {"größe.<locals>.<listcomp>", 6}, {"größe", 6}, {"gen", 10}, {"Thing.method", 14}, {"ключ", 18},
	{"関数", 21}, {"x", 24}, {"<module>", 25},
}

// interpreters are the packages' python3 and whatever pyenv has.
func interpreters(t *testing.T) []string {
	all := []string{"/usr/bin/python3"}
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	for minor := range offsets.Tables {
		found, err := filepath.Glob(filepath.Join(home, ".pyenv", "versions", fmt.Sprintf("3.%d.*", minor), "bin", "python3"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

// runtimeAddress finds _PyRuntime in a process by the symbols of its mapped files.
func runtimeAddress(t *testing.T, pid int) uint64 {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([0-9a-f]+)-\S+ \S+ 00000000 \S+ \d+ +(/.*python\S*)$`).FindAllStringSubmatch(string(maps), -1) {
		if seen[m[2]] {
			continue
		}
		seen[m[2]] = true
		f, err := elf.Open(m[2])
		if err != nil {
			continue
		}
		symbols, err := f.DynamicSymbols()
		f.Close()
		if err != nil {
			continue
		}
		start, err := strconv.ParseUint(m[1], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		if f.Type == elf.ET_EXEC {
			start = 0
		}
		for _, s := range symbols {
			if s.Name == "_PyRuntime" && s.Section != elf.SHN_UNDEF {
				return start + s.Value
			}
		}
	}
	t.Fatalf("no _PyRuntime in:\n%s", maps)
	return 0
}

// TestFramesOfALiveInterpreter: the offsets and what ReadCode makes of them, down the whole chain of a waiting process.
func TestFramesOfALiveInterpreter(t *testing.T) {
	for _, python := range interpreters(t) {
		t.Run(strings.Trim(python, "/"), func(t *testing.T) {
			cmd := exec.Command(python, "-S", "-E", "-c", program)
			cmd.Env = []string{"LC_ALL=C.UTF-8"}
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
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
			defer func() {
				in.Close()
				if err := cmd.Wait(); err != nil {
					t.Errorf("%s: %v: %s", python, err, stderr.String())
				}
			}()
			said, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			var major, minor int
			if _, err := fmt.Sscan(said, &major, &minor); err != nil {
				t.Fatal(err)
			}
			table, ok := offsets.Tables[minor]
			if !ok {
				t.Fatalf("no table for %d.%d", major, minor)
			}
			mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", cmd.Process.Pid))
			if err != nil {
				t.Fatal(err)
			}
			defer mem.Close()
			word := func(at uint64) uint64 {
				var b [8]byte
				if err := readAt(mem, b[:], at); err != nil {
					t.Fatal(err)
				}
				return binary.LittleEndian.Uint64(b[:])
			}
			interpreter := word(runtimeAddress(t, cmd.Process.Pid) + uint64(table.InterpretersHead))
			thread := word(interpreter + uint64(table.ThreadsHead))
			if got := word(thread + uint64(table.ThreadInterp)); got != interpreter {
				t.Fatalf("the thread's interpreter is %#x, want %#x", got, interpreter)
			}
			var frame uint64
			switch {
			case table.ThreadFrame != offsets.Absent:
				frame = word(thread + uint64(table.ThreadFrame))
			case table.CFrame != offsets.Absent:
				frame = word(word(thread+uint64(table.CFrame)) + uint64(table.CFrameCurrent))
			default:
				frame = word(thread + uint64(table.CurrentFrame))
			}
			var got, expect []string
			for hops := 0; frame != 0 && hops < 64; hops++ {
				const ownedByC = 3 // FRAME_OWNED_BY_CSTACK, 3.12 and 3.13: where C called the interpreter
				owner := byte(0)
				if minor >= 12 {
					owner = byte(word(frame + uint64(table.Owner)))
				}
				if owner != ownedByC {
					code, err := ReadCode(mem, &table, word(frame+uint64(table.Executable)))
					if err != nil {
						t.Fatal(err)
					}
					line, err := code.Line(word(frame + uint64(table.Instruction)))
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, fmt.Sprintf("%s %s:%d", code.Name, code.File, line))
				}
				frame = word(frame + uint64(table.Previous))
			}
			for _, w := range want {
				if minor >= 12 && strings.HasSuffix(w.name, "<listcomp>") { // PEP 709: inlined
					continue
				}
				name := w.name
				if minor < 11 {
					name = name[strings.LastIndexByte("."+name, '.'):]
				}
				expect = append(expect, fmt.Sprintf("%s <string>:%d", name, w.line))
			}
			if strings.Join(got, "\n") != strings.Join(expect, "\n") {
				t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(expect, "\n"))
			}
		})
	}
}

// forged is memory whose every word a test decides.
type forged map[uint64][]byte

func (f forged) ReadAt(b []byte, off int64) (int, error) {
	for at, have := range f {
		if start := uint64(off) - at; uint64(off) >= at && start < uint64(len(have)) {
			return copy(b, have[start:]), nil
		}
	}
	return 0, os.ErrInvalid
}

// TestForgedCode: a process that lies about sizes and kinds gets errors and cut names, never more than is allowed.
func TestForgedCode(t *testing.T) {
	table := offsets.Tables[12]
	object := func(length uint64, state uint32, text string) []byte {
		b := make([]byte, table.CompactText+len(text))
		binary.LittleEndian.PutUint64(b[table.UnicodeLength:], length)
		binary.LittleEndian.PutUint32(b[table.UnicodeState:], state)
		copy(b[table.ASCIIText:], text)
		return b
	}
	code := make([]byte, 256)
	binary.LittleEndian.PutUint64(code[table.QualName:], 0x2000)
	binary.LittleEndian.PutUint64(code[table.FileName:], 0x3000)
	binary.LittleEndian.PutUint64(code[table.LineTable:], 0x4000000)
	const ascii = stateCompact | stateASCII | 1<<stateKindShift
	lines := make([]byte, 64)
	honest := func() forged {
		return forged{0x1000: code, 0x2000: object(1, ascii, "f"), 0x3000: object(4, ascii, "a.py"), 0x4000000: lines}
	}
	for _, c := range []struct {
		name  string
		forge func(forged)
		err   string
	}{
		{"honest", func(forged) {}, ""},
		{"no code", func(f forged) { delete(f, 0x1000) }, "read the code object"},
		{"no name", func(f forged) { delete(f, 0x2000) }, "name of the code object"},
		{"a name of three-byte characters", func(f forged) { f[0x2000] = object(1, stateCompact|3<<stateKindShift, "f") }, "characters of 3 bytes"},
		{"a name that is not compact", func(f forged) { f[0x2000] = object(1, 0, "f") }, "no compact string"},
		{"a file name that ends in nothing", func(f forged) { f[0x3000] = object(1<<40, ascii, "a.py") }, "file of the code object"},
		{"a line table of 16 EiB", func(f forged) {
			b := make([]byte, 64)
			binary.LittleEndian.PutUint64(b[table.BytesSize:], 1<<64-1)
			f[0x4000000] = b
		}, "more than the 1048576"},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem := honest()
			c.forge(mem)
			_, err := ReadCode(mem, &table, 0x1000)
			if (c.err == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), c.err)) {
				t.Errorf("error %v, want %q", err, c.err)
			}
		})
	}
	mem := honest()
	mem[0x2000] = object(1<<20, ascii, strings.Repeat("x", 2*maxNameBytes))
	got, err := ReadCode(mem, &table, 0x1000)
	if err != nil || len(got.Name) != maxNameBytes {
		t.Errorf("a name of a megabyte: %d bytes, %v; want the first %d", len(got.Name), err, maxNameBytes)
	}
}

// FuzzReadCode: whatever is in memory, a code object's texts are bounded and each of its lines is one or none.
func FuzzReadCode(f *testing.F) {
	for minor := range offsets.Tables {
		f.Add(uint8(minor), make([]byte, 256), uint64(64))
	}
	f.Fuzz(func(t *testing.T, minor uint8, memory []byte, instruction uint64) {
		table, ok := offsets.Tables[int(minor)]
		if !ok {
			return
		}
		code, err := ReadCode(forged{0x10: memory}, &table, 0x10)
		if err != nil {
			return
		}
		if len(code.Name) > 4*maxNameBytes || len(code.File) > 4*maxFileNameBytes || len(code.table) > maxLineTableBytes {
			t.Errorf("name %d, file %d, table %d bytes", len(code.Name), len(code.File), len(code.table))
		}
		if line, err := code.Line(instruction); line < 0 || (err != nil && line != NoLine) {
			t.Errorf("line %d, error %v", line, err)
		}
	})
}
