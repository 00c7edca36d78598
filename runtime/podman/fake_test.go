package podman

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/registry"
)

// scopes are the kernel's.
type scopes struct {
	mu   sync.Mutex // protects what follows
	in   map[uint64]bool
	next uint32
}

func (s *scopes) Add(id uint64, _ uint32) (uint32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.in[id] = true
	s.next++
	return s.next, nil
}

func (s *scopes) Remove(id uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.in, id)
	return nil
}

func (s *scopes) has(id uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.in[id]
}

// logBuffer is a log that tests read.
type logBuffer struct {
	mu sync.Mutex // protects b
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// bench is a source that speaks to a registry, as in the agent.
type bench struct {
	t      *testing.T
	source *Podman
	*registry.Registry
	scopes *scopes
	log    *logBuffer

	mu    sync.Mutex // protects pause
	pause map[string]bool
}

func newBench(t *testing.T, p *Podman) *bench {
	b := &bench{t: t, source: p, scopes: &scopes{in: map[uint64]bool{}}, log: &logBuffer{}, pause: map[string]bool{}}
	b.Registry = registry.New(registry.Config{Scopes: b.scopes, Frequency: 97})
	log := slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	p.cfg.Log, p.log = log, log
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", b.log)
			for _, rec := range b.List() {
				t.Logf("record %+v", rec)
			}
		}
	})
	return b
}

func (b *bench) emit(e container.Event) {
	b.mu.Lock()
	if e.Container.Sandbox && e.Type == container.Upsert && !e.Inferred {
		b.pause[e.Container.ID] = true
	}
	b.mu.Unlock()
	b.Apply(e)
	if e.Type == container.Upsert && !e.Complete {
		b.source.Hint(e.Container)
	}
}

func (b *bench) run() {
	b.t.Helper()
	startSource(b.t, b.source, b.emit)
}

func startSource(t *testing.T, s container.Source, emit func(container.Event)) {
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

// eventually polls until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// find returns the newest record of a container that is not gone, else the newest.
func (b *bench) find(id string) (registry.Record, bool) {
	var found registry.Record
	ok := false
	for _, rec := range b.List() {
		if rec.ID == id && (!ok || found.State == registry.Gone || rec.State != registry.Gone) {
			found, ok = rec, true
		}
	}
	return found, ok
}

func (b *bench) state(id string, want registry.State) registry.Record {
	b.t.Helper()
	return b.until(id, "it is "+want.String(), func(rec registry.Record) bool { return rec.State == want })
}

func (b *bench) until(id, what string, ok func(registry.Record) bool) registry.Record {
	b.t.Helper()
	var rec registry.Record
	eventually(b.t, what+": "+id, func() bool {
		var found bool
		rec, found = b.find(id)
		return found && ok(rec)
	})
	return rec
}
