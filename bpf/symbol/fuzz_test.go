package symbol

import (
	"bytes"
	"debug/elf"
	"math/rand/v2"
	"os"
	"testing"
)

// fuzzBudget is small, so that limits are met.
const fuzzBudget = 1 << 20

// exercise asks an object everything, at places that its tables name and at others.
func exercise(t testing.TB, o *Object) {
	t.Helper()
	if o.Bytes() > fuzzBudget+64<<10 {
		t.Fatalf("%d bytes held, budget %d", o.Bytes(), fuzzBudget)
	}
	var lines []Line
	look := func(a Address) {
		lines = o.Lookup(lines[:0], a)
		if start, ok := o.Function(a); ok && start > a {
			t.Fatalf("the function at %#x begins at %#x", a, start)
		}
		for _, l := range lines {
			if l.Function == "" {
				t.Fatalf("a line without a function at %#x", a)
			}
		}
	}
	for _, s := range o.segments {
		look(s.vaddr)
		look(s.vaddr + Address(s.filesz/2))
		if a, ok := o.Address(FileOffset(s.off)); !ok {
			t.Fatalf("offset %#x of a segment has no address, but %#x", s.off, a)
		}
	}
	if o.table != nil {
		for i, s := range o.table.starts[:min(len(o.table.starts), 100)] {
			if i > 0 && s <= o.table.starts[i-1] {
				t.Fatal("starts are not sorted")
			}
			look(o.table.base + Address(s))
		}
	}
	if o.golang != nil {
		for _, s := range o.golang.starts[:min(len(o.golang.starts), 100)] {
			look(o.golang.text + Address(s) + 1)
		}
	}
	look(0)
	look(1<<64 - 1)
}

func FuzzELF(f *testing.F) {
	f.Add(smallELF("function", "build id"))
	f.Add(goELF())
	plt := textSection(0x1000, 0x1000, 0)
	plt.name, plt.data = ".plt.sec", []byte{0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0x25, 0xf6, 0x0f, 0, 0, 0, 0, 0, 0, 0, 0}
	dyn := symtabSections(elf.SHT_DYNSYM, 3, []testSymbol{{"read", 0, 0, globalFunc, 0}})
	rela := new(bytes.Buffer)
	put(rela, elf.Rela64{Off: 0x2000, Info: 1<<32 | uint64(elf.R_X86_64_JMP_SLOT)})
	f.Add(testELF{machine: elf.EM_X86_64, segments: []elf.Prog64{load(elf.PF_R|elf.PF_X, 0, 0, 0x1100)}, sections: []testSection{plt, dyn[0], dyn[1],
		{name: ".rela.plt", Section64: elf.Section64{Type: uint32(elf.SHT_RELA), Flags: uint64(elf.SHF_ALLOC)}, data: rela.Bytes()}}}.build())
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := parse(bytes.NewReader(b), int64(len(b)), fuzzBudget)
		if err != nil {
			return
		}
		exercise(t, o)
		id, err := replay(bytes.NewReader(b), int64(len(b)), o.log)
		if err != nil || id != o.id {
			t.Fatalf("the same bytes have another identity (%v)", err)
		}
	})
}

// goELF is a Go program of two functions, one inlined into the other, written by hand after the layout of Go 1.20.
func goELF() []byte {
	names := []byte("main.outer\x00main.inner\x00")
	files := []byte("outer.go\x00inner.go\x00")
	cu := new(bytes.Buffer)
	put(cu, []uint32{0, 9})
	pctab := []byte{0}
	table := func(pairs ...byte) uint32 { // value deltas (zigzag) and pc deltas
		off := uint32(len(pctab))
		pctab = append(append(pctab, pairs...), 0)
		return off
	}
	pcfile := table(2, 0x10, 2, 0x10)   // file 0, then 1
	pcline := table(22, 0x10, 20, 0x10) // line 10, then 20
	pcil := table(0, 0x10, 2, 0x10)     // not inlined, then entry 0
	const textAt, tabAt, gofuncAt, moduleAt = 0x1000, 0x2000, 0x3000, 0x4000
	funcnames := uint64(72)
	cutab := funcnames + uint64(len(names)+7)&^7
	filetab := cutab + 8
	pctabAt := filetab + uint64(len(files)+7)&^7
	funcs := pctabAt + uint64(len(pctab)+7)&^7
	tab := new(bytes.Buffer)
	put(tab, uint32(0xfffffff1))
	tab.Write([]byte{0, 0, 1, 8})
	put(tab, []uint64{1, 2, 0, funcnames, cutab, filetab, pctabAt, funcs})
	pad := func(b []byte) { tab.Write(b); tab.Write(make([]byte, -len(b)&7)) }
	pad(names)
	pad(cu.Bytes())
	pad(files)
	pad(pctab)
	put(tab, []uint32{0, 16, 0x20, 0}) // one function, its record at 16
	put(tab, []uint32{0, 0, 0, 0, 0, pcfile, pcline, 3, 0, 5})
	tab.Write([]byte{0, 0, 0, 4})
	put(tab, []uint32{0, 0, pcil, ^uint32(0), ^uint32(0), ^uint32(0), 0})
	tree := new(bytes.Buffer)
	put(tree, []uint32{0, 11, 4, 18})
	module := make([]uint64, moduleWords)
	module[0], module[moduleFuncnames] = tabAt, tabAt+funcnames
	module[moduleFtab], module[moduleFtab+1] = tabAt+funcs, 2
	module[moduleText], module[moduleEtext], module[moduleGofunc120] = textAt, textAt+0x20, gofuncAt
	data := new(bytes.Buffer)
	put(data, module)
	section := func(name string, addr uint64, b []byte) testSection {
		return testSection{name: name, Section64: elf.Section64{Type: uint32(elf.SHT_PROGBITS), Flags: uint64(elf.SHF_ALLOC), Addr: addr, Off: addr}, data: b}
	}
	return testELF{machine: elf.EM_X86_64, segments: []elf.Prog64{
		load(elf.PF_R|elf.PF_X, textAt, textAt, 0x20), load(elf.PF_R, tabAt, tabAt, 0x2000), load(elf.PF_R|elf.PF_W, moduleAt, moduleAt, uint64(data.Len())),
	}, sections: []testSection{textSection(textAt, textAt, 0x20), section(".gopclntab", tabAt, tab.Bytes()), section(".rodata", gofuncAt, tree.Bytes()),
		section(".go.module", moduleAt, data.Bytes())}}.build()
}

func TestAGoProgramWrittenByHand(t *testing.T) {
	o := mustParse(t, goELF())
	for a, want := range map[Address][]Line{
		0x1000: {{"main.outer", "outer.go", 10, 5}},
		0x1014: {{"main.inner", "inner.go", 20, 18}, {"main.outer", "outer.go", 10, 5}},
		0x1020: nil,
	} {
		got := o.Lookup(nil, a)
		if len(got) != len(want) {
			t.Errorf("Lookup(%#x) = %v, want %v", a, got, want)
			continue
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("Lookup(%#x) = %v, want %v", a, got, want)
			}
		}
	}
}

// FuzzPclntab puts the bytes in the place of a pclntab; the rest of the file is sound.
func FuzzPclntab(f *testing.F) {
	whole := goELF()
	f.Add(whole[0x2000:0x2200], uint64(0x3000))
	old := new(bytes.Buffer) // Go 1.2: header, one function, file table
	put(old, uint32(0xfffffffb))
	old.Write([]byte{0, 0, 1, 8})
	put(old, []uint64{1, 0x1000, 0x30, 0x1020})
	put(old, uint32(0x60))
	old.Write(make([]byte, 4))
	put(old, uint64(0x1000))
	put(old, []uint32{0x70, 0, 0, 0, 0x78, 0x7c, 0, 0})
	old.Write(make([]byte, 0x60-old.Len()))
	put(old, []uint32{2, 0x74, 0, 0})
	old.WriteString("f\x00\x00\x00f.c\x00\x04\x20\x00\x00\x04\x20\x00\x00")
	f.Add(old.Bytes(), uint64(0))
	old116 := bytes.Clone(whole[0x2000:0x2200])
	old116[0] = 0xfa
	f.Add(old116, uint64(0))
	f.Fuzz(func(t *testing.T, tab []byte, gofunc uint64) {
		tab = tab[:min(len(tab), 0x1000)]
		b := bytes.Clone(whole)
		copy(b[0x2000:0x3000], make([]byte, 0x1000))
		copy(b[0x2000:], tab)
		for i := range 8 {
			b[0x4000+8*moduleGofunc120+i] = byte(gofunc >> (8 * i))
		}
		o, err := parse(bytes.NewReader(b), int64(len(b)), fuzzBudget)
		if err != nil {
			t.Fatalf("a damaged pclntab costs the object: %v", err)
		}
		exercise(t, o)
	})
}

func FuzzKallsyms(f *testing.F) {
	f.Add([]byte(kallsyms))
	f.Add([]byte("0 T a\n"))
	f.Add([]byte("ffffffffffffffff t a\t[m]\nffffffffffffffff T b"))
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := parseKallsyms(bytes.NewReader(b))
		if err != nil {
			return
		}
		k := &Kernel{}
		k.table.Store(table)
		for i, a := range table.starts {
			if i > 0 && a <= table.starts[i-1] {
				t.Fatal("starts are not sorted")
			}
			k.Lookup(a)
			k.Lookup(a - 1)
			k.Lookup(a + 1)
		}
	})
}

func FuzzDemangle(f *testing.F) {
	f.Add("_ZNSt6vectorIiSaIiEE9push_backEOi")
	f.Add("_RNvCs15kBYyAo9fc_7mycrate7example")
	f.Add("memcpy@@GLIBC_2.14")
	f.Fuzz(func(t *testing.T, s string) {
		if d := demangled(s); s != "" && d == "" || len(d) > max(len(s), 1<<maxDemangledShift)+64 {
			t.Fatalf("demangled(%q) has %d bytes", s, len(d))
		}
	})
}

// TestDamagedFiles flips bits of real programs: no panic, no memory beyond the budget.
func TestDamagedFiles(t *testing.T) {
	goFile, err := os.ReadFile(goProgram(t, "", false, "-ldflags=-checklinkname=0"))
	if err != nil {
		t.Fatal(err)
	}
	cFile, err := os.ReadFile(gcc(t, "lib.so", "-shared", "-fPIC", "testdata/native/library.c"))
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		name   string
		file   []byte
		rounds int
	}{{"go", goFile, 60}, {"c", cFile, 1000}} {
		m, err := newImage(newSource(bytes.NewReader(c.file), int64(len(c.file))))
		if err != nil {
			t.Fatal(err)
		}
		for range c.rounds {
			b := bytes.Clone(c.file)
			for range 1 + random.IntN(40) {
				off := random.IntN(len(b))
				switch s := m.sections[random.IntN(len(m.sections))]; random.IntN(3) {
				case 0: // headers
					off = random.IntN(1024)
				case 1: // the beginning of a section
					off = int(s.off) + random.IntN(256)
				}
				if off < len(b) {
					b[off] = byte(random.Uint32())
				}
			}
			b = b[:len(b)-random.IntN(2)*random.IntN(len(b))]
			if o, err := parse(bytes.NewReader(b), int64(len(b)), fuzzBudget); err == nil {
				exercise(t, o)
			}
		}
	}
}
