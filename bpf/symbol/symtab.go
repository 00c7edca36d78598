package symbol

import (
	"debug/elf"
	"encoding/binary"
	"math"
	"slices"
	"strings"
)

// maxFunctions is how many functions of one file are kept; the largest browsers have about 700,000.
const maxFunctions = 1 << 20

// function is a symbol of code while a file is parsed.
type function struct {
	addr, end Address // end == addr: the size is not known
	name      uint32  // offset in the string table strs[tab]
	tab       uint8
	rank      uint8 // higher is the better name among aliases
	label     bool  // an untyped label of assembly code
}

// Ranks: how good a name is among several for one address.
const (
	rankLocal = iota
	rankWeak
	rankGlobal
)

// table is the compact form of symbols: entry i covers [base+starts[i], base+starts[i+1]), its name is at names[i] in text.
// An entry named hole covers code that has no symbol.
type table struct {
	base   Address
	starts []uint32
	names  []uint32
	text   *packed
}

const hole = math.MaxUint32

// lookup returns the linkage name of the symbol that covers a.
func (t *table) lookup(a Address) (string, bool) {
	if t == nil || a < t.base || uint64(a-t.base) > math.MaxUint32 {
		return "", false
	}
	i, found := slices.BinarySearch(t.starts, uint32(a-t.base))
	if !found {
		i--
	}
	if i < 0 || t.names[i] == hole {
		return "", false
	}
	return t.text.cstring(t.names[i]), true
}

func (t *table) bytesHeld() int64 {
	if t == nil {
		return 0
	}
	return 4*int64(cap(t.starts)) + 4*int64(cap(t.names)) + t.text.bytesHeld() + 64
}

// symbols reads .symtab, .dynsym and the PLT and returns nil when there is none. skip says which addresses another table
// already names.
func (m *image) symbols(skip func(Address) bool) (*table, error) {
	var all []function
	var strs [][]byte
	var dyn *dynamicSymbols
	for i := range m.sections {
		s := &m.sections[i]
		if s.typ != elf.SHT_SYMTAB && s.typ != elf.SHT_DYNSYM {
			continue
		}
		if !m.inFile(s) || uint64(s.link) >= uint64(len(m.sections)) || !m.inFile(&m.sections[s.link]) || len(strs) == 4 {
			continue
		}
		link := m.sections[s.link]
		tab, err := m.src.bytes(link.off, link.size, maxStrtab, "symbol names")
		if err != nil {
			return nil, err
		}
		strs = append(strs, tab)
		var each func(name uint32)
		if s.typ == elf.SHT_DYNSYM {
			dyn = &dynamicSymbols{tab: uint8(len(strs) - 1)}
			each = func(name uint32) { dyn.names = append(dyn.names, name) }
		}
		if all, err = m.readSymbols(all, s, tab, uint8(len(strs)-1), skip, each); err != nil {
			return nil, err
		}
	}
	if dyn != nil {
		var err error
		if all, strs, err = m.pltSymbols(all, strs, dyn); err != nil {
			return nil, err
		}
	}
	return compact(all, strs, m.codeEnds())
}

// readSymbols appends the functions of one symbol table to all and tells each the names of all its symbols, code or not.
func (m *image) readSymbols(all []function, s *section, tab []byte, tabIndex uint8, skip func(Address) bool,
	each func(name uint32)) ([]function, error) {
	entry := uint64(16)
	if m.class64 {
		entry = 24
	}
	if s.size > maxSymtab {
		return nil, &FormatError{s.off, "symbol table larger than the limit"}
	}
	var rest []byte // of an entry that two pieces share
	one := func(b []byte) {
		if each != nil {
			each(binary.LittleEndian.Uint32(b))
		}
		f, ok := m.function(b, tab)
		if ok && len(all) < maxFunctions && (skip == nil || !skip(f.addr)) {
			f.tab = tabIndex
			all = append(all, f)
		}
	}
	err := m.src.stream(s.off, s.size-s.size%entry, "symbols", func(b []byte) error {
		if len(rest) > 0 {
			k := int(entry) - len(rest)
			rest = append(rest, b[:k]...)
			b = b[k:]
			one(rest)
			rest = rest[:0]
		}
		for ; uint64(len(b)) >= entry; b = b[entry:] {
			one(b)
		}
		rest = append(rest, b...)
		return nil
	})
	return all, err
}

// function reads one symbol table entry; false means that it names no code.
func (m *image) function(b []byte, tab []byte) (function, bool) {
	le := binary.LittleEndian
	var name uint32
	var info byte
	var shndx uint16
	var value, size uint64
	if m.class64 {
		name, info, shndx, value, size = le.Uint32(b), b[4], le.Uint16(b[6:]), le.Uint64(b[8:]), le.Uint64(b[16:])
	} else {
		name, value, size, info, shndx = le.Uint32(b), uint64(le.Uint32(b[4:])), uint64(le.Uint32(b[8:])), b[12], le.Uint16(b[14:])
	}
	if m.machine == elf.EM_ARM {
		value &^= 1 // the Thumb bit
	}
	f := function{addr: Address(value), end: Address(value), name: name}
	switch elf.ST_TYPE(info) {
	case elf.STT_FUNC, elf.STT_GNU_IFUNC:
	case elf.STT_NOTYPE:
		f.label = true
	default:
		return f, false
	}
	if elf.SectionIndex(shndx) == elf.SHN_UNDEF || uint64(name) >= uint64(len(tab)) || tab[name] == 0 {
		return f, false
	}
	// The section, where there is one, bounds the symbol and says whether it is code; absolute and extended indices
	// leave it to the segments.
	limit := Address(math.MaxUint64)
	if int(shndx) < len(m.sections) {
		s := &m.sections[shndx]
		if !s.exec() || f.addr < s.addr || uint64(f.addr-s.addr) >= s.size {
			return f, false
		}
		if s.addr+Address(s.size) > s.addr {
			limit = s.addr + Address(s.size)
		}
	} else if f.label || !m.executable(f.addr) {
		return f, false
	}
	if f.label && mappingSymbol(tab[name:]) {
		return f, false
	}
	if size > 0 && value+size > value {
		f.end = min(Address(value+size), limit)
	}
	switch elf.ST_BIND(info) {
	case elf.STB_GLOBAL, elf.STB_LOOS: // STB_LOOS is STB_GNU_UNIQUE
		f.rank = rankGlobal
	case elf.STB_WEAK:
		f.rank = rankWeak
	}
	return f, true
}

// mappingSymbol tells the markers $a, $d, $t and $x, also with a suffix ($x.12), that ARM compilers put between code and data.
func mappingSymbol(name []byte) bool {
	return len(name) >= 3 && name[0] == '$' && strings.IndexByte("adtx", name[1]) >= 0 && (name[2] == 0 || name[2] == '.')
}

// codeEnds returns where executable sections and segments end, sorted.
func (m *image) codeEnds() []Address {
	var ends []Address
	for i := range m.sections {
		if s := &m.sections[i]; s.exec() {
			ends = append(ends, s.addr+Address(s.size))
		}
	}
	for _, s := range m.segments {
		if s.exec {
			ends = append(ends, s.vaddr+Address(s.filesz))
		}
	}
	slices.Sort(ends)
	return ends
}
