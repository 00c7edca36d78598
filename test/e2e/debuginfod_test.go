//go:build root

package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/test/workload"
)

// A stripped program in a container gets its functions, files and lines from a debuginfod server that the configuration names; until the
// server has answered its frames are addresses, and nobody is asked about anything but build ids.
func TestDebuginfodNamesAStrippedProgram(t *testing.T) {
	program, err := run.programs.Build(workload.Unstripped)
	if err != nil {
		t.Fatal(err)
	}
	debug := filepath.Join(t.TempDir(), "debug")
	if out, err := exec.Command("objcopy", "--only-keep-debug", program, debug).CombinedOutput(); err != nil {
		t.Fatalf("objcopy: %v: %s", err, out)
	}
	var asked, odd atomic.Int64
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-release
		asked.Add(1)
		if r.Method != http.MethodGet || r.URL.RawQuery != "" || !strings.HasPrefix(r.URL.Path, "/buildid/") || !strings.HasSuffix(r.URL.Path, "/debuginfo") {
			odd.Add(1)
		}
		if r.URL.Path != "/buildid/"+workload.StrippedBuildID+"/debuginfo" {
			http.NotFound(w, r)
			return
		}
		http.ServeFile(w, r, debug)
	}))
	defer server.Close()
	cache := filepath.Join(t.TempDir(), "cache")
	a := startAgent(t, options{extra: fmt.Sprintf("symbols: {debuginfod: {urls: %s, cache: %s}}\n", server.URL, cache)})
	b := start(t, spec{args: []string{"/" + workload.Stripped}})
	leaf := func(sp sink.Profile) (found string) {
		p, err := profile.Parse(bytes.NewReader(sp.Pprof))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range p.Sample {
			for _, l := range s.Location {
				for _, line := range l.Line {
					if line.Function.Name == "leaf_sixty" && filepath.Base(line.Function.Filename) == "shares.c" && line.Line > 0 {
						return "named"
					}
					if strings.HasPrefix(line.Function.Name, workload.Stripped+"!0x") {
						found = "address"
					}
				}
			}
		}
		return found
	}
	before := a.stored(t, b.id, "addresses before the server answers", func(p sink.Profile) bool { return leaf(p) == "address" })
	for _, p := range before {
		if leaf(p) == "named" {
			t.Error("named before the server has answered")
		}
	}
	close(release)
	began := time.Now()
	a.stored(t, b.id, "functions and lines from the server", func(p sink.Profile) bool { return leaf(p) == "named" })
	t.Logf("lines %s after the server has answered, windows of %s", time.Since(began).Round(100*time.Millisecond), a.opts.window)
	metrics, err := a.get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(metrics, []byte(`stoker_debuginfod_requests_total{result="found"} 1`)) {
		t.Error("no metric says that a file was found")
	}
	if odd.Load() > 0 || asked.Load() == 0 {
		t.Errorf("%d requests, %d of an unknown form", asked.Load(), odd.Load())
	}
	b.kill(t)
	a.stop(t)
	kept, err := os.ReadDir(cache)
	if err != nil || len(kept) != 1 || kept[0].Name() != workload.StrippedBuildID+".debug" {
		t.Errorf("kept: %v, %v", kept, err)
	}
}
