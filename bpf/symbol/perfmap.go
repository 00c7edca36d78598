package symbol

import (
	"bytes"
	"cmp"
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
)

// Limits of one perf map. A large Node.js application writes 50,000 lines in an hour, a JVM agent about as many.
const (
	maxPerfMap      = 64 << 20 // bytes of the file; what lies beyond is not read
	maxPerfMapLine  = 4 << 10  // bytes of one line
	maxPerfMapCodes = 1 << 18  // functions
)

// PerfMap names code that a runtime made while it ran, as the runtime writes it to /tmp/perf-PID.map: a line for each function,
// "START SIZE NAME" with hexadecimal numbers (tools/perf/Documentation/jit-interface.txt in the kernel's source). It is immutable
// and safe for concurrent use.
type PerfMap struct {
	starts []uint64
	sizes  []uint32
	names  []uint32
	lines  []uint32 // where the lines of each are, plus 1; 0: none. nil: of none
	text   *packed
	// shift is added to the offsets of lines. V8 and LLVM place code behind an ELF header that perf puts before it, so that old versions
	// of perf, which forgot that header, show the right lines; others do not.
	shift uint32
	// Lines that make no sense, that were too many, or that another function took the place of.
	Bad, Dropped, Replaced int
}

// code is a line while the map is read.
type code struct {
	start, end uint64
	name       uint32
	lines      uint32 // 0: none
	order      int
}

// ReadPerfMap reads a perf map from f. Where lines overlap the later one is right: the runtime has reused the memory. A line that makes
// no sense, like the last one of a file that is being written, is left out and counted.
func ReadPerfMap(f *os.File) (*PerfMap, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, ErrNotRegular
	}
	m, err := readPerfMap(io.NewSectionReader(f, 0, maxPerfMap))
	if err != nil {
		return nil, fmt.Errorf("read perf map %s: %w", f.Name(), err)
	}
	return m, nil
}

func readPerfMap(r io.Reader) (*PerfMap, error) {
	m := &PerfMap{}
	var (
		codes []code
		names packer
		buf   = make([]byte, 0, 64<<10)
		skip  bool // in a line that is too long
	)
	for {
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		rest := buf
		for {
			i := bytes.IndexByte(rest, '\n')
			if i < 0 {
				break
			}
			line := rest[:i]
			rest = rest[i+1:]
			if skip {
				skip = false
				continue
			}
			c, name, ok := parsePerfLine(line)
			switch {
			case !ok:
				m.Bad++
			case len(codes) == maxPerfMapCodes:
				m.Dropped++
			default:
				c.name, c.order = names.size(), len(codes)
				if _, err := names.Write(append(name, 0)); err != nil {
					return nil, err
				}
				codes = append(codes, c)
			}
		}
		if len(rest) > maxPerfMapLine {
			if !skip {
				m.Bad++
			}
			skip, rest = true, nil
		}
		buf = buf[:copy(buf[:cap(buf)], rest)]
		if errors.Is(err, io.EOF) {
			if len(rest) > 0 {
				m.Bad++ // without its end: still being written
			}
			break
		}
		if err != nil {
			return nil, err
		}
	}
	m.build(codes)
	m.text = names.done()
	return m, nil
}

// parsePerfLine reads one line. The name may have spaces. It is valid until the line is overwritten.
func parsePerfLine(line []byte) (c code, name []byte, ok bool) {
	first, rest, ok1 := bytes.Cut(line, []byte{' '})
	second, name, ok2 := bytes.Cut(rest, []byte{' '})
	if !ok1 || !ok2 || len(line) > maxPerfMapLine {
		return c, nil, false
	}
	start, err1 := strconv.ParseUint(string(bytes.TrimPrefix(first, []byte("0x"))), 16, 64)
	size, err2 := strconv.ParseUint(string(bytes.TrimPrefix(second, []byte("0x"))), 16, 32)
	name = bytes.TrimSpace(name)
	if err1 != nil || err2 != nil || size == 0 || start+size < start || len(name) == 0 || bytes.IndexByte(name, 0) >= 0 {
		return c, nil, false
	}
	return code{start: start, end: start + size}, slices.Clip(name), true
}

// build keeps the functions that no later one overlaps: their memory is another's. One that is gone itself still tells that older
// ones in its memory are.
func (m *PerfMap) build(codes []code) {
	slices.SortFunc(codes, func(a, b code) int { return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.order, b.order)) })
	// Going up the addresses: all that has begun and has not ended, the newest on top; what ended below the top stays until it
	// is in the way. Of these at most one is not overlapped by a newer one: the last that was kept.
	var open newest
	kept := make([]code, 0, len(codes))
	for _, c := range codes {
		for len(open) > 0 && open[0].end <= c.start {
			heap.Pop(&open)
		}
		if n := len(kept); n > 0 && kept[n-1].end > c.start && kept[n-1].order < c.order {
			kept = kept[:n-1]
			m.Replaced++
		}
		if len(open) > 0 && open[0].order > c.order {
			m.Replaced++
		} else {
			kept = append(kept, c)
		}
		heap.Push(&open, c)
	}
	m.starts, m.sizes, m.names = make([]uint64, len(kept)), make([]uint32, len(kept)), make([]uint32, len(kept))
	for i, c := range kept {
		m.starts[i], m.sizes[i], m.names[i] = c.start, uint32(c.end-c.start), c.name
		if c.lines != 0 {
			if m.lines == nil {
				m.lines = make([]uint32, len(kept))
			}
			m.lines[i] = c.lines
		}
	}
}

// newest is a heap of functions, the latest first.
type newest []code

func (h newest) Len() int           { return len(h) }
func (h newest) Less(i, j int) bool { return h[i].order > h[j].order }
func (h newest) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *newest) Push(c any)        { *h = append(*h, c.(code)) }
func (h *newest) Pop() any {
	c := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return c
}

// Lookup returns the function that covers an address; of a JIT dump with its file and line, where the runtime has written them.
func (m *PerfMap) Lookup(address uint64) (Line, bool) {
	i, found := slices.BinarySearch(m.starts, address)
	if !found {
		i--
	}
	if i < 0 || address-m.starts[i] >= uint64(m.sizes[i]) {
		return Line{}, false
	}
	l := Line{Function: m.text.cstring(m.names[i])}
	if m.lines != nil && m.lines[i] != 0 {
		l.File, l.Line = m.place(m.lines[i]-1, uint32(address-m.starts[i])+m.shift)
	}
	return l, true
}

// place returns the file and line of an offset in a function whose lines are at the given place in text: their length, and for each the
// difference to the offset and line before and the place of the file's name.
func (m *PerfMap) place(at, offset uint32) (file string, line int) {
	head := m.text.read(at, binary.MaxVarintLen32)
	n, k := binary.Uvarint(head)
	if k <= 0 {
		return "", 0
	}
	b := m.text.read(at+uint32(k), uint32(n))
	var from, name uint64
	var now int64
	known := false
	for len(b) > 0 {
		d, k1 := binary.Uvarint(b)
		l, k2 := binary.Varint(b[max(0, k1):])
		f, k3 := binary.Uvarint(b[max(0, k1)+max(0, k2):])
		if from += d; k1 <= 0 || k2 <= 0 || k3 <= 0 || from > uint64(offset) {
			break
		}
		now, name, known = now+l, f, true
		b = b[k1+k2+k3:]
	}
	if !known || now == 0 {
		return "", 0 // before the first line, or code that the compiler made of several
	}
	return m.text.cstring(uint32(name)), int(now)
}

// Len is how many functions there are.
func (m *PerfMap) Len() int { return len(m.starts) }

// Bytes is the memory that m occupies.
func (m *PerfMap) Bytes() int64 {
	return 96 + 8*int64(cap(m.starts)) + 4*int64(cap(m.sizes)+cap(m.names)+cap(m.lines)) + m.text.bytesHeld()
}
