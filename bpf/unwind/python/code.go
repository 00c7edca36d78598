package python

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/stoker-profiler/stoker/bpf/unwind/python/offsets"
)

// What is read of a process at most, whatever it says.
const (
	maxNameBytes      = 1 << 10 // of a name as it is in memory; longer ones are cut
	maxFileNameBytes  = 4 << 10 // PATH_MAX
	maxLineTableBytes = 1 << 20 // longer ones are not read: the function then has no exact lines
)

// Code is what a code object says of itself.
type Code struct {
	Name  string // qualified from 3.11 on
	File  string // co_filename, as the program gave it
	First int32  // line of its first

	format   lineFormat
	table    []byte
	bytecode uint64 // address of the first instruction, from 3.11 on
}

// formatOf returns the format of line tables of CPython 3.minor.
func formatOf(minor int) lineFormat {
	switch {
	case minor < 10:
		return linesNotab
	case minor == 10:
		return linesRanges
	}
	return linesLocations
}

// ReadCode reads the code object at an address of a process's memory. The object may be gone and other bytes there: the caller
// compares what it knew of it. At most a megabyte and some kilobytes are read.
func ReadCode(mem io.ReaderAt, t *offsets.Table, at uint64) (Code, error) {
	o := &t.Code
	size := max(o.FirstLine+4, o.FileName+8, o.Name+8, o.QualName+8, o.LineTable+8)
	b := make([]byte, size)
	if err := readAt(mem, b, at); err != nil {
		return Code{}, fmt.Errorf("read the code object at %#x: %w", at, err)
	}
	pointer := func(offset int) uint64 { return binary.LittleEndian.Uint64(b[offset:]) }
	c := Code{First: int32(binary.LittleEndian.Uint32(b[o.FirstLine:])), format: formatOf(t.Minor)}
	name := o.QualName
	if name == offsets.Absent {
		name = o.Name
	}
	if o.Bytecode != offsets.Absent {
		c.bytecode = at + uint64(o.Bytecode)
	}
	var err error
	if c.Name, err = readString(mem, t, pointer(name), maxNameBytes); err != nil {
		return Code{}, fmt.Errorf("name of the code object at %#x: %w", at, err)
	}
	if c.File, err = readString(mem, t, pointer(o.FileName), maxFileNameBytes); err != nil {
		return Code{}, fmt.Errorf("file of the code object at %#x: %w", at, err)
	}
	if c.table, err = readBytes(mem, t, pointer(o.LineTable)); err != nil {
		return Code{}, fmt.Errorf("line table of the code object at %#x: %w", at, err)
	}
	return c, nil
}

// Line returns the line of an instruction as a frame has it: f_lasti, an int, up to 3.10; the address in prev_instr or instr_ptr
// from 3.11 on. A frame that has not begun is at its first line.
func (c *Code) Line(instruction uint64) (int, error) {
	at := int64(int32(instruction))
	switch c.format {
	case linesRanges:
		at *= 2
	case linesLocations:
		at = int64(instruction - c.bytecode)
	}
	if at < 0 {
		return int(c.First), nil
	}
	if at >= 1<<32 {
		return NoLine, fmt.Errorf("the instruction at %#x is none of the code's", instruction)
	}
	return c.format.line(c.table, c.First, uint32(at))
}

// Bits of PyASCIIObject.state up to 3.13, of builds with the GIL: two that say interned, then these.
const (
	stateKindShift = 2
	stateKindMask  = 7 // bytes in a character
	stateCompact   = 1 << 5
	stateASCII     = 1 << 6
)

// readString reads a str object. Text longer than limit is cut at a character.
func readString(mem io.ReaderAt, t *offsets.Table, at uint64, limit int) (string, error) {
	u := &t.Unicode
	head := make([]byte, u.UnicodeState+4)
	if err := readAt(mem, head, at); err != nil {
		return "", err
	}
	length := binary.LittleEndian.Uint64(head[u.UnicodeLength:])
	state := binary.LittleEndian.Uint32(head[u.UnicodeState:])
	if state&stateCompact == 0 {
		return "", fmt.Errorf("the object at %#x is no compact string", at)
	}
	width, text := int(state>>stateKindShift&stateKindMask), u.CompactText
	if state&stateASCII != 0 {
		text = u.ASCIIText
	}
	if width != 1 && width != 2 && width != 4 {
		return "", fmt.Errorf("the string at %#x has characters of %d bytes", at, width)
	}
	n := int(min(length, uint64(limit/width)))
	b := make([]byte, n*width)
	if err := readAt(mem, b, at+uint64(text)); err != nil {
		return "", err
	}
	out := make([]byte, 0, len(b))
	for ; len(b) > 0; b = b[width:] {
		r := rune(b[0])
		switch width {
		case 2:
			r = rune(binary.LittleEndian.Uint16(b))
		case 4:
			r = rune(binary.LittleEndian.Uint32(b)) // what is no character becomes utf8.RuneError
		}
		out = utf8.AppendRune(out, r)
	}
	return string(out), nil
}

// readBytes reads a bytes object.
func readBytes(mem io.ReaderAt, t *offsets.Table, at uint64) ([]byte, error) {
	var size [8]byte
	if err := readAt(mem, size[:], at+uint64(t.BytesSize)); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint64(size[:])
	if n > maxLineTableBytes {
		return nil, fmt.Errorf("%d bytes at %#x are more than the %d that are read", n, at, maxLineTableBytes)
	}
	b := make([]byte, n)
	return b, readAt(mem, b, at+uint64(t.BytesText))
}

// readAt fills b or fails. Addresses above those of user space are none.
func readAt(mem io.ReaderAt, b []byte, at uint64) error {
	if at == 0 || at >= 1<<56 {
		return fmt.Errorf("%#x is no address", at)
	}
	n, err := mem.ReadAt(b, int64(at))
	if n == len(b) {
		return nil
	}
	if err == nil {
		err = errors.New("short read")
	}
	return fmt.Errorf("read %d bytes at %#x: %w", len(b), at, err)
}
