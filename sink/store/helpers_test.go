package store

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/sink"
)

// fakeClock is a clock that only moves when told, or from a given start as time does.
type fakeClock struct {
	mu    sync.Mutex
	wall  time.Time
	boot  time.Duration
	id    string
	since time.Time // set: it runs
}

func newClock() *fakeClock {
	return &fakeClock{wall: time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC), boot: time.Hour, id: "boot-1"}
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wall.Add(c.elapsed())
}

func (c *fakeClock) Boottime() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.boot + c.elapsed()
}

func (c *fakeClock) elapsed() time.Duration {
	if c.since.IsZero() {
		return 0
	}
	return time.Since(c.since)
}

// run lets the clock run: for tests in which waits end by themselves.
func (c *fakeClock) run() { c.mu.Lock(); defer c.mu.Unlock(); c.since = time.Now() }

func (c *fakeClock) BootID() (string, error) { return c.id, nil }

// pass lets d go by on both clocks.
func (c *fakeClock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall, c.boot = c.wall.Add(d), c.boot+d
}

// step sets the wall clock d ahead.
func (c *fakeClock) step(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall = c.wall.Add(d)
}

// logBuffer collects a log.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}
func (l *logBuffer) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

func newLog() (*logBuffer, *slog.Logger) {
	b := &logBuffer{}
	return b, slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// open opens a store of its own for t; change may alter the configuration.
func open(t testing.TB, clock Clock, change ...func(*Config)) *Store {
	t.Helper()
	cfg := Config{Path: filepath.Join(t.TempDir(), "profiles.db"), Clock: clock, MaintainEvery: -1, Log: quiet}
	for _, f := range change {
		f(&cfg)
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// workload makes profiles that look like a program's: a pool of functions, stacks with a common root, few of them hot.
type workload struct {
	rnd    *rand.Rand
	stacks [][]int
	zipf   *rand.Zipf
	prefix string
}

func newWorkload(seed uint64, functions, stacks, depth int) *workload {
	w := &workload{rnd: rand.New(rand.NewPCG(seed, 1)), prefix: fmt.Sprintf("github.com/example/service%d/internal", seed)}
	path := []int{0, 1, 2}
	for range stacks {
		// A stack keeps part of the one before and goes on from there, as real call trees do.
		keep := 1 + w.rnd.IntN(len(path))
		path = append([]int{}, path[:keep]...)
		for n := depth/2 + w.rnd.IntN(depth); len(path) < n; {
			path = append(path, w.rnd.IntN(functions))
		}
		w.stacks = append(w.stacks, path)
	}
	w.zipf = rand.NewZipf(w.rnd, 1.2, 4, uint64(stacks-1))
	return w
}

const period = 10309278 // 1e9 / 97

// pprof builds a profile of n samples; a negative n means one of each stack.
func (w *workload) pprof(t testing.TB, start, end time.Time, n int) (gz []byte, total int64, samples int) {
	t.Helper()
	p := &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "cpu", Unit: "nanoseconds"}},
		PeriodType: &profile.ValueType{Type: "cpu", Unit: "nanoseconds"},
		Period:     period, TimeNanos: start.UnixNano(), DurationNanos: int64(end.Sub(start)),
		Mapping: []*profile.Mapping{{ID: 1, File: "/usr/bin/server", BuildID: "3f2a9c", HasFunctions: true}},
	}
	locations := map[int]*profile.Location{}
	counts := map[uint64]int64{}
	for range n {
		counts[w.zipf.Uint64()]++
	}
	for i := 0; n < 0 && i < len(w.stacks); i++ {
		counts[uint64(i)] = 1
	}
	for i, c := range counts {
		s := &profile.Sample{Value: []int64{c * period}}
		path := w.stacks[i]
		for j := len(path) - 1; j >= 0; j-- {
			l := locations[path[j]]
			if l == nil {
				f := &profile.Function{ID: uint64(len(p.Function) + 1), Name: fmt.Sprintf("%s/pkg%d.(*Handler%d).Method%d", w.prefix, path[j]%17, path[j]%53, path[j]), Filename: fmt.Sprintf("/src/pkg%d/file%d.go", path[j]%17, path[j]%31)}
				f.SystemName = f.Name
				p.Function = append(p.Function, f)
				l = &profile.Location{ID: f.ID, Mapping: p.Mapping[0], Address: uint64(0x1000 + path[j]*16), Line: []profile.Line{{Function: f, Line: int64(path[j])}}}
				p.Location = append(p.Location, l)
				locations[path[j]] = l
			}
			s.Location = append(s.Location, l)
		}
		p.Sample = append(p.Sample, s)
		total += c * period
	}
	gz, _, err := encodePprof(p)
	if err != nil {
		t.Fatal(err)
	}
	return gz, total, len(p.Sample)
}

// window makes one container's profile of the window that ends now.
func (w *workload) window(t testing.TB, c *fakeClock, container string, n int) sink.Profile {
	t.Helper()
	end := c.Now()
	start := end.Add(-10 * time.Second)
	p := sink.Profile{Type: sink.CPU, Labels: sink.Labels{"service_name": "shop/" + container, "node": "edge-1", "container_name": container},
		ContainerID: strings.Repeat(container+"0", 20), Start: start, End: end, BootStart: c.Boottime() - 10*time.Second}
	p.Pprof, p.Total, p.Samples = w.pprof(t, start, end, n)
	return p
}

// small is a workload of a few stacks for tests that count rows.
func small() *workload { return newWorkload(7, 40, 30, 8) }

func write(t testing.TB, s *Store, profiles ...sink.Profile) {
	t.Helper()
	if err := s.Write(context.Background(), profiles); err != nil {
		t.Fatal(err)
	}
}

// selected returns what q selects; any error is fatal.
func selected(t testing.TB, s *Store, q Query) []sink.Profile {
	t.Helper()
	var out []sink.Profile
	for p, err := range s.Select(context.Background(), q) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

func sum(ps []sink.Profile) (total int64) {
	for _, p := range ps {
		total += p.Total
	}
	return total
}

// eventually polls until ok says yes.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}
