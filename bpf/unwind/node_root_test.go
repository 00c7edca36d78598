//go:build root

package unwind_test

import (
	"fmt"
	"math"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/test/nodejs"
)

// javascriptLines are the lines of testdata/truth.js at which spin works.
var javascriptLines = []string{"spin:11", "spin:13", "spin:14", "spin:15"}

// Functions of JavaScript in the places of V8's frames: callers, shares and lines as they are, in every version
// that is maintained for long.
func TestStacksOfNode(t *testing.T) {
	for _, b := range nodejs.Binaries(t) {
		if major, _, _ := strings.Cut(b.Version, "."); (major[len(major)-1]-'0')%2 != 0 {
			continue
		}
		t.Run(b.Version, func(t *testing.T) {
			lines, stacks := map[string]uint64{}, map[string]uint64{}
			l := sampleAt(t, exec.Command(b.Path, "testdata/truth.js", "1"), 297, func(_ int, locations []*profile.Location, n uint64) {
				if f := locations[0].Line[0]; f.Line != 0 {
					lines[fmt.Sprintf("%s:%d", f.Function.Name, f.Line)] += n
				}
				var names []string
				for _, loc := range slices.Backward(locations) {
					if loc.Mapping.File == "[javascript]" {
						for _, line := range slices.Backward(loc.Line) {
							names = append(names, line.Function.Name)
						}
					}
				}
				stacks[strings.Join(names, ";")] += n
			})
			shares := map[string]float64{"method": 3. / 12, "gen": 5. / 12, "byBuiltin": 2. / 12, "deep": 2. / 12}
			got := map[string]uint64{}
			var total, whole uint64
			for stack, n := range stacks {
				if !strings.HasSuffix(stack, ";spin") {
					if n > 5 {
						t.Logf("%4d not in spin: %s", n, stack)
					}
					continue
				}
				total += n
				if m := spunByNode.FindStringSubmatch(stack); m != nil {
					whole += n
					got[m[1]+m[2]+m[3]+m[4]] += n
				} else {
					t.Logf("%4d %s", n, stack)
				}
			}
			t.Logf("%d of %d samples in spin, %d whole; %v, %v", total, l.samples, whole, l.outcomes, l.Stats().Unwinders["node"])
			if total < 30 || float64(whole) < 0.99*float64(total) {
				t.Errorf("%d of %d stacks are those of the program", whole, total)
			}
			for caller, want := range shares {
				share := float64(got[caller]) / float64(whole)
				if chance := 3 * math.Sqrt(want*(1-want)/float64(whole)); math.Abs(share-want) > 0.03+chance {
					t.Errorf("%s has %.3f of spin's time, want %.3f ± 0.03 ± %.3f", caller, share, want, chance)
				}
			}
			var inSpin, right uint64
			for line, n := range lines {
				if strings.HasPrefix(line, "spin:") {
					if inSpin += n; slices.Contains(javascriptLines, line) {
						right += n
					}
				}
			}
			if inSpin < 20 || float64(right) < 0.99*float64(inSpin) {
				t.Errorf("%d of %d samples in spin have its lines: %v", right, inSpin, lines)
			}
		})
	}
}

// spunByNode is a stack of testdata/truth.js.
var spunByNode = regexp.MustCompile(`;\(anonymous\);main;work;(?:(method)|(gen)|(byBuiltin)|(?:deep;){20}(deep));spin$`)
