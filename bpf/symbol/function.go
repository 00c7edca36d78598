package symbol

import (
	"encoding/binary"
	"math"
	"sort"
)

// Function returns where the function that begins at address a ends, by the search table of .eh_frame_hdr (LSB Core 5.0, 10.6.2) and
// the entry that it leads to: for code that has no symbol. False: no entry begins there, or it is not of the form that every linker
// writes. It costs some twenty small reads.
func (l *Layout) Function(r *Reader, a Address) (Range, bool) {
	le := binary.LittleEndian
	head := r.ReadOffset(l.Frames.Offset, min(l.Frames.Size, 12))
	if len(head) < 12 || head[0] != 1 || head[1] != 0x1b || head[2] != 0x03 || head[3] != 0x3b {
		return Range{}, false
	}
	n := uint64(le.Uint32(head[8:]))
	if n > maxBounds || n > (l.Frames.Size-12)/8 {
		return Range{}, false
	}
	pair := func(i int) (start, entry Address) {
		b := r.ReadOffset(l.Frames.Offset+FileOffset(12+8*i), 8)
		if len(b) < 8 {
			return math.MaxUint64, 0
		}
		return l.Frames.Address + Address(int64(int32(le.Uint32(b)))), l.Frames.Address + Address(int64(int32(le.Uint32(b[4:]))))
	}
	i := sort.Search(int(n), func(i int) bool { start, _ := pair(i); return start >= a })
	if uint64(i) == n {
		return Range{}, false
	}
	start, entry := pair(i)
	b := r.ReadAddress(entry, 16)
	if start != a || len(b) < 16 || le.Uint32(b) < 12 || le.Uint32(b) == math.MaxUint32 || le.Uint32(b[4:]) == 0 ||
		entry+8+Address(int64(int32(le.Uint32(b[8:])))) != a {
		return Range{}, false
	}
	return Range{Address: a, Size: uint64(le.Uint32(b[12:]))}, true
}
