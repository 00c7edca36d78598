package symbol

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// Limits on what a file may claim. Each is far above anything a linker was seen to write.
const (
	maxSegments  = 128       // program headers; linkers write about a dozen
	maxSections  = 16 << 10  // sections; -ffunction-sections only matters to .o files, which nobody executes
	maxNoteBytes = 64 << 10  // one PT_NOTE segment
	maxShstrtab  = 4 << 20   // section names
	maxName      = 16 << 10  // one symbol name; longer ones are cut
	maxBuildID   = 64        // bytes; GNU ld writes 20, Go's --build-id up to 20, others 8 or 16
	maxSymtab    = 128 << 20 // .symtab: 5.6 million symbols
)

// FileOffset is an offset in a file.
type FileOffset uint64

// Address is an ELF virtual address: what the file itself calls the place, before the kernel moved it (PIE).
type Address uint64

// segment is a PT_LOAD program header.
type segment struct {
	off, filesz uint64
	vaddr       Address
	exec, write bool
}

// section is a section header.
type section struct {
	name       string
	typ        elf.SectionType
	flags      elf.SectionFlag
	addr       Address
	off, size  uint64
	link, info uint32
}

func (s *section) exec() bool { return s.flags&elf.SHF_EXECINSTR != 0 && s.flags&elf.SHF_ALLOC != 0 }

// image is the frame of an ELF file: its headers and notes, and the source to read more from.
type image struct {
	src      *source
	class64  bool
	machine  elf.Machine
	segments []segment
	sections []section
	entry    Address
	frames   span // .eh_frame_hdr, as PT_GNU_EH_FRAME has it; in the file
	buildID  string
	goNote   bool // a note named "Go" is there: the file is a Go program
}

// newImage reads the headers. Only little-endian files are read: nothing else runs where we run.
func newImage(src *source) (*image, error) {
	if src.size < 52 {
		return nil, ErrNotELF
	}
	head := make([]byte, min(src.size, 64))
	if err := src.fill(head, 0, "ELF header"); err != nil {
		return nil, err
	}
	if string(head[:4]) != elf.ELFMAG {
		return nil, ErrNotELF
	}
	if elf.Data(head[elf.EI_DATA]) != elf.ELFDATA2LSB {
		return nil, &FormatError{elf.EI_DATA, "ELF file that is not little-endian"}
	}
	m := &image{src: src}
	le := binary.LittleEndian
	m.machine = elf.Machine(le.Uint16(head[18:]))
	var phoff, shoff uint64
	var phentsize, phnum, shentsize, shnum, shstrndx uint16
	switch elf.Class(head[elf.EI_CLASS]) {
	case elf.ELFCLASS64:
		if len(head) < 64 {
			return nil, &FormatError{0, "ELF header cut short"}
		}
		m.class64 = true
		m.entry = Address(le.Uint64(head[24:]))
		phoff, shoff = le.Uint64(head[32:]), le.Uint64(head[40:])
		phentsize, phnum = le.Uint16(head[54:]), le.Uint16(head[56:])
		shentsize, shnum, shstrndx = le.Uint16(head[58:]), le.Uint16(head[60:]), le.Uint16(head[62:])
	case elf.ELFCLASS32:
		m.entry = Address(le.Uint32(head[24:]))
		phoff, shoff = uint64(le.Uint32(head[28:])), uint64(le.Uint32(head[32:]))
		phentsize, phnum = le.Uint16(head[42:]), le.Uint16(head[44:])
		shentsize, shnum, shstrndx = le.Uint16(head[46:]), le.Uint16(head[48:]), le.Uint16(head[50:])
	default:
		return nil, &FormatError{elf.EI_CLASS, "unknown ELF class"}
	}
	if err := m.readSegments(phoff, uint64(phentsize), uint64(phnum)); err != nil {
		return nil, err
	}
	if err := m.readSections(shoff, uint64(shentsize), uint64(shnum), uint64(shstrndx)); err != nil {
		return nil, err
	}
	// A file that nobody executes, like what dwz writes, has no program headers.
	if s := m.section(".note.gnu.build-id"); m.buildID == "" && m.inFile(s) && s.size <= maxNoteBytes {
		b, err := m.src.bytes(s.off, s.size, maxNoteBytes, "build id")
		if err != nil {
			return nil, err
		}
		m.readNotes(b)
	}
	return m, nil
}

// readSegments reads the program headers and the notes they point to.
func (m *image) readSegments(off, entsize, num uint64) error {
	if num == 0 {
		return nil
	}
	want := uint64(32)
	if m.class64 {
		want = 56
	}
	if entsize != want {
		return &FormatError{off, fmt.Sprintf("program header entries of %d bytes instead of %d", entsize, want)}
	}
	if num > maxSegments {
		return &FormatError{off, fmt.Sprintf("%d program headers, more than %d", num, maxSegments)}
	}
	b, err := m.src.bytes(off, num*entsize, maxSegments*56, "program headers")
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	var notes []span
	for ; len(b) > 0; b = b[entsize:] {
		var flags elf.ProgFlag
		var s segment
		typ := elf.ProgType(le.Uint32(b))
		if m.class64 {
			flags = elf.ProgFlag(le.Uint32(b[4:]))
			s.off, s.vaddr, s.filesz = le.Uint64(b[8:]), Address(le.Uint64(b[16:])), le.Uint64(b[32:])
		} else {
			flags = elf.ProgFlag(le.Uint32(b[24:]))
			s.off, s.vaddr, s.filesz = uint64(le.Uint32(b[4:])), Address(le.Uint32(b[8:])), uint64(le.Uint32(b[16:]))
		}
		s.exec, s.write = flags&elf.PF_X != 0, flags&elf.PF_W != 0
		switch typ {
		case elf.PT_LOAD:
			if s.off+s.filesz < s.off || uint64(s.vaddr)+s.filesz < uint64(s.vaddr) {
				return &FormatError{off, "PT_LOAD that wraps around"}
			}
			if s.filesz > 0 {
				m.segments = append(m.segments, s)
			}
		case elf.PT_GNU_EH_FRAME:
			m.frames = span{s.off, s.filesz}
		case elf.PT_NOTE:
			notes = append(notes, span{s.off, s.filesz})
		}
	}
	for _, n := range notes {
		if n.n > maxNoteBytes || m.src.check(n.off, n.n, "notes") != nil {
			continue // core-dump style notes or a lie: no build id from here, the symbols may still be good
		}
		b, err := m.src.bytes(n.off, n.n, maxNoteBytes, "notes")
		if err != nil {
			return err
		}
		m.readNotes(b)
	}
	return nil
}

// readNotes looks through one note segment for the GNU build id and for Go's note.
func (m *image) readNotes(b []byte) {
	le := binary.LittleEndian
	for len(b) >= 12 {
		namesz, descsz, typ := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:])), le.Uint32(b[8:])
		b = b[12:]
		name4, desc4 := (namesz+3)&^3, (descsz+3)&^3
		if name4 > uint64(len(b)) || descsz > uint64(len(b))-name4 {
			return
		}
		name, desc := b[:namesz], b[name4:name4+descsz]
		switch {
		case string(name) == "GNU\x00" && typ == 3 && descsz > 0 && descsz <= maxBuildID && m.buildID == "":
			m.buildID = hex.EncodeToString(desc)
		case string(name) == "Go\x00\x00" && typ == 4:
			m.goNote = true
		}
		b = b[min(name4+desc4, uint64(len(b))):]
	}
}

// readSections reads the section headers. A file without them, or whose headers lie, is still a program that runs: it has
// its segments and its dynamic symbols.
func (m *image) readSections(off, entsize, num, strndx uint64) error {
	want := uint64(40)
	if m.class64 {
		want = 64
	}
	if off == 0 || num == 0 || num > maxSections || entsize != want || m.src.check(off, num*entsize, "section headers") != nil {
		return nil
	}
	b, err := m.src.bytes(off, num*entsize, maxSections*64, "section headers")
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	names := make([]uint32, 0, num)
	sections := make([]section, 0, num)
	for ; len(b) > 0; b = b[entsize:] {
		var s section
		names = append(names, le.Uint32(b))
		s.typ = elf.SectionType(le.Uint32(b[4:]))
		if m.class64 {
			s.flags, s.addr = elf.SectionFlag(le.Uint64(b[8:])), Address(le.Uint64(b[16:]))
			s.off, s.size = le.Uint64(b[24:]), le.Uint64(b[32:])
			s.link, s.info = le.Uint32(b[40:]), le.Uint32(b[44:])
		} else {
			s.flags, s.addr = elf.SectionFlag(le.Uint32(b[8:])), Address(le.Uint32(b[12:]))
			s.off, s.size = uint64(le.Uint32(b[16:])), uint64(le.Uint32(b[20:]))
			s.link, s.info = le.Uint32(b[24:]), le.Uint32(b[28:])
		}
		sections = append(sections, s)
	}
	if strndx < num {
		str := sections[strndx]
		if str.size <= maxShstrtab && m.src.check(str.off, str.size, "section names") == nil {
			tab, err := m.src.bytes(str.off, str.size, maxShstrtab, "section names")
			if err != nil {
				return err
			}
			for i := range sections {
				sections[i].name = cstringAt(tab, uint64(names[i]), 256)
			}
		}
	}
	m.sections = sections
	return nil
}

// cstringAt returns the zero-terminated string at off in tab, at most limit bytes of it; "" when off is outside.
func cstringAt(tab []byte, off uint64, limit int) string {
	if off >= uint64(len(tab)) {
		return ""
	}
	tab = tab[off:min(uint64(len(tab)), off+uint64(limit))]
	if i := bytes.IndexByte(tab, 0); i >= 0 {
		tab = tab[:i]
	}
	return string(tab)
}

// section returns the first section of that name, nil if there is none.
func (m *image) section(name string) *section {
	for i := range m.sections {
		if m.sections[i].name == name {
			return &m.sections[i]
		}
	}
	return nil
}

// inFile says whether [off, off+n) of s lies in the file; .bss-like sections have no bytes there.
func (m *image) inFile(s *section) bool {
	return s != nil && s.typ != elf.SHT_NOBITS && s.off <= m.src.size && s.size <= m.src.size-s.off
}

// fileOffset is the inverse of Object.Address: where in the file the bytes at a lie, and how many follow in that segment.
func (m *image) fileOffset(a Address) (off, n uint64, ok bool) {
	for _, s := range m.segments {
		if a >= s.vaddr && uint64(a-s.vaddr) < s.filesz {
			d := uint64(a - s.vaddr)
			return s.off + d, s.filesz - d, true
		}
	}
	return 0, 0, false
}

// at reads n bytes at virtual address a.
func (m *image) at(a Address, n, limit uint64, what string) ([]byte, error) {
	off, have, ok := m.fileOffset(a)
	if !ok || n > have {
		return nil, &FormatError{uint64(a), fmt.Sprintf("%s of %d bytes at an address without file bytes", what, n)}
	}
	return m.src.bytes(off, n, limit, what)
}

// executable says whether a lies in an executable segment.
func (m *image) executable(a Address) bool {
	for _, s := range m.segments {
		if s.exec && a >= s.vaddr && uint64(a-s.vaddr) < s.filesz {
			return true
		}
	}
	return false
}
