package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/internal/follow"
)

// asking is how many records are read at a time.
const asking = 8

// key names a container in one containerd.
type key struct{ namespace, id string }

// run is one task: one life of a container.
type run struct {
	pid                  int
	cgroupPath           string
	cgroupID             uint64
	createdAt, startedAt time.Time
	described            bool   // it was told with its description
	round                uint64 // the list since which it was last told of by an event, or which had it
}

// entry is what is known about one container record.
type entry struct {
	d         description
	described bool
	asked     bool // a question is on its way
	again     bool // and its answer will be out of date
	run       *run // nil: no process
	ended     *run // the last run, as long as it was not told with its description
	deleted   bool // the record is gone; the entry only waits for an answer
	round     uint64
	size      int // of d.c, about
}

// ending is a run whose end was told; a list that was made before may still have it.
type ending struct {
	pid int
	at  time.Time
}

// table is what a Client knows. It outlives connections; the goroutine in Run owns it.
type table struct {
	*Client
	entries map[key]*entry
	room    container.Room
	ended   map[key]ending
	pods    *pods
	api     *api // of the connection
}

var _ follow.Engine[*types.Envelope, listed] = (*table)(nil)

func newTable(c *Client) *table {
	return &table{Client: c, entries: map[key]*entry{}, ended: map[key]ending{}, pods: &pods{known: map[key]pod{}}}
}

// listed is all that containerd has.
type listed struct {
	tasks   map[key]*task.Process
	records map[key]*containers.Container
	bytes   int // of records
}

// Disconnected implements [follow.Engine].
func (t *table) Disconnected() {
	for _, e := range t.entries {
		e.asked, e.again = false, false
	}
}

func (t *table) say(typ container.EventType, c container.Container, complete bool) {
	t.loop.Say(container.Event{Type: typ, Complete: complete, Container: c})
}

// entry returns what is known about a container, and notes that it was heard of. It is nil where it is not known, and there is no
// room for more.
func (t *table) entry(k key) *entry {
	e := t.entries[k]
	if e == nil {
		if len(t.entries) >= container.MaxContainers {
			t.n.tooMany.Add(1)
			return nil
		}
		runtime := "containerd"
		if k.namespace == namespaceDocker || k.namespace == namespaceDockerPlug {
			runtime = "docker"
		}
		e = &entry{d: description{c: container.Container{ID: k.id, Namespace: k.namespace, Runtime: runtime}}}
		t.entries[k] = e
	}
	e.deleted = false
	e.round = t.loop.Round()
	return e
}

// question has the record of a container read.
func (t *table) question(k key, e *entry) {
	if e.asked {
		e.again = true
		return
	}
	a := t.api
	e.asked = t.loop.Ask(func(ctx context.Context) func() {
		answer := t.ask(ctx, a, t.pods, k)
		return func() { t.answered(answer) }
	})
}

// upsert tells a run of a container with all that is known.
func (t *table) upsert(e *entry, r *run) {
	c := e.d.c
	c.PID, c.CgroupPath, c.CgroupID, c.TaskCreatedAt, c.StartedAt = r.pid, r.cgroupPath, r.cgroupID, r.createdAt, r.startedAt
	r.described = e.described
	// Docker keeps the names of its containers to itself: who asks Docker says the rest.
	t.say(container.Upsert, c, e.described && c.Runtime != "docker")
}

// begin takes a run that was told of, or listed. It returns nil when another run of the container is alive: then this one is
// older. Events may arrive after a list that knows better.
func (t *table) begin(e *entry, pid int) *run {
	if e.run != nil && e.run.pid != pid {
		if t.alive(e) {
			return nil
		}
		t.end(key{e.d.c.Namespace, e.d.c.ID}, e.run.pid)
	}
	if e.run == nil {
		e.run = &run{pid: pid}
		e.ended = nil
	}
	e.run.round = t.loop.Round()
	if e.run.cgroupID == 0 {
		t.locate(e, e.run)
	}
	return e.run
}

// alive reports whether the first process of the run that is known is still in the cgroup that is known.
func (t *table) alive(e *entry) bool {
	path, err := t.h.OfContainer(e.run.pid, e.d.c.ID, e.d.cgroupsPath)
	if err != nil {
		return false
	}
	id, err := t.h.ID(path)
	return err == nil && id == e.run.cgroupID
}

// locate finds the cgroup of a run from its first process, which is in it before it runs the user's code.
func (t *table) locate(e *entry, r *run) {
	path, err := t.h.OfContainer(r.pid, e.d.c.ID, e.d.cgroupsPath)
	if err != nil { // the process has ended already; its cgroup may be there still
		var ok bool
		if path, ok = cgroupfs.SpecPath(e.d.cgroupsPath); !ok {
			t.n.unlocated.Add(1)
			return
		}
	}
	id, err := t.h.ID(path)
	if err != nil {
		t.n.unlocated.Add(1)
		return
	}
	r.cgroupPath, r.cgroupID = path, id
}

func (t *table) forget(k key, e *entry) {
	t.room.Leave(e.size)
	delete(t.entries, k)
}

// end takes the end of a container's first process. pid 0 is whichever runs.
func (t *table) end(k key, pid int) {
	e := t.entries[k]
	if pid != 0 && len(t.ended) < 2*container.MaxContainers {
		t.ended[k] = ending{pid, time.Now()}
	}
	if e == nil || e.run == nil || pid != 0 && e.run.pid != pid {
		return
	}
	r := e.run
	e.run = nil
	if !r.described {
		e.ended = r
	}
	t.say(container.Gone, container.Container{ID: k.id, Namespace: k.namespace, Runtime: e.d.c.Runtime, PID: r.pid, CgroupPath: r.cgroupPath, CgroupID: r.cgroupID}, false)
}

// Event implements [follow.Engine].
func (t *table) Event(env *types.Envelope) {
	message := func(m proto.Message) bool {
		if err := proto.Unmarshal(env.GetEvent().GetValue(), m); err != nil {
			t.complain(fmt.Errorf("read an event of topic %q in namespace %q: %w", env.GetTopic(), env.GetNamespace(), err))
			return false
		}
		return true
	}
	k := func(id string) key { return key{env.GetNamespace(), id} }
	name := env.GetEvent().GetTypeUrl()
	name = name[strings.LastIndexByte(name, '/')+1:]
	switch name {
	case "containerd.events.ContainerCreate":
		if m := new(events.ContainerCreate); message(m) {
			if e := t.entry(k(m.GetID())); e != nil {
				e.d.c.Image = m.GetImage()
				e.size = t.room.Take(&e.d.c, e.size)
				t.question(k(m.GetID()), e)
			}
		}
	case "containerd.events.ContainerUpdate":
		if m := new(events.ContainerUpdate); message(m) {
			if e := t.entry(k(m.GetID())); e != nil {
				t.question(k(m.GetID()), e)
			}
		}
	case "containerd.events.ContainerDelete":
		if m := new(events.ContainerDelete); message(m) {
			t.end(k(m.GetID()), 0)
			t.pods.forget(k(m.GetID()))
			if e := t.entries[k(m.GetID())]; e != nil && e.asked {
				e.deleted = true
			} else if e != nil {
				t.forget(k(m.GetID()), e)
			}
		}
	case "containerd.events.TaskCreate":
		if m := new(events.TaskCreate); message(m) {
			t.task(k(m.GetContainerID()), int(m.GetPid()), func(r *run) { r.createdAt = when(env.GetTimestamp()) })
		}
	case "containerd.events.TaskStart":
		if m := new(events.TaskStart); message(m) {
			t.task(k(m.GetContainerID()), int(m.GetPid()), func(r *run) { r.startedAt = when(env.GetTimestamp()) })
		}
	case "containerd.events.TaskExit":
		// Processes of exec end here too.
		if m := new(events.TaskExit); message(m) && (m.GetID() == "" || m.GetID() == m.GetContainerID()) {
			t.end(k(m.GetContainerID()), int(m.GetPid()))
		}
	case "containerd.events.TaskDelete":
		if m := new(events.TaskDelete); message(m) && (m.GetID() == "" || m.GetID() == m.GetContainerID()) {
			t.end(k(m.GetContainerID()), int(m.GetPid()))
		}
	}
}

// task takes what an event says about a run, and tells it before anything is asked about it.
func (t *table) task(k key, pid int, note func(*run)) {
	if t.hasEnded(k, pid) {
		return // it was listed, and has ended, before its event came
	}
	e := t.entry(k)
	if e == nil {
		return
	}
	r := t.begin(e, pid)
	if r == nil {
		return
	}
	note(r)
	t.upsert(e, r)
	if !e.described {
		t.question(k, e)
	}
}

func when(ts *timestamppb.Timestamp) time.Time {
	if ts == nil {
		return time.Time{}
	}
	return ts.AsTime()
}

// answered takes a record that was read.
func (t *table) answered(a described) {
	e := t.entries[a.k]
	if e == nil {
		return
	}
	e.asked = false
	again := e.again
	e.again = false
	switch {
	case a.err == nil:
		t.describe(e, a.d)
	case status.Code(a.err) == codes.NotFound: // it has ended; the events say so
	case errors.Is(a.err, context.Canceled):
	default:
		t.n.describeErrors.Add(1)
		t.log.Debug("a container is not described yet", "container", a.k.id, "err", a.err)
	}
	switch {
	case e.deleted:
		t.forget(a.k, e)
	case again:
		t.question(a.k, e)
	}
}

// describe takes what a record says, and tells it.
func (t *table) describe(e *entry, d description) {
	if d.c.Pod.Labels == nil && e.d.c.Pod.Labels != nil {
		d.of(pod{labels: e.d.c.Pod.Labels, annotations: e.d.c.Pod.Annotations})
	}
	size := t.room.Take(&d.c, e.size)
	e.d, e.described, e.size = d, true, size
	switch {
	case e.run != nil:
		if e.run.cgroupID == 0 {
			t.locate(e, e.run)
		}
		t.upsert(e, e.run)
	case e.ended != nil: // it was faster than our question; its samples still want a name
		t.n.late.Add(1)
		t.upsert(e, e.ended)
		e.ended = nil
	}
}

// list reads all that containerd has. It runs beside the loop and changes nothing.
func (t *table) list(ctx context.Context, a *api) (listed, error) {
	l := listed{tasks: map[key]*task.Process{}, records: map[key]*containers.Container{}}
	call, cancel := context.WithTimeout(ctx, t.times.call)
	defer cancel()
	all, err := a.namespaces.List(call, &namespaces.ListNamespacesRequest{})
	if err != nil {
		return listed{}, fmt.Errorf("list namespaces: %w", err)
	}
	if n := len(all.GetNamespaces()); n > maxNamespaces {
		return listed{}, fmt.Errorf("list namespaces: %w: %d of them", errTooMuch, n)
	}
	for _, ns := range all.GetNamespaces() {
		if err := t.listNamespace(ctx, a, ns.GetName(), &l); err != nil {
			return listed{}, fmt.Errorf("namespace %s: %w", ns.GetName(), err)
		}
	}
	return l, nil
}

func (t *table) listNamespace(ctx context.Context, a *api, namespace string, l *listed) error {
	ctx, cancel := context.WithTimeout(inNamespace(ctx, namespace), t.times.list)
	defer cancel()
	// Tasks first: the record of each is there as long as the task is.
	running, err := a.tasks.List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return fmt.Errorf("list tasks: %w", err)
	}
	// One record a message: all of them in one might be more than a message may hold.
	records, err := a.containers.ListStream(ctx, &containers.ListContainersRequest{})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	for {
		m, err := records.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("list containers: %w", err)
		}
		if l.bytes += proto.Size(m); l.bytes > maxListed || len(l.records) >= container.MaxContainers {
			return fmt.Errorf("list containers: %w: %d of %d bytes", errTooMuch, len(l.records), l.bytes)
		}
		l.records[key{namespace, m.GetContainer().GetID()}] = m.GetContainer()
	}
	for _, p := range running.GetTasks() {
		switch p.GetStatus() {
		case task.Status_CREATED, task.Status_RUNNING, task.Status_PAUSED, task.Status_PAUSING:
			id := p.GetContainerID()
			if id == "" {
				id = p.GetID()
			}
			if p.GetPid() != 0 { // 0: being created; its event follows
				l.tasks[key{namespace, id}] = p
			}
		}
	}
	return nil
}

// Compare implements [follow.Engine].
func (t *table) Compare(l listed) int {
	for k, r := range l.records {
		if r.GetLabels()[labelKind] != "sandbox" {
			continue
		}
		of, err := describePod(r)
		t.complain(err)
		t.pods.put(k, of)
	}
	for k, r := range l.records {
		e := t.entry(k)
		if e == nil {
			continue
		}
		d := e.d
		if !e.described || !d.updatedAt.Equal(r.GetUpdatedAt().AsTime()) || d.updatedAt.IsZero() {
			var err error
			d, err = describe(k.namespace, r)
			t.complain(err)
		}
		if of, ok := t.pods.get(key{k.namespace, d.sandbox}); ok && !d.c.Sandbox {
			d.of(of)
		}
		e.d.cgroupsPath = d.cgroupsPath // its process may have moved below it
		t.found(k, e, l.tasks[k])
		t.describe(e, d)
	}
	for k, p := range l.tasks {
		if l.records[k] == nil { // its record was deleted between the two lists
			e := t.entry(k)
			if e == nil {
				continue
			}
			if t.found(k, e, p); e.run != nil {
				t.upsert(e, e.run)
			}
		}
	}
	for k, e := range t.entries {
		if e.round != t.loop.Round() {
			if e.run != nil {
				t.end(k, e.run.pid)
			}
			t.forget(k, e)
		}
	}
	maps.DeleteFunc(t.ended, func(_ key, end ending) bool { return time.Since(end.at) > 2*t.times.list })
	t.pods.retain(l.records)
	return len(l.tasks)
}

// found brings an entry in line with its listed task; nil means that it has none.
func (t *table) found(k key, e *entry, p *task.Process) {
	r := e.run
	if p == nil {
		if r != nil && r.round != t.loop.Round() { // its end was not told; a run that was told of since the list began is younger
			t.end(k, r.pid)
		}
		return
	}
	pid := int(p.GetPid())
	if t.hasEnded(k, pid) {
		return
	}
	if r != nil && r.pid == pid && r.cgroupID != 0 {
		// The same pid may by chance be the next run's: then the cgroup at that path is another one.
		if id, err := t.h.ID(r.cgroupPath); err == nil && id != r.cgroupID {
			t.end(k, pid)
			delete(t.ended, k)
		}
	}
	t.begin(e, pid)
}

func (t *table) hasEnded(k key, pid int) bool {
	end, ok := t.ended[k]
	return ok && end.pid == pid
}

// retain forgets pods whose sandbox is gone.
func (p *pods) retain(records map[key]*containers.Container) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k := range p.known {
		if records[k] == nil {
			p.drop(k)
		}
	}
}
