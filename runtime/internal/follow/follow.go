// Package follow is what sources of containers have in common: the loop that keeps a connection to an engine, receives its
// events into a bounded queue, compares with a list of all that the engine has, and says to the registry where it stands.
//
// A source makes a [Loop] with New and calls Run with an [Engine], which is what is particular about the engine:
//
//   - Connect dials, asks one cheap question with a deadline, subscribes, and returns a [Connection]: Receive, which drains the
//     stream of events (E) in a goroutine of its own, and List, which reads all that exists (L) in another.
//   - Event takes one event, Compare one list. Both speak through [Loop.Say]. A source that remembers containers notes the
//     [Loop.Round] in which each was told last, so that Compare can forget those of an older one.
//   - Explain says what kind of trouble an error is, and adds what to do about it.
//   - Questions about single containers go through [Loop.Ask]: a few at a time, beside the loop, answered in it.
//
// All methods of an Engine, and the answers to questions, run in the goroutine of Run: what an engine knows needs no lock.
// Syncing and Synced are said by the loop alone, around each list. An event that waits in the queue when a list begins is
// taken before that: told after Syncing it would pass for newer than the list, and the end of its container may be what was
// lost. So nothing that ended unheard survives a list.
//
// Nothing here blocks on an engine: its calls run beside the loop, and are to have deadlines. A Loop reads nothing and dials
// nothing itself.
package follow

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// Trouble is a kind of error.
type Trouble uint8

const (
	// Broken: the engine is there and does not work; tried again with back-off.
	Broken Trouble = iota
	// Absent: there is nothing to connect to. Looked for again every AbsentEvery, for looking costs a system call. No trouble
	// where nobody said that there would be.
	Absent
	// Over: the connection has ended as it may, and the next one is as good: nothing is wrong, Status and log stay as they are.
	Over
	// Barred: the engine, or the kernel, refuses to let us in. Tried again with back-off; meanwhile an [Idler] may help itself.
	Barred
)

// Engine is one container engine as a Loop sees it.
type Engine[E, L any] interface {
	// Connect connects and subscribes to events. What it starts ends when ctx does.
	Connect(ctx context.Context) (Connection[E, L], error)
	// Event takes one event.
	Event(e E)
	// Compare takes a list: it says Upsert for all that is in it, and forgets what is not and was not told of since the list
	// began (its round is older than [Loop.Round]). It returns how many containers there are.
	Compare(l L) (containers int)
	// Explain says what kind of trouble an error of Connect, Receive or List is, and wraps it with what to do.
	Explain(err error) (Trouble, error)
	// Disconnected is called when a connection has ended: questions that were asked get no answer.
	Disconnected()
}

// Idler is an Engine that can tell something without being let in.
type Idler interface {
	// Idle is called when the engine bars us, and every IdleEvery until the next try. It may say Syncing, Upserts and Synced. It
	// returns what Status is to tell.
	Idle(why error) error
}

// Connection is one connection to an engine.
type Connection[E, L any] struct {
	// Receive gives every event to take, which does not block, until the stream ends. It ends soon after ctx does.
	Receive func(ctx context.Context, take func(E)) error
	// List reads all that the engine has. It changes nothing of the Engine: it runs beside its other methods. It has a deadline.
	List func(ctx context.Context) (L, error)
	// Close frees what the connection holds, after Receive and List have ended. May be nil.
	Close func()
	// About is said in the log when the engine is followed: keys and values.
	About []any
}

// Times are how long things take; all are to be set.
type Times struct {
	SecondList  time.Duration // when to list again after connecting: some engines subscribe us some time after they said yes
	ListEvery   time.Duration // how often to compare with what the engine has
	MinBackoff  time.Duration
	MaxBackoff  time.Duration
	AbsentEvery time.Duration // how often to look for what does not exist
	IdleEvery   time.Duration // how often an [Idler] is called
}

// warnEvery is how often the log says again that an engine is not followed, while the reason is of one kind.
const warnEvery = 10 * time.Minute

// Config says how a Loop works.
type Config struct {
	Source  string // the source's name
	Engine  string // what people call the engine, for the log
	Address string // where it is, for the log
	// Optional: nobody said that this engine exists. That it is absent is then no trouble, and not worth a warning.
	Optional bool
	Queue    int // how many events may wait; beyond that everything is listed again
	Asking   int // how many questions are under way at a time
	Times    Times
	Log      *slog.Logger // with the source's name
	// Settled is called once: when all that exists was told (true), or when it is clear that nothing can be for now (false). Nil
	// says Synced in the second case.
	Settled func(told bool)
}

// Stats are counts since the start.
type Stats struct {
	Connects   uint64 // connections that were made
	Events     uint64 // events received
	Overflows  uint64 // events thrown away because too many waited; each time everything is listed again
	Lists      uint64 // comparisons with all that the engine has
	ListErrors uint64 // such that failed
}

// Loop follows one engine. Make one with New and call Run once. Say, Ask and Round are for the Engine's methods, in Run's goroutine.
type Loop[E, L any] struct {
	Config // may be changed until Run

	emit    func(container.Event)
	round   uint64
	settled bool
	todo    []func(context.Context) func()
	busy    int
	soon    time.Time // when an Engine wants a list at the latest; zero: it has no wish
	state   state
	// What was last warned of since it was followed, and when; zero: nothing.
	warned   Trouble
	warnedAt time.Time

	connects, events, overflows, lists, listErrors atomic.Uint64
}

// New returns a Loop.
func New[E, L any](cfg Config) *Loop[E, L] { return &Loop[E, L]{Config: cfg} }

// Status may be called at any time.
func (l *Loop[E, L]) Status() container.Status { return l.state.get() }

// Stats may be called at any time.
func (l *Loop[E, L]) Stats() Stats {
	return Stats{Connects: l.connects.Load(), Events: l.events.Load(), Overflows: l.overflows.Load(), Lists: l.lists.Load(), ListErrors: l.listErrors.Load()}
}

// Say tells the registry something. Source, and At where it is zero, are filled in.
func (l *Loop[E, L]) Say(e container.Event) {
	e.Source = l.Source
	if e.At.IsZero() {
		e.At = time.Now()
	}
	l.emit(e)
}

// Round counts the lists that were begun.
func (l *Loop[E, L]) Round() uint64 { return l.round }

// Ask has a question asked beside the loop; what it returns, unless nil, is called in the loop. Questions that wait, or are
// under way, when the connection ends are dropped. It reports whether the question is taken: not where more wait than any node has
// containers.
func (l *Loop[E, L]) Ask(question func(context.Context) (answer func())) bool {
	if len(l.todo) >= 2*container.MaxContainers {
		return false
	}
	l.todo = append(l.todo, question)
	return true
}

// Soon has everything listed again after that long at the latest: for an Engine that learns from others what is new. A list that
// is under way does not count.
func (l *Loop[E, L]) Soon(after time.Duration) {
	if at := time.Now().Add(after); l.soon.IsZero() || at.Before(l.soon) {
		l.soon = at
	}
}

// Syncing begins to tell everything that exists. Only an [Idler] calls it itself.
func (l *Loop[E, L]) Syncing() {
	l.round++
	l.Say(container.Event{Type: container.Syncing})
}

// Synced has told it. Only an [Idler] calls it itself.
func (l *Loop[E, L]) Synced() {
	l.Say(container.Event{Type: container.Synced})
	l.settle(true)
}

func (l *Loop[E, L]) settle(told bool) {
	if l.settled {
		return
	}
	l.settled = true
	switch {
	case l.Settled != nil:
		l.Settled(told)
	case !told:
		l.Say(container.Event{Type: container.Synced})
	}
}

// Run follows the engine until ctx ends; it returns ctx.Err(). That the engine is not there, or does not answer, is what Status
// tells.
func (l *Loop[E, L]) Run(ctx context.Context, emit func(container.Event), engine Engine[E, L]) error {
	l.emit = emit
	backoff := l.Times.MinBackoff
	for {
		began := time.Now()
		synced, err := l.connect(ctx, engine)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		engine.Disconnected()
		// One that answers and breaks off at once is not worth a connection every moment.
		if synced && time.Since(began) > backoff {
			backoff = l.Times.MinBackoff
		}
		// Between half and all of the back-off: agents of many nodes, or sources of many sockets, do not march in step.
		wait := backoff/2 + rand.N(backoff/2+1)
		backoff = min(2*backoff, l.Times.MaxBackoff)
		trouble, err := engine.Explain(err)
		if trouble == Absent {
			wait, backoff = l.Times.AbsentEvery, l.Times.MinBackoff
		}
		idler, idle := engine.(Idler)
		idle = idle && trouble == Barred
		why := err
		if idle {
			err = idler.Idle(why)
		}
		if trouble != Over {
			l.lost(ctx, trouble, err)
		}
		if trouble == Absent || trouble == Barred {
			l.settle(false) // whoever waits for the first list need not wait for us
		}
		for wait > 0 {
			step := wait
			if idle {
				step = min(step, l.Times.IdleEvery)
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(step):
			}
			if wait -= step; wait > 0 {
				l.lost(ctx, trouble, idler.Idle(why))
			}
		}
	}
}

// lost says that the engine is not followed.
func (l *Loop[E, L]) lost(ctx context.Context, trouble Trouble, err error) {
	absent := trouble == Absent && l.Optional
	if !l.state.set(container.Status{Err: text(err), Absent: absent}) {
		return
	}
	level := slog.LevelWarn
	// Most machines do not have each engine at each usual place; and what keeps failing in other words is no news.
	if absent || trouble == l.warned && time.Since(l.warnedAt) < warnEvery {
		level = slog.LevelDebug
	} else {
		l.warned, l.warnedAt = trouble, time.Now()
	}
	l.Log.Log(ctx, level, l.Engine+" is not followed", "err", text(err))
}

// connect follows the engine until the connection is lost. synced tells whether all that it has was told at least once.
func (l *Loop[E, L]) connect(ctx context.Context, engine Engine[E, L]) (synced bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := engine.Connect(ctx)
	if err != nil {
		return false, err
	}
	if conn.Close != nil {
		defer conn.Close()
	}
	l.connects.Add(1)
	queue := make(chan E, l.Queue)
	overflow := make(chan struct{}, 1)
	ended := make(chan error, 1)
	take := func(e E) {
		l.events.Add(1)
		select {
		case queue <- e:
		default:
			l.overflows.Add(1)
			select {
			case overflow <- struct{}{}:
			default: // it is known already
			}
		}
	}
	var receiver sync.WaitGroup
	receiver.Go(func() { ended <- conn.Receive(ctx, take) })
	defer receiver.Wait() // after cancel
	defer cancel()
	return l.follow(ctx, engine, conn, queue, overflow, ended)
}

// listed is what a list came to.
type listed[L any] struct {
	all L
	err error
}

// follow tells what the engine has, then what changes, until the connection or ctx ends.
func (l *Loop[E, L]) follow(ctx context.Context, engine Engine[E, L], conn Connection[E, L], queue <-chan E, overflow <-chan struct{}, ended <-chan error) (synced bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var helpers sync.WaitGroup
	defer helpers.Wait()
	defer cancel()
	lists := make(chan listed[L], 1)
	answers := make(chan func(), l.Asking)
	listing, again := false, false
	failures := 0
	next := time.NewTimer(l.Times.SecondList)
	defer next.Stop()
	due := time.Now().Add(l.Times.SecondList) // when next ends
	in := func(wait time.Duration) { due = time.Now().Add(wait); next.Reset(wait) }
	list := func() {
		if listing {
			again = true // something was lost while it was made
			return
		}
		listing = true
		for range len(queue) { // what waits is older than the list; see the package comment
			engine.Event(<-queue)
		}
		l.Syncing()
		l.lists.Add(1)
		helpers.Go(func() {
			all, err := conn.List(ctx)
			lists <- listed[L]{all, err}
		})
	}
	l.todo, l.busy = nil, 0
	list()
	for {
		if !listing && !l.soon.IsZero() {
			if l.soon.Before(due) {
				in(time.Until(l.soon))
			}
			l.soon = time.Time{}
		}
		for l.busy < l.Asking && len(l.todo) > 0 {
			question := l.todo[0]
			l.todo = l.todo[1:]
			l.busy++
			helpers.Go(func() {
				answer := question(ctx)
				select {
				case answers <- answer:
				case <-ctx.Done():
				}
			})
		}
		select {
		case e := <-queue:
			engine.Event(e)
		case answer := <-answers:
			l.busy--
			if answer != nil {
				answer()
			}
		case <-overflow:
			l.Log.Warn("too many events at once: everything is listed again")
			list()
		case <-next.C:
			list()
		case got := <-lists:
			listing = false
			wait := l.Times.ListEvery
			if got.err != nil {
				l.listErrors.Add(1)
				failures++
				trouble, err := engine.Explain(got.err)
				if trouble == Barred {
					return synced, got.err
				}
				if !errors.Is(got.err, context.Canceled) && l.state.set(container.Status{Err: text(err)}) {
					l.Log.Warn("containers were not compared with "+l.Engine+"'s", "err", text(err))
				}
				wait = min(l.Times.SecondList<<min(failures-1, 5), l.Times.ListEvery)
			} else {
				failures = 0
				n := engine.Compare(got.all)
				l.Synced()
				l.warnedAt = time.Time{}
				if l.state.set(container.Status{Connected: true}) {
					l.Log.Info(l.Engine+" is followed", append([]any{"address", l.Address, "containers", n}, conn.About...)...)
				}
				if !synced {
					wait = l.Times.SecondList
				}
				synced = true
			}
			if again {
				again = false
				list()
				continue
			}
			in(wait)
		case err := <-ended:
			for { // what came before the end
				select {
				case e := <-queue:
					engine.Event(e)
					continue
				default:
				}
				return synced, err
			}
		case <-ctx.Done():
			return synced, ctx.Err()
		}
	}
}

// maxText bounds what is said of an error, in bytes: libraries put what they could not read into it.
const maxText = 1000

func text(err error) string {
	if err == nil {
		return ""
	}
	if s := err.Error(); len(s) > maxText {
		return strings.ToValidUTF8(s[:maxText/2], "") + " … " + strings.ToValidUTF8(s[len(s)-maxText/2:], "") // its end is the remedy
	}
	return err.Error()
}

// state is what Status tells.
type state struct {
	mu     sync.Mutex // protects status
	status container.Status
}

func (s *state) get() container.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// set takes a new state and reports whether it differs from the one before.
func (s *state) set(to container.Status) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	to.Since = s.status.Since
	if s.status == to && !to.Since.IsZero() {
		return false
	}
	to.Since = time.Now()
	s.status = to
	return true
}
