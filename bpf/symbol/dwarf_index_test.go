package symbol

import (
	"bytes"
	"encoding/binary"
	"io"
	"maps"
	"slices"
	"testing"
)

// readCounter counts what is read through it.
type readCounter struct {
	r io.ReaderAt
	n int64
}

func (c *readCounter) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.r.ReadAt(p, off)
	c.n += int64(n)
	return n, err
}

// manyUnits is a program of n units of one function each, of which no index tells, as clang writes them.
func manyUnits(n int) []byte {
	le := binary.LittleEndian
	abbrev := []byte{
		1, 0x11, 1, 0x11, 0x01, 0x12, 0x07, 0, 0, // compile unit: low, high
		2, 0x2e, 0, 0x03, 0x08, 0x11, 0x01, 0x12, 0x07, 0x3b, 0x05, 0, 0, // subprogram: name, low, high, line
		0,
	}
	var info []byte
	for i := range n {
		low := uint64(0x1000 + 0x100*i)
		unit := []byte{4, 0, 0, 0, 0, 0, 8, 1}
		unit = le.AppendUint64(le.AppendUint64(unit, low), 0x40)
		unit = append(unit, 2, 'f', 0)
		unit = le.AppendUint64(le.AppendUint64(unit, low), 0x40)
		unit = append(le.AppendUint16(unit, 7), 0)
		info = append(le.AppendUint32(info, uint32(len(unit))), unit...)
	}
	return hostile(map[string][]byte{".debug_abbrev": abbrev, ".debug_info": info})
}

// However large a program is, one go takes no more than its budget, and what was searched once is not searched again.
func TestLargeFilesAreReadALittleAtATime(t *testing.T) {
	const units = 100_000
	b := manyUnits(units)
	file := &readCounter{r: bytes.NewReader(b)}
	var index unitIndex
	ask := func(addresses ...Address) (goes int, most int64, lines map[Address][]Line) {
		t.Helper()
		lines = map[Address][]Line{}
		for len(addresses) > 0 {
			file.n = 0
			got, rest, err := debugLines(file, int64(len(b)), &index, companions{}, addresses)
			if err != nil {
				t.Fatal(err)
			}
			if goes++; goes > 100 {
				t.Fatal("no end")
			}
			maps.Copy(lines, got)
			most, addresses = max(most, file.n), rest
		}
		return goes, most, lines
	}
	last := Address(0x1000 + 0x100*(units-1))
	goes, most, lines := ask(last + 8)
	t.Logf("the last unit: %d goes, at most %d KiB each; %d KiB kept", goes, most>>10, index.bytes()>>10)
	if l := lines[last+8]; len(l) != 1 || l[0].Function != "f" {
		t.Errorf("lines %v", l)
	}
	if goes < 2 || most > sliceRead+1<<20 {
		t.Errorf("%d goes, %d bytes in one", goes, most)
	}
	if index.bytes() > 24*maxIndexRanges+8*2*units {
		t.Errorf("%d bytes kept", index.bytes())
	}
	// Now everything is known.
	goes, most, lines = ask(0x1000, last+9)
	if len(lines) != 2 || goes != 1 || most > 64<<10 {
		t.Errorf("asked again: %d lines, %d goes, %d bytes", len(lines), goes, most)
	}
	// Many functions of many units take several goes too, and each brings its share.
	var all []Address
	for i := range 60_000 {
		all = append(all, Address(0x1000+0x100*i))
	}
	goes, most, lines = ask(all...)
	t.Logf("60,000 units: %d goes, at most %d KiB each", goes, most>>10)
	if len(lines) != len(all) || goes < 3 || most > sliceRead+1<<20 {
		t.Errorf("%d lines, %d goes, %d bytes in one", len(lines), goes, most)
	}
	// An address that nobody has is no reason to begin again.
	if goes, _, lines = ask(0x1050); goes != 1 || len(lines) != 0 {
		t.Errorf("an address in no unit: %d goes, %v", goes, lines)
	}
}

func TestUnitIndex(t *testing.T) {
	var x unitIndex
	x.add(1, 0x1000, 0x1100)
	x.add(1, 0x1110, 0x1200) // close by
	x.add(2, 0x3000, 0x3100)
	x.add(1, 0x2000, 0x2100)
	x.add(3, 0x2080, 0x2180) // overlaps
	x.add(4, 0x2010, 0x2020) // inside of another
	x.add(5, 0, 0x9000)      // what a linker left out
	x.sort()
	x.add(6, 0x500, 0x600)
	x.sort()
	for a, want := range map[Address]uint64{0x1000: 1, 0x1105: 1, 0x11ff: 1, 0x1200: 0, 0x20ff: 1, 0x2010: 1, 0x2100: 3, 0x217f: 3, 0x2180: 0, 0x3000: 2, 0x500: 6, 0x8000: 0} {
		if got, _ := x.unitOf(a); got != want {
			t.Errorf("%#x: unit %d, want %d", a, got, want)
		}
	}
	if !slices.IsSortedFunc(x.ranges, func(a, b unitRange) int { return int(a.low) - int(b.low) }) {
		t.Error("not sorted")
	}
	for i := range 2 * maxIndexRanges {
		x.add(uint64(i), Address(0x10000+0x100*i), Address(0x10000+0x100*i+1))
	}
	if x.sort(); !x.full || len(x.ranges) != maxIndexRanges {
		t.Errorf("full: %t, %d ranges", x.full, len(x.ranges))
	}
}
