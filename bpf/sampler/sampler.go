// Package sampler owns the kernel side: it loads the programs, opens the CPU clock on every CPU, keeps the scopes, and at the
// end of each window hands over what was counted. The order in which it does that is the kernel protocol of
// docs/architecture.md; sampler.bpf.c and bpf/include are its other half.
//
// Open and Close belong to the agent. One goroutine calls Run and so owns the ring and the windows; Scopes, RaiseEpoch,
// Current, Flush and Stats may be called from any goroutine. The package never reads /proc of a process, never resolves an
// address and knows no container: only cgroup ids.
package sampler

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/bits"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/stoker-profiler/stoker/bpf/unwind"
)

// Config sizes the sampler. The zero value of a size takes its default.
type Config struct {
	// FrequencyHz is how often each CPU is sampled, per second, until Scopes.Retune. 1 to 10000.
	FrequencyHz int
	// CgroupController is "" for cgroup v2 ids (pure v2 and hybrid hosts), else the v1 controller whose ids scopes have.
	CgroupController string
	// Unwinders get slots 1, 2, … in this order; a walk begins in slot 1.
	Unwinders []unwind.Unwinder
	// RingBytes is the ring buffer for new stacks; rounded up to a power of two of at least a page. Default 256 KiB per CPU.
	RingBytes int
	// MaxStacks is how many different stacks the kernel remembers as sent. Default 1024 per CPU, at least 16384.
	MaxStacks int
	// MaxWindowKeys bounds the different keys of one window. Default as MaxStacks; a window begins small and grows to it.
	MaxWindowKeys int
	// MaxScopes bounds the containers in scope at a time, MaxProcesses the processes known to the kernel side.
	// Defaults 2048 and 8192.
	MaxScopes, MaxProcesses int
	// StacksPerScope is how many new stacks one scope may send per window. Default a quarter of MaxStacks.
	StacksPerScope int
	// UntestedKernel samples also on kernels older than OldestKernel.
	UntestedKernel bool
	// Log gets warnings; nil discards.
	Log *slog.Logger
}

// maxFrequencyHz is far beyond what is of use, and what kernels take by default (kernel.perf_event_max_sample_rate is 100,000).
const maxFrequencyHz = 10000

func (c *Config) setDefaults() error {
	if c.FrequencyHz < 1 || c.FrequencyHz > maxFrequencyHz {
		return fmt.Errorf("sampling frequency is %d Hz; it must be between 1 and %d", c.FrequencyHz, maxFrequencyHz)
	}
	if len(c.Unwinders) == 0 || len(c.Unwinders) >= maxUnwinders {
		return fmt.Errorf("got %d unwinders; the program array takes 1 to %d", len(c.Unwinders), maxUnwinders-1)
	}
	// Not the possible CPUs: machines that could get 240 have 2.
	cpus := runtime.NumCPU()
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&c.RingBytes, min(max(512<<10, cpus*256<<10), 8<<20))
	c.RingBytes = max(4096, 1<<bits.Len(uint(c.RingBytes-1)))
	def(&c.MaxStacks, min(max(16384, cpus*1024), 128<<10))
	def(&c.MaxWindowKeys, min(max(16384, cpus*1024), 128<<10))
	def(&c.MaxScopes, 2048)
	def(&c.MaxProcesses, 8192)
	def(&c.StacksPerScope, max(1, c.MaxStacks/4))
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// minWindowKeys is the size that a window must have: without memory for that sampling ends.
func (c *Config) minWindowKeys() int {
	return min(max(1024, 512*runtime.NumCPU()), c.MaxWindowKeys)
}

// usualWindow is how long the first window is taken to be: how long it will be, Run is told.
const usualWindow = 10 * time.Second

// windowKeys is the size of a window of that length of whose stacks nobody knows anything: as many as it can have samples, for when a
// container starts each has a stack of its own; at most 8192 (900 KB of the kernel's memory) or 512 per CPU. What does not fit has no
// stack until the window ends.
func (c *Config) windowKeys(frequencyHz int, length time.Duration) int {
	cpus := runtime.NumCPU()
	samples := length.Seconds() * float64(frequencyHz*cpus) * 9 / 8 // it ends a little late
	return int(min(max(float64(c.minWindowKeys()), samples), float64(max(8192, 512*cpus)), float64(c.MaxWindowKeys)))
}

// maxUnwinders mirrors MAX_UNWINDERS; Open checks it against the object.
const maxUnwinders = 16

// Sampler is the loaded kernel side.
type Sampler struct {
	cfg          Config
	objs         bpfObjects
	loading      sync.Mutex         // guards the next two: an unwinder may be loaded late
	collections  []*ebpf.Collection // one per unwinder that is loaded
	unwinderMaps []*ebpf.Map        // of these, those that are not shared
	links        []link.Link
	ring         *ringbuf.Reader
	clock        *clock
	scopes       *Scopes
	epoch        atomic.Uint32
	flush        chan chan error
	ended        chan struct{} // closed when Run returns
	endRun       func()
	closed       atomic.Bool

	names names

	win   windows // Run's goroutine owns it
	stats stats
}

// Open loads the programs and maps and attaches them. The clock ticks only while something is in scope. Errors of the
// machine and of missing rights are *[MachineError].
func Open(cfg Config) (_ *Sampler, err error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	s := &Sampler{cfg: cfg, flush: make(chan chan error), ended: make(chan struct{})}
	s.endRun = sync.OnceFunc(func() { close(s.ended) })
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	release := kernelRelease()
	if err := cfg.tested(release); err != nil {
		return nil, err
	}
	if MayFreeze(release) {
		cfg.Log.Warn("this kernel may freeze when user stacks are read; update to 6.4 or newer, or to a release of your distribution "+
			"with commit d319f344561d", "release", release)
	}
	spec, err := loadBpf()
	if err != nil {
		return nil, fmt.Errorf("read the sampler's BPF object: %w", err)
	}
	if s.names, err = readNames(spec); err != nil {
		return nil, err
	}
	if err := s.size(spec); err != nil {
		return nil, err
	}
	if err := spec.LoadAndAssign(&s.objs, nil); err != nil {
		return nil, loadError("load the sampler into the kernel", err)
	}
	if err := s.loadUnwinders(spec); err != nil {
		return nil, err
	}
	if err := s.win.open(s, spec.Maps["window"].InnerMap); err != nil {
		return nil, err
	}
	if s.ring, err = ringbuf.NewReader(s.objs.Stacks); err != nil {
		return nil, loadError("map the ring buffer of stacks", err)
	}
	for _, p := range []*ebpf.Program{s.objs.ProcessExec, s.objs.ProcessExit} {
		l, err := link.AttachTracing(link.TracingOptions{Program: p})
		if err != nil {
			return nil, loadError("attach to the tracepoints of exec and exit", err)
		}
		s.links = append(s.links, l)
	}
	s.scopes = newScopes(s)
	s.clock = newClock(s.objs.Sample, cfg.FrequencyHz)
	if err := s.clock.open(); err != nil {
		return nil, err
	}
	return s, nil
}

// size writes sizes and options into the specification, before anything is loaded.
func (s *Sampler) size(spec *ebpf.CollectionSpec) error {
	if n := spec.Maps["unwinders"].MaxEntries; n != maxUnwinders {
		return fmt.Errorf("the program array of the object has %d slots, the code expects %d: run make generate", n, maxUnwinders)
	}
	for name, n := range map[string]int{
		"stacks":        s.cfg.RingBytes,
		"seen":          s.cfg.MaxStacks,
		"scopes":        s.cfg.MaxScopes * 2, // as many again may be kept out of the scope that they lie in
		"rest":          s.cfg.MaxScopes * 2, // those removed less than two windows ago are still there
		"scope_states":  s.cfg.MaxScopes * 2,
		"scope_answers": max(s.cfg.MaxScopes*2, 128*runtime.NumCPU()), // LRU maps need room per CPU
		"processes":     s.cfg.MaxProcesses,
	} {
		spec.Maps[name].MaxEntries = uint32(n)
	}
	spec.Maps["window"].InnerMap.MaxEntries = uint32(s.cfg.minWindowKeys()) // of the type only
	var seed [8]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return fmt.Errorf("seed the stack hash: %w", err)
	}
	if err := spec.Variables["hash_seed"].Set(binary.LittleEndian.Uint64(seed[:])); err != nil {
		return fmt.Errorf("set the seed of the stack hash: %w", err)
	}
	if s.cfg.CgroupController == "" {
		return nil
	}
	index, err := v1SubsysIndex(s.cfg.CgroupController)
	if err != nil {
		return err
	}
	if err := spec.Variables["cgroup_v1_subsys"].Set(index); err != nil {
		return fmt.Errorf("set the cgroup v1 controller: %w", err)
	}
	return nil
}

// v1SubsysIndex finds a controller in enum cgroup_subsys_id of the running kernel, where its name is NAME_cgrp_id.
func v1SubsysIndex(controller string) (int32, error) {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return 0, loadError("read the kernel's type information", err)
	}
	var enum *btf.Enum
	if err := kernel.TypeByName("cgroup_subsys_id", &enum); err != nil {
		return 0, loadError("find enum cgroup_subsys_id in the kernel's type information", err)
	}
	for _, v := range enum.Values {
		if v.Name == controller+"_cgrp_id" {
			return int32(v.Value), nil
		}
	}
	return 0, fmt.Errorf("the kernel has no cgroup controller %q", controller)
}

// loadUnwinders loads each unwinder, but for those that will say themselves when they are needed.
func (s *Sampler) loadUnwinders(sampler *ebpf.CollectionSpec) error {
	for i, u := range s.cfg.Unwinders {
		load := func() error { return s.loadUnwinder(sampler, uint32(i+1), u) }
		if late, ok := u.(unwind.Late); ok {
			late.LoadBy(sync.OnceValue(load))
			continue
		}
		if err := load(); err != nil {
			return err
		}
	}
	return nil
}

// loadUnwinder loads an unwinder onto the sampler's maps and puts its program into its slot. Any goroutine may call it.
func (s *Sampler) loadUnwinder(sampler *ebpf.CollectionSpec, slot uint32, u unwind.Unwinder) error {
	s.loading.Lock()
	defer s.loading.Unlock()
	if s.closed.Load() {
		return fmt.Errorf("load unwinder %s into the kernel: %w", u.Name(), os.ErrClosed)
	}
	shared := map[string]*ebpf.Map{
		"unwind_state": s.objs.UnwindState, "unwinders": s.objs.Unwinders, "counters": s.objs.Counters,
		"seen": s.objs.Seen, "stacks": s.objs.Stacks, "window": s.objs.Window, "rest": s.objs.Rest,
		"scope_states": s.objs.ScopeStates,
	}
	spec, err := u.Spec()
	if err != nil {
		return fmt.Errorf("read the BPF object of unwinder %s: %w", u.Name(), err)
	}
	replace := maps.Clone(shared)
	for name := range shared {
		m, ok := spec.Maps[name]
		if !ok {
			delete(replace, name)
			continue
		}
		m.MaxEntries = sampler.Maps[name].MaxEntries
		if m.InnerMap != nil {
			m.InnerMap.MaxEntries = sampler.Maps[name].InnerMap.MaxEntries
		}
	}
	if v := spec.Variables["slot"]; v != nil {
		if err := v.Set(slot); err != nil {
			return fmt.Errorf("set the slot of unwinder %s: %w", u.Name(), err)
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
	if err != nil {
		return loadError(fmt.Sprintf("load unwinder %s into the kernel", u.Name()), err)
	}
	s.collections = append(s.collections, coll)
	for name, m := range coll.Maps {
		if _, ok := shared[name]; !ok {
			s.unwinderMaps = append(s.unwinderMaps, m)
		}
	}
	prog := coll.Programs["unwind"]
	if prog == nil {
		return fmt.Errorf("unwinder %s has no program called unwind", u.Name())
	}
	if err := u.Bind(coll); err != nil {
		return fmt.Errorf("bind unwinder %s: %w", u.Name(), err)
	}
	if err := s.objs.Unwinders.Put(slot, prog); err != nil {
		return fmt.Errorf("put unwinder %s into slot %d: %w", u.Name(), slot, err)
	}
	return nil
}

// Scopes returns the table of scopes.
func (s *Sampler) Scopes() *Scopes { return s.scopes }

// Close detaches and unloads everything; nothing stays in the kernel. Run has returned or will return [os.ErrClosed].
// It may be called more than once.
func (s *Sampler) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	var errs []error
	if s.clock != nil {
		errs = append(errs, s.clock.close())
	}
	for _, l := range s.links {
		errs = append(errs, l.Close())
	}
	if s.ring != nil {
		errs = append(errs, s.ring.Close())
	}
	errs = append(errs, s.win.close())
	s.loading.Lock()
	defer s.loading.Unlock()
	for _, c := range slices.Backward(s.collections) {
		c.Close()
	}
	if s.objs.Sample != nil {
		errs = append(errs, s.objs.Close())
	}
	return errors.Join(errs...)
}
