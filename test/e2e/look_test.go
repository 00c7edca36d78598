//go:build root

package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/test/workload"
)

// One agent and one busy container, looked at in every way there is.
func TestLooking(t *testing.T) {
	a := startAgent(t, options{frequency: fine})
	b := start(t, spec{args: []string{"/" + workload.SharesC}, labels: map[string]string{"stoker.service": "looked-at"}})
	a.stored(t, b.id, "profile", func(p sink.Profile) bool { return p.Total > 0 })
	dir := t.TempDir()
	start := time.Now()

	t.Run("ps", func(t *testing.T) {
		out, errs, code := a.command(t, "ps", "--output", "json")
		if code != 0 || !json.Valid([]byte(out)) || !strings.Contains(out, b.id) || !strings.Contains(out, "looked-at") {
			t.Errorf("exit code %d, %s%s", code, errs, out)
		}
		out, errs, code = a.command(t, "ps")
		if code != 0 || !strings.Contains(out, "containerd") {
			t.Errorf("exit code %d, %s%s", code, errs, out)
		}
	})
	t.Run("ps of one", func(t *testing.T) {
		out, errs, code := a.command(t, "ps", b.id)
		for _, want := range []string{"profiled     yes", "service      looked-at", "found by     containerd", "in scope", "before its first instruction", "label        stoker.service=looked-at", b.id} {
			if code != 0 || !strings.Contains(out, want) {
				t.Errorf("exit code %d, %q is not in %s%s", code, want, errs, out)
			}
		}
		if out, errs, code := a.command(t, "ps", "no-such-container"); code != 3 || !strings.Contains(errs, "no container is meant") {
			t.Errorf("exit code %d, %s%s", code, errs, out)
		}
		out, errs, code = a.command(t, "ps", "--sources")
		if code != 0 || !strings.Contains(out, "containerd  connected") || !strings.Contains(out, "cgroup") {
			t.Errorf("exit code %d, %s%s", code, errs, out)
		}
	})
	t.Run("record", func(t *testing.T) {
		for name, want := range map[string]string{
			"r.html": "leaf_sixty", "r.svg": "leaf_sixty", "r.folded": "main;cycle;alpha;leaf_sixty", "r.json": "leaf_sixty", "-": "leaf_sixty",
		} {
			path := filepath.Join(dir, name)
			if name == "-" {
				path = "-"
			}
			out, errs, code := a.command(t, "record", b.id, "-d", "2s", "-o", path)
			if code != 0 {
				t.Errorf("record -o %s: exit code %d: %s", name, code, errs)
				continue
			}
			if name != "-" {
				text, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				out = string(text)
			}
			if !strings.Contains(out, want) {
				t.Errorf("record -o %s does not say %q: %.2000s", name, want, out)
			}
		}
	})
	t.Run("record of nobody", func(t *testing.T) {
		_, errs, code := a.command(t, "record", "no-such-container", "-d", "1s", "-o", filepath.Join(dir, "no.pb.gz"))
		if code != 3 || !strings.Contains(errs, "no-such-container") {
			t.Errorf("exit code %d, want 3: %s", code, errs)
		}
	})
	t.Run("go tool pprof", func(t *testing.T) {
		one, two := filepath.Join(dir, "one.pb.gz"), filepath.Join(dir, "two.pb.gz")
		for _, path := range []string{one, two} {
			if _, errs, code := a.command(t, "record", b.id, "-d", "2s", "-o", path); code != 0 {
				t.Fatalf("exit code %d: %s", code, errs)
			}
		}
		// Two files are merged; -top says what the merged profile is about.
		out, err := exec.Command("go", "tool", "pprof", "-top", "-cum", "-nodecount=15", one, two).CombinedOutput()
		if err != nil {
			t.Fatalf("go tool pprof: %v: %s", err, out)
		}
		for _, want := range []string{"Type: cpu", "leaf_sixty", "leaf_thirty", "leaf_ten"} {
			if !bytes.Contains(out, []byte(want)) {
				t.Errorf("go tool pprof does not say %q:\n%s", want, out)
			}
		}
		text, err := os.ReadFile(one)
		if err != nil {
			t.Fatal(err)
		}
		p, err := profile.ParseData(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.CheckValid(); err != nil {
			t.Error(err)
		}
		var again bytes.Buffer
		if err := p.Write(&again); err != nil {
			t.Fatal(err)
		}
		q, err := profile.Parse(&again)
		if err != nil {
			t.Fatal(err)
		}
		if p.String() != q.String() {
			t.Error("the profile does not survive a round trip")
		}
	})
	t.Run("query", func(t *testing.T) {
		path := filepath.Join(dir, "q.folded")
		_, errs, code := a.command(t, "query", "--last", "1h", "-l", "service_name=looked-at", "-o", path)
		if code != 0 {
			t.Fatalf("exit code %d: %s", code, errs)
		}
		if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), "main;cycle;alpha;leaf_sixty") {
			t.Errorf("%v, %.2000s", err, text)
		}
		if out, errs, code := a.command(t, "query", "--last", "1h", "-l", "service_name=somebody-else", "-o", "-"); code == 0 {
			t.Errorf("exit code 0 for a service that does not exist: %s%s", out, errs)
		}
	})
	t.Run("top", func(t *testing.T) {
		eventually(t, 20*time.Second, "top shows the container and its hottest function", func() error {
			out, errs, code := a.command(t, "top", "--output", "json")
			if code != 0 || !json.Valid([]byte(out)) || !strings.Contains(out, "leaf_sixty") {
				return &commandError{code, out + errs}
			}
			return nil
		})
	})
	t.Run("metrics", func(t *testing.T) {
		text, err := a.get("/metrics")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"stoker_samples_total", "stoker_store_bytes", "process_cpu_seconds_total", "process_resident_memory_bytes"} {
			if !bytes.Contains(text, []byte("\n"+want)) {
				t.Errorf("/metrics has no %s:\n%s", want, text)
			}
		}
		wantDocumented(t, text)
	})
	b.kill(t)
	a.stop(t)
	for _, p := range a.profiles(t, b.id) {
		b.wantLabels(t, p)
		if p.End.After(start) && p.End.Sub(p.Start) > 2*a.opts.window {
			t.Errorf("a profile from %s to %s, longer than two windows: record disturbed them", p.Start, p.End)
		}
	}
}

// wantDocumented checks that docs/metrics.md names every metric of ours on the page.
func wantDocumented(t *testing.T, page []byte) {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(page) {
		rest, ok := bytes.CutPrefix(line, []byte("# TYPE stoker_"))
		if !ok {
			continue
		}
		name, _, _ := bytes.Cut(rest, []byte(" "))
		if !bytes.Contains(doc, append([]byte("`stoker_"), name...)) {
			t.Errorf("docs/metrics.md does not explain stoker_%s", name)
		}
	}
}

// commandError is what a command said when it did not do what was wanted.
type commandError struct {
	code int
	text string
}

func (e *commandError) Error() string { return "exit code " + string(rune('0'+e.code)) + ": " + e.text }
