package config

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestExamplesOfTheManualAreRead takes every block of YAML in README and docs for a configuration file, as a reader would.
func TestExamplesOfTheManualAreRead(t *testing.T) {
	pages, err := filepath.Glob("../../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")
	n := 0
	for _, page := range append(pages, "../../../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range block.FindAllSubmatchIndex(text, -1) {
			n++
			line := 1 + strings.Count(string(text[:at[2]]), "\n")
			file := filepath.Join(t.TempDir(), "stoker.yaml")
			if err := os.WriteFile(file, text[at[2]:at[3]], 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := Load(Options{File: file}); err != nil {
				t.Errorf("%s:%d: %v", filepath.Base(page), line, err)
			}
		}
	}
	if n < 5 {
		t.Errorf("%d examples were found", n)
	}
}
