package symbol

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

// testELF describes a small ELF64 file; build writes it. Offsets and addresses that are not set follow one another.
type testELF struct {
	machine  elf.Machine
	segments []elf.Prog64
	sections []testSection
}

type testSection struct {
	name string
	elf.Section64
	data []byte
}

type testSymbol struct {
	name        string
	value, size uint64
	info        byte // elf.ST_INFO
	section     uint16
}

func info(bind elf.SymBind, typ elf.SymType) byte { return byte(bind)<<4 | byte(typ) }

var (
	globalFunc = info(elf.STB_GLOBAL, elf.STT_FUNC)
	localFunc  = info(elf.STB_LOCAL, elf.STT_FUNC)
	weakFunc   = info(elf.STB_WEAK, elf.STT_FUNC)
	localLabel = info(elf.STB_LOCAL, elf.STT_NOTYPE)
)

// symtabSections returns the sections of a symbol table whose string table is the section after it, at index link.
func symtabSections(typ elf.SectionType, link uint32, symbols []testSymbol) []testSection {
	tab, names := new(bytes.Buffer), []byte{0}
	put(tab, elf.Sym64{})
	for _, s := range symbols {
		put(tab, elf.Sym64{Name: uint32(len(names)), Info: s.info, Shndx: s.section, Value: s.value, Size: s.size})
		names = append(append(names, s.name...), 0)
	}
	return []testSection{
		{name: ".symtab", Section64: elf.Section64{Type: uint32(typ), Link: link, Entsize: 24}, data: tab.Bytes()},
		{name: ".strtab", Section64: elf.Section64{Type: uint32(elf.SHT_STRTAB)}, data: names},
	}
}

func put(w *bytes.Buffer, v any) {
	if err := binary.Write(w, binary.LittleEndian, v); err != nil {
		panic(err) // a fixed-size struct into memory
	}
}

// text is section 1 of most tests: executable, at the given address and offset.
func textSection(addr, off, size uint64) testSection {
	return testSection{name: ".text", Section64: elf.Section64{
		Type: uint32(elf.SHT_PROGBITS), Flags: uint64(elf.SHF_ALLOC | elf.SHF_EXECINSTR), Addr: addr, Off: off, Size: size,
	}}
}

func load(flags elf.ProgFlag, off, vaddr, size uint64) elf.Prog64 {
	return elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(flags), Off: off, Vaddr: vaddr, Filesz: size, Memsz: size, Align: 4096}
}

// note returns one note.
func note(name string, typ uint32, desc []byte) []byte {
	b := new(bytes.Buffer)
	put(b, []uint32{uint32(len(name) + 1), uint32(len(desc)), typ})
	b.WriteString(name + "\x00")
	b.Write(make([]byte, -b.Len()&3))
	b.Write(desc)
	b.Write(make([]byte, -b.Len()&3))
	return b.Bytes()
}

// build writes the file. Sections get the numbers 1, 2, …; those with data and no offset are placed after the headers, and
// segments with Off == auto at the same place as the section of the same address.
func (e testELF) build() []byte {
	shstr := []byte{0}
	sections := append([]testSection{{}}, e.sections...)
	sections = append(sections, testSection{name: ".shstrtab", Section64: elf.Section64{Type: uint32(elf.SHT_STRTAB)}})
	for i := range sections {
		if i > 0 {
			sections[i].Name = uint32(len(shstr))
			shstr = append(append(shstr, sections[i].name...), 0)
		}
	}
	sections[len(sections)-1].data = shstr
	off := uint64(64 + 56*len(e.segments))
	end := off
	for i := range sections {
		s := &sections[i]
		if s.data != nil {
			if s.Off == 0 {
				s.Off, off = off, off+uint64(len(s.data)+7)&^7
			}
			if s.Size == 0 {
				s.Size = uint64(len(s.data))
			}
			end = max(end, s.Off+uint64(len(s.data)))
		} else if s.Type != uint32(elf.SHT_NOBITS) && s.Size < 1<<20 {
			end = max(end, s.Off+s.Size)
		}
	}
	for _, p := range e.segments {
		if p.Filesz < 1<<20 {
			end = max(end, p.Off+p.Filesz)
		}
	}
	shoff := (end + 7) &^ 7
	file := make([]byte, shoff)
	h := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1}, Type: uint16(elf.ET_DYN),
		Machine: uint16(e.machine), Version: 1, Phoff: 64, Shoff: shoff, Ehsize: 64, Phentsize: 56, Phnum: uint16(len(e.segments)),
		Shentsize: 64, Shnum: uint16(len(sections)), Shstrndx: uint16(len(sections) - 1),
	}
	if len(e.segments) == 0 {
		h.Phoff = 0
	}
	b := new(bytes.Buffer)
	put(b, h)
	for _, p := range e.segments {
		put(b, p)
	}
	copy(file, b.Bytes())
	for _, s := range sections {
		if s.Off < uint64(len(file)) {
			copy(file[s.Off:], s.data)
		}
	}
	b.Reset()
	for _, s := range sections {
		put(b, s.Section64)
	}
	return append(file, b.Bytes()...)
}
