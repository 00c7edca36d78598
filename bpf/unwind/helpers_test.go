package unwind_test

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/symbol"
	"github.com/stoker-profiler/stoker/bpf/unwind"
	"github.com/stoker-profiler/stoker/bpf/unwind/native"
)

// build compiles a C file of testdata and returns the path of the result.
func build(t testing.TB, name, source string, flags ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), name)
	args := append([]string{"-O1", "-g0", "-fno-omit-frame-pointer", "-o", out, filepath.Join("testdata", source)}, flags...)
	if msg, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("gcc %s: %v (it needs gcc and libc6-dev)\n%s", strings.Join(args, " "), err, msg)
	}
	return out
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if msg, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, msg)
	}
}

// target is a running testdata/target.c.
type target struct {
	t       testing.TB
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Scanner
	id      process.ID
	at      map[string]uint64 // what it said about itself
	stopped bool
}

func start(t testing.TB, cmd *exec.Cmd) *target {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &target{t: t, cmd: cmd, in: in, out: bufio.NewScanner(out), at: map[string]uint64{}}
	t.Cleanup(p.kill)
	words := strings.Fields(p.line())
	for i := 0; i+1 < len(words); i += 2 {
		p.at[words[i]] = hex(t, words[i+1])
	}
	p.id = identify(t, cmd.Process.Pid)
	return p
}

func (p *target) line() string {
	p.t.Helper()
	if !p.out.Scan() {
		p.t.Fatalf("%s ended: %v", p.cmd.Path, p.out.Err())
	}
	return p.out.Text()
}

// do sends a command and returns the number that comes back.
func (p *target) do(format string, args ...any) uint64 {
	p.t.Helper()
	if _, err := fmt.Fprintf(p.in, format+"\n", args...); err != nil {
		p.t.Fatal(err)
	}
	text := p.line()
	if strings.HasPrefix(text, "0x") {
		return hex(p.t, text)
	}
	v, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		p.t.Fatalf("%q: %s", fmt.Sprintf(format, args...), text)
	}
	return v
}

// kill ends the process; when it returns /proc knows nothing of it.
func (p *target) kill() {
	if p.stopped {
		return
	}
	p.stopped = true
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Error(err)
	}
	var exit *exec.ExitError
	if err := p.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		p.t.Error(err)
	}
}

func hex(t testing.TB, s string) uint64 {
	t.Helper()
	if s == "(nil)" { // how printf shows a null pointer
		return 0
	}
	v, err := strconv.ParseUint(strings.TrimPrefix(s, "0x"), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// identify makes the ID that the kernel side would send for a process.
func identify(t testing.TB, pid int) process.ID {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	ticks, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return process.ID{PID: uint32(pid), StartBoottime: ticks*10_000_000 + 1234, ExecID: 1}
}

// bench is a Symbolizer with a kernel that the test plays.
type bench struct {
	*unwind.Symbolizer
	t       testing.TB
	current func(process.ID) bool
	peers   map[uint32][]int
	raised  []process.ID
	now     time.Time
	hash    uint64
	last    unwind.Key // of the last stack
}

func newBench(t testing.TB, change func(*unwind.SymbolizerConfig)) *bench {
	b := &bench{t: t, peers: map[uint32][]int{}, now: time.Unix(1e9, 0)}
	cfg := unwind.SymbolizerConfig{
		Unwinders:  []unwind.Unwinder{native.New()},
		Cache:      symbol.NewCache(16 << 20),
		Current:    func(id process.ID) bool { return b.current == nil || b.current(id) },
		Peers:      func(scope uint32) []int { return b.peers[scope] },
		RaiseEpoch: func(id process.ID) error { b.raised = append(b.raised, id); return nil },
		Now:        func() time.Time { return b.now },
	}
	if change != nil {
		change(&cfg)
	}
	b.Symbolizer = unwind.NewSymbolizer(cfg)
	return b
}

const scope = 7

// frame is a user frame as the kernel sends it.
func frame(pc uint64, returns bool) unwind.RawFrame {
	return unwind.RawFrame{Unwinder: 1, Kind: 1, A: pc, ReturnAddress: returns}
}

// stack sends a stack of one process and returns its locations.
func (b *bench) stack(id process.ID, scope uint32, hints []unwind.Hint, frames ...unwind.RawFrame) []*profile.Location {
	b.t.Helper()
	b.hash++
	key := unwind.Key{Hash: b.hash, Process: id, Scope: scope, Context: unwind.ContextUser}
	b.last = key
	b.Stack(unwind.Stack{Key: key, Frames: frames, Hints: hints})
	locations, ok := b.Locations(key)
	if !ok {
		b.t.Fatal("the stack is not there")
	}
	for _, l := range locations {
		if len(l.Line) == 0 || l.Line[0].Function == nil || l.Line[0].Function.Name == "" || l.Mapping == nil || !l.Mapping.HasFunctions {
			b.t.Fatalf("location without a name or a mapping: %+v", l)
		}
		if m := l.Mapping; m.Limit != 0 && (l.Address < m.Start || l.Address >= m.Limit) {
			b.t.Fatalf("%s: address %x outside of its mapping %x-%x", l.Line[0].Function.Name, l.Address, m.Start, m.Limit)
		}
	}
	return locations
}

// names returns the function names of locations, inlined ones with a slash between.
func names(locations []*profile.Location) string {
	var out []string
	for _, l := range locations {
		var inlined []string
		for _, line := range l.Line {
			inlined = append(inlined, line.Function.Name)
		}
		out = append(out, strings.Join(inlined, "/"))
	}
	return strings.Join(out, " ")
}

// resolve is stack for one frame at an address.
func (b *bench) resolve(p *target, pc uint64) string {
	b.t.Helper()
	return names(b.stack(p.id, scope, nil, frame(pc, false)))
}

// symbols reads a file's symbols with the standard library.
func symbols(t testing.TB, file string) map[string]elf.Symbol {
	t.Helper()
	f, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string]elf.Symbol{}
	for _, read := range []func() ([]elf.Symbol, error){f.DynamicSymbols, f.Symbols} {
		list, err := read()
		if err != nil && !errors.Is(err, elf.ErrNoSymbols) {
			t.Fatal(err)
		}
		for _, s := range list {
			out[s.Name] = s
		}
	}
	return out
}

// mappings reads what a living process has mapped.
func mappings(t testing.TB, id process.ID) []process.Mapping {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", id.PID))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	list, err := process.ParseMaps(f)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// hintFor makes the hint that bpf_get_stack gives for an address of a living process.
func hintFor(t testing.TB, id process.ID, address uint64, file string) unwind.Hint {
	t.Helper()
	for _, m := range mappings(t, id) {
		if m.Start <= address && address < m.End {
			h := unwind.Hint{Address: address, Offset: m.FileOffset(address)}
			copy(h.BuildID[:], buildID(t, file))
			return h
		}
	}
	t.Fatalf("%x is mapped nowhere", address)
	return unwind.Hint{}
}

// buildID reads the GNU build id of a file: the last 20 bytes of its note.
func buildID(t testing.TB, file string) []byte {
	t.Helper()
	f, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := f.Section(".note.gnu.build-id")
	if s == nil {
		t.Fatalf("%s has no build id", file)
	}
	b, err := s.Data()
	if err != nil {
		t.Fatal(err)
	}
	return b[len(b)-20:]
}
