package symbol

import (
	"debug/elf"
	"io"
	"slices"
)

// Layout is where an ELF file keeps what: for packages that read tables of it which are not symbols. It is immutable and
// holds no file open.
type Layout struct {
	Machine elf.Machine
	Class64 bool
	Entry   Address // where the program begins
	// Frames is .eh_frame_hdr as the program headers have it, which survive strip; zero if there is none.
	Frames Range

	size     uint64
	segments []segment
	sections []section
	golang   *GoFunctions
}

// Range is a piece of a file, which may be loaded.
type Range struct {
	Address    Address // where it is loaded; 0 for what is not
	Offset     FileOffset
	Size       uint64
	Exec       bool // it is loaded as code
	Compressed bool // SHF_COMPRESSED: the bytes cannot be read as they are
}

// End is the first address behind r.
func (r Range) End() Address { return r.Address + Address(r.Size) }

// ReadLayout reads the headers of the ELF file of size bytes at r, and of a Go program those of its pclntab. The error is
// [ErrNotELF], a *[FormatError], or what reading returned.
func ReadLayout(r io.ReaderAt, size int64) (*Layout, error) {
	src := newSource(r, size)
	src.sum = nil
	m, err := newImage(src)
	if err != nil {
		return nil, err
	}
	l := &Layout{Machine: m.machine, Class64: m.class64, Entry: m.entry, size: src.size, segments: m.segments, sections: m.sections}
	for _, s := range m.segments {
		if m.frames.n > 0 && m.frames.off >= s.off && m.frames.off-s.off < s.filesz && m.frames.n <= s.filesz-(m.frames.off-s.off) {
			l.Frames = Range{Address: s.vaddr + Address(m.frames.off-s.off), Offset: FileOffset(m.frames.off), Size: m.frames.n}
			break
		}
	}
	if l.golang, err = m.goFunctions(); err != nil {
		if err := ignoreFormat(err); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// Section returns the first section of that name whose bytes are in the file.
func (l *Layout) Section(name string) (Range, bool) {
	for i := range l.sections {
		if s := &l.sections[i]; s.name == name && s.typ != elf.SHT_NOBITS && s.off <= l.size && s.size <= l.size-s.off {
			return s.rangeOf(), true
		}
	}
	return Range{}, false
}

func (s *section) rangeOf() Range {
	r := Range{Offset: FileOffset(s.off), Size: s.size, Exec: s.exec(), Compressed: s.flags&elf.SHF_COMPRESSED != 0}
	if s.flags&elf.SHF_ALLOC != 0 {
		r.Address = s.addr
	}
	return r
}

// Segment returns the loaded piece of the file that a lies in, as far as it has bytes there.
func (l *Layout) Segment(a Address) (Range, bool) {
	i := slices.IndexFunc(l.segments, func(s segment) bool { return a >= s.vaddr && uint64(a-s.vaddr) < s.filesz })
	if i < 0 {
		return Range{}, false
	}
	s := &l.segments[i]
	return Range{Address: s.vaddr, Offset: FileOffset(s.off), Size: s.filesz, Exec: s.exec}, true
}

// Code returns the pieces of the file that are loaded as code, in the order of the program headers.
func (l *Layout) Code() []Range {
	var code []Range
	for _, s := range l.segments {
		if s.exec {
			code = append(code, Range{Address: s.vaddr, Offset: FileOffset(s.off), Size: s.filesz, Exec: true})
		}
	}
	return code
}

// Text returns the sections of code, in the order of the section headers; if there are none, as Code. Some linkers put data into the
// segment of the code.
func (l *Layout) Text() []Range {
	var text []Range
	for i := range l.sections {
		if s := &l.sections[i]; s.exec() && s.typ != elf.SHT_NOBITS && s.addr+Address(s.size) >= s.addr {
			text = append(text, s.rangeOf())
		}
	}
	if len(text) == 0 {
		return l.Code()
	}
	return text
}

// Go returns the Go functions of the file, nil if it has none.
func (l *Layout) Go() *GoFunctions { return l.golang }

// Bytes is the memory that l occupies.
func (l *Layout) Bytes() int64 {
	n := int64(256 + 40*cap(l.segments) + 80*cap(l.sections))
	for i := range l.sections {
		n += int64(len(l.sections[i].name))
	}
	return n
}

// Reader returns a reader of the file that l describes, or of what is now in its place.
func (l *Layout) Reader(r io.ReaderAt) *Reader {
	return &Reader{layout: l, page: newPagerOf(&source{r: r, size: l.size}, smallPage)}
}

// Reader reads pieces of a file through a window of pages, within the limit of bytes that a parse may read. It is for one
// goroutine.
type Reader struct {
	layout *Layout
	page   *pager
}

// ReadAddress returns up to n bytes from address a on, fewer where the segment or the file ends, none where nothing is
// loaded. They are valid until the next call.
func (r *Reader) ReadAddress(a Address, n uint64) []byte {
	s, ok := r.layout.Segment(a)
	if !ok {
		return nil
	}
	d := uint64(a - s.Address)
	return r.page.read(uint64(s.Offset)+d, min(n, s.Size-d))
}

// ReadOffset returns up to n bytes at off in the file, fewer at its end. They are valid until the next call.
func (r *Reader) ReadOffset(off FileOffset, n uint64) []byte { return r.page.read(uint64(off), n) }

// Err says why reads came back short, if not for the end of the file or of a segment.
func (r *Reader) Err() error { return r.page.err }

// BytesRead is how many bytes of the file were read.
func (r *Reader) BytesRead() uint64 { return r.page.src.read }
