package sampler

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
)

// Scopes is what the kernel knows of profiled containers: cgroup id → scope. It is safe for concurrent use; each call is a
// few system calls and no other I/O.
type Scopes struct {
	s *Sampler

	mu       sync.Mutex        // protects what follows
	next     uint32            // scope ids are never reused; 0 means none
	byCgroup map[uint64]uint32 // live scopes
	barred   map[uint64]bool   // cgroups that are kept out of the scopes they lie in
	leaving  map[uint32]int    // scopes removed, and how many more windows their counts may still come
	change   uint64            // mirrors scope_generation
}

func newScopes(s *Sampler) *Scopes {
	return &Scopes{s: s, byCgroup: map[uint64]uint32{}, barred: map[uint64]bool{}, leaving: map[uint32]int{}}
}

// leavingWindows is how many window ends a removed scope still has counts to expect: its last samples are in the open window,
// and stackless ones are read with the next.
const leavingWindows = 2

// Add puts a cgroup and all below it in scope and returns its scope id, when samples of it are being taken. With thinning n
// one in n samples is taken, at random, and counts n times; 0 is taken as 1. A cgroup that was in scope gets a new id.
func (sc *Scopes) Add(cgroupID uint64, thinning uint32) (scopeID uint32, err error) {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	thinning = max(1, thinning)
	if _, again := sc.byCgroup[cgroupID]; !again && len(sc.byCgroup) >= sc.s.cfg.MaxScopes {
		return 0, sc.full(fmt.Errorf("add scope for cgroup %d", cgroupID))
	}
	id := sc.next + 1
	// First what a sample of the new scope needs, then the scope itself.
	state := bpfScopeState{StacksLeft: int64(sc.s.cfg.StacksPerScope)}
	if err := sc.s.objs.ScopeStates.Put(id, state); err != nil {
		return 0, sc.full(fmt.Errorf("add scope for cgroup %d: %w", cgroupID, err))
	}
	for origin := range uint32(originCount) {
		if err := sc.s.objs.Rest.Put(bpfRestKey{Scope: id, Origin: origin}, make([]bpfCount, ebpf.MustPossibleCPU())); err != nil {
			sc.forgetLocked(id)
			return 0, sc.full(fmt.Errorf("add scope for cgroup %d: %w", cgroupID, err))
		}
	}
	if err := sc.s.objs.Scopes.Put(cgroupID, bpfScope{Id: id, Thinning: thinning}); err != nil {
		sc.forgetLocked(id)
		return 0, sc.full(fmt.Errorf("add scope for cgroup %d: %w", cgroupID, err))
	}
	sc.next = id
	if old, ok := sc.byCgroup[cgroupID]; ok {
		sc.leaving[old] = leavingWindows
	}
	sc.byCgroup[cgroupID] = id
	delete(sc.barred, cgroupID)
	if err := sc.changedLocked(); err != nil {
		return 0, err
	}
	return id, sc.s.clock.enable(true)
}

func (sc *Scopes) full(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) || sc.s.cfg.MaxScopes > len(sc.byCgroup) {
		return err
	}
	return fmt.Errorf("%w; %d containers are in scope already, which is the limit: exclude some by targets", err, len(sc.byCgroup))
}

// Bar keeps a cgroup and all below it out of the scope that it lies in; cgroups below it that are in scope themselves stay so. One
// that was in scope no longer is, as after Remove.
func (sc *Scopes) Bar(cgroupID uint64) error {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if sc.barred[cgroupID] {
		return nil
	}
	if len(sc.barred) >= sc.s.cfg.MaxScopes {
		return fmt.Errorf("keep cgroup %d out of scope: %d cgroups are kept out already, which is the limit", cgroupID, len(sc.barred))
	}
	if err := sc.s.objs.Scopes.Put(cgroupID, bpfScope{}); err != nil { // id 0: the walk up the tree ends here, in no scope
		return fmt.Errorf("keep cgroup %d out of scope: %w", cgroupID, err)
	}
	sc.barred[cgroupID] = true
	return sc.leftLocked(cgroupID)
}

// Remove takes a cgroup out of scope, or undoes Bar. Removing what is neither is no error. Counts made so far still come with the
// next two windows.
func (sc *Scopes) Remove(cgroupID uint64) error {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if _, ok := sc.byCgroup[cgroupID]; !ok && !sc.barred[cgroupID] {
		return nil
	}
	if err := sc.s.objs.Scopes.Delete(cgroupID); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("remove the scope of cgroup %d: %w", cgroupID, err)
	}
	delete(sc.barred, cgroupID)
	return sc.leftLocked(cgroupID)
}

// leftLocked does what follows when a cgroup is in scope no longer.
func (sc *Scopes) leftLocked(cgroupID uint64) error {
	id, was := sc.byCgroup[cgroupID]
	if was {
		delete(sc.byCgroup, cgroupID)
		sc.leaving[id] = leavingWindows
	}
	if err := sc.changedLocked(); err != nil {
		return err
	}
	if was && len(sc.byCgroup) == 0 {
		return sc.s.clock.enable(false) // nothing in scope: nothing ticks
	}
	return nil
}

// Retune makes the clock ready for another frequency, and returns what switches to it: between is called while nothing ticks, and is
// where scopes get new ids, so that each id stands for samples of one frequency only. swap must be called, once; one Retune at a
// time. An error of Retune changes nothing; one of swap means that some CPU is not sampled.
func (sc *Scopes) Retune(frequencyHz int) (swap func(between func()) error, err error) {
	if frequencyHz < 1 || frequencyHz > maxFrequencyHz {
		return nil, fmt.Errorf("sampling frequency is %d Hz; it must be between 1 and %d", frequencyHz, maxFrequencyHz)
	}
	swap, err = sc.s.clock.retune(frequencyHz)
	if err != nil {
		return nil, fmt.Errorf("sample at %d Hz: %w", frequencyHz, err)
	}
	return swap, nil
}

// Len is how many cgroups are in scope.
func (sc *Scopes) Len() int {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	return len(sc.byCgroup)
}

// changedLocked makes the kernel's cached answers void.
func (sc *Scopes) changedLocked() error {
	sc.change++
	if err := sc.s.objs.ScopeGeneration.Set(sc.change); err != nil {
		return fmt.Errorf("tell the kernel side that scopes changed: %w", err)
	}
	return nil
}

func (sc *Scopes) forgetLocked(id uint32) {
	// Absent is fine: Add may have failed half-way.
	_ = sc.s.objs.ScopeStates.Delete(id)
	for origin := range uint32(originCount) {
		_ = sc.s.objs.Rest.Delete(bpfRestKey{Scope: id, Origin: origin})
	}
}

// ids returns live and leaving scopes.
func (sc *Scopes) ids() map[uint32]bool {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	ids := make(map[uint32]bool, len(sc.byCgroup)+len(sc.leaving))
	for _, id := range sc.byCgroup {
		ids[id] = true
	}
	for id := range sc.leaving {
		ids[id] = true
	}
	return ids
}

// windowEnd refills the budgets of new stacks and forgets scopes that nothing can come from any more.
func (sc *Scopes) windowEnd() error {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	for id, left := range sc.leaving {
		if left > 1 {
			sc.leaving[id] = left - 1
			continue
		}
		delete(sc.leaving, id)
		sc.forgetLocked(id)
	}
	if len(sc.byCgroup) == 0 {
		return nil
	}
	ids := make([]uint32, 0, len(sc.byCgroup))
	states := make([]bpfScopeState, 0, len(sc.byCgroup))
	for _, id := range sc.byCgroup {
		ids = append(ids, id)
		states = append(states, bpfScopeState{StacksLeft: int64(sc.s.cfg.StacksPerScope)})
	}
	if _, err := sc.s.objs.ScopeStates.BatchUpdate(ids, states, nil); err != nil {
		return fmt.Errorf("refill the budgets of new stacks: %w", err)
	}
	return nil
}
