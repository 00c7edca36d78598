//go:build root

package e2e

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/test/containerdtest"
	"github.com/stoker-profiler/stoker/test/nodejs"
)

const nodeRef = "localhost/node:1"

// nodeShares spends its CPU time as the names of its functions say. map calls ten from a built-in function.
const nodeShares = `'use strict';
let sink = 0;

function used() { const u = process.cpuUsage(); return (u.user + u.system) / 1000; }

function leaf(milliseconds) {
  const end = used() + milliseconds;
  while (used() < end) {
    for (let i = 0; i < 50000; i++) {
      sink ^= Math.imul(i, sink + 1);
    }
  }
}

class Stage {
  sixty() {
    leaf(60);
  }
  * thirty() {
    yield leaf(30);
  }
}

const ten = () => {
  leaf(10);
};

function cycle() {
  const stage = new Stage();
  for (;;) {
    stage.sixty();
    stage.thirty().next();
    [0].map(ten);
  }
}

cycle();
`

// The functions of JavaScript in a container, with file and line, with nothing asked of node.
func TestFunctionsOfNode(t *testing.T) {
	binaries := nodejs.Binaries(t)
	node := binaries[len(binaries)-1].Path
	image := containerdtest.Image{Ref: nodeRef, Files: map[string]containerdtest.File{
		"/app.js": {Content: []byte(nodeShares)}, "/node": containerdtest.Host(node),
	}}
	for _, path := range withLibraries(t, node)[1:] {
		image.Files[path] = containerdtest.Host(path)
	}
	if err := run.daemon.d.Image(image); err != nil {
		t.Fatal(err)
	}
	a := startAgent(t, options{frequency: fine})
	b := start(t, spec{image: nodeRef, args: []string{"/node", "/app.js"}})
	b.used(t, 6*time.Second)
	b.kill(t)
	a.stop(t)
	profiles := a.profiles(t, b.id)
	pic := look(t, profiles)
	// Before V8 has been found in the process, and before the program has begun, there are native frames only.
	t.Logf("%.1f %% of %s are JavaScript's", pic.share(pic.cum, "cycle"), time.Duration(pic.total[""]))
	if pic.share(pic.cum, "cycle") < 75 {
		t.Errorf("most is native code\n%s", pic)
	}
	pic.total[""] = pic.cum["cycle"]
	pic.wantShares(t, "JavaScript, in and below", pic.cum, map[string]float64{"leaf": 100, "sixty": 60, "thirty": 30, "ten": 10})

	lines := map[string]map[int64]int64{}
	for _, sp := range profiles {
		p, err := profile.Parse(bytes.NewReader(sp.Pprof))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range p.Sample {
			for _, l := range s.Location {
				for _, line := range l.Line {
					if f := line.Function; f.Filename == "/app.js" && line.Line != 0 {
						if lines[f.Name] == nil {
							lines[f.Name] = map[int64]int64{}
						}
						lines[f.Name][line.Line] += s.Value[0]
					}
				}
			}
		}
	}
	// Each place that calls another function is on one line of the source.
	for name, line := range map[string]int64{"sixty": 17, "thirty": 20, "ten": 25} {
		var n int64
		for _, v := range lines[name] {
			n += v
		}
		if lines[name][line] < n*99/100 || n == 0 {
			t.Errorf("%s is on lines %v, want %d", name, lines[name], line)
		}
	}
}
