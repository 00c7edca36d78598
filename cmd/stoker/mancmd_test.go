package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// There is a page for every command that the help lists, the same at every build, and no text in it is taken for a request.
func TestManualHasAPageForEveryCommand(t *testing.T) {
	a := &app{stdout: &strings.Builder{}, stderr: &strings.Builder{}, environ: []string{"SOURCE_DATE_EPOCH=1764000000"}, version: "1.2.3"}
	first, second := t.TempDir(), t.TempDir()
	for _, dir := range []string{first, second} {
		if code := a.execute(t.Context(), []string{"man", dir}); code != exitDone {
			t.Fatalf("exit code %d: %s", code, a.stderr)
		}
	}
	requests := regexp.MustCompile(`^\.(TH|SH|TP|PP|nf|fi)( |\n)`)
	for _, name := range []string{"stoker.1", "stoker-run.1", "stoker-hook-install.1", "stoker-config-default.1", "stoker.yaml.5"} {
		page, err := os.ReadFile(filepath.Join(first, name))
		if err != nil {
			t.Fatal(err)
		}
		if again, err := os.ReadFile(filepath.Join(second, name)); err != nil || string(again) != string(page) {
			t.Errorf("%s is not the same again: %v", name, err)
		}
		if !strings.HasPrefix(string(page), ".TH ") || !strings.Contains(string(page), `"2025-11-24" "stoker 1.2.3"`) {
			t.Errorf("%s begins with %.100s", name, page)
		}
		for line := range strings.Lines(string(page)) {
			if strings.HasPrefix(line, ".") && !requests.MatchString(line) || strings.HasPrefix(line, "'") {
				t.Errorf("%s: %s", name, line)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(first, "stoker-perf-access.1")); err == nil {
		t.Error("a hidden command has a page")
	}
	page := a.manual(a.root(), clock)["stoker-hook-install.1"]
	if want := ".nf\n  podman, crio   a JSON file"; !strings.Contains(page, want) {
		t.Errorf("the table is not kept:\n%s", page)
	}
	if want := "\\fB\\-\\-hooks\\-dir DIR\\fR\n"; !strings.Contains(page, want) {
		t.Errorf("no value's name:\n%s", page)
	}
}
