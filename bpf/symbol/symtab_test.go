package symbol

import (
	"bytes"
	"debug/elf"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write golden files instead of comparing with them")

const testBudget = 256 << 20

func mustParse(t testing.TB, b []byte) *Object {
	t.Helper()
	o, err := parse(bytes.NewReader(b), int64(len(b)), testBudget)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func parseFile(t testing.TB, path string) *Object {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	o, err := parse(f, st.Size(), testBudget)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it):\ngot\n%s\nwant\n%s", path, got, want)
	}
}

// run runs a tool and returns what it prints.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	return runIn(t, "", name, args...)
}

// runIn is run in a directory.
func runIn(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		if e, ok := err.(*exec.ExitError); ok {
			t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, e.Stderr)
		}
		t.Fatalf("%s: %v", name, err)
	}
	return string(out)
}

// describe prints a table, an entry a line.
func (t *table) describe() string {
	if t == nil {
		return "no symbols\n"
	}
	var b strings.Builder
	for i, s := range t.starts {
		name := "(hole)"
		if t.names[i] != hole {
			name = t.text.cstring(t.names[i])
		}
		fmt.Fprintf(&b, "%x %s\n", t.base+Address(s), name)
	}
	return b.String()
}

func TestSymbolsOfOneFileAreChosenAndBounded(t *testing.T) {
	sections := append([]testSection{textSection(0x1000, 0x1000, 0x1000),
		{name: ".data", Section64: elf.Section64{Type: uint32(elf.SHT_PROGBITS), Flags: uint64(elf.SHF_ALLOC), Addr: 0x3000, Off: 0x2000, Size: 8}}},
		symtabSections(elf.SHT_SYMTAB, 4, []testSymbol{
			{"local_alias", 0x1000, 0x20, localFunc, 1}, // global wins
			{"global_alias", 0x1000, 0, globalFunc, 1},
			{"long_name", 0x1020, 0x10, globalFunc, 1}, // shorter wins
			{"short", 0x1020, 0x10, globalFunc, 1},
			{"unsized", 0x1030, 0, localFunc, 1}, // until the next
			{"sized", 0x1040, 0x10, localFunc, 1},
			{"unsized_alias", 0x1040, 0, localFunc, 1}, // sized wins
			{"weak", 0x1050, 4, weakFunc, 1},           // then a hole
			{"outer", 0x1100, 0x100, globalFunc, 1},
			{"label_in_outer", 0x1120, 0, localLabel, 1}, // dropped
			{"entry_in_outer", 0x1140, 0, localFunc, 1},  // until the next inside
			{"inner", 0x1150, 0x10, localFunc, 1},        // then outer again
			{"assembly", 0x1300, 0, localLabel, 1},       // a label of its own
			{"$x", 0x1310, 0, localLabel, 1},
			{"$d.12", 0x1318, 0, localLabel, 1},
			{"$xylophone", 0x1320, 0, localLabel, 1}, // not a marker
			{"_ZN3foo3barEv", 0x1400, 0x10, globalFunc, 1},
			{"data", 0x3000, 8, localLabel, 2},
			{"undefined", 0, 0, globalFunc, 0},
			{"outside", 0x2000, 16, globalFunc, 1},
			{"overlong", 0x1500, 1 << 40, globalFunc, 1}, // ends with its section
			{"tail", 0x1ff0, 0, localFunc, 1},
			{"overlap_a", 0x1600, 0x40, globalFunc, 1},
			{"overlap_b", 0x1620, 0x40, globalFunc, 1},
		})...)
	o := mustParse(t, testELF{machine: elf.EM_AARCH64, segments: []elf.Prog64{load(elf.PF_R|elf.PF_X, 0, 0, 0x2000)}, sections: sections}.build())
	golden(t, "symbols.golden", o.table.describe())
	if got := o.Lookup(nil, 0x1404); len(got) != 1 || got[0] != (Line{Function: "foo::bar"}) {
		t.Errorf("Lookup(0x1404) = %v, want foo::bar", got)
	}
	for _, a := range []Address{0, 0xfff, 0x1060, 0x2000, 0x3000, 1 << 62} {
		if got := o.Lookup(nil, a); got != nil {
			t.Errorf("Lookup(%#x) = %v, want nothing", a, got)
		}
	}
}

func TestOffsetsBecomeAddressesBySegment(t *testing.T) {
	o := mustParse(t, testELF{machine: elf.EM_X86_64, segments: []elf.Prog64{
		load(elf.PF_R, 0, 0x200000, 0x750),
		load(elf.PF_R|elf.PF_X, 0x750, 0x201750, 0x400), // lld: address ≠ offset, and the page is loaded twice
		load(elf.PF_R|elf.PF_W, 0xb50, 0x202b50, 0x10),
	}}.build())
	for _, c := range []struct {
		off  FileOffset
		want Address
		ok   bool
	}{
		{0, 0x200000, true}, {0x74f, 0x20074f, true}, {0x750, 0x201750, true}, {0xb4f, 0x201b4f, true},
		{0xb50, 0x202b50, true}, {0xb60, 0, false}, {1 << 63, 0, false},
	} {
		if got, ok := o.Address(c.off); got != c.want || ok != c.ok {
			t.Errorf("Address(%#x) = %#x, %v, want %#x, %v", c.off, got, ok, c.want, c.ok)
		}
	}
}

func TestBuildIDComesFromTheNote(t *testing.T) {
	id := []byte{0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	notes := append(note("Xen", 6, []byte{1}), note("GNU", 3, id)...)
	notes = append(notes, note("GNU", 3, []byte{9})...) // the first one counts
	e := testELF{machine: elf.EM_X86_64, segments: []elf.Prog64{{Type: uint32(elf.PT_NOTE), Off: 0x1000, Filesz: uint64(len(notes))}},
		sections: []testSection{{name: ".note", Section64: elf.Section64{Type: uint32(elf.SHT_NOTE), Off: 0x1000}, data: notes}}}
	if got, want := mustParse(t, e.build()).BuildID(), "deadbeef0102030405060708090a0b0c0d0e0f10"; got != want {
		t.Errorf("BuildID() = %q, want %q", got, want)
	}
	if got, ok := mustParse(t, e.build()).KernelBuildID(); !ok || !bytes.Equal(got[:], id) {
		t.Errorf("KernelBuildID() = %x, %v, want %x", got, ok, id)
	}
	if got, ok := mustParse(t, smallELF("f", "12345678")).KernelBuildID(); !ok || got != [20]byte([]byte("12345678\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")) {
		t.Errorf("KernelBuildID() of 8 bytes = %x, %v, want them padded", got, ok)
	}
	if _, ok := mustParse(t, smallELF("f", "longer than twenty bytes")).KernelBuildID(); ok {
		t.Error("KernelBuildID() of 24 bytes: the kernel refuses such notes")
	}
	e.segments[0].Filesz = 1 << 40
	if got := mustParse(t, e.build()).BuildID(); got != "" {
		t.Errorf("BuildID() of a note that reaches beyond the file = %q, want none", got)
	}
}

func TestDemangle(t *testing.T) {
	for in, want := range map[string]string{
		"main":                              "main",
		"_start":                            "_start",
		"_ZN3foo3barEv":                     "foo::bar",
		"_ZNSt6vectorIiSaIiEE9push_backEOi": "std::vector<int, std::allocator<int> >::push_back",
		"_ZN4core3ptr13drop_in_place17h0123456789abcdefE": "core::ptr::drop_in_place",
		"_RNvCs15kBYyAo9fc_7mycrate7example":              "mycrate::example",
		"_ZN3foo3barEi.constprop.0.cold":                  "foo::bar",
		"memcpy@plt":                                      "memcpy@plt",
		"_ZN3foo3barEv@plt":                               "foo::bar@plt",
		"memcpy@@GLIBC_2.14":                              "memcpy",
		"_Z":                                              "_Z",
		"@":                                               "@",
		"_Z" + strings.Repeat("1a", 4000):                 "_Z" + strings.Repeat("1a", 4000),
		"_ZN1aC1ERKS_":                                    "a::a",
		"_ZNK5boost9function0IvEclEv":                     "boost::function0<void>::operator()",
		"__x64_sys_read":                                  "__x64_sys_read",
	} {
		if got := demangled(in); got != want {
			t.Errorf("demangled(%q) = %q, want %q", in, got, want)
		}
	}
}

// nmSymbol is a line of nm's output.
type nmSymbol struct {
	addr, size Address
	name       string
}

// nm runs nm and returns the symbols of code.
func nm(t testing.TB, args ...string) []nmSymbol {
	t.Helper()
	var list []nmSymbol
	for l := range strings.Lines(run(t, "nm", append([]string{"--defined-only", "-S"}, args...)...)) {
		f := strings.Fields(l)
		addr, err := strconv.ParseUint(f[0], 16, 64)
		if err != nil || len(f) < 3 {
			continue
		}
		s := nmSymbol{addr: Address(addr)}
		f = f[1:]
		if len(f) == 3 {
			size, err := strconv.ParseUint(f[0], 16, 64)
			if err != nil {
				t.Fatalf("nm says %q", l)
			}
			s.size, f = Address(size), f[1:]
		}
		if strings.ContainsAny(f[0], "tTwWiu") {
			s.name = f[1]
			list = append(list, s)
		}
	}
	return list
}

// compareWithNM holds the table against what nm says: at the start and at the end of every function is that function or one
// of its aliases, or one that nm has inside of it.
func compareWithNM(t *testing.T, o *Object, symbols []nmSymbol) {
	t.Helper()
	at := map[Address]map[string]bool{}
	for _, s := range symbols {
		if at[s.addr] == nil {
			at[s.addr] = map[string]bool{}
		}
		name, _, _ := strings.Cut(s.name, "@")
		at[s.addr][name] = true
	}
	bad, checked := 0, 0
	for _, s := range symbols {
		if !func() bool { // nm's w is also data
			for _, g := range o.segments {
				if g.exec && s.addr >= g.vaddr && uint64(s.addr-g.vaddr) < g.filesz {
					return true
				}
			}
			return false
		}() {
			continue
		}
		checked++
		got, ok := o.table.lookup(s.addr)
		name, _, _ := strings.Cut(got, "@")
		if !ok || !at[s.addr][name] {
			if s.size == 0 && ok {
				continue // a label inside of a function
			}
			if bad++; bad < 10 {
				t.Errorf("at %#x: got %q, nm says %v", s.addr, got, at[s.addr])
			}
		}
		if s.size > 1 {
			if _, ok := o.table.lookup(s.addr + s.size - 1); !ok {
				t.Errorf("at the last byte of %s, %#x: no symbol", s.name, s.addr+s.size-1)
			}
		}
	}
	if checked == 0 {
		t.Error("nm knows no function")
	}
	t.Logf("%d symbols compared, %d differ", checked, bad)
}

func gcc(t testing.TB, out string, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), out)
	run(t, "gcc", append([]string{"-O1", "-g", "-o", path}, args...)...)
	return path
}

func TestProgramsOfGccAreNamedAsNMDoes(t *testing.T) {
	lib := gcc(t, "libfixture.so", "-shared", "-fPIC", "testdata/native/library.c")
	for _, c := range []struct {
		name string
		args []string
	}{
		{"PIE", []string{"-pie", "-fPIE"}},
		{"at a fixed address", []string{"-no-pie", "-fno-pie"}},
		{"at an unusual fixed address", []string{"-no-pie", "-fno-pie", "-Wl,-Ttext-segment=0x12340000"}},
		{"PIE with a prelinked base", []string{"-pie", "-fPIE", "-Wl,-Ttext-segment=0x7000000"}},
		{"static", []string{"-static"}},
		{"PIE without CET and lazy", []string{"-pie", "-fPIE", "-fcf-protection=none", "-Wl,-z,lazy"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append(c.args, "-Wl,-rpath,"+filepath.Dir(lib), "testdata/native/program.c", "testdata/native/assembly.S")
			if c.name == "static" {
				args = append(args, "testdata/native/library.c")
			} else {
				args = append(args, lib)
			}
			path := gcc(t, "program", args...)
			o := parseFile(t, path)
			compareWithNM(t, o, nm(t, path))
			comparePLT(t, o, path)
			compareWithRun(t, path)
		})
	}
	t.Run("library with a prelinked base", func(t *testing.T) {
		path := gcc(t, "libprelinked.so", "-shared", "-fPIC", "-Wl,-Ttext-segment=0x5000000", "testdata/native/library.c")
		compareWithNM(t, parseFile(t, path), nm(t, path))
	})
	t.Run("stripped library", func(t *testing.T) {
		run(t, "strip", lib)
		o := parseFile(t, lib)
		compareWithNM(t, o, nm(t, "-D", lib))
		if len(o.BuildID()) != 40 {
			t.Errorf("BuildID() = %q, want 40 digits", o.BuildID())
		}
	})
	t.Run("C++", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "program")
		run(t, "g++", "-O1", "-o", path, "testdata/native/program.cc")
		o := parseFile(t, path)
		compareWithNM(t, o, nm(t, path))
		want := map[Address]map[string]bool{}
		for _, s := range nm(t, "-C", path) {
			if want[s.addr] == nil {
				want[s.addr] = map[string]bool{}
			}
			want[s.addr][s.name] = true
		}
		found := false
		for a, names := range want {
			for _, l := range o.Lookup(nil, a) {
				if l.Function == "shapes::Box<int>::area" {
					found = names["shapes::Box<int>::area(int)"]
				}
			}
		}
		if !found {
			t.Error("shapes::Box<int>::area is not where nm -C has it")
		}
	})
}

// TestLibrariesOfThisSystem holds what runs in every container against nm.
func TestLibrariesOfThisSystem(t *testing.T) {
	for _, lib := range []string{"libc.so.6", "libstdc++.so.6", "libm.so.6"} {
		t.Run(lib, func(t *testing.T) {
			path := strings.TrimSpace(run(t, "gcc", "-print-file-name="+lib))
			o := parseFile(t, path)
			compareWithNM(t, o, nm(t, "-D", path))
			comparePLT(t, o, path)
		})
	}
}

// comparePLT compares the names of PLT stubs with objdump's.
func comparePLT(t *testing.T, o *Object, path string) {
	t.Helper()
	n := 0
	for l := range strings.Lines(run(t, "objdump", "-d", path)) {
		addr, name, ok := strings.Cut(strings.TrimSpace(l), " <")
		if !ok || !strings.HasSuffix(name, "@plt>:") || strings.HasPrefix(name, "*ABS*") {
			continue
		}
		a, err := strconv.ParseUint(addr, 16, 64)
		if err != nil {
			continue
		}
		n++
		want, _, _ := strings.Cut(strings.TrimSuffix(name, "@plt>:"), "@")
		if got, _ := o.table.lookup(Address(a)); got != want+"@plt" {
			t.Errorf("stub at %s: got %q, objdump says %q", addr, got, name)
		}
	}
	t.Logf("%d PLT stubs compared", n)
}

// compareWithRun runs the program, which prints its mappings and where its functions are, and goes the way that a sample goes:
// mapping, offset in the file, address, name.
func compareWithRun(t *testing.T, path string) {
	t.Helper()
	type mapping struct {
		start, end, offset uint64
		file               string
	}
	var maps []mapping
	objects := map[string]*Object{}
	checked := 0
	for l := range strings.Lines(run(t, path)) {
		f := strings.Fields(l)
		switch {
		case len(f) == 7 && f[0] == "M" && f[6] != "":
			var m mapping
			if n, err := fmt.Sscanf(f[1]+" "+f[3], "%x-%x %x", &m.start, &m.end, &m.offset); n != 3 {
				t.Fatalf("%q: %v", l, err)
			}
			m.file = f[6]
			maps = append(maps, m)
		case len(f) == 3 && f[0] == "S":
			pc, err := strconv.ParseUint(strings.TrimPrefix(f[2], "0x"), 16, 64)
			if err != nil {
				t.Fatalf("%q: %v", l, err)
			}
			for _, m := range maps {
				if pc < m.start || pc >= m.end {
					continue
				}
				o := objects[m.file]
				if o == nil {
					o = parseFile(t, m.file)
					objects[m.file] = o
				}
				a, ok := o.Address(FileOffset(pc - m.start + m.offset))
				if !ok {
					t.Errorf("%s at %#x: no address", f[1], pc)
				}
				if got := o.Lookup(nil, a); len(got) != 1 || got[0].Function != f[1] {
					t.Errorf("%s at %#x, address %#x: got %v", f[1], pc, a, got)
				}
				checked++
			}
		}
	}
	if checked < 3 {
		t.Errorf("%d functions found in the program's mappings, want 3", checked)
	}
}

func TestPLTOfARM64(t *testing.T) {
	code := new(bytes.Buffer)
	put(code, []uint32{
		0xa9bf7bf0, 0xd503201f, 0xd503201f, 0xd503201f, 0xd503201f, 0xd503201f, 0xd503201f, 0xd503201f, // header
		0xd503245f, 0x90000090, 0xf9400211, 0x91000210, 0xd61f0220, 0xd503201f, // bti c; adrp x16, +0x10000; ldr x17, [x16, #0]
		0x90000090, 0xf9400611, 0x91002210, 0xd61f0220, // adrp; ldr x17, [x16, #8]
		0xb0ffffb0, 0xf9400a11, 0x91004210, 0xd61f0220, // adrp x16, -0xb000: a negative page
	})
	rela := new(bytes.Buffer)
	for i, slot := range []uint64{0x11000, 0x11008} {
		put(rela, elf.Rela64{Off: slot, Info: uint64(i+1)<<32 | uint64(elf.R_AARCH64_JUMP_SLOT)})
	}
	dyn := symtabSections(elf.SHT_DYNSYM, 3, []testSymbol{{"read", 0, 0, globalFunc, 0}, {"write", 0, 0, globalFunc, 0}})
	plt := textSection(0x1000, 0x1000, uint64(code.Len()))
	plt.name, plt.data = ".plt", code.Bytes()
	o := mustParse(t, testELF{machine: elf.EM_AARCH64, segments: []elf.Prog64{load(elf.PF_R|elf.PF_X, 0, 0, 0x2000)},
		sections: []testSection{plt, dyn[0], dyn[1],
			{name: ".rela.plt", Section64: elf.Section64{Type: uint32(elf.SHT_RELA), Flags: uint64(elf.SHF_ALLOC)}, data: rela.Bytes()}}}.build())
	if got, want := o.table.describe(), "1020 read@plt\n1038 write@plt\n1048 (hole)\n"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
