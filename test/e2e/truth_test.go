//go:build root || guest

package e2e

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/sink"
)

// picture is what profiles say, summed: CPU time by function and by stack.
type picture struct {
	total, flat, cum map[string]int64 // total has one key, ""
	stacks           map[string]int64 // "main;cycle;alpha;leaf_sixty", outermost first, inlined frames included
	kernel           map[string]bool  // functions that are the kernel's
	profiles         int
}

// look sums profiles into one picture.
func look(t *testing.T, profiles []sink.Profile) *picture {
	t.Helper()
	pic := &picture{total: map[string]int64{}, flat: map[string]int64{}, cum: map[string]int64{}, stacks: map[string]int64{}, kernel: map[string]bool{}}
	for _, sp := range profiles {
		p, err := profile.Parse(bytes.NewReader(sp.Pprof))
		if err != nil {
			t.Fatalf("profile of %v: %v", sp.Labels, err)
		}
		pic.add(p)
	}
	pic.profiles = len(profiles)
	return pic
}

func (pic *picture) add(p *profile.Profile) {
	for _, s := range p.Sample {
		v := s.Value[0]
		names := namesOf(s)
		pic.total[""] += v
		for _, l := range s.Location {
			for _, line := range l.Line {
				if isKernel(l) {
					pic.kernel[line.Function.Name] = true
				}
			}
		}
		if len(names) == 0 {
			continue
		}
		pic.flat[names[len(names)-1]] += v
		pic.stacks[strings.Join(names, ";")] += v
		seen := map[string]bool{}
		for _, n := range names {
			if !seen[n] {
				pic.cum[n] += v
			}
			seen[n] = true
		}
	}
}

// namesOf returns the functions of a sample, outermost first.
func namesOf(s *profile.Sample) []string {
	var names []string
	for _, l := range slices.Backward(s.Location) {
		for _, line := range slices.Backward(l.Line) {
			names = append(names, line.Function.Name)
		}
	}
	return names
}

func (pic *picture) share(m map[string]int64, name string) float64 {
	return 100 * float64(m[name]) / float64(max(1, pic.total[""]))
}

// wantShares checks percentages of the total within three points.
func (pic *picture) wantShares(t *testing.T, what string, m map[string]int64, want map[string]float64) {
	t.Helper()
	var wrong []string
	for name, w := range want {
		if got := pic.share(m, name); math.Abs(got-w) > 3 {
			wrong = append(wrong, fmt.Sprintf("%s has %.1f %%, want %.1f %% within 3 points", name, got, w))
		}
	}
	if wrong != nil {
		t.Errorf("%s: %s\n%s", what, strings.Join(wrong, "; "), pic)
	}
}

func (pic *picture) String() string {
	type row struct {
		stack string
		v     int64
	}
	var rows []row
	for s, v := range pic.stacks {
		rows = append(rows, row{s, v})
	}
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(b.v, a.v) })
	var b strings.Builder
	fmt.Fprintf(&b, "%d profiles, %s in %d stacks\n", pic.profiles, time.Duration(pic.total[""]), len(rows))
	for _, r := range rows[:min(len(rows), 15)] {
		stack := r.stack
		if len(stack) > 160 { // the leaf says more than the root
			stack = "…" + stack[len(stack)-160:]
		}
		fmt.Fprintf(&b, "%12s  %s\n", time.Duration(r.v).Round(time.Millisecond), stack)
	}
	return b.String()
}

// cpuUsage is the CPU time that the kernel charged to a cgroup, given by its path below the root of the hierarchy.
func cpuUsage(t *testing.T, path string) time.Duration {
	t.Helper()
	if text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/cpuacct", path, "cpuacct.usage")); err == nil {
		ns, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(ns)
	}
	text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", path, "cpu.stat"))
	if err != nil {
		t.Fatalf("CPU time of the cgroup %s: neither cpuacct (v1) nor cpu.stat (v2): %v", path, err)
	}
	for line := range strings.Lines(string(text)) {
		if us, ok := strings.CutPrefix(strings.TrimSpace(line), "usage_usec "); ok {
			n, err := strconv.ParseInt(us, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return time.Duration(n) * time.Microsecond
		}
	}
	t.Fatalf("no usage_usec in cpu.stat of %s", path)
	return 0
}

// wantCPU compares what was sampled with what the kernel charged: within 3 %, or 4/√samples if that is more. The bar is for
// one container; slack is what start and end of the two measurements may differ by.
func wantCPU(t *testing.T, what string, got, want time.Duration, frequency int, slack time.Duration) {
	t.Helper()
	if off := cpuOff(t, what, got, want, frequency, slack); off != "" {
		t.Error(off)
	}
}

// cpuOff says what is wrong, if something is.
func cpuOff(t *testing.T, what string, got, want time.Duration, frequency int, slack time.Duration) string {
	t.Helper()
	samples := want.Seconds() * float64(frequency)
	bar := max(0.03, 4/math.Sqrt(max(samples, 1)))*want.Seconds() + slack.Seconds()
	off := 100 * (got.Seconds() - want.Seconds()) / want.Seconds()
	t.Logf("%s: sampled %s, charged %s (%+.2f %%)", what, got.Round(time.Millisecond), want.Round(time.Millisecond), off)
	if math.Abs(got.Seconds()-want.Seconds()) > bar {
		return fmt.Sprintf("%s: sampled %s of %s charged by the kernel (%+.2f %%), bar ± %.2f s", what, got, want, off, bar)
	}
	return ""
}

// eventually polls until ok returns nil, and fails with the last error after a generous time.
func eventually(t *testing.T, within time.Duration, what string, ok func() error) {
	t.Helper()
	within *= slowness
	deadline := time.Now().Add(within)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// inlined is a function of the workloads in C that is inlined into their leaves. What is inlined is known when the program's debug
// information has been read, in the background.
const inlined = "spin"

// bySuffix sums stacks by their last n user functions: kernel frames, which an interrupt puts on top of any function, are
// cut off first, and so is what is inlined into the workloads' leaves.
func (pic *picture) bySuffix(n int) map[string]int64 {
	sums := map[string]int64{}
	for stack, v := range pic.stacks {
		names := strings.Split(stack, ";")
		for len(names) > 0 && (pic.kernel[names[len(names)-1]] || names[len(names)-1] == inlined) {
			names = names[:len(names)-1]
		}
		sums[strings.Join(names[max(0, len(names)-n):], ";")] += v
	}
	return sums
}

// userFrames is the time in frames of user space that have a name and in those that are an address in a file.
func userFrames(t *testing.T, profiles []sink.Profile) (named, unnamed int64) {
	t.Helper()
	for _, sp := range profiles {
		p, err := profile.Parse(bytes.NewReader(sp.Pprof))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range p.Sample {
			for _, l := range s.Location {
				if isKernel(l) {
					continue
				}
				for _, line := range l.Line {
					if strings.Contains(line.Function.Name, "!0x") || strings.HasPrefix(line.Function.Name, "[") {
						unnamed += s.Value[0]
					} else {
						named += s.Value[0]
					}
				}
			}
		}
	}
	return named, unnamed
}

// isKernel reports whether a location is in the kernel or in a module of it.
func isKernel(l *profile.Location) bool {
	return l.Mapping != nil && strings.HasPrefix(l.Mapping.File, "[kernel")
}
