package symbol

import (
	"debug/elf"
	"encoding/binary"
)

// Symbol is where a symbol's code or data is loaded.
type Symbol struct {
	Address Address
	Size    uint64 // 0: not said
}

// Lookup finds defined symbols by name, functions and data alike: in .dynsym, through the hash table that the dynamic linker uses, so
// that it costs a few small reads in a file that has none of them; and, with all, what is missing then in .symtab, which is read from
// one end to the other. What is not found is not in the result. r is of the file that l describes. The error is what reading returned, not that the file is odd.
func (l *Layout) Lookup(r *Reader, all bool, names ...string) (map[string]Symbol, error) {
	found := make(map[string]Symbol, len(names))
	if !l.Class64 {
		return found, nil
	}
	if t, ok := l.symbolTable(elf.SHT_DYNSYM); ok {
		if hash, ok := l.Section(".gnu.hash"); ok {
			for _, name := range names {
				if s, ok := t.hashed(r, hash, name); ok {
					found[name] = s
				}
			}
		} else {
			t.search(r, found, names)
		}
	}
	if all && len(found) < len(names) {
		if t, ok := l.symbolTable(elf.SHT_SYMTAB); ok {
			t.search(r, found, names)
		}
	}
	return found, r.Err()
}

// nameTable is a symbol table with its strings.
type nameTable struct {
	symbols, names section
	entries        uint64
}

func (l *Layout) symbolTable(typ elf.SectionType) (nameTable, bool) {
	for i := range l.sections {
		s := &l.sections[i]
		if s.typ != typ || s.size > maxSymtab || s.off > l.size || s.size > l.size-s.off || uint64(s.link) >= uint64(len(l.sections)) {
			continue
		}
		if names := l.sections[s.link]; names.off <= l.size && names.size <= l.size-names.off && names.typ == elf.SHT_STRTAB {
			return nameTable{symbols: *s, names: names, entries: s.size / symbolBytes}, true
		}
	}
	return nameTable{}, false
}

const symbolBytes = 24 // Elf64_Sym

// is reports whether symbol number i is defined and has that name.
func (t *nameTable) is(r *Reader, i uint64, name string) (Symbol, bool) {
	if i >= t.entries {
		return Symbol{}, false
	}
	b := r.ReadOffset(FileOffset(t.symbols.off+i*symbolBytes), symbolBytes)
	if len(b) < symbolBytes {
		return Symbol{}, false
	}
	le := binary.LittleEndian
	at, shndx := uint64(le.Uint32(b)), elf.SectionIndex(le.Uint16(b[6:]))
	s := Symbol{Address(le.Uint64(b[8:])), le.Uint64(b[16:])}
	if shndx == elf.SHN_UNDEF || at >= t.names.size || t.names.size-at <= uint64(len(name)) {
		return Symbol{}, false
	}
	text := r.ReadOffset(FileOffset(t.names.off+at), uint64(len(name))+1)
	return s, len(text) == len(name)+1 && string(text[:len(name)]) == name && text[len(name)] == 0
}

// search looks at each symbol.
func (t *nameTable) search(r *Reader, found map[string]Symbol, names []string) {
	left := make([]string, 0, len(names))
	for _, name := range names {
		if _, ok := found[name]; !ok {
			left = append(left, name)
		}
	}
	for i := uint64(0); i < t.entries && len(left) > 0 && r.Err() == nil; i++ {
		for n, name := range left {
			if s, ok := t.is(r, i, name); ok {
				found[name] = s
				left = append(left[:n], left[n+1:]...)
				break
			}
		}
	}
}

// maxHashChain bounds how far one name is looked for: a linker makes chains of a few.
const maxHashChain = 1 << 12

// hashed looks a name up as the dynamic linker does: elf/dl-lookup.c of glibc, "GNU hash".
func (t *nameTable) hashed(r *Reader, hash Range, name string) (Symbol, bool) {
	h := uint32(5381)
	for i := range len(name) {
		h = h*33 + uint32(name[i])
	}
	le := binary.LittleEndian
	word := func(at uint64, n uint64) []byte {
		if at > hash.Size || n > hash.Size-at {
			return nil
		}
		if b := r.ReadOffset(hash.Offset+FileOffset(at), n); uint64(len(b)) == n {
			return b
		}
		return nil
	}
	head := word(0, 16)
	if head == nil {
		return Symbol{}, false
	}
	buckets, first, bloom, shift := le.Uint32(head), le.Uint32(head[4:]), le.Uint32(head[8:]), le.Uint32(head[12:])
	if buckets == 0 || bloom == 0 {
		return Symbol{}, false
	}
	filter := word(16+8*uint64(h/64%bloom), 8)
	if filter == nil {
		return Symbol{}, false
	}
	if bits := le.Uint64(filter); bits>>(h%64)&1 == 0 || bits>>(h>>(shift&31)%64)&1 == 0 {
		return Symbol{}, false
	}
	table := 16 + 8*uint64(bloom)
	b := word(table+4*uint64(h%buckets), 4)
	if b == nil {
		return Symbol{}, false
	}
	i := le.Uint32(b)
	if i < first {
		return Symbol{}, false
	}
	for n := range uint32(maxHashChain) {
		b := word(table+4*uint64(buckets)+4*uint64(i-first)+4*uint64(n), 4)
		if b == nil {
			return Symbol{}, false
		}
		chain := le.Uint32(b)
		if chain|1 == h|1 {
			if s, ok := t.is(r, uint64(i)+uint64(n), name); ok {
				return s, true
			}
		}
		if chain&1 != 0 {
			break
		}
	}
	return Symbol{}, false
}
