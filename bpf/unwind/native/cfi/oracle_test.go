package cfi

import (
	"bufio"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/bpf/symbol"
)

var oracleFiles = flag.String("files", "", "compare the rows of these ELF files, a list of glob patterns, instead of a few usual ones")

// usual are files that every Debian with this repository's tools has, with the hard cases: signal frames, realigned stacks,
// hand-written assembly, a static program.
var usual = []string{
	"/lib/x86_64-linux-gnu/libc.so.6",          // libc6
	"/lib64/ld-linux-x86-64.so.2",              // libc6
	"/usr/lib/x86_64-linux-gnu/libstdc++.so.6", // libstdc++6
	"/usr/lib/x86_64-linux-gnu/libgcc_s.so.1",  // libgcc-s1
	"/usr/lib/x86_64-linux-gnu/libcrypto.so.3", // libssl3
	"/bin/bash", "/usr/bin/perl", "/bin/busybox", // bash, perl-base, busybox-static
}

// told is a row as llvm-dwarfdump prints it: the CFA, and where registers are, by their names.
type told struct {
	from, to  Address
	cfa       string
	registers map[string]string
}

var (
	toldEntry = regexp.MustCompile(`FDE cie=[0-9a-f]+ pc=([0-9a-f]+)\.\.\.([0-9a-f]+)$`)
	toldRow   = regexp.MustCompile(`^  0x([0-9a-f]+): CFA=(.*)$`)
	toldPlace = regexp.MustCompile(`([A-Za-z0-9]+)=(\[[^]]*\]|[A-Za-z0-9]+)`)
)

// dwarfdump calls f with the rows of each frame description entry of .eh_frame or .debug_frame, as LLVM's parser has them.
func dwarfdump(path string, debug bool, f func(entry string, rows []told)) error {
	section := "--eh-frame"
	if debug {
		section = "--debug-frame"
	}
	cmd := exec.Command("llvm-dwarfdump-19", section, path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start llvm-dwarfdump-19 (package llvm-19): %w", err)
	}
	var entry string
	var rows []told
	var end Address
	flush := func() {
		if entry != "" && len(rows) > 0 {
			for i := range rows {
				if rows[i].to = end; i+1 < len(rows) {
					rows[i].to = rows[i+1].from
				}
			}
			f(entry, rows)
		}
		entry, rows = "", nil
	}
	address := func(s string) Address {
		v, err := strconv.ParseUint(s, 16, 64)
		if err != nil {
			panic(err) // the pattern has only digits
		}
		return Address(v)
	}
	s := bufio.NewScanner(out)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		line := s.Text()
		if strings.Contains(line, " CIE") {
			flush()
		} else if m := toldEntry.FindStringSubmatch(line); m != nil {
			flush()
			entry, end = line, address(m[2])
		} else if m := toldRow.FindStringSubmatch(line); m != nil && entry != "" {
			r := told{from: address(m[1]), registers: map[string]string{}}
			var places string
			r.cfa, places, _ = strings.Cut(m[2], ": ")
			for _, p := range toldPlace.FindAllStringSubmatch(places, -1) {
				r.registers[p[1]] = p[2]
			}
			rows = append(rows, r)
		}
	}
	flush()
	return errors.Join(s.Err(), cmd.Wait())
}

// x86Names and arm64Names are llvm-dwarfdump's names of registers, by DWARF number.
var (
	x86Names   = []string{"RAX", "RDX", "RCX", "RBX", "RSI", "RDI", "RBP", "RSP", "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15"}
	arm64Names = func() (names []string) {
		for i := range 31 {
			names = append(names, fmt.Sprintf("W%d", i))
		}
		return append(names, "WSP")
	}()
)

var (
	toldDeref   = regexp.MustCompile(`^DW_OP_breg\d+ (\w+)([+-]\d+), DW_OP_deref(?:, DW_OP_plus_uconst 0x([0-9a-f]+))?$`)
	toldIndexed = regexp.MustCompile(`^DW_OP_breg7 RSP([+-]\d+), DW_OP_breg\d+ (\w+)\+0, DW_OP_lit8, DW_OP_mul, DW_OP_plus, DW_OP_deref, DW_OP_plus_uconst 0x([0-9a-f]+)$`)
	toldPLT     = regexp.MustCompile(`^DW_OP_breg7 RSP([+-]\d+), DW_OP_breg16 RIP\+0, DW_OP_lit15, DW_OP_and, DW_OP_lit(\d+), DW_OP_ge, DW_OP_lit3, DW_OP_shl, DW_OP_plus$`)
	toldPlain   = regexp.MustCompile(`^(\w+?)([+-]\d+)?$`)
	toldCFA     = regexp.MustCompile(`^\[CFA([+-]\d+)?\]$`)
	toldFP      = regexp.MustCompile(`^\[DW_OP_breg6 RBP([+-]\d+)\]$`)
)

// rule is what a row of llvm-dwarfdump's should be for us; false where it is something that no rule can be.
func (w *told) rule(a *arch) (Rule, bool) {
	names, fp, bx, ra := x86Names, "RBP", "RBX", "RIP"
	if a.link {
		names, fp, bx, ra = arm64Names, "W29", "", "W30"
	}
	number := func(s string) int32 {
		n, err := strconv.ParseInt("0"+strings.TrimLeft(s, "+-"), 10, 32)
		if strings.HasPrefix(s, "-") {
			n = -n
		}
		if err != nil {
			panic(err)
		}
		return int32(n)
	}
	hex := func(s string) int16 {
		n, _ := strconv.ParseInt("0"+s, 16, 16)
		return int16(n)
	}
	register := func(s string) (Register, bool) {
		i := slices.Index(names, s)
		return Register(i), i >= 0
	}
	var r Rule
	if w.registers[ra] == "undefined" {
		return Rule{Kind: Stop}, true
	}
	if m := toldDeref.FindStringSubmatch(w.cfa); m != nil {
		if m[1] == "RSP" && m[2] == "+160" && w.registers["RIP"] == "[DW_OP_breg7 RSP+168]" && w.registers["RBP"] == "[DW_OP_breg7 RSP+120]" {
			return Rule{Kind: Signal}, true
		}
		base, ok := register(m[1])
		if !ok {
			return r, false
		}
		r = Rule{Kind: Deref, Base: base, CFA: number(m[2]), Plus: hex(m[3])}
	} else if m := toldIndexed.FindStringSubmatch(w.cfa); m != nil {
		base, ok := register(m[2])
		if !ok {
			return r, false
		}
		r = Rule{Kind: Indexed, Base: base, CFA: number(m[1]), Plus: hex(m[3])}
	} else if m := toldPLT.FindStringSubmatch(w.cfa); m != nil {
		r = Rule{Kind: PLT, Base: X86SP, CFA: number(m[1]), Plus: int16(number(m[2]))}
	} else if m := toldPlain.FindStringSubmatch(w.cfa); m != nil {
		base, ok := register(m[1])
		if !ok {
			return r, false
		}
		r = Rule{Kind: Normal, Base: base, CFA: number(m[2])}
	} else {
		return r, false
	}
	if sp := w.registers[names[a.sp]]; sp != "" {
		return r, false
	}
	place := w.registers[fp]
	if m := toldCFA.FindStringSubmatch(place); m != nil {
		r.FP, r.FPAt = AtCFA, number(m[1])
	} else if m := toldFP.FindStringSubmatch(place); m != nil {
		r.FP, r.FPAt = AtFP, number(m[1])
	} else if place != "" && place != "same" {
		r.FP = Lost
	}
	place = w.registers[ra]
	if m := toldCFA.FindStringSubmatch(place); m != nil {
		r.RA, r.RAAt = AtCFA, number(m[1])
	} else if place == "" && a.link {
		r.RAAt = int32(a.ra)
	} else if n, ok := register(place); ok {
		r.RAAt = int32(n)
	} else {
		return r, false
	}
	if m := toldCFA.FindStringSubmatch(w.registers[bx]); m != nil && bx != "" && r.Kind == Normal && r.above() {
		r.BXAt = number(m[1])
	}
	r.Signed = w.registers["reg34"] == "1"
	return r, r.fits()
}

// compared counts what a comparison saw.
type compared struct {
	entries, rows, expressions, refused, wrong int
}

// rowsOf returns all rows of a file.
func rowsOf(t testing.TB, path string) (*File, []Row, Stats) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	f, err := Open(file, st.Size())
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	var stats Stats
	var rows []Row
	for _, code := range f.Code() {
		if rows, err = f.Rows(file, rows, code.Address, code.End(), &stats); err != nil {
			t.Fatalf("rows of %s: %v", path, err)
		}
	}
	return f, rows, stats
}

// find returns the index of the row that holds at a, -1 if none does.
func find(rows []Row, a Address) int {
	i, found := slices.BinarySearchFunc(rows, a, func(r Row, a Address) int { return cmp.Compare(r.Address, a) })
	if !found {
		i--
	}
	return i
}

// compareFile compares our rows of a file with llvm-dwarfdump's, at every address where either changes.
func compareFile(t testing.TB, path string, debug bool) (c compared, ours []Row) {
	t.Helper()
	f, ours, stats := rowsOf(t, path)
	shown := 0
	err := dwarfdump(path, debug, func(entry string, rows []told) {
		if rows[0].from == 0 {
			return // of a function that the linker dropped
		}
		c.entries++
		for i := range rows {
			w := &rows[i]
			if w.from >= w.to { // the next row is at the same place
				continue
			}
			c.rows++
			if strings.HasPrefix(w.cfa, "DW_OP") {
				c.expressions++
			}
			want, ok := w.rule(&f.arch)
			if !ok {
				c.refused++
				want = Rule{}
			}
			for j := max(find(ours, w.from), 0); j < len(ours) && ours[j].Address < w.to; j++ {
				if ours[j].Rule == want {
					continue
				}
				if c.wrong++; shown < 10 {
					shown++
					t.Errorf("%s: %s\nat 0x%x llvm-dwarfdump has %+v\nwanted %+v\nhave 0x%x %+v", path, entry, w.from, *w, want, ours[j].Address, ours[j].Rule)
				}
			}
		}
	})
	if err != nil {
		t.Fatalf("llvm-dwarfdump of %s: %v", path, err)
	}
	for why, n := range stats.Refused {
		if n > 0 {
			t.Logf("%s: refused for %v: %d", filepath.Base(path), Reason(why), n)
		}
	}
	return c, ours
}

func TestRowsAreThoseThatLLVMReads(t *testing.T) {
	paths := usual
	if *oracleFiles != "" {
		paths = nil
		for _, pattern := range strings.Fields(*oracleFiles) {
			names, err := filepath.Glob(pattern)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range names {
				if st, err := os.Lstat(name); err == nil && st.Mode().IsRegular() && isELF(name) {
					paths = append(paths, name)
				}
			}
		}
	}
	var all compared
	files := 0
	for _, path := range paths {
		began := time.Now()
		c, ours := compareFile(t, path, false)
		if c.entries == 0 && *oracleFiles == "" {
			t.Errorf("llvm-dwarfdump showed no entry of %s", path)
		}
		if c.entries > 0 {
			files++
		}
		rules := map[Rule]bool{}
		for _, r := range ours {
			rules[r.Rule] = true
		}
		t.Logf("%s: %d entries, %d rows compared, %d expressions, %d refused, %d wrong; ours: %d rows, %d rules (%v)",
			filepath.Base(path), c.entries, c.rows, c.expressions, c.refused, c.wrong, len(ours), len(rules), time.Since(began).Round(time.Millisecond))
		all.entries, all.rows, all.expressions = all.entries+c.entries, all.rows+c.rows, all.expressions+c.expressions
		all.refused, all.wrong = all.refused+c.refused, all.wrong+c.wrong
	}
	t.Logf("%d files: %d entries, %d rows compared, %d expressions, %d refused, %d wrong",
		files, all.entries, all.rows, all.expressions, all.refused, all.wrong)
}

func isELF(name string) bool {
	file, err := os.Open(name)
	if err != nil {
		return false
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return false
	}
	l, err := symbol.ReadLayout(file, st.Size())
	if err != nil {
		return false
	}
	_, ok := archOf(l.Machine)
	return ok && l.Class64
}
