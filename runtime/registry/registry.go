// Package registry is the one table of containers. Sources write through Apply from any goroutine; it joins what they say
// about one container, decides whether the container is profiled, and puts its cgroup in scope before Apply returns. Readers
// look containers up by the scope id that samples carry, until two windows after they are gone.
//
// A Registry is safe for concurrent use, under one lock. It never talks to a runtime, reads no file and starts no goroutine:
// under its lock happens nothing slower than the update of the kernel's map of scopes. The maps of the values that it gives
// out are shared and never written to again.
package registry

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// keptWindows is how many whole windows a container, or a scope of it, is known after it is gone: its last samples are read
// with the window that was open and, where a stack was late, with the next.
const keptWindows = 2

// graceWindows is how many window ends a container waits for a source that says everything about it. After that it is taken
// for what is known.
const graceWindows = 2

// rootCgroup is the cgroup of all processes that were not put into another one.
const rootCgroup = "/"

// Scopes is what the registry needs of the kernel. Add puts a cgroup and all below it in scope, where one in thinning samples
// is taken; for a cgroup that is in scope already it makes a new scope id. Ids are never 0 and never reused. Bar keeps a cgroup and
// all below it out of the scope that it lies in, but for cgroups below it that are in scope themselves; one that was in scope no
// longer is. Remove undoes either.
type Scopes interface {
	Add(cgroupID uint64, thinning uint32) (scopeID uint32, err error)
	Bar(cgroupID uint64) error
	Remove(cgroupID uint64) error
}

// Retuner is implemented by Scopes whose events can change their frequency. Retune gets the new events ready and returns what
// switches to them; between is called while no event ticks, and gives every scope a new id, so that each id stands for samples of
// one frequency. The registry calls one at a time, and swap under its lock.
type Retuner interface {
	Retune(frequencyHz int) (swap func(between func()) error, err error)
}

// calmWindows is how many window ends in a row a lower frequency must do before the events take it: new scope ids cost new stacks.
const calmWindows = 6

// Config says what a Registry decides by.
type Config struct {
	Scopes Scopes
	// Frequency is how many samples per second and CPU a container gets unless it asks for another number. Where one asks for more,
	// and Scopes is a Retuner, the events tick faster, and the others are thinned.
	Frequency       int
	Targets         []Rule
	ContainerLabels LabelPolicy
	Now             func() time.Time // nil means time.Now
	Log             *slog.Logger     // nil discards
}

// State is where a container stands.
type State uint8

const (
	// Waiting: some source knows it, its cgroup is not known: it has no process yet, or nobody could find the cgroup.
	Waiting State = iota + 1
	// Provisional: in scope, though no source has said everything about it; a rule may still exclude it.
	Provisional
	// Profiled: in scope.
	Profiled
	// Excluded: not in scope; Reason says which rule or label, or what about it (it has no cgroup of its own), forbids.
	Excluded
	// Failed: it should be in scope but the kernel refused; Reason says why. Tried again with each window.
	Failed
	// Gone: its processes have ended.
	Gone
)

var stateNames = [...]string{Waiting: "waiting", Provisional: "provisional", Profiled: "profiled", Excluded: "excluded", Failed: "failed", Gone: "gone"}

func (s State) String() string {
	if int(s) < len(stateNames) && stateNames[s] != "" {
		return stateNames[s]
	}
	return "unknown"
}

// Record is what is known about one run of a container and what was decided about it.
type Record struct {
	container.Container
	// ScopeID is the scope that was asked for, in Lookup; else the newest, 0 when there never was one. Thinning belongs to it.
	ScopeID  uint32
	Thinning uint32
	State    State
	// Reason says why it is not profiled; also of one that is gone and was not. Notes are what its own labels asked for in
	// vain.
	Reason string
	Notes  []string
	// Described means a source has said everything, or that nobody did for so long that we go on with what is known.
	Described bool
	// FoundBy tells which sources spoke about this run and when first, Sources when last.
	FoundBy, Sources map[string]time.Time
	// AnnouncedAt is when the registry first heard of it, InScopeAt when samples were first taken, GoneAt when it ended.
	AnnouncedAt, InScopeAt, GoneAt time.Time
	// AskedFrequency is what the container's label asks for, 0 when it does not ask; GivenFrequency what it gets.
	AskedFrequency, GivenFrequency int
	// Period is the time of CPU that a sample of ScopeID stands for, if it is not thinned; else Thinning times that.
	Period time.Duration
	// Service and Tenant are what the container's own labels choose, as far as that is allowed.
	Service, Tenant string

	excluded bool
}

// Profiled reports whether samples of this record become profiles: it is or was in scope, and nothing that is known now
// excludes it. True also for one that is provisional or gone.
func (r *Record) Profiled() bool { return !r.excluded && r.ScopeID != 0 }

// DisplayName is how people call the container: its name, its name in the pod, or the beginning of its id.
func (r *Record) DisplayName() string { return displayName(&r.Container) }

func displayName(c *container.Container) string {
	id := c.ID
	if len(id) == 64 {
		id = id[:12]
	}
	return cmp.Or(c.Name, c.KubernetesContainer, c.SystemdUnit, id)
}

// word is what one source says about one record.
type word struct {
	c                  container.Container
	complete, inferred bool
	size               int       // of c, about
	vouches            bool      // it said so about this run, and has not failed to say it again since
	round              uint64    // the source's Syncing at which it said it last
	first, at          time.Time // when it spoke about this run first, and last
}

// record is one run of a container: one generation.
type record struct {
	c           container.Container // joined from what was told
	told        map[string]*word    // by source
	announced   time.Time
	since       time.Time // this run began at this time or before; what happened earlier was another run
	inScope     time.Time
	goneAt      time.Time
	gone        bool
	removed     bool // and its cgroup with it
	described   bool
	measured    bool // its delay has been counted
	judged      bool // whether it was late has been counted
	undescribed int  // window ends that passed without a description
	aged        int  // window ends that passed since it is gone

	d      decision
	failed string  // what the kernel said when it refused the scope
	scope  *scope  // the newest, also of one that is gone
	barred bool    // the kernel keeps its cgroup out of the scope that it may lie in
	shares *record // the record whose cgroup this one is in too
}

// scope is one id that samples carry.
type scope struct {
	id       uint32
	rec      *record
	thinning uint32
	hz       int // of the events
	retired  bool
	aged     int // window ends that passed since it is retired
}

// source is where a source of containers stands.
type source struct {
	round  uint64    // counts its Syncings
	began  time.Time // when the last of them was
	synced bool
	room
}

// Registry is the table. Make one with New.
type Registry struct {
	scopes Scopes
	now    func() time.Time
	log    *slog.Logger

	mu        sync.Mutex // protects what follows
	frequency int        // what containers get that do not ask
	event     int        // what the events tick at
	calm      int        // window ends in a row at which a lower frequency would have done
	refused   int        // frequency that the kernel refused
	rules     []Rule
	policy    LabelPolicy
	records   map[*record]struct{}
	byCgroup  map[uint64]*record // the newest of each cgroup
	byID      map[string][]*record
	byScope   map[uint32]*scope
	sources   map[string]*source
	changed   chan struct{} // closed when a source has synced for the first time
	stats     counters
}

// New returns an empty registry.
func New(cfg Config) *Registry {
	r := &Registry{
		scopes: cfg.Scopes, now: cfg.Now, log: cfg.Log,
		frequency: max(1, cfg.Frequency), event: max(1, cfg.Frequency), rules: slices.Clone(cfg.Targets), policy: cfg.ContainerLabels.clone(),
		records: map[*record]struct{}{}, byCgroup: map[uint64]*record{}, byID: map[string][]*record{}, byScope: map[uint32]*scope{},
		sources: map[string]*source{}, changed: make(chan struct{}), stats: newCounters(),
	}
	if r.now == nil {
		r.now = time.Now
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	return r
}

// Apply takes what a source says. When it returns, a container that is to be profiled is in scope in the kernel, and one that
// is not is out of it. Events of one source must come in the order in which they happened; sources may speak at the same
// time, in any order to each other.
func (r *Registry) Apply(e container.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.events[eventKey{e.Source, e.Type}]++
	s := r.sources[e.Source]
	if s == nil {
		s = &source{}
		r.sources[e.Source] = s
	}
	if e.At.IsZero() {
		e.At = r.now()
	}
	switch e.Type {
	case container.Upsert:
		if !r.admit(s, &e) {
			return
		}
		known := len(r.records)
		r.upsert(e, s.round)
		s.records += max(0, len(r.records)-known)
	case container.Gone:
		r.end(e)
	case container.Syncing:
		s.round++
		s.began = e.At
	case container.Synced:
		r.reconcile(e, s)
		if !s.synced {
			s.synced = true
			close(r.changed)
			r.changed = make(chan struct{})
		}
	}
}

// reconcile ends what a source told before its last Syncing and not again since, unless another source vouches for it. About a run
// that began later the list says nothing.
func (r *Registry) reconcile(e container.Event, s *source) {
	for rec := range r.records {
		w := rec.told[e.Source]
		if w == nil || !w.vouches || w.round >= s.round || rec.since.After(s.began) {
			continue
		}
		w.vouches = false
		if !rec.gone && !r.vouched(rec) {
			r.stats.missed++
			r.bury(rec, e.At)
		}
	}
}

// vouched reports whether a source stands for it that a run goes on. Who never lists what exists could not take it back.
func (r *Registry) vouched(rec *record) bool {
	for name, w := range rec.told {
		if w.vouches && r.sources[name].round > 0 {
			return true
		}
	}
	return false
}

// decide works out what follows from what is known about a record, and makes the kernel's scopes follow.
func (r *Registry) decide(rec *record) {
	rec.d = r.decision(rec)
	here := !rec.gone && rec.c.CgroupID != 0
	want := here && !rec.d.excluded
	// It may lie in another's cgroup, a unit's or a machine's, and must not be sampled as a part of that.
	bar := here && rec.d.excluded && rec.shares == nil
	in := rec.scope != nil && !rec.scope.retired
	switch {
	case bar && !rec.barred:
		if err := r.scopes.Bar(rec.c.CgroupID); err != nil {
			if rec.failed == "" {
				r.log.Warn("an excluded container is sampled if it lies in the cgroup of one that is profiled", "container", displayName(&rec.c),
					"cgroup", rec.c.CgroupPath, "err", err)
			}
			rec.failed = err.Error()
			r.stats.scopeErrors++
			if in {
				r.leave(rec)
			}
			return
		}
		rec.failed, rec.barred = "", true
		if in {
			rec.scope.retired = true
		}
	case want && (!in || rec.scope.thinning != rec.d.thinning || rec.scope.hz != r.event):
		id, err := r.scopes.Add(rec.c.CgroupID, rec.d.thinning)
		if err != nil {
			if rec.failed == "" {
				r.log.Warn("a container is not profiled", "container", displayName(&rec.c), "cgroup", rec.c.CgroupPath, "err", err)
			}
			rec.failed = err.Error()
			r.stats.scopeErrors++
			return // what was in scope before still is
		}
		rec.failed, rec.barred = "", false
		if in {
			rec.scope.retired = true
		}
		rec.scope = &scope{id: id, rec: rec, thinning: rec.d.thinning, hz: r.event}
		r.byScope[id] = rec.scope
		if rec.inScope.IsZero() {
			rec.inScope = r.now()
		}
	case !want && !bar && (in || rec.barred):
		r.leave(rec)
		rec.failed = ""
	case !want:
		rec.failed = ""
	}
}

// Lookup returns the container that samples with this scope id belong to. It knows containers and scopes until two whole
// windows after they are gone.
func (r *Registry) Lookup(scopeID uint32) (Record, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.byScope[scopeID]
	if s == nil {
		return Record{}, false
	}
	return r.export(s.rec, s), true
}

// List returns all containers that are known, also those gone less than two windows ago, sorted by name. Pause containers of
// pods are left out.
func (r *Registry) List() []Record {
	r.mu.Lock()
	list := make([]Record, 0, len(r.records))
	for rec := range r.records {
		if !rec.c.Sandbox {
			list = append(list, r.export(rec, rec.scope))
		}
	}
	r.mu.Unlock()
	slices.SortFunc(list, func(a, b Record) int {
		return cmp.Or(cmp.Compare(a.DisplayName(), b.DisplayName()), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Namespace, b.Namespace),
			a.AnnouncedAt.Compare(b.AnnouncedAt), cmp.Compare(a.CgroupID, b.CgroupID))
	})
	return list
}

func (r *Registry) export(rec *record, s *scope) Record {
	out := Record{
		Container: rec.c, State: rec.state(), Reason: rec.d.reason, Notes: rec.d.notes, Described: rec.described,
		FoundBy: make(map[string]time.Time, len(rec.told)), Sources: make(map[string]time.Time, len(rec.told)), AnnouncedAt: rec.announced, InScopeAt: rec.inScope, GoneAt: rec.goneAt,
		AskedFrequency: rec.d.asked, Service: rec.d.service, Tenant: rec.d.tenant, excluded: rec.d.excluded,
	}
	for name, w := range rec.told {
		if !w.at.IsZero() {
			out.FoundBy[name], out.Sources[name] = w.first, w.at
		}
	}
	if s != nil {
		out.ScopeID, out.Thinning = s.id, s.thinning
		out.GivenFrequency, out.Period = given(s.hz, s.thinning), time.Second/time.Duration(s.hz)
	}
	switch out.State {
	case Failed:
		out.Reason = rec.failed
	case Waiting:
		out.Reason = "it has no process yet"
		if rec.c.PID != 0 {
			out.Reason = fmt.Sprintf("the cgroup of its process %d is not known", rec.c.PID)
		}
	}
	return out
}

func (rec *record) state() State {
	switch {
	case rec.gone:
		return Gone
	case rec.d.excluded:
		return Excluded
	case rec.c.CgroupID == 0:
		return Waiting
	case rec.failed != "":
		return Failed
	case !rec.described:
		return Provisional
	}
	return Profiled
}

// WindowEnd is called once per window. It forgets containers and scopes that are gone for longer than two whole windows, goes
// on with what is known about containers that nobody has described in two, tries again what the kernel refused, and has the events
// tick as fast as the container that asks for most. One goroutine calls it.
func (r *Registry) WindowEnd() {
	r.age()
	r.retune()
}

// retune has the events tick as fast as the container that asks for most: faster at once, slower after a while.
func (r *Registry) retune() {
	clock, ok := r.scopes.(Retuner)
	if !ok {
		return
	}
	hz := r.due()
	if hz == 0 {
		return
	}
	swap, err := clock.Retune(hz) // not under the lock: it opens files
	if err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.refused != hz {
			r.log.Warn("the frequency that a container asks for cannot be had", "frequency", hz, "err", err)
		}
		r.refused = hz
		r.stats.scopeErrors++
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	err = swap(func() {
		r.event, r.calm, r.refused = hz, 0, 0
		for rec := range r.records {
			if rec.gone {
				continue
			}
			r.decide(rec)
			if s := rec.scope; s != nil && !s.retired && s.hz != hz { // the kernel refused: its samples would be worth something else
				r.leave(rec)
			}
		}
	})
	if err != nil {
		r.log.Warn("some CPU is not sampled", "err", err)
		r.stats.scopeErrors++
	}
	r.log.Info("the events tick at another frequency", "frequency", hz)
}

// due is the frequency that the events should change to, 0 for none.
func (r *Registry) due() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	most := r.frequency
	for rec := range r.records {
		if !rec.gone && !rec.d.excluded && rec.c.CgroupID != 0 {
			most = max(most, rec.d.hz)
		}
	}
	if most >= r.event {
		r.calm = 0
	} else if r.calm++; r.calm < calmWindows {
		return 0
	}
	if most == r.event {
		return 0
	}
	return most
}

// leave takes a record's cgroup out of scope, or lets it be a part of the scope that it lies in again.
func (r *Registry) leave(rec *record) {
	if err := r.scopes.Remove(rec.c.CgroupID); err != nil {
		r.log.Warn("a container is still sampled; its samples are thrown away", "container", displayName(&rec.c), "cgroup", rec.c.CgroupPath, "err", err)
		r.stats.scopeErrors++
	}
	rec.barred = false
	if rec.scope != nil {
		rec.scope.retired = true
	}
}

func (r *Registry) age() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.measure()
	for id, s := range r.byScope {
		if !s.retired {
			continue
		}
		if s.aged++; s.aged > keptWindows {
			delete(r.byScope, id)
		}
	}
	for rec := range r.records {
		if !rec.described && rec.c.CgroupID != 0 {
			if rec.undescribed++; rec.undescribed >= graceWindows {
				rec.described = true
				r.stats.undescribed++
				r.decide(rec)
			}
		}
		if rec.failed != "" {
			r.decide(rec)
		}
		if rec.gone {
			if rec.aged++; rec.aged > keptWindows {
				r.forget(rec)
			}
		}
	}
}

// Settle judges the containers that nobody has described by what is known about them, as if they had waited for long enough. It is
// for the end: the last samples of what the rules exclude are nobody's.
func (r *Registry) Settle() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for rec := range r.records {
		if !rec.described && rec.c.CgroupID != 0 {
			rec.described = true
			r.stats.undescribed++
			r.decide(rec)
		}
	}
}

// SetTargets decides anew about all containers. A container whose frequency changes gets a new scope.
func (r *Registry) SetTargets(rules []Rule, policy LabelPolicy) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rules, r.policy = slices.Clone(rules), policy.clone()
	for rec := range r.records {
		if !rec.gone {
			r.decide(rec)
		}
	}
}

// WaitSynced waits until that many sources have told what already runs, at most for the timeout. It reports whether they have.
func (r *Registry) WaitSynced(ctx context.Context, sources int, timeout time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		r.mu.Lock()
		n, changed := 0, r.changed
		for _, s := range r.sources {
			if s.synced {
				n++
			}
		}
		r.mu.Unlock()
		if n >= sources {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}
