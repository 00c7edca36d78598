package crio

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/internal/follow"
)

// entry is what is known about one container. CRI never starts a container twice: it has one run, under one id.
type entry struct {
	c     container.Container
	as    cri.ContainerState // as what its status was last read
	known bool               // its status was read, or could not be: there is nothing more to say about it for now
	hash  bool               // its image was asked for by its hash, as the kubelet does
	asked bool               // a question is on its way
	told  bool
	over  bool // it has ended
	ended bool // and that was told, or need not be
}

// hint is what somebody else found.
type hint struct {
	c     container.Container
	until time.Time // until when it is worth a list
}

// table is what a Client knows. It outlives connections; the goroutine in Run owns it.
type table struct {
	*Client
	entries   map[string]*entry
	sandboxes map[string]bool // those that were told
	hinted    map[string]hint // what somebody else found and CRI-O has not listed, by id
	hurry     time.Duration   // how long after a list that did not have it to list again
	began     time.Time       // when the last list began
}

var _ follow.Engine[hint, listed] = (*table)(nil)

func newTable(c *Client) *table {
	return &table{Client: c, entries: map[string]*entry{}, sandboxes: map[string]bool{}, hinted: map[string]hint{}}
}

// listed is all that CRI-O has.
type listed struct {
	began      time.Time
	containers []*cri.Container
	sandboxes  []*cri.PodSandbox
}

// Disconnected implements [follow.Engine].
func (t *table) Disconnected() {
	for _, e := range t.entries {
		e.asked = false
	}
}

// Event implements [follow.Engine]: somebody else has found a container, and a list may tell more about it.
func (t *table) Event(h hint) {
	e, sandbox := t.entries[h.c.ID], t.sandboxes[h.c.ID]
	if sandbox || e != nil && (e.told || e.ended) || len(t.hinted) >= container.MaxContainers || time.Now().After(h.until) {
		return
	}
	t.hinted[h.c.ID] = h
	t.hurry = t.times.hint
	t.soon()
}

// soon has everything listed once more, though not too often.
func (t *table) soon() { t.loop.Soon(max(t.hurry, time.Until(t.began.Add(t.times.listGap)))) }

// list reads all that CRI-O has. It runs beside the loop and changes nothing.
func (t *table) list(ctx context.Context) (listed, error) {
	l := listed{began: time.Now()}
	ctx, cancel := context.WithTimeout(ctx, t.times.list)
	defer cancel()
	// Containers first: the pod of each is there as long as the container is.
	containers, err := t.api.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return l, fmt.Errorf("list containers: %w", err)
	}
	sandboxes, err := t.api.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return l, fmt.Errorf("list pods: %w", err)
	}
	l.containers, l.sandboxes = containers.GetContainers(), sandboxes.GetItems()
	return l, nil
}

func (t *table) say(typ container.EventType, c container.Container, complete bool) {
	t.loop.Say(container.Event{Type: typ, Complete: complete, Container: c})
}

// Compare implements [follow.Engine].
func (t *table) Compare(l listed) int {
	t.began = l.began
	pods, sandboxes := map[string]*cri.PodSandbox{}, map[string]bool{}
	for _, p := range l.sandboxes {
		switch {
		case !validID(p.GetId()):
			t.complain(fmt.Errorf("a pod of the id %.80q", p.GetId()))
			continue
		case len(pods) == container.MaxContainers:
			t.n.tooMany.Add(1)
			continue
		}
		pods[p.GetId()] = p
		delete(t.hinted, p.GetId())
		if p.GetState() == cri.PodSandboxState_SANDBOX_READY {
			sandboxes[p.GetId()] = true
			t.say(container.Upsert, describeSandbox(p), true)
		}
	}
	t.sandboxes = sandboxes
	seen := map[string]bool{}
	for _, c := range l.containers {
		id := c.GetId()
		switch {
		case !validID(id) || seen[id]:
			t.complain(fmt.Errorf("a container of the id %.80q, twice: %t", id, seen[id]))
			continue
		case len(seen) == container.MaxContainers:
			t.n.tooMany.Add(1)
			continue
		}
		seen[id] = true
		e := t.entries[id]
		if e == nil {
			e = &entry{c: describe(c, pods[c.GetPodSandboxId()]), hash: isHash(c.GetImage().GetImage())}
			t.entries[id] = e
		}
		t.found(e, c.GetState())
		delete(t.hinted, id)
	}
	maps.DeleteFunc(t.entries, func(id string, e *entry) bool {
		if !seen[id] {
			t.end(e)
		}
		return !seen[id]
	})
	now := time.Now()
	maps.DeleteFunc(t.hinted, func(_ string, h hint) bool { return now.After(h.until) })
	if len(t.hinted) > 0 { // a cgroup is there, but CRI-O has not finished making its container
		t.hurry *= 2
		t.soon()
	}
	return len(seen)
}

// found tells a container that was listed. One that has ended is told only where it, or its cgroup, was seen while it ran: its
// samples want a name. Others may be a thousand, and hours old.
func (t *table) found(e *entry, state cri.ContainerState) {
	h, hinted := t.hinted[e.c.ID]
	if e.over = state == cri.ContainerState_CONTAINER_EXITED; !e.over {
		if e.as != state || !e.known {
			t.question(e)
		}
		if e.c.CgroupID == 0 {
			t.locate(e)
		}
		e.told = true
		t.say(container.Upsert, e.c, e.known)
		return
	}
	if hinted && e.c.CgroupID == 0 {
		e.c.CgroupPath, e.c.CgroupID = h.c.CgroupPath, h.c.CgroupID
	}
	if !e.ended && (hinted || e.told && !e.known) {
		t.question(e) // its end is told with the answer
		return
	}
	t.end(e)
}

// question asks for the status of a container, unless it is asked for.
func (t *table) question(e *entry) {
	if e.asked {
		return
	}
	e.asked = true
	id := e.c.ID
	t.loop.Ask(func(ctx context.Context) func() {
		d, err := t.ask(ctx, id)
		return func() { t.answered(id, d, err) }
	})
}

// ask reads the status of a container that was listed. It runs beside the loop.
func (t *table) ask(ctx context.Context, id string) (detail, error) {
	ctx, cancel := context.WithTimeout(ctx, t.times.call)
	defer cancel()
	st, err := t.api.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		return detail{}, fmt.Errorf("read the status of container %s: %w", id, err)
	}
	d, err := parseStatus(id, st)
	if err != nil {
		t.complain(err)
	}
	return d, nil
}

// answered takes what was asked about one container.
func (t *table) answered(id string, d detail, err error) {
	e := t.entries[id]
	if e == nil {
		return // it was removed meanwhile
	}
	e.asked = false
	switch {
	case errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled:
		return
	case err != nil: // then what the list says has to do; the next one asks again
		t.n.describeErrors.Add(1)
		t.log.Debug("a container's environment and process are not known", "container", id, "err", err)
	default:
		e.known, e.as = true, d.state
		e.c.Env, e.c.StartedAt = d.env, d.startedAt
		if e.hash {
			e.c.Image = cmp.Or(d.image, e.c.Image)
		}
		e.over = e.over || d.state == cri.ContainerState_CONTAINER_EXITED
		if !e.over { // the number of a process that has ended may be another's by now
			e.c.PID = d.pid
			t.locate(e)
		}
	}
	if e.ended {
		return
	}
	e.told = true
	t.say(container.Upsert, e.c, true)
	if e.over {
		t.end(e)
	}
}

// end tells the end of a container, once, if anybody was told of it.
func (t *table) end(e *entry) {
	if e.told && !e.ended {
		t.say(container.Gone, container.Container{ID: e.c.ID, Runtime: runtimeName, PID: e.c.PID, CgroupPath: e.c.CgroupPath, CgroupID: e.c.CgroupID}, false)
	}
	e.over, e.ended = true, true
}

func (t *table) locate(e *entry) {
	if e.c.PID == 0 {
		return // not made yet, or ended
	}
	path, id, err := locate(t.h, e.c.ID, e.c.PID)
	if err != nil {
		t.n.unlocated.Add(1)
		t.log.Debug("the cgroup of a container's process is not known", "container", e.c.ID, "pid", e.c.PID, "err", err)
		return
	}
	e.c.CgroupPath, e.c.CgroupID = path, id
}

// complain counts what could not be understood.
func (t *table) complain(err error) {
	t.n.malformed.Add(1)
	t.log.Debug("part of what CRI-O says is not understood", "err", err)
}
