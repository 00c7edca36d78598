package cfi

import (
	"os"
	"testing"
)

func open(t testing.TB, path string) *os.File {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// TestRowsOfARM64 reads two small libraries that testdata/arm64.sh makes.
func TestRowsOfARM64(t *testing.T) {
	called := Rule{Kind: Normal, Base: ARM64SP, RAAt: int32(ARM64LR)}
	for _, c := range []struct {
		path   string
		signed bool
	}{{"testdata/arm64.so", false}, {"testdata/arm64-pac.so", true}} {
		t.Run(c.path, func(t *testing.T) {
			counts, rows := compareFile(t, c.path, false)
			if counts.entries < 8 || counts.rows < 30 {
				t.Errorf("llvm-dwarfdump showed %d entries, %d rows", counts.entries, counts.rows)
			}
			if counts.refused != 1 {
				t.Errorf("%d rows refused, want one expression", counts.refused)
			}
			signed := false
			for _, r := range rows {
				signed = signed || r.Rule.Signed
			}
			if signed != c.signed {
				t.Errorf("rows with signed return addresses: %v, want %v", signed, c.signed)
			}
			f, _, _ := rowsOf(t, c.path)
			at := labels(t, c.path)
			plt, ok := f.layout.Section(".plt")
			if !ok {
				t.Fatal("no .plt")
			}
			for _, w := range []struct {
				what string
				at   Address
				rule Rule
			}{
				{"_start", at["_start"], Rule{Kind: Stop}},
				{"trampoline", at["trampoline"], Rule{Kind: Signal}},
				{"return address into the trampoline", at["trampoline"] - 1, Rule{Kind: Signal}},
				{"call in a new thread", at["thread"] + 4, Rule{Kind: Stop}},
				{"return address in a new thread", at["thread"] + 8, Rule{Kind: Stop}},
				{"header of the PLT", plt.Address, called},
				{"header of the PLT, pushed", plt.Address + 4, Rule{Kind: Normal, Base: ARM64SP, CFA: 16, RA: AtCFA, RAAt: -8}},
				{"stub", plt.Address + 32, called},
			} {
				if got := ruleAt(rows, w.at); got != w.rule {
					t.Errorf("%s, 0x%x: got %+v, want %+v", w.what, w.at, got, w.rule)
				}
			}
		})
	}
}
