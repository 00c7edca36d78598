//go:build root

package unwind_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/bpf/unwind"
)

// truth is what a function of testdata/truth.cc does: its stacks from main on, outermost first. A * is one frame of the C
// library, which has no name where the library is stripped; ** is any number of frames, one at least.
type truth struct {
	function string
	below    string // what is below the function; "": main
	above    string
}

var truths = []truth{
	{"s_recursion", "", strings.Repeat("recurse;", 41) + "leaf"},
	{"s_tail", "", "leaf"}, // the two in between have made way
	{"s_alloca", "", "on_alloca;leaf"},
	{"s_realigned", "", "realigned;leaf"},
	{"s_signal", "", "interrupted;*;handler;leaf"},
	{"s_altstack", "", "interrupted;*;handler;leaf"},
	{"s_fault", "", "faults_at_once;*;on_fault;leaf"},
	{"s_vfork", "", "in_child;leaf"},
	{"s_fork", "", "in_child;leaf"},
	{"in_thread", "*;*", "leaf"},
	{"in_coroutine", "*", "leaf"},
	{"s_exception", "", "guarded(.cold)?;Guard::~Guard;leaf"},
	{"s_qsort", "", "*;**;compare"},
	{"s_memcpy", "", "**"},
	{"s_write", "", "**"},
}

// pattern makes a regular expression of a truth. root is what is below main.
func (c truth) pattern(root string) *regexp.Regexp {
	below := c.below
	if below == "" {
		below = root + ";main"
	}
	s := below + ";" + c.function + ";" + c.above
	s = strings.NewReplacer(";**", "(;[^[]+)?;?", "*", "[^;[]+", ".cold", `\.cold`).Replace(s)
	return regexp.MustCompile("^" + s + "$")
}

// Code without frame pointers: whole stacks, exactly as they are, in each way in which a stack can be odd.
func TestStacksWithoutFramePointers(t *testing.T) {
	for _, c := range []struct {
		name, root string
		flags      []string
	}{
		{"PIE", "_start;*;*", []string{"-pie", "-fPIE"}},
		{"static PIE", "_start;*;*", []string{"-static-pie", "-fPIE"}},
		{"O3, fixed address", "_start;*;*", []string{"-no-pie", "-O3"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := buildTruth(t, c.flags...)
			l := sample(t, exec.Command(file, "500"))
			if l.lost != 0 {
				t.Errorf("%d samples without a stack", l.lost)
			}
			for _, x := range truths {
				want := x.pattern(strings.ReplaceAll(c.root, "*", "[^;[]+"))
				total, right, late := uint64(0), uint64(0), uint64(0)
				var wrong []string
				for stack, n := range l.stacks {
					// Only samples in what the function is there for: those of its own instructions have shorter stacks.
					if !strings.Contains(";"+stack+";", ";"+x.function+";") || !strings.HasSuffix(stack, last(x.above)) {
						continue
					}
					switch total += n; {
					case want.MatchString(stack):
						right += n
						continue
					case strings.HasPrefix(stack, unwind.Truncated): // the tables were not there yet: it says so
						late += n
					}
					wrong = append(wrong, fmt.Sprintf("%4d %s", n, stack))
				}
				if right < 5 || float64(right) < 0.99*float64(total-late) { // wantWhole bounds how many are late: an emulated machine reads tables slowly
					sort.Strings(wrong)
					t.Errorf("%s: %d of %d stacks are %s; others:\n%s", x.function, right, total, want, strings.Join(wrong, "\n"))
				}
			}
			// Deeper than what is kept: the frames next to the leaf, and a mark.
			for stack, n := range l.stacks {
				if strings.HasSuffix(stack, ";endless;leaf") && stack != "[truncated];"+strings.Repeat("endless;", 254)+"leaf" {
					t.Errorf("%4d deep stacks are %s", n, stack)
				}
			}
			l.wantWhole(t)
			if l.outcomes["too_deep"] == 0 {
				t.Error("no stack was deeper than what is kept")
			}
			for stack, n := range l.stacks {
				if strings.HasPrefix(stack, "[truncated]") && !strings.Contains(stack, "endless") {
					t.Logf("%4d %s", n, stack)
				}
			}
		})
	}
}

// last returns the end of a pattern that every stack of it has, as far as that is a name.
func last(pattern string) string {
	if i := strings.LastIndexByte(pattern, ';'); i >= 0 {
		pattern = pattern[i+1:]
	}
	if strings.Contains(pattern, "*") {
		return ""
	}
	return pattern
}

// A stripped file has no names, but still its call frame information: as many frames, to the root.
func TestStackOfAStrippedProgram(t *testing.T) {
	file := buildTruth(t, "-pie", "-fPIE", "-s")
	l := sample(t, exec.Command(file, "200"))
	deep := uint64(0)
	for stack, n := range l.stacks {
		// _start, two of the C library, main, s_recursion, 41 times recurse, leaf
		if strings.Count(stack, ";") == 46 && strings.Count(stack, "truth!0x") == 45 {
			deep += n
		}
	}
	l.wantWhole(t)
	if deep < 5 {
		t.Errorf("%d stacks of the recursion", deep)
	}
}

// wantWhole checks that stacks are cut for one reason only: what they need had not been read yet. How many wait for mappings and rows is
// the machine's speed to say, an emulated one's above all. What is cut for another reason is a fault of the walk, but for the moments in
// ld.so and the unwinder of exceptions that have no rule.
func (l *live) wantWhole(t *testing.T) {
	t.Helper()
	blind := min(l.events["no_space"]+l.events["unmapped"], l.outcomes["chain_ended"]) // not told of the mappings, or of those since then
	cut, waited := l.outcomes["chain_ended"]-blind+l.outcomes["fault"], l.outcomes["no_rows"]+blind
	t.Logf("%d samples, %d cut, %d waited: %v, %v", l.samples, cut, waited, l.outcomes, l.events)
	if cut > max(20, l.samples/50) || waited > l.samples/5 {
		t.Errorf("%d of %d stacks are cut, %d waited", cut, l.samples, waited)
	}
}

func buildTruth(t *testing.T, flags ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "truth")
	args := append([]string{"-Wall", "-O2", "-fomit-frame-pointer", "-pthread", "-o", out, filepath.Join("testdata", "truth.cc")}, flags...)
	if msg, err := exec.Command("g++", args...).CombinedOutput(); err != nil {
		t.Fatalf("g++ %s: %v (it needs g++ and libc6-dev)\n%s", strings.Join(args, " "), err, msg)
	}
	if err := os.Chmod(out, 0o755); err != nil {
		t.Fatal(err)
	}
	return out
}

// Go's assembly sets up no frame, so by frame pointer the caller of such a leaf was missing.
func TestGoFunctionsInAssemblyHaveTheirCaller(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	text := `package main

import (
	"crypto/sha256"
	"time"
)

var sum byte

//go:noinline
func hash(b []byte) byte { s := sha256.Sum256(b); return s[0] }

//go:noinline
func work(b []byte) {
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		sum += hash(b)
	}
}

func main() { work(make([]byte, 1<<20)) }
`
	if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "hash"), source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, msg)
	}
	l := sample(t, exec.Command(filepath.Join(dir, "hash")))
	right, total := uint64(0), uint64(0)
	for stack, n := range l.stacks {
		if !strings.Contains(stack, "sha256.block") || strings.HasPrefix(stack, unwind.Truncated) { // the tables were not there yet
			continue
		}
		if total += n; strings.HasPrefix(stack, "runtime.goexit;runtime.main;main.main;main.work;main.hash;crypto/sha256.Sum256;") {
			right += n
		} else {
			t.Logf("%4d %s", n, stack)
		}
	}
	if total < 100 || float64(right) < 0.99*float64(total) {
		t.Errorf("%d of %d stacks of the hash are whole", right, total)
	}
}

// What the walk keeps of an address belongs to one program: another one, at the same addresses and on the same CPU, has rules of its own.
func TestTwoProgramsAtTheSameAddresses(t *testing.T) {
	args := []string{"-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls", "-no-pie"}
	one := build(t, "one", "twin.c", append(args, "-DNAME=of_one", "-DFRAME=200")...)
	two := build(t, "two", "twin.c", append(args, "-DNAME=of_two", "-DFRAME=400")...)
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		t.Fatal(err)
	}
	cpu := 0
	for !cpus.IsSet(cpu) {
		cpu++
	}
	l := sample(t, exec.Command("sh", "-c", `taskset -c "$2" "$0" 2 & taskset -c "$2" "$1" 2; wait`, one, two, strconv.Itoa(cpu)))
	for _, name := range []string{"of_one", "of_two"} {
		right, total := uint64(0), uint64(0)
		for stack, n := range l.stacks {
			if strings.Contains(stack, name) {
				total += n
			}
			if strings.HasPrefix(stack, "_start;") && strings.HasSuffix(stack, ";main;"+name+";spins") {
				right += n
			}
		}
		if right < 50 || float64(right) < 0.95*float64(total) {
			t.Errorf("%d of %d stacks with %s are whole", right, total, name)
		}
	}
	if n := l.names["decoy"]; n != 0 {
		t.Errorf("%d samples were walked by the other program's table", n)
	}
}

// musl has no call frame information: what its code does to the stack is read from the code.
func TestStacksThroughMusl(t *testing.T) {
	for name, flags := range map[string][]string{"static": {"-static"}, "dynamic": nil} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "musl")
			args := append([]string{"-O2", "-fomit-frame-pointer", "-o", file, filepath.Join("testdata", "musl.c")}, flags...)
			if msg, err := exec.Command("musl-gcc", args...).CombinedOutput(); err != nil {
				t.Fatalf("musl-gcc: %v (it needs musl-tools)\n%s", err, msg)
			}
			l := sample(t, exec.Command(file, "500"))
			for leaf, want := range map[string]*regexp.Regexp{
				"s_signal":  regexp.MustCompile(`^_start;[^;[]+;main;s_signal;([^;[]+;)+handler;spins;leaf$`),
				"s_qsort":   regexp.MustCompile(`^_start;[^;[]+;main;s_qsort;([^;[]+;)+compare;leaf$`),
				"in_thread": regexp.MustCompile(`^([^;[]+;){1,2}in_thread;spins;leaf$`),
				"s_format":  regexp.MustCompile(`^_start;[^;[]+;main;s_format(;[^;[]+)*$`),
			} {
				right, total := uint64(0), uint64(0)
				for stack, n := range l.stacks {
					if strings.HasPrefix(stack, unwind.Truncated) { // the tables were not there yet
						continue
					}
					if !strings.Contains(stack, leaf+";") || leaf != "s_format" && !strings.HasSuffix(stack, ";leaf") {
						continue
					}
					if total += n; want.MatchString(stack) {
						right += n
					} else {
						t.Logf("%4d %s", n, stack)
					}
				}
				if total < 5 || float64(right) < 0.98*float64(total) {
					t.Errorf("%s: %d of %d stacks are %s", leaf, right, total, want)
				}
			}
			l.wantWhole(t)
		})
	}
}
