package symbol

import (
	"bytes"

	"github.com/klauspost/compress/s2"
)

// packBlock is how many bytes are compressed together. With 4 KiB symbol names and pclntab shrink to about a third of their
// size, at 1 GB/s, and a lookup unpacks a block in under 2 µs; four times as much saves 3 (Go) to 20 % (Rust) of the memory and
// makes lookups three times as slow.
const packBlock = 4 << 10

// packed is an immutable byte string held compressed, read in small pieces. Names and line tables are looked up once per new
// stack and held for hours: holding them small matters more than reading them fast.
type packed struct {
	data []byte
	ends []uint32 // ends[i] is where block i ends in data
	size uint32
}

// packer makes a packed. Its zero value is ready.
type packer struct {
	p   packed
	buf []byte
	out []byte
}

// Write appends b; it never fails but for a string that no u32 can index.
func (w *packer) Write(b []byte) (int, error) {
	if uint64(w.p.size)+uint64(len(b)) > 1<<32-1 {
		return 0, errTooLarge
	}
	n := len(b)
	w.p.size += uint32(n)
	for len(b) > 0 {
		k := min(len(b), packBlock-len(w.buf))
		w.buf = append(w.buf, b[:k]...)
		b = b[k:]
		if len(w.buf) == packBlock {
			w.flush()
		}
	}
	return n, nil
}

func (w *packer) flush() {
	if w.out == nil {
		w.out = make([]byte, s2.MaxEncodedLen(packBlock))
	}
	w.p.data = append(w.p.data, s2.Encode(w.out, w.buf)...)
	w.p.ends = append(w.p.ends, uint32(len(w.p.data)))
	w.buf = w.buf[:0]
}

// size is how many bytes were written.
func (w *packer) size() uint32 { return w.p.size }

// done returns the packed string; the packer must not be used again.
func (w *packer) done() *packed {
	if len(w.buf) > 0 {
		w.flush()
	}
	p := &packed{data: bytes.Clone(w.p.data), ends: w.p.ends, size: w.p.size}
	return p
}

// bytesHeld is the memory that p occupies.
func (p *packed) bytesHeld() int64 {
	if p == nil {
		return 0
	}
	return int64(cap(p.data)) + 4*int64(cap(p.ends)) + 64
}

// block unpacks the block that holds offset off.
func (p *packed) block(off uint32) []byte {
	i := off / packBlock
	var start uint32
	if i > 0 {
		start = p.ends[i-1]
	}
	b, err := s2.Decode(nil, p.data[start:p.ends[i]])
	if err != nil {
		return nil // our own bytes in our own memory: cannot happen, and the answer "no name" is always allowed
	}
	return b
}

// read returns up to n bytes at off: fewer only at the end.
func (p *packed) read(off, n uint32) []byte {
	if p == nil || off >= p.size {
		return nil
	}
	n = min(n, p.size-off)
	b := p.block(off)
	b = b[min(int(off%packBlock), len(b)):]
	if uint32(len(b)) >= n {
		return b[:n]
	}
	b = bytes.Clone(b)
	for uint32(len(b)) < n {
		next := p.block(off + uint32(len(b)))
		if len(next) == 0 {
			return b
		}
		b = append(b, next[:min(len(next), int(n)-len(b))]...)
	}
	return b
}

// cstring returns the zero-terminated string at off, cut at maxName bytes.
func (p *packed) cstring(off uint32) string {
	for n := uint32(256); ; n = maxName {
		b := p.read(off, n)
		if i := bytes.IndexByte(b, 0); i >= 0 {
			return string(b[:i])
		}
		if n == maxName || uint32(len(b)) < n {
			return string(b)
		}
	}
}
