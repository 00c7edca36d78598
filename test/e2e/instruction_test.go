//go:build root

package e2e

import (
	"slices"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/sink/web"
	"github.com/stoker-profiler/stoker/test/workload"
)

// By containerd's events alone: containers of 100 ms of CPU, one after the other. When each came in scope, relative to the start of
// its program, is reported; nearly all must have samples under their own labels.
func TestBriefContainersByContainerdsEvents(t *testing.T) {
	const runs, bar = 30, 28
	a := startAgent(t, options{})
	var boxes []*box
	found := map[string]web.Container{}
	for range runs {
		b := start(t, spec{args: []string{"/" + workload.Burn, "100"}, labels: map[string]string{"stoker.service": "brief"}})
		b.wait(t)
		b.remove(t)
		boxes = append(boxes, b)
		for _, c := range a.known(t) { // those that ended are listed for two windows
			found[c.ID] = c
		}
	}
	a.stop(t)
	var after []float64 // ms
	sampled := 0
	for _, b := range boxes {
		profiles := a.profiles(t, b.id)
		var total int64
		for _, p := range profiles {
			b.wantLabels(t, p)
			total += p.Total
		}
		c, known := found[b.id]
		if total > 0 {
			sampled++
		} else {
			t.Logf("%s has no samples; known: %t, state %s (%s), in scope %v ms after its start", b.id, known, c.State, c.Reason, c.ScopeAfterStartMS)
		}
		if total > int64(400*time.Millisecond) {
			t.Errorf("%s has %s of CPU in profiles, and asked for 100 ms", b.id, time.Duration(total))
		}
		if c.ScopeAfterStartMS != nil {
			after = append(after, *c.ScopeAfterStartMS)
		}
	}
	slices.Sort(after)
	if len(after) == 0 {
		t.Fatal("of no container it is known when it started and when it was in scope")
	}
	before := 0
	for _, ms := range after {
		if ms < 0 {
			before++
		}
	}
	t.Logf("scope − start over %d containers: p50 %.1f ms, p99 %.1f ms, first %.1f ms; %d in scope before their first instruction; %d of %d have samples",
		len(after), after[len(after)/2], after[min(len(after)-1, len(after)*99/100)], after[0], before, sampled, runs)
	if sampled < bar {
		t.Errorf("%d of %d containers have samples, want %d", sampled, runs, bar)
	}
}
