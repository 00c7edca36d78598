package native

import (
	"os"
	"time"
)

const (
	// patience is how long a stack waits for a file to be read. Most take a millisecond; the largest take longer, and a file
	// system that a container has mounted itself may never answer.
	patience = time.Second
	// maxSlow bounds the reads that have outlasted our patience, maxSlowScope those of one container: each holds a goroutine,
	// an open file, and the patience of all stacks behind it.
	maxSlow, maxSlowScope = 8, 1
	// scopePatience, in patiences, is how long one container's files may hold up everybody's stacks in one window: a file system
	// that answers each time just before our patience ends would stop us for good. Then its files are read behind our back
	// and their names come a window later.
	scopePatience = 2
)

// opener opens a file, and says whether another process had to help.
type opener func() (f *os.File, donated bool, err error)

// pending is a read under way.
type pending struct {
	scope uint32
	done  chan struct{}
}

// ended reports whether the read is over.
func (p *pending) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// load is a file being opened and read. What it found may be looked at when done is closed.
type load[T any] struct {
	pending
	found T
	donor bool
	err   error
}

// loader reads files on goroutines of their own, so that no file can stop who needs it. One goroutine owns it.
type loader struct {
	patience time.Duration
	slow     []*pending
	waited   map[uint32]time.Duration // by scope, in this window
}

func newLoader() *loader {
	return &loader{patience: patience, waited: map[uint32]time.Duration{}}
}

// start begins to open a file and to read it; nil if too many reads are under way that do not end.
func start[T any](l *loader, scope uint32, open opener, read func(*os.File) (T, error)) *load[T] {
	same := 0
	running := l.slow[:0]
	for _, s := range l.slow {
		if s.ended() {
			continue
		}
		running = append(running, s)
		if s.scope == scope {
			same++
		}
	}
	clear(l.slow[len(running):])
	l.slow = running
	if len(l.slow) >= maxSlow || same >= maxSlowScope {
		return nil
	}
	r := &load[T]{pending: pending{scope: scope, done: make(chan struct{})}}
	go func() {
		defer close(r.done)
		f, donated, err := open()
		r.donor = donated
		if err != nil {
			r.err = err
			return
		}
		defer f.Close()
		r.found, r.err = read(f)
	}()
	return r
}

// windowEnd gives every scope new patience.
func (l *loader) windowEnd() { clear(l.waited) }

// wait reports whether a read has ended, after giving it a moment to do so.
func (l *loader) wait(r *pending) bool {
	if l.patient(r.scope, r.done) {
		return true
	}
	l.slow = append(l.slow, r)
	return false
}

// patient waits for something of a scope until our patience with it ends, and reports whether it is done.
func (l *loader) patient(scope uint32, done <-chan struct{}) bool {
	began := time.Now()
	defer func() { l.waited[scope] += time.Since(began) }()
	t := time.NewTimer(max(0, min(l.patience, scopePatience*l.patience-l.waited[scope])))
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}
