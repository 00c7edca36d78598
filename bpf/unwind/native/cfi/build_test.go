package cfi

import (
	"debug/elf"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// build compiles a source of testdata with gcc and returns the file's path.
func build(t testing.TB, source string, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "built")
	run(t, "gcc", append([]string{"-nostdlib", "-o", path, filepath.Join("testdata", source)}, args...)...)
	return path
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// labels returns the values of the symbols of a file.
func labels(t testing.TB, path string) map[string]Address {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]Address{}
	for _, s := range symbols {
		at[s.Name] = Address(s.Value)
	}
	return at
}

// ruleAt returns the rule that holds at a.
func ruleAt(rows []Row, a Address) Rule {
	if i := find(rows, a); i >= 0 {
		return rows[i].Rule
	}
	return Rule{}
}

func sp(offset int32) Rule { return Rule{Kind: Normal, Base: X86SP, CFA: offset, RA: AtCFA, RAAt: -8} }

// x86Rules is what testdata/x86.S says, by label.
var x86Rules = map[string]Rule{
	"realigned":         sp(8),
	"at_r10":            {Kind: Normal, Base: 10, RA: AtCFA, RAAt: -8},
	"at_saved":          {Kind: Normal, Base: 10, FP: AtFP, RA: AtCFA, RAAt: -8},
	"at_deref":          {Kind: Deref, Base: X86FP, CFA: -8, FP: AtFP, RA: AtCFA, RAAt: -8},
	"plain":             sp(8),
	"at_pushed":         {Kind: Normal, Base: X86SP, CFA: 24, FP: AtCFA, FPAt: -16, RA: AtCFA, RAAt: -8, BXAt: -24},
	"at_popped":         sp(8),
	"at_restored":       {Kind: Normal, Base: X86SP, CFA: 24, FP: AtCFA, FPAt: -16, RA: AtCFA, RAAt: -8, BXAt: -24},
	"stacked":           sp(8),
	"at_rax":            {Kind: Normal, Base: 0, CFA: 8, RA: AtCFA, RAAt: -8},
	"at_nop_expression": {},
	"at_plus":           {Kind: Deref, Base: X86SP, CFA: 48, Plus: 8, RA: AtCFA, RAAt: -8},
	"at_nop_indexed":    {},
	"at_indexed":        {Kind: Indexed, Base: 9, CFA: 8, Plus: 8, RA: AtCFA, RAAt: -8},
	"at_rdi":            {Kind: Normal, Base: X86SP, CFA: 8, RA: Unchanged, RAAt: 5},
	"at_far":            {},
	"at_odd":            {},
	"at_other_stack":    {},
	"at_lost":           {Kind: Normal, Base: X86SP, CFA: 8, FP: Lost, RA: AtCFA, RAAt: -8},
	"at_same":           sp(8),
	"at_undefined":      {Kind: Stop},
}

// x86Code is what the code of testdata/x86.S says by itself.
var x86Code = map[string]Rule{
	"_start":        {Kind: Stop},
	"hole":          {},
	"at_trampoline": {Kind: Signal},
	"at_thread":     {Kind: Stop},
	"at_nothing":    {},
}

func check(t *testing.T, path string, rows []Row, rules map[string]Rule) {
	t.Helper()
	at := labels(t, path)
	for name, want := range rules {
		a, ok := at[name]
		if !ok {
			t.Errorf("%s has no label %s", path, name)
		}
		if got := ruleAt(rows, a); got != want {
			t.Errorf("%s, 0x%x: got %+v, want %+v", name, a, got, want)
		}
	}
}

// TestTheSameRowsComeFromEverySource builds one program in ways that leave its call frame information in different places.
func TestTheSameRowsComeFromEverySource(t *testing.T) {
	for _, c := range []struct {
		name   string
		source Source
		args   []string
		after  []string // arguments of objcopy
	}{
		{name: "search table", source: EhFrameHdr},
		{name: "static, not relocatable", source: EhFrame, args: []string{"-static", "-no-pie"}},
		{name: "no search table", source: EhFrame, args: []string{"-DUNKNOWN", "-Wl,--no-eh-frame-hdr"}},
		{name: "search table, no section headers' names", source: EhFrameHdr, after: []string{"--rename-section", ".eh_frame=.other"}},
		{name: "debug_frame", source: DebugFrame, args: []string{"-DUNKNOWN", "-DDEBUG_FRAME"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := build(t, "x86.S", append([]string{"-Wl,-z,noexecstack", "-Wl,--unresolved-symbols=ignore-all"}, c.args...)...)
			if c.after != nil {
				run(t, "objcopy", append(c.after, path)...)
			}
			f, rows, stats := rowsOf(t, path)
			if f.Source() != c.source {
				t.Errorf("rows come from %v, want %v", f.Source(), c.source)
			}
			check(t, path, rows, x86Rules)
			check(t, path, rows, x86Code)
			unknown := slices.Contains(c.args, "-DUNKNOWN") // with it, ld makes no search table
			if unknown {
				check(t, path, rows, map[string]Rule{"at_unknown": {}})
			}
			want := map[Reason]bool{ReasonExpression: true, ReasonRange: true, ReasonRegister: true, ReasonOpcode: unknown}
			for why, n := range stats.Refused {
				if n > 0 != want[Reason(why)] {
					t.Errorf("refused for %v: %d", Reason(why), n)
				}
			}
			if at := labels(t, path)["at_trampoline"]; ruleAt(rows, at-1).Kind != Signal || ruleAt(rows, at-2).Kind != Invalid {
				t.Error("a return address into the trampoline, looked up one byte before, is not a signal's frame")
			}
		})
	}
}

// TestStubsWithoutCallFrameInformation takes it away from a library: lld writes none for its stubs.
func TestStubsWithoutCallFrameInformation(t *testing.T) {
	for _, c := range []struct {
		name      string
		args      []string
		threshold int16
	}{
		{"lazy", []string{"-Wl,-z,lazy"}, 11},
		{"lazy, with indirect branch tracking", []string{"-Wl,-z,lazy,-z,ibtplt"}, 9},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := build(t, "x86.S", append([]string{"-shared", "-Wl,-z,noexecstack"}, c.args...)...)
			f, with, _ := rowsOf(t, path)
			if f.Source() != EhFrameHdr {
				t.Fatalf("rows come from %v", f.Source())
			}
			run(t, "objcopy", "--remove-section", ".eh_frame", "--remove-section", ".eh_frame_hdr", path)
			f, without, _ := rowsOf(t, path)
			if f.Source() != NoTable {
				t.Fatalf("rows come from %v", f.Source())
			}
			check(t, path, without, x86Code)
			sections := 0
			for _, name := range []string{".plt", ".plt.sec", ".plt.got"} {
				s, ok := f.layout.Section(name)
				if !ok {
					continue
				}
				sections++
				for a := s.Address; a < s.End(); a++ {
					got, want := ruleAt(without, a), ruleAt(with, a)
					if got != want {
						t.Fatalf("%s, 0x%x: got %+v, with call frame information %+v", name, a, got, want)
					}
				}
				if r := ruleAt(without, s.Address+16); name == ".plt" && (r.Kind != PLT || r.Plus != c.threshold) {
					t.Errorf("stubs have the rule %+v, want threshold %d", r, c.threshold)
				}
			}
			if sections == 0 {
				t.Error("the library has no stubs")
			}
		})
	}
}

func TestRowsOfARangeAreThoseOfTheWhole(t *testing.T) {
	path := build(t, "x86.S", "-Wl,--unresolved-symbols=ignore-all")
	f, whole, _ := rowsOf(t, path)
	file := open(t, path)
	from, to := whole[0].Address, f.Code()[0].End()
	for a := from; a < to; a += 7 {
		for _, end := range []Address{a + 1, a + 40} {
			rows, err := f.Rows(file, nil, a, end, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(rows) == 0 || rows[0].Address != a {
				t.Fatalf("rows from 0x%x begin %+v", a, rows)
			}
			for i := a; i < min(end, to); i++ {
				if got, want := ruleAt(rows, i), ruleAt(whole, i); got != want {
					t.Fatalf("rows of [0x%x, 0x%x) have %+v at 0x%x, all have %+v", a, end, got, i, want)
				}
			}
			for i := 1; i < len(rows); i++ {
				if rows[i].Address <= rows[i-1].Address || rows[i].Rule == rows[i-1].Rule || rows[i].Address >= end {
					t.Fatalf("rows of [0x%x, 0x%x): %+v", a, end, rows)
				}
			}
		}
	}
}

func TestAPageHasTheRulesOfItsRows(t *testing.T) {
	f, rows, _ := rowsOf(t, usual[0])
	file := open(t, usual[0])
	var rules []Rule
	intern := func(r Rule) (uint16, bool) {
		if r == (Rule{}) {
			t.Fatal("asked for a number of the invalid rule")
		}
		i := slices.Index(rules, r)
		if i < 0 {
			i, rules = len(rules), append(rules, r)
		}
		return uint16(i + 1), i < 100
	}
	var page []CompactRow
	lost := 0
	for n := PageOf(rows[0].Address); n <= PageOf(f.Code()[0].End()); n++ {
		var stats Stats
		var err error
		if page, err = f.Page(file, page[:0], n, intern, &stats); err != nil {
			t.Fatal(err)
		}
		lost += stats.Refused[ReasonRules]
		if len(page) == 0 || page[0].Low != 0 {
			t.Fatalf("page %d begins %+v", n, page)
		}
		for i, r := range page {
			a := n.Start() + Address(r.Low)
			if a >= f.Code()[0].End() {
				break
			}
			if i > 0 && (r.Low <= page[i-1].Low || r.Rule == page[i-1].Rule) {
				t.Fatalf("page %d: %+v follows %+v", n, r, page[i-1])
			}
			if want := ruleAt(rows, a); r.Rule != RuleInvalid && rules[r.Rule-1] != want || r.Rule == RuleInvalid && want.Kind != Invalid && slices.Index(rules, want) < 100 {
				t.Fatalf("0x%x has rule %d, want %+v", a, r.Rule, want)
			}
		}
	}
	if lost == 0 {
		t.Error("no row was counted as left out for want of a number")
	}
}
