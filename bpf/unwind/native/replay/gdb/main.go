// Command gdb compares the walk by our rows with gdb's, frame by frame, at random moments of a program's life (x86-64).
//
//	go run ./bpf/unwind/native/replay/gdb -n 1000 -- openssl speed -seconds 100 rsa2048
//	go run ./bpf/unwind/native/replay/gdb -n 1000 -pid PID
//
// It starts the program, lets gdb stop it, unwinds both ways from the same registers and stack, prints how many stacks are
// equal and the first that are not, and ends the program. Inlined frames and those of tail calls, which gdb makes up from debug
// information, do not count. The program should not read the terminal, nor end by itself.
package main

import (
	"bufio"
	"debug/elf"
	_ "embed"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/unwind/native/cfi"
	"github.com/stoker-profiler/stoker/bpf/unwind/native/replay"
)

//go:embed stop.py
var script []byte

func main() {
	n := flag.Int("n", 1000, "how many stacks to compare")
	after := flag.Duration("after", time.Second, "let the program run that long first")
	show := flag.Int("show", 3, "how many differences to print")
	pid := flag.Int("pid", 0, "a process that runs already, also one in a container; it goes on afterwards")
	flag.Parse()
	if (flag.NArg() == 0) == (*pid == 0) {
		fmt.Fprintln(os.Stderr, "usage: gdb [-n N] [-after D] [-show N] -pid PID | -- PROGRAM [ARGUMENT…]")
		os.Exit(2)
	}
	if err := run(*n, *pid, *after, *show, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "gdb:", err)
		os.Exit(1)
	}
}

// stop is a line that stop.py writes.
type stop struct {
	PC        uint64
	Registers []uint64
	Frames    []uint64
	Stack     string
}

// run starts the program, if it is to be started.
func run(n, pid int, after time.Duration, show int, args []string) error {
	if pid != 0 {
		return compare(n, pid, show, fmt.Sprint("process ", pid))
	}
	program := exec.Command(args[0], args[1:]...)
	if err := program.Start(); err != nil {
		return err
	}
	defer program.Wait()
	defer program.Process.Kill()
	time.Sleep(after)
	return compare(n, program.Process.Pid, show, args[0])
}

func compare(n, pid, show int, name string) error {
	dir, err := os.MkdirTemp("", "stoker-gdb-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	py, out := filepath.Join(dir, "stop.py"), filepath.Join(dir, "stops")
	if err := os.WriteFile(py, script, 0o600); err != nil {
		return err
	}
	gdb := exec.Command("gdb", "-q", "-nx", "-batch", "-x", py)
	gdb.Env = append(os.Environ(), fmt.Sprint("STOP_PID=", pid), fmt.Sprint("STOP_COUNT=", n), "STOP_OUT="+out, "DEBUGINFOD_URLS=")
	if text, err := gdb.CombinedOutput(); err != nil {
		return fmt.Errorf("gdb: %w\n%s", err, text)
	}
	maps, err := process.Reader{}.MapsOf(uint32(pid))
	if err != nil {
		return err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return err
	}
	defer mem.Close()
	var opened []*os.File
	defer func() {
		for _, f := range opened {
			f.Close()
		}
	}()
	files := replay.NewFiles(maps, func(m *process.Mapping) (*replay.File, error) {
		if m.Path == "[vdso]" {
			b := make([]byte, m.End-m.Start)
			if _, err := mem.ReadAt(b, int64(m.Start)); err != nil {
				return nil, err
			}
			return replay.OpenFile(strings.NewReader(string(b)), int64(len(b)))
		}
		file, err := process.Reader{}.Open(uint32(pid), m)
		if err != nil {
			return nil, err
		}
		opened = append(opened, file)
		st, err := file.Stat()
		if err != nil {
			return nil, err
		}
		return replay.OpenFile(file, st.Size())
	})
	text, err := os.Open(out)
	if err != nil {
		return err
	}
	defer text.Close()
	all, equal, complete, frames := 0, 0, 0, 0
	where := func(pc uint64) string {
		if m, ok := maps.Find(pc); ok {
			return fmt.Sprintf("%s+0x%x", filepath.Base(m.Path), m.FileOffset(pc))
		}
		return fmt.Sprintf("0x%x", pc)
	}
	lines := bufio.NewScanner(text)
	lines.Buffer(nil, 8<<20)
	for lines.Scan() {
		var s stop
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			return err
		}
		stack, err := base64.StdEncoding.DecodeString(s.Stack)
		if err != nil {
			return err
		}
		g := replay.Registers{PC: s.PC, Known: 0xffff}
		copy(g.R[:], s.Registers)
		low := g.R[cfi.X86SP] - 128
		w := replay.Walker{Machine: elf.EM_X86_64, Code: files.Rule, Memory: func(a uint64) (uint64, bool) {
			if a < low || a-low > uint64(len(stack)) || uint64(len(stack))-(a-low) < 8 {
				return 0, false
			}
			return binary.LittleEndian.Uint64(stack[a-low:]), true
		}}
		walked, end := w.Walk(g)
		var pcs []uint64
		for _, f := range walked {
			pcs = append(pcs, f.PC)
		}
		all, frames = all+1, frames+len(pcs)
		if end == replay.Complete {
			complete++
		}
		if slices.Equal(pcs, s.Frames) {
			equal++
			continue
		}
		if show--; show >= 0 {
			fmt.Printf("ours ends with %v:\n", end)
			for i := range max(len(pcs), len(s.Frames)) {
				a, b := "-", "-"
				if i < len(pcs) {
					a = where(pcs[i])
				}
				if i < len(s.Frames) {
					b = where(s.Frames[i])
				}
				if a != b || i == 0 {
					fmt.Printf("  %3d %-40s gdb %s\n", i, a, b)
				}
			}
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	if all == 0 {
		return fmt.Errorf("gdb stopped %s nowhere", name)
	}
	fmt.Printf("%s: %d stacks of %.1f frames: %d equal (%.1f %%), %d of ours complete (%.1f %%)\n", name, all, float64(frames)/float64(all),
		equal, 100*float64(equal)/float64(all), complete, 100*float64(complete)/float64(all))
	return files.Err
}
