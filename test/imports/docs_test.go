package imports

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestTheManualIsTrueToTheRepository: a test that a page names as its proof exists, and a link leads somewhere.
func TestTheManualIsTrueToTheRepository(t *testing.T) {
	const root = "../.."
	var tests strings.Builder // all of their text
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		tests.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob(root + "/docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`\b(Test|Fuzz|Benchmark)[A-Z]\w+`)
	link := regexp.MustCompile(`\]\(([^)#\s]+)(#[^)\s]*)?\)`)
	for _, page := range append(pages, root+"/README.md", root+"/CONTRIBUTING.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range name.FindAllString(string(text), -1) {
			if !strings.Contains(tests.String(), "func "+n+"(") {
				t.Errorf("%s names %s, which does not exist", filepath.Base(page), n)
			}
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			to := m[1]
			if strings.Contains(to, "://") || strings.HasPrefix(to, "mailto:") {
				continue
			}
			path := filepath.Join(filepath.Dir(page), to)
			target, err := os.Stat(path)
			if err != nil {
				t.Errorf("%s has a link to %s: %v", filepath.Base(page), to, err)
				continue
			}
			if anchor := strings.TrimPrefix(m[2], "#"); anchor != "" && !target.IsDir() {
				there, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if !headings(string(there))[anchor] {
					t.Errorf("%s has a link to %s, which has no heading %q", filepath.Base(page), to, anchor)
				}
			}
		}
	}
}

// headings are the anchors that a page's headings get where Markdown is shown.
func headings(text string) map[string]bool {
	found := map[string]bool{}
	drop := regexp.MustCompile(`[^\p{L}\p{N}_\- ]`)
	for line := range strings.Lines(text) {
		if title := strings.TrimLeft(line, "#"); title != line {
			found[strings.ReplaceAll(drop.ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), ""), " ", "-")] = true
		}
	}
	return found
}
