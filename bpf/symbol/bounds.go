package symbol

import (
	"encoding/binary"
	"math"
	"slices"
	"sort"
)

const (
	// maxBounds is how many entries of .eh_frame_hdr's table are read; Chromium has 1.1 million.
	maxBounds = 1 << 21
	// boundsBlock is how many entries are decoded to look one up, at most.
	boundsBlock = 64
)

// bounds are where functions begin and end, which the unwind information of a stripped file tells of those that have no symbol. An
// entry is a function, or a hole that none covers; it takes one to three bytes.
type bounds struct {
	base   Address
	blocks []block
	steps  []byte // of each entry: uvarint(distance from the one before in its block << 1 | hole)
}

// block are boundsBlock entries.
type block struct {
	start uint32 // of the first, from bounds.base
	at    uint32 // in steps
}

// readBounds reads the search table of .eh_frame_hdr (LSB Core 5.0, 10.6.2) and the lengths in the entries to which it leads; nil if
// there is none of the usual form, or if the file has a symbol table, which says more.
func (m *image) readBounds() (*bounds, error) {
	if m.frames.n < 12 || m.section(".symtab") != nil {
		return nil, nil
	}
	at := slices.IndexFunc(m.segments, func(s segment) bool {
		return m.frames.off >= s.off && m.frames.off-s.off < s.filesz && m.frames.n <= s.filesz-(m.frames.off-s.off)
	})
	if at < 0 {
		return nil, nil
	}
	header := m.segments[at].vaddr + Address(m.frames.off-m.segments[at].off)
	head, err := m.src.bytes(m.frames.off, 12, 12, "search table of unwind information")
	if err != nil {
		return nil, err
	}
	// Version 1; a pointer relative to itself, a count, and distances from the header, of 4 bytes each: what every linker writes.
	if head[0] != 1 || head[1] != 0x1b || head[2] != 0x03 || head[3] != 0x3b {
		return nil, nil
	}
	n := uint64(binary.LittleEndian.Uint32(head[8:]))
	if n > maxBounds || n > (m.frames.n-12)/8 {
		return nil, &FormatError{m.frames.off, "search table of unwind information with more entries than it has room for"}
	}
	w := boundsWriter{b: bounds{base: m.codeStart()}}
	page := newPager(m.src)
	err = m.src.records(m.frames.off+12, n*8, 8, "search table of unwind information", func(b []byte) {
		start := header + Address(int64(int32(binary.LittleEndian.Uint32(b))))
		entry := header + Address(int64(int32(binary.LittleEndian.Uint32(b[4:]))))
		if m.executable(start) {
			w.function(start, m.entryEnd(page, entry, start))
		}
	})
	if err == nil {
		err = page.err
	}
	if err != nil {
		return nil, err
	}
	return w.done(), nil
}

// entryEnd returns where the function that begins at start ends by its entry; start, if the entry is not of the usual form: length,
// distance of the common entry, distance of the function, its length, of 4 bytes each.
func (m *image) entryEnd(page *pager, entry, start Address) Address {
	off, have, ok := m.fileOffset(entry)
	if !ok || have < 16 {
		return start
	}
	b := page.read(off, 16)
	if len(b) < 16 {
		return start
	}
	le := binary.LittleEndian
	if n := le.Uint32(b); n < 12 || n == math.MaxUint32 || le.Uint32(b[4:]) == 0 ||
		entry+8+Address(int64(int32(le.Uint32(b[8:])))) != start {
		return start
	}
	return start + Address(le.Uint32(b[12:]))
}

// boundsWriter makes bounds of functions in the order of their addresses.
type boundsWriter struct {
	b    bounds
	n    int
	last uint32 // where the last entry begins
	end  uint32 // where the last function ends; 0: none is open
}

// function adds a function; one that is empty, or begins before the last one does, is left out.
func (w *boundsWriter) function(start, end Address) {
	if start < w.b.base || start-w.b.base >= math.MaxUint32 || end <= start {
		return
	}
	from, to := uint32(start-w.b.base), uint32(min(end-w.b.base, math.MaxUint32))
	if w.n > 0 && from <= w.last {
		return
	}
	w.close(from)
	w.entry(from, false)
	w.end = to
}

// close ends the function before an address, if what is between is more than alignment.
func (w *boundsWriter) close(at uint32) {
	if w.end > w.last && w.end < at && at-w.end > padding {
		w.entry(w.end, true)
	}
	w.end = 0
}

func (w *boundsWriter) entry(at uint32, hole bool) {
	if w.n%boundsBlock == 0 {
		w.b.blocks = append(w.b.blocks, block{at, uint32(len(w.b.steps))})
		w.last = at
	}
	step := uint64(at-w.last) << 1
	if hole {
		step |= 1
	}
	w.b.steps = binary.AppendUvarint(w.b.steps, step)
	w.n, w.last = w.n+1, at
}

func (w *boundsWriter) done() *bounds {
	if w.n == 0 {
		return nil
	}
	w.close(math.MaxUint32)
	return &bounds{w.b.base, slices.Clone(w.b.blocks), slices.Clone(w.b.steps)}
}

func (b *bounds) bytesHeld() int64 {
	if b == nil {
		return 0
	}
	return 64 + 8*int64(cap(b.blocks)) + int64(cap(b.steps))
}

// function returns where the function that a lies in begins; false if it lies in none.
func (b *bounds) function(a Address) (Address, bool) {
	if b == nil || a < b.base || a-b.base > math.MaxUint32 {
		return 0, false
	}
	at := uint32(a - b.base)
	i := sort.Search(len(b.blocks), func(i int) bool { return b.blocks[i].start > at }) - 1
	if i < 0 {
		return 0, false
	}
	end := len(b.steps)
	if i+1 < len(b.blocks) {
		end = int(b.blocks[i+1].at)
	}
	pos, hole := b.blocks[i].start, false
	for steps := b.steps[b.blocks[i].at:end]; len(steps) > 0; {
		step, n := binary.Uvarint(steps)
		if step>>1 > uint64(at-pos) {
			break
		}
		pos, hole, steps = pos+uint32(step>>1), step&1 != 0, steps[n:]
	}
	return b.base + Address(pos), !hole
}
