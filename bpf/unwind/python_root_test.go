//go:build root

package unwind_test

import (
	"bufio"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/bpf/unwind"
)

var pythons = flag.String("pythons", "", "pattern of the interpreters that the tests of Python run, beside /usr/bin/python3")

// interpreters are the CPythons to test.
func interpreters(t *testing.T) []string {
	t.Helper()
	list := []string{"/usr/bin/python3"}
	if *pythons != "" {
		more, err := filepath.Glob(*pythons)
		if err != nil || len(more) == 0 {
			t.Fatalf("-pythons %s: no files (%v)", *pythons, err)
		}
		list = append(list, more...)
	}
	return list
}

// leafLines are the lines of a program that are marked, by function.
func leafLines(t *testing.T, source string) map[string]map[int64]bool {
	t.Helper()
	f, err := os.Open(source)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string]map[int64]bool{}
	lines := bufio.NewScanner(f)
	for n := int64(1); lines.Scan(); n++ {
		if _, name, ok := strings.Cut(lines.Text(), "# leaf "); ok {
			if out[name] == nil {
				out[name] = map[int64]bool{}
			}
			out[name][n] = true
		}
	}
	return out
}

// A program whose shares, lines and callers are known: methods, generators, coroutines, functions called from C, recursion, threads.
func TestKnownTruthOfPython(t *testing.T) {
	leaves := leafLines(t, "testdata/truth.py")
	// Of each leaf its share in percent, and what has called it within the main program, leaf first.
	want := map[string]struct {
		share   float64
		callers string
	}{
		"method": {20, "main <module>"}, "generator": {15, "main <module>"}, "key": {20, "main <module>"}, "größe": {10, "main <module>"},
		"coroutine": {15, "awaits Handle._run BaseEventLoop._run_once BaseEventLoop.run_forever"},
		"worker":    {20, "Thread.run Thread._bootstrap_inner Thread._bootstrap"},
	}
	for _, python := range interpreters(t) {
		t.Run(strings.Trim(strings.ReplaceAll(python, "/", "-"), "-"), func(t *testing.T) {
			var all, rightLine, wholeStack, early uint64
			by := map[string]uint64{}
			wrong := map[string]uint64{}
			l := sampleAt(t, exec.Command(python, "testdata/truth.py", "6"), 997, func(window int, locations []*profile.Location, n uint64) {
				if window == 0 { // the interpreter starts, and its tables are read
					early += n
					return
				}
				var names []string
				var line int64
				for _, l := range locations {
					if l.Mapping.File != "[python]" {
						continue
					}
					if names == nil {
						line = l.Line[0].Line
					}
					name := l.Line[0].Function.Name
					names = append(names, name[strings.LastIndexByte(name, ' ')+1:])
				}
				stack := strings.Join(names, " ")
				if outermost := locations[len(locations)-1]; len(names) == 0 && outermost.Line[0].Function.Name != unwind.Truncated {
					return // the interpreter ends, a thread begins
				}
				all += n
				if len(names) == 0 {
					wrong["no Python: "+joined(locations)] += n
					return
				}
				leaf := names[0][strings.LastIndexByte(names[0], '.')+1:]
				w, ok := want[leaf]
				if !ok { // between the cycles: the event loop, starting a thread
					by["other"] += n
					rightLine, wholeStack = rightLine+n, wholeStack+n
					return
				}
				by[leaf] += n
				if leaves[leaf][line] || leaves[leaf][line+1] { // the line before the loop computes its end
					rightLine += n
				} else {
					wrong[leaf+" on a line that is not its loop's"] += n
				}
				if ends(stack, w.callers) {
					wholeStack += n
				} else {
					wrong["callers of "+leaf+": "+stack] += n
				}
			})
			t.Logf("%d samples, %d in the first second; right leaf and line %.2f %%, callers to the first frame %.2f %%; %v; %v", all, early,
				percent(rightLine, all), percent(wholeStack, all), by, l.Stats().Unwinders["python"])
			for s, n := range wrong {
				t.Logf("%5d %s", n, s)
			}
			for leaf, w := range want {
				if got := percent(by[leaf], all-by["other"]); got < w.share-3 || got > w.share+3 {
					t.Errorf("%s has %.1f %%, want %.0f", leaf, got, w.share)
				}
			}
			if all < 1000 || percent(rightLine, all) < 99 || percent(wholeStack, all) < 99 || l.lost > 0 {
				t.Errorf("%d samples, %d without a stack: right leaf and line %.2f %%, callers to the first frame %.2f %%", all, l.lost,
					percent(rightLine, all), percent(wholeStack, all))
			}
		})
	}
}

func percent(n, of uint64) float64 { return 100 * float64(n) / float64(max(of, 1)) }

// ends reports whether a stack of names, leaf first, has callers in that order, which are not qualified before 3.11.
func ends(stack, callers string) bool {
	rest := strings.Fields(stack)
	for _, c := range strings.Fields(callers) {
		i := 0
		for i < len(rest) && rest[i] != c && rest[i] != c[strings.LastIndexByte(c, '.')+1:] {
			i++
		}
		if i == len(rest) {
			return false
		}
		rest = rest[i+1:]
	}
	return strings.HasSuffix(stack, "<module>") || strings.HasSuffix(stack, "_bootstrap")
}

func joined(locations []*profile.Location) string {
	var names []string
	for _, l := range locations {
		names = append(names, l.Line[0].Function.Name)
	}
	return strings.Join(names, ";")
}

// A process that says it is Python and lies: what it does to its stacks is its own affair, and costs a bounded time.
func TestForgedPython(t *testing.T) {
	forged := build(t, "forged", "forged.c", "-pthread", "-rdynamic")
	const lost, gone = "[python: frames lost]", "[python: code gone]"
	for how, want := range map[string]string{ // what follows main, outermost first; x stands for what is left out
		"honest": "forged;forged", "loop": lost + ";" + strings.Repeat("forged;", 254) + "forged", "unmapped": lost + ";forged",
		"name": "x", "threads": "_PyEval_EvalFrameDefault", "type": gone + ";" + gone, "everywhere": "x", "strings": "x",
	} {
		t.Run(how, func(t *testing.T) {
			var all, right, early uint64
			seen := map[string]uint64{}
			l := sampleAt(t, exec.Command(forged, how, "2"), 297, func(window int, locations []*profile.Location, n uint64) {
				stack := joined(locations)
				if !strings.Contains(stack, "main;") {
					return
				}
				var names []string
				for _, l := range locations[:slices.IndexFunc(locations, func(l *profile.Location) bool { return l.Line[0].Function.Name == "main" })] {
					name := l.Line[0].Function.Name
					if len(name) > 1030 {
						t.Errorf("a name of %d bytes", len(name))
					}
					if !strings.HasPrefix(l.Mapping.File, "[kernel") && !strings.Contains(name, "clock_gettime") {
						names = append([]string{name}, names...)
					}
				}
				all += n
				switch got := strings.Join(names, ";"); {
				case want == "x" || got == want:
					right += n
				case got == "_PyEval_EvalFrameDefault": // before the program is loaded
					early += n
				default:
					seen[got] += n
				}
			})
			t.Logf("%d of %d samples; %v", right, all, l.Stats().Unwinders["python"])
			if all < 50 || right < all/10 || right+early+2+all/50 < all || l.lost > 0 { // a tick may fall between two of its steps
				t.Errorf("%d samples, %d as they should be, %d early, %d lost: %v", all, right, early, l.lost, seen)
			}
		})
	}
}
