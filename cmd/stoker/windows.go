package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/sampler"
	"github.com/stoker-profiler/stoker/bpf/unwind"
	"github.com/stoker-profiler/stoker/labeler"
	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/registry"
	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/sink/pprof"
)

// This file is the middle of the way of the data: what the sampler hands over becomes stacks with names, then one profile per
// container and window. Two goroutines do it: the sampler's own, which only queues (so that the ring is read at once), and
// the one of pipeline.run, which owns the symbolizer.

// samples are equal stacks of one process in one window.
type samples struct {
	process   process.ID
	locations []*profile.Location // leaf first
	n         uint64
	value     int64 // nanoseconds of CPU
}

// containerWindow is what one container did in one window: it becomes a profile.
type containerWindow struct {
	record     registry.Record
	start, end time.Time
	bootStart  time.Duration
	samples    []samples
	held       int // windows it waited for its labels
}

// heldWindows is how many windows a container's samples wait for its names, when it was in scope before any source described it.
const heldWindows = 2

// pipeline turns what the sampler says into profiles.
type pipeline struct {
	symbolizer *unwind.Symbolizer
	registry   *registry.Registry
	labeler    func() *labeler.Labeler // the one in force: a reload replaces it
	period     int64                   // nanoseconds between two samples, of who does not ask for another frequency
	write      func([]sink.Profile)    // nil: nobody keeps profiles
	log        *slog.Logger

	queue chan func() // in the order of the sampler's calls

	// Owned by run's goroutine.
	held []*containerWindow

	mu        sync.Mutex // protects what follows
	last      []*containerWindow
	lastStart time.Time
	lastEnd   time.Time
	listeners map[int]func([]*containerWindow)
	nextID    int

	stats pipelineStats
}

type pipelineStats struct {
	profiles, excludedSamples, unknownScopes, lostStacks, notDelivered, overflowed atomic.Uint64
	cutStacks, badStrings, buildErrors                                             atomic.Uint64
	heldWindows                                                                    atomic.Int64
}

// pipelineQueue is how many messages of the sampler may wait: a burst of new stacks while a large ELF file is parsed. The largest
// has 9 kB, the usual one half of one. When it is full the sampler waits, its ring fills, and new stacks are counted as undelivered.
const pipelineQueue = 1024

// newPipeline makes a pipeline that keeps nothing until write is set.
func newPipeline(s *unwind.Symbolizer, r *registry.Registry, l func() *labeler.Labeler, period int64, log *slog.Logger) *pipeline {
	return &pipeline{
		symbolizer: s, registry: r, labeler: l, period: period, log: log,
		queue: make(chan func(), pipelineQueue), listeners: map[int]func([]*containerWindow){},
	}
}

var _ sampler.Handler = (*pipeline)(nil)

func (p *pipeline) Exec(id process.ID, scope uint32) {
	p.queue <- func() { p.symbolizer.Exec(id, scope) }
}
func (p *pipeline) Exit(id process.ID)        { p.queue <- func() { p.symbolizer.Exit(id) } }
func (p *pipeline) Stack(s unwind.Stack)      { p.queue <- func() { p.symbolizer.Stack(s) } }
func (p *pipeline) Forget(k unwind.Key)       { p.queue <- func() { p.symbolizer.Forget(k) } }
func (p *pipeline) MapsChanged(id process.ID) { p.queue <- func() { p.symbolizer.MapsChanged(id) } }
func (p *pipeline) ProcessesLost()            { p.queue <- func() { p.symbolizer.Sweep() } }

// Window implements [sampler.Handler]. It returns when the window has been handled, so that a flush means what it says.
func (p *pipeline) Window(w sampler.Window) {
	done := make(chan struct{})
	p.queue <- func() { p.window(w); close(done) }
	<-done
}

// run handles the queue until stop, and then writes what was held.
func (p *pipeline) run() {
	for f := range p.queue {
		f()
	}
	p.registry.Settle()
	ready := p.held
	p.held = nil
	for _, cw := range ready {
		if rec, ok := p.registry.Lookup(cw.record.ScopeID); ok {
			cw.record = rec
		}
	}
	p.emit(ready)
}

// stop ends run after what is queued. The sampler has stopped: nobody queues any more.
func (p *pipeline) stop() { close(p.queue) }

// window joins counts with stacks and containers, and writes the profiles of those that are described.
func (p *pipeline) window(w sampler.Window) {
	type generation struct {
		key    container.Key
		cgroup uint64
	}
	byContainer := map[generation]*containerWindow{}
	active := map[process.ID]uint32{} // → scope
	add := func(scope uint32, s samples, weight uint64) {
		rec, ok := p.registry.Lookup(scope)
		if !ok {
			p.stats.unknownScopes.Add(s.n)
			return
		}
		s.value = int64(weight) * int64(rec.Period) // what the events ticked at when its samples were taken
		g := generation{rec.Key(), rec.CgroupID}
		cw := byContainer[g]
		if cw == nil {
			cw = &containerWindow{record: rec, start: w.Start, end: w.End, bootStart: w.BootStart}
			byContainer[g] = cw
		}
		cw.samples = append(cw.samples, s)
	}
	p.symbolizer.WindowBegin()
	for _, c := range w.Counts {
		locations, ok := p.symbolizer.Locations(c.Key)
		switch {
		case c.Key.Hash == 0:
			p.stats.notDelivered.Add(c.N)
		case !ok:
			p.stats.lostStacks.Add(c.N)
		}
		active[c.Key.Process] = c.Key.Scope
		add(c.Key.Scope, samples{c.Key.Process, locations, c.N, 0}, c.Weight)
	}
	for _, r := range w.Rest {
		p.stats.overflowed.Add(r.Count.N)
		add(r.Scope, samples{locations: p.symbolizer.NotCounted(), n: r.Count.N}, r.Count.Weight)
	}
	windows := make([]*containerWindow, 0, len(byContainer))
	for _, cw := range byContainer {
		windows = append(windows, cw)
	}
	slices.SortFunc(windows, func(a, b *containerWindow) int { return cmp.Compare(a.record.ScopeID, b.record.ScopeID) })
	p.publish(w, windows)

	ready := p.release()
	for _, cw := range windows {
		if cw.record.Described {
			ready = append(ready, cw)
		} else {
			p.held = append(p.held, cw)
		}
	}
	p.stats.heldWindows.Store(int64(len(p.held)))
	p.emit(ready)

	p.symbolizer.WindowEnd(active)
	p.registry.WindowEnd()
}

// release returns held windows whose container has been described meanwhile, or waited long enough.
func (p *pipeline) release() (ready []*containerWindow) {
	keep := p.held[:0]
	for _, cw := range p.held {
		cw.held++
		if rec, ok := p.registry.Lookup(cw.record.ScopeID); ok {
			cw.record = rec
		}
		if cw.record.Described || cw.held >= heldWindows {
			ready = append(ready, cw)
		} else {
			keep = append(keep, cw)
		}
	}
	p.held = keep
	return ready
}

// emit labels, builds and writes.
func (p *pipeline) emit(ready []*containerWindow) {
	if p.write == nil {
		return
	}
	var out []sink.Profile
	for _, cw := range ready {
		profiles, err := p.build(cw)
		if err != nil {
			p.stats.buildErrors.Add(1)
			p.log.Error("build a profile", "container", cw.record.Name, "err", err)
			continue
		}
		out = append(out, profiles...)
	}
	if len(out) > 0 {
		p.stats.profiles.Add(uint64(len(out)))
		p.write(out)
	}
}

func (p *pipeline) build(cw *containerWindow) ([]sink.Profile, error) {
	rec := &cw.record
	count := func() (n uint64) {
		for _, s := range cw.samples {
			n += s.n
		}
		return n
	}
	if !rec.Profiled() { // it was in scope provisionally, and its description says no
		p.stats.excludedSamples.Add(count())
		return nil, nil
	}
	labels, keep := p.labeler().Labels(rec.Container, rec.Service)
	if !keep {
		p.stats.excludedSamples.Add(count())
		return nil, nil
	}
	b := pprof.NewBuilder(sink.CPU, cw.start, cw.end, p.period)
	for _, s := range cw.samples {
		b.Add(s.locations, s.value)
	}
	built, err := b.Profiles()
	if err != nil {
		return nil, fmt.Errorf("profile of %s: %w", labels, err)
	}
	counts := b.Counts()
	p.stats.cutStacks.Add(uint64(counts.CutStacks))
	p.stats.badStrings.Add(uint64(counts.BadStrings))
	profiles := make([]sink.Profile, 0, len(built))
	for _, x := range built {
		profiles = append(profiles, sink.Profile{
			Type: sink.CPU, Labels: labels, ContainerID: rec.ID, Start: cw.start, End: cw.end, BootStart: cw.bootStart,
			Pprof: x.Pprof, Total: x.Total, Samples: x.Samples, Tenant: rec.Tenant,
		})
	}
	return profiles, nil
}

// publish gives a window to those who watch live: the table of top, and recordings.
func (p *pipeline) publish(w sampler.Window, windows []*containerWindow) {
	p.mu.Lock()
	p.last, p.lastStart, p.lastEnd = windows, w.Start, w.End
	listeners := make([]func([]*containerWindow), 0, len(p.listeners))
	for _, f := range p.listeners {
		listeners = append(listeners, f)
	}
	p.mu.Unlock()
	for _, f := range listeners {
		f(windows)
	}
}

// subscribe calls f with each window until the returned function is called; f must not change what it gets.
func (p *pipeline) subscribe(f func([]*containerWindow)) (unsubscribe func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id := p.nextID
	p.nextID++
	p.listeners[id] = f
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.listeners, id)
	}
}

// lastWindow returns the last complete window.
func (p *pipeline) lastWindow() (start, end time.Time, windows []*containerWindow) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastStart, p.lastEnd, p.last
}
