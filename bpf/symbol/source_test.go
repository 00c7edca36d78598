package symbol

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
)

// pattern is a file in which every word is its own offset.
func pattern(size int) []byte {
	b := make([]byte, size)
	for i := 0; i+4 <= size; i += 4 {
		binary.LittleEndian.PutUint32(b[i:], uint32(i))
	}
	return b
}

func TestPagesComeAndGo(t *testing.T) {
	b := pattern(3*maxPages*pageBytes + 1234)
	p := newPager(newSource(bytes.NewReader(b), int64(len(b))))
	random := rand.New(rand.NewPCG(1, 2))
	for range 600 {
		off, n := random.IntN(len(b)), random.IntN(3*pageBytes)
		want := b[off:min(len(b), off+n)]
		if got := p.read(uint64(off), uint64(n)); !bytes.Equal(got, want) {
			t.Fatalf("read(%d, %d) has %d bytes, want %d (%v)", off, n, len(got), len(want), p.err)
		}
	}
	if len(p.pages) != maxPages {
		t.Errorf("%d pages held, want %d", len(p.pages), maxPages)
	}
	// The log tells how to come to the same hash.
	if id, err := replay(bytes.NewReader(b), int64(len(b)), p.src.log); err != nil || id != p.src.identity() {
		t.Errorf("replay: another identity (%v)", err)
	}
	b[p.src.log[0].off]++
	if id, err := replay(bytes.NewReader(b), int64(len(b)), p.src.log); err != nil || id == p.src.identity() {
		t.Errorf("replay of other bytes: the same identity (%v)", err)
	}
}

func TestReadingEndsAtTheLimit(t *testing.T) {
	p := newPager(newSource(zeros{}, 1<<40))
	var off uint64
	for p.read(off, 1) != nil {
		off += pageBytes
	}
	if p.err == nil || off != maxRead {
		t.Errorf("ended after %d bytes with %v, want an error after %d", off, p.err, maxRead)
	}
}

// zeros is a sparse file without end.
type zeros struct{}

func (zeros) ReadAt(p []byte, _ int64) (int, error) { clear(p); return len(p), nil }

func TestRecordsLieAcrossPieces(t *testing.T) {
	b := pattern(4 * readChunk)
	s := newSource(bytes.NewReader(b), int64(len(b)))
	want := uint32(0)
	if err := s.records(0, uint64(len(b)), 24, "records", func(r []byte) {
		if got := binary.LittleEndian.Uint32(r); len(r) != 24 || got != want {
			t.Fatalf("record of %d bytes begins with %d, want %d", len(r), got, want)
		}
		want += 24
	}); err != nil {
		t.Fatal(err)
	}
	if int(want) != len(b)-len(b)%24 {
		t.Errorf("%d bytes of records, want all of %d", want, len(b))
	}
}

func TestFilesWithManySymbols(t *testing.T) {
	const n = 100_000
	name := func(i int) string { return fmt.Sprintf("function_%d_%s", i, strings.Repeat("x", i%200)) }
	symbols := make([]testSymbol, n)
	for i := range symbols {
		j := i * 7919 % n // not in the order of addresses
		symbols[i] = testSymbol{name(j), 0x1000 + uint64(j)*16, 16, globalFunc, 1}
	}
	b := testELF{machine: elf.EM_X86_64, segments: []elf.Prog64{load(elf.PF_R|elf.PF_X, 0x1000, 0x1000, n*16)},
		sections: append([]testSection{textSection(0x1000, 0x1000, n*16)}, symtabSections(elf.SHT_SYMTAB, 3, symbols)...)}.build()
	o := mustParse(t, b)
	for i := range n {
		if got := nameAt(o, 0x1000+Address(i)*16+7); got != name(i) {
			t.Fatalf("function %d is %q, want %q", i, got, name(i))
		}
	}
	if id, err := replay(bytes.NewReader(b), int64(len(b)), o.log); err != nil || id != o.id {
		t.Errorf("replay: another identity (%v)", err)
	}
	small, err := parse(bytes.NewReader(b), int64(len(b)), o.Bytes()/2)
	if err != nil {
		t.Fatal(err)
	}
	if a, ok := small.Address(0x1010); !small.degraded || small.table != nil || small.Bytes() > o.Bytes()/2 || !ok || a != 0x1010 {
		t.Errorf("beyond the budget: degraded %v, %d bytes, Address %#x; want addresses without names", small.degraded, small.Bytes(), a)
	}
}

func TestPackedStringsAreWhole(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for _, size := range []int{0, 1, packBlock - 1, packBlock, packBlock + 1, 5*packBlock + 17} {
		b := pattern(size)
		var w packer
		for rest := b; len(rest) > 0; {
			k := min(len(rest), 1+random.IntN(2*packBlock))
			if _, err := w.Write(rest[:k]); err != nil {
				t.Fatal(err)
			}
			rest = rest[k:]
		}
		p := w.done()
		for range 50 {
			off, n := random.IntN(size+10), random.IntN(3*packBlock)
			want := b[min(off, size):min(off+n, size)]
			if got := p.read(uint32(off), uint32(n)); !bytes.Equal(got, want) {
				t.Fatalf("size %d: read(%d, %d) differs", size, off, n)
			}
		}
	}
	long := strings.Repeat("n", 3*packBlock)
	var w packer
	for _, s := range []string{"short", long, strings.Repeat("c", 2*maxName)} {
		if _, err := w.Write(append([]byte(s), 0)); err != nil {
			t.Fatal(err)
		}
	}
	p := w.done()
	if a, b, c := p.cstring(0), p.cstring(6), p.cstring(uint32(7+len(long))); a != "short" || b != long || len(c) != maxName {
		t.Errorf("%q, %d and %d bytes; want short, %d and %d", a, len(b), len(c), len(long), maxName)
	}
}

// TestBytesIsWhatTheHeapHolds: budgets are worth nothing if an Object is larger than it says.
func TestBytesIsWhatTheHeapHolds(t *testing.T) {
	for _, path := range []string{goProgram(t, "", false, "-ldflags=-checklinkname=0"), strings.TrimSpace(run(t, "gcc", "-print-file-name=libstdc++.so.6"))} {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&before)
		o := parseFile(t, path)
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&after)
		held := int64(after.HeapAlloc) - int64(before.HeapAlloc)
		if slack := o.Bytes()/10 + 64<<10; held > o.Bytes()+slack || held < o.Bytes()-slack {
			t.Errorf("%s: the heap grew by %d bytes, Bytes() = %d", path, held, o.Bytes())
		}
	}
}
