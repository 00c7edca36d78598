package symbol

import (
	"bytes"
	"compress/zlib"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Limits of one reading of debug information. It is read for a handful of addresses at a time, so what takes more than this is a
// file that is too large for us or one that wants to keep us busy; its functions keep the names of the symbol table.
const (
	// maxDebugRead is how many bytes of one file are read: the compile units of a few dozen functions, and the tables that
	// lead to them.
	maxDebugRead = 192 << 20
	// maxDebugUnpacked is how many bytes compressed sections may have together when they are unpacked.
	maxDebugUnpacked = 48 << 20
	// maxDebugWork is how many attributes and opcodes of line programs are looked at, about a second of work: an attribute may
	// take no byte at all.
	maxDebugWork = 1 << 25
	// sliceRead and sliceWork are what one go may take; what it has begun, it ends. The rest is left for the next one, so that
	// nothing of any size keeps a CPU or an open file for long: on one CPU that is about a tenth of a second.
	sliceRead, sliceWork = 16 << 20, 1 << 21
	// cursorBytes is read ahead at each place where tables are read, scanAhead where only the first few bytes matter.
	cursorBytes, scanAhead = 4 << 10, 256
)

// errDebugLimit says that a file would take more than the limits above.
var errDebugLimit = errors.New("debug information larger than the limits")

// debugSection is a section of debug information, in the file or unpacked in memory. The zero value is empty.
type debugSection struct {
	name string
	r    io.ReaderAt
	off  int64
	size uint64
}

// debugBudget is what one reading may still cost, in all files that take part in it.
type debugBudget struct {
	left     int64 // bytes that may still be read
	unpacked int64 // bytes that may still be unpacked
	work     int   // attributes and opcodes that may still be looked at

	// What was left when the reading began, after sections were unpacked: see tired.
	leftAtFirst int64
	workAtFirst int
}

// debugFile is the debug information of one ELF file while it is read. Not safe for concurrent use.
type debugFile struct {
	*debugBudget
	dwo bool // a split file: its sections are called .debug_info.dwo and so on

	info, abbrev, line, str, lineStr, ranges, rnglists, addr, strOffsets, aranges debugSection

	heads   []uint64 // where units begin, in order
	scanned uint64   // how far they are known
	abbrevs map[uint64]abbrevTable
	opened  map[uint64]*unit // that entries of other units refer to

	// supplement finds the supplementary file, which parts of this file's information were moved to; nil if that was tried in vain,
	// or if the file has none.
	supplement func() *debugFile
}

// hasDebugInfo reports whether the file has DWARF that we would read.
func (m *image) hasDebugInfo() bool {
	for _, name := range []string{".debug_info", ".zdebug_info"} {
		if s := m.section(name); m.inFile(s) && s.size > 0 {
			return true
		}
	}
	return false
}

// newDebugBudget is what one reading may cost.
func newDebugBudget() *debugBudget {
	return &debugBudget{left: maxDebugRead, unpacked: maxDebugUnpacked, work: maxDebugWork}
}

// newDebugFile finds the sections, or those of a split file. Compressed ones are unpacked: all other means of finding a place in
// them would read as much.
func newDebugFile(m *image, r io.ReaderAt, budget *debugBudget, dwo bool) (*debugFile, error) {
	d := &debugFile{debugBudget: budget, dwo: dwo, abbrevs: map[uint64]abbrevTable{}, opened: map[uint64]*unit{}}
	d.supplement = func() *debugFile { return nil }
	suffix := ""
	if dwo {
		suffix = ".dwo"
	}
	for _, s := range []struct {
		name string
		to   *debugSection
	}{
		{"info", &d.info}, {"abbrev", &d.abbrev}, {"line", &d.line}, {"str", &d.str}, {"line_str", &d.lineStr}, {"ranges", &d.ranges},
		{"rnglists", &d.rnglists}, {"addr", &d.addr}, {"str_offsets", &d.strOffsets}, {"aranges", &d.aranges},
	} {
		if err := d.open(m, r, s.name+suffix, s.to); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func (d *debugFile) open(m *image, r io.ReaderAt, name string, to *debugSection) error {
	s, gnu := m.section(".debug_"+name), false
	if s == nil {
		s, gnu = m.section(".zdebug_"+name), true
	}
	return d.openSection(m, r, s, gnu, to)
}

// openSection opens a section, with gnu one that says .zdebug.
func (d *debugFile) openSection(m *image, r io.ReaderAt, s *section, gnu bool, to *debugSection) error {
	if !m.inFile(s) {
		return nil
	}
	*to = debugSection{name: s.name, r: r, off: int64(s.off), size: s.size}
	if !gnu && s.flags&elf.SHF_COMPRESSED == 0 {
		return nil
	}
	plain, err := d.unpack(m, *to, gnu)
	if err != nil {
		return err
	}
	*to = debugSection{name: s.name, r: bytes.NewReader(plain), size: uint64(len(plain))}
	return nil
}

// unpack reads a compressed section: Elf64_Chdr (gABI, "Compression Header") or "ZLIB" and a big-endian size (.zdebug, GNU).
func (d *debugFile) unpack(m *image, s debugSection, gnu bool) ([]byte, error) {
	headBytes := uint64(12)
	if m.class64 && !gnu {
		headBytes = 24
	}
	head := make([]byte, headBytes)
	if s.size < headBytes {
		return nil, &FormatError{uint64(s.off), s.name + " too short for its compression header"}
	}
	if err := d.readAt(s, head, 0); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	kind, size := elf.COMPRESS_ZLIB, uint64(0)
	switch {
	case gnu:
		if string(head[:4]) != "ZLIB" {
			return nil, &FormatError{uint64(s.off), s.name + " without the word ZLIB"}
		}
		size = binary.BigEndian.Uint64(head[4:])
	case m.class64:
		kind, size = elf.CompressionType(le.Uint32(head)), le.Uint64(head[8:])
	default:
		kind, size = elf.CompressionType(le.Uint32(head)), uint64(le.Uint32(head[4:]))
	}
	if size > uint64(d.unpacked) || s.size > uint64(d.left) {
		return nil, fmt.Errorf("%w: %s has %d bytes", errDebugLimit, s.name, size)
	}
	d.unpacked -= int64(size)
	d.left -= int64(s.size)
	packed := io.NewSectionReader(s.r, s.off+int64(headBytes), int64(s.size-headBytes))
	var plain io.Reader
	switch kind {
	case elf.COMPRESS_ZLIB:
		z, err := zlib.NewReader(packed)
		if err != nil {
			return nil, &FormatError{uint64(s.off), fmt.Sprintf("%s: %v", s.name, err)}
		}
		defer z.Close()
		plain = z
	case elf.COMPRESS_ZSTD:
		z, err := zstd.NewReader(packed, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, &FormatError{uint64(s.off), fmt.Sprintf("%s: %v", s.name, err)}
		}
		defer z.Close()
		plain = z
	default:
		return nil, &FormatError{uint64(s.off), fmt.Sprintf("%s: unknown compression %d", s.name, kind)}
	}
	// The result grows with what arrives: a size that nothing stands behind allocates little.
	var b bytes.Buffer
	n, err := io.Copy(&b, io.LimitReader(plain, int64(size)))
	if err == nil && n < int64(size) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, &FormatError{uint64(s.off), fmt.Sprintf("%s: %v", s.name, err)}
	}
	return b.Bytes(), nil
}

// spend takes n from what may still be looked at.
func (b *debugBudget) spend(n int) { b.work -= n }

// begin says that the reading begins.
func (b *debugBudget) begin() { b.leftAtFirst, b.workAtFirst = b.left, b.work }

// tired reports whether so much was done since then that it is time to leave the rest for later.
func (b *debugBudget) tired() bool {
	return b.leftAtFirst-b.left > sliceRead || b.workAtFirst-b.work > sliceWork
}

// spend takes n from what may still be looked at.
func (c *cursor) spend(n int) {
	if c.d.spend(n); c.d.work < 0 && c.err == nil {
		c.err = errDebugLimit
	}
}

// readAt fills p from a section.
func (d *debugFile) readAt(s debugSection, p []byte, at uint64) error {
	if at > s.size || uint64(len(p)) > s.size-at {
		return &FormatError{uint64(s.off) + at, fmt.Sprintf("%d bytes beyond the end of %s", len(p), s.name)}
	}
	if int64(len(p)) > d.left {
		return errDebugLimit
	}
	d.left -= int64(len(p))
	if n, err := s.r.ReadAt(p, s.off+int64(at)); n < len(p) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %s at offset 0x%x: %w", s.name, uint64(s.off)+at, err)
	}
	return nil
}

// cursor reads a section from a place onward. After the first error every read gives zeros; err tells.
type cursor struct {
	d        *debugFile
	s        *debugSection
	pos, end uint64 // in the section
	err      error
	buf      []byte // what was read ahead
	at       uint64 // where buf begins
	dwarf64  bool
}

// cursor returns one that stands at pos and ends at end.
func (d *debugFile) cursor(s *debugSection, pos, end uint64) *cursor {
	c := &cursor{d: d, s: s, pos: pos, end: min(end, s.size)}
	if pos > c.end {
		c.fail("a place beyond the end")
	}
	return c
}

func (c *cursor) fail(what string) {
	if c.err == nil {
		c.err = &FormatError{uint64(c.s.off) + c.pos, c.s.name + ": " + what}
	}
}

// seek moves the cursor; what was read ahead stays of use.
func (c *cursor) seek(pos uint64) {
	if pos > c.end {
		c.fail("a place beyond the end")
		return
	}
	c.pos = pos
}

// left is how many bytes follow; 0 after an error.
func (c *cursor) left() uint64 {
	if c.err != nil {
		return 0
	}
	return c.end - c.pos
}

// take returns the next n bytes, at most cursorBytes of them, valid until the next call; nil after an error.
func (c *cursor) take(n uint64) []byte {
	if c.err != nil {
		return nil
	}
	if n > c.end-c.pos {
		c.fail("cut short")
		return nil
	}
	if c.pos < c.at || c.pos+n > c.at+uint64(len(c.buf)) {
		if cap(c.buf) == 0 {
			c.buf = make([]byte, 0, cursorBytes)
		}
		c.buf, c.at = c.buf[:min(uint64(cap(c.buf)), c.s.size-c.pos)], c.pos
		if err := c.d.readAt(*c.s, c.buf, c.pos); err != nil {
			c.err, c.buf = err, c.buf[:0]
			return nil
		}
	}
	b := c.buf[c.pos-c.at:][:n]
	c.pos += n
	return b
}

func (c *cursor) skip(n uint64) {
	if c.err == nil && n > c.end-c.pos {
		c.fail("cut short")
	}
	if c.err == nil {
		c.pos += n
	}
}

func (c *cursor) u8() uint8 {
	// The way most bytes are read.
	if c.err == nil && c.pos >= c.at && c.pos-c.at < uint64(len(c.buf)) && c.pos < c.end {
		b := c.buf[c.pos-c.at]
		c.pos++
		return b
	}
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

// uint reads a number of n bytes; n is 1 to 8.
func (c *cursor) uint(n uint64) uint64 {
	b := c.take(n)
	var v uint64
	for i := len(b) - 1; i >= 0; i-- {
		v = v<<8 | uint64(b[i])
	}
	return v
}

func (c *cursor) u16() uint64 { return c.uint(2) }
func (c *cursor) u32() uint64 { return c.uint(4) }
func (c *cursor) u64() uint64 { return c.uint(8) }

// offset reads a number of 4 bytes, or of 8 in 64-bit DWARF.
func (c *cursor) offset() uint64 {
	if c.dwarf64 {
		return c.u64()
	}
	return c.u32()
}

// length reads an initial length (DWARF 5 section 7.4) and sets whether offsets have 64 bits. The cursor ends there from now on.
func (c *cursor) length() {
	n := c.u32()
	c.dwarf64 = n == 0xffffffff
	switch {
	case c.dwarf64:
		n = c.u64()
	case n >= 0xfffffff0:
		c.fail("a reserved length")
	}
	if c.err == nil && n > c.end-c.pos {
		c.fail("longer than its section")
	}
	if c.err == nil {
		c.end = c.pos + n
	}
}

func (c *cursor) uleb() uint64 {
	var v uint64
	for shift := 0; ; shift += 7 {
		b := c.u8()
		if shift < 64 {
			v |= uint64(b&0x7f) << shift
		}
		if b < 0x80 {
			return v
		}
		if shift > 126 { // nobody pads that much
			c.fail("an endless number")
			return 0
		}
	}
}

func (c *cursor) sleb() int64 {
	var v int64
	for shift := 0; ; {
		b := c.u8()
		if shift < 64 {
			v |= int64(b&0x7f) << shift
		}
		shift += 7
		if b < 0x80 {
			if shift < 64 && b&0x40 != 0 {
				v |= -1 << shift
			}
			return v
		}
		if shift > 126 {
			c.fail("an endless number")
			return 0
		}
	}
}

// cstring reads a zero-terminated string; what exceeds maxName bytes is left out.
func (c *cursor) cstring() string {
	var out []byte
	for c.err == nil {
		n := min(c.left(), 256)
		if n == 0 {
			c.fail("a string without an end")
			break
		}
		b := c.take(n)
		i := bytes.IndexByte(b, 0)
		if i >= 0 {
			c.pos -= n - uint64(i) - 1
			b = b[:i]
		}
		out = append(out, b[:min(len(b), maxName-len(out))]...)
		if i >= 0 {
			break
		}
	}
	return string(out)
}

// skipString is cstring for a string that nobody wants.
func (c *cursor) skipString() {
	for c.u8() != 0 {
	}
}

// stringAt reads a string of a section; "" if there is none.
func (d *debugFile) stringAt(s *debugSection, off uint64) string {
	if off >= s.size {
		return ""
	}
	c := d.cursor(s, off, s.size)
	c.buf = make([]byte, 0, 256)
	v := c.cstring()
	if c.err != nil {
		return ""
	}
	return v
}
