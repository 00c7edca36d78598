package native

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"
	"weak"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/symbol"
)

// lineBench is a liner with a clock and files of its own.
type lineBench struct {
	*liner
	t     *testing.T
	clock time.Time
	got   map[locationKey][]symbol.Line
	keep  []*symbol.Object
}

func newLineBench(t *testing.T) *lineBench {
	b := &lineBench{liner: newLiner(symbol.NewCache(1 << 20)), t: t, clock: time.Unix(1e9, 0), got: map[locationKey][]symbol.Line{}}
	b.now = func() time.Time { return b.clock }
	return b
}

// source makes a file of a scope.
func (b *lineBench) source(scope uint32) (lineSource, locationKey) {
	o := new(symbol.Object)
	b.keep = append(b.keep, o)
	id := weak.Make(o)
	return lineSource{scope, id}, locationKey{object: id, address: 0x1000, scope: scope}
}

func (b *lineBench) poll() {
	b.liner.poll(func(k locationKey, _ *profile.Location, lines []symbol.Line, _ string) { b.got[k] = lines })
}

// settle polls until no job runs.
func (b *lineBench) settle() {
	b.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); b.job != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatal("the job does not end")
		}
		b.poll()
	}
}

func failing(err error) opener { return func() (*os.File, bool, error) { return nil, false, err } }

// A file system that never answers keeps one reader; the files of other containers are read, those of its own wait.
func TestAFileThatIsNeverReadStopsOnlyTheLinesOfItsContainer(t *testing.T) {
	b := newLineBench(t)
	release := make(chan struct{})
	hang := func() (*os.File, bool, error) { <-release; return nil, false, errors.New("answered at last") }
	inside := symbol.DebugSource{Inside: true}
	bad, badKey := b.source(1)
	b.want(bad, badKey, nil, lineFile{info: inside, open: hang})
	b.poll()
	stuck := b.job
	if stuck == nil {
		t.Fatal("nobody reads")
	}
	good, goodKey := b.source(2)
	b.want(good, goodKey, nil, lineFile{info: inside, open: failing(errors.New("nonsense"))})
	b.poll()
	if b.job != stuck {
		t.Fatal("two readers at once, though the first may yet answer")
	}
	b.clock = b.clock.Add(linePatience)
	same, sameKey := b.source(1)
	b.want(same, sameKey, nil, lineFile{info: inside, open: failing(errors.New("of the same container"))})
	b.poll()
	b.settle()
	if b.slow.Load() != 1 || b.failed.Load() != 1 || b.job != nil {
		t.Errorf("slow %d, failed %d, job %v", b.slow.Load(), b.failed.Load(), b.job)
	}
	if w := b.wanted[same]; len(w.places) != 1 {
		t.Error("another file of the container that hangs was read")
	}
	close(release)
	<-stuck.done
	b.clock = b.clock.Add(time.Hour)
	b.poll()
	b.settle()
	if b.failed.Load() != 2 || b.waiting != 0 {
		t.Errorf("after the answer: failed %d, waiting %d", b.failed.Load(), b.waiting)
	}
}

// A file without an answer is asked again only after a while, a process that has ended at once.
func TestLinesAreAskedAgain(t *testing.T) {
	for _, c := range []struct {
		err     error
		windows int
	}{{symbol.ErrNoDebugInfo, noLines}, {os.ErrPermission, noLines}, {process.ErrGone, 1}} {
		b := newLineBench(t)
		src, k := b.source(1)
		if !b.wants(src, k) {
			t.Fatal("a place that nobody asked for is not wanted")
		}
		b.want(src, k, nil, lineFile{info: symbol.DebugSource{Inside: true}, open: failing(c.err)})
		if b.wants(src, k) {
			t.Error("wanted twice")
		}
		b.poll()
		b.settle()
		n := 0
		for ; !b.wants(src, k) && n < 1000; n++ {
			b.windowEnd()
		}
		if n != c.windows {
			t.Errorf("%v: asked again after %d windows, want %d", c.err, n, c.windows)
		}
	}
}

// What nobody has in memory any more is not waited for.
func TestLinesOfForgottenFilesAreForgotten(t *testing.T) {
	b := newLineBench(t)
	src, k := b.source(1)
	b.rest = b.clock.Add(time.Hour) // nothing is read meanwhile
	b.want(src, k, nil, lineFile{})
	b.keep = nil
	for deadline := time.Now().Add(20 * time.Second); len(b.wanted) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still there")
		}
		runtime.GC()
		b.windowEnd()
	}
	if b.waiting != 0 {
		t.Errorf("%d places wait", b.waiting)
	}
}

// What most stacks have is looked up first, however much waits.
func TestLinesThatAreWantedMostComeFirst(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	source := program + ".c"
	// Two functions that are sampled, each in a unit of its own; the second one is in more stacks.
	for i, name := range []string{"cold", "hot"} {
		if err := os.WriteFile(source, []byte("void "+name+"(void) { }\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("gcc", "-g", "-c", "-o", fmt.Sprintf("%s%d.o", program, i), source).CombinedOutput(); err != nil {
			t.Fatalf("gcc: %v: %s", err, out)
		}
	}
	if out, err := exec.Command("gcc", "-nostdlib", "-shared", "-o", program, program+"0.o", program+"1.o").CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v: %s", err, out)
	}
	f, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	b := newLineBench(t)
	src, k := b.source(1)
	keys := map[string]locationKey{}
	for _, s := range symbols {
		if s.Name == "hot" || s.Name == "cold" {
			k.address = symbol.Address(s.Value)
			keys[s.Name] = k
			b.want(src, k, nil, lineFile{info: symbol.DebugSource{Inside: true}, open: func() (*os.File, bool, error) {
				f, err := os.Open(program)
				return f, false, err
			}})
		}
	}
	for range 2 {
		if b.wants(src, keys["hot"]) {
			t.Error("wanted twice")
		}
	}
	b.begin(src)
	if got := b.job.asked; len(got) != 2 || got[0] != keys["hot"].address {
		t.Errorf("asked for %#x, hot is at %#x", got, keys["hot"].address)
	}
	b.settle()
	for name, k := range keys {
		if l := b.got[k]; len(l) != 1 || l[0].Function != name || l[0].Line != 1 {
			t.Errorf("%s: %v", name, l)
		}
	}
}
