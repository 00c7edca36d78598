//go:build root

package e2e

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/test/containerdtest"
)

const rubyRef = "localhost/ruby:1"

// rubyShares spends its time as the names of its methods say, in a method that a native one calls with a block, in a fiber, and in a
// singleton method that a native one calls. The lines that call are what the test wants.
const rubyShares = `def leaf(seconds)
  finish = Process.clock_gettime(Process::CLOCK_PROCESS_CPUTIME_ID) + seconds
  while Process.clock_gettime(Process::CLOCK_PROCESS_CPUTIME_ID) < finish
    n = 0
    while n < 3000
      n += 1
    end
  end
end

module Work
  class Stage
    def sixty
      [1].each do |_|
        leaf(0.06)
      end
    end

    def thirty
      Fiber.new { leaf(0.03) }.resume
    end

    def self.ten(_)
      leaf(0.01)
    end
  end
end

def main
  stage = Work::Stage.new
  loop do
    stage.sixty
    stage.thirty
    [0].sort_by(&Work::Stage.method(:ten))
  end
end

main
`

// rubyImage makes an image with this machine's Ruby and a program at /app.rb.
func rubyImage(t *testing.T, ref, program string) (ruby string, mounts map[string]string) {
	t.Helper()
	ruby, err := filepath.EvalSymlinks("/usr/bin/ruby")
	if err != nil {
		t.Fatalf("%v; run: packaging/setup.sh test", err)
	}
	image := containerdtest.Image{Ref: ref, Files: map[string]containerdtest.File{"/app.rb": {Content: []byte(program)}}}
	for _, path := range withLibraries(t, ruby) {
		image.Files[path] = containerdtest.Host(path)
	}
	if err := run.daemon.d.Image(image); err != nil {
		t.Fatal(err)
	}
	path, err := exec.Command(ruby, "--disable-gems", "-e", "puts $LOAD_PATH.select { |d| File.directory?(d) }").Output()
	if err != nil {
		t.Fatal(err)
	}
	mounts = map[string]string{}
	for dir := range strings.Lines(string(path)) {
		dir = strings.TrimSpace(dir)
		mounts[dir] = dir
	}
	return ruby, mounts
}

// The methods of a Ruby program in a container, with class, file and line, among the native frames that run them.
func TestMethodsOfRuby(t *testing.T) {
	ruby, mounts := rubyImage(t, rubyRef, rubyShares)
	a := startAgent(t, options{frequency: fine})
	b := start(t, spec{image: rubyRef, args: []string{ruby, "--disable-gems", "/app.rb"}, mounts: mounts})
	b.used(t, 6*time.Second)
	b.kill(t)
	a.stop(t)
	profiles := afterFirstRuby(t, a.profiles(t, b.id))
	pic := look(t, profiles)
	pic.wantShares(t, "Ruby, in and below", pic.cum, map[string]float64{
		"Object#leaf": 100, "Work::Stage#sixty": 60, "block in Work::Stage#sixty": 60, "Array#each": 70, // sort_by has it, too

		"block in Work::Stage#thirty": 30, "Work::Stage.ten": 10, "Enumerable#sort_by": 10,
	})

	// Each place that calls another method is on one line of the source.
	lines := map[string]map[int64]int64{}
	var leaf, rooted, fibers, all int64
	for _, sp := range profiles {
		p, err := profile.Parse(bytes.NewReader(sp.Pprof))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range p.Sample {
			all += s.Value[0]
			var names []string
			for _, l := range s.Location {
				f := l.Line[0].Function
				names = append(names, f.Name)
				if f.Filename == "/app.rb" {
					if lines[f.Name] == nil {
						lines[f.Name] = map[int64]int64{}
					}
					lines[f.Name][l.Line[0].Line] += s.Value[0]
				}
			}
			stack := " " + strings.Join(names, " ") + " "
			if strings.Contains(stack, " Object#leaf ") {
				leaf += s.Value[0]
			}
			switch { // a fiber begins on a stack of its own
			case strings.Contains(stack, " block in Work::Stage#thirty "):
				fibers += s.Value[0]
			case strings.Contains(stack, " Object#main <main> ") && strings.HasSuffix(stack, " _start "):
				rooted += s.Value[0]
			}
		}
	}
	for name, line := range map[string]int64{
		"block in Work::Stage#sixty": 15, "Work::Stage#sixty": 14, "block in Work::Stage#thirty": 20, "Work::Stage.ten": 24, "<main>": 38,
	} {
		var n int64
		for _, v := range lines[name] {
			n += v
		}
		if lines[name][line] < n*99/100 || n == 0 {
			t.Errorf("%s is on lines %v, want %d", name, lines[name], line)
		}
	}
	var inLeaf, wrong int64
	for line, n := range lines["Object#leaf"] {
		inLeaf += n
		if line < 2 || line > 6 {
			wrong += n
		}
	}
	if wrong > inLeaf/100 {
		t.Errorf("Object#leaf is on lines %v", lines["Object#leaf"])
	}
	t.Logf("of %s, %.2f %% are in Object#leaf, %.2f %% reach the first frame", time.Duration(all), 100*float64(leaf)/float64(all), 100*float64(rooted+fibers)/float64(all))
	if leaf < all*99/100 || rooted+fibers < all*99/100 {
		t.Errorf("%s of %s are in Object#leaf, %s reach the first frame\n%s", time.Duration(leaf), time.Duration(all), time.Duration(rooted+fibers), pic)
	}
}

// afterFirstRuby returns the profiles of windows behind the first one that has a function of Ruby: until the mappings of a process have been
// read its stacks are native ones, and how long that takes is not this test's to say.
func afterFirstRuby(t *testing.T, profiles []sink.Profile) []sink.Profile {
	t.Helper()
	slices.SortFunc(profiles, func(a, b sink.Profile) int { return a.Start.Compare(b.Start) })
	for i, sp := range profiles {
		p, err := profile.Parse(bytes.NewReader(sp.Pprof))
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(p.Function, func(f *profile.Function) bool { return f.Filename == "/app.rb" }) {
			rest := slices.DeleteFunc(profiles[i+1:], func(p sink.Profile) bool { return p.Start.Equal(sp.Start) })
			t.Logf("%d of %d profiles are of later windows", len(rest), len(profiles))
			return rest
		}
	}
	t.Fatal("no profile has a function of Ruby")
	return nil
}
