package replay

import (
	"bufio"
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stoker-profiler/stoker/bpf/process"
)

func compile(t testing.TB, compiler, source string, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if out, err := exec.Command(compiler, append(append([]string{"-O2", "-w", "-o", path}, filepath.Join("testdata", source)), args...)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", compiler, err, out)
	}
	return path
}

// functions names the frames that lie in the file at path by its symbols, and the others by their file.
func functions(t *testing.T, s *Snapshot, frames []Registers, path string) (names []string) {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	maps := process.NewMaps(slices.Clone(s.Maps))
	for _, g := range frames {
		m, ok := maps.Find(g.PC)
		if !ok {
			t.Fatalf("0x%x lies in no mapping", g.PC)
		}
		name := filepath.Base(m.Path)
		if m.Path == path {
			at := m.FileOffset(g.PC)
			if g.ReturnAddress {
				at--
			}
			for _, p := range f.Progs {
				if p.Type == elf.PT_LOAD && at >= p.Off && at-p.Off < p.Filesz {
					at = at - p.Off + p.Vaddr
					break
				}
			}
			for _, y := range symbols {
				if elf.ST_TYPE(y.Info) == elf.STT_FUNC && at >= y.Value && at < y.Value+y.Size {
					name = y.Name
				}
			}
		}
		names = append(names, name)
	}
	return names
}

// TestALiveThreadIsRecordedAndReplayed records a thread that waits where we know, writes the snapshot, reads it, and walks.
func TestALiveThreadIsRecordedAndReplayed(t *testing.T) {
	for _, c := range []struct {
		compiler string
		args     []string
		libc     string
	}{
		{"gcc", nil, "libc.so.6"},
		{"musl-gcc", nil, "libc.so"},
	} {
		t.Run(c.compiler, func(t *testing.T) {
			path := compile(t, c.compiler, "waiting.c", c.args...)
			cmd := exec.Command(path)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait()
			defer cmd.Process.Kill()
			if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
				t.Fatalf("the program says %q (%v)", line, err)
			}
			s, err := Record(cmd.Process.Pid, cmd.Process.Pid, path)
			if err != nil {
				t.Fatal(err)
			}
			var file bytes.Buffer
			if err := s.Write(&file); err != nil {
				t.Fatal(err)
			}
			t.Logf("%d bytes", file.Len())
			again, err := Read(&file)
			if err != nil {
				t.Fatal(err)
			}
			frames, end, err := again.Walk()
			if err != nil || end != Complete {
				t.Errorf("the walk ends with %v, %v", end, err)
			}
			names := functions(t, again, frames, path)
			names = slices.Compact(names) // of the C library we know only that it is there
			want := []string{c.libc, "wait_here", "handler", c.libc, "compare", c.libc, "main", c.libc, "_start"}
			if c.compiler == "musl-gcc" { // whose _start is a piece of assembly, a symbol without a size
				want[len(want)-1] = filepath.Base(path)
			}
			if got := strings.Join(names, " "); !slices.Equal(names[:min(len(names), len(want))], want) {
				t.Errorf("got  %s\nwant %s", got, strings.Join(want, " "))
			}
		})
	}
}

// snapshots are stacks that were recorded once: a row per file of testdata. To add one, see record/.
var snapshots = []struct {
	file   string
	end    End
	frames string // file+offset, as record -print shows them
}{
	// A stripped static program: no symbols, no tables. pause, wait_here, handler, the trampoline, the kill in raise, raise, compare,
	// three of qsort's, main, __libc_start_main's, _start.
	{"musl-static-signal.snapshot", Complete, "waiting+0x2839 waiting+0x1b0c waiting+0x1235 waiting+0x124f waiting+0x193f waiting+0x1f97 waiting+0x1603 " +
		"waiting+0x11f6 waiting+0x2121 waiting+0x23c3 waiting+0x25ec waiting+0x10c4 waiting+0x150a waiting+0x10e8"},
	// The same source for arm64 with signed return addresses (gcc -mbranch-protection=standard): pause, wait_here, handler, the kernel's
	// trampoline, the kill in raise, raise, compare, three of qsort's, main, two of the C library's start, _start.
	{"arm64-signed-signal.snapshot", Complete, "libc.so.6+0xbbbec waiting+0xa04 waiting+0xa28 [vdso]+0x820 libc.so.6+0x83c18 libc.so.6+0x3a8ac waiting+0x9c0 " +
		"libc.so.6+0x3e5d4 libc.so.6+0x3e4a0 libc.so.6+0x3e7f0 waiting+0x864 libc.so.6+0x27744 libc.so.6+0x27818 waiting+0x8b0"},
}

func TestSnapshots(t *testing.T) {
	for _, c := range snapshots {
		t.Run(c.file, func(t *testing.T) {
			file, err := os.Open(filepath.Join("testdata", c.file))
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			s, err := Read(file)
			if err != nil {
				t.Fatal(err)
			}
			frames, end, err := s.Walk()
			if err != nil {
				t.Fatal(err)
			}
			maps := process.NewMaps(slices.Clone(s.Maps))
			var got []string
			for _, g := range frames {
				where := "?"
				if m, ok := maps.Find(g.PC); ok {
					where = fmt.Sprintf("%s+0x%x", filepath.Base(m.Path), m.FileOffset(g.PC))
				}
				got = append(got, where)
			}
			if end != c.end || strings.Join(got, " ") != c.frames {
				t.Errorf("ends with %v, want %v; frames\n%s, want\n%s", end, c.end, strings.Join(got, " "), c.frames)
			}
		})
	}
}
