package node

import "errors"

// Errors of tables that are not what V8 writes.
var (
	errTableEnd  = errors.New("a table of positions ends within a number")
	errTableFar  = errors.New("a table of positions leads out of all code")
	errTableWide = errors.New("a number in a table of positions has more than 64 bits")
)

// maxOffsets bounds offsets in code and bytecode.
const maxOffsets = 1 << 31

// number takes one number of variable length from the front of a table: seven bits in a byte, the lowest first, the top bit set in all
// but the last (V8: src/base/vlq.h).
func number(table []byte) (n uint64, rest []byte, err error) {
	for shift := uint(0); ; shift += 7 {
		if len(table) == 0 {
			return 0, nil, errTableEnd
		}
		if shift > 63 {
			return 0, nil, errTableWide
		}
		b := table[0]
		table = table[1:]
		n |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return n, table, nil
		}
	}
}

// signed takes one signed number: the sign is in the lowest bit.
func signed(table []byte) (int64, []byte, error) {
	n, rest, err := number(table)
	return int64(n>>1) ^ -int64(n&1), rest, err
}

// position is a place in a source: a bit that says that it is in none of the scripts, then the offset in the script plus 1 in 30 bits,
// then the number of the inlined function plus 1 in 16 bits, 0: none (V8: src/codegen/source-position.h).
type position uint64

func (p position) external() bool { return p&1 != 0 }

// offset is the offset in the script in characters, -1 if there is none.
func (p position) offset() int { return int(p>>1&(1<<30-1)) - 1 }

// inlined is the number of the inlined function, -1 for the function itself.
func (p position) inlined() int { return int(p>>31&0xffff) - 1 }

// positionAt is the position of an instruction by its offset in the code: that of the last entry that does not lie behind it. An entry is
// the distance from the last one and the difference of positions (V8: src/codegen/source-position-table.cc). The distance has two bits
// below it, of statements and of places to stop at; in older versions it is ^distance where no statement is. ok is false before the
// first entry.
func (l *Layout) positionAt(table []byte, at int64) (p position, ok bool, err error) {
	offset, value := int64(-1), int64(0) // kFunctionEntryBytecodeOffset
	for len(table) > 0 {
		var d, v int64
		if l.flaggedPositions {
			var n uint64
			n, table, err = number(table)
			d = int64(n >> 2)
		} else if d, table, err = signed(table); d < 0 {
			d = ^d
		}
		if err != nil {
			return 0, false, err
		}
		if d > maxOffsets-offset {
			return 0, false, errTableFar
		}
		if offset += d; offset > at {
			break
		}
		if v, table, err = signed(table); err != nil {
			return 0, false, err
		}
		value += v
		ok = true
	}
	return position(value), ok, nil
}

// baselineBytecode is the offset of the bytecode that the instruction at pc, an offset in baseline code, was made for. table has the length
// of the code of the prologue and of each bytecode (V8: src/baseline/bytecode-offset-iterator.h). ok is false for the prologue.
func (l *Layout) baselineBytecode(table, bytecode []byte, pc uint64) (at int, ok bool, err error) {
	end, table, err := number(table)
	if err != nil {
		return 0, false, err
	}
	if pc < end {
		return 0, false, nil
	}
	for {
		var n uint64
		if n, table, err = number(table); err != nil {
			return 0, false, err
		}
		if end += n; pc < end && at < len(bytecode) {
			return at, true, nil
		}
		size, err := l.bytecodeSize(bytecode[at:])
		if err != nil {
			return 0, false, err
		}
		at += size
	}
}

var errBytecode = errors.New("there is no such bytecode")

// bytecodeSize is the length of the first bytecode, with its prefix.
func (l *Layout) bytecodeSize(b []byte) (int, error) {
	count := len(l.bytecodeSizes) / 3
	table, prefix := l.bytecodeSizes[:count], 0
	if len(b) > 0 {
		switch b[0] { // Wide, ExtraWide, DebugBreakWide, DebugBreakExtraWide
		case 0, 2:
			table, prefix = l.bytecodeSizes[count:2*count], 1
		case 1, 3:
			table, prefix = l.bytecodeSizes[2*count:], 1
		}
	}
	if len(b) <= prefix || int(b[prefix]) >= count {
		return 0, errBytecode
	}
	size := prefix + int(table[b[prefix]])
	if size == 0 || size > len(b) {
		return 0, errBytecode
	}
	return size, nil
}
