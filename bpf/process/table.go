package process

import (
	"cmp"
	"errors"
	"slices"
	"sync/atomic"
	"time"
)

const (
	// exitWindows is how many ends of windows a process is remembered after its exit: its last samples are in the window in
	// which it ended or, if that one was being closed, in the next.
	exitWindows = 2
	// idleWindows is how many windows a process is remembered without a sample. A living one is simply read again; a dead one
	// whose exit we were never told of (it had left the scope) would stay for ever.
	idleWindows = 30
	// The maps of a process are read at its first stack, and again when an address lies nowhere: freeReads times at once (it
	// loads its libraries while it starts), then at most this often, or a runtime that we cannot see into would have its maps
	// read at each new stack.
	freeReads  = 3
	minBackoff = 100 * time.Millisecond
	maxBackoff = 25 * time.Second
	// A process can make its maps as long as it likes. Reading costs about 5 µs per KiB: beyond cheapText the next read waits
	// textDelay for each KiB, which keeps all reading of one process below half a percent of a CPU.
	cheapText = 64 << 10
	textDelay = time.Millisecond
)

// Evidence is something that is known for certain about an address of a process: where it lay in its file when the process
// was sampled.
type Evidence struct{ Address, Offset uint64 }

// Config configures a Table.
type Config struct {
	// Reader reads /proc.
	Reader Reader
	// MaxProcesses bounds the table. Default 8192.
	MaxProcesses int
	// Current says whether the kernel still knows this PID as this process with this exec count. Saying yes of a process that
	// the kernel knows nothing about is right, too: it is not known to have exec'd. Required.
	Current func(ID) bool
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Stats is what a Table did since it was made; Processes and Mappings are current.
type Stats struct {
	Processes, Mappings int64
	Reads               uint64 // maps read
	Gone                uint64 // processes that were gone before their maps could be read
	Stale               uint64 // maps that were another program's: the process had exec'd meanwhile
	Denied              uint64 // reads that were not permitted
	Failed              uint64 // reads that failed otherwise
	TooMany             uint64 // reads that ended at the limit of mappings
	Changed             uint64 // reads after which code was no longer where it had been
	Held                uint64 // reads that were not done because one of the same process was done just before
	Evicted             uint64 // processes forgotten because the table was full
	Exits, Swept        uint64 // processes whose end we were told of, and whose end we found
}

type counters struct {
	processes, mappings                                                               atomic.Int64
	reads, gone, stale, denied, failed, tooMany, changed, held, evicted, exits, swept atomic.Uint64
}

// Table holds the processes that were sampled or exec'd in scope, with where their code lies. One goroutine owns it; Stats may
// be called from any.
type Table struct {
	cfg    Config
	window uint64
	byID   map[ID]*Process // ID with Epoch 0
	byPID  map[uint32]*Process
	scopes map[uint32]map[*Process]struct{}
	lost   func(*Process)
	stats  counters
}

// Process is one process. It belongs to its Table's goroutine.
type Process struct {
	id    ID // Epoch 0
	scope uint32
	// before is what this PID was before its last exec, until the first read of maps.
	before *Process

	maps *Maps
	// previous is what maps were before the last change: stacks that were sampled before it may still be on their way.
	previous *Maps
	replaced uint64 // window of the last change
	// proven is true when the kernel confirmed that maps are those of id: it had not exec'd until after they were read.
	proven bool
	gone   bool   // there is nothing to read any more
	exited uint64 // window in which its end was told, 0 if not
	used   uint64 // last window with a sample or an exec

	rereads   int
	notBefore time.Time // next read on demand
	backoff   time.Duration
	cheapAt   time.Time // next read of any kind: see cheapText
}

// NewTable makes an empty table. forgotten, if not nil, is called with each process that leaves it.
func NewTable(cfg Config, forgotten func(*Process)) *Table {
	if cfg.MaxProcesses <= 0 {
		cfg.MaxProcesses = 8192
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if forgotten == nil {
		forgotten = func(*Process) {}
	}
	return &Table{cfg: cfg, window: 1, byID: map[ID]*Process{}, byPID: map[uint32]*Process{},
		scopes: map[uint32]map[*Process]struct{}{}, lost: forgotten}
}

// ID returns the process's identity, with Epoch 0.
func (p *Process) ID() ID { return p.id }

// Scope returns the scope in which it was last seen.
func (p *Process) Scope() uint32 { return p.scope }

// Gone reports whether the process has ended, as far as we know: /proc has nothing more to say about it.
func (p *Process) Gone() bool { return p.gone }

// Maps returns where its code lies; nil if that could not be read.
func (p *Process) Maps() *Maps { return p.maps }

// Find returns the mapping that holds the address now or, if none does, did before the last change. The result is shared.
func (p *Process) Find(address uint64) (*Mapping, bool) {
	if m, ok := p.maps.Find(address); ok {
		return m, true
	}
	return p.previous.Find(address)
}

// Exec enters a process that has just exec'd and reads its maps at once: it may be gone in a millisecond.
func (t *Table) Exec(id ID, scope uint32) *Process {
	id.Epoch = 0
	p := t.enter(id, scope)
	if p.maps == nil && !p.gone {
		t.read(p, true, nil)
	}
	return p
}

// Get returns the process that a stack came from, and enters it if it is new. Its maps have been read, unless that was not
// possible. Evidence, if there is any, stands in for the kernel's word when the kernel does not know the process any more.
func (t *Table) Get(id ID, scope uint32, evidence []Evidence) *Process {
	id.Epoch = 0
	p := t.enter(id, scope)
	if p.maps != nil && !p.proven {
		// They were read at its exec. If it has not exec'd since, they are its own; that it may be gone by now does not
		// matter, because the kernel keeps its entry for two windows. If it has, they may be those of the next program, whose exec
		// we have not heard of yet: then only evidence can speak for them.
		if t.cfg.Current(p.id) || p.maps.Agrees(evidence) {
			p.proven = true
		} else {
			t.stats.stale.Add(1)
			t.set(p, nil)
		}
	}
	if p.maps == nil {
		t.demand(p, evidence)
	}
	return p
}

// Agrees reports whether all evidence that the maps cover, and at least some, says the same as they do. Programs that are linked to a
// fixed low address agree with one another there, so that proves nothing; elsewhere addresses are random.
func (m *Maps) Agrees(evidence []Evidence) bool {
	some := false
	for _, e := range evidence {
		c, ok := m.Find(e.Address)
		switch {
		case !ok: // mapped later, or the wrong maps
		case c.FileOffset(e.Address) != e.Offset:
			return false
		case e.Address >= 1<<32:
			some = true
		}
	}
	return some
}

// enter finds or makes a process.
func (t *Table) enter(id ID, scope uint32) *Process {
	if p := t.byID[id]; p != nil {
		p.used = t.window
		if p.scope != scope {
			t.leaveScope(p)
			p.scope = scope
			t.joinScope(p)
		}
		return p
	}
	if len(t.byID) >= t.cfg.MaxProcesses {
		t.evict()
	}
	p := &Process{id: id, scope: scope, used: t.window}
	if old := t.byPID[id.PID]; old != nil {
		if old.id.StartBoottime > id.StartBoottime || old.id.StartBoottime == id.StartBoottime && old.id.ExecID > id.ExecID {
			// A late stack of what this PID was before: nothing can be read about that any more.
			t.stats.gone.Add(1)
			p.gone = true
			t.markExited(p)
		} else {
			old.gone = true
			t.markExited(old)
			if old.id.StartBoottime == id.StartBoottime {
				p.before, old.before = old, nil
			}
		}
	}
	if !p.gone {
		t.byPID[id.PID] = p
	}
	t.byID[id] = p
	t.joinScope(p)
	t.stats.processes.Store(int64(len(t.byID)))
	return p
}

func (t *Table) joinScope(p *Process) {
	s := t.scopes[p.scope]
	if s == nil {
		s = map[*Process]struct{}{}
		t.scopes[p.scope] = s
	}
	s[p] = struct{}{}
}

func (t *Table) leaveScope(p *Process) {
	if s := t.scopes[p.scope]; s != nil {
		if delete(s, p); len(s) == 0 {
			delete(t.scopes, p.scope)
		}
	}
}

// Siblings returns at most n other processes of the same scope whose maps are known, living ones first.
func (t *Table) Siblings(p *Process, n int) []*Process {
	var living, ended []*Process
	for q := range t.scopes[p.scope] {
		switch {
		case q == p || q.maps == nil:
		case !q.gone:
			living = append(living, q)
		default:
			ended = append(ended, q)
		}
		if len(living) == n {
			break
		}
	}
	all := append(living, ended...)
	return all[:min(n, len(all))]
}

// Change says what a read of maps brought.
type Change struct {
	// Fresh: there is code where there was none, or other code. What was not found before may be found now.
	Fresh bool
	// Moved: code of a file that was there is not there any more. What was named before may be wrong for the next sample.
	Moved bool
}

// Reread reads the maps again because an address was not found, unless that was done a moment ago.
func (t *Table) Reread(p *Process) Change { return t.demand(p, nil) }

// demand reads the maps for a stack, within limits.
func (t *Table) demand(p *Process, evidence []Evidence) Change {
	if p.gone || t.held(p) {
		return Change{}
	}
	if p.rereads++; p.rereads > freeReads {
		p.backoff = min(max(2*p.backoff, minBackoff), maxBackoff)
		p.notBefore = t.cfg.Now().Add(p.backoff)
	}
	c := t.read(p, false, evidence)
	if c.Fresh {
		p.backoff = 0
	}
	return c
}

// Refresh reads the maps of a process that was sampled in the window that ends, unless that is too expensive for now.
func (t *Table) Refresh(p *Process) Change {
	p.used = t.window
	if p.gone || t.cfg.Now().Before(p.cheapAt) {
		return Change{}
	}
	return t.read(p, false, nil)
}

// held says, and counts, that a read on demand has to wait.
func (t *Table) held(p *Process) bool {
	now := t.cfg.Now()
	if now.Before(p.notBefore) || now.Before(p.cheapAt) {
		t.stats.held.Add(1)
		return true
	}
	return false
}

// read reads the maps of p and takes them over if they are its own.
func (t *Table) read(p *Process, atExec bool, evidence []Evidence) Change {
	m, err := t.cfg.Reader.Maps(p.id)
	t.stats.reads.Add(1)
	switch {
	case errors.Is(err, ErrTooManyMappings):
		t.stats.tooMany.Add(1)
	case errors.Is(err, ErrGone):
		if p.maps == nil {
			t.stats.gone.Add(1)
		}
		p.gone = true
		return Change{}
	case errors.Is(err, ErrDenied):
		t.stats.denied.Add(1)
		return Change{}
	case err != nil:
		t.stats.failed.Add(1)
		return Change{}
	}
	p.cheapAt = t.cfg.Now().Add(time.Duration(max(0, m.text-cheapText)>>10) * textDelay)
	// At an exec the kernel may not know the process, for it was never sampled: the first stack will tell whether the maps are
	// its own. Otherwise they need the kernel's word, after the read, that it has not exec'd.
	if !atExec {
		if !t.cfg.Current(p.id) && !m.Agrees(evidence) {
			t.stats.stale.Add(1)
			p.gone = p.gone || p.proven // it was this program, and is another one now
			return Change{}
		}
		p.proven = true
	}
	t.disproveEarlier(p, m)
	return t.set(p, m)
}

// disproveEarlier looks at what the PID was before its last exec: maps that were read for it after an exec of which we had
// not heard yet are the new program's. No two programs have equal address spaces.
func (t *Table) disproveEarlier(p *Process, m *Maps) {
	q := p.before
	p.before = nil
	if q != nil && !q.proven && q.maps != nil && q.maps.Equal(m) {
		t.stats.stale.Add(1)
		t.set(q, nil)
	}
}

// set takes over new maps; nil drops them.
func (t *Table) set(p *Process, m *Maps) (c Change) {
	old := p.maps
	if m != nil {
		c.Fresh = !m.Equal(old)
		if old != nil && c.Fresh {
			p.previous, p.replaced = old, t.window
			if c.Moved = !m.Keeps(old); c.Moved {
				t.stats.changed.Add(1)
			}
		}
	} else {
		p.previous, p.proven = nil, false
	}
	t.stats.mappings.Add(int64(len(m.Code()) - len(old.Code())))
	p.maps = m
	return c
}

// Adopt gives a process that is gone the maps of another one that was found to have the same address space.
func (t *Table) Adopt(p, from *Process) {
	t.set(p, from.maps)
	p.proven = true
}

// Exit notes that the last thread of a process is ending. It is forgotten after two ends of windows.
func (t *Table) Exit(id ID) {
	id.Epoch = 0
	if p := t.byID[id]; p != nil && p.exited == 0 {
		t.stats.exits.Add(1)
		t.markExited(p)
	}
}

func (t *Table) markExited(p *Process) {
	if p.exited == 0 {
		p.exited = t.window
	}
}

// Sweep looks which processes have ended without our being told: records of exits were lost.
func (t *Table) Sweep() {
	for _, p := range t.byID {
		if p.exited != 0 {
			continue
		}
		if alive, err := t.cfg.Reader.Alive(p.id); err == nil && !alive {
			t.stats.swept.Add(1)
			p.gone = true
			t.markExited(p)
		}
	}
}

// WindowEnd forgets processes that ended two windows ago, or that nothing was heard of for long, and mappings that were replaced
// two windows ago.
func (t *Table) WindowEnd() {
	t.window++
	for _, p := range t.byID {
		if p.exited != 0 && p.exited+exitWindows <= t.window || p.used+idleWindows <= t.window {
			t.forget(p)
		} else if p.previous != nil && p.replaced+exitWindows <= t.window {
			p.previous = nil
		}
	}
}

// evict makes room: a quarter of the table, those that ended first, then those that were not heard of for longest.
func (t *Table) evict() {
	all := make([]*Process, 0, len(t.byID))
	for _, p := range t.byID {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *Process) int {
		if (a.exited != 0) != (b.exited != 0) {
			if a.exited != 0 {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.used, b.used)
	})
	for _, p := range all[:max(1, len(all)/4)] {
		t.stats.evicted.Add(1)
		t.forget(p)
	}
}

func (t *Table) forget(p *Process) {
	delete(t.byID, p.id)
	if t.byPID[p.id.PID] == p {
		delete(t.byPID, p.id.PID)
	}
	t.leaveScope(p)
	t.set(p, nil)
	t.stats.processes.Store(int64(len(t.byID)))
	t.lost(p)
}

// Lookup returns a process that is in the table.
func (t *Table) Lookup(id ID) (*Process, bool) {
	id.Epoch = 0
	p, ok := t.byID[id]
	return p, ok
}

// Stats returns a copy of the counters. It may be called from any goroutine.
func (t *Table) Stats() Stats {
	s := &t.stats
	return Stats{
		Processes: s.processes.Load(), Mappings: s.mappings.Load(), Reads: s.reads.Load(), Gone: s.gone.Load(),
		Stale: s.stale.Load(), Denied: s.denied.Load(), Failed: s.failed.Load(), TooMany: s.tooMany.Load(),
		Changed: s.changed.Load(), Held: s.held.Load(), Evicted: s.evicted.Load(), Exits: s.exits.Load(), Swept: s.swept.Load(),
	}
}
