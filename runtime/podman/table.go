package podman

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"regexp"
	"time"

	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/internal/follow"
)

// labelUnit is podman-systemd.unit(5)'s label of a quadlet's container: its service.
const labelUnit = "PODMAN_SYSTEMD_UNIT"

// podCgroup is where the containers of a pod are, with either cgroup manager.
var podCgroup = regexp.MustCompile(`^/libpod_parent/([0-9a-f]{64})/|/[a-z]+-libpod_pod_([0-9a-f]{64})\.slice/`)

// podOf is the id of the pod that a cgroup says its container is in; empty if none.
func podOf(path string) string {
	if m := podCgroup.FindStringSubmatch(path); m != nil {
		return m[1] + m[2]
	}
	return ""
}

// event is one thing that is received: what a service says, a container that somebody found, or that it is time to look.
type event struct {
	said logEvent
	hint conmon
	look bool
}

// found is a container that runs, with what the kernel and Podman's files say.
type found struct {
	conmon conmon
	at     place
	spec   spec
	d      description
}

// listed is all that runs.
type listed struct {
	found []found
	said  map[string]description // by the service; nil: there is none
}

// entry is what is known about one container that runs.
type entry struct {
	found
	said  bool // a service described it
	round uint64
}

// table is what a client knows. It outlives connections; the goroutine in run owns it.
type table struct {
	*client
	entries map[string]*entry
	said    known           // by the service, of containers that it told of since we know it
	looking map[string]bool // being looked at
	api     *api            // of the connection; nil: there is no service
}

var _ follow.Engine[event, listed] = (*table)(nil)

func newTable(c *client) *table {
	return &table{client: c, entries: map[string]*entry{}, said: newKnown(), looking: map[string]bool{}}
}

// Disconnected implements [follow.Engine].
func (t *table) Disconnected() { clear(t.looking) }

// Event implements [follow.Engine].
func (t *table) Event(e event) {
	switch {
	case e.look:
		t.lookAround()
	case e.hint.id != "":
		if known := t.entries[e.hint.id]; known == nil || known.conmon.pid != e.hint.pid || known.conmon.start != e.hint.start {
			t.look(e.hint.id)
		}
	default:
		t.serviceSaid(e.said)
	}
}

// serviceSaid takes an event of the service. It gives names; where a container is, and whether it still runs, the kernel says.
func (t *table) serviceSaid(e logEvent) {
	if e.typ != "container" || !validID(e.id) {
		t.complain(fmt.Errorf("an event of type %.20q about the id %.80q", e.typ, e.id))
		return
	}
	switch e.status {
	case "create", "init", "start", "rename", "restart", "remove":
		t.said.take(e)
	}
	switch e.status {
	case "start":
		if known := t.entries[e.id]; known != nil && t.runs(known) {
			t.take(known.found)
		} else {
			t.look(e.id)
		}
		t.question(e.id)
	case "rename":
		if known := t.entries[e.id]; known != nil {
			known.d.name = cmp.Or(e.name, known.d.name)
			t.tell(known)
		}
	case "died", "remove":
		if known := t.entries[e.id]; known != nil && !t.runs(known) {
			t.end(e.id, known)
		}
	}
}

// runs reports whether a container's first process is the one that was found: the event may be about an earlier run.
func (t *table) runs(e *entry) bool {
	_, start, _, err := t.procs.stat(e.at.pid)
	return err == nil && start == e.at.start
}

// end tells the end of a container's run.
func (t *table) end(id string, e *entry) {
	delete(t.entries, id)
	t.loop.Say(container.Event{Type: container.Gone, Container: container.Container{ID: id, Runtime: "podman", User: t.user(), PID: e.at.pid,
		CgroupPath: e.at.path, CgroupID: e.at.cgroupID}})
}

func (t *table) user() string { return user(t.uid) }

// question asks the service about a container that has started: events lose labels that are called as their own fields, and
// do not name the pod.
func (t *table) question(id string) {
	a := t.api
	if a == nil {
		return
	}
	t.loop.Ask(func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, t.times.call)
		defer cancel()
		said, err := a.list(ctx, id)
		if err != nil && !errors.Is(err, context.Canceled) {
			t.n.describeErrors.Add(1)
			t.log.Debug("a container is described by its event alone for now", "container", id, "err", err)
		}
		return func() {
			d, ok := said[id]
			if !ok {
				return
			}
			t.describe(id, d)
			if e := t.entries[id]; e != nil {
				t.take(e.found)
			}
		}
	})
}

// describe takes what the service says about a container.
func (t *table) describe(id string, d description) {
	known, ok := t.said.containers[id]
	if !ok && len(t.said.containers) >= maxKnown {
		return
	}
	known.overlay(d)
	t.said.containers[id] = known
}

// look finds where a container runs and what its files say about it.
func (t *table) look(id string) {
	if t.looking[id] {
		return
	}
	t.looking[id] = true
	t.loop.Ask(func(ctx context.Context) func() {
		f, ok := within(ctx, t.times.process+readTimeout, func(ctx context.Context) (found, bool) { return t.find(ctx, id) })
		return func() {
			delete(t.looking, id)
			if ok {
				t.take(f)
			}
		}
	})
}

// lookAround looks for containers that nobody has told of, and for the end of those that nobody told.
func (t *table) lookAround() {
	t.loop.Ask(func(context.Context) func() {
		all, err := t.procs.conmons()
		return func() {
			if err != nil {
				t.log.Debug("containers are not looked for", "err", err)
				return
			}
			running := map[string]bool{}
			for _, m := range all {
				if m.uid != t.uid {
					continue
				}
				running[m.id] = true
				if e := t.entries[m.id]; e == nil || e.conmon.pid != m.pid || e.conmon.start != m.start {
					t.look(m.id)
				}
			}
			for id, e := range t.entries {
				if !running[id] {
					t.end(id, e)
				}
			}
		}
	})
}

// find looks for one container. It runs beside the loop and changes nothing.
func (t *table) find(ctx context.Context, id string) (found, bool) {
	for deadline := time.Now().Add(t.times.process); ; {
		all, err := t.procs.conmons()
		if err != nil {
			t.log.Debug("a container is not found", "container", id, "err", err)
			return found{}, false
		}
		for _, m := range all {
			if m.uid != t.uid || m.id != id {
				continue
			}
			// One of an earlier run may still be cleaning up: it has no child that counts.
			if at, err := t.procs.place(&m); err == nil {
				return t.read(ctx, m, at), true
			}
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			t.n.unlocated.Add(1) // mostly it was faster than we
			return found{}, false
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// read reads what Podman's files say about a container that runs.
func (t *table) read(ctx context.Context, m conmon, at place) found {
	f := found{conmon: m, at: at}
	var errs []error
	note := func(err error) {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	var err error
	f.spec, err = t.notes.spec(&m)
	note(err)
	f.d.name = m.name
	stored, err := t.notes.stored(&m)
	note(err)
	f.d.overlay(stored)
	pod := podOf(at.path)
	logged, ok, err := t.notes.logged(m.tmpDir, m.id)
	note(err)
	if !ok {
		logged, ok, err = t.notes.journal(ctx, m.id, pod)
		note(err)
	}
	if ok {
		logged.name = cmp.Or(stored.name, logged.name) // a rename changes the storage's
		logged.image = cmp.Or(stored.image, logged.image)
		f.d.overlay(logged)
	}
	f.d.pod = cmp.Or(f.d.pod, pod)
	// libpod names a pod's pause container so, and its own annotations say nothing (libpod/runtime_pod_infra_linux.go).
	f.d.infra = validID(f.d.pod) && f.d.name == f.d.pod[:12]+"-infra"
	if err := errors.Join(errs...); err != nil {
		t.n.malformed.Add(1)
		t.log.Debug("part of what Podman's files say about a container is not understood", "container", m.id, "err", err)
	}
	return f
}

// list looks at all containers that run. It runs beside the loop and changes nothing.
func (t *table) list(ctx context.Context) (listed, error) {
	type result struct {
		l   listed
		err error
	}
	r, ok := within(ctx, t.times.list+readTimeout, func(ctx context.Context) (result, bool) {
		all, err := t.procs.conmons()
		if err != nil {
			return result{err: err}, true
		}
		var l listed
		for _, m := range all {
			if m.uid != t.uid || ctx.Err() != nil {
				continue
			}
			if at, err := t.procs.place(&m); err == nil {
				l.found = append(l.found, t.read(ctx, m, at))
			}
		}
		return result{l, ctx.Err()}, true
	})
	if !ok {
		return listed{}, fmt.Errorf("read the files of user %d's Podman: %w", t.uid, context.DeadlineExceeded)
	}
	return r.l, r.err
}

// within runs f, and leaves it alone when it takes too long: a user's files may be in a file system that hangs, which must not
// hold up the loop or the end of the agent.
func within[T any](ctx context.Context, limit time.Duration, f func(context.Context) (T, bool)) (T, bool) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	type result struct {
		v  T
		ok bool
	}
	done := make(chan result, 1)
	go func() {
		v, ok := f(ctx)
		done <- result{v, ok}
	}()
	select {
	case r := <-done:
		return r.v, r.ok
	case <-ctx.Done():
	}
	select { // it may be about to end by itself
	case r := <-done:
		return r.v, r.ok
	case <-time.After(time.Second):
		var none T
		return none, false
	}
}

// take takes a container that was found, and tells it.
func (t *table) take(f found) {
	e := &entry{found: f}
	if before := t.entries[f.conmon.id]; before != nil && e.d.labels == nil {
		e.d.labels = before.d.labels // they never change
	}
	if d, ok := t.said.containers[f.conmon.id]; ok { // the service knows better
		e.d.overlay(d)
		e.said = true
	}
	t.entries[f.conmon.id] = e
	t.tell(e)
}

// Compare implements [follow.Engine].
func (t *table) Compare(l listed) int {
	for _, f := range l.found {
		if d, ok := l.said[f.conmon.id]; ok {
			t.describe(f.conmon.id, d)
		}
		t.take(f)
	}
	for id := range t.said.containers { // what was made and has not started is told of again when it starts
		if t.entries[id] == nil {
			delete(t.said.containers, id)
		}
	}
	maps.DeleteFunc(t.entries, func(id string, e *entry) bool {
		gone := e.round != t.loop.Round() && !t.runs(e)
		if gone {
			t.loop.Say(container.Event{Type: container.Gone, Container: container.Container{ID: id, Runtime: "podman", User: t.user(), PID: e.at.pid,
				CgroupPath: e.at.path, CgroupID: e.at.cgroupID}})
		}
		return gone
	})
	for _, e := range t.entries {
		if e.round != t.loop.Round() { // it was between two processes when the list was made
			t.tell(e)
		}
	}
	return len(t.entries)
}

// tell tells a container with all that is known.
func (t *table) tell(e *entry) {
	e.round = t.loop.Round()
	m, at, d := &e.conmon, &e.at, &e.d
	c := container.Container{
		ID: m.id, Runtime: "podman", Name: d.name, Image: d.image, Labels: d.labels, Annotations: e.spec.annotations, Env: e.spec.env,
		Sandbox: d.infra, PID: at.pid, CgroupPath: at.path, CgroupID: at.cgroupID, User: m.user(), SystemdUnit: d.labels[labelUnit],
		CreatedAt: d.created, TaskCreatedAt: t.procs.startedAt(at.start), StartedAt: d.started,
	}
	if d.pod != "" {
		c.Pod = container.Pod{Name: d.podName, UID: d.pod}
	}
	if c.StartedAt.Before(c.TaskCreatedAt) {
		c.StartedAt = time.Time{} // that was an earlier run
	}
	if at.cgroupID == 0 {
		c.NoCgroup = t.noCgroup(e)
	}
	// While a service is there, what the files say is not all.
	t.loop.Say(container.Event{Type: container.Upsert, Complete: t.api == nil || e.said, Container: c})
}

// noCgroup says why a container has no cgroup of its own.
func (t *table) noCgroup(e *entry) string {
	why := "made with --cgroups=disabled"
	if e.spec.cgroupsPath != "" {
		why = "its engine may not make cgroups: give it a session or a service of systemd with a delegated cgroup v2"
	}
	return fmt.Sprintf("%s; its processes are in %s with others", why, e.at.shared)
}
