package node

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"unicode/utf16"
	"unicode/utf8"
)

// Limits on what one process can make us read, whatever it says.
const (
	maxNameChars   = 1 << 10  // of a function's name; longer ones are cut
	maxScriptChars = 4 << 10  // of a script's name
	maxSourceChars = 32 << 20 // of a script's source: longer ones have no lines
	maxStrings     = 4 << 10  // strings that one string is made of
	maxDepth       = 32       // of strings made of strings
	maxTable       = 1 << 20  // bytes of a table of positions or of bytecode
	maxItems       = 64 << 10 // items of an array
	maxInlined     = 64       // functions inlined into each other at one place
	readPiece      = 16 << 10 // bytes of a long text that are read at a time
)

// Kinds of strings: the lowest bits of their instance types (V8: src/objects/instance-type.h).
const (
	firstNonstring = 0x80
	representation = 7
	oneByte        = 8
	uncached       = 16 // of external strings: their text cannot be found

	sequential = 0
	cons       = 1
	external   = 2
	sliced     = 3
	thin       = 5
)

// Heap reads V8's objects in the memory of one process.
type Heap struct {
	l   *Layout
	mem io.ReaderAt
	// lines of the scripts that were asked for last.
	scripts []*scriptLines
	streams map[uint64]uint16 // instance types of objects that lie where code is, by their maps
}

// NewHeap reads objects of layout l from mem, a process's memory by its addresses.
func NewHeap(l *Layout, mem io.ReaderAt) *Heap {
	return &Heap{l: l, mem: mem, streams: map[uint64]uint16{}}
}

// ErrMoved says that another object lies where one was when its process was sampled: V8 has moved it, or freed it.
var ErrMoved = errors.New("the object has been moved or freed since")

// isObject says whether a word points to an object.
func isObject(word uint64) bool { return word&1 != 0 && word&^3 != 0 }

// isSmall says whether a word is a small integer.
func isSmall(word uint64) bool { return word&0xffffffff == 0 }

// small is the small integer in a word.
func small(word uint64) int { return int(int32(word >> 32)) }

// address is where the object is that a word points to, weakly or not.
func address(word uint64) uint64 { return word &^ 3 }

// read fills p from the process's memory.
func (h *Heap) read(p []byte, at uint64) error {
	if int64(at) < 0 {
		return fmt.Errorf("%#x is no address of a process", at)
	}
	n, err := h.mem.ReadAt(p, int64(at))
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes of the process at %#x: %w", len(p), at, err)
}

func (h *Heap) word(at uint64) (uint64, error) {
	var b [8]byte
	err := h.read(b[:], at)
	return binary.LittleEndian.Uint64(b[:]), err
}

// typeOf is the instance type of the object at an address.
func (h *Heap) typeOf(at uint64) (uint16, error) {
	m, err := h.word(at)
	if err != nil {
		return 0, err
	}
	if !isObject(m) {
		return 0, fmt.Errorf("what lies at %#x is no object", at)
	}
	return h.mapType(m)
}

// mapType is the instance type that a map gives to objects.
func (h *Heap) mapType(m uint64) (uint16, error) {
	var b [2]byte
	err := h.read(b[:], address(m)+h.l.mapInstanceType)
	return binary.LittleEndian.Uint16(b[:]), err
}

// object is the address and the instance type of what a word points to.
func (h *Heap) object(word uint64) (at uint64, typ uint16, err error) {
	if !isObject(word) {
		return 0, 0, fmt.Errorf("%#x points to no object", word)
	}
	at = address(word)
	typ, err = h.typeOf(at)
	return at, typ, err
}

// typed is the address of what a word points to, which must be of one of the types.
func (h *Heap) typed(word uint64, what string, types ...uint16) (uint64, error) {
	at, typ, err := h.object(word)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	for _, t := range types {
		if t == typ && t != 0 {
			return at, nil
		}
	}
	return 0, fmt.Errorf("%s: the object at %#x is of type %d", what, at, typ)
}

// byteArray reads the array of bytes that a word points to.
func (h *Heap) byteArray(word uint64, what string) ([]byte, error) {
	at, err := h.typed(word, what, h.l.types.byteArray, h.l.types.trustedByteArray)
	if err != nil {
		return nil, err
	}
	n, err := h.length(at, maxTable, what)
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	return b, h.read(b, at+h.l.fixedArray.data)
}

// length reads the length of an array.
func (h *Heap) length(at uint64, limit int, what string) (int, error) {
	w, err := h.word(at + h.l.fixedArray.length)
	if err != nil {
		return 0, err
	}
	if n := small(w); isSmall(w) && n >= 0 && n <= limit {
		return n, nil
	}
	return 0, fmt.Errorf("%s: no array has the length %#x", what, w)
}

// items are the first n words of the array that a word points to.
func (h *Heap) items(word uint64, n int, what string) ([]byte, error) {
	t := &h.l.types
	at, err := h.typed(word, what, t.fixedArray, t.weakArray, t.trustedArray, t.protectedArray, t.trustedWeak)
	if err != nil {
		return nil, err
	}
	have, err := h.length(at, maxItems, what)
	if err != nil {
		return nil, err
	}
	if have < n {
		return nil, fmt.Errorf("%s: %d items where %d are needed", what, have, n)
	}
	b := make([]byte, 8*n)
	return b, h.read(b, at+h.l.fixedArray.data)
}

func item(b []byte, i uint64) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }

// text is a walk over the characters of a string.
type text struct {
	h       *Heap
	strings int // that may still be read
	// each gets the next characters, in units of 16 bits if wide; false ends the walk.
	each func(chars []byte, wide bool) bool
}

// errDone says that a walk was ended by its receiver.
var errDone = errors.New("done")

// walk reads n characters from offset from of the string that a word points to; n < 0: all that follow. It is errDone when the receiver
// has enough.
func (t *text) walk(word uint64, from, n, depth int) error {
	h, s := t.h, &t.h.l.string
	for {
		if t.strings--; t.strings < 0 || depth < 0 {
			return fmt.Errorf("a string is made of too many others, at %#x", word)
		}
		at, typ, err := h.object(word)
		if err != nil {
			return err
		}
		if typ >= firstNonstring {
			return fmt.Errorf("the object at %#x is no string: type %d", at, typ)
		}
		var head [40]byte
		if err := h.read(head[:32], at); err != nil {
			return err
		}
		le := binary.LittleEndian
		length := int(int32(le.Uint32(head[s.length:])))
		if length < 0 || from > length || n > length-from {
			return fmt.Errorf("the string at %#x has %d characters, of which %d from %d on are needed", at, length, n, from)
		}
		if n < 0 {
			n = length - from
		}
		switch typ & representation {
		case sequential:
			return t.chars(at+s.chars, from, n, typ&oneByte == 0)
		case external:
			if typ&uncached != 0 {
				return fmt.Errorf("the string at %#x is outside of V8", at)
			}
			data := le.Uint64(head[s.resource+8:])
			return t.chars(data, from, n, typ&oneByte == 0)
		case thin:
			word = le.Uint64(head[s.actual:])
		case sliced:
			offset := le.Uint64(head[s.offset:])
			if !isSmall(offset) || small(offset) < 0 || small(offset) > 1<<30 {
				return fmt.Errorf("the string at %#x begins nowhere", at)
			}
			word, from = le.Uint64(head[s.parent:]), from+small(offset)
			depth--
		case cons:
			first := le.Uint64(head[s.first:])
			var b [4]byte
			if !isObject(first) {
				return fmt.Errorf("the string at %#x has no first part", at)
			}
			if err := h.read(b[:], address(first)+s.length); err != nil {
				return err
			}
			size := int(int32(le.Uint32(b[:])))
			if size < 0 || size > length {
				return fmt.Errorf("the string at %#x is shorter than its first part", at)
			}
			if from < size {
				k := min(n, size-from)
				if err := t.walk(first, from, k, depth-1); err != nil {
					return err
				}
				from, n = size, n-k
			}
			if n == 0 {
				return nil
			}
			word, from = le.Uint64(head[s.second:]), from-size
		default:
			return fmt.Errorf("the string at %#x is of an unknown kind: type %d", at, typ)
		}
	}
}

// chars reads n characters that lie one after the other.
func (t *text) chars(at uint64, from, n int, wide bool) error {
	width := 1
	if wide {
		width = 2
	}
	at += uint64(from * width)
	buf := make([]byte, min(n*width, readPiece))
	for n > 0 {
		b := buf[:min(n*width, len(buf))]
		if err := t.h.read(b, at); err != nil {
			return err
		}
		if !t.each(b, wide) {
			return errDone
		}
		at, n = at+uint64(len(b)), n-len(b)/width
	}
	return nil
}

// string reads the string that a word points to, cut at limit characters.
func (h *Heap) string(word uint64, limit int) (string, error) {
	var out []byte
	var pending rune // first half of a character of 32 bits
	t := text{h: h, strings: maxStrings, each: func(chars []byte, wide bool) bool {
		width := 1
		if wide {
			width = 2
		}
		for ; len(chars) > 0 && limit > 0; chars, limit = chars[width:], limit-1 {
			r := rune(chars[0])
			if wide {
				r = rune(binary.LittleEndian.Uint16(chars))
			}
			if pending != 0 {
				if c := utf16.DecodeRune(pending, r); c != utf8.RuneError {
					out, pending = utf8.AppendRune(out, c), 0
					continue
				}
				out, pending = utf8.AppendRune(out, utf8.RuneError), 0
			}
			if utf16.IsSurrogate(r) {
				pending = r
				continue
			}
			out = utf8.AppendRune(out, r)
		}
		return limit > 0
	}}
	if err := t.walk(word, 0, -1, maxDepth); err != nil && !errors.Is(err, errDone) {
		return "", err
	}
	return string(out), nil
}
