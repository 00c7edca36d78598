package imports

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/stoker-profiler/stoker"

// pkg is what `go list -json` says about one package. Paths of our own packages are made relative to the module.
type pkg struct {
	ImportPath, Dir   string
	Name, Doc         string
	Imports, Deps     []string
	GoFiles, CgoFiles []string
}

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-tags", "root,browser", "-json=ImportPath,Dir,Name,Doc,Imports,Deps,GoFiles,CgoFiles",
		module+"/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		p.ImportPath = ours(p.ImportPath)
		for i := range p.Imports {
			p.Imports[i] = ours(p.Imports[i])
		}
		for i := range p.Deps {
			p.Deps[i] = ours(p.Deps[i])
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 5 {
		t.Fatalf("go list names %d packages, which cannot be the whole repository", len(pkgs))
	}
	return pkgs
}

// ours cuts the module path off our own packages: "./sink/store" cannot be mistaken for a package of somebody else.
func ours(importPath string) string {
	if rest, ok := strings.CutPrefix(importPath, module); ok {
		return "." + rest
	}
	return importPath
}

// rules is the table of forbidden imports. A pattern that ends in /... means the package and all below it.
var rules = []struct {
	from   []string // who
	except []string // but these
	to     []string // may not import any of these
	direct bool     // true: only in its own import lines; false: not through others either
	why    string
}{
	{from: []string{"./sink/..."}, to: []string{"./runtime/...", "./bpf/...", "./labeler/..."},
		why: "a profile is complete when it reaches a sink: a sink that asks who the container is, or looks at a process, can be wrong later than the sample was taken"},
	{from: []string{"./labeler/..."}, to: []string{"./bpf/...", "./sink/store/...", "./sink/pyroscope/...", "./sink/pprof/...", "./sink/file/...", "./sink/web/...", "./runtime/registry/..."},
		why: "labels are a function of a container and the configuration, nothing else: that is what makes them testable as text"},
	{from: []string{"./runtime/...", "./hook/..."}, to: []string{"./bpf/...", "./sink/...", "./labeler/..."},
		why: "sources and the registry tell about containers; the registry gets the kernel through its own small interface, so it can be tested without one"},
	{from: []string{"./runtime/container"}, to: []string{"./..."},
		why: "the model that all sources share stays free of them, or two sources would depend on each other through it"},
	{from: []string{"./hook/..."}, to: []string{"./bpf/...", "./sink/...", "./labeler/...", "./runtime/registry/..."},
		why: "hooks and the NRI plugin are sources like those below runtime; that a runtime waits for them changes nothing about it"},
	{from: []string{"./hook/oci/wire", "./cmd/stoker-hook"}, to: []string{"os", "fmt", "net", "time", "reflect", "encoding/..."},
		why: "every container waits for the hook's process to start: packages that initialise much are left out"},
	{from: []string{"./sink"}, to: []string{"./..."},
		why: "the model that all sinks share stays free of them"},
	{from: []string{"./bpf/..."}, to: []string{"./runtime/...", "./sink/...", "./labeler/..."},
		why: "the sampler knows cgroup ids and scope ids; who they are is decided elsewhere and may change while a stack is on its way"},
	{from: []string{"./bpf/symbol/..."}, to: []string{"./bpf/sampler/...", "./bpf/unwind/...", "./bpf/process/..."},
		why: "symbols are a function of a file's bytes: shared by unwinders, and fuzzed without a kernel"},
	{from: []string{"./..."}, except: []string{"./cmd/..."}, to: []string{"./cmd/..."},
		why: "cmd wires the parts together; what somebody else needs of it belongs into a part"},
	{from: []string{"./..."}, except: []string{"./test/..."}, to: []string{"./test/..."},
		why: "what ships contains nothing that is made for tests"},
	{from: []string{"./..."}, except: []string{"./sink/pyroscope/...", "./test/..."}, direct: true, to: []string{"github.com/grafana/pyroscope/..."},
		why: "one package speaks to Pyroscope, so that one place knows its error codes and its generated types do not spread"},
	{from: []string{"./..."}, except: []string{"./sink/store/...", "./test/..."}, direct: true, to: []string{"modernc.org/sqlite/...", "database/sql/..."},
		why: "one package knows the schema: what others may ask of the store is its Go API"},
	{from: []string{"./..."}, except: []string{"./bpf/...", "./test/..."}, direct: true, to: []string{"github.com/cilium/ebpf/..."},
		why: "the kernel is spoken to below bpf/; everybody else gets plain Go values"},
	{from: []string{"./..."}, except: []string{"./cmd/..."}, direct: true, to: []string{"github.com/spf13/..."},
		why: "flags are read in one place; a part is configured by its Config"},
}

func match(pattern, p string) bool {
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return p == base || strings.HasPrefix(p, base+"/")
	}
	return p == pattern
}

func matchAny(patterns []string, p string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return match(pattern, p) })
}

func TestForbiddenImports(t *testing.T) {
	for _, p := range list(t) {
		for _, r := range rules {
			if !matchAny(r.from, p.ImportPath) || matchAny(r.except, p.ImportPath) {
				continue
			}
			imports := p.Deps
			if r.direct {
				imports = p.Imports
			}
			for _, i := range imports {
				if matchAny(r.to, i) && i != p.ImportPath {
					t.Errorf("%s imports %s (directly: %t): %s", p.ImportPath, i, slices.Contains(p.Imports, i), r.why)
				}
			}
		}
		// An unwinder per folder, and each stands alone: a language can be left out, or read without reading another.
		if name, ok := strings.CutPrefix(p.ImportPath, "./bpf/unwind/"); ok {
			own := "./bpf/unwind/" + strings.Split(name, "/")[0]
			for _, i := range p.Deps {
				if strings.HasPrefix(i, "./bpf/unwind/") && !match(own+"/...", i) {
					t.Errorf("%s imports %s: an unwinder never imports another; what two need belongs into bpf/include, bpf/process or bpf/symbol",
						p.ImportPath, i)
				}
			}
		}
	}
}

func TestEveryPackageHasOneComment(t *testing.T) {
	for _, p := range list(t) {
		var with []string
		for _, f := range append(slices.Clone(p.GoFiles), p.CgoFiles...) {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if packageComment(file) {
				with = append(with, f)
			}
		}
		if len(p.GoFiles)+len(p.CgoFiles) > 0 && len(with) != 1 {
			t.Errorf("package %s has %d package comments %v, want one: what is in the room, who may call, which goroutine owns it, what it never does",
				p.ImportPath, len(with), with)
		}
	}
}

// packageComment reports whether a file's package clause is documented. "Code generated" lines are not documentation.
func packageComment(f *ast.File) bool {
	return f.Doc != nil && !ast.IsGenerated(f) && strings.TrimSpace(f.Doc.Text()) != ""
}

// files calls f for every file of the repository whose name ends in one of the suffixes.
func files(t *testing.T, suffixes []string, f func(name string, text []byte)) {
	t.Helper()
	root := filepath.Join("..", "..")
	n := 0
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "bin" || d.Name() == ".cache") {
			return filepath.SkipDir
		}
		if d.IsDir() || !slices.Contains(suffixes, path.Ext(name)) {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		n++
		f(strings.TrimPrefix(name, root+"/"), text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n == 0 {
		t.Fatalf("no file ends in %v", suffixes)
	}
}

// Go files are under the LICENSE of the repository; what is loaded into the kernel, or included there, says its own.
func TestBPFSourcesNameTheirLicence(t *testing.T) {
	want := regexp.MustCompile(`SPDX-License-Identifier: (\(?GPL-2\.0-only OR BSD-2-Clause\)?)`)
	files(t, []string{".c", ".h"}, func(name string, text []byte) {
		if !strings.HasPrefix(name, "bpf/include/") && !strings.HasSuffix(name, ".bpf.c") {
			return // a program that tests look at: ordinary C under the repository's LICENSE
		}
		head := text[:min(len(text), 400)]
		if !want.Match(head) {
			t.Errorf("%s does not say %q in its first lines", name, "SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause")
		}
	})
}

// A skipped test looks like a passed one. Who lacks something that a test needs is told so by a failure.
func TestNoTestIsSkipped(t *testing.T) {
	skip := regexp.MustCompile(`\b[a-z]\.Skip(f|Now)?\(`)
	files(t, []string{".go"}, func(name string, text []byte) {
		if loc := skip.FindIndex(text); loc != nil && strings.HasSuffix(name, "_test.go") {
			line := 1 + strings.Count(string(text[:loc[0]]), "\n")
			t.Errorf("%s:%d skips; a test that cannot run fails and names what is missing", name, line)
		}
	})
}
