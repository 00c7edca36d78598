package registry

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// This file holds the registry to a model: a node with every source of containers on it, whose engines lose events, restart, hang and
// lie. What each source says is in its own order; how the sources' words come in between each other is arbitrary. Afterwards the
// table must be what the model says, and at no time may the kernel have a scope that is another container's.
//
//	go test ./runtime/registry -run Model -model.seeds 100000 -model.first 1

var (
	modelSeeds = flag.Uint64("model.seeds", 3000, "histories that TestModel tries")
	modelFirst = flag.Uint64("model.first", 1, "the first of them")
)

// teller is what a source can tell.
type teller struct {
	name                 string
	cgroup, complete     bool
	ends, lists, infers  bool
	reliable             bool   // it loses no ends: the kernel tells it
	user                 string // whose engine it is
	nameless, onlyMaking bool
}

var tellers = []teller{
	{name: "containerd", cgroup: true, complete: true, ends: true, lists: true},
	{name: "docker", complete: true, ends: true, lists: true},
	{name: "podman", cgroup: true, complete: true, ends: true, lists: true},
	{name: "podman:1000", cgroup: true, complete: true, ends: true, lists: true, user: "1000"},
	{name: "cri-o", cgroup: true, complete: true, ends: true, lists: true},
	{name: "nri", cgroup: true, complete: true, ends: true, lists: true},
	{name: "hook", cgroup: true, onlyMaking: true, nameless: true},
	{name: "systemd", cgroup: true, complete: true, ends: true, lists: true},
	{name: "cgroup", cgroup: true, infers: true, ends: true, lists: true, reliable: true, nameless: true},
}

func tellerNamed(name string) *teller {
	i := slices.IndexFunc(tellers, func(t teller) bool { return t.name == name })
	return &tellers[i]
}

// kind is a sort of container: who tells about it and where it is.
type kind struct {
	runtime, namespace, user string
	path                     string // with ID
	random                   bool   // its id has 64 digits
	none                     bool   // it has no cgroup of its own
	by                       []string
}

var kinds = []kind{
	{runtime: "docker", namespace: "moby", path: "/docker/ID", random: true, by: []string{"containerd", "docker", "cgroup"}},
	{runtime: "containerd", namespace: "default", path: "/default/ID", by: []string{"containerd", "hook", "cgroup"}},
	{runtime: "containerd", namespace: "k8s.io", path: "/kubepods/pod1/ID", random: true, by: []string{"containerd", "nri", "hook", "cgroup"}},
	{runtime: "podman", path: "/machine.slice/libpod-ID.scope", random: true, by: []string{"podman", "hook", "cgroup"}},
	{runtime: "podman", user: "1000", path: "/user.slice/user-1000.slice/user@1000.service/libpod-ID.scope", random: true, by: []string{"podman:1000", "cgroup"}},
	{runtime: "podman", user: "1000", none: true, random: true, by: []string{"podman:1000"}},
	{runtime: "cri-o", path: "/kubepods.slice/crio-ID.scope", random: true, by: []string{"cri-o", "nri", "hook", "cgroup"}},
	{runtime: "systemd", path: "/system.slice/ID", by: []string{"systemd"}},
	{runtime: "containerd", namespace: "jobs", path: "/jobs/ID", by: []string{"containerd", "hook"}}, // the scan does not know it
}

// box is a container of the model; num tells it from the others.
type box struct {
	num    int
	kind   *kind
	cgroup uint64 // of the run that is alive, 0: none
	pid    int
	since  time.Time
}

func (b *box) id() string {
	switch {
	case b.kind.random:
		return fmt.Sprintf("%063xf", b.num+1)
	case b.kind.runtime == "systemd":
		return fmt.Sprintf("unit%d.service", b.num)
	}
	return fmt.Sprintf("job%d", b.num)
}

func (b *box) path() string { return strings.Replace(b.kind.path, "ID", b.id(), 1) }

// step is one thing that happens on the node. Steps are independent of each other, so that a failing history can lose those that it
// does not need.
type step struct {
	what   string // toggle (start, or end), list, lie
	box    int
	source string
	other  int    // lie: whose cgroup is claimed; negative: that of a service, or the root
	seed   uint64 // of its details: what is lost, said twice, late
}

func (s step) String() string {
	switch s.what {
	case "toggle":
		return fmt.Sprintf("container %d starts or ends", s.box)
	case "list":
		return fmt.Sprintf("%s lists", s.source)
	}
	return fmt.Sprintf("%s says that container %d is where %d is", s.source, s.box, s.other)
}

// history is a node's life.
type history struct {
	boxes     []*kind
	steps     []step
	hung      string // a source that stops in the middle
	hungAfter int
	forgetful bool
}

func newHistory(rnd *rand.Rand) history {
	h := history{forgetful: rnd.IntN(2) == 0}
	for range 1 + rnd.IntN(5) {
		h.boxes = append(h.boxes, &kinds[rnd.IntN(len(kinds))])
	}
	for range 1 + rnd.IntN(14) {
		s := step{what: "toggle", box: rnd.IntN(len(h.boxes)), seed: rnd.Uint64()}
		switch rnd.IntN(8) {
		case 0:
			s.what, s.source = "list", tellers[rnd.IntN(len(tellers))].name
		case 1, 2:
			by := h.boxes[s.box].by
			s.what, s.source, s.other = "lie", by[rnd.IntN(len(by))], rnd.IntN(len(h.boxes)+2)-2
			if rnd.IntN(3) == 0 {
				s.source = "podman:1000" // about whatever it likes
			}
		}
		h.steps = append(h.steps, s)
	}
	if rnd.IntN(4) == 0 {
		h.hung, h.hungAfter = tellers[rnd.IntN(len(tellers)-1)].name, rnd.IntN(8) // the cgroup tree does not hang
	}
	return h
}

// told is what the sources say in a history, each in its own order, and what is true at its end.
type told struct {
	events map[string][]container.Event
	boxes  []*box
	owner  map[uint64]*box // of every cgroup that ever was
	at     time.Time
}

// tell plays a history.
func (h *history) tell() *told {
	w := &told{events: map[string][]container.Event{}, owner: map[uint64]*box{}, at: epoch}
	for i, k := range h.boxes {
		w.boxes = append(w.boxes, &box{num: i, kind: k})
	}
	for _, s := range h.steps {
		rnd := rand.New(rand.NewPCG(s.seed, 1))
		w.at = w.at.Add(time.Second)
		switch s.what {
		case "toggle":
			h.toggle(w, w.boxes[s.box], rnd)
		case "list":
			h.list(w, tellerNamed(s.source), rnd)
		case "lie":
			h.lie(w, s, rnd)
		}
	}
	for i := range tellers {
		w.at = w.at.Add(time.Second)
		h.list(w, &tellers[i], rand.New(rand.NewPCG(uint64(i), 2)))
	}
	return w
}

func (h *history) toggle(w *told, b *box, rnd *rand.Rand) {
	starts := b.cgroup == 0
	ended := *b
	if starts {
		b.cgroup, b.pid, b.since = uint64(len(w.owner)+1), 1000+len(w.owner), w.at
		w.owner[b.cgroup] = b
		ended = *b
	} else {
		b.cgroup, b.pid = 0, 0
	}
	for _, name := range b.kind.by {
		t := tellerNamed(name)
		typ := container.Upsert
		if !starts {
			if typ = container.Gone; !t.ends {
				continue
			}
		}
		if h.forgetful && !t.reliable && t.lists && rnd.IntN(3) == 0 {
			continue // lost; a list mends it
		}
		for range 1 + rnd.IntN(5)/4 { // now and then said twice
			h.say(w, t, typ, &ended, starts, rnd)
		}
	}
}

// list has a source tell all that it knows of what runs.
func (h *history) list(w *told, t *teller, rnd *rand.Rand) {
	if !t.lists {
		return
	}
	h.add(w, t, container.Event{Type: container.Syncing, Source: t.name, At: w.at})
	for _, i := range rnd.Perm(len(w.boxes)) {
		if b := w.boxes[i]; b.cgroup != 0 && slices.Contains(b.kind.by, t.name) {
			h.say(w, t, container.Upsert, b, false, rnd)
		}
	}
	h.add(w, t, container.Event{Type: container.Synced, Source: t.name, At: w.at.Add(950 * time.Millisecond)})
}

// lie has a source tell a container's name with another's cgroup and pid.
func (h *history) lie(w *told, s step, rnd *rand.Rand) {
	b, t := w.boxes[s.box], tellerNamed(s.source)
	if b.cgroup == 0 || !t.cgroup || t.infers {
		return
	}
	e := h.event(w, t, container.Upsert, b, false, rnd)
	switch {
	case s.other >= 0 && w.boxes[s.other].cgroup != 0 && !w.boxes[s.other].kind.none:
		o := w.boxes[s.other]
		e.Container.CgroupID, e.Container.CgroupPath, e.Container.PID = o.cgroup, o.path(), o.pid
	case s.other == -1:
		e.Container.CgroupID, e.Container.CgroupPath, e.Container.PID = 90001, "/system.slice/ssh.service", 90001
	default:
		e.Container.CgroupID, e.Container.CgroupPath, e.Container.PID = 90002, "/user.slice/user-1000.slice/session-4.scope", 90002
	}
	e.Container.NoCgroup = ""
	h.add(w, t, e)
}

func (h *history) say(w *told, t *teller, typ container.EventType, b *box, witnessed bool, rnd *rand.Rand) {
	h.add(w, t, h.event(w, t, typ, b, witnessed, rnd))
}

// event is the truth about a container as a source knows it.
func (h *history) event(w *told, t *teller, typ container.EventType, b *box, witnessed bool, rnd *rand.Rand) container.Event {
	at := w.at.Add(time.Duration(rnd.IntN(900)) * time.Millisecond)
	c := container.Container{ID: b.id(), Runtime: b.kind.runtime, Namespace: b.kind.namespace, User: cmpOr(t.user, b.kind.user)}
	if t.name != "containerd" && t.name != "nri" {
		c.Namespace = "" // only containerd has those
	}
	if t.user != "" {
		c.User = t.user
	}
	e := container.Event{Type: typ, Source: t.name, Inferred: t.infers, At: at}
	if t.cgroup {
		c.CgroupID, c.PID = b.cgroup, b.pid
		c.CgroupPath = b.path()
		if b.kind.none {
			c.CgroupID, c.CgroupPath, c.NoCgroup = 0, "", "no delegation"
		}
		if t.infers {
			c.PID, c.User = 0, "" // it is in the path
		}
		if witnessed && !t.infers {
			c.TaskCreatedAt = b.since
		}
	}
	if typ == container.Upsert && !t.nameless && (t.name != "containerd" || b.kind.runtime != "docker") {
		c.Name, c.Image, c.Labels = "name-"+c.ID, "image", map[string]string{"n": fmt.Sprint(b.num)}
		e.Complete = t.complete
	}
	e.Container = c
	return e
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func (h *history) add(w *told, t *teller, e container.Event) {
	if e.Type == container.Synced || e.Type == container.Syncing {
		e.Inferred = t.infers
	}
	if h.hung == t.name && len(w.events[t.name]) >= h.hungAfter {
		return
	}
	w.events[t.name] = append(w.events[t.name], e)
}

// order puts the sources' words into one sequence: each is late by a time of its own, seconds at most, and some are late at times.
func (w *told) order(seed uint64) []container.Event {
	rnd := rand.New(rand.NewPCG(seed, 3))
	type heard struct {
		e  container.Event
		at time.Time
	}
	var all []heard
	for _, name := range slices.Sorted(maps.Keys(w.events)) {
		late := time.Duration(rnd.IntN(3000)) * time.Millisecond
		last := time.Time{}
		for _, e := range w.events[name] {
			at := e.At.Add(late + time.Duration(rnd.IntN(1000))*time.Millisecond)
			if at.Before(last) { // in its own order
				at = last
			}
			last = at
			all = append(all, heard{e, at})
		}
	}
	slices.SortStableFunc(all, func(a, b heard) int { return a.at.Compare(b.at) })
	out := make([]container.Event, len(all))
	for i, x := range all {
		out[i] = x.e
	}
	return out
}

// watchful is a kernel that knows what is forbidden.
type watchful struct {
	barred map[uint64]bool
	next   uint32
	scopes map[uint64]uint32
	wrong  []string
}

func (k *watchful) Add(cgroup uint64, _ uint32) (uint32, error) {
	if k.scopes[cgroup] != 0 {
		k.wrong = append(k.wrong, fmt.Sprintf("cgroup %d was put in scope twice", cgroup))
	}
	k.next++
	k.scopes[cgroup] = k.next
	delete(k.barred, cgroup)
	return k.next, nil
}

func (k *watchful) Bar(cgroup uint64) error {
	if k.barred[cgroup] {
		k.wrong = append(k.wrong, fmt.Sprintf("cgroup %d was barred twice", cgroup))
	}
	delete(k.scopes, cgroup)
	k.barred[cgroup] = true
	return nil
}

func (k *watchful) Remove(cgroup uint64) error {
	if k.scopes[cgroup] == 0 && !k.barred[cgroup] {
		k.wrong = append(k.wrong, fmt.Sprintf("the scope of cgroup %d was removed and is not there", cgroup))
	}
	delete(k.scopes, cgroup)
	delete(k.barred, cgroup)
	return nil
}

// play gives the words to a registry and returns what is wrong, and the table of what is alive.
func (h *history) play(w *told, events []container.Event) (wrong, table []string) {
	k := &watchful{scopes: map[uint64]uint32{}, barred: map[uint64]bool{}}
	now := epoch
	r := New(Config{Scopes: k, Frequency: 97, Now: func() time.Time { now = now.Add(time.Microsecond); return now }})
	meant := map[uint32]string{} // scope id → whom it means, for ever
	known := map[uint64]bool{}   // cgroups of which the truth was told
	for _, e := range events {
		if e.At.After(now) {
			now = e.At
		}
		r.Apply(e)
		if owner := w.owner[e.Container.CgroupID]; owner != nil && owner.id() == e.Container.ID {
			known[e.Container.CgroupID] = true
		}
		for cgroup, id := range k.scopes {
			rec, ok := r.Lookup(id)
			owner := w.owner[cgroup]
			switch {
			case !ok:
				k.wrong = append(k.wrong, fmt.Sprintf("scope %d of cgroup %d is in the kernel and unknown", id, cgroup))
			case owner == nil:
				k.wrong = append(k.wrong, fmt.Sprintf("cgroup %d, which is no container's, is in scope as %s", cgroup, rec.ID))
			case !known[cgroup] && !owner.kind.random && owner.kind.namespace == "jobs": // so far the lie is all that was said, and nothing speaks against it
				continue
			case rec.ID != owner.id() || rec.User != owner.kind.user:
				k.wrong = append(k.wrong, fmt.Sprintf("cgroup %d of %s is in scope as %s of user %q", cgroup, owner.id(), rec.ID, rec.User))
			case meant[id] != "" && meant[id] != rec.ID:
				k.wrong = append(k.wrong, fmt.Sprintf("scope %d meant %s and means %s", id, meant[id], rec.ID))
			}
			meant[id] = rec.ID
		}
		if len(k.wrong) > 0 {
			return append(k.wrong, fmt.Sprintf("at %s", describe(e))), nil
		}
	}
	for _, rec := range r.List() { // the agent looks whether cgroups are still there that no list and no scan can tell about
		if b := w.owner[rec.CgroupID]; b != nil && b.cgroup != rec.CgroupID && rec.State != Gone && slices.Contains(b.kind.by, "hook") && !slices.Contains(b.kind.by, "cgroup") {
			r.Apply(container.Event{Type: container.Gone, Source: "cgroup", Inferred: true, At: now, Container: container.Container{CgroupID: rec.CgroupID}})
		}
	}
	live := map[string]Record{} // by id and user
	for _, rec := range r.List() {
		if rec.State == Gone || rec.State == Excluded && rec.NoCgroup == "" {
			continue
		}
		key := rec.ID + " of " + rec.User
		if _, ok := live[key]; ok {
			wrong = append(wrong, "two records of "+key)
		}
		live[key] = rec
		table = append(table, fmt.Sprintf("%s %s %s %q %q %q cgroup %d %s pid %d %v %v %v", rec.ID, rec.Runtime, rec.Namespace, rec.User, rec.Name, rec.Image,
			rec.CgroupID, rec.NoCgroup, rec.PID, rec.State, rec.Labels, slices.Sorted(maps.Keys(rec.Sources))))
	}
	sort.Strings(table)
	for cgroup := range k.barred {
		if !slices.ContainsFunc(r.List(), func(rec Record) bool { return rec.CgroupID == cgroup && rec.State == Excluded }) {
			wrong = append(wrong, fmt.Sprintf("cgroup %d is kept out of scope for nobody", cgroup))
		}
	}
	for _, b := range w.boxes {
		key := b.id() + " of " + b.kind.user
		rec, ok := live[key]
		delete(live, key)
		var knowsCgroup, knowsName, knows bool
		for _, name := range b.kind.by {
			t := tellerNamed(name)
			if name == h.hung || !t.lists {
				continue
			}
			knows = true
			knowsCgroup = knowsCgroup || t.cgroup
			knowsName = knowsName || t.complete && !(name == "containerd" && b.kind.runtime == "docker")
		}
		switch {
		case !knows: // who knew of it hangs
		case b.cgroup == 0 && ok && b.kind.runtime == "docker" && h.hung == "docker" && rec.State == Waiting: // it said so, and then no more
		case b.cgroup == 0 && ok:
			wrong = append(wrong, fmt.Sprintf("%s has ended and is %v", key, rec.State))
		case b.cgroup != 0 && !ok:
			wrong = append(wrong, fmt.Sprintf("%s runs and is not known", key))
		case b.cgroup == 0:
		case b.kind.none:
			if rec.State != Excluded || rec.NoCgroup == "" {
				wrong = append(wrong, fmt.Sprintf("%s has no cgroup and is %v", key, rec.State))
			}
		case knowsCgroup && (rec.CgroupID != b.cgroup || k.scopes[b.cgroup] == 0 || rec.ScopeID != k.scopes[b.cgroup]):
			wrong = append(wrong, fmt.Sprintf("%s runs in cgroup %d, is %v in cgroup %d, scopes %v", key, b.cgroup, rec.State, rec.CgroupID, k.scopes))
		case knowsName && (rec.Name != "name-"+b.id() || rec.State == Provisional):
			wrong = append(wrong, fmt.Sprintf("%s is called %q and is %v", key, rec.Name, rec.State))
		}
	}
	for key, rec := range live {
		if h.hung == "" {
			wrong = append(wrong, fmt.Sprintf("%s is %v in cgroup %d, and nobody's", key, rec.State, rec.CgroupID))
		}
	}
	for cgroup := range k.scopes {
		if b := w.owner[cgroup]; b.cgroup != cgroup && !(h.hung != "" && slices.Contains(b.kind.by, h.hung)) {
			wrong = append(wrong, fmt.Sprintf("cgroup %d is in scope, and its container has ended", cgroup))
		}
	}
	// All ends: nothing is left.
	for cgroup := range w.owner {
		r.Apply(container.Event{Type: container.Gone, Source: "cgroup", Inferred: true, At: now.Add(time.Hour), Container: container.Container{CgroupID: cgroup}})
	}
	for i := range tellers {
		r.Apply(container.Event{Type: container.Syncing, Source: tellers[i].name})
		r.Apply(container.Event{Type: container.Synced, Source: tellers[i].name})
	}
	for range keptWindows + 1 {
		r.WindowEnd()
	}
	if n := len(r.records) + len(r.byCgroup) + len(r.byID) + len(r.byScope) + len(k.scopes); n > 0 {
		wrong = append(wrong, fmt.Sprintf("left at the end: %d records, %d cgroups, %d ids, %d scopes, %v in the kernel", len(r.records), len(r.byCgroup), len(r.byID), len(r.byScope), k.scopes))
	}
	return append(wrong, k.wrong...), table
}

// check plays a history in several orders and returns what is wrong with it, and the order in which that was seen.
func (h *history) check(seed uint64) (wrong []string, order []container.Event) {
	w := h.tell()
	var first []string
	for i := range uint64(3) {
		events := w.order(seed*3 + i)
		bad, table := h.play(w, events)
		if len(bad) > 0 {
			return bad, events
		}
		if i == 0 {
			first, order = table, events
		} else if h.hung == "" && !slices.Equal(first, table) {
			return []string{"another order ended with another table:", strings.Join(first, "\n"), "instead of", strings.Join(table, "\n"), "as in", list(order)}, events
		}
	}
	return nil, nil
}

func list(events []container.Event) string {
	var lines []string
	for _, e := range events {
		if e.Container.ID != "" || e.Type == container.Synced {
			lines = append(lines, describe(e))
		}
	}
	return strings.Join(lines, "\n")
}

func describe(e container.Event) string {
	c, made := &e.Container, "?"
	if !c.TaskCreatedAt.IsZero() {
		made = c.TaskCreatedAt.Sub(epoch).String()
	}
	if c.ID == "" {
		return fmt.Sprintf("%-11s %v at %s", e.Source, e.Type, e.At.Sub(epoch).Round(time.Millisecond))
	}
	return fmt.Sprintf("%-11s %-7v %s user %q ns %q cgroup %d %s pid %d complete %t made %s at %s", e.Source, e.Type, strings.TrimLeft(c.ID, "0"), c.User, c.Namespace,
		c.CgroupID, c.CgroupPath, c.PID, e.Complete, made, e.At.Sub(epoch).Round(time.Millisecond))
}

// Whatever the sources lose, repeat and pretend, and in whatever order they are heard: one container is one record, what runs is in
// scope and nothing else is, no scope is ever another container's, and nothing is left at the end.
func TestModel(t *testing.T) {
	for seed := *modelFirst; seed < *modelFirst+*modelSeeds; seed++ {
		tryModel(t, seed)
	}
}

func FuzzModel(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed)
	}
	f.Fuzz(tryModel)
}

// tryModel plays the history of a seed. If it fails, it leaves out what is not needed for that, and shows the rest.
func tryModel(t *testing.T, seed uint64) {
	h := newHistory(rand.New(rand.NewPCG(seed, 11)))
	wrong, order := h.check(seed)
	if wrong == nil {
		return
	}
	for i := 0; i < len(h.steps); {
		less := h
		less.steps = slices.Delete(slices.Clone(h.steps), i, i+1)
		needed := true
		for try := range uint64(20) {
			if bad, o := less.check(seed + try*1000003); bad != nil {
				h, wrong, order, needed = less, bad, o, false
				break
			}
		}
		if i++; !needed {
			i = 0
		}
	}
	t.Fatalf("seed %d:\n%s\n\ncontainers %s, steps %v, %q hangs after %d, forgetful %t; the words were\n%s", seed, strings.Join(wrong, "\n"),
		kindsOf(h.boxes), h.steps, h.hung, h.hungAfter, h.forgetful, list(order))
}

func kindsOf(kinds []*kind) (out []string) {
	for i, k := range kinds {
		out = append(out, fmt.Sprintf("%d: %s %s user %q %s", i, k.runtime, k.namespace, k.user, k.path))
	}
	return out
}
