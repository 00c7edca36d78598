package registry

import (
	"errors"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// tunable is a kernel whose events can change their frequency.
type tunable struct {
	*kernel
	hz      int
	still   bool             // nothing ticks
	born    map[uint32]int   // scope id → frequency of its samples
	asleep  map[uint32]bool  // scopes made while nothing ticked
	refuses map[int]error    // frequencies
	fails   map[uint64]error // cgroups, while nothing ticks
	asked   []int
}

func newTunable(hz int) *tunable {
	return &tunable{kernel: newKernel(), hz: hz, born: map[uint32]int{}, asleep: map[uint32]bool{}, refuses: map[int]error{}, fails: map[uint64]error{}}
}

func (k *tunable) Add(cgroup uint64, thinning uint32) (uint32, error) {
	if k.still && k.fails[cgroup] != nil {
		return 0, k.fails[cgroup]
	}
	id, err := k.kernel.Add(cgroup, thinning)
	k.born[id], k.asleep[id] = k.hz, k.still
	return id, err
}

func (k *tunable) Retune(hz int) (func(func()) error, error) {
	k.asked = append(k.asked, hz)
	if err := k.refuses[hz]; err != nil {
		return nil, err
	}
	return func(between func()) error {
		k.hz, k.still = hz, true
		between()
		k.still = false
		return nil
	}, nil
}

// wrong are scopes in force whose samples are not worth what the registry says.
func (k *tunable) wrong(t *testing.T, r *Registry) {
	t.Helper()
	for cgroup, id := range k.scopes {
		rec, ok := r.Lookup(id)
		if !ok || k.born[id] != k.hz || rec.Period != time.Second/time.Duration(k.hz) || rec.Thinning != k.thin[id] {
			t.Errorf("scope %d of cgroup %d is of events of %d Hz, which now tick at %d; the registry takes a sample for %d × %s", id, cgroup, k.born[id], k.hz, rec.Thinning, rec.Period)
		}
	}
}

func TestTheEventsTickAsFastAsTheContainerThatAsksForMost(t *testing.T) {
	k := newTunable(97)
	b := newBench(t, Config{ContainerLabels: allowAll})
	b.Registry.scopes = k
	asks := func(id string, cgroup uint64, hz string) {
		b.say("x", container.Upsert, container.Container{ID: id, CgroupID: cgroup, Labels: map[string]string{LabelFrequency: hz}})
	}
	given := func(want map[string]int) {
		t.Helper()
		for _, rec := range b.List() {
			if rec.State != Gone && rec.GivenFrequency != want[rec.ID] {
				t.Errorf("%s has %d Hz, want %d", rec.ID, rec.GivenFrequency, want[rec.ID])
			}
		}
		k.wrong(t, b.Registry)
	}
	b.say("x", container.Upsert, container.Container{ID: "plain", CgroupID: 1})
	asks("slow", 2, "10")
	b.WindowEnd()
	given(map[string]int{"plain": 97, "slow": 10})
	if len(k.asked) != 0 {
		t.Errorf("the kernel was asked for %v though nobody asks for more", k.asked)
	}

	asks("fast", 3, "194")
	given(map[string]int{"plain": 97, "slow": 10, "fast": 97}) // until the window ends
	old := b.Registry.byCgroup[1].scope.id
	b.WindowEnd()
	given(map[string]int{"plain": 97, "slow": 10, "fast": 194})
	if k.hz != 194 || len(k.asked) != 1 || !k.asleep[k.scopes[1]] || k.scopes[1] == old {
		t.Errorf("events tick at %d Hz after %v; scope of plain was %d and is %d, made while nothing ticked: %t", k.hz, k.asked, old, k.scopes[1], k.asleep[k.scopes[1]])
	}
	if rec, ok := b.Lookup(old); !ok || rec.Period != time.Second/97 || rec.Thinning != 1 || rec.GivenFrequency != 97 {
		t.Errorf("samples of before are taken for %d × %s", rec.Thinning, rec.Period)
	}

	asks("greedy", 4, "5000") // no more than allowed
	b.WindowEnd()
	given(map[string]int{"plain": 100, "slow": 10, "fast": 199, "greedy": 199})
	if k.hz != 199 {
		t.Errorf("events tick at %d Hz, want the 199 that are allowed", k.hz)
	}

	// Who asks for more goes, comes back, goes: the events stay as fast for a while.
	b.say("x", container.Gone, container.Container{ID: "greedy"})
	b.say("x", container.Gone, container.Container{ID: "fast"})
	for range calmWindows - 1 {
		b.WindowEnd()
	}
	asks("fast", 5, "199")
	b.WindowEnd()
	b.say("x", container.Gone, container.Container{ID: "fast"})
	for range calmWindows - 1 {
		b.WindowEnd()
	}
	if k.hz != 199 {
		t.Errorf("events tick at %d Hz already", k.hz)
	}
	b.WindowEnd()
	given(map[string]int{"plain": 97, "slow": 10})
	if k.hz != 97 {
		t.Errorf("events tick at %d Hz, want 97 again", k.hz)
	}

	// An excluded one asks in vain, and so do all when the configuration does not let them.
	b.SetTargets([]Rule{{Exclude: true, Name: "fast"}}, allowAll)
	asks("fast", 6, "199")
	b.WindowEnd()
	if k.hz != 97 {
		t.Errorf("events tick at %d Hz for a container that is excluded", k.hz)
	}
	b.SetTargets(nil, allowAll)
	b.WindowEnd()
	if k.hz != 199 {
		t.Errorf("events tick at %d Hz for one that is no longer", k.hz)
	}
	given(map[string]int{"plain": 100, "slow": 10, "fast": 199})
}

func TestAFrequencyThatCannotBeHad(t *testing.T) {
	k := newTunable(97)
	b := newBench(t, Config{ContainerLabels: allowAll})
	b.Registry.scopes = k
	k.refuses[199] = errors.New("too many open files")
	b.say("x", container.Upsert, container.Container{ID: "fast", CgroupID: 1, Labels: map[string]string{LabelFrequency: "199"}})
	b.say("x", container.Upsert, container.Container{ID: "other", CgroupID: 2})
	b.WindowEnd()
	b.WindowEnd()
	k.wrong(t, b.Registry)
	if rec := b.List()[0]; rec.State != Profiled || rec.AskedFrequency != 199 || rec.GivenFrequency != 97 || b.Stats().ScopeErrors != 2 {
		t.Errorf("record %+v, stats %+v", rec, b.Stats())
	}
	// A scope that cannot be made anew is worth nothing: it goes, and is tried again.
	delete(k.refuses, 199)
	k.fails[2] = errors.New("the map is full")
	b.WindowEnd()
	k.wrong(t, b.Registry)
	if rec := b.List()[1]; rec.State != Failed || k.scopes[2] != 0 || k.scopes[1] == 0 {
		t.Errorf("record %+v, scopes %v", rec, k.scopes)
	}
	b.WindowEnd()
	k.wrong(t, b.Registry)
	if rec := b.List()[1]; rec.State != Profiled || k.scopes[2] == 0 {
		t.Errorf("record %+v, scopes %v", rec, k.scopes)
	}
}
