package follow

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/internal/sourcetest"
)

// event is one of the fake's: a container started or ended.
type event struct {
	id    string
	ended bool
}

// engine is the smallest source there can be: containers are ids.
type engine struct {
	loop *Loop[event, []string]

	known map[string]uint64 // round by id; Run's goroutine owns it
	idle  func(error) error

	mu       sync.Mutex // protects what follows
	refuse   error
	has      map[string]bool
	stream   chan event
	broken   chan error
	listing  chan struct{} // lists wait for a value, if not nil
	listErr  error
	connects int
	dropped  int // Disconnected was called
}

func newEngine() *engine {
	e := &engine{known: map[string]uint64{}, has: map[string]bool{}, stream: make(chan event), broken: make(chan error)}
	e.loop = New[event, []string](Config{Source: "fake", Engine: "Fake", Queue: 4, Asking: 2, Log: slog.New(slog.DiscardHandler), Times: Times{
		SecondList: time.Hour, ListEvery: time.Hour, MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond, AbsentEvery: time.Millisecond,
		IdleEvery: time.Millisecond,
	}})
	return e
}

func (e *engine) with(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
}

func (e *engine) Connect(context.Context) (Connection[event, []string], error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.connects++
	if e.refuse != nil {
		return Connection[event, []string]{}, e.refuse
	}
	return Connection[event, []string]{
		Receive: func(ctx context.Context, take func(event)) error {
			for {
				select {
				case v := <-e.stream:
					take(v)
				case err := <-e.broken:
					return err
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		},
		List: func(ctx context.Context) ([]string, error) {
			e.mu.Lock()
			wait := e.listing
			e.mu.Unlock()
			if wait != nil {
				select {
				case <-wait:
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
			e.mu.Lock()
			defer e.mu.Unlock()
			return slices.Collect(maps.Keys(e.has)), e.listErr
		},
	}, nil
}

func (e *engine) Event(v event) {
	if v.ended {
		delete(e.known, v.id)
		e.loop.Say(container.Event{Type: container.Gone, Container: container.Container{ID: v.id}})
		return
	}
	e.tell(v.id)
}

func (e *engine) tell(id string) {
	e.known[id] = e.loop.Round()
	e.loop.Say(container.Event{Type: container.Upsert, Container: container.Container{ID: id}})
}

func (e *engine) Compare(all []string) int {
	for _, id := range all {
		e.tell(id)
	}
	maps.DeleteFunc(e.known, func(_ string, round uint64) bool { return round != e.loop.Round() })
	return len(all)
}

// errOver ends a connection that may end.
var errOver = errors.New("over")

func (e *engine) Explain(err error) (Trouble, error) {
	explained := fmt.Errorf("explained: %w", err)
	switch {
	case errors.Is(err, errOver):
		return Over, explained
	case errors.Is(err, fs.ErrNotExist):
		return Absent, explained
	case errors.Is(err, fs.ErrPermission):
		return Barred, explained
	}
	return Broken, explained
}

func (e *engine) Disconnected() { e.with(func() { e.dropped++ }) }

// idler helps itself.
type idler struct{ *engine }

func (i idler) Idle(why error) error { return i.idle(why) }

// told is what a registry would know: it follows the rules of Syncing and Synced.
type told struct {
	hold  sync.Mutex // held: emit waits
	mu    sync.Mutex // protects what follows
	round uint64
	alive map[string]uint64
	log   []string
}

func (r *told) emit(e container.Event) {
	r.hold.Lock()
	defer r.hold.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = append(r.log, e.Type.String()+e.Container.ID)
	switch e.Type {
	case container.Upsert:
		r.alive[e.Container.ID] = r.round
	case container.Gone:
		delete(r.alive, e.Container.ID)
	case container.Syncing:
		r.round++
	case container.Synced:
		maps.DeleteFunc(r.alive, func(_ string, round uint64) bool { return round != r.round })
	}
}

func (r *told) ids() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.alive))
}

func (r *told) count(s string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, said := range r.log {
		if said == s {
			n++
		}
	}
	return n
}

func (r *told) has(s string) bool { return r.count(s) > 0 }

func run(t *testing.T, e Engine[event, []string], l *Loop[event, []string]) *told {
	r := &told{alive: map[string]uint64{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, r.emit, e) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Run ended with %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Error("Run does not end")
		}
	})
	return r
}

func (r *told) until(t *testing.T, want ...string) {
	t.Helper()
	sourcetest.Eventually(t, fmt.Sprint(want), func() bool { return slices.Equal(r.ids(), want) })
}

func TestListThenEvents(t *testing.T) {
	e := newEngine()
	e.has["a"], e.has["b"] = true, true
	r := run(t, e, e.loop)
	r.until(t, "a", "b")
	e.stream <- event{"c", false}
	e.stream <- event{"a", true}
	r.until(t, "b", "c")
	sourcetest.Eventually(t, "it is connected", func() bool { return e.loop.Status().Connected })
	if s := e.loop.Stats(); s.Connects != 1 || s.Events != 2 || s.Lists != 1 || s.Overflows != 0 {
		t.Errorf("stats %+v", s)
	}
}

// A start waits in the queue, the end of the same container is thrown away because too many wait: the container must not
// survive. Told after the Syncing of the list that makes the loss good, its start would pass for newer than that list.
func TestAnEndThatWasThrownAwayDoesNotSurvive(t *testing.T) {
	e := newEngine()
	r := run(t, e, e.loop)
	sourcetest.Eventually(t, "it is connected", func() bool { return e.loop.Status().Connected })
	for range 50 {
		r.hold.Lock()
		e.stream <- event{"first", false} // the loop hangs in emit with this one
		before := e.loop.Stats().Overflows
		for i := 0; e.loop.Stats().Overflows == before; i++ {
			e.stream <- event{fmt.Sprint("x", i%3), false} // the queue fills with starts
		}
		for i := range 3 {
			e.stream <- event{fmt.Sprint("x", i), true} // lost
		}
		e.stream <- event{"first", true} // lost
		synced := r.count("synced")
		r.hold.Unlock()
		sourcetest.Eventually(t, "everything was listed", func() bool { return r.count("synced") > synced })
		r.until(t)
	}
}

// What is lost while a list is made is made good by another one.
func TestAnOverflowDuringAList(t *testing.T) {
	e := newEngine()
	e.listing = make(chan struct{})
	e.has["a"] = true
	r := run(t, e, e.loop)
	sourcetest.Eventually(t, "a list is made", func() bool { return r.has("syncing") })
	r.hold.Lock()
	for range 8 {
		e.stream <- event{"x", false}
	}
	e.stream <- event{"x", true}
	e.stream <- event{"a", true}
	r.hold.Unlock()
	e.listing <- struct{}{} // the list has a, which has ended
	e.with(func() { delete(e.has, "a") })
	e.listing <- struct{}{}
	sourcetest.Eventually(t, "all is settled", func() bool { return len(r.ids()) == 0 && e.loop.Stats().Lists == 2 })
}

func TestALostConnectionIsMadeAgainAndCompared(t *testing.T) {
	e := newEngine()
	e.has["a"], e.has["b"] = true, true
	r := run(t, e, e.loop)
	r.until(t, "a", "b")
	e.with(func() { e.refuse = errors.New("restarting"); delete(e.has, "a"); e.has["c"] = true })
	e.broken <- errors.New("reset")
	sourcetest.Eventually(t, "the loss is said", func() bool { return e.loop.Status().Err == "explained: restarting" })
	if st := e.loop.Status(); st.Connected || st.Absent {
		t.Errorf("status %+v", st)
	}
	e.with(func() { e.refuse = nil })
	r.until(t, "b", "c")
	e.with(func() {
		if e.dropped == 0 {
			t.Error("Disconnected was not called")
		}
	})
}

func TestAConnectionThatMayEndIsNoTrouble(t *testing.T) {
	e := newEngine()
	e.has["a"] = true
	r := run(t, e, e.loop)
	r.until(t, "a")
	sourcetest.Eventually(t, "it is connected", func() bool { return e.loop.Status().Connected })
	before := e.loop.Status()
	e.with(func() { e.has["b"] = true })
	e.broken <- errOver
	r.until(t, "a", "b")
	if st := e.loop.Status(); st != before {
		t.Errorf("status %+v, before %+v", st, before)
	}
}

func TestAListThatFailsIsMadeAgain(t *testing.T) {
	e := newEngine()
	e.loop.Times.SecondList = 5 * time.Millisecond
	e.listErr = errors.New("busy")
	e.has["a"] = true
	r := run(t, e, e.loop)
	sourcetest.Eventually(t, "it is said", func() bool { return e.loop.Status().Err == "explained: busy" })
	if r.has("synced") || len(r.ids()) != 0 {
		t.Error("a list that failed passes for one")
	}
	e.with(func() { e.listErr = nil })
	r.until(t, "a")
}

func TestAbsenceIsNoTroubleWhereNobodyAskedForIt(t *testing.T) {
	for _, optional := range []bool{false, true} {
		e := newEngine()
		e.loop.Optional, e.refuse = optional, fs.ErrNotExist
		r := run(t, e, e.loop)
		sourcetest.Eventually(t, "nobody waits for it", func() bool { return r.has("synced") })
		sourcetest.Eventually(t, "it is said", func() bool { return e.loop.Status().Err != "" })
		if st := e.loop.Status(); st.Absent != optional {
			t.Errorf("optional %t: status %+v", optional, st)
		}
		e.with(func() { e.refuse = nil; e.has["a"] = true })
		r.until(t, "a")
	}
}

func TestWhoeverIsBarredHelpsHimself(t *testing.T) {
	e := newEngine()
	e.refuse = fs.ErrPermission
	calls := 0 // Run's goroutine's
	e.loop.Times.MinBackoff = time.Second
	e.loop.Times.MaxBackoff = time.Second
	seen := make(chan int, 1000)
	e.idle = func(why error) error {
		calls++
		e.loop.Syncing()
		e.tell("file")
		e.loop.Synced()
		seen <- calls
		return fmt.Errorf("%w; from files", why)
	}
	r := run(t, idler{e}, e.loop)
	r.until(t, "file")
	for n := 0; n < 5; n = <-seen { // between two tries
	}
	if st := e.loop.Status(); st.Err != "explained: permission denied; from files" {
		t.Errorf("status %+v", st)
	}
}

func TestAListThatIsRefusedEndsTheConnection(t *testing.T) {
	e := newEngine()
	e.listErr = fs.ErrPermission
	run(t, e, e.loop)
	sourcetest.Eventually(t, "it tries again", func() bool { return e.loop.Stats().Connects > 2 })
}

func TestQuestionsAreAskedBesideTheLoop(t *testing.T) {
	e := newEngine()
	gate, answered := make(chan struct{}), make(chan int, 100)
	var mu sync.Mutex
	busy, most := 0, 0
	r := run(t, asker{e, func() {
		for i := range 6 {
			e.loop.Ask(func(ctx context.Context) func() {
				mu.Lock()
				busy++
				most = max(most, busy)
				mu.Unlock()
				select {
				case <-gate:
				case <-ctx.Done():
				}
				mu.Lock()
				busy--
				mu.Unlock()
				if i == 0 {
					return nil
				}
				return func() { answered <- i }
			})
		}
	}}, e.loop)
	sourcetest.Eventually(t, "it is connected", func() bool { return e.loop.Status().Connected })
	e.stream <- event{"ask", false}
	r.until(t, "ask") // the loop goes on
	e.stream <- event{"b", false}
	r.until(t, "ask", "b")
	for range 6 {
		gate <- struct{}{}
	}
	for range 5 {
		<-answered
	}
	mu.Lock()
	defer mu.Unlock()
	if most != 2 {
		t.Errorf("%d questions at a time, want 2", most)
	}
}

// asker asks when an event tells it to.
type asker struct {
	*engine
	ask func()
}

func (a asker) Event(v event) {
	if v.id == "ask" {
		a.ask()
	}
	a.engine.Event(v)
}

// hurried is told by others that something is new, and not what.
type hurried struct{ *engine }

func (h hurried) Event(event) { h.loop.Soon(0) }

func TestAListThatIsWantedSoonIsMade(t *testing.T) {
	e := newEngine()
	r := run(t, hurried{e}, e.loop)
	sourcetest.Eventually(t, "the first list is told", func() bool { return r.has("synced") })
	e.with(func() { e.has["new"] = true })
	e.stream <- event{}
	sourcetest.Eventually(t, "what is new is told", func() bool { return slices.Contains(r.ids(), "new") })
	// A list that is under way may have been made before it was there.
	e.with(func() { e.listing = make(chan struct{}) })
	e.stream <- event{}
	sourcetest.Eventually(t, "a list is under way", func() bool { return r.count("syncing") == 3 })
	e.stream <- event{}
	e.listing <- struct{}{}
	e.listing <- struct{}{}
	sourcetest.Eventually(t, "another one follows", func() bool { return r.count("synced") == 4 })
	if n := e.loop.Stats().Lists; n != 4 {
		t.Errorf("%d lists", n)
	}
}
