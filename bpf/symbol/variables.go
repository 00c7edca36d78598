package symbol

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
)

const (
	// maxVariables is how many variables of one file are kept; V8 has some 500 that describe it.
	maxVariables = 4 << 10
	// maxVariableName bounds the names that are compared, in bytes.
	maxVariableName = 256
	// maxVariableBytes bounds what is read of one variable.
	maxVariableBytes = 64 << 10
)

// Variables are chosen variables of an ELF file, by name, with the values that the file gives them. They are immutable.
type Variables struct {
	m  *image
	at map[string]variable
}

// variable is where one is.
type variable struct {
	address Address
	size    uint64
}

// ReadVariables reads the symbols of variables (STT_OBJECT) for whose names want is true from size bytes of an ELF file at r: all that
// .symtab and .dynsym have. r is read again by [Variables.Bytes].
func ReadVariables(r io.ReaderAt, size int64, want func(name []byte) bool) (*Variables, error) {
	src := newSource(r, size)
	src.sum = nil // nobody compares what was read
	m, err := newImage(src)
	if err != nil {
		return nil, err
	}
	v := &Variables{m: m, at: map[string]variable{}}
	if !m.class64 {
		return v, nil
	}
	names := newPager(src)
	for i := range m.sections {
		s := &m.sections[i]
		if s.typ != elf.SHT_SYMTAB && s.typ != elf.SHT_DYNSYM {
			continue
		}
		if !m.inFile(s) || uint64(s.link) >= uint64(len(m.sections)) || !m.inFile(&m.sections[s.link]) {
			continue
		}
		if s.size > maxSymtab {
			return nil, &FormatError{s.off, "symbol table larger than the limit"}
		}
		tab := &m.sections[s.link]
		err := src.records(s.off, s.size, 24, "symbols", func(b []byte) {
			le := binary.LittleEndian
			name := uint64(le.Uint32(b))
			if elf.ST_TYPE(b[4]) != elf.STT_OBJECT || le.Uint16(b[6:]) == uint16(elf.SHN_UNDEF) || name >= tab.size || len(v.at) == maxVariables {
				return
			}
			text := names.cstring(tab.off+name, min(tab.off+tab.size, tab.off+name+maxVariableName))
			if want(text) {
				v.at[string(text)] = variable{Address(le.Uint64(b[8:])), le.Uint64(b[16:])}
			}
		})
		if err != nil {
			return nil, fmt.Errorf("read the variables' names: %w", err)
		}
	}
	return v, nil
}

// Len is how many there are.
func (v *Variables) Len() int { return len(v.at) }

// Has says whether there is one of that name.
func (v *Variables) Has(name string) bool {
	_, ok := v.at[name]
	return ok
}

// Bytes reads a variable's value. ok is false when there is none of that name, or it has no bytes in the file: variables that begin as
// zero have none, and are as many zeroes as they are large.
func (v *Variables) Bytes(name string) (value []byte, ok bool) {
	at, ok := v.at[name]
	if !ok || at.size > maxVariableBytes {
		return nil, false
	}
	if b, err := v.m.at(at.address, at.size, maxVariableBytes, "variable "+name); err == nil {
		return b, true
	}
	for i := range v.m.sections {
		s := &v.m.sections[i]
		if s.typ == elf.SHT_NOBITS && s.flags&elf.SHF_TLS == 0 && at.address >= s.addr && uint64(at.address-s.addr) < s.size {
			return make([]byte, at.size), true
		}
	}
	return nil, false
}

// Int reads a variable of 4 bytes, a C int.
func (v *Variables) Int(name string) (int32, bool) {
	b, ok := v.Bytes(name)
	if !ok || len(b) != 4 {
		return 0, false
	}
	return int32(binary.LittleEndian.Uint32(b)), true
}
