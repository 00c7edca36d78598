package systemd

import (
	"context"
	"encoding/hex"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"

	"github.com/stoker-profiler/stoker/runtime/container"
)

const (
	// settle is how long after a unit was found systemd is asked: by then it has started its main process, and units that come
	// together are asked about together.
	settle = time.Second
	// again is how long after that we ask about a unit that was still starting, or about which there was no answer.
	again = 10 * time.Second
	// tries is how often we ask about one unit.
	tries = 5
	// perBatch is how many units are asked about on one connection.
	perBatch = 200
	// callTime is how long one answer may take.
	callTime = 5 * time.Second
)

// Annotations of a unit's Container, with what systemd told.
const (
	annotationDescription = "systemd.description"
	annotationInvocation  = "systemd.invocation_id"
)

// describer asks systemd about units that were found.
type describer struct {
	s    *Source
	emit func(container.Event)

	mu    sync.Mutex // protects units
	units map[string]*described
	wake  chan struct{}
}

// described is a unit that is or is to be described; its path is the key.
type described struct {
	c    container.Container
	left int // how often it may still be asked about; 0: no more
	due  time.Time
}

func newDescriber(s *Source, emit func(container.Event)) *describer {
	return &describer{s: s, emit: emit, units: map[string]*described{}, wake: make(chan struct{}, 1)}
}

// hear takes what the scanner has told the registry.
func (d *describer) hear(e *container.Event) {
	p := e.Container.CgroupPath
	switch e.Type {
	case container.Gone:
		d.mu.Lock()
		delete(d.units, p)
		d.mu.Unlock()
	case container.Upsert:
		if parts := strings.Split(strings.TrimPrefix(p, "/"), "/"); len(parts) > 3 && manager(parts[:3]) {
			return // a user's: that user's manager would be the one to ask
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if u := d.units[p]; u != nil && u.c.CgroupID == e.Container.CgroupID {
			return
		}
		d.units[p] = &described{c: e.Container, left: tries, due: time.Now().Add(settle)}
		select {
		case d.wake <- struct{}{}:
		default:
		}
	}
}

// run asks until ctx ends.
func (d *describer) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.wake:
		case <-timer.C:
		}
		if batch, next := d.due(time.Now()); len(batch) > 0 {
			d.ask(ctx, batch)
			timer.Reset(0) // there may be more
		} else {
			timer.Reset(next)
		}
	}
}

// due returns units that are to be asked about now, and how long it takes until there are more.
func (d *describer) due(now time.Time) (batch []container.Container, next time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	next = time.Hour
	for _, u := range d.units {
		switch {
		case u.left == 0:
		case now.Before(u.due):
			next = min(next, u.due.Sub(now))
		case len(batch) < perBatch:
			u.left--
			u.due = now.Add(again)
			batch = append(batch, u.c)
		}
	}
	return batch, next
}

// done notes that nothing more is to be asked about a unit.
func (d *describer) done(c *container.Container) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if u := d.units[c.CgroupPath]; u != nil && u.c.CgroupID == c.CgroupID {
		u.left = 0
	}
}

// wanted reports whether a unit is still told of. While systemd was asked, its pattern may have been taken away, and for so long ago
// that the registry no longer knows that it is gone: told again, it would be profiled until the next rescan.
func (d *describer) wanted(c *container.Container) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	u := d.units[c.CgroupPath]
	return u != nil && u.c.CgroupID == c.CgroupID
}

// ask asks about units and tells the registry.
func (d *describer) ask(ctx context.Context, batch []container.Container) {
	ctx, cancel := context.WithTimeout(ctx, connectionTime)
	defer cancel()
	conn, err := connect(ctx, d.s.buses)
	if err != nil {
		d.s.failures.Add(uint64(len(batch)))
		d.s.answered(err)
		return
	}
	defer conn.Close()
	var failed error
	for i := range batch {
		c := &batch[i]
		starting, err := d.describe(ctx, conn, c)
		if err != nil {
			d.s.failures.Add(1)
			failed = err
			continue
		}
		if d.wanted(c) && d.s.generation(c) {
			d.s.described.Add(1)
			d.emit(container.Event{Type: container.Upsert, Source: d.s.Name(), Inferred: true, Complete: true, Container: *c, At: time.Now()})
		}
		if !starting {
			d.done(c)
		}
	}
	d.s.answered(failed)
}

// generation reports whether the unit still runs in the cgroup that was asked about: if it has been started again meanwhile, the answer
// was about that run.
func (s *Source) generation(c *container.Container) bool {
	id, err := s.h.ID(c.CgroupPath)
	return err == nil && id == c.CgroupID
}

// describe fills in what systemd knows about a unit. starting: it will know more soon.
func (d *describer) describe(ctx context.Context, conn *sd.Conn, c *container.Container) (starting bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	kind := "Scope"
	if strings.HasSuffix(c.ID, ".service") {
		kind = "Service"
	}
	general, err := conn.GetUnitPropertiesContext(ctx, c.ID)
	if err != nil {
		return false, fmt.Errorf("ask systemd about %s: %w", c.ID, err)
	}
	own, err := conn.GetUnitTypePropertiesContext(ctx, c.ID, kind)
	if err != nil {
		return false, fmt.Errorf("ask systemd about %s: %w", c.ID, err)
	}
	if group, _ := own["ControlGroup"].(string); group != c.CgroupPath {
		return false, fmt.Errorf("ask systemd about %s: it runs in cgroup %q, the one that was found is %s", c.ID, bounded(group), c.CgroupPath)
	}
	c.Annotations = map[string]string{}
	if text, _ := general["Description"].(string); text != "" {
		c.Annotations[annotationDescription] = bounded(text)
	}
	if id, _ := general["InvocationID"].([]byte); len(id) == 16 {
		c.Annotations[annotationInvocation] = hex.EncodeToString(id)
	}
	if pid, _ := own["MainPID"].(uint32); pid > 0 && pid <= math.MaxInt32 {
		c.PID = int(pid)
	}
	if at, _ := own["ExecMainStartTimestamp"].(uint64); at > 0 && at < math.MaxInt64 {
		c.StartedAt = time.UnixMicro(int64(at))
	}
	if env, _ := own["Environment"].([]string); len(env) > 0 {
		c.Env = container.ServiceEnv(env)
	}
	state, _ := general["ActiveState"].(string)
	return state == "activating", nil
}

// maxText bounds a text of systemd's.
const maxText = 4096

func bounded(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
