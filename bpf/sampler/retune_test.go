//go:build root

package sampler_test

import (
	"math"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/bpf/sampler"
)

// The clock changes its frequency while a process is sampled, several times in one window and over windows: each sample is worth the
// time that its own frequency says, and nothing is lost but the moments in between.
func TestTheFrequencyChangesWhileSamplesAreTaken(t *testing.T) {
	dir, id := newCgroup(t, cgroup2(t), "retune")
	s, c, stop := open(t, sampler.Config{FrequencyHz: 97}, time.Second)
	period := map[uint32]time.Duration{mustAdd(t, s, id, 1): time.Second / 97}
	cmd := start(t, dir, "spin")
	for _, hz := range []int{499, 97, 997, 199, 49, 499} {
		sleep(700 * time.Millisecond)
		swap, err := s.Scopes().Retune(hz)
		if err != nil {
			t.Fatal(err)
		}
		if err := swap(func() { period[mustAdd(t, s, id, 1)] = time.Second / time.Duration(hz) }); err != nil {
			t.Fatal(err)
		}
	}
	sleep(700 * time.Millisecond)
	cpu := freeze(t, cmd)
	st := stop()
	checkProtocol(t, c, st)
	var value, variance float64 // seconds
	for scope, n := range c.n {
		p := period[scope].Seconds()
		if p == 0 {
			t.Errorf("%d samples of scope %d, which was none of ours", n, scope)
		}
		value += float64(c.weight[scope]) * p
		variance += float64(n) * p * p
	}
	if len(c.n) != len(period) {
		t.Errorf("samples in %d scopes, want some at each of %d frequencies", len(c.n), len(period))
	}
	t.Logf("%d samples worth %.3f s, %.3f s of CPU", c.total(), value, cpu.Seconds())
	if off := math.Abs(value - cpu.Seconds()); off > 4*math.Sqrt(variance)+0.05 {
		t.Errorf("samples are worth %.3f s, the process used %.3f s", value, cpu.Seconds())
	}
	// The clock's own account goes over all frequencies.
	if missed := st.Ticks - float64(st.Runs); st.Ticks < float64(c.total()) || missed > 0.5*st.Ticks {
		t.Errorf("%.0f ticks were due and %d came", st.Ticks, st.Runs)
	}
	if _, err := s.Scopes().Retune(0); err == nil {
		t.Error("0 Hz is taken")
	}
}
