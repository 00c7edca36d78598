package node

import (
	"encoding/binary"
	"fmt"
)

// Frame is a frame of JavaScript as its author knows it.
type Frame struct {
	// Function is its name as V8's debugger shows it, "eval" for code that was made from text, and empty for functions without.
	Function string
	// File is the name of its script: a path, a file: URL, node:NAME for what comes with Node.js; empty for code that was made from text.
	File string
	// Line and Column are where it is, StartLine is where the function begins; from 1, 0 if not known.
	Line, Column, StartLine int
	// Inlined is true when the compiler put it into the next frame.
	Inlined bool
}

// key tells places apart.
func (f *Frame) key() string {
	return fmt.Sprintf("%s\x00%s\x00%d:%d:%d\x00", f.Function, f.File, f.Line, f.Column, f.StartLine)
}

// function is a SharedFunctionInfo: what all closures of a function have in common.
type function struct {
	name   string
	start  int // offset of its first character in the script, -1: not known
	script *scriptLines
	code   uint64 // word of its code
}

// Bits of the flags of a scope (V8: src/objects/scope-info.tq).
const (
	scopeType            = 15
	scopeSavedClass      = 1 << 10
	scopeFunctionName    = 3 << 12
	scopeInferred        = 1 << 14
	maxInlinedLocalNames = 75 // with more their names are in a table
)

// Identity tells the function whose SharedFunctionInfo a word points to from others that lie in its place later: 16 bits of a hash over
// what never changes of it. The kernel computes the same at the time of the sample.
func (h *Heap) Identity(shared uint64) (uint16, error) {
	at, err := h.typed(shared, "function", h.l.types.sharedFunction)
	if err != nil {
		return 0, err
	}
	var b [20]byte
	if err := h.read(b[:], at+h.l.shared.length); err != nil {
		return 0, err
	}
	return identity(b[:], h.l.shared.flags-h.l.shared.length), nil
}

// identity is of the number of parameters, as declared and as counted, of where its name is, and of its number in its script, which is
// behind the flags.
func identity(b []byte, flags uint64) uint16 {
	le := binary.LittleEndian
	return uint16(mix(mix(0, le.Uint64(b)&(1<<48-1)), uint64(le.Uint32(b[flags+4:]))) >> 48)
}

// mix is hash__mix of bpf/include/unwind.h.
func mix(h, v uint64) uint64 {
	h ^= v
	h *= 0x9fb21c651e98df25
	return h ^ h>>32
}

// function reads the function whose SharedFunctionInfo a word points to.
func (h *Heap) function(word uint64) (*function, error) {
	at, err := h.typed(word, "function", h.l.types.sharedFunction)
	if err != nil {
		return nil, err
	}
	o := &h.l.shared
	b := make([]byte, max(o.data, o.name, o.script)+8)
	if err := h.read(b, at); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	f := &function{code: le.Uint64(b[o.data:]), start: -1}
	if name := le.Uint64(b[o.name:]); isObject(name) {
		at, typ, err := h.object(name)
		switch {
		case err != nil:
			return nil, err
		case typ == h.l.types.scopeInfo:
			err = h.scopeInfo(f, at)
		case typ < firstNonstring:
			f.name, err = h.string(name, maxNameChars)
		default:
			err = fmt.Errorf("the name of the function at %#x is of type %d", at, typ)
		}
		if err != nil {
			return nil, err
		}
	}
	if script := le.Uint64(b[o.script:]); isObject(script) {
		if _, typ, err := h.object(script); err != nil {
			return nil, err
		} else if typ == h.l.types.script { // built-in functions have none
			if f.script, err = h.script(script); err != nil {
				return nil, err
			}
		}
	}
	return f, nil
}

// scopeInfo reads the name and the place of a function that has been compiled.
func (h *Heap) scopeInfo(f *function, at uint64) error {
	o := &h.l.scopeInfo
	slot := func(i uint64) (uint64, error) { return h.word(at + 8 + 8*i) } // behind the map
	flags, err := slot(0)
	if err != nil {
		return err
	}
	if o.plainFlags {
		flags = uint64(uint32(flags))
	} else {
		flags = uint64(uint32(flags >> 32))
	}
	locals, err := slot(o.locals)
	if err != nil {
		return err
	}
	n := small(locals)
	if !isSmall(locals) || n < 0 || n > maxItems {
		return fmt.Errorf("the scope at %#x has %#x local variables", at, locals)
	}
	i := o.firstVars
	if uint32(flags&scopeType) == o.module {
		i++ // the number of its variables
	}
	if n < maxInlinedLocalNames {
		i += uint64(n)
	} else {
		i++
	}
	i += uint64(n)
	if flags&scopeSavedClass != 0 {
		i++
	}
	var names []uint64
	if flags&scopeFunctionName != 0 {
		w, err := slot(i)
		if err != nil {
			return err
		}
		names = append(names, w)
		i += 2
	}
	if flags&scopeInferred != 0 {
		w, err := slot(i)
		if err != nil {
			return err
		}
		names = append(names, w)
		i++
	}
	for _, w := range names {
		if f.name == "" && isObject(w) {
			if _, typ, err := h.object(w); err == nil && typ < firstNonstring {
				if f.name, err = h.string(w, maxNameChars); err != nil {
					return err
				}
			}
		}
	}
	if o.positions != 0 {
		i = o.positions
	}
	start, err := slot(i)
	if err != nil {
		return err
	}
	if isSmall(start) && small(start) >= 0 {
		f.start = small(start)
	}
	return nil
}

// place makes a frame of a function at a position.
func (f *function) place(offset int) Frame {
	out := Frame{Function: f.name}
	if f.script == nil {
		return out
	}
	if out.File = f.script.name; out.File == "" && out.Function == "" {
		out.Function = "eval"
	}
	out.StartLine, _ = f.script.line(f.start)
	out.Line, out.Column = f.script.line(offset)
	return out
}

// bytecodeArray finds the bytecode of a function, from the word of its code.
func (h *Heap) bytecodeArray(code uint64) (uint64, error) {
	t := &h.l.types
	for range 3 {
		at, typ, err := h.object(code)
		if err != nil {
			return 0, fmt.Errorf("bytecode: %w", err)
		}
		switch typ {
		case t.bytecodeArray:
			return at, nil
		case t.interpreterData:
			code, err = h.word(at + 8)
		case t.code: // of baseline code what is deoptimization data elsewhere
			code, err = h.word(at + h.l.code.deopt)
		default:
			return 0, fmt.Errorf("bytecode: the object at %#x is of type %d", at, typ)
		}
		if err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("bytecode: the object at %#x leads nowhere", code)
}

// bytecodePosition is where in the source the bytecode at an offset is from.
func (h *Heap) bytecodePosition(array uint64, at int64) (position, bool, error) {
	w, err := h.word(array + h.l.bytecode.positions)
	if err != nil {
		return 0, false, err
	}
	table, err := h.byteArray(w, "positions of bytecode")
	if err != nil {
		return 0, false, err
	}
	return h.l.positionAt(table, at)
}

// same checks that the function that was sampled is still where it was.
func (h *Heap) same(shared uint64, id uint16) error {
	now, err := h.Identity(shared)
	if err != nil || now != id {
		return ErrMoved
	}
	return nil
}

// Interpreted appends the frame of a function that was interpreted. shared is the word of its SharedFunctionInfo and id its
// [Heap.Identity] when it was sampled, offset is what the frame has in its slot of the bytecode's offset, decoded.
func (h *Heap) Interpreted(dst []Frame, shared uint64, id uint16, offset int) ([]Frame, error) {
	f, err := h.function(shared)
	if err != nil {
		return dst, fmt.Errorf("%w (%w)", ErrMoved, err)
	}
	place := f.start
	if array, err := h.bytecodeArray(f.code); err == nil { // V8 may have thrown the bytecode away: the function is known all the same
		if p, ok, err := h.bytecodePosition(array, int64(offset)-int64(h.l.bytecode.data)+1); err == nil && ok && !p.external() {
			place = p.offset()
		}
	}
	// Last: what was read before is of that function if it is still there now.
	if err := h.same(shared, id); err != nil {
		return dst, err
	}
	return append(dst, f.place(place)), nil
}

// Called appends the frame of a function that has called one of V8's own that has no frame: where, nobody can say. shared and id are as
// in [Heap.Interpreted].
func (h *Heap) Called(dst []Frame, shared uint64, id uint16) ([]Frame, error) {
	f, err := h.function(shared)
	if err != nil {
		return dst, fmt.Errorf("%w (%w)", ErrMoved, err)
	}
	if err := h.same(shared, id); err != nil {
		return dst, err
	}
	return append(dst, f.place(-1)), nil
}
