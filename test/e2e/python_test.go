//go:build root

package e2e

import (
	"bytes"
	"maps"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/test/containerdtest"
)

const pythonRef = "localhost/python:1"

// pythonShares spends its time as the names of its functions say. sort calls key from C. The lines that loops are on are what
// wantLines has.
const pythonShares = `import time


def leaf(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        sum(range(3000))


class Stage:
    def sixty(self):
        leaf(0.06)

    def thirty(self):
        yield from (leaf(0.03) for _ in range(1))

    def ten(self, _):
        leaf(0.01)


def main():
    stage = Stage()
    while True:
        stage.sixty()
        for _ in stage.thirty():
            pass
        sorted([0], key=stage.ten)


main()
`

// pythonImage makes an image with this machine's Python 3 and a program at /app.py.
func pythonImage(t *testing.T, ref, program string) (python string, mounts map[string]string) {
	t.Helper()
	python, err := filepath.EvalSymlinks("/usr/bin/python3")
	if err != nil {
		t.Fatalf("%v; run: packaging/setup.sh test", err)
	}
	image := containerdtest.Image{Ref: ref, Files: map[string]containerdtest.File{"/app.py": {Content: []byte(program)}}}
	for _, path := range withLibraries(t, python) {
		image.Files[path] = containerdtest.Host(path)
	}
	if err := run.daemon.d.Image(image); err != nil {
		t.Fatal(err)
	}
	library, err := exec.Command(python, "-c", "import sysconfig; print(sysconfig.get_path('stdlib'))").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := strings.TrimSpace(string(library))
	return python, map[string]string{dir: dir}
}

// The functions of a Python program in a container, with file and line, among the native frames that run them.
func TestFunctionsOfPython(t *testing.T) {
	python, mounts := pythonImage(t, pythonRef, pythonShares)
	a := startAgent(t, options{frequency: fine})
	b := start(t, spec{image: pythonRef, args: []string{python, "/app.py"}, mounts: mounts})
	b.used(t, 6*time.Second)
	b.kill(t)
	a.stop(t)
	profiles := a.profiles(t, b.id)
	pic := look(t, profiles)
	pic.wantShares(t, "Python, in and below", pic.cum, map[string]float64{
		"main": 100, "leaf": 100, "Stage.sixty": 60, "Stage.thirty": 30, "Stage.thirty.<locals>.<genexpr>": 30, "Stage.ten": 10,
	})
	if share := pic.share(pic.cum, "_PyEval_EvalFrameDefault"); share > 3 {
		t.Errorf("%.1f %% of the time is in the interpreter's loop by its own name\n%s", share, pic)
	}

	// Each place that calls another function is on one line of the source.
	lines := map[string]map[int64]int64{}
	var whole, all int64
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
				if f.Filename == "/app.py" {
					if lines[f.Name] == nil {
						lines[f.Name] = map[int64]int64{}
					}
					lines[f.Name][l.Line[0].Line] += s.Value[0]
				}
			}
			stack := strings.Join(names, " ")
			if strings.Contains(stack, "leaf ") && strings.HasSuffix(stack, "_start") && strings.Contains(stack, " main <module> PyEval_EvalCode ") {
				whole += s.Value[0]
			}
		}
	}
	for name, line := range map[string]int64{"Stage.sixty": 12, "Stage.ten": 18, "<module>": 30} {
		var n int64
		for _, v := range lines[name] {
			n += v
		}
		if lines[name][line] < n*99/100 || n == 0 {
			t.Errorf("%s is on lines %v, want %d", name, lines[name], line)
		}
	}
	for line := range maps.Keys(lines["leaf"]) {
		if line < 4 || line > 7 {
			t.Errorf("leaf is on lines %v", lines["leaf"])
		}
	}
	t.Logf("%.2f %% of %s are in whole stacks", 100*float64(whole)/float64(all), time.Duration(all))
	if whole < all*95/100 {
		t.Errorf("only %s of %s are in whole stacks\n%s", time.Duration(whole), time.Duration(all), pic)
	}
}

// Scripts of a tenth of a second, one after the other, and a server whose workers only fork and are replaced all the time: each of
// their processes is named.
func TestFunctionsOfBriefPythons(t *testing.T) {
	const briefRef, forksRef = "localhost/python-brief:1", "localhost/python-forks:1"
	python, mounts := pythonImage(t, briefRef, `import time


def brief():
    end = time.process_time() + 0.1
    while time.process_time() < end:
        sum(range(1000))


brief()
`)
	pythonImage(t, forksRef, `import os
import time


def request(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        sum(range(1000))


def serve():
    for _ in range(10):
        request(0.02)


def master():
    while True:
        workers = []
        for _ in range(2):
            pid = os.fork()
            if not pid:
                serve()
                os._exit(0)
            workers.append(pid)
        for pid in workers:
            os.waitpid(pid, 0)


master()
`)
	a := startAgent(t, options{frequency: 97})
	brief := start(t, spec{image: briefRef, args: []string{"/bin/sh", "-c", "while :; do " + python + " -S -E /app.py; done"}, mounts: mounts})
	forks := start(t, spec{image: forksRef, args: []string{python, "/app.py"}, mounts: mounts})
	brief.used(t, 6*time.Second)
	forks.used(t, 6*time.Second)
	brief.kill(t)
	forks.kill(t)
	a.stop(t)
	pic := look(t, a.profiles(t, brief.id))
	t.Logf("of scripts of 100 ms, %.1f %% is in the function", pic.share(pic.cum, "brief"))
	// The rest is the interpreter, which starts: 15 to 40 % of the time. The first sample of a process, of which there are ten, may have come
	// before it was known.
	if pic.share(pic.cum, "brief") < 50 || pic.share(pic.cum, "brief") < 0.75*pic.share(pic.cum, "Py_RunMain") {
		t.Errorf("scripts: %s", pic)
	}
	pic = look(t, a.profiles(t, forks.id))
	t.Logf("of workers of 200 ms, %.1f %% is in what they are asked, %.1f %% below the main program", pic.share(pic.cum, "request"), pic.share(pic.cum, "master"))
	if pic.share(pic.cum, "request") < 90 || pic.share(pic.cum, "master") < 90 {
		t.Errorf("workers: %s", pic)
	}
}
