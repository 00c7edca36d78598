package symbol

import (
	"encoding/binary"
	"slices"
	"strings"
)

// Flags of a function in pclntab (Go's internal/abi/symtab.go, from 1.17 on).
const (
	goTopFrame = 1 << iota
	goWritesSP
	goAssembly
)

// GoFunctions finds the functions of a Go program and what they do with the stack. It is immutable and reads through the
// [Reader] it is given.
type GoFunctions struct {
	h         pclnHeader
	off       uint64 // of the table in the file
	text      Address
	from, end Address
}

// GoFunction is one function of a Go program.
type GoFunction struct {
	Start, End Address
	Name       string // at most 256 bytes of it
	// TopFrame: nobody called it. WritesSP: it sets the stack pointer to what its stack sizes do not tell. Known from Go 1.17 on.
	TopFrame, WritesSP, Assembly bool

	quantum uint8
	pcsp    []byte
}

// goFunctions reads the head of the pclntab; nil if the file is not a Go program.
func (m *image) goFunctions() (*GoFunctions, error) {
	addr, size, ok, err := m.findPclntab()
	if err != nil || !ok {
		return nil, err
	}
	head, err := m.at(addr, min(72, size), 72, "pclntab header")
	if err != nil || len(head) < 72 {
		return nil, err
	}
	h, ok := parseHeader(head, size)
	if !ok {
		return nil, nil
	}
	off, have, _ := m.fileOffset(addr)
	h.size = min(h.size, have)
	l := goLoader{m: m, h: h, addr: addr, off: off, page: newPager(m.src)}
	g := &GoFunctions{h: h, off: off, text: h.text}
	if h.version >= go118 {
		module, ok, err := l.findModule()
		if err != nil {
			return nil, err
		}
		if ok {
			g.text = module.text
		}
	}
	r := &Reader{layout: &Layout{size: m.src.size, segments: m.segments}, page: l.page}
	first, ok1 := g.start(r, 0)
	end, ok2 := g.start(r, h.nfunc)
	if !ok1 || !ok2 || end < first || !m.executable(first) {
		return nil, l.bad("functions outside of the program's code")
	}
	g.from, g.end = first, end
	return g, r.Err()
}

// Range is the code that g describes.
func (g *GoFunctions) Range() (from, end Address) { return g.from, g.end }

// read returns n bytes at off in the table, fewer where it ends.
func (g *GoFunctions) read(r *Reader, off, n uint64) []byte {
	if off >= g.h.size {
		return nil
	}
	return r.page.read(g.off+off, min(n, g.h.size-off))
}

// entry returns the two words of entry i of the function table: where the function starts and where its record is.
func (g *GoFunctions) entry(r *Reader, i uint64) (start Address, record uint64, ok bool) {
	le := binary.LittleEndian
	if g.h.version >= go118 {
		b := g.read(r, g.h.funcs+8*i, 8)
		if len(b) < 8 {
			return 0, 0, false
		}
		return g.text + Address(le.Uint32(b)), g.h.funcs + uint64(le.Uint32(b[4:])), true
	}
	base := uint64(0)
	if g.h.version == go116 {
		base = g.h.funcs
	}
	if g.h.ptr == 8 {
		b := g.read(r, g.h.funcs+16*i, 16)
		if len(b) < 16 {
			return 0, 0, false
		}
		return Address(le.Uint64(b)), base + le.Uint64(b[8:]), true
	}
	b := g.read(r, g.h.funcs+8*i, 8)
	if len(b) < 8 {
		return 0, 0, false
	}
	return Address(le.Uint32(b)), base + uint64(le.Uint32(b[4:])), true
}

// start returns where function i starts; i may be the number of functions: where the last one ends.
func (g *GoFunctions) start(r *Reader, i uint64) (Address, bool) {
	if i < g.h.nfunc {
		a, _, ok := g.entry(r, i)
		return a, ok
	}
	le := binary.LittleEndian
	switch {
	case g.h.version >= go118:
		if b := g.read(r, g.h.funcs+8*i, 4); len(b) == 4 {
			return g.text + Address(le.Uint32(b)), true
		}
	case g.h.ptr == 8:
		if b := g.read(r, g.h.funcs+16*i, 8); len(b) == 8 {
			return Address(le.Uint64(b)), true
		}
	default:
		if b := g.read(r, g.h.funcs+8*i, 4); len(b) == 4 {
			return Address(le.Uint32(b)), true
		}
	}
	return 0, false
}

// Each calls f with the functions that overlap [from, to), in order, until f returns false. A function is valid during the
// call. Functions that are not sorted, and what follows them, are left out.
func (g *GoFunctions) Each(r *Reader, from, to Address, f func(*GoFunction) bool) {
	low, high := uint64(0), g.h.nfunc // the first function that ends behind from
	for low < high {
		i := (low + high) / 2
		if end, ok := g.start(r, i+1); !ok || end > from {
			high = i
		} else {
			low = i + 1
		}
	}
	le := binary.LittleEndian
	last := Address(0)
	for i := low; i < g.h.nfunc; i++ {
		start, record, ok := g.entry(r, i)
		end, ok2 := g.start(r, i+1)
		if !ok || !ok2 || start >= to || start < last || end < start {
			return
		}
		last = start
		fn := GoFunction{Start: start, End: end, quantum: g.h.quantum}
		at, flags := uint64(4), 0
		if g.h.version < go118 {
			at = uint64(g.h.ptr)
		}
		switch {
		case g.h.version >= go120:
			flags = 41
		case g.h.version == go118:
			flags = 37
		case g.h.version == go116: // the flags came in 1.17 and the byte was 0 before
			flags = int(at) + 33
		}
		b := g.read(r, record, 48)
		if uint64(len(b)) < at+16 {
			continue
		}
		name, pcsp := le.Uint32(b[at:]), le.Uint32(b[at+12:])
		if flags > 0 && flags < len(b) {
			fn.TopFrame, fn.WritesSP, fn.Assembly = b[flags]&goTopFrame != 0, b[flags]&goWritesSP != 0, b[flags]&goAssembly != 0
		}
		fn.Name = g.name(r, name)
		fn.pcsp = g.pctable(r, pcsp)
		if !f(&fn) {
			return
		}
	}
}

// name returns the name at off of the name table.
func (g *GoFunctions) name(r *Reader, off uint32) string {
	b := g.read(r, g.h.funcnames+uint64(off), 256)
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

// pctable returns the pc-value table at off.
func (g *GoFunctions) pctable(r *Reader, off uint32) []byte {
	base, end := g.h.pctab, g.h.funcs
	if g.h.version == go12 {
		base, end = 0, g.h.size
	}
	if off == 0 || uint64(off) >= end-base {
		return nil
	}
	for n := uint64(64); ; n *= 8 {
		b := g.read(r, base+uint64(off), min(n, end-base-uint64(off)))
		if t, ok := cutPCTable(b); ok {
			return slices.Clone(t)
		}
		if uint64(len(b)) < n || n >= maxPCTable {
			return nil
		}
	}
}

// StackSizes calls f with each piece of the function that has one stack size: how far the stack pointer is below its value at
// the entry, where the return address was just pushed (x86-64) or is in the link register. It says whether the table covers
// the function from its start.
func (fn *GoFunction) StackSizes(f func(from, to Address, size int32)) bool {
	val, at, t := int32(-1), fn.Start, fn.pcsp
	for first := true; len(t) > 0; first = false {
		d, n := binary.Uvarint(t)
		if n <= 0 || d == 0 && !first {
			return !first
		}
		t = t[n:]
		val += zigzag(d)
		step, n := binary.Uvarint(t)
		if n <= 0 {
			return !first
		}
		t = t[n:]
		to := at + Address(step&0xffffffff)*Address(fn.quantum)
		if to = min(to, fn.End); to > at {
			f(at, to, val)
		}
		at = to
	}
	return len(fn.pcsp) > 0
}
