package symbol

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
)

// maxRead is how many bytes of one file a parse may read in all. The largest symbol tables known (a debug build of a
// browser) stay below; what a file claims beyond it is an attempt to keep us busy.
const maxRead = 256 << 20

// readChunk is the piece in which long ranges are read: a header that lies about a size costs no more than one of them.
const readChunk = 256 << 10

// FormatError says that a file is not what it claims to be.
type FormatError struct {
	Offset uint64 // in the file, where the trouble was seen
	What   string // what is wrong there
}

func (e *FormatError) Error() string { return fmt.Sprintf("%s at offset 0x%x", e.What, e.Offset) }

// ErrNotELF is returned for files without the ELF magic.
var ErrNotELF = errors.New("not an ELF file")

// source reads a foreign file with bounds and keeps a log of what it read, with a hash over it. A parser reads nothing but
// through a source and decides by nothing but the bytes it got, so whoever reads the same ranges of another file of the same
// size and gets the same hash knows that the parser would have come to the same result.
type source struct {
	r    io.ReaderAt
	size uint64
	sum  hash.Hash // nil: what is read takes part in no identity, and no log is kept
	log  []span
	read uint64
}

// span is one read.
type span struct{ off, n uint64 }

func newSource(r io.ReaderAt, size int64) *source {
	s := &source{r: r, size: uint64(max(size, 0)), sum: sha256.New()}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], s.size)
	s.sum.Write(b[:])
	return s
}

// check says whether [off, off+n) lies within the file and within the reading limit.
func (s *source) check(off, n uint64, what string) error {
	if off > s.size || n > s.size-off {
		return &FormatError{off, fmt.Sprintf("%s of %d bytes reaches beyond the file's %d bytes", what, n, s.size)}
	}
	if n > maxRead-s.read {
		return &FormatError{off, fmt.Sprintf("%s of %d bytes exceeds the limit of %d bytes read per file", what, n, maxRead)}
	}
	return nil
}

// fill reads len(p) bytes at off.
func (s *source) fill(p []byte, off uint64, what string) error {
	if err := s.check(off, uint64(len(p)), what); err != nil {
		return err
	}
	if len(p) == 0 {
		return nil
	}
	if n, err := s.r.ReadAt(p, int64(off)); n < len(p) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // the file was cut after fstat
		}
		return fmt.Errorf("read %s at offset 0x%x: %w", what, off, err)
	}
	s.note(p, off)
	return nil
}

// note enters p, read at off, into the log and the hash.
func (s *source) note(p []byte, off uint64) {
	s.read += uint64(len(p))
	if s.sum == nil {
		return
	}
	if n := len(s.log); n > 0 && s.log[n-1].off+s.log[n-1].n == off {
		s.log[n-1].n += uint64(len(p))
	} else {
		s.log = append(s.log, span{off, uint64(len(p))})
	}
	s.sum.Write(p)
}

// bytes reads [off, off+n). The result grows as bytes arrive, so that a length nothing stands behind allocates little.
func (s *source) bytes(off, n uint64, limit uint64, what string) ([]byte, error) {
	if n > limit {
		return nil, &FormatError{off, fmt.Sprintf("%s of %d bytes exceeds the limit of %d", what, n, limit)}
	}
	if err := s.check(off, n, what); err != nil {
		return nil, err
	}
	p := make([]byte, 0, min(n, readChunk))
	for uint64(len(p)) < n {
		old := len(p)
		k := int(min(n-uint64(old), readChunk))
		if cap(p)-old < k {
			// Doubling ends exactly at n: the last copy is not followed by slack.
			grown := make([]byte, old, min(n, uint64(2*cap(p))))
			copy(grown, p)
			p = grown
			k = int(min(uint64(cap(p)-old), readChunk))
		}
		p = p[:old+k]
		if err := s.fill(p[old:], off+uint64(old), what); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// stream calls f with consecutive pieces of [off, off+n), each valid during the call; every piece but the last is
// readChunk long.
func (s *source) stream(off, n uint64, what string, f func([]byte) error) error {
	if err := s.check(off, n, what); err != nil {
		return err
	}
	buf := make([]byte, min(n, readChunk))
	for n > 0 {
		p := buf[:min(n, readChunk)]
		if err := s.fill(p, off, what); err != nil {
			return err
		}
		if err := f(p); err != nil {
			return err
		}
		off, n = off+uint64(len(p)), n-uint64(len(p))
	}
	return nil
}

// records calls f with each entry of n bytes in [off, off+size), valid during the call; a piece of an entry at the end is left
// out.
func (s *source) records(off, size, n uint64, what string, f func([]byte)) error {
	var rest []byte // of an entry that two pieces share
	return s.stream(off, size-size%n, what, func(b []byte) error {
		if len(rest) > 0 {
			k := int(n) - len(rest)
			f(append(rest, b[:k]...))
			b, rest = b[k:], rest[:0]
		}
		for ; uint64(len(b)) >= n; b = b[n:] {
			f(b[:n])
		}
		rest = append(rest, b...)
		return nil
	})
}

// identity is what two files must have in common to share an Object: their size and all bytes that were parsed.
type identity [sha256.Size]byte

func (s *source) identity() identity { return identity(s.sum.Sum(nil)) }

// replay reads the ranges of log from r as a parser did and returns the identity they make.
func replay(r io.ReaderAt, size int64, log []span) (identity, error) {
	s := newSource(r, size)
	for _, l := range log {
		if err := s.stream(l.off, l.n, "known range", func([]byte) error { return nil }); err != nil {
			return identity{}, err
		}
	}
	return s.identity(), nil
}
