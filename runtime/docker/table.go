package docker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	api "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"

	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/internal/follow"
)

// asking is how many questions are under way at a time.
const asking = 4

// living are the states of containers that have processes, or have not had one yet, or are about to have one again.
var living = []api.ContainerState{api.StateCreated, api.StateRunning, api.StatePaused, api.StateRestarting}

// entry is what is known about one container.
type entry struct {
	c     container.Container
	exact bool      // a list said so; an event loses labels that are called as its own attributes
	asked bool      // a question is on its way
	alive bool      // it has processes, or has not had one yet
	named time.Time // when its last rename was told; an answer to what was asked before has the name of before
	round uint64
	size  int // of c, about
}

// take takes what a list says that was asked for at a time.
func (e *entry) take(s *api.Summary, asked time.Time) {
	name := e.c.Name
	fromList(&e.c, s)
	if e.named.After(asked) {
		e.c.Name = name
	}
	e.exact, e.alive = true, slices.Contains(living, s.State)
}

// table is what a Client knows. It outlives connections; the goroutine in Run owns it.
type table struct {
	*Client
	entries map[string]*entry
	room    container.Room
	ended   map[string]time.Time // when a container's last run ended; a list that was asked for before may still have it
	files   map[string]*file     // the engine's files, where they had to be read
	api     *client.Client       // of the connection
	user    string               // whose the engine is
}

var (
	_ follow.Engine[events.Message, listed] = (*table)(nil)
	_ follow.Idler                          = (*table)(nil)
)

func newTable(c *Client) *table {
	return &table{Client: c, entries: map[string]*entry{}, ended: map[string]time.Time{}, files: map[string]*file{}}
}

// listed is an answer: all containers that have processes or have not had one yet, or those that were asked for.
type listed struct {
	id    string // the one that was asked for; empty: all
	asked time.Time
	found []api.Summary
	err   error
}

// Disconnected implements [follow.Engine].
func (t *table) Disconnected() {
	for _, e := range t.entries {
		e.asked = false
	}
}

// list asks for one container, or for all. It runs beside the loop and changes nothing. Unlike inspecting, it never waits for a
// container that is starting.
func (t *table) list(ctx context.Context, docker *client.Client, id string) listed {
	l := listed{id: id, asked: time.Now()}
	timeout := t.times.call
	// Those that have ended are not asked for: there may be thousands.
	filters := make(client.Filters)
	for _, state := range living {
		filters.Add("status", string(state))
	}
	if id == "" {
		timeout = t.times.list
	} else {
		filters = make(client.Filters).Add("id", id)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer, err := docker.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: filters})
	if err != nil {
		l.err = fmt.Errorf("list containers: %w", err)
	}
	l.found = answer.Items
	return l
}

func (t *table) say(typ container.EventType, c container.Container, at time.Time) {
	c.User = t.user
	t.loop.Say(container.Event{Type: typ, Complete: typ == container.Upsert, Container: c, At: at})
}

// entry returns what is known about a container, and notes that it was heard of. It is nil where it is not known, and there is no
// room for more.
func (t *table) entry(id string) *entry {
	e := t.entries[id]
	if e == nil {
		if len(t.entries) >= container.MaxContainers {
			t.n.tooMany.Add(1)
			return nil
		}
		e = &entry{c: container.Container{ID: id, Runtime: "docker"}}
		t.entries[id] = e
	}
	e.round = t.loop.Round()
	return e
}

// question asks for a container, unless it is asked for.
func (t *table) question(id string, e *entry) {
	if !e.asked {
		api := t.api
		e.asked = t.loop.Ask(func(ctx context.Context) func() {
			answer := t.list(ctx, api, id)
			return func() { t.answered(answer) }
		})
	}
}

// Event implements [follow.Engine].
func (t *table) Event(m events.Message) {
	id, now := m.Actor.ID, time.Now()
	if m.Type != events.ContainerEventType || !validID(id) {
		t.complain(fmt.Errorf("an event of type %.20q about the id %.80q", m.Type, id))
		return
	}
	at := time.Unix(0, m.TimeNano)
	if m.TimeNano <= 0 || at.After(now) {
		at = now
	}
	switch m.Action {
	case events.ActionCreate, events.ActionStart:
		if t.ended[id].After(at) {
			return // an event from before the connection
		}
		e := t.entry(id)
		if e == nil {
			return
		}
		e.alive = true
		if !e.exact {
			fromEvent(&e.c, m.Actor.Attributes)
			e.size = t.room.Take(&e.c, e.size)
			t.question(id, e)
		}
		if m.Action == events.ActionCreate {
			e.c.CreatedAt = at
		} else { // some milliseconds after the user's code began: that is not when it started
			delete(t.ended, id)
		}
		t.say(container.Upsert, e.c, now)
	case events.ActionRename, events.ActionPause, events.ActionUnPause:
		e := t.entries[id]
		if e == nil {
			return // it has ended, or the list that is being made has it
		}
		if name := nameOf(m.Actor.Attributes["name"]); m.Action == events.ActionRename && name != "" {
			e.c.Name, e.named = name, now
		}
		if e.alive {
			e.round = t.loop.Round()
			t.say(container.Upsert, e.c, now)
		}
	case events.ActionDie, events.ActionDestroy:
		t.end(id, at)
		if e := t.entries[id]; e != nil && m.Action == events.ActionDestroy {
			t.forget(id, e)
		}
	}
}

func (t *table) forget(id string, e *entry) {
	t.room.Leave(e.size)
	delete(t.entries, id)
}

// end tells the end of a container's run. What it is called stays known: it may be started again.
func (t *table) end(id string, at time.Time) {
	if len(t.ended) < 2*container.MaxContainers {
		t.ended[id] = at
	}
	if e := t.entries[id]; e != nil {
		e.alive = false
	}
	t.say(container.Gone, container.Container{ID: id, Runtime: "docker"}, at)
}

// answered takes what was asked about one container.
func (t *table) answered(l listed) {
	e := t.entries[l.id]
	if e == nil {
		return // it was destroyed meanwhile
	}
	e.asked = false
	if l.err != nil {
		if !errors.Is(l.err, context.Canceled) {
			t.n.describeErrors.Add(1)
			t.log.Debug("a container is described by its event alone for now", "container", l.id, "err", l.err)
		}
		return
	}
	i := slices.IndexFunc(l.found, func(s api.Summary) bool { return s.ID == l.id })
	if i < 0 {
		return
	}
	alive := e.alive
	e.take(&l.found[i], l.asked)
	e.size = t.room.Take(&e.c, e.size)
	// Of one that has ended, and whose end was not told, nothing is said: it would pass for alive until the next list.
	_, ended := t.ended[l.id]
	if e.alive && !t.over(l.id, l.asked) || !e.alive && ended {
		t.say(container.Upsert, e.c, time.Now())
	}
	e.alive = alive // what events said is newer
}

// over reports whether a container has ended since a time, as far as events told, and not begun again.
func (t *table) over(id string, since time.Time) bool {
	at, ok := t.ended[id]
	return ok && !at.Before(since)
}

// Compare implements [follow.Engine].
func (t *table) Compare(l listed) int {
	for i := range l.found {
		s := &l.found[i]
		if !validID(s.ID) {
			t.complain(fmt.Errorf("a container of the id %.80q", s.ID))
			continue
		}
		if t.over(s.ID, l.asked) {
			continue
		}
		e := t.entry(s.ID)
		if e == nil {
			continue
		}
		e.take(s, l.asked)
		e.size = t.room.Take(&e.c, e.size)
		t.say(container.Upsert, e.c, time.Now())
	}
	for id, e := range t.entries {
		if e.round != t.loop.Round() {
			t.forget(id, e)
		}
	}
	maps.DeleteFunc(t.ended, func(_ string, at time.Time) bool { return time.Since(at) > 2*t.times.list })
	clear(t.files)
	return len(l.found)
}

// complain counts what could not be understood.
func (t *table) complain(err error) {
	t.n.malformed.Add(1)
	t.log.Debug("part of what Docker says is not understood", "err", err)
}
