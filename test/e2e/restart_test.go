//go:build root

package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/test/workload"
)

// wantNoOverlap checks that no instant of a container is in two profiles, and returns the longest time that is in none.
func wantNoOverlap(t *testing.T, profiles []sink.Profile) (gap time.Duration) {
	t.Helper()
	sorted := slices.SortedFunc(slices.Values(profiles), func(a, b sink.Profile) int { return a.Start.Compare(b.Start) })
	for i := 1; i < len(sorted); i++ {
		before, after := sorted[i-1], sorted[i]
		if d := after.Start.Sub(before.End); d < -time.Millisecond {
			t.Errorf("profiles overlap by %s: [%s, %s) and [%s, %s)", -d, before.Start, before.End, after.Start, after.End)
		} else {
			gap = max(gap, d)
		}
	}
	return gap
}

func TestContainerdRestartsUnderLoad(t *testing.T) {
	d := startDaemon(t)
	a := startAgent(t, options{socket: d.socket()})
	old := d.start(t, spec{args: []string{"/" + workload.Burn, "0", "1"}})
	a.stored(t, old.id, "profile before the restart", func(sink.Profile) bool { return true })

	d.kill(t) // containers live on under their shims
	during := time.Now()
	time.Sleep(2 * a.opts.window)
	d.restart(t)
	after := time.Now()
	young := d.start(t, spec{args: []string{"/" + workload.Burn, "0", "2"}})
	a.stored(t, young.id, "profile of a container that came after the restart", func(p sink.Profile) bool {
		young.wantLabels(t, p)
		return p.Total > 0
	})
	a.stored(t, old.id, "profile of the old container after the restart", func(p sink.Profile) bool { return p.Start.After(after) })
	old.kill(t)
	young.kill(t)
	a.stop(t)

	profiles := a.profiles(t, old.id)
	if gap := wantNoOverlap(t, profiles); gap > a.opts.window/2 {
		t.Errorf("a gap of %s while containerd was away, want none: its containers ran on", gap)
	}
	for _, p := range profiles {
		old.wantLabels(t, p)
	}
	if !slices.ContainsFunc(profiles, func(p sink.Profile) bool { return p.Start.After(during) && p.End.Before(after) }) {
		t.Errorf("no profile from the time when containerd was away")
	}
}

func TestAgentIsKilledAndRestarted(t *testing.T) {
	a := startAgent(t, options{})
	b := start(t, spec{args: []string{"/" + workload.Burn, "0", "1"}})
	a.stored(t, b.id, "profile before the crash", func(sink.Profile) bool { return true })
	programs := a.programs(t)
	if len(programs) == 0 {
		t.Fatal("a running agent holds no BPF programs")
	}
	a.kill(t)
	down := time.Now()
	eventually(t, 10*time.Second, "the kernel lets go of the programs of a killed agent", func() error {
		for id := range bpfPrograms(t) {
			if programs[id] {
				return fmt.Errorf("program %d is still there", id)
			}
		}
		return nil
	})
	time.Sleep(time.Second)
	a.start(t)
	a.ready(t)
	up := time.Now()
	a.stored(t, b.id, "profile after the crash", func(p sink.Profile) bool { return p.Start.After(down) })
	b.kill(t)
	a.stop(t)

	profiles := a.profiles(t, b.id)
	// The window that was open is lost, no more.
	gap, bar := wantNoOverlap(t, profiles), up.Sub(down)+a.opts.window+a.opts.window/2
	t.Logf("gap of %s around an outage of %s", gap, up.Sub(down))
	if gap > bar {
		t.Errorf("gap of %s, want at most the outage of %s plus a window of %s", gap, up.Sub(down), a.opts.window)
	}
	for _, p := range profiles {
		b.wantLabels(t, p)
	}
}
