package cfi

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var scanFiles = flag.String("scan-files", "", "files to scan without their call frame information, besides libc")

// TestCodeAloneTellsItsRows takes the call frame information from a library and compares what its code tells with it.
func TestCodeAloneTellsItsRows(t *testing.T) {
	for _, path := range append([]string{"/lib/x86_64-linux-gnu/libc.so.6"}, strings.Fields(*scanFiles)...) {
		_, want, _ := rowsOf(t, path)
		bare := filepath.Join(t.TempDir(), "bare")
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(bare, b, 0o644); err != nil {
			t.Fatal(err)
		}
		run(t, "objcopy", "--remove-section", ".eh_frame", "--remove-section", ".eh_frame_hdr", bare)
		f, got, stats := rowsOf(t, bare)
		if f.Source() != NoTable {
			t.Fatalf("%s still has rows from %v", path, f.Source())
		}
		var same, similar, unknown, wrong, all Address
		shown := 0
		for i, w := range want[:len(want)-1] {
			if w.Rule.Kind != Normal || w.Rule.RA != AtCFA {
				continue
			}
			end := want[i+1].Address
			for a := w.Address; a < end; {
				j := find(got, a)
				next := end
				if j+1 < len(got) {
					next = min(next, got[j+1].Address)
				}
				n := next - a
				g := got[j].Rule
				all += n
				// A register that has been restored is still where it was saved, and compilers do not bother to say so.
				switch r := w.Rule; {
				case g == r:
					same += n
				case g.Kind != Normal:
					unknown += n
				case g.Base == r.Base && g.CFA == r.CFA || g.Base == X86SP && r.Base == X86FP || g.Base == X86FP && r.Base == X86SP:
					similar += n
				default:
					if wrong += n; shown < 10 && testing.Verbose() {
						shown++
						t.Logf("%s, 0x%x: %+v, want %+v", filepath.Base(path), a, g, r)
					}
				}
				a = next
			}
		}
		share := func(n Address) float64 { return 100 * float64(n) / float64(all) }
		t.Logf("%s: %d functions told, %d unclear; of the bytes of code %.2f %% have the same rule, %.2f %% another way to the same, %.2f %% none, %.3f %% a wrong one",
			filepath.Base(path), stats.Scanned, stats.Unclear, share(same), share(similar), share(unknown), share(wrong))
		if share(wrong) > 0.2 || share(same)+share(similar) < 90 {
			t.Errorf("%s: too much of the code is not understood", path)
		}
	}
}
