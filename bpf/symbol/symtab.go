package symbol

import (
	"debug/elf"
	"encoding/binary"
	"math"
	"slices"
	"strings"
)

// maxFunctions is how many symbols of one file are kept; the largest browsers have about 700,000 functions.
const maxFunctions = 1 << 20

// maxStringTables is how many string tables the symbols of one file use: .strtab and .dynstr.
const maxStringTables = 4

// function is a symbol of code while a file is parsed.
type function struct {
	start, end uint32 // from symbolReader.base; end == start: the size is not known
	name       uint32 // offset in the string table tab; later in the packed names
	length     uint16 // of the name, once it is read
	tab        uint8
	class      uint8 // how good the name is among aliases: higher is better
}

// Bits of function.class, the most important highest.
const (
	classSymtab = 1 << iota // from .symtab: .dynsym repeats a part of it
	classSized
	classWeak
	classGlobal
	classTyped // not an untyped label of assembly code
	classPLT   // a stub; its name is that of the function it jumps to
)

// symbolReader gathers the functions of one file.
type symbolReader struct {
	m      *image
	page   *pager
	base   Address            // lowest address of code
	skip   func(Address) bool // addresses that another table names; may be nil
	all    []function         // not sorted
	tabs   []section          // string tables
	dyn    []uint32           // names of .dynsym by symbol number, in string table dynTab
	dynTab uint8
}

// symbols reads .symtab, .dynsym and the PLT and returns nil when there is none. skip says which addresses another table
// already names.
func (m *image) symbols(skip func(Address) bool) (*table, error) {
	r := symbolReader{m: m, page: newPager(m.src), base: m.codeStart(), skip: skip}
	for i := range m.sections {
		s := &m.sections[i]
		if s.typ != elf.SHT_SYMTAB && s.typ != elf.SHT_DYNSYM {
			continue
		}
		if !m.inFile(s) || uint64(s.link) >= uint64(len(m.sections)) || !m.inFile(&m.sections[s.link]) ||
			len(r.tabs) == maxStringTables {
			continue
		}
		r.tabs = append(r.tabs, m.sections[s.link])
		if err := r.readTable(s); err != nil {
			return nil, err
		}
	}
	if err := r.readPLT(); err != nil {
		return nil, err
	}
	return r.compact()
}

// readTable gathers the functions of one symbol table.
func (r *symbolReader) readTable(s *section) error {
	entry := uint64(16)
	if r.m.class64 {
		entry = 24
	}
	if s.size > maxSymtab {
		return &FormatError{s.off, "symbol table larger than the limit"}
	}
	tab := uint8(len(r.tabs) - 1)
	if s.typ == elf.SHT_DYNSYM {
		r.dyn, r.dynTab = nil, tab
	}
	return r.m.src.records(s.off, s.size, entry, "symbols", func(b []byte) {
		if s.typ == elf.SHT_DYNSYM {
			r.dyn = append(r.dyn, binary.LittleEndian.Uint32(b))
		}
		if f, ok := r.function(b); ok {
			f.tab = tab
			if s.typ == elf.SHT_SYMTAB {
				f.class |= classSymtab
			}
			r.add(f)
		}
	})
}

func (r *symbolReader) add(f function) {
	if len(r.all) < maxFunctions && (r.skip == nil || !r.skip(r.base+Address(f.start))) {
		r.all = append(r.all, f)
	}
}

// function reads one symbol table entry; false means that it names no code.
func (r *symbolReader) function(b []byte) (function, bool) {
	le := binary.LittleEndian
	var name uint32
	var info byte
	var shndx uint16
	var value, size uint64
	if r.m.class64 {
		name, info, shndx, value, size = le.Uint32(b), b[4], le.Uint16(b[6:]), le.Uint64(b[8:]), le.Uint64(b[16:])
	} else {
		name, value, size, info, shndx = le.Uint32(b), uint64(le.Uint32(b[4:])), uint64(le.Uint32(b[8:])), b[12], le.Uint16(b[14:])
	}
	if r.m.machine == elf.EM_ARM {
		value &^= 1 // the Thumb bit
	}
	f := function{name: name}
	switch elf.ST_TYPE(info) {
	case elf.STT_FUNC, elf.STT_GNU_IFUNC:
		f.class |= classTyped
	case elf.STT_NOTYPE:
	default:
		return f, false
	}
	start := Address(value)
	if elf.SectionIndex(shndx) == elf.SHN_UNDEF || name == 0 || start < r.base || start-r.base >= math.MaxUint32 {
		return f, false
	}
	// The section, where there is one, bounds the symbol and says whether it is code; absolute and extended indices
	// leave it to the segments.
	limit := r.base + math.MaxUint32
	if int(shndx) < len(r.m.sections) {
		s := &r.m.sections[shndx]
		if !s.exec() || start < s.addr || uint64(start-s.addr) >= s.size {
			return f, false
		}
		if end := s.addr + Address(s.size); end > s.addr {
			limit = min(limit, end)
		}
	} else if f.class&classTyped == 0 || !r.m.executable(start) {
		return f, false
	}
	f.start = uint32(start - r.base)
	f.end = f.start
	if size > 0 {
		f.class |= classSized
		f.end = uint32(limit - r.base)
		if size < uint64(limit-start) {
			f.end = f.start + uint32(size)
		}
	}
	switch elf.ST_BIND(info) {
	case elf.STB_GLOBAL, elf.STB_LOOS: // STB_LOOS is STB_GNU_UNIQUE
		f.class |= classGlobal
	case elf.STB_WEAK:
		f.class |= classWeak
	}
	return f, true
}

// mappingSymbol tells the markers $a, $d, $t and $x, also with a suffix ($x.12), that ARM compilers put between code and data.
func mappingSymbol(name []byte) bool {
	return len(name) >= 2 && name[0] == '$' && strings.IndexByte("adtx", name[1]) >= 0 && (len(name) == 2 || name[2] == '.')
}

// codeStart returns the lowest address of code, whole pages down.
func (m *image) codeStart() Address {
	low := Address(math.MaxUint64)
	for i := range m.sections {
		if s := &m.sections[i]; s.exec() {
			low = min(low, s.addr)
		}
	}
	for _, s := range m.segments {
		if s.exec {
			low = min(low, s.vaddr)
		}
	}
	return low
}

// codeEnds returns where executable sections and segments end, from codeStart, sorted.
func (m *image) codeEnds() []uint32 {
	base := m.codeStart()
	var ends []uint32
	add := func(a Address) {
		if a > base && a-base <= math.MaxUint32 {
			ends = append(ends, uint32(a-base))
		}
	}
	for i := range m.sections {
		if s := &m.sections[i]; s.exec() {
			add(s.addr + Address(s.size))
		}
	}
	for _, s := range m.segments {
		if s.exec {
			add(s.vaddr + Address(s.filesz))
		}
	}
	slices.Sort(ends)
	return ends
}
