//go:build root

package e2e

import (
	"bytes"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/test/workload"
)

// Programs as distributions build them, without frame pointers: their stacks reach the root, and are the true ones.
func TestStacksOfCodeWithoutFramePointersAreWhole(t *testing.T) {
	a := startAgent(t, options{frequency: fine})
	shares := start(t, spec{args: []string{"/" + workload.SharesOmit}})
	calls := start(t, spec{args: []string{"/lib64/ld-linux-x86-64.so.2", "--library-path", "/lib64", "/" + workload.Calls}})
	boxes := map[string]*box{workload.SharesOmit: shares, workload.Calls: calls}
	for _, b := range boxes {
		b.used(t, 6*time.Second)
	}
	for _, b := range boxes {
		b.kill(t)
	}
	a.stop(t)
	for program, b := range boxes {
		whole, all := wholeStacks(t, a.profiles(t, b.id), "/"+program)
		t.Logf("%s: %.2f %% of its stacks reach _start", program, 100*float64(whole)/float64(all))
		if float64(all) < 4e9 || float64(whole) < 0.99*float64(all) {
			t.Errorf("%s: %s of %s has a stack from _start on\n%s", program, time.Duration(whole), time.Duration(all), look(t, a.profiles(t, b.id)))
		}
	}
	pic := look(t, a.profiles(t, shares.id))
	pic.wantShares(t, "static program, by stack", pic.bySuffix(4), map[string]float64{
		"main;cycle;alpha;leaf_sixty": 60, "main;cycle;beta;leaf_thirty": 30, "cycle;beta;gamma_;leaf_ten": 10,
	})
	// The program asks the clock what to do next, so only what calls what is certain.
	pic = look(t, a.profiles(t, calls.id))
	if sorts, copies, formats := pic.share(pic.cum, "sorts"), pic.share(pic.cum, "copies"), pic.share(pic.cum, "formats"); sorts < 20 || copies < 20 || formats < 20 ||
		math.Abs(sorts+copies+formats-pic.share(pic.cum, "main")) > 1 {
		t.Errorf("sorts %.1f %%, copies %.1f %%, formats %.1f %%, main %.1f %%\n%s", sorts, copies, formats, pic.share(pic.cum, "main"), pic)
	}
}

// wholeStacks is the time in stacks of a program, and in those of them that begin where it begins. What ran in the container before
// the program was there is left out.
func wholeStacks(t *testing.T, profiles []sink.Profile, program string) (whole, all int64) {
	t.Helper()
	for _, sp := range profiles {
		p, err := profile.Parse(bytes.NewReader(sp.Pprof))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range p.Sample {
			if !slices.ContainsFunc(s.Location, func(l *profile.Location) bool { return l.Mapping != nil && l.Mapping.File == program }) {
				continue
			}
			if all += s.Value[0]; namesOf(s)[0] == "_start" {
				whole += s.Value[0]
			}
		}
	}
	return whole, all
}
