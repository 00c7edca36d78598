package registry

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// This file decides which record an event is about, and joins what sources say about one record.
//
// Two things name a run of a container. The cgroup id is the run itself: no other has it, before or after. The container's id
// outlives restarts, and is all that some sources know.

// upsert finds or makes the record that an event is about, and adds what it says.
func (r *Registry) upsert(e container.Event, round uint64) {
	c := &e.Container
	r.claim(c, e.Inferred)
	if c.ID == "" && c.CgroupID == 0 {
		r.stats.nameless++
		return
	}
	rec := r.byCgroup[c.CgroupID] // never has an entry for 0
	live, gone := r.candidates(c)
	if over(rec, c) {
		if e.Inferred {
			r.stats.stale++
			return
		}
		r.refuse(c, "")
		rec = nil
	} else if !e.Inferred && stays(live, c, rec) {
		if before(&e, live) {
			r.stats.stale++
			return
		}
		r.refuse(c, "")
		rec = nil
	}
	if rec != nil && !rec.gone && !e.Inferred && !rec.supposed(c) && outranks(c, rec) {
		heir := live
		switch {
		case heir == nil:
			heir = r.create(e.At)
		case heir.c.CgroupID != 0 && heir.c.CgroupID != c.CgroupID:
			r.bury(heir, e.At)
			heir = r.inherit(heir, &e)
		}
		r.yield(rec, heir)
		r.hear(heir, e, round)
		return
	}
	switch {
	case rec != nil && (rec.c.ID == c.ID || c.ID == "" || e.Inferred || rec.supposed(c)):
		// Known by its cgroup. Whoever knew only the id spoke about the same container.
		if !rec.gone && live != nil && live != rec {
			switch {
			case e.Inferred && rec.c.ID != c.ID: // its name says another id than the runtime: it is not about that one
			case live.c.CgroupID == 0:
				r.absorb(rec, live)
			case !e.Inferred:
				r.bury(live, e.At)
			}
		}
	case rec != nil && !rec.gone: // two containers in one cgroup cannot be told apart in its samples: the first has them
		owner := rec
		if rec = live; rec == nil {
			rec = r.create(e.At)
			r.stats.shared++
		}
		rec.shares = owner
	case live != nil && (c.CgroupID == 0 || live.c.CgroupID == 0):
		rec = live
	case live != nil: // the same id in another cgroup: it was restarted, or somebody pretends
		switch {
		case e.Inferred:
			r.stats.conflicts++
			return
		case live.shares == nil && before(&e, live):
			r.stats.stale++
			return
		}
		r.bury(live, e.At)
		rec = r.inherit(live, &e)
	case gone != nil && (before(&e, gone) || c.CgroupID == 0 && (c.PID == 0 || c.PID == gone.c.PID)):
		rec = gone // something more about a container that has ended
		if c.CgroupID != 0 {
			r.stats.stale++ // and about an older run of it
			return
		}
	case gone != nil:
		rec = r.inherit(gone, &e)
	default:
		rec = r.create(e.At)
	}
	r.hear(rec, e, round)
}

// before reports whether what is told about happened before a record's run.
func before(e *container.Event, rec *record) bool { return began(e).Before(rec.since) }

// began is when the run that is told about began, as far as the event knows: no later than this.
func began(e *container.Event) time.Time {
	switch c := &e.Container; {
	case !c.TaskCreatedAt.IsZero():
		return c.TaskCreatedAt
	case !c.StartedAt.IsZero():
		return c.StartedAt
	}
	return e.At
}

// seenAfter reports whether another source said that the run goes on after the time of an event.
func (rec *record) seenAfter(e *container.Event) bool {
	for name, w := range rec.told {
		if name != e.Source && w.vouches && w.at.After(e.At) {
			return true
		}
	}
	return false
}

// candidates finds the records that an id may mean: the one that lives, and the newest that is gone. Where several containers
// live under that id, in namespaces or runtimes that the event does not name, it means none of them.
func (r *Registry) candidates(c *container.Container) (live, gone *record) {
	if c.ID == "" {
		return nil, nil
	}
	several := false
	for _, rec := range r.byID[c.ID] {
		if !compatible(&rec.c, c) {
			continue
		}
		switch {
		case rec.gone:
			gone = rec // they are in the order of their making
		case live != nil:
			several = true
		default:
			live = rec
		}
	}
	if several {
		r.stats.ambiguous++
		return nil, nil
	}
	return live, gone
}

// compatible reports whether two containers of the same id may be the same. Ids of 64 digits are random: they are, unless a user
// claims the id of a container that is another's.
func compatible(a, b *container.Container) bool {
	if a.User != b.User {
		return false
	}
	if len(a.ID) == 64 {
		return true
	}
	may := func(x, y string) bool { return x == "" || y == "" || x == y }
	return may(a.Runtime, b.Runtime) && may(a.Namespace, b.Namespace)
}

func (rec *record) onlyInferred() bool {
	for _, w := range rec.told {
		if !w.inferred {
			return false
		}
	}
	return true
}

// create makes a record of a run that was first heard of at a time.
func (r *Registry) create(at time.Time) *record {
	rec := &record{told: map[string]*word{}, announced: r.now(), since: at}
	r.records[rec] = struct{}{}
	return rec
}

// inherit makes the record of the next run of a container: what it is called stays, where and since when it runs does not. Who
// knew only the id and spoke after that run had begun spoke about it.
func (r *Registry) inherit(old *record, e *container.Event) *record {
	rec := r.create(e.At)
	rec.described = old.described
	for name, w := range old.told {
		c := w.c
		c.CgroupID, c.CgroupPath, c.NoCgroup, c.PID, c.TaskCreatedAt, c.StartedAt = 0, "", "", 0, time.Time{}, time.Time{}
		rec.told[name] = &word{c: c, size: w.size, complete: w.complete, inferred: w.inferred, round: w.round}
		if w.c.CgroupID == 0 && !w.at.Before(began(e)) {
			rec.told[name].vouches = w.vouches && (!old.gone || w.at.After(old.goneAt))
			rec.told[name].first, rec.told[name].at = w.at, w.at
		}
	}
	r.stats.restarts++
	return rec
}

// absorb moves what was said about a container that was known by its id alone to the record that has its cgroup.
func (r *Registry) absorb(rec, waiting *record) {
	for name, w := range waiting.told {
		if rec.told[name] == nil {
			rec.told[name] = w
		}
	}
	rec.announced = earlier(rec.announced, waiting.announced)
	r.forget(waiting)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// hear adds what a source says to a record and decides anew.
func (r *Registry) hear(rec *record, e container.Event, round uint64) {
	w := rec.told[e.Source]
	if w == nil {
		w = &word{}
		rec.told[e.Source] = w
	}
	overlay(&w.c, &e.Container)
	size := w.c.Size()
	r.sources[e.Source].bytes += size - w.size
	w.size = size
	w.complete = w.complete || e.Complete
	w.inferred, w.vouches, w.round, w.at = e.Inferred, true, round, e.At
	if w.first.IsZero() {
		w.first = e.At
	}
	old := rec.c
	rec.join()
	if rec.gone && old.CgroupID != 0 { // the run is over; a late word about it names it better, no more
		rec.c.CgroupID, rec.c.CgroupPath = old.CgroupID, old.CgroupPath
	}
	rec.described = rec.described || w.complete
	if old.ID != rec.c.ID {
		r.unindex(old.ID, rec)
		r.byID[rec.c.ID] = append(r.byID[rec.c.ID], rec)
	}
	if id := rec.c.CgroupID; id != 0 && rec.shares == nil {
		r.byCgroup[id] = rec
	}
	switch {
	case !rec.c.TaskCreatedAt.IsZero():
		rec.since = rec.c.TaskCreatedAt
	case e.Container.CgroupID != 0: // who names the run knows that it ran then
		rec.since = earlier(rec.since, e.At)
	}
	r.decide(rec)
	r.stats.inScope(rec)
	r.stats.started(rec)
}

// join puts together what all sources say. What a runtime says outranks what was inferred, who says everything outranks who
// does not, the later word outranks the earlier.
func (rec *record) join() {
	names := slices.Collect(maps.Keys(rec.told))
	rank := func(w *word) (n int) {
		if !w.inferred {
			n += 2
		}
		if w.complete {
			n++
		}
		return n
	}
	slices.SortFunc(names, func(a, b string) int {
		x, y := rec.told[a], rec.told[b]
		return cmp.Or(cmp.Compare(rank(x), rank(y)), x.at.Compare(y.at), cmp.Compare(a, b))
	})
	var c container.Container
	for _, name := range names {
		w := rec.told[name]
		labels, annotations, env, pod := c.Labels, c.Annotations, c.Env, c.Pod
		sandbox := w.c.Sandbox || c.Sandbox && !(w.complete && !w.inferred)
		overlay(&c, &w.c)
		c.Sandbox = sandbox
		c.Labels, c.Annotations, c.Env = union(labels, w.c.Labels), union(annotations, w.c.Annotations), union(env, w.c.Env)
		c.Pod.Labels, c.Pod.Annotations = union(pod.Labels, w.c.Pod.Labels), union(pod.Annotations, w.c.Pod.Annotations)
	}
	rec.c = c
}

// overlay puts what is known in src over dst: an empty field is "not known", a map that is there is all of it.
func overlay(dst, src *container.Container) {
	text := func(d *string, s string) {
		if s != "" {
			*d = s
		}
	}
	when := func(d *time.Time, s time.Time) {
		if !s.IsZero() {
			*d = s
		}
	}
	all := func(d *map[string]string, s map[string]string) {
		if s != nil {
			*d = s
		}
	}
	text(&dst.ID, src.ID)
	text(&dst.Runtime, src.Runtime)
	text(&dst.Namespace, src.Namespace)
	text(&dst.Name, src.Name)
	text(&dst.Image, src.Image)
	text(&dst.Pod.Name, src.Pod.Name)
	text(&dst.Pod.Namespace, src.Pod.Namespace)
	text(&dst.Pod.UID, src.Pod.UID)
	all(&dst.Pod.Labels, src.Pod.Labels)
	all(&dst.Pod.Annotations, src.Pod.Annotations)
	text(&dst.KubernetesContainer, src.KubernetesContainer)
	dst.Sandbox = dst.Sandbox || src.Sandbox
	all(&dst.Labels, src.Labels)
	all(&dst.Annotations, src.Annotations)
	all(&dst.Env, src.Env)
	switch {
	case src.CgroupID != 0 || src.CgroupPath == rootCgroup:
		dst.CgroupID, dst.CgroupPath, dst.NoCgroup = src.CgroupID, src.CgroupPath, ""
	case dst.CgroupID == 0: // who knows the cgroup is right, whoever does not
		text(&dst.NoCgroup, src.NoCgroup)
	}
	text(&dst.User, src.User)
	if src.PID != 0 {
		dst.PID = src.PID
	}
	text(&dst.SystemdUnit, src.SystemdUnit)
	when(&dst.CreatedAt, src.CreatedAt)
	when(&dst.TaskCreatedAt, src.TaskCreatedAt)
	when(&dst.StartedAt, src.StartedAt)
}

// union returns the entries of both, b's where both have one. It changes neither.
func union(a, b map[string]string) map[string]string {
	if len(a) == 0 {
		return b
	}
	if len(b) == 0 {
		return a
	}
	u := maps.Clone(a)
	maps.Copy(u, b)
	return u
}

// end finds the record whose run is over.
func (r *Registry) end(e container.Event) {
	c := &e.Container
	if c.User == "" {
		c.User = slice(c.CgroupPath)
	}
	rec := r.byCgroup[c.CgroupID]
	live, gone := r.candidates(c)
	switch {
	case rec != nil && !e.Inferred && c.User != rec.c.User && c.User != "":
		r.stats.conflicts++ // a user ends containers of that user
		return
	case rec != nil && !rec.gone && !e.Inferred && c.ID != "" && c.ID != rec.c.ID && !rec.onlyInferred():
		rec = nil // another container in the same cgroup, which its id names
		if live != nil && live.c.CgroupID == c.CgroupID {
			rec = live
		}
	case rec != nil:
	case live != nil && (c.CgroupID == 0 || live.c.CgroupID == 0):
		if c.PID != 0 && live.c.PID != 0 && c.PID != live.c.PID || e.At.Before(live.since) || live.seenAfter(&e) {
			r.stats.stale++ // an earlier run of it
			return
		}
		rec = live
	}
	if rec == nil {
		r.stats.orphans++
		if gone != nil {
			gone.retract(e.Source)
		}
		return
	}
	rec.retract(e.Source)
	rec.removed = rec.removed || e.Inferred && c.CgroupID != 0 // the kernel's word
	if rec.gone {
		return // somebody else said it first
	}
	if e.Inferred && r.stats.shared > 0 { // the cgroup itself is gone, with all that were in it
		for other := range r.records {
			if other.shares == rec && !other.gone {
				r.bury(other, e.At)
			}
		}
	}
	r.bury(rec, e.At)
}

// retract takes note that a source no longer says that a run goes on.
func (rec *record) retract(source string) {
	if w := rec.told[source]; w != nil {
		w.vouches = false
	}
}

// bury marks a run as over and takes it out of scope.
func (r *Registry) bury(rec *record, at time.Time) {
	rec.gone, rec.goneAt = true, at
	r.decide(rec)
	if r.stats.shared == 0 {
		return
	}
	own := named(rec.c.CgroupPath, rec.c.ID)
	for other := range r.records { // who shared its cgroup may have it now, unless it was that container's alone
		if other.shares == rec && !other.gone && (!own || named(other.c.CgroupPath, other.c.ID)) {
			other.shares = nil
			r.byCgroup[other.c.CgroupID] = other
			r.decide(other)
			for third := range r.records {
				if third.shares == rec {
					third.shares = other
				}
			}
			return
		}
	}
}

// forget takes a record out of the table.
func (r *Registry) forget(rec *record) {
	delete(r.records, rec)
	r.unindex(rec.c.ID, rec)
	if r.byCgroup[rec.c.CgroupID] == rec {
		delete(r.byCgroup, rec.c.CgroupID)
	}
}

func (r *Registry) unindex(id string, rec *record) {
	list := slices.DeleteFunc(r.byID[id], func(other *record) bool { return other == rec })
	if len(list) == 0 {
		delete(r.byID, id)
		return
	}
	r.byID[id] = list
}
