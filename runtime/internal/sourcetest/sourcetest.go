// Package sourcetest is what the tests of sources share: a registry on a kernel that takes every scope, a source that runs for
// the length of a test, and waiting for what they come to. Only tests below runtime may call.
package sourcetest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/registry"
)

// Scopes stands for the kernel: it takes every cgroup. Safe for concurrent use.
type Scopes struct {
	mu    sync.Mutex // protects what follows
	added uint32
	in    map[uint64]bool
}

// NewScopes returns a kernel with nothing in scope.
func NewScopes() *Scopes { return &Scopes{in: map[uint64]bool{}} }

// Add puts a cgroup in scope, under the next scope id.
func (s *Scopes) Add(cgroup uint64, _ uint32) (uint32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.added++
	s.in[cgroup] = true
	return s.added, nil
}

// Bar keeps a cgroup out of scope.
func (s *Scopes) Bar(cgroup uint64) error { return s.Remove(cgroup) }

// Remove takes a cgroup out of scope.
func (s *Scopes) Remove(cgroup uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.in, cgroup)
	return nil
}

// Has reports whether a cgroup is in scope.
func (s *Scopes) Has(cgroup uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.in[cgroup]
}

// Len is how many cgroups are in scope.
func (s *Scopes) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.in)
}

// Added is how often a cgroup was put in scope, each time under a new scope id.
func (s *Scopes) Added() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int(s.added)
}

// Bench is a registry that a test's source feeds.
type Bench struct {
	*registry.Registry
	Scopes *Scopes
	t      *testing.T
}

// New returns an empty registry at the base frequency of 97 Hz.
func New(t *testing.T) *Bench {
	b := &Bench{Scopes: NewScopes(), t: t}
	b.Registry = registry.New(registry.Config{Scopes: b.Scopes, Frequency: 97})
	return b
}

// All returns the records of a container, newest first.
func (b *Bench) All(id string) []registry.Record {
	var all []registry.Record
	for _, rec := range b.List() {
		if rec.ID == id {
			all = append([]registry.Record{rec}, all...)
		}
	}
	return all
}

// Find returns the newest record of a container that is not gone, else the newest.
func (b *Bench) Find(id string) (registry.Record, bool) { return newest(b.All(id)) }

// FindIn is Find for a container in one of containerd's namespaces.
func (b *Bench) FindIn(namespace, id string) (registry.Record, bool) {
	var all []registry.Record
	for _, rec := range b.All(id) {
		if rec.Namespace == namespace {
			all = append(all, rec)
		}
	}
	return newest(all)
}

func newest(all []registry.Record) (registry.Record, bool) {
	for _, rec := range all {
		if rec.State != registry.Gone {
			return rec, true
		}
	}
	if len(all) == 0 {
		return registry.Record{}, false
	}
	return all[0], true
}

// Until waits until there is a record of a container that ok takes, and returns it.
func (b *Bench) Until(id, what string, ok func(registry.Record) bool) registry.Record {
	b.t.Helper()
	return b.until(id, what, func() (registry.Record, bool) { return b.Find(id) }, ok)
}

// State waits until a container is in a state, and returns its record.
func (b *Bench) State(id string, want registry.State) registry.Record {
	b.t.Helper()
	return b.Until(id, want.String(), func(rec registry.Record) bool { return rec.State == want })
}

// StateIn is State for a container in one of containerd's namespaces.
func (b *Bench) StateIn(namespace, id string, want registry.State) registry.Record {
	b.t.Helper()
	return b.until(namespace+"/"+id, want.String(), func() (registry.Record, bool) { return b.FindIn(namespace, id) },
		func(rec registry.Record) bool { return rec.State == want })
}

func (b *Bench) until(id, what string, find func() (registry.Record, bool), ok func(registry.Record) bool) registry.Record {
	b.t.Helper()
	var rec registry.Record
	Eventually(b.t, "container "+id+" is so: "+what, func() bool {
		var found bool
		rec, found = find()
		return found && ok(rec)
	})
	return rec
}

// Run runs a source until the test ends, and fails the test if it ends before or does not end then.
func Run(t *testing.T, s container.Source, emit func(container.Event)) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, emit) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Run ended with %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Error("Run does not end")
		}
	})
}

// Eventually waits until ok says yes.
func Eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// Synced waits until a source has told all that runs.
func Synced(t *testing.T, s interface {
	container.Source
	container.StatusReporter
}) {
	t.Helper()
	Eventually(t, s.Name()+" has synced", func() bool { return s.Status().Connected })
}
