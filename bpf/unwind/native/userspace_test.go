package native

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/unwind/native/cfi"
	"github.com/stoker-profiler/stoker/bpf/unwind/native/replay"
)

// userspace builds userspace/walk.c: the kernel's walk, native.bpf.c as it is, for user space and under gcc's sanitizers.
func userspace(t *testing.T, target string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "walk-"+target)
	out, err := exec.Command("gcc", "-g", "-O1", "-std=gnu17", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-unknown-pragmas",
		"-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-D__TARGET_ARCH_"+target, "-Iuserspace", "-I../../include",
		"-o", path, "userspace/walk.c").CombinedOutput()
	if err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	return path
}

// TestTheKernelsWalkEndsWhateverItMeets walks stacks of random registers, tables and memory: no read outside of what is there, no
// undefined arithmetic, no more frames, reads or tail calls than there may be, and one outcome each. Walks of all kinds happen.
func TestTheKernelsWalkEndsWhateverItMeets(t *testing.T) {
	for _, target := range []string{"x86", "arm64"} {
		t.Run(target, func(t *testing.T) {
			walk := userspace(t, target)
			for seed := range 4 {
				out, err := exec.Command(walk, "fuzz", fmt.Sprint(seed), "5000").CombinedOutput()
				if err != nil {
					t.Fatalf("%s fuzz %d 5000: %v\n%s", walk, seed, err, out)
				}
				frames := 0
				outcomes := map[string]int{}
				for line := range strings.Lines(string(out)) {
					var outcome string
					var n int
					if _, err := fmt.Sscanf(line, "frames %d", &n); err == nil {
						frames = n
					} else if _, err := fmt.Sscanf(line, "outcome %s %d", &outcome, &n); err == nil {
						outcomes[outcome] = n
					}
				}
				t.Logf("seed %d: %d frames, outcomes %v", seed, frames, outcomes)
				kinds := []string{"complete", "chain_ended", "fault", "no_rows"}
				if target == "x86" { // on arm64 a walk is lost where a step by frame pointer meets a rule that needs the stack pointer
					kinds = append(kinds, "too_deep")
				}
				for _, o := range kinds {
					if outcomes[o] == 0 {
						t.Errorf("seed %d: no walk ended as %s: the random tables are too dull", seed, o)
					}
				}
			}
		})
	}
}

// kernelWalk is a stack as the kernel's walk finds it.
type kernelWalk struct {
	frames  []string // address, and whether it is a return address
	outcome string
	rounds  int // walks until nothing had to be asked for
}

// walkSnapshot lets the kernel's walk go over a snapshot as it goes over a process: by tables that hold nothing at first and are
// filled with what it asks for, by the code that does so in the agent.
func walkSnapshot(t *testing.T, walk string, s *replay.Snapshot) kernelWalk {
	t.Helper()
	maps := process.NewMaps(slices.Clone(s.Maps))
	b := newBench(t, sizes{spaceBanks: 1, rowBanks: 1, pages: 8192, missBytes: 4096})
	id := process.ID{PID: 1}
	value, _ := b.publish(id, 1, maps, false)
	if value == 0 {
		t.Fatal("the snapshot's mappings have no place")
	}
	m := newManager(b.tables, process.Reader{})
	excerpt := func(path string) *replay.Excerpt {
		i := slices.IndexFunc(s.Files, func(e replay.Excerpt) bool { return e.Path == path })
		if i < 0 {
			return nil
		}
		return &s.Files[i]
	}
	paths := map[*textFile]string{}
	answer := func(r request) {
		if r.foreseen {
			return // it is not all in the snapshot
		}
		if r.file {
			e := excerpt(r.key.path)
			if e == nil {
				t.Fatalf("the walk needs %s, of which nothing was recorded", r.key.path)
			}
			f, err := newTextFile(e, e.Size)
			if err != nil {
				t.Fatalf("%s: %v", r.key.path, err)
			}
			f.instance = instance{major: r.key.major, minor: r.key.minor, inode: r.key.inode, size: e.Size}
			if f = b.enter(f); f == nil {
				t.Fatalf("%s: no room", r.key.path)
			}
			paths[f] = r.key.path
			b.learned(r.key, f)
			return
		}
		f, n, ok := b.page(r.slot)
		if !ok {
			return
		}
		if err := m.build(excerpt(paths[f]), f, n); err != nil {
			t.Fatalf("page %#x of %s: %v", uint64(n.Start()), paths[f], err)
		}
	}

	file := filepath.Join(t.TempDir(), "case")
	for round := 1; ; round++ {
		writeCase(t, file, s, b.mem, value)
		out, err := exec.Command(walk, file).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", walk, err, out)
		}
		got, asked := kernelWalk{rounds: round}, 0
		for line := range strings.Lines(string(out)) {
			var a uint64
			var page uint32
			var isReturn int
			if _, err := fmt.Sscanf(line, "miss %x %x", &a, &page); err == nil {
				asked++
				b.missed(bpfMiss{Address: a, Pid: id.PID, Page: page})
			} else if _, err := fmt.Sscanf(line, "frame %x %d", &a, &isReturn); err == nil {
				got.frames = append(got.frames, fmt.Sprintf("%#x %v", a, isReturn == 1))
			} else if _, err := fmt.Sscanf(line, "outcome %s", &got.outcome); err != nil {
				t.Fatalf("the walk says %q", line)
			}
		}
		if asked == 0 {
			return got
		}
		if round > 1000 {
			t.Fatalf("the walk asks without end:\n%s", out)
		}
		for r, ok := b.take(); ok; r, ok = b.take() {
			answer(r)
		}
	}
}

// ptRegs are the DWARF numbers of struct pt_regs' first words on x86-64: r15 to rdi.
var ptRegs = []cfi.Register{15, 14, 13, 12, cfi.X86FP, cfi.X86BX, 11, 10, 9, 8, 0, 2, 1, 4, 5}

// writeCase writes what walk_case of walk.c reads.
func writeCase(t *testing.T, path string, s *replay.Snapshot, mem *memory, space uint64) {
	t.Helper()
	var w bytes.Buffer
	word := func(v ...uint64) { _ = binary.Write(&w, binary.NativeEndian, v) } // to memory
	g := &s.Registers
	if s.Machine == elf.EM_X86_64 {
		for _, r := range ptRegs {
			word(g.R[r])
		}
		word(0, g.PC, 0x33, 0, g.R[cfi.X86SP], 0x2b) // orig_ax, ip, cs, flags, sp, ss
	} else {
		word(g.R[:31]...)
		word(g.R[31], g.PC, 0) // sp, pc, pstate
	}
	word(s.CodeMask+1, space, 1)
	arrays := []struct {
		n    int // values of the map
		data any
	}{
		{len(mem.spaces) / spaceMappings, mem.spaces}, {len(mem.pages), mem.pages}, {len(mem.rows) / bankRows, mem.rows}, {-1, mem.rules},
	}
	for _, a := range arrays {
		if a.n >= 0 {
			word(uint64(a.n))
		}
		if err := binary.Write(&w, binary.NativeEndian, a.data); err != nil {
			t.Fatal(err)
		}
	}
	word(uint64(len(s.Memory)))
	for _, p := range s.Memory {
		word(p.At, uint64(len(p.Bytes)))
		w.Write(p.Bytes)
	}
	if err := os.WriteFile(path, w.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// compareWalks compares the kernel's walk of a snapshot with that of Go, which is compared with recorded truth in package replay.
func compareWalks(t *testing.T, walk string, s *replay.Snapshot) {
	t.Helper()
	frames, end, err := s.Walk()
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, f := range frames {
		want = append(want, fmt.Sprintf("%#x %v", f.PC, f.ReturnAddress))
	}
	got := walkSnapshot(t, walk, s)
	same := slices.Equal(got.frames, want)
	if end != replay.Complete { // no rule: there the kernel's walk goes on by frame pointer
		same = len(got.frames) >= len(want) && slices.Equal(got.frames[:len(want)], want)
	}
	if !same || (end == replay.Complete) != (got.outcome == "complete") {
		t.Errorf("the kernel's walk: %s\n%s\nin Go: %v\n%s", got.outcome, strings.Join(got.frames, "\n"), end, strings.Join(want, "\n"))
	}
	t.Logf("%s: %d frames, %d walks until all rows were there", filepath.Base(s.Program), len(want), got.rounds)
}

// TestTheKernelsWalkIsThatOfTheSnapshots walks every snapshot of replay/testdata.
func TestTheKernelsWalkIsThatOfTheSnapshots(t *testing.T) {
	files, err := filepath.Glob("replay/testdata/*.snapshot")
	if err != nil || len(files) == 0 {
		t.Fatalf("no snapshots (%v)", err)
	}
	walks := map[elf.Machine]string{}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			s, err := replay.Read(f)
			if err != nil {
				t.Fatal(err)
			}
			if walks[s.Machine] == "" {
				walks[s.Machine] = userspace(t, map[elf.Machine]string{elf.EM_X86_64: "x86", elf.EM_AARCH64: "arm64"}[s.Machine])
			}
			compareWalks(t, walks[s.Machine], s)
		})
	}
}

// TestTheKernelsWalkIsThatOfLiveThreads walks a thread that waits in a signal's handler, by call frame information and by the code of
// musl, which has none; and a shell at work, stopped at random.
func TestTheKernelsWalkIsThatOfLiveThreads(t *testing.T) {
	target := map[string]string{"amd64": "x86"}[runtime.GOARCH]
	if target == "" {
		target = runtime.GOARCH
	}
	walk := userspace(t, target)
	compile := func(compiler string) []string {
		path := filepath.Join(t.TempDir(), "waiting")
		if out, err := exec.Command(compiler, "-O2", "-w", "-o", path, "replay/testdata/waiting.c").CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", compiler, err, out)
		}
		return []string{path}
	}
	for _, c := range []struct {
		name      string
		args      []string
		snapshots int
	}{
		{"gcc", compile("gcc"), 1},
		{"musl-gcc", compile("musl-gcc"), 1},
		{"bash", []string{"bash", "-c", `echo ready; while :; do for i in {1..20}; do x=$((i * i)); [[ $x =~ ^1(.)+$ ]]; done; y=${x//1/2}; done`}, 8},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command(c.args[0], c.args[1:]...)
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
			for range c.snapshots {
				s, err := replay.Record(cmd.Process.Pid, cmd.Process.Pid, c.name)
				if err != nil {
					t.Fatal(err)
				}
				compareWalks(t, walk, s)
			}
		})
	}
}
