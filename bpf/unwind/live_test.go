//go:build root

package unwind_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/sampler"
	"github.com/stoker-profiler/stoker/bpf/symbol"
	"github.com/stoker-profiler/stoker/bpf/unwind"
	"github.com/stoker-profiler/stoker/bpf/unwind/native"
	"github.com/stoker-profiler/stoker/bpf/unwind/node"
	"github.com/stoker-profiler/stoker/bpf/unwind/python"
	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
)

// live joins the sampler with a Symbolizer as the agent does.
type live struct {
	*unwind.Symbolizer
	queue   chan func()
	names   map[string]uint64 // samples by name of each frame
	stacks  map[string]uint64 // by names of user frames, outermost first, with the mark of a walk that ended early
	samples uint64
	windows int
	each    func(window int, locations []*profile.Location, n uint64) // nil: nobody looks
	lost    uint64

	outcomes, events map[string]uint64 // of the kernel side
}

func (l *live) Exec(id process.ID, scope uint32) { l.queue <- func() { l.Symbolizer.Exec(id, scope) } }
func (l *live) Exit(id process.ID)               { l.queue <- func() { l.Symbolizer.Exit(id) } }
func (l *live) Stack(s unwind.Stack)             { l.queue <- func() { l.Symbolizer.Stack(s) } }
func (l *live) Forget(k unwind.Key)              { l.queue <- func() { l.Symbolizer.Forget(k) } }
func (l *live) MapsChanged(id process.ID)        { l.queue <- func() { l.Symbolizer.MapsChanged(id) } }
func (l *live) ProcessesLost()                   { l.queue <- func() { l.Sweep() } }
func (l *live) Window(w sampler.Window) {
	done := make(chan struct{})
	l.queue <- func() { l.window(w); close(done) }
	<-done
}

func (l *live) window(w sampler.Window) {
	active := map[process.ID]uint32{}
	for _, c := range w.Counts {
		locations, ok := l.Locations(c.Key)
		if !ok {
			l.lost += c.N
		}
		l.samples += c.N
		if l.each != nil {
			l.each(l.windows, locations, c.N)
		}
		var stack []string
		for _, loc := range slices.Backward(locations) {
			l.names[loc.Line[0].Function.Name] += c.N
			if !strings.HasPrefix(loc.Mapping.File, "[kernel") {
				stack = append(stack, loc.Line[0].Function.Name)
			}
		}
		l.stacks[strings.Join(stack, ";")] += c.N
		active[c.Key.Process] = c.Key.Scope
	}
	l.windows++
	l.WindowEnd(active)
}

// sample runs a command in a cgroup of its own, sampled at 297 Hz, and returns what was seen when it has ended.
func sample(t *testing.T, cmd *exec.Cmd) *live {
	t.Helper()
	return sampleAt(t, cmd, 297, nil)
}

// sampleAt is sample at another frequency. each is called with all stacks, leaf first, and in which window they were counted.
func sampleAt(t *testing.T, cmd *exec.Cmd, hz int, each func(window int, locations []*profile.Location, n uint64)) *live {
	t.Helper()
	h, err := cgroupfs.Detect()
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("/stoker-test-%d-symbolizer", os.Getpid())
	dir := filepath.Join(h.Mount, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if err := os.Remove(dir); err == nil || time.Now().After(deadline) {
				if err != nil {
					t.Error(err)
				}
				return
			}
		}
	})
	id, err := h.ID(name)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	unwinders := []unwind.Unwinder{native.New(), python.New(log), node.New(log)}
	s, err := sampler.Open(sampler.Config{FrequencyHz: hz, CgroupController: h.Controller, Unwinders: unwinders})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Scopes().Add(id, 1); err != nil {
		t.Fatal(err)
	}
	kernel, err := symbol.NewKernel("/proc")
	if err != nil {
		t.Fatal(err)
	}
	l := &live{each: each, names: map[string]uint64{}, stacks: map[string]uint64{}, queue: make(chan func(), 8192)}
	l.Symbolizer = unwind.NewSymbolizer(unwind.SymbolizerConfig{
		Unwinders: unwinders, Cache: symbol.NewCache(24 << 20), Kernel: kernel, Current: s.Current, RaiseEpoch: s.RaiseEpoch,
		SetSpace: s.SetSpace, SetLanguage: s.SetLanguage,
	})
	consumed := make(chan struct{})
	go func() {
		defer close(consumed)
		for f := range l.queue {
			f()
		}
	}()
	ctx, stop := context.WithCancel(context.Background())
	read := make(chan error, 1)
	go func() { read <- unwinders[0].(unwind.Runner).Run(ctx) }()
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx, time.Second, l) }()

	// The shell enters the cgroup and becomes the command.
	enter := exec.Command("sh", append([]string{"-c", `echo $$ >"$0"/cgroup.procs && exec "$@"`, dir}, cmd.Args...)...)
	enter.Stdout, enter.Stderr = os.Stdout, os.Stderr
	if err := enter.Run(); err != nil {
		t.Errorf("%v: %v", cmd.Args, err)
	}
	stop()
	if err := <-ran; err != nil {
		t.Fatal(err)
	}
	if err := <-read; err != nil {
		t.Error(err)
	}
	close(l.queue)
	<-consumed
	kernelSide, err := s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	l.outcomes, l.events = kernelSide.Outcomes, kernelSide.Events
	return l
}

// Processes of 50 ms each: at least 95 % of the user frames of files that have symbols are named.
func TestShortLivedProcessesAreNamed(t *testing.T) {
	brief := build(t, "brief", "brief.c", "-pie", "-fPIE")
	l := sample(t, exec.Command("sh", "-c", `for i in $(seq 40); do "$0" 50 & "$0" 50; wait; done`, brief))
	good := l.names["brief_work"] + l.names["main"]
	bad := uint64(0)
	for name, n := range l.names {
		if strings.HasPrefix(name, "brief!") || strings.HasPrefix(name, "unknown!") || name == unwind.Unknown {
			bad += n
			t.Logf("%6d %s", n, name)
		}
	}
	stats := l.Stats()
	if l.samples < 200 || float64(good) < 0.95*float64(good+bad) || l.lost != 0 {
		t.Errorf("%d samples (%d without a stack): %d frames of the program are named, %d are not: %+v", l.samples, l.lost, good, bad, stats)
	}
}

// Two libraries at the same address, one after the other: their stacks have the same addresses, and the second one's are sent
// again when the change was seen.
func TestStacksAreSentAgainWhenOtherCodeIsLoaded(t *testing.T) {
	swap := build(t, "swap", "swap.c")
	one := build(t, "one.so", "library.c", "-shared", "-fPIC", "-DNAME=work_one")
	two := build(t, "two.so", "library.c", "-shared", "-fPIC", "-DNAME=work_two")
	l := sample(t, exec.Command(swap, "4000", one, two))
	first, second := l.names["work_one"], l.names["work_two"]
	// Half each; what is sampled between the swap and the end of that window still counts for the first.
	if first+second < 400 || float64(second) < 0.3*float64(first+second) || l.lost != 0 {
		t.Errorf("work_one %d, work_two %d, %d samples without a stack, %+v", first, second, l.lost, l.Stats())
	}
	if n := l.Stats(); n.Epochs == 0 || n.Processes.Changed == 0 {
		t.Errorf("counted %+v", n)
	}
}
