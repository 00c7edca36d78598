package symbol

import (
	"encoding/binary"
	"math"
	"slices"
)

// Limits on a pclntab; the largest known has 144 MB.
const (
	maxGoFuncs    = 2 << 20
	maxPCTable    = 1 << 20 // one pc-value table
	maxInlineTree = 1 << 14 // entries in one function
	maxPcdata     = 64      // tables per function; Go has 4
)

// goVersion is a layout of pclntab, named after the first release that has it.
type goVersion int

const (
	go12  goVersion = iota // up to 1.15
	go116                  // 1.16, 1.17
	go118                  // 1.18, 1.19
	go120                  // 1.20 and later
)

// pclnHeader is the head of a pclntab: offsets from its start, except text.
type pclnHeader struct {
	version                               goVersion
	quantum, ptr                          uint8
	nfunc                                 uint64
	text                                  Address // 1.18 to 1.25; 0 in position-independent and in newer files
	funcnames, cutab, files, pctab, funcs uint64
	size                                  uint64 // of the whole table
}

// parseHeader reads the head of a pclntab; false if it is not one. b is at least 72 bytes.
func parseHeader(b []byte, size uint64) (pclnHeader, bool) {
	h := pclnHeader{size: size}
	le := binary.LittleEndian
	switch le.Uint32(b) {
	case 0xfffffffb:
		h.version = go12
	case 0xfffffffa:
		h.version = go116
	case 0xfffffff0:
		h.version = go118
	case 0xfffffff1:
		h.version = go120
	default:
		return h, false
	}
	h.quantum, h.ptr = b[6], b[7]
	if b[4] != 0 || b[5] != 0 || h.quantum != 1 && h.quantum != 2 && h.quantum != 4 || h.ptr != 4 && h.ptr != 8 {
		return h, false
	}
	word := func(i int) uint64 {
		if h.ptr == 8 {
			return le.Uint64(b[8+8*i:])
		}
		return uint64(le.Uint32(b[8+4*i:]))
	}
	h.nfunc = word(0)
	switch h.version {
	case go12:
		h.funcs = 8 + uint64(h.ptr)
	case go116:
		h.funcnames, h.cutab, h.files, h.pctab, h.funcs = word(2), word(3), word(4), word(5), word(6)
	default:
		h.text = Address(word(2))
		h.funcnames, h.cutab, h.files, h.pctab, h.funcs = word(3), word(4), word(5), word(6), word(7)
	}
	ordered := h.version == go12 ||
		h.funcnames >= 8 && h.funcnames <= h.cutab && h.cutab <= h.files && h.files <= h.pctab && h.pctab <= h.funcs
	return h, ordered && h.nfunc > 0 && h.nfunc <= maxGoFuncs && h.funcs < size && h.nfunc <= (size-h.funcs)/8
}

// goTable is a compact copy of a pclntab. Of each function it keeps what a lookup needs (name, file, line and inline
// tables), one record after the other; tables for the garbage collector and for stack sizes are left out.
type goTable struct {
	version goVersion
	quantum uint8
	text    Address  // entries are relative to it
	starts  []uint32 // where functions begin, sorted; the last is where the last one ends
	names   *packed  // funcnametab, or for go12 all of the pclntab's strings
	// Full form: record i is records[offsets[i]:offsets[i+1]].
	offsets      []uint32
	records      *packed
	cutab, files *packed
	// Reduced form, records == nil: the function's offset in names.
	nameOffsets []uint32
}

// covers says whether a lies in the code of Go functions.
func (g *goTable) covers(a Address) bool {
	return g != nil && a >= g.text+Address(g.starts[0]) && a < g.text+Address(g.starts[len(g.starts)-1])
}

func (g *goTable) bytesHeld() int64 {
	if g == nil {
		return 0
	}
	return 128 + 4*int64(cap(g.starts)+cap(g.offsets)+cap(g.nameOffsets)) + g.names.bytesHeld() + g.records.bytesHeld() +
		g.cutab.bytesHeld() + g.files.bytesHeld()
}

// inlined is one entry of a function's inline tree.
type inlined struct {
	name     uint32
	parentPC uint32 // the call's place in the enclosing function, from the entry
	line     uint32 // where the inlined function begins; 0 not known
}

// goFunction is one record, unpacked.
type goFunction struct {
	name, cu, line       uint32
	pcfile, pcline, pcil []byte
	tree                 []inlined
}

// append adds f to dst as a record.
func (f *goFunction) append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(f.name))
	dst = binary.AppendUvarint(dst, uint64(f.cu))
	dst = binary.AppendUvarint(dst, uint64(f.line))
	for _, t := range [][]byte{f.pcfile, f.pcline, f.pcil} {
		dst = binary.AppendUvarint(dst, uint64(len(t)))
		dst = append(dst, t...)
	}
	for _, e := range f.tree { // until the end of the record
		dst = binary.AppendUvarint(dst, uint64(e.name))
		dst = binary.AppendUvarint(dst, uint64(e.parentPC))
		dst = binary.AppendUvarint(dst, uint64(e.line))
	}
	return dst
}

// parse reads a record.
func (f *goFunction) parse(b []byte) bool {
	ok := true
	next := func() uint32 {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > math.MaxUint32 {
			ok, b = false, nil
			return 0
		}
		b = b[n:]
		return uint32(v)
	}
	f.name, f.cu, f.line = next(), next(), next()
	for _, t := range []*[]byte{&f.pcfile, &f.pcline, &f.pcil} {
		n := next()
		if uint64(n) > uint64(len(b)) {
			return false
		}
		*t, b = b[:n], b[n:]
	}
	f.tree = f.tree[:0]
	for ok && len(b) > 0 {
		f.tree = append(f.tree, inlined{next(), next(), next()})
	}
	return ok
}

// lookup appends the functions at a, innermost inlined first.
func (g *goTable) lookup(dst []Line, a Address) []Line {
	if !g.covers(a) {
		return dst
	}
	off := uint32(a - g.text)
	i, found := slices.BinarySearch(g.starts, off)
	if !found {
		i--
	}
	if g.records == nil {
		if name := g.names.cstring(g.nameOffsets[i]); name != "" {
			dst = append(dst, Line{Function: name})
		}
		return dst
	}
	var f goFunction
	if !f.parse(g.records.read(g.offsets[i], g.offsets[i+1]-g.offsets[i])) {
		return dst
	}
	pc := off - g.starts[i]
	// Each hop leads to the function that the last one was inlined into; a tree that loops ends after as many hops as it
	// has entries.
	for hops := 0; hops < len(f.tree); hops++ {
		ix, ok := g.pcvalue(f.pcil, pc)
		if !ok || ix < 0 || int(ix) >= len(f.tree) {
			break
		}
		in := f.tree[ix]
		if name := g.names.cstring(in.name); name != "" {
			line := g.place(&f, pc)
			line.Function, line.StartLine = name, int(in.line)
			dst = append(dst, line)
		}
		pc = in.parentPC
	}
	if name := g.names.cstring(f.name); name != "" {
		line := g.place(&f, pc)
		line.Function, line.StartLine = name, int(f.line)
		dst = append(dst, line)
	}
	return dst
}

// place returns file and line at pc, counted from the function's entry.
func (g *goTable) place(f *goFunction, pc uint32) Line {
	var l Line
	if n, ok := g.pcvalue(f.pcline, pc); ok && n > 0 {
		l.Line = int(n)
	}
	n, ok := g.pcvalue(f.pcfile, pc)
	if !ok || n < 0 {
		return l
	}
	b := g.cutab.read((f.cu+uint32(n))*4, 4) // go12: the file table itself, with cu 0
	if len(b) == 4 {
		if off := binary.LittleEndian.Uint32(b); off != math.MaxUint32 {
			l.File = g.files.cstring(off)
		}
	}
	return l
}

// pcvalue looks pc, counted from the function's entry, up in a pc-value table.
func (g *goTable) pcvalue(t []byte, pc uint32) (int32, bool) {
	val, at := int32(-1), uint64(0)
	for first := true; len(t) > 0; first = false {
		d, n := binary.Uvarint(t)
		if n <= 0 || d == 0 && !first {
			return 0, false
		}
		t = t[n:]
		val += zigzag(d)
		step, n := binary.Uvarint(t)
		if n <= 0 {
			return 0, false
		}
		t = t[n:]
		at += (step & math.MaxUint32) * uint64(g.quantum)
		if uint64(pc) < at {
			return val, true
		}
	}
	return 0, false
}

func zigzag(d uint64) int32 {
	v := uint32(d)
	return int32(v>>1) ^ -int32(v&1)
}

// cutPCTable returns the pc-value table that t begins with, without its terminator; false if t ends before the table does.
func cutPCTable(t []byte) ([]byte, bool) {
	for i, first := 0, true; i < len(t); first = false {
		if t[i] == 0 && !first {
			return t[:i], true
		}
		for range 2 { // value delta, pc delta
			_, n := binary.Uvarint(t[i:])
			if n <= 0 {
				return nil, false
			}
			i += n
		}
	}
	return nil, false
}

// maxValue is the largest value in a pc-value table.
func maxValue(t []byte) int32 {
	val, most := int32(-1), int32(-1)
	for len(t) > 0 {
		d, n := binary.Uvarint(t)
		if n <= 0 {
			return most
		}
		val += zigzag(d)
		most = max(most, val)
		if _, m := binary.Uvarint(t[n:]); m > 0 {
			t = t[n+m:]
		} else {
			return most
		}
	}
	return most
}
