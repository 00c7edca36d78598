package node

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	// maxCode bounds how far before an address the beginning of its code is looked for.
	maxCode = 1 << 20
	// codeAlign: objects begin at multiples of it.
	objectAlign = 8
	// maxStreamMaps bounds how many kinds of objects are remembered that lie where code is.
	maxStreamMaps = 256
)

// ErrNoCode says that an address is not in code that V8 has made from JavaScript, or no longer.
var ErrNoCode = errors.New("no code of V8")

// compiled is code that one of V8's compilers has made.
type compiled struct {
	start, size      uint64
	baseline         bool
	deopt, positions uint64 // words
}

// codeAt finds the code in which an address is. V8 finds it by its own lists of pages; from outside it is found by its beginning: an
// object of code lies before its instructions, and what it says of itself must enclose the address.
func (h *Heap) codeAt(pc uint64) (*compiled, error) {
	var buf [readPiece]byte
	end := pc &^ (objectAlign - 1)
	lowest := end - min(end, maxCode)
	for end > lowest {
		n := min(end-lowest, end&4095+uint64(len(buf))-4096) // whole pages, but for the first
		b := buf[:n]
		if err := h.read(b, end-n); err != nil {
			// The mapping may begin in between.
			if n = end & 4095; n == 0 {
				n = 4096
			}
			b = buf[:n]
			if err := h.read(b, end-n); err != nil {
				return nil, ErrNoCode
			}
		}
		for i := int(n) - 8; i >= 0; i -= objectAlign {
			m := binary.LittleEndian.Uint64(b[i:])
			if m&3 != 1 || m < 1<<16 || m >= 1<<56 {
				continue
			}
			typ, ok := h.streams[m]
			if !ok {
				t, err := h.mapType(m)
				if err != nil {
					continue
				}
				typ = t
				if len(h.streams) < maxStreamMaps {
					h.streams[m] = typ
				}
			}
			if typ != h.l.types.instructionStream {
				continue
			}
			if c, err := h.stream(end - n + uint64(i)); err == nil && pc >= c.start && pc-c.start < c.size {
				return c, nil
			}
		}
		end -= n
	}
	return nil, ErrNoCode
}

// stream reads the code whose instructions are in the object at an address.
func (h *Heap) stream(at uint64) (*compiled, error) {
	o := &h.l.code
	object := at
	if !o.inline {
		w, err := h.word(at + h.l.stream.code)
		if err != nil {
			return nil, err
		}
		if object, err = h.typed(w, "code", h.l.types.code); err != nil {
			return nil, err
		}
	}
	b := make([]byte, max(o.deopt+8, o.positions+8, o.size+4, o.flags+4, o.start+8))
	if err := h.read(b, object); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	c := &compiled{start: at + h.l.stream.start, size: uint64(le.Uint32(b[o.size:]))}
	if !o.inline && le.Uint64(b[o.start:]) != c.start {
		return nil, fmt.Errorf("the code at %#x does not begin where it says", object)
	}
	c.baseline = le.Uint32(b[o.flags:])&h.l.code.kindMask>>h.l.code.kindShift == h.l.code.baseline
	c.deopt, c.positions = le.Uint64(b[o.deopt:]), le.Uint64(b[o.positions:])
	return c, nil
}

// CodeIdentity tells code from other code that lies in its place later: 16 bits of a hash over the 8 bytes before a return address, or at
// an address that was running. The kernel computes the same at the time of the sample.
func (h *Heap) CodeIdentity(pc uint64, returnAddress bool) (uint16, error) {
	if returnAddress {
		pc -= 8
	}
	w, err := h.word(pc)
	return uint16(mix(0, w) >> 48), err
}

// Compiled appends the frames of a function that was compiled, innermost first: those of inlined functions, then its own. shared and id
// are of the function as in [Heap.Interpreted]; code is the [Heap.CodeIdentity] of pc when it was sampled.
//
// The code may be gone while the function is still there: then the function is known and the line is not.
func (h *Heap) Compiled(dst []Frame, shared uint64, id uint16, pc uint64, returnAddress bool, code uint16) ([]Frame, error) {
	f, err := h.function(shared)
	if err != nil {
		return dst, fmt.Errorf("%w (%w)", ErrMoved, err)
	}
	out, err := h.compiledFrames(dst, shared, f, pc, returnAddress)
	if now, cerr := h.CodeIdentity(pc, returnAddress); err == nil && (cerr != nil || now != code) {
		err = ErrMoved
	}
	if gone := h.same(shared, id); gone != nil {
		return dst, gone
	}
	if err != nil {
		// What was inlined there nobody can say any more.
		return append(dst, f.place(-1)), nil
	}
	return out, nil
}

// compiledFrames are the frames at an address in code of a function.
func (h *Heap) compiledFrames(dst []Frame, shared uint64, f *function, pc uint64, returnAddress bool) ([]Frame, error) {
	at := pc
	if returnAddress {
		at--
	}
	c, err := h.codeAt(at)
	if err != nil {
		return dst, err
	}
	table, err := h.byteArray(c.positions, "positions of code")
	if err != nil {
		return dst, err
	}
	if c.baseline {
		return h.baselineFrame(dst, f, c, table, at-c.start)
	}
	deopt, err := h.items(c.deopt, int(max(h.l.deopt.inlinedCount, h.l.deopt.literals, h.l.deopt.shared, h.l.deopt.inlining))+1, "deoptimization data")
	if err != nil {
		return dst, err
	}
	owner := item(deopt, h.l.deopt.shared)
	if h.l.wrapped {
		wrapper, err := h.typed(owner, "wrapped function", h.l.types.sharedWrapper)
		if err != nil {
			return dst, err
		}
		if owner, err = h.word(wrapper + 8); err != nil {
			return dst, err
		}
	}
	if address(owner) != address(shared) && !returnAddress {
		// A function that has just begun, or has ended: the frame is its caller's still, but the address is its own.
		if f, err = h.function(owner); err != nil {
			return dst, err
		}
	} else if address(owner) != address(shared) {
		return dst, fmt.Errorf("the code at %#x is another function's", c.start)
	}
	p, ok, err := h.l.positionAt(table, int64(at-c.start))
	if err != nil {
		return dst, err
	}
	if !ok {
		return append(dst, f.place(-1)), nil
	}
	return h.inlinedFrames(dst, f, deopt, p)
}

// baselineFrame is the frame of code that was made bytecode by bytecode.
func (h *Heap) baselineFrame(dst []Frame, f *function, c *compiled, table []byte, pc uint64) ([]Frame, error) {
	array, err := h.bytecodeArray(c.deopt)
	if err != nil {
		return dst, err
	}
	if own, err := h.bytecodeArray(f.code); err != nil || own != array {
		return dst, fmt.Errorf("the code at %#x is another function's", c.start)
	}
	n, err := h.length(array, maxTable, "bytecode")
	if err != nil {
		return dst, err
	}
	bytecode := make([]byte, n)
	if err := h.read(bytecode, array+h.l.bytecode.data); err != nil {
		return dst, err
	}
	at, ok, err := h.l.baselineBytecode(table, bytecode, pc)
	if err != nil {
		return dst, err
	}
	if !ok {
		return append(dst, f.place(f.start)), nil
	}
	p, ok, err := h.bytecodePosition(array, int64(at))
	if err != nil {
		return dst, err
	}
	if !ok || p.external() {
		return append(dst, f.place(f.start)), nil
	}
	return append(dst, f.place(p.offset())), nil
}

// inlinedFrames are the frames at a position in optimized code: of the functions that were inlined there, and of the function itself.
func (h *Heap) inlinedFrames(dst []Frame, f *function, deopt []byte, p position) ([]Frame, error) {
	if p.inlined() < 0 {
		if p.external() {
			return append(dst, f.place(f.start)), nil
		}
		return append(dst, f.place(p.offset())), nil
	}
	count := item(deopt, h.l.deopt.inlinedCount)
	if !isSmall(count) || small(count) < 0 || small(count) > maxItems {
		return dst, fmt.Errorf("%#x functions are inlined", count)
	}
	literals, err := h.items(item(deopt, h.l.deopt.literals), small(count), "inlined functions")
	if err != nil {
		return dst, err
	}
	inlining, err := h.byteArray(item(deopt, h.l.deopt.inlining), "inlining positions")
	if err != nil {
		return dst, err
	}
	for range maxInlined {
		i := p.inlined()
		g := f
		var outer position
		if i >= 0 {
			if len(inlining) < 16*(i+1) {
				return dst, fmt.Errorf("position %d of %d bytes of inlining positions", i, len(inlining))
			}
			outer = position(item(inlining, uint64(2*i)))
			if n := int(int32(item(inlining, uint64(2*i+1)))); n >= 0 {
				if n >= small(count) {
					return dst, fmt.Errorf("inlined function %d of %d", n, small(count))
				}
				if g, err = h.function(item(literals, uint64(n))); err != nil {
					return dst, err
				}
			}
			if outer.inlined() >= i {
				return dst, fmt.Errorf("function %d is inlined into function %d", i, outer.inlined())
			}
		}
		frame := g.place(p.offset())
		if p.external() {
			frame = g.place(g.start)
		}
		frame.Inlined = i >= 0
		dst = append(dst, frame)
		if i < 0 {
			return dst, nil
		}
		p = outer
	}
	return dst, fmt.Errorf("more than %d functions are inlined into each other", maxInlined)
}
