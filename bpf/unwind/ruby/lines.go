package ruby

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// The index of an instruction sequence's lines, struct succ_index_table of iseq.c from 2.6 on, is a bit set of the instructions at which
// an entry of the table of lines begins, from which their number up to an instruction is counted: for the first instructions it is
// there, nine to a word of seven bits each; then there is, for each 512, the number before them, those before each 64 of them, and the bits.
const (
	immediate      = 54 // IMMEDIATE_TABLE_SIZE
	perWord        = 9
	immediateBytes = immediate / perWord * 8
	blockSpan      = 512
	blockBytes     = 80
)

// indexBytes is how long the index of a sequence of n instruction words is.
func indexBytes(n int) int {
	if n < immediate {
		return (n + perWord - 1) / perWord * 8
	}
	return immediateBytes + (n-immediate+blockSpan-1)/blockSpan*blockBytes
}

// entryOf returns the number of the entry of the table of lines for the instruction word at a position.
func entryOf(index []byte, position int) (int, error) {
	le := binary.LittleEndian
	rank := 0
	switch {
	case position < 0:
		return 0, fmt.Errorf("instruction %d", position)
	case position < immediate:
		at := position / perWord * 8
		if at+8 > len(index) {
			return 0, fmt.Errorf("the index of lines ends before instruction %d", position)
		}
		rank = int(le.Uint64(index[at:]) >> (position % perWord * 7) & 0x7f)
	default:
		position -= immediate
		at := immediateBytes + position/blockSpan*blockBytes
		if at+blockBytes > len(index) {
			return 0, fmt.Errorf("the index of lines ends before instruction %d", position+immediate)
		}
		block := index[at:]
		bit := position % blockSpan
		word := bit / 64
		rank = int(le.Uint32(block))
		if word > 0 {
			rank += int(le.Uint64(block[8:]) >> ((word - 1) * 9) & 0x1ff)
		}
		rank += bits.OnesCount64(le.Uint64(block[16+8*word:]) << (63 - bit%64))
	}
	if rank == 0 {
		return 0, fmt.Errorf("no line begins at or before instruction %d", position)
	}
	return rank - 1, nil
}
