package symbol

import (
	"debug/elf"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestFunctionsOfAStrippedFile takes the symbols away from a program and compares where functions begin with what they said.
func TestFunctionsOfAStrippedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "program")
	run(t, "gcc", "-O1", "-o", path, "testdata/native/assembly.S", "testdata/native/program.c", "testdata/native/library.c")
	full, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	symbols, err := full.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	if o := parseFile(t, path); o.bounds != nil {
		t.Error("a file with a symbol table has bounds, which nobody needs")
	}
	run(t, "strip", path)
	o := parseFile(t, path)
	compared := 0
	for _, s := range symbols {
		if elf.ST_TYPE(s.Info) != elf.STT_FUNC || s.Size == 0 || strings.Contains(s.Name, "assembly") || strings.HasPrefix(s.Name, "_") { // those of C's start are not compiled
			continue
		}
		compared++
		for _, a := range []uint64{s.Value, s.Value + s.Size/2, s.Value + s.Size - 1} {
			if start, ok := o.Function(Address(a)); !ok || start != Address(s.Value) {
				t.Errorf("%#x of %s: begins at %#x, %v; want %#x", a, s.Name, start, ok, s.Value)
			}
		}
		if lines := o.Lookup(nil, Address(s.Value)); len(lines) != 0 {
			t.Errorf("%s has the name %v without symbols", s.Name, lines)
		}
	}
	if compared < 3 {
		t.Errorf("%d functions", compared)
	}
	for _, a := range []Address{0, o.bounds.base, 1<<64 - 1} {
		if start, ok := o.Function(a); ok {
			t.Errorf("%#x is in a function that begins at %#x", a, start)
		}
	}
}

// TestBoundsAreWhatWasWritten writes functions and holes at random, as many as some blocks have, and looks all up.
func TestBoundsAreWhatWasWritten(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	const base = Address(0x400000)
	w := boundsWriter{b: bounds{base: base}}
	type function struct{ start, end Address }
	var all []function
	at := base
	for range 1000 {
		at += Address([]int{0, 1, padding, padding + 1, 300, 1 << 20}[random.IntN(6)])
		f := function{at, at + 1 + Address(random.IntN(300))}
		w.function(f.start, f.end)
		all, at = append(all, f), f.end
	}
	b := w.done()
	if len(b.blocks) < 10 {
		t.Fatalf("%d blocks", len(b.blocks))
	}
	for i, f := range all {
		for _, a := range []Address{f.start, (f.start + f.end) / 2, f.end - 1} {
			if start, ok := b.function(a); !ok || start != f.start {
				t.Fatalf("%#x: %#x, %v; want %#x", a, start, ok, f.start)
			}
		}
		gap := Address(padding + 1)
		if i+1 < len(all) {
			gap = all[i+1].start - f.end
		}
		if start, ok := b.function(f.end + gap - 1); gap > padding && ok {
			t.Fatalf("%#x lies in a hole, but in the function at %#x", f.end+gap-1, start)
		}
	}
	w = boundsWriter{b: bounds{base: base}}
	for _, f := range []function{{base + 10, base + 20}, {base + 10, base + 30}, {base + 5, base + 8}, {base + 40, base + 40}, {base + 2, base + 1},
		{base + 15, base + 25}, {base - 5, base + 5}} {
		w.function(f.start, f.end)
	}
	var got []Address
	b = w.done()
	for a := base; a < base+64; a++ {
		if start, ok := b.function(a); ok && !slices.Contains(got, start) {
			got = append(got, start)
		}
	}
	if want := []Address{base + 10, base + 15}; !slices.Equal(got, want) {
		t.Errorf("overlapping, empty and backward functions give %#x, want %#x", got, want)
	}
}
