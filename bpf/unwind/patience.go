package unwind

import (
	"errors"
	"time"
)

// ErrSlow says that something did not end within a moment, or was not tried because of such: it is worth trying again in a later window.
var ErrSlow = errors.New("it takes too long")

const (
	// maxPatience is how long a stack waits for one read of a file or of a process's memory. Most take microseconds; a file system that
	// a container has mounted itself, and memory that a process answers for (userfaultfd), may never answer.
	maxPatience = time.Second
	// scopePatience, in these, is how long all stacks together wait for the reads of one scope in a window.
	scopePatience = 2
	// maxStuck bounds the reads that have outlasted our patience. Each holds a goroutine; a scope has one at most.
	maxStuck = 8
)

// Patience bounds how long reads of what belongs to a stranger hold up the goroutine of the [Symbolizer], which owns it.
type Patience struct {
	each   time.Duration
	waited map[uint32]time.Duration   // by scope, in this window
	stuck  map[uint32]<-chan struct{} // by scope; closed when the read has ended
}

func newPatience() *Patience {
	return &Patience{each: maxPatience, waited: map[uint32]time.Duration{}, stuck: map[uint32]<-chan struct{}{}}
}

// windowEnd gives every scope new patience.
func (p *Patience) windowEnd() { clear(p.waited) }

// Patiently calls read on a goroutine of its own and returns what it returns, if that comes in time; otherwise [ErrSlow]. read touches
// nothing that belongs to the caller: it may go on after Patiently has returned.
func Patiently[T any](p *Patience, scope uint32, read func() (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	var none T
	for s, done := range p.stuck {
		select {
		case <-done:
			delete(p.stuck, s)
		default:
		}
	}
	if _, ok := p.stuck[scope]; ok || len(p.stuck) >= maxStuck {
		return none, ErrSlow
	}
	done, out := make(chan struct{}), make(chan result, 1)
	go func() {
		defer close(done)
		v, err := read()
		out <- result{v, err}
	}()
	began := time.Now()
	t := time.NewTimer(max(0, min(p.each, scopePatience*p.each-p.waited[scope])))
	defer t.Stop()
	defer func() { p.waited[scope] += time.Since(began) }()
	select {
	case r := <-out:
		return r.v, r.err
	case <-t.C:
		p.stuck[scope] = done
		return none, ErrSlow
	}
}
