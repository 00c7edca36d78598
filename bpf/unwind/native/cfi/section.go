package cfi

import (
	"encoding/binary"

	"github.com/stoker-profiler/stoker/bpf/symbol"
)

// Limits on what a section may claim. Each is far above what was seen.
const (
	maxRecord   = 4 << 20  // bytes of one entry; the largest function known has 300 KB of instructions
	maxCIE      = 64 << 10 // bytes of a common entry
	maxIndex    = 1 << 20  // entries of a file without a search table; Chromium, which has one, has 1.1 million
	maxIndexing = 64 << 20 // bytes of a section read to make that index
)

// section is .eh_frame or .debug_frame.
type section struct {
	at    symbol.Range
	debug bool
}

// entry is a frame description entry.
type entry struct {
	start, end Address
	cie        *common
	program    []byte // its instructions, valid until the next entry is read
	programAt  Address
}

// common is a common information entry, with its instructions already run.
type common struct {
	program
	encLen uint8 // of the lengths: as the pointers', without a base
	z      bool  // augmentation data is there
	signal bool
	bad    Reason // ReasonCount: good
}

// sectionReader reads entries of one section.
type sectionReader struct {
	section
	r       *symbol.Reader
	arch    arch
	commons map[uint64]*common // by offset in the section
	buf     []byte
	budget  *int // of instructions
	stats   *Stats
}

// maxCommons bounds the common entries kept; linkers merge equal ones and leave a handful.
const maxCommons = 256

// head reads length and id of the record at off, and where its body and the next record begin; false where none is.
func (s *sectionReader) head(off uint64) (id uint64, idAt, body, next uint64, ok bool) {
	if off >= s.at.Size {
		return 0, 0, 0, 0, false
	}
	b := s.r.ReadOffset(s.at.Offset+symbol.FileOffset(off), min(24, s.at.Size-off))
	le := binary.LittleEndian
	if len(b) < 8 {
		return 0, 0, 0, 0, false
	}
	n, at, wide := uint64(le.Uint32(b)), uint64(4), false
	if n == 0xffffffff {
		if len(b) < 24 {
			return 0, 0, 0, 0, false
		}
		n, at, wide = le.Uint64(b[4:]), 12, true
	}
	if n < 4 || n > s.at.Size-off-at {
		return 0, 0, 0, 0, false
	}
	idAt, body, next = off+at, off+at+4, off+at+n
	id = uint64(le.Uint32(b[at:]))
	// In .eh_frame the id has 4 bytes whatever the length's form.
	if wide && s.debug {
		if n < 8 {
			return 0, 0, 0, 0, false
		}
		id, body = le.Uint64(b[at:]), body+4
	} else if s.debug && id == 0xffffffff {
		id = 1<<64 - 1
	}
	return id, idAt, body, next, true
}

// isCommon says whether id is that of a common entry.
func (s *sectionReader) isCommon(id uint64) bool {
	if s.debug {
		return id == 1<<64-1
	}
	return id == 0
}

// record returns a cursor over [body, next) of the section. The bytes are valid until the next record is read.
func (s *sectionReader) record(body, next, limit uint64) (cursor, bool) {
	if next-body > limit {
		return cursor{}, false
	}
	b := s.r.ReadOffset(s.at.Offset+symbol.FileOffset(body), next-body)
	if uint64(len(b)) < next-body {
		return cursor{}, false
	}
	s.buf = append(s.buf[:0], b...)
	return cursor{b: s.buf, at: s.at.Address + Address(body)}, true
}

// entry reads the frame description entry at off; false if there is none that can be used, which is counted.
func (s *sectionReader) entry(off uint64) (e entry, ok bool) {
	id, idAt, body, next, ok := s.head(off)
	if !ok || s.isCommon(id) {
		s.stats.Refused[ReasonEntry]++
		return e, false
	}
	at := id
	if !s.debug {
		at = idAt - id
		if id > idAt {
			s.stats.Refused[ReasonEntry]++
			return e, false
		}
	}
	if e.cie = s.common(at); e.cie.bad != ReasonCount {
		s.stats.Refused[e.cie.bad]++
		return e, false
	}
	c, ok := s.record(body, next, maxRecord)
	if !ok {
		s.stats.Refused[ReasonEntry]++
		return e, false
	}
	e.start = c.pointer(e.cie.enc, 0)
	e.end = e.start + Address(c.number(e.cie.encLen))
	if e.cie.z {
		c.take(c.uleb())
	}
	if c.failed || e.end < e.start {
		s.stats.Refused[ReasonEntry]++
		return e, false
	}
	e.program, e.programAt = c.b, c.at
	s.stats.Entries++
	return e, true
}

// common returns the common entry at off.
func (s *sectionReader) common(off uint64) *common {
	if c := s.commons[off]; c != nil {
		return c
	}
	c := s.readCommon(off)
	if len(s.commons) >= maxCommons {
		clear(s.commons)
	}
	s.commons[off] = c
	return c
}

func (s *sectionReader) readCommon(off uint64) *common {
	bad := &common{bad: ReasonEntry}
	id, _, body, next, ok := s.head(off)
	if !ok || !s.isCommon(id) {
		return bad
	}
	c, ok := s.record(body, next, maxCIE)
	if !ok {
		return bad
	}
	version := c.u8()
	augmentation := c.cstring()
	if version != 1 && version != 3 && version != 4 || version == 4 && !s.debug {
		return bad
	}
	if version == 4 {
		if size, segment := c.u8(), c.u8(); size != 8 || segment != 0 {
			return bad
		}
	}
	cie := &common{program: program{arch: s.arch, enc: encAbsolute}, encLen: encAbsolute, bad: ReasonCount}
	cie.codeAlign, cie.dataAlign = c.uleb(), c.sleb()
	ra := uint64(0)
	if version == 1 {
		ra = uint64(c.u8())
	} else {
		ra = c.uleb()
	}
	if c.failed || ra != s.arch.ra {
		return bad
	}
	if len(augmentation) > 0 && augmentation[0] == 'z' {
		cie.z = true
		n := c.uleb()
		data := cursor{b: c.b, at: c.at}
		data.b = data.take(n)
		data.at -= Address(n)
		c.take(n)
		for _, letter := range augmentation[1:] {
			switch letter {
			case 'R':
				cie.enc = data.u8()
				cie.encLen = cie.enc & 0x0f
			case 'P':
				data.number(data.u8())
			case 'L':
				data.u8()
			case 'S':
				cie.signal = true
			case 'B', 'G': // arm64: signed with the other key; tagged memory. Neither moves anything.
			default:
				return bad // what it means for the data is not known
			}
		}
		if data.failed {
			return bad
		}
	} else if augmentation != "" && augmentation != "eh" {
		return bad
	}
	if augmentation == "eh" { // gcc before 3: a pointer follows that nobody needs, before the alignments
		return bad
	}
	if c.failed {
		return bad
	}
	cie.steps = min(*s.budget, 1024)
	left := cie.steps
	st, _, err := cie.run(&c, state{}, 0, 1<<63, func(Address, *state) {})
	*s.budget -= left - cie.steps
	if err != nil {
		if bad.bad = ReasonEntry; err == errOpcode {
			bad.bad = ReasonOpcode
		}
		return bad
	}
	cie.initial = st
	return cie
}

// rows adds the rows of e to b. The builder clips them to its range; what follows an instruction that cannot be run is
// Invalid.
func (s *sectionReader) rows(e *entry, b *builder) {
	c := cursor{b: e.program, at: e.programAt}
	p := e.cie.program
	p.steps = *s.budget
	end := min(e.end, b.to)
	_, at, err := p.run(&c, p.initial, e.start, end, func(a Address, st *state) {
		r, why := p.rule(st, e.cie.signal)
		if why != ReasonCount && a < b.to {
			s.stats.Refused[why]++
		}
		b.add(a, r)
	})
	*s.budget = max(p.steps, 0)
	switch err {
	case nil:
		return
	case errOpcode:
		s.stats.Refused[ReasonOpcode]++
	case errBudget:
		s.stats.Refused[ReasonRows]++
	default:
		s.stats.Refused[ReasonEntry]++
	}
	b.add(at, Rule{})
}
