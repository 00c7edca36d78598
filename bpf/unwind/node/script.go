package node

import (
	"encoding/binary"
	"errors"
	"slices"
	"sort"
)

const (
	// keptScripts is how many scripts' lines a Heap keeps.
	keptScripts = 64
	// maxLines is how many lines a script may have, and all that are kept together, but for the last one's.
	maxLines = 1 << 20
)

// scriptLines is a script with the places where its lines end.
type scriptLines struct {
	at, source, nameWord uint64 // which script it is: its address, its source, its name
	name                 string
	ends                 []uint32 // offsets of the characters that end lines; nil: not known
	firstLine, firstCol  int      // added to what the offsets say: of scripts that are a part of a file
}

// script reads the script that a word points to.
func (h *Heap) script(word uint64) (*scriptLines, error) {
	at, err := h.typed(word, "script", h.l.types.script)
	if err != nil {
		return nil, err
	}
	o := &h.l.script
	b := make([]byte, max(o.source, o.name, o.lineOffset, o.columnOffset, o.lineEnds)+8)
	if err := h.read(b, at); err != nil {
		return nil, err
	}
	field := func(offset uint64) uint64 { return binary.LittleEndian.Uint64(b[offset:]) }
	for i, s := range h.scripts {
		if s.at == at && s.source == field(o.source) && s.nameWord == field(o.name) {
			copy(h.scripts[1:i+1], h.scripts[:i])
			h.scripts[0] = s
			return s, nil
		}
	}
	s := &scriptLines{at: at, source: field(o.source), nameWord: field(o.name)}
	if isObject(s.nameWord) { // of eval and the like it is undefined
		if _, typ, err := h.object(s.nameWord); err == nil && typ < firstNonstring {
			if s.name, err = h.string(s.nameWord, maxScriptChars); err != nil {
				return nil, err
			}
		}
	}
	if l, c := field(o.lineOffset), field(o.columnOffset); isSmall(l) && isSmall(c) {
		s.firstLine, s.firstCol = small(l), small(c)
	}
	if s.ends, err = h.lineEnds(field(o.lineEnds)); err != nil {
		if s.ends, err = h.sourceLines(s.source); err != nil {
			s.ends = nil // a source that cannot be read costs the lines only
		}
	}
	h.scripts = slices.Insert(h.scripts, 0, s)
	for kept, i := len(s.ends), 1; i < len(h.scripts); i++ {
		if kept += len(h.scripts[i].ends); kept > maxLines || i == keptScripts {
			h.scripts = slices.Delete(h.scripts, i, len(h.scripts))
			break
		}
	}
	return s, nil
}

// lineEnds reads what V8 itself has found out, which it does when a stack is printed.
func (h *Heap) lineEnds(word uint64) ([]uint32, error) {
	at, err := h.typed(word, "ends of lines", h.l.types.fixedArray)
	if err != nil {
		return nil, err
	}
	n, err := h.length(at, maxLines, "ends of lines")
	if err != nil {
		return nil, err
	}
	ends := make([]uint32, 0, min(n, readPiece))
	at += h.l.fixedArray.data
	buf := make([]byte, min(8*n, readPiece))
	for len(ends) < n {
		b := buf[:min(len(buf), 8*(n-len(ends)))]
		if err := h.read(b, at+8*uint64(len(ends))); err != nil {
			return nil, err
		}
		for ; len(b) > 0; b = b[8:] {
			w := item(b, 0)
			if end := uint32(w >> 32); isSmall(w) && (len(ends) == 0 || end > ends[len(ends)-1]) {
				ends = append(ends, end)
				continue
			}
			return nil, errors.New("the ends of lines are not in order")
		}
	}
	return ends, nil
}

// sourceLines finds the ends of lines in the source that a word points to: line feed, carriage return without one, and the line and
// paragraph separators of Unicode (ECMAScript: LineTerminatorSequence).
func (h *Heap) sourceLines(word uint64) ([]uint32, error) {
	ends := []uint32{}
	at, last := uint32(0), rune(0)
	t := text{h: h, strings: maxStrings, each: func(chars []byte, wide bool) bool {
		width := 1
		if wide {
			width = 2
		}
		for ; len(chars) > 0; chars = chars[width:] {
			r := rune(chars[0])
			if wide {
				r = rune(binary.LittleEndian.Uint16(chars))
			}
			if last == '\r' && r != '\n' {
				ends = append(ends, at-1)
			}
			if r == '\n' || r == 0x2028 || r == 0x2029 {
				ends = append(ends, at)
			}
			last = r
			at++
		}
		return at <= maxSourceChars && len(ends) <= maxLines
	}}
	if err := t.walk(word, 0, -1, maxDepth); err != nil {
		return nil, err
	}
	if last == '\r' {
		ends = append(ends, at-1)
	}
	return append(ends, at), nil
}

// line is the line and the column, both from 1, of the character at an offset, 0 if they are not known.
func (s *scriptLines) line(offset int) (line, column int) {
	if offset < 0 || len(s.ends) == 0 || uint32(offset) > s.ends[len(s.ends)-1] {
		return 0, 0
	}
	i := sort.Search(len(s.ends), func(i int) bool { return s.ends[i] >= uint32(offset) })
	start := 0
	if i > 0 {
		start = int(s.ends[i-1]) + 1
	}
	line, column = i+1+s.firstLine, offset-start+1
	if i == 0 {
		column += s.firstCol
	}
	return max(line, 0), max(column, 0)
}
