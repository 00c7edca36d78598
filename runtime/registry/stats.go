package registry

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/stoker-profiler/stoker/runtime/container"
)

type eventKey struct {
	source string
	typ    container.EventType
}

// delayBounds are the upper bounds of Stats.ScopeDelay's buckets.
var delayBounds = [...]time.Duration{time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond,
	50 * time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond, 2 * time.Second}

// counters are protected by the registry's lock.
type counters struct {
	events                                                                                map[eventKey]uint64
	restarts, missed, undescribed, conflicts, ambiguous, stale, orphans, nameless, shared uint64
	scopeErrors, early, late, cut, refused, tooMany, stripped                             uint64
	delays                                                                                [len(delayBounds) + 1]uint64
	delaySum                                                                              time.Duration
}

func newCounters() counters { return counters{events: map[eventKey]uint64{}} }

// inScope measures, once per run whose making was witnessed, how long after it samples were taken.
func (s *counters) inScope(rec *record) {
	if rec.measured || rec.inScope.IsZero() || rec.c.TaskCreatedAt.IsZero() {
		return
	}
	rec.measured = true
	delay := max(0, rec.inScope.Sub(rec.c.TaskCreatedAt))
	s.delaySum += delay
	for i, bound := range delayBounds {
		if delay <= bound {
			s.delays[i]++
			return
		}
	}
	s.delays[len(delayBounds)]++
}

// started counts, once per run whose making was witnessed, whether it was in scope before it ran code of its own.
func (s *counters) started(rec *record) {
	if rec.judged || rec.d.excluded || rec.gone || rec.c.TaskCreatedAt.IsZero() || rec.c.StartedAt.IsZero() {
		return
	}
	rec.judged = true
	if rec.inScope.IsZero() || rec.inScope.After(rec.c.StartedAt) {
		s.late++
	} else {
		s.early++
	}
}

// EventCount is how many events of a type a source sent.
type EventCount struct {
	Source string
	Type   container.EventType
	N      uint64
}

// Stats are counts since the start, but for Containers and Scopes, which are of now.
type Stats struct {
	Events     []EventCount // sorted
	Containers map[State]int
	Scopes     int // ids that Lookup knows
	Frequency  int // samples per second and CPU that the events take

	Restarts    uint64 // runs of a container that was known before
	Missed      uint64 // ends that no event told: they were seen by a comparison with what a source still has
	Undescribed uint64 // containers labelled with what was known because no source said everything in time
	Conflicts   uint64 // cgroups whose name claims to be a container that lives in another cgroup
	Ambiguous   uint64 // events without a namespace for an id that several containers have
	Stale       uint64 // events about an earlier run than the one that is known
	Orphans     uint64 // ends of containers that were not known
	Nameless    uint64 // events with neither an id nor a cgroup
	Shared      uint64 // containers in a cgroup that another one has
	ScopeErrors uint64 // refusals of the kernel
	Cut         uint64 // names and labels that were too long, or not text, and were cut, mended or left out
	Refused     uint64 // containers whose id or cgroup cannot be one
	TooMany     uint64 // containers left out because their source tells of too many
	Stripped    uint64 // times that a container lost its labels because its source tells of too many

	// Early and Late count containers whose start was witnessed, by whether they were in scope before it.
	Early, Late uint64
	// ScopeDelay is the time from the making of the first process until samples were taken, where it was witnessed.
	ScopeDelay Histogram
}

// Histogram has one count per bound, of values up to it and above the bound before, and one for those above the last.
type Histogram struct {
	Bounds []time.Duration
	Counts []uint64
	Sum    time.Duration
}

// Stats may be called at any time.
func (r *Registry) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := &r.stats
	s := Stats{
		Containers: map[State]int{}, Scopes: len(r.byScope), Frequency: r.event,
		Restarts: c.restarts, Missed: c.missed, Undescribed: c.undescribed, Conflicts: c.conflicts, Ambiguous: c.ambiguous, Stale: c.stale,
		Orphans: c.orphans, Nameless: c.nameless, Shared: c.shared, ScopeErrors: c.scopeErrors, Cut: c.cut, Refused: c.refused, TooMany: c.tooMany, Stripped: c.stripped,
		Early: c.early, Late: c.late,
		ScopeDelay: Histogram{Bounds: slices.Clone(delayBounds[:]), Counts: slices.Clone(c.delays[:]), Sum: c.delaySum},
	}
	for k, n := range c.events {
		s.Events = append(s.Events, EventCount{k.source, k.typ, n})
	}
	slices.SortFunc(s.Events, func(a, b EventCount) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Type, b.Type))
	})
	for rec := range r.records {
		if !rec.c.Sandbox {
			s.Containers[rec.state()]++
		}
	}
	return s
}

// Metric is one time series for a metrics page.
type Metric struct {
	Name, Help     string
	Counter        bool     // else a gauge
	Labels, Values []string // names of its labels and their values
	Value          float64
}

// Metrics renders the statistics, but for the histogram, in the names of stoker's metrics.
func (s Stats) Metrics() []Metric {
	var out []Metric
	for _, e := range s.Events {
		out = append(out, Metric{"stoker_source_events_total", "What sources of containers said.", true,
			[]string{"source", "type"}, []string{e.Source, e.Type.String()}, float64(e.N)})
	}
	for _, state := range slices.Sorted(maps.Keys(s.Containers)) {
		out = append(out, Metric{"stoker_containers", "Containers that are known.", false, []string{"state"}, []string{state.String()}, float64(s.Containers[state])})
	}
	out = append(out, Metric{"stoker_clock_frequency_hertz", "Samples per second and CPU that the clock takes: the most that a container gets.", false, nil, nil, float64(s.Frequency)})
	out = append(out, Metric{"stoker_scopes", "Scope ids that samples may carry.", false, nil, nil, float64(s.Scopes)})
	for _, m := range []struct {
		oddity string
		n      uint64
	}{
		{"restart", s.Restarts}, {"missed_end", s.Missed}, {"undescribed", s.Undescribed}, {"name_conflict", s.Conflicts}, {"ambiguous", s.Ambiguous},
		{"stale", s.Stale}, {"orphan_end", s.Orphans}, {"nameless", s.Nameless}, {"shared_cgroup", s.Shared}, {"scope_refused", s.ScopeErrors},
		{"cut", s.Cut}, {"refused", s.Refused}, {"too_many", s.TooMany}, {"stripped", s.Stripped},
	} {
		out = append(out, Metric{"stoker_registry_cases_total", "Cases in which the registry had to decide something.", true, []string{"case"}, []string{m.oddity}, float64(m.n)})
	}
	out = append(out,
		Metric{"stoker_container_starts_total", "Witnessed starts of containers, by whether the container was in scope before.", true, []string{"scope"}, []string{"before"}, float64(s.Early)},
		Metric{"stoker_container_starts_total", "Witnessed starts of containers, by whether the container was in scope before.", true, []string{"scope"}, []string{"after"}, float64(s.Late)})
	return out
}
