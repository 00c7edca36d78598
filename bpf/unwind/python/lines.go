package python

import "errors"

// NoLine is the answer for an instruction that no line of the source stands for: code that the compiler put in by itself.
const NoLine = 0

// errLines says that a line table does not speak of the instruction it was asked for: it is cut short, or it is no line table.
var errLines = errors.New("the line table ends before the instruction")

// lineFormat is how a version of CPython writes down which instruction belongs to which line.
type lineFormat uint8

const (
	linesNotab     lineFormat = iota + 1 // co_lnotab up to 3.9: Objects/lnotab_notes.txt there
	linesRanges                          // co_linetable of 3.10 (PEP 626): Objects/lnotab_notes.txt there
	linesLocations                       // co_linetable from 3.11 (PEP 657): Objects/locations.md there
)

// line returns the line of the instruction at byte offset at of a code object's bytecode. The table is a stranger's: whatever it
// holds, the work is in proportion to its length. A line that would be below 1 is NoLine.
func (f lineFormat) line(table []byte, first int32, at uint32) (int, error) {
	switch f {
	case linesNotab:
		return lineOfNotab(table, first, at), nil
	case linesRanges:
		return lineOfRanges(table, first, at)
	case linesLocations:
		return lineOfLocations(table, first, at)
	}
	return NoLine, errors.New("no such format of line tables")
}

// lineOfNotab is PyCode_Addr2Line of 3.8 and 3.9: pairs of a distance in bytes and a signed one in lines, whose sums up to the
// instruction are its line. The last line goes on to the end of the code.
func lineOfNotab(table []byte, first int32, at uint32) int {
	line, end := int64(first), uint64(0)
	for ; len(table) >= 2; table = table[2:] {
		end += uint64(table[0])
		if end > uint64(at) {
			break
		}
		line += int64(int8(table[1]))
	}
	return clampLine(line)
}

// lineOfRanges is PyCode_Addr2Line of 3.10: pairs of a range's length in bytes and the distance of its line from the last one that
// had any, -128 for a range without a line.
func lineOfRanges(table []byte, first int32, at uint32) (int, error) {
	line, end := int64(first), uint64(0)
	for ; len(table) >= 2; table = table[2:] {
		end += uint64(table[0])
		delta := int8(table[1])
		if delta != -128 {
			line += int64(delta)
		}
		if uint64(at) < end {
			if delta == -128 {
				return NoLine, nil
			}
			return clampLine(line), nil
		}
	}
	return NoLine, errLines
}

// Codes of location entries: what the four bits below the topmost say.
const (
	locationOneLine0 = 10 // no line delta; 11 and 12: one line and two lines on
	locationOneLine2 = 12
	locationNoColumn = 13 // a signed line delta follows
	locationLong     = 14 // likewise, and more of no interest
	locationNone     = 15 // no line
)

// lineOfLocations is _PyCode_GetLine from 3.11 on: an entry begins with a byte whose top bit is set, that holds a code and the
// number of code units; what follows up to the next such byte are line and column, depending on the code.
func lineOfLocations(table []byte, first int32, at uint32) (int, error) {
	line, end := int64(first), uint64(0)
	for i := 0; i < len(table); {
		head := table[i]
		if head&0x80 == 0 {
			return NoLine, errors.New("an entry of the line table does not begin with its top bit set")
		}
		code := head >> 3 & 15
		end += (uint64(head&7) + 1) * 2
		next := i + 1
		for next < len(table) && table[next]&0x80 == 0 {
			next++
		}
		switch {
		case code >= locationOneLine0 && code <= locationOneLine2:
			line += int64(code - locationOneLine0)
		case code == locationNoColumn || code == locationLong:
			delta, ok := signedVarint(table[i+1 : next])
			if !ok {
				return NoLine, errors.New("a line delta of the line table has no end")
			}
			line += delta
		}
		if uint64(at) < end {
			if code == locationNone {
				return NoLine, nil
			}
			return clampLine(line), nil
		}
		i = next
	}
	return NoLine, errLines
}

// signedVarint reads a number of six bits a byte, least significant first, bit 6 set if another byte follows; the sign is in
// its lowest bit. No delta of lines needs more than 33 bits; false if there are more, or the number has no end.
func signedVarint(b []byte) (int64, bool) {
	var u uint64
	for i, c := range b {
		if i > 5 {
			return 0, false
		}
		u |= uint64(c&0x3f) << (6 * i)
		if c&0x40 == 0 {
			if u&1 != 0 {
				return -int64(u >> 1), true
			}
			return int64(u >> 1), true
		}
	}
	return 0, false
}

// clampLine makes a line that a forged table has led out of an int's sensible range NoLine.
func clampLine(line int64) int {
	if line < 1 || line > 1<<31-1 {
		return NoLine
	}
	return int(line)
}
