package sampler

import (
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

type stats struct {
	windows, stacksNew, stacksAgain, stacksLost, stacksEvicted, badRecords atomic.Uint64
	stacksKnown, windowKeys                                                atomic.Int64
}

// Stats are cumulative since Open unless they say otherwise.
type Stats struct {
	// Runs is how often the kernel ran the program on a busy CPU, Ticks how often the clock should have. The difference was
	// skipped by the kernel, uncounted by it, because a bpf() call or other BPF ran on that CPU. Ticks of idle CPUs are in
	// neither: some machines do not deliver them. Ticks is as exact as /proc/stat: 10 ms per CPU and change of the scopes.
	Runs  uint64
	Ticks float64
	// Taken is samples in scope. Outcomes, by name, sum up to it; while the clock ticks they may lag by those in flight.
	Taken    uint64
	Outcomes map[string]uint64
	// Events are other things worth counting, by name.
	Events map[string]uint64
	// Windows closed; stacks that crossed for the first time, again, that a count came without, that were evicted; stacks held now.
	Windows, StacksNew, StacksAgain, StacksLost, StacksEvicted, BadRecords uint64
	StacksKnown                                                            int64
	// MapBytes is the kernel memory of all our maps now.
	MapBytes uint64
	// Scopes in force now.
	Scopes int
}

func (s *Sampler) readCounters() (bpfCounters, error) {
	var perCPU []bpfCounters
	var sum bpfCounters
	if err := s.objs.Counters.Lookup(uint32(0), &perCPU); err != nil {
		return sum, fmt.Errorf("read the sampler's counters: %w", err)
	}
	for _, c := range perCPU {
		sum.Runs += c.Runs
		sum.Idle += c.Idle
		sum.Taken += c.Taken
		for i, n := range c.Outcomes {
			sum.Outcomes[i] += n
		}
		for i, n := range c.Events {
			sum.Events[i] += n
		}
	}
	return sum, nil
}

// Stats reads all counters.
func (s *Sampler) Stats() (Stats, error) {
	c, err := s.readCounters()
	if err != nil {
		return Stats{}, err
	}
	ticks, err := s.clock.ticks()
	if err != nil {
		return Stats{}, err
	}
	st := Stats{
		Runs: c.Runs - c.Idle, Taken: c.Taken, Ticks: ticks,
		Outcomes: map[string]uint64{}, Events: map[string]uint64{},
		Windows: s.stats.windows.Load(), StacksNew: s.stats.stacksNew.Load(), StacksAgain: s.stats.stacksAgain.Load(),
		StacksLost: s.stats.stacksLost.Load(), StacksEvicted: s.stats.stacksEvicted.Load(),
		BadRecords: s.stats.badRecords.Load(), StacksKnown: s.stats.stacksKnown.Load(),
		Scopes: s.scopes.Len(), MapBytes: s.mapBytes(),
	}
	for i, n := range c.Outcomes {
		st.Outcomes[s.names.outcomes[i]] = n
	}
	for i, n := range c.Events {
		st.Events[s.names.events[i]] = n
	}
	return st, nil
}

// names are the spellings of the enums of bpf/include/unwind.h, taken from the object's own type information.
type names struct{ outcomes, events []string }

func readNames(spec *ebpf.CollectionSpec) (names, error) {
	outcomes, err := enumNames(spec, "outcome")
	if err != nil {
		return names{}, err
	}
	events, err := enumNames(spec, "event")
	return names{outcomes, events}, err
}

// enumNames lists the enumerators in lower case without the prefix that the enum's name gives them, and without _COUNT.
func enumNames(spec *ebpf.CollectionSpec, enum string) ([]string, error) {
	var t *btf.Enum
	if err := spec.Types.TypeByName(enum, &t); err != nil {
		return nil, fmt.Errorf("find enum %s in the sampler's BPF object: %w", enum, err)
	}
	out := make([]string, 0, len(t.Values))
	for i, v := range t.Values {
		if v.Value != uint64(i) {
			return nil, fmt.Errorf("enum %s of the sampler's BPF object has a gap at %s", enum, v.Name)
		}
		out = append(out, strings.TrimPrefix(strings.ToLower(v.Name), enum+"_"))
	}
	return out[:len(out)-1], nil // the last is _COUNT
}

// windowKeyBytes is what a key of a window costs in the kernel: the element of a preallocated hash map with 40 + 16 bytes in
// it, and its bucket.
const windowKeyBytes = 112

// mapBytes adds up the memory of our maps as the kernel accounts it (memlock in fdinfo).
func (s *Sampler) mapBytes() uint64 {
	o := &s.objs
	var total uint64
	s.loading.Lock()
	defer s.loading.Unlock()
	all := append([]*ebpf.Map{o.UnwindState, o.Unwinders, o.Counters, o.Seen, o.Stacks, o.Window, o.Rest, o.ScopeStates,
		o.Scopes, o.ScopeAnswers, o.Processes}, s.unwinderMaps...)
	for _, m := range all {
		if info, err := m.Info(); err == nil {
			if n, ok := info.Memlock(); ok {
				total += n
			}
		}
	}
	return total + uint64(s.stats.windowKeys.Load())*windowKeyBytes
}
