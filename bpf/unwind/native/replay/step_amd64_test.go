package replay

import (
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
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/unwind/native/cfi"
)

// call is an entry of the shadow stack: what the walk must find.
type call struct {
	slot   uint64    // where the return address is; of a signal: the stack pointer at the trampoline
	caller Registers // PC is the return address, or what was interrupted
	// rewritten: the program has changed the return address: an exception is about to return into another function, and the
	// saved registers are that function's.
	rewritten bool
}

// stepper runs a program one instruction at a time and keeps the shadow stack of its calls.
type stepper struct {
	t      *testing.T
	pid    int
	mem    *os.File
	files  *Files
	walker Walker
	shadow []call

	steps, exact, walks int
	cut                 int // whole stacks that ended where there is no rule
	cutAt               map[string]int
	leaving             int                    // the last of rewritten
	rewritten           int                    // instructions for which the truth is not known: exceptions on their way
	without             map[End]map[uint64]int // by reason and address: instructions for which there is no rule
	wrong               int
}

func (s *stepper) word(a uint64) (uint64, bool) {
	var b [8]byte
	if _, err := s.mem.ReadAt(b[:], int64(a)); err != nil {
		return 0, false
	}
	return binary.LittleEndian.Uint64(b[:]), true
}

func (s *stepper) readMaps() {
	text, err := os.Open(fmt.Sprintf("/proc/%d/maps", s.pid))
	if err != nil {
		s.t.Fatal(err)
	}
	defer text.Close()
	list, err := process.ParseMaps(text)
	if err != nil {
		s.t.Fatal(err)
	}
	old := s.files
	s.files = NewFiles(process.NewMaps(list), func(m *process.Mapping) (*File, error) {
		if m.Path == "[vdso]" {
			b := make([]byte, m.End-m.Start)
			if _, err := s.mem.ReadAt(b, int64(m.Start)); err != nil {
				return nil, err
			}
			return OpenFile(bytes.NewReader(b), int64(len(b)))
		}
		file, err := os.Open(m.Path)
		if err != nil {
			return nil, err
		}
		s.t.Cleanup(func() { file.Close() })
		st, err := file.Stat()
		if err != nil {
			return nil, err
		}
		return OpenFile(file, st.Size())
	})
	if old != nil {
		s.files.files = old.files
	}
	s.walker.Code = s.files.Rule
}

// step runs a program to its end, or for so many instructions, and compares at each one the caller that our rows give with the
// one that the shadow stack knows; every so often, the whole stack.
func step(t *testing.T, path string, most int, args ...string) *stepper {
	t.Helper()
	runtime.LockOSThread() // only the thread that started the child may trace it
	defer runtime.UnlockOSThread()
	cmd := exec.Command(path, args...)
	cmd.Env = []string{"LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s traced: %v", path, err)
	}
	pid := cmd.Process.Pid
	done := false
	defer func() {
		if !done {
			cmd.Process.Kill()
			var ws unix.WaitStatus
			for {
				if _, err := unix.Wait4(pid, &ws, 0, nil); err != unix.EINTR && (err != nil || ws.Exited() || ws.Signaled()) {
					break
				}
			}
		}
		cmd.Process.Release()
	}()
	wait := func() (ws unix.WaitStatus) {
		for {
			_, err := unix.Wait4(pid, &ws, 0, nil)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			return ws
		}
	}
	wait() // exec
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	s := &stepper{t: t, pid: pid, mem: mem, without: map[End]map[uint64]int{}, cutAt: map[string]int{}}
	s.walker = Walker{Machine: elf.EM_X86_64, Memory: s.word}
	s.readMaps()
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(pid, &regs); err != nil {
		t.Fatal(err)
	}
	now := registersOf(&regs)
	for signal := 0; s.steps < most; s.steps++ {
		s.compare(&now)
		if err := ptraceStep(pid, signal); err != nil {
			t.Fatal(err)
		}
		ws := wait()
		if ws.Exited() {
			done = true
			if ws.ExitStatus() != 0 {
				t.Errorf("%s ended with status %d", path, ws.ExitStatus())
			}
			break
		}
		if !ws.Stopped() {
			done = ws.Signaled()
			t.Fatalf("%s: wait status %v", path, ws)
		}
		before := now
		if err := unix.PtraceGetRegs(pid, &regs); err != nil {
			t.Fatal(err)
		}
		now = registersOf(&regs)
		s.follow(&before, &now, signal)
		if signal = int(ws.StopSignal()); signal == int(unix.SIGTRAP) {
			signal = 0
		}
	}
	if s.files.Err != nil {
		t.Error(s.files.Err)
	}
	return s
}

func ptraceStep(pid, signal int) error {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SINGLESTEP, uintptr(pid), 0, uintptr(signal), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// follow brings the shadow stack up to date after one instruction, or the delivery of a signal.
func (s *stepper) follow(before, now *Registers, signal int) {
	sp := now.R[cfi.X86SP]
	if moved := int64(before.R[cfi.X86SP] - sp); signal != 0 && (moved > 128 || moved < -128) { // the handler is about to run
		ra, ok := s.word(sp)
		if !ok {
			s.t.Fatalf("no return address at 0x%x", sp)
		}
		interrupted := *before
		interrupted.ReturnAddress = false
		tramp := *now
		tramp.PC, tramp.ReturnAddress = ra, true
		tramp.R[cfi.X86SP] = sp + 8
		s.shadow = append(s.shadow, call{slot: sp + 8, caller: interrupted}, call{slot: sp, caller: tramp})
		return
	}
	for n := len(s.shadow); n > 0 && s.shadow[n-1].slot < sp; n-- {
		s.shadow = s.shadow[:n-1]
	}
	if sp == before.R[cfi.X86SP]-8 {
		if ra, ok := s.word(sp); ok && ra > before.PC && ra-before.PC <= 8 && now.PC != ra {
			caller := *before
			caller.PC, caller.ReturnAddress = ra, true
			s.shadow = append(s.shadow, call{slot: sp, caller: caller})
		}
	}
}

// compare holds one step of the walk against the shadow stack.
func (s *stepper) compare(now *Registers) {
	next, end, ok := s.walker.Step(*now)
	if !ok && end == NoCode {
		s.readMaps()
		next, end, ok = s.walker.Step(*now)
	}
	if !ok {
		if end == Complete && len(s.shadow) == 0 {
			s.exact++
			return
		}
		at := s.without[end]
		if at == nil {
			at = map[uint64]int{}
			s.without[end] = at
		}
		at[now.PC]++
		return
	}
	if len(s.shadow) == 0 {
		s.fail(now, "a caller at 0x%x where there is none", next.PC)
		return
	}
	top := &s.shadow[len(s.shadow)-1]
	want := &top.caller
	if s.changed(top) {
		s.rewritten, s.leaving = s.rewritten+1, s.steps
		return
	}
	for _, r := range []struct {
		name      string
		got, want uint64
		known     bool
	}{
		{"pc", next.PC, want.PC, true},
		{"sp", next.R[cfi.X86SP], want.R[cfi.X86SP], true},
		{"fp", next.R[cfi.X86FP], want.R[cfi.X86FP], next.Known>>cfi.X86FP&1 != 0},
		{"bx", next.R[cfi.X86BX], want.R[cfi.X86BX], next.Known>>cfi.X86BX&1 != 0},
	} {
		if r.known && r.got != r.want {
			if s.leaving == s.steps-1 { // libgcc is leaving for the handler, its frame already gone
				s.rewritten, s.leaving = s.rewritten+1, s.steps
				return
			}
			s.fail(now, "caller's %s is 0x%x, want 0x%x", r.name, r.got, r.want)
			return
		}
	}
	s.exact++
	if s.steps%97 != 0 {
		return
	}
	wanted := make([]uint64, 0, len(s.shadow))
	for i := range s.shadow {
		if s.changed(&s.shadow[i]) {
			return
		}
		wanted = append(wanted, s.shadow[i].caller.PC)
	}
	slices.Reverse(wanted)
	frames, end := s.walker.Walk(*now)
	got := make([]uint64, 0, len(frames))
	for _, f := range frames[1:] {
		got = append(got, f.PC)
	}
	if s.walks++; end == NoRule && len(got) < len(wanted) && slices.Equal(got, wanted[:len(got)]) {
		s.cut++
		s.cutAt[s.where(frames[len(frames)-1].PC)]++
	} else if end != Complete || !slices.Equal(got, wanted) {
		s.fail(now, "walk ends with %v:\n%x, want\n%x", end, got, wanted)
	}
}

// changed says whether the program has changed a return address.
func (s *stepper) changed(c *call) bool {
	if c.caller.ReturnAddress && !c.rewritten {
		ra, ok := s.word(c.slot)
		c.rewritten = !ok || ra != c.caller.PC
	}
	return c.rewritten
}

func (s *stepper) fail(now *Registers, format string, args ...any) {
	if s.wrong++; s.wrong < 10 {
		rule, _ := s.files.Rule(now.PC)
		s.t.Errorf("after %d instructions, at %s, sp 0x%x: %s\nrule: %+v", s.steps, s.where(now.PC), now.R[cfi.X86SP], fmt.Sprintf(format, args...), rule)
	}
}

// where names an address: file and ELF address, for llvm-objdump.
func (s *stepper) where(pc uint64) string {
	m, ok := s.files.maps.Find(pc)
	if !ok {
		return fmt.Sprintf("0x%x", pc)
	}
	return fmt.Sprintf("%s+0x%x", filepath.Base(m.Path), m.FileOffset(pc))
}

// report says what was compared, and fails if too much could not be.
func (s *stepper) report(most map[End]int) {
	s.t.Helper()
	s.t.Logf("%d instructions: %d callers exact, %d whole stacks compared, %d of them cut, %d instructions in the middle of an exception",
		s.steps, s.exact, s.walks, s.cut, s.rewritten)
	if s.cut > 0 {
		s.t.Errorf("stacks cut at %v", s.cutAt)
	}
	for end, at := range s.without {
		n := 0
		var list []string
		for pc, times := range at {
			n += times
			list = append(list, fmt.Sprintf("%s (%d)", s.where(pc), times))
		}
		slices.Sort(list)
		s.t.Logf("%v: %d instructions at %d addresses: %s", end, n, len(at), strings.Join(list[:min(len(list), 12)], ", "))
		if n > most[end] {
			s.t.Errorf("%d instructions end with %v, want at most %d", n, end, most[end])
		}
	}
}

// TestEveryInstructionHasItsCaller single-steps programs from the first instruction of the dynamic linker on.
func TestEveryInstructionHasItsCaller(t *testing.T) {
	for _, c := range []struct {
		name, compiler, source string
		args                   []string
	}{
		{"lazy binding", "gcc", "program.c", []string{"-Wl,-z,lazy"}},
		{"static", "gcc", "program.c", []string{"-static"}},
		{"musl", "musl-gcc", "program.c", []string{"-DNO_JUMPS"}},
		{"musl, static", "musl-gcc", "program.c", []string{"-DNO_JUMPS", "-static"}},
		{"exceptions", "g++", "exceptions.cc", []string{"-static-libgcc", "-static-libstdc++"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := step(t, compile(t, c.compiler, c.source, c.args...), 2_000_000)
			s.report(map[End]int{NoRule: 20}) // longjmp, with the other stack in hand
		})
	}
}

// TestBusyboxHasItsCallers single-steps a static program whose own code has no call frame information, unlike its C library's.
func TestBusyboxHasItsCallers(t *testing.T) {
	s := step(t, "/bin/busybox", 2_000_000, "sh", "-c", "x=1; for i in 1 2 3; do x=$((x * i + 7)); done; case $x in *9*) y=${x%7};; esac; set -- $x $y; test $# = 1")
	s.report(map[End]int{NoRule: 60}) // pieces of switches, and longjmp
}
