package cfi

import (
	"cmp"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"github.com/stoker-profiler/stoker/bpf/symbol"
)

const (
	// maxPadding is the largest hole between two functions that is taken for alignment; larger ones get a row of their own, so
	// that an address in them is refused instead of unwound by the neighbour's rule.
	maxPadding = 15
	// maxInstructions bounds the call frame instructions that are run for one page of text: a page has at most 65,536 places.
	maxInstructions = 1 << 20
)

// Source says where a file's rows come from.
type Source uint8

const (
	// NoTable: the file has no call frame information that this package reads.
	NoTable Source = iota
	// EhFrameHdr: .eh_frame, through the sorted search table of .eh_frame_hdr.
	EhFrameHdr
	// EhFrame: .eh_frame, through an index of our own.
	EhFrame
	// DebugFrame: .debug_frame, through an index of our own.
	DebugFrame

	sources
)

var sourceNames = [sources]string{"none", "eh_frame_hdr", "eh_frame", "debug_frame"}

func (s Source) String() string {
	if s < sources {
		return sourceNames[s]
	}
	return fmt.Sprintf("source %d", uint8(s))
}

// indexed is where an entry is, for files without a search table.
type indexed struct {
	start Address
	off   uint32 // in the section
}

// searchTable is .eh_frame_hdr's: pairs of signed 32-bit distances from the header, of a function and of its entry.
type searchTable struct {
	header  Address
	entries symbol.FileOffset
	n       uint64
}

// File knows where one ELF file keeps its unwind information.
type File struct {
	layout  *symbol.Layout
	arch    arch
	text    []symbol.Range // sorted
	eh      section
	table   searchTable
	ehIndex []indexed // instead of table
	debug   section
	dbIndex []indexed
	plt     []plt // without entries of their own, sorted
	reader  Stats // of Open
}

// Open reads the headers of an ELF file of size bytes and, if its entries cannot be found through .eh_frame_hdr, makes an
// index of them. It is bounded in time and memory whatever the file holds.
//
// The error is [symbol.ErrNotELF], a *[symbol.FormatError], or what reading returned. A file of another machine than x86-64
// and arm64, and one of 32 bits (x32 too), is a FormatError. A file without unwind information is no error: its rows are
// Invalid, but for what is known without: Go's code, the PLT, the trampolines of signals, the program's entry.
func Open(r io.ReaderAt, size int64) (*File, error) {
	l, err := symbol.ReadLayout(r, size)
	if err != nil {
		return nil, err
	}
	f := &File{layout: l, text: l.Text()}
	slices.SortFunc(f.text, func(a, b symbol.Range) int { return cmp.Compare(a.Address, b.Address) })
	var ok bool
	if f.arch, ok = archOf(l.Machine); !ok || !l.Class64 {
		return nil, &symbol.FormatError{Offset: elf.EI_CLASS, What: fmt.Sprintf("unwind tables of a %v program that is not 64-bit x86-64 or arm64", l.Machine)}
	}
	read := l.Reader(r)
	f.findTable(read)
	if f.table.n == 0 && f.eh.at.Size > 0 {
		f.ehIndex = f.index(read, f.eh)
	}
	// Go's linker writes .debug_frame for what its own table says better.
	if s, ok := l.Section(".debug_frame"); ok && !s.Compressed && l.Go() == nil {
		f.debug = section{at: s, debug: true}
		f.dbIndex = f.index(read, f.debug)
	}
	f.findPLT(read)
	f.reader.BytesRead = read.BytesRead()
	if err := read.Err(); err != nil {
		return nil, err
	}
	return f, nil
}

// findTable finds .eh_frame and the search table of .eh_frame_hdr.
func (f *File) findTable(r *symbol.Reader) {
	if s, ok := f.layout.Section(".eh_frame"); ok && s.Address != 0 && !s.Compressed {
		f.eh.at = s
	}
	h := f.layout.Frames
	if h.Size < 12 {
		return
	}
	c := cursor{b: slices.Clone(r.ReadOffset(h.Offset, min(h.Size, 32))), at: h.Address}
	if c.u8() != 1 {
		return
	}
	ptrEnc, countEnc, tableEnc := c.u8(), c.u8(), c.u8()
	if ptrEnc == encOmit {
		return
	}
	frames := c.pointer(ptrEnc, h.Address)
	if c.failed {
		return
	}
	if frames < f.eh.at.Address || frames >= f.eh.at.End() { // stripped of section headers, or they lie
		s, ok := f.layout.Segment(frames)
		if !ok {
			return
		}
		d := uint64(frames - s.Address)
		f.eh.at = symbol.Range{Address: frames, Offset: s.Offset + symbol.FileOffset(d), Size: s.Size - d}
	}
	if countEnc == encOmit || tableEnc != encDataRel|encSdata4 {
		return
	}
	n := uint64(c.pointer(countEnc, h.Address))
	at := uint64(c.at - h.Address)
	if c.failed || n > (h.Size-at)/8 {
		return
	}
	f.table = searchTable{header: h.Address, entries: h.Offset + symbol.FileOffset(at), n: n}
}

// at returns entry i of the table: where a function starts and its entry's address.
func (t *searchTable) at(r *symbol.Reader, i uint64) (start, entry Address, ok bool) {
	b := r.ReadOffset(t.entries+symbol.FileOffset(8*i), 8)
	if len(b) < 8 {
		return 0, 0, false
	}
	le := binary.LittleEndian
	return t.header + Address(int64(int32(le.Uint32(b)))), t.header + Address(int64(int32(le.Uint32(b[4:])))), true
}

// index lists the entries of a section, sorted by start.
func (f *File) index(r *symbol.Reader, s section) []indexed {
	budget := maxInstructions
	read := f.sectionReader(r, s, &budget, &f.reader)
	var list []indexed
	for off := uint64(0); off < min(s.at.Size, maxIndexing); {
		id, _, _, next, ok := read.head(off)
		if !ok {
			break // the terminator, or nonsense from here on
		}
		if !read.isCommon(id) {
			if e, ok := read.entry(off); ok && e.start != 0 && e.end > e.start { // 0: of a function that the linker dropped
				if len(list) == maxIndex {
					f.reader.Refused[ReasonRows]++
					break
				}
				list = append(list, indexed{e.start, uint32(off)})
			}
		}
		off = next
	}
	slices.SortStableFunc(list, func(a, b indexed) int { return cmp.Compare(a.start, b.start) })
	return slices.Clip(list)
}

func (f *File) sectionReader(r *symbol.Reader, s section, budget *int, stats *Stats) *sectionReader {
	return &sectionReader{section: s, r: r, arch: f.arch, commons: make(map[uint64]*common), budget: budget, stats: stats}
}

// Bytes is the memory that f occupies.
func (f *File) Bytes() int64 {
	return 512 + f.layout.Bytes() + 16*int64(cap(f.ehIndex)+cap(f.dbIndex)) + 64*int64(cap(f.plt)) + 32*int64(cap(f.text))
}

// Source says where rows of C code come from; Go's come from its own table in any case.
func (f *File) Source() Source {
	switch {
	case f.table.n > 0:
		return EhFrameHdr
	case len(f.ehIndex) > 0:
		return EhFrame
	case len(f.dbIndex) > 0:
		return DebugFrame
	}
	return NoTable
}

// Go says whether the file holds Go code.
func (f *File) Go() bool { return f.layout.Go() != nil }

// Stats says what [Open] read and refused.
func (f *File) Stats() Stats { return f.reader }

// Code returns the pieces of the file that are loaded as code.
func (f *File) Code() []symbol.Range { return f.layout.Code() }

// builder collects rows of a range.
type builder struct {
	dst      []Row
	base     int // rows before are not ours
	from, to Address
	full     bool // a row was left out
	max      int
}

// add says that r holds from a on. Addresses do not go down; one that is repeated takes the later rule.
func (b *builder) add(a Address, r Rule) {
	if a >= b.to {
		return
	}
	a = max(a, b.from)
	if n := len(b.dst); n > b.base {
		last := &b.dst[n-1]
		if a < last.Address {
			return
		}
		if a == last.Address {
			if last.Rule = r; n-1 > b.base && b.dst[n-2].Rule == r {
				b.dst = b.dst[:n-1]
			}
			return
		}
		if last.Rule == r {
			return
		}
	}
	if len(b.dst)-b.base >= b.max {
		b.full = true
		return
	}
	b.dst = append(b.dst, Row{a, r})
}

// Rows appends the rows of [from, to) to dst and returns it, sorted by address: the first is at from, neighbours differ in
// their rule, and every address of the range has one. Addresses without code, and holes between functions that are larger
// than alignment, have rows of kind Invalid. r is the file that f was made from; stats, which may be nil, is added to.
//
// The error is that of reading. Entries that are wrong are counted in stats and give Invalid.
func (f *File) Rows(r io.ReaderAt, dst []Row, from, to Address, stats *Stats) ([]Row, error) {
	var none Stats
	if stats == nil {
		stats = &none
	}
	read := f.layout.Reader(r)
	base := len(dst)
	for from < to {
		end := min(to, PageOf(from).Start()+PageBytes)
		if end < from { // the last page of all
			end = to
		}
		b := builder{dst: dst, base: len(dst), from: from, to: end, max: MaxPageRows}
		f.build(read, &b, stats)
		if dst = b.dst; b.base > base && b.base < len(dst) && dst[b.base].Rule == dst[b.base-1].Rule {
			dst = slices.Delete(dst, b.base, b.base+1)
		}
		from = end
	}
	stats.BytesRead += read.BytesRead()
	return dst, read.Err()
}

// Page appends the rows of page n to dst and returns it: as Rows, with the rule's number in place of the rule. intern returns
// the number of a rule, the same one for equal rules, and false when it has none left, which makes the row [RuleInvalid]. A
// page of which nothing is known has one row.
func (f *File) Page(r io.ReaderAt, dst []CompactRow, n PageNumber, intern func(Rule) (uint16, bool), stats *Stats) ([]CompactRow, error) {
	rows, err := f.Rows(r, nil, n.Start(), n.Start()+PageBytes, stats)
	if err != nil {
		return dst, err
	}
	base := len(dst)
	for _, row := range rows {
		number := uint16(RuleInvalid)
		if row.Rule != (Rule{}) {
			var ok bool
			if number, ok = intern(row.Rule); !ok {
				number = RuleInvalid
				if stats != nil {
					stats.Refused[ReasonRules]++
				}
			}
		}
		if len(dst) > base && dst[len(dst)-1].Rule == number {
			continue
		}
		dst = append(dst, CompactRow{Low: uint16(row.Address), Rule: number})
	}
	return dst, nil
}

// build adds the rows of b's range, which lies in one page.
func (f *File) build(r *symbol.Reader, b *builder, stats *Stats) {
	b.add(b.from, Rule{})
	budget := maxInstructions
	w := walk{f: f, r: r, b: b, stats: stats, budget: &budget}
	if f.eh.at.Size > 0 {
		w.eh = f.sectionReader(r, f.eh, &budget, stats)
	}
	if len(f.dbIndex) > 0 {
		w.debug = f.sectionReader(r, f.debug, &budget, stats)
	}
	from, to := b.from, b.to
	if g := f.layout.Go(); g != nil {
		start, end := g.Range()
		if start, end = max(start, from), min(end, to); start < end {
			w.frames(from, start)
			w.golang(start, end)
			from = end
		}
	}
	w.frames(from, to)
	if b.full {
		stats.Refused[ReasonRows]++
	}
}

// walk makes the rows of one page.
type walk struct {
	f         *File
	r         *symbol.Reader
	b         *builder
	stats     *Stats
	budget    *int
	eh, debug *sectionReader // nil: none
	floor     Address        // where the last entry before the range ends
}

// frames adds the rows of [from, to) that are not Go's.
func (w *walk) frames(from, to Address) {
	if from >= to {
		return
	}
	switch {
	case w.f.table.n > 0:
		t := &w.f.table
		w.entries(from, to, t.n, w.eh, func(i uint64) (Address, uint64, bool) {
			start, entry, ok := t.at(w.r, i)
			return start, uint64(entry - w.f.eh.at.Address), ok
		}, w.debugFrames)
	case len(w.f.ehIndex) > 0:
		w.entries(from, to, uint64(len(w.f.ehIndex)), w.eh, func(i uint64) (Address, uint64, bool) {
			return w.f.ehIndex[i].start, uint64(w.f.ehIndex[i].off), true
		}, w.debugFrames)
	default:
		w.debugFrames(from, to)
	}
}

// debugFrames adds the rows of [from, to), of which .eh_frame says nothing.
func (w *walk) debugFrames(from, to Address) {
	if w.debug == nil {
		w.hole(from, to)
		return
	}
	w.entries(from, to, uint64(len(w.f.dbIndex)), w.debug, func(i uint64) (Address, uint64, bool) {
		return w.f.dbIndex[i].start, uint64(w.f.dbIndex[i].off), true
	}, w.hole)
}

// entries adds the rows of [from, to) that n sorted entries of a section make, and calls hole with what lies between them.
// at returns where entry i starts and its offset in the section.
func (w *walk) entries(from, to Address, n uint64, s *sectionReader, at func(uint64) (Address, uint64, bool), hole func(from, to Address)) {
	// The last entry that starts at or before from is the first that can matter.
	low, high := uint64(0), n
	for low < high {
		i := (low + high) / 2
		if start, _, ok := at(i); ok && start <= from {
			low = i + 1
		} else {
			high = i
		}
	}
	if low > 0 {
		low--
	}
	outer := *w.b
	pos, known := from, false // what lies below pos is done; known: an entry ended at pos
	for i := low; i < n; i++ {
		start, off, ok := at(i)
		if !ok || start >= to {
			break
		}
		if start < pos && i > low {
			w.stats.Refused[ReasonOverlap]++ // or not sorted: then the search cannot be trusted, and rows are missing
			continue
		}
		e, ok := s.entry(off)
		if !ok {
			continue
		}
		if e.start != start {
			w.stats.Refused[ReasonEntry]++
			continue
		}
		end := min(e.end, to)
		if i+1 < n {
			if next, _, ok := at(i + 1); ok && next > start && next < end {
				w.stats.Refused[ReasonOverlap]++
				end = next
			}
		}
		if end <= from || end <= start {
			if end <= from {
				w.floor = max(w.floor, end)
			}
			continue
		}
		if start > pos && (!known || start-pos > maxPadding) {
			hole(pos, start)
		}
		// Nobody calls the outermost function of a coroutine, which makecontext puts on the stack: the return address into it is its
		// first, and looked up one byte before. A call at the end of what comes before it returns into the padding.
		if start > pos && w.f.arch.startsContext(w.r, &e) {
			w.b.add(start-1, Rule{Kind: Stop})
		}
		w.b.to = end
		s.rows(&e, w.b)
		w.b.to = outer.to
		pos, known = end, true
	}
	if pos < to {
		hole(pos, to)
	}
}
