//go:build root

package e2e

import (
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/sink/web"
	"github.com/stoker-profiler/stoker/test/workload"
)

// A container asks for more samples than the others have. The events tick as fast as it asks, the others are thinned to what they had,
// and all samples are worth the time that they stand for, those of before included.
func TestAContainerAsksForAHigherFrequency(t *testing.T) {
	const frequency, asked = 97, 194
	a := startAgent(t, options{frequency: frequency})
	plain := start(t, spec{args: []string{"/" + workload.Burn, "0", "1"}})
	a.stored(t, plain.id, "a profile of plain", func(p sink.Profile) bool { return p.Total > 0 })
	fast := start(t, spec{args: []string{"/" + workload.Burn, "0", "2"}, labels: map[string]string{"stoker.frequency": "194"}})
	c := a.becomes(t, fast.id, "fast has what it asked for", func(c web.Container) bool { return c.GivenFrequency == asked })
	if c.AskedFrequency != asked {
		t.Errorf("fast asked for %d Hz, want %d", c.AskedFrequency, asked)
	}
	a.becomes(t, plain.id, "plain has what it had", func(c web.Container) bool { return c.GivenFrequency == frequency && c.AskedFrequency == 0 })
	time.Sleep(8 * time.Second)
	chargedPlain, chargedFast := plain.kill(t), fast.kill(t)
	a.stop(t)
	sum := func(b *box) (total time.Duration) {
		for _, p := range a.profiles(t, b.id) {
			b.wantLabels(t, p)
			total += time.Duration(p.Total)
		}
		return total
	}
	// Each change of the frequency begins a new period on each CPU; and thinning draws lots.
	wantCPU(t, "plain", sum(plain), chargedPlain, frequency, 100*time.Millisecond)
	wantCPU(t, "fast", sum(fast), chargedFast, asked, 100*time.Millisecond)
	if pic := look(t, a.profiles(t, fast.id)); pic.cum["unique_1"] != 0 || pic.share(pic.cum, "unique_2") < 90 {
		t.Errorf("fast has\n%s", pic)
	}
}
