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

// TestBlocksOfTheManualAreMarked: a block that a test types or reads says so in its first line, and a wrong mark would quietly leave it out.
// Shell that no test types is counted: `make demo` and `make test` of the README are lanes of
// their own, and the others need a machine that has not the package, or nothing else to do.
func TestBlocksOfTheManualAreMarked(t *testing.T) {
	const root = "../.."
	known := map[string]bool{"sh": true, "sh tested": true, "sh installed": true, "sh installed service": true, "yaml": true, "json": true, "alloy": true, "ini": true, "": true}
	untyped := map[string]int{"README.md": 1, "install.md": 1, "hooks.md": 1, "overhead.md": 1, "privileges.md": 1}
	pages, err := filepath.Glob(root + "/docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, root+"/README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		name, shell, inside := filepath.Base(page), 0, false
		for line := range strings.Lines(string(text)) {
			mark, ok := strings.CutPrefix(strings.TrimSpace(line), "```")
			if !ok {
				continue
			}
			if inside = !inside; !inside {
				if mark != "" {
					t.Errorf("%s: a block begins with %q inside another", name, mark)
				}
				continue
			}
			if !known[mark] {
				t.Errorf("%s: nobody knows what a block of %q is", name, mark)
			}
			if mark == "sh" {
				shell++
			}
		}
		if inside {
			t.Errorf("%s: a block does not end", name)
		}
		if shell != untyped[name] {
			t.Errorf("%s has %d blocks of shell that no test types, not %d: mark them tested or installed", name, shell, untyped[name])
		}
	}
}
