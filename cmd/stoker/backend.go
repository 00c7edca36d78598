package main

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/cmd/stoker/target"
	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/registry"
	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/sink/pprof"
	"github.com/stoker-profiler/stoker/sink/web"
)

// backend is what the pages, the socket and the commands see of an agent.
type backend struct{ a *agent }

var _ web.Backend = backend{}

// Containers implements [web.Backend].
func (b backend) Containers(context.Context) ([]web.Container, error) {
	records := b.a.registry.List()
	out := make([]web.Container, 0, len(records))
	for _, r := range records {
		c := webContainer(r)
		c.Service = b.service(r)
		out = append(out, c)
	}
	return out, nil
}

// Sources implements [web.Backend].
func (b backend) Sources(context.Context) ([]web.Source, error) {
	told := map[string]int{}
	for _, s := range b.a.sources {
		told[s.Name()] = 0
	}
	for _, r := range b.a.registry.List() {
		if r.State == registry.Gone {
			continue
		}
		for name := range r.FoundBy {
			// A source that follows several engines at once speaks under a name for each: containerd, containerd:k3s, …
			if _, ok := told[name]; !ok {
				name, _, _ = strings.Cut(name, ":")
			}
			told[name]++
		}
	}
	out := make([]web.Source, 0, len(b.a.sources))
	for _, s := range b.a.sources {
		w := web.Source{Name: s.Name(), State: web.SourceConnected, Containers: told[s.Name()]}
		if r, ok := s.(container.StatusReporter); ok {
			st := r.Status()
			w.Message, w.Since = st.Err, st.Since
			switch {
			case st.Connected:
			case st.Absent:
				w.State = web.SourceAbsent
			default:
				w.State = web.SourceFailing
			}
		}
		out = append(out, w)
	}
	return out, nil
}

// service is what the container's profiles are called: its service_name.
func (b backend) service(r registry.Record) string {
	labels, _ := b.a.labeler.Load().Labels(r.Container, r.Service)
	return labels["service_name"]
}

func webContainer(r registry.Record) web.Container {
	c := web.Container{
		ID: r.ID, Name: r.Name, Image: r.Image, Runtime: r.Runtime, Namespace: r.Namespace, User: r.User, KubernetesContainer: r.KubernetesContainer,
		Labels: r.Labels, CgroupPath: r.CgroupPath, CgroupID: r.CgroupID, PID: r.PID, SystemdUnit: r.SystemdUnit, ScopeID: r.ScopeID,
		Sources: r.FoundBy, CreatedAt: r.CreatedAt, TaskCreatedAt: r.TaskCreatedAt, StartedAt: r.StartedAt, AnnouncedAt: r.AnnouncedAt, InScopeAt: r.InScopeAt,
		GoneAt: r.GoneAt, State: r.State.String(), Reason: r.Reason, Notes: r.Notes, Tenant: r.Tenant,
		AskedFrequency: r.AskedFrequency, GivenFrequency: r.GivenFrequency,
	}
	if p := r.Pod; p.Name != "" {
		c.Pod = &web.Pod{Name: p.Name, Namespace: p.Namespace, UID: p.UID}
	}
	if !r.InScopeAt.IsZero() && !r.StartedAt.IsZero() {
		before := r.InScopeAt.Before(r.StartedAt)
		after := float64(r.InScopeAt.Sub(r.StartedAt).Microseconds()) / 1000
		c.ScopeBeforeStart, c.ScopeAfterStartMS = &before, &after
	}
	return c
}

// Top implements [web.Backend].
func (b backend) Top(context.Context) (web.Top, error) {
	if b.a.blind != nil {
		return web.Top{}, b.a.blind.refusal()
	}
	start, end, windows := b.a.pipeline.lastWindow()
	top := web.Top{WindowStart: start, WindowEnd: end, Containers: []web.TopContainer{}}
	seconds := end.Sub(start).Seconds()
	if seconds <= 0 {
		return top, nil
	}
	for _, w := range windows {
		if rec, ok := b.a.registry.Lookup(w.record.ScopeID); ok {
			w = &containerWindow{record: rec, samples: w.samples} // its name may have come since
		}
		if !w.record.Profiled() {
			continue
		}
		c := topContainer(w, seconds)
		c.Service = b.service(w.record)
		top.Cores += c.Cores
		top.Containers = append(top.Containers, c)
	}
	slices.SortFunc(top.Containers, func(a, b web.TopContainer) int {
		return cmp.Or(cmp.Compare(b.Cores, a.Cores), cmp.Compare(a.Name, b.Name))
	})
	return top, nil
}

// topFunctions is how many functions of a container the table of top can show.
const topFunctions = 50

func topContainer(w *containerWindow, seconds float64) web.TopContainer {
	r := &w.record
	c := web.TopContainer{ID: r.ID, Name: target.Name(r.Name, r.KubernetesContainer, r.ID)}
	functions := map[string]*web.TopFunction{}
	var total int64
	for _, s := range w.samples {
		total += s.value
		c.Samples += int64(s.n)
		counted := map[string]bool{} // a recursive function counts once per stack
		leaf := true
		for _, l := range s.locations {
			for _, line := range l.Line {
				f := functions[line.Function.Name]
				if f == nil {
					f = &web.TopFunction{Name: line.Function.Name}
					if l.Mapping != nil {
						f.File = path.Base(l.Mapping.File)
					}
					functions[f.Name] = f
				}
				if leaf {
					f.Self += s.value
					leaf = false
				}
				if !counted[f.Name] {
					counted[f.Name] = true
					f.Total += s.value
				}
			}
		}
	}
	c.Cores = float64(total) / 1e9 / seconds
	for _, f := range functions {
		c.Functions = append(c.Functions, *f)
	}
	slices.SortFunc(c.Functions, func(a, b web.TopFunction) int {
		return cmp.Or(cmp.Compare(b.Self, a.Self), cmp.Compare(b.Total, a.Total), cmp.Compare(a.Name, b.Name))
	})
	c.Functions = c.Functions[:min(len(c.Functions), topFunctions)]
	return c
}

// maxRecordingTime bounds one recording: its stacks are held in memory.
const maxRecordingTime = time.Hour

// Record implements [web.Backend]. It ends the open window when it begins and when it ends, so that the recording holds exactly
// its own time; in between, what it has grows with the agent's own windows.
func (b backend) Record(ctx context.Context, r web.RecordRequest, progress func(web.RecordProgress)) (*profile.Profile, error) {
	a := b.a
	if a.blind != nil {
		return nil, a.blind.refusal()
	}
	duration := time.Duration(r.Duration)
	if duration <= 0 || duration > maxRecordingTime {
		return nil, &web.Error{Status: http.StatusBadRequest, Message: fmt.Sprintf("a recording of %v", duration), Remedy: "ask for more than 0 s and at most " + maxRecordingTime.String()}
	}
	if r.Frequency != 0 && r.Frequency != a.cfg.Sampling.Frequency {
		return nil, &web.Error{Status: http.StatusBadRequest,
			Message: fmt.Sprintf("the agent samples at %d Hz, not at %d", a.cfg.Sampling.Frequency, r.Frequency),
			Remedy:  "leave out the frequency, or use a sampler of your own (stoker record --own-sampler)"}
	}
	targets, err := target.Parse(r.Targets)
	if err != nil {
		return nil, err
	}
	var profiled []container.Container
	for _, rec := range a.registry.List() {
		if rec.Profiled() && rec.GoneAt.IsZero() {
			profiled = append(profiled, rec.Container)
		}
	}
	selection, err := target.Resolve(targets, profiled, a.hierarchy.OfPID)
	if err != nil {
		return nil, err
	}
	if err := a.sampler.Flush(ctx); err != nil {
		return nil, err
	}
	start := time.Now()
	rec := recording{selection: selection, builder: pprof.NewBuilder(sink.CPU, start, start.Add(duration), a.pipeline.period), containers: map[string]bool{}}
	unsubscribe := a.pipeline.subscribe(rec.add)
	defer unsubscribe()

	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	end := time.NewTimer(duration)
	defer end.Stop()
	for running := true; running; {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-ticker.C:
			progress(rec.progress(time.Since(start), duration))
		case <-end.C:
			running = false
		}
	}
	if err := a.sampler.Flush(ctx); err != nil {
		return nil, err
	}
	unsubscribe()
	progress(rec.progress(duration, duration))
	return rec.profile()
}

// recording collects the windows of the selected containers.
type recording struct {
	selection *target.Selection

	mu         sync.Mutex // protects what follows: windows come from the pipeline's goroutine
	builder    *pprof.Builder
	n          int64
	containers map[string]bool
}

func (r *recording) add(windows []*containerWindow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range windows {
		if !w.record.Profiled() || !r.selection.Container(w.record.Container) {
			continue
		}
		for _, s := range w.samples {
			if !r.selection.Process(w.record.Container, s.process.PID) {
				continue
			}
			r.builder.Add(s.locations, s.value)
			r.n += int64(s.n)
			r.containers[w.record.ID] = true
		}
	}
}

func (r *recording) progress(elapsed, duration time.Duration) web.RecordProgress {
	r.mu.Lock()
	defer r.mu.Unlock()
	return web.RecordProgress{
		Elapsed: web.Duration(elapsed), Duration: web.Duration(duration), Samples: r.n, Stacks: int64(r.builder.Len()),
		Containers: len(r.containers),
	}
}

func (r *recording) profile() (*profile.Profile, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	built, err := r.builder.Profiles()
	if err != nil {
		return nil, fmt.Errorf("build the recording: %w", err)
	}
	parts := make([][]byte, 0, len(built))
	for _, b := range built {
		parts = append(parts, b.Pprof)
	}
	if len(parts) == 0 {
		return nil, &web.Error{Status: http.StatusUnprocessableEntity, Message: "nothing was sampled",
			Remedy: "the containers were idle, or none was profiled: see `stoker ps`; record for longer"}
	}
	return pprof.Merge(parts...)
}

// Metrics implements [web.Backend].
func (b backend) Metrics() http.Handler { return b.a.metrics }
