package cfi

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// goProgram builds a small program, which has the whole runtime in it.
func goProgram(t testing.TB, arch string, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":  "module example.org/program\n\ngo 1.21\n",
		"main.go": "package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println(1) }\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "program")
	cmd := exec.Command("go", append([]string{"build", "-o", path}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off", "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return path
}

// TestRowsOfGoAreThoseOfItsDebugInfo compares with the .debug_frame that Go's linker writes, which says how far the CFA is from
// the stack pointer and nothing of frame pointers. (On arm64 it does not say when the return address leaves the register.)
func TestRowsOfGoAreThoseOfItsDebugInfo(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		t.Run(arch, func(t *testing.T) {
			path := goProgram(t, arch)
			f, rows, stats := rowsOf(t, path)
			if !f.Go() {
				t.Fatal("not taken for a Go program")
			}
			if stats.Refused != [ReasonCount]int{} {
				t.Errorf("refused: %v", stats.Refused)
			}
			exact, chained, roots, invalid, wrong := 0, 0, 0, 0, 0
			err := dwarfdump(path, true, func(entry string, told []told) {
				for i := range told {
					w := &told[i]
					m := toldPlain.FindStringSubmatch(w.cfa)
					if m == nil || !strings.HasSuffix(m[1], "SP") {
						t.Fatalf("%s\nat 0x%x the CFA is %s", entry, w.from, w.cfa)
					}
					if w.from >= w.to {
						continue
					}
					cfa := int32(0)
					if m[2] != "" {
						n, err := strconv.ParseInt(m[2], 10, 32)
						if err != nil {
							t.Fatal(err)
						}
						cfa = int32(n)
					}
					for j := max(find(rows, w.from), 0); j < len(rows) && rows[j].Address < w.to; j++ {
						r := rows[j].Rule
						good := true
						switch r.Kind {
						case Stop, Signal:
							roots++
						case FramePointer: // where the stack moves otherwise than by the table, Go marks it
							chained++
							good = cfa >= 8 || f.arch.link
						case Normal:
							exact++
							good = r.Base == f.arch.sp && r.CFA == cfa
						case Invalid: // assembly that makes its own frame
							invalid++
							good = f.arch.link
						}
						if !good {
							if wrong++; wrong < 10 {
								t.Errorf("%s\nat 0x%x llvm-dwarfdump has %+v\nwe have 0x%x %+v", entry, w.from, *w, rows[j].Address, r)
							}
						}
					}
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d rows: %d pieces exact, %d by frame pointer, %d without a caller, %d unknown", len(rows), exact, chained, roots, invalid)
			if exact < 1000 || roots < 3 || arch == "amd64" && chained < 1000 || invalid > exact/50 {
				t.Error("these are not the rows of a whole Go program")
			}
		})
	}
}

// TestStrippedGoProgramsHaveTheSameRows strips what names the tables.
func TestStrippedGoProgramsHaveTheSameRows(t *testing.T) {
	_, want, _ := rowsOf(t, goProgram(t, "amd64"))
	_, got, _ := rowsOf(t, goProgram(t, "amd64", "-ldflags=-s -w"))
	kinds := func(rows []Row) (n [kinds]int) {
		for _, r := range rows {
			n[r.Rule.Kind]++
		}
		return n
	}
	if g, w := kinds(got), kinds(want); g != w {
		t.Errorf("kinds of rows: %v stripped, %v not", g, w)
	}
}
