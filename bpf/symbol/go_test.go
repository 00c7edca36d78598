package symbol

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// toolchains are Go releases to test besides the one that runs the tests; they are fetched through the module proxy.
var toolchains = flag.String("toolchains", "", "comma-separated Go toolchains (go1.20.14,…) to build the test program with, besides the local one")

// goProgram copies the test program into a module of its own, so that releases older than ours may build it, and builds it.
func goProgram(t testing.TB, toolchain string, cgo bool, args ...string) string {
	t.Helper()
	return goProgramFor(t, runtime.GOARCH, toolchain, cgo, args...)
}

func goProgramFor(t testing.TB, arch, toolchain string, cgo bool, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/goprogram")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.org/goprogram\n\ngo 1.18\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "program")
	cmd := exec.Command("go", append([]string{"build", "-o", path}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off", "GOARCH="+arch)
	if cgo {
		cmd.Env = append(cmd.Env, "CGO_ENABLED=1")
	}
	if toolchain != "" {
		cmd.Env = append(cmd.Env, "GOTOOLCHAIN="+toolchain)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return path
}

// TestGoProgramsAreNamedAsTheirRuntimeDoes builds a program in the ways that people build programs, lets it print what its own
// runtime says about addresses all over its code, inlined frames included, and compares.
func TestGoProgramsAreNamedAsTheirRuntimeDoes(t *testing.T) {
	list := []string{""}
	if *toolchains != "" {
		list = append(list, strings.Split(*toolchains, ",")...)
	}
	for _, toolchain := range list {
		check := "-checklinkname=0 "
		if v := strings.TrimPrefix(toolchain, "go1."); v != toolchain && v < "23" {
			check = "" // the linker learned to check with Go 1.23
		}
		for _, c := range []struct {
			name  string
			cgo   bool
			flags []string
		}{
			{"plain", false, []string{"-ldflags=" + check}},
			{"stripped", false, []string{"-ldflags=" + check + "-s -w"}},
			{"stripped PIE", false, []string{"-buildmode=pie", "-ldflags=" + check + "-s -w"}},
			{"cgo", true, []string{"-ldflags=" + check}},
			{"cgo, stripped PIE, linked by gcc", true, []string{"-buildmode=pie", "-ldflags=" + check + "-s -w -linkmode=external"}},
			{"cgo, stripped, linked by gcc", true, []string{"-ldflags=" + check + "-s -w -linkmode=external"}},
		} {
			t.Run(strings.TrimSpace(toolchain+" "+c.name), func(t *testing.T) {
				path := goProgram(t, toolchain, c.cgo, c.flags...)
				o := parseFile(t, path)
				if o.golang == nil {
					t.Fatal("no pclntab found")
				}
				compareWithRuntime(t, o, run(t, path))
				if c.name == "cgo" {
					compareCgo(t, o, path)
				}
			})
		}
	}
}

// architectures are those to cross-compile for besides arm64.
var architectures = flag.String("architectures", "", "comma-separated GOARCHs to cross-compile the test program for, besides arm64")

// TestGoProgramsOfOtherArchitectures compares with go tool nm and go tool addr2line, which read the tables in their own way:
// they know the outermost function and the innermost line.
func TestGoProgramsOfOtherArchitectures(t *testing.T) {
	list := []string{"arm64"}
	if *architectures != "" {
		list = append(list, strings.Split(*architectures, ",")...)
	}
	for _, arch := range list {
		t.Run(arch, func(t *testing.T) {
			path := goProgramFor(t, arch, "", false, "-ldflags=-checklinkname=0")
			o := parseFile(t, path)
			var in strings.Builder
			var addrs []Address
			for l := range strings.Lines(run(t, "go", "tool", "nm", path)) {
				f := strings.Fields(l)
				if len(f) < 3 || f[1] != "T" && f[1] != "t" || f[2] == "runtime.etext" || f[2] == "runtime.text" {
					continue
				}
				a, err := strconv.ParseUint(f[0], 16, 64)
				if err != nil {
					t.Fatal(l)
				}
				lines := o.Lookup(nil, Address(a))
				// The symbol table tells assembly functions from their wrappers, and writes a dot as it is.
				want := strings.TrimSuffix(strings.Join(f[2:], " "), ".abi0")
				if len(lines) == 0 || strings.ReplaceAll(lines[len(lines)-1].Function, "·", ".") != want {
					t.Errorf("at %#x: got %v, nm says %s", a, lines, want)
				}
				addrs = append(addrs, Address(a), Address(a)+16)
			}
			for _, a := range addrs {
				fmt.Fprintf(&in, "%#x\n", uint64(a))
			}
			cmd := exec.Command("go", "tool", "addr2line", path)
			cmd.Stdin = strings.NewReader(in.String())
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			answers := strings.Split(strings.TrimSpace(string(out)), "\n")
			if len(answers) != 2*len(addrs) || len(addrs) < 1000 {
				t.Fatalf("%d answers for %d addresses", len(answers), len(addrs))
			}
			bad := 0
			for i, a := range addrs {
				lines := o.Lookup(nil, a)
				if len(lines) == 0 || answers[2*i] == "?" {
					continue // beyond the last function
				}
				place := fmt.Sprintf("%s:%d", lines[0].File, lines[0].Line)
				if name := lines[len(lines)-1].Function; name != answers[2*i] || place != answers[2*i+1] && lines[0].Line != 0 {
					if bad++; bad < 5 {
						t.Errorf("at %#x: got %v, addr2line says %s %s", a, lines, answers[2*i], answers[2*i+1])
					}
				}
			}
			t.Logf("%d addresses compared, %d differ", len(addrs), bad)
		})
	}
}

// compareWithRuntime compares Lookup with the output of the test program.
func compareWithRuntime(t *testing.T, o *Object, out string) {
	t.Helper()
	var off FileOffset
	var want []Line
	checked, inlines, bad := 0, 0, 0
	check := func() {
		if len(want) == 0 {
			return
		}
		a, ok := o.Address(off)
		got := o.Lookup(nil, a)
		shown := slices.Clone(got)
		for i := range shown { // it prints the type arguments of generic functions as [...]
			n := shown[i].Function
			if a, b := strings.IndexByte(n, '['), strings.LastIndexByte(n, ']'); a >= 0 && b > a && !slices.Contains(want, shown[i]) {
				shown[i].Function = n[:a] + "[...]" + n[b+1:]
			}
		}
		// It hides functions that only call another one for the compiler; we show what is there.
		shown = slices.DeleteFunc(shown, func(l Line) bool {
			wrapper := l.File == "<autogenerated>" || strings.Contains(l.Function, ".deferwrap") ||
				strings.Contains(l.Function, ".gowrap") || l.Function == "reflect.callMethod" || l.Function == "reflect.callReflect"
			return wrapper && !slices.Contains(want, l)
		})
		if !ok || !slices.Equal(shown, want) {
			if bad++; bad < 5 {
				t.Errorf("offset %#x, address %#x: got\n%v\nthe runtime says\n%v", off, a, got, want)
			}
		}
		checked++
		inlines += len(want) - 1
	}
	for in := bufio.NewScanner(strings.NewReader(out)); in.Scan(); {
		l := in.Text()
		switch {
		case strings.HasPrefix(l, "P "):
			check()
			want = want[:0]
			if _, err := fmt.Sscanf(l, "P %x", &off); err != nil {
				t.Fatalf("%q: %v", l, err)
			}
		case strings.HasPrefix(l, "F "):
			f := strings.Split(l[2:], "\t")
			line := Line{Function: f[0], File: f[1]}
			if line.File == "?" { // padding between functions
				line.File = ""
			}
			if _, err := fmt.Sscan(f[2], &line.Line); err != nil {
				t.Fatalf("%q: %v", l, err)
			}
			if _, err := fmt.Sscan(f[3], &line.StartLine); err != nil {
				t.Fatalf("%q: %v", l, err)
			}
			want = append(want, line)
		}
	}
	check()
	t.Logf("%d addresses compared, %d inlined frames, %d addresses differ", checked, inlines, bad)
	if checked < 1000 || inlines < 100 {
		t.Errorf("only %d addresses and %d inlined frames compared", checked, inlines)
	}
}

// compareCgo checks that C code of a cgo program is named by the symbol table.
func compareCgo(t *testing.T, o *Object, path string) {
	t.Helper()
	for _, s := range nm(t, path) {
		if s.name == "in_c" {
			if got := o.Lookup(nil, s.addr+1); len(got) != 1 || got[0].Function != "in_c" {
				t.Errorf("C function: got %v, want in_c", got)
			}
			return
		}
	}
	t.Error("in_c is not in the program")
}

func TestLargeGoTablesKeepTheirNames(t *testing.T) {
	path := goProgram(t, "", false, "-ldflags=-checklinkname=0 -s -w")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	full := mustParse(t, b)
	small, err := parse(bytes.NewReader(b), int64(len(b)), full.bytes*2/3)
	if err != nil {
		t.Fatal(err)
	}
	if !small.degraded || small.Bytes() > full.bytes*2/3 {
		t.Fatalf("degraded %v, %d bytes of %d; want true and at most two thirds", small.degraded, small.Bytes(), full.Bytes())
	}
	same := 0
	for _, s := range full.golang.starts[:len(full.golang.starts)-1] {
		f, g := full.Lookup(nil, full.golang.text+Address(s)), small.Lookup(nil, full.golang.text+Address(s))
		if len(f) > 0 && (len(g) != 1 || g[0] != (Line{Function: f[len(f)-1].Function})) {
			t.Fatalf("at %#x: got %v, want only the outermost name of %v", s, g, f)
		}
		same++
	}
	if same < 1000 {
		t.Errorf("%d functions compared", same)
	}
	none, err := parse(bytes.NewReader(b), int64(len(b)), 10<<10)
	if err != nil || none.golang != nil || !none.degraded {
		t.Errorf("with 10 KiB: %v, table %v, degraded %v; want an object without names", err, none.golang != nil, none.degraded)
	}
}
