package podman

import (
	"bytes"
	"log/slog"
	"sync"
	"testing"

	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/internal/sourcetest"
)

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
	*sourcetest.Bench
	log *logBuffer

	mu    sync.Mutex // protects pause
	pause map[string]bool
}

func newBench(t *testing.T, p *Podman) *bench {
	b := &bench{t: t, source: p, Bench: sourcetest.New(t), log: &logBuffer{}, pause: map[string]bool{}}
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
	sourcetest.Run(b.t, b.source, b.emit)
}
