package symbol

import (
	"cmp"
	"errors"
	"slices"
)

// This file finds the unit that holds an address. What it learns on the way is kept, so that the next address costs no second search.

const (
	// maxIndexRanges bounds what is kept of one file, about 3 MiB: four times what Chromium needs. Addresses of what does not fit
	// have no lines.
	maxIndexRanges = 1 << 17
	// mergeGap is how far apart two ranges of a unit may be that are kept as one: functions are aligned.
	mergeGap = 64
	// lowestCode is above the addresses that linkers give to code which they have left out.
	lowestCode = 16
)

// unitIndex says which unit has which addresses, as far as that was read. The zero value knows nothing.
type unitIndex struct {
	ranges []unitRange // sorted, disjoint
	added  int         // of these, how many at the end are not
	full   bool

	arangesAt   uint64 // how far .debug_aranges was read
	arangesDone bool
	heads       []uint64 // where units begin
	scanned     uint64   // how far these are known
	units       int      // of how many of them the ranges are known
}

// unitRange is a range of addresses that a unit has.
type unitRange struct {
	low  Address
	unit uint64
	size uint32
}

func (x *unitIndex) bytes() int64 { return 24*int64(cap(x.ranges)) + 8*int64(cap(x.heads)) }

// add enters a range.
func (x *unitIndex) add(unit uint64, low, high Address) {
	if low < lowestCode || low >= high {
		return
	}
	size := uint32(min(high-low, 1<<32-1))
	if x.added > 0 {
		last := &x.ranges[len(x.ranges)-1]
		if end := last.low + Address(last.size); last.unit == unit && low >= end && low-end <= mergeGap && uint64(low-last.low)+uint64(size) < 1<<32 {
			last.size = uint32(low-last.low) + size
			return
		}
	}
	if len(x.ranges) >= maxIndexRanges {
		x.full = true
		return
	}
	x.ranges, x.added = append(x.ranges, unitRange{low, unit, size}), x.added+1
}

// sort puts what was added in its place. Where ranges overlap, which only nonsense does, the lower one has the addresses.
func (x *unitIndex) sort() {
	if x.added == 0 {
		return
	}
	x.added = 0
	slices.SortStableFunc(x.ranges, func(a, b unitRange) int { return cmp.Compare(a.low, b.low) })
	kept := x.ranges[:0]
	end := Address(0)
	for _, r := range x.ranges {
		if high := r.low + Address(r.size); r.low < end {
			if high <= end {
				continue
			}
			r.low, r.size = end, uint32(high-end)
		}
		end = r.low + Address(r.size)
		kept = append(kept, r)
	}
	x.ranges = kept
}

// unitOf returns the unit that has an address.
func (x *unitIndex) unitOf(a Address) (unit uint64, ok bool) {
	i, found := slices.BinarySearchFunc(x.ranges, a, func(r unitRange, a Address) int { return cmp.Compare(r.low, a) })
	if !found {
		i--
	}
	if i < 0 || a-x.ranges[i].low >= Address(x.ranges[i].size) {
		return 0, false
	}
	return x.ranges[i].unit, true
}

// findUnits tells which unit has each address, by unit: from what is known, from .debug_aranges, and for what is not in there (clang
// writes none) from the first entry of each unit. rest are the addresses that may be in what there was no time to read.
func (q *debugQuery) findUnits(x *unitIndex) (byUnit map[uint64][]Address, rest []Address, err error) {
	byUnit = map[uint64][]Address{}
	d := q.d
	d.heads, d.scanned = x.heads, x.scanned
	look := func() {
		x.sort()
		missing := rest[:0]
		for _, a := range rest {
			if unit, ok := x.unitOf(a); ok {
				byUnit[unit] = append(byUnit[unit], a)
			} else {
				missing = append(missing, a)
			}
		}
		rest = missing
	}
	rest = slices.Clone(q.addresses)
	look()
	var bad []error
	// A broken index is no reason to go without: the units themselves tell too. Nor is a broken unit, for the others.
	for len(rest) > 0 && !x.arangesDone && !d.tired() {
		if err := q.aranges(x); err != nil {
			bad, x.arangesDone = append(bad, err), true
		}
	}
	if x.added > 0 {
		look()
	}
	ended := false
	for n := 0; len(rest) > 0 && x.arangesDone && !d.tired() && !ended; n++ {
		if x.units == len(d.heads) {
			ok, err := d.nextHead()
			if err != nil {
				bad, d.scanned = append(bad, err), d.info.size // nothing can be found behind it
			}
			ended = !ok
		}
		if !ended {
			if err := q.rangesOf(x, d.heads[x.units]); err != nil && len(bad) < 4 {
				bad = append(bad, err)
			}
			x.units++
		}
		if ended || n%256 == 255 {
			look()
		}
	}
	look()
	x.heads, x.scanned = d.heads, d.scanned
	if ended {
		rest = nil // nobody has them
	}
	return byUnit, rest, errors.Join(bad...)
}

// aranges reads the next set of .debug_aranges (DWARF 5 section 6.1.2).
func (q *debugQuery) aranges(x *unitIndex) error {
	d := q.d
	if x.arangesAt >= d.aranges.size {
		x.arangesDone = true
		return nil
	}
	off := x.arangesAt
	c := d.cursor(&d.aranges, off, d.aranges.size)
	c.length()
	x.arangesAt = c.end
	version := c.u16()
	unit := c.offset()
	size, segment := uint64(c.u8()), c.u8()
	if c.err == nil && (version != 2 || size != 4 && size != 8 || segment != 0) {
		c.fail("a set of an unknown kind")
	}
	if c.err != nil {
		return c.err
	}
	// Pairs are aligned to their own size, from the beginning of the set.
	if rest := (c.pos - off) % (2 * size); rest != 0 {
		c.skip(2*size - rest)
	}
	for c.left() >= 2*size {
		low, n := Address(c.uint(size)), Address(c.uint(size))
		if low == 0 && n == 0 {
			break
		}
		c.spend(1)
		x.add(unit, low, low+n)
	}
	return c.err
}

// rangesOf enters the ranges that the first entry of the unit at off tells. Little of the unit is read, and of its abbreviations.
func (q *debugQuery) rangesOf(x *unitIndex, off uint64) error {
	d := q.d
	c := d.cursor(&d.info, off, d.info.size)
	c.buf = make([]byte, 0, scanAhead)
	h, err := headFrom(c)
	if err != nil || !h.code {
		return err
	}
	code := c.uleb()
	if c.err != nil || code == 0 {
		return c.err
	}
	t, err := d.abbrevAt(h.abbrevOff, code)
	if err != nil {
		return err
	}
	u := &unit{d: d, unitHead: h, abbrevs: t}
	c.seek(h.entries)
	if err := u.readRoot(c); err != nil {
		return err
	}
	return u.eachRange(&u.root, &q.steps, func(low, high Address) bool {
		d.spend(1)
		x.add(off, low, high)
		return true
	})
}
