package cfi

// DWARF 5 section 7.7.1: the operations that compilers and people write into call frame information.
const (
	opDeref      = 0x06
	opConst1U    = 0x08
	opConst1S    = 0x09
	opAnd        = 0x1a
	opMul        = 0x1e
	opPlus       = 0x22
	opPlusUconst = 0x23
	opShl        = 0x24
	opGE         = 0x2a
	opLit0       = 0x30
	opLit31      = 0x4f
	opBreg0      = 0x70
	opBreg31     = 0x8f
)

// breg reads a register and an offset to it.
func (c *cursor) breg() (register uint64, offset int64, ok bool) {
	op := c.u8()
	if op < opBreg0 || op > opBreg31 {
		return 0, 0, false
	}
	offset = c.sleb()
	return uint64(op - opBreg0), offset, !c.failed
}

// lit reads a small constant.
func (c *cursor) lit() (int64, bool) {
	switch op := c.u8(); {
	case op >= opLit0 && op <= opLit31:
		return int64(op - opLit0), true
	case op == opConst1U:
		return int64(c.u8()), !c.failed
	}
	return 0, false
}

// is says whether the next operation is op, and takes it if so.
func (c *cursor) is(op uint8) bool {
	if len(c.b) > 0 && c.b[0] == op {
		c.take(1)
		return true
	}
	return false
}

// cfaExpression sets the CFA of st to the expression b, as far as it has one of the forms that occur:
//
//	breg R n                                                  R + n
//	breg R n; deref                                           *(R + n)
//	breg R n; deref; plus_uconst m                            *(R + n) + m
//	breg sp n; breg R 0; lit8; mul; plus; deref; plus_uconst m   *(sp + n + 8R) + m
//	breg sp n; breg rip 0; lit15; and; litN; ge; lit3; shl; plus   the PLT of ld and gold
func (p *program) cfaExpression(st *state, b []byte) {
	st.form = cfaExpression
	c := &cursor{b: b}
	register, offset, ok := c.breg()
	if !ok {
		return
	}
	form, plus := cfaOffset, int64(0)
	if c.is(opDeref) {
		form = cfaDeref
	} else if second, zero, ok := (&cursor{b: c.b}).breg(); ok && register == uint64(p.arch.sp) {
		c.breg()
		if zero != 0 {
			return
		}
		if second == p.arch.ra {
			n, ok := p.pltTail(c)
			if ok && len(c.b) == 0 && !c.failed {
				st.form, st.base, st.at, st.plus = cfaPLT, register, offset, n
			}
			return
		}
		if n, ok := c.lit(); !ok || n != 8 || !c.is(opMul) || !c.is(opPlus) || !c.is(opDeref) {
			return
		}
		form, register = cfaIndexed, second
	}
	if c.is(opPlusUconst) {
		v := c.uleb()
		if v > 1<<30 {
			return
		}
		if form == cfaOffset {
			offset += int64(v)
		} else {
			plus = int64(v)
		}
	}
	if len(c.b) > 0 || c.failed {
		return
	}
	if st.form, st.base, st.at, st.plus = form, register, offset, plus; form == cfaOffset {
		st.register, st.offset, st.plus = register, offset, 0
	}
}

// pltTail reads what follows sp and pc in the expression of a PLT, and returns the threshold.
func (p *program) pltTail(c *cursor) (int64, bool) {
	if n, ok := c.lit(); !ok || n != 15 || !c.is(opAnd) {
		return 0, false
	}
	n, ok := c.lit()
	if !ok || !c.is(opGE) {
		return 0, false
	}
	if s, ok := c.lit(); !ok || s != 3 || !c.is(opShl) || !c.is(opPlus) {
		return 0, false
	}
	return n, true
}

// expression reads the address of a saved register: fp + n, which functions that realign the stack use for fp itself, or
// sp + n in the frame of a signal.
func (p *program) expression(b []byte) saved {
	c := &cursor{b: b}
	r, n, ok := c.breg()
	if ok && len(c.b) == 0 {
		switch r {
		case uint64(p.arch.fp):
			return saved{whereFP, n}
		case uint64(p.arch.sp):
			return saved{whereSignal, n}
		}
	}
	return saved{where: whereExpression}
}

// Where the kernel's signal frame has the registers, from SP at the trampoline: see [Signal].
const x86SignalSP = 160

// rule turns a state into a rule; the second result counts when it is not ReasonCount.
func (p *program) rule(st *state, signal bool) (Rule, Reason) {
	if st.ra.where == whereUndefined {
		return Rule{Kind: Stop}, ReasonCount
	}
	if signal && !p.arch.link && st.form == cfaDeref && st.base == uint64(p.arch.sp) && st.at == x86SignalSP && st.plus == 0 {
		return Rule{Kind: Signal}, ReasonCount
	}
	r := Rule{Kind: Normal}
	base, at, plus := st.base, st.at, st.plus
	switch st.form {
	case cfaOffset:
		base, at, plus = st.register, st.offset, 0
	case cfaDeref:
		r.Kind = Deref
	case cfaIndexed:
		r.Kind = Indexed
	case cfaPLT:
		r.Kind = PLT
	case cfaUnset:
		return Rule{}, ReasonEntry
	default:
		return Rule{}, ReasonExpression
	}
	if base >= registers || st.sp != whereUnset {
		return Rule{}, ReasonRegister
	}
	if at < minCFA || at > maxCFA || plus < -1<<15 || plus >= 1<<15 {
		return Rule{}, ReasonRange
	}
	r.Base, r.CFA, r.Plus = Register(base), int32(at), int16(plus)

	switch st.ra.where {
	case whereCFA:
		if st.ra.n < minSlotAt || st.ra.n > maxSlotAt {
			return Rule{}, ReasonRange
		}
		r.RA, r.RAAt = AtCFA, int32(st.ra.n)
	case whereRegister:
		r.RA, r.RAAt = Unchanged, int32(st.ra.n)
	case whereUnset, whereSame:
		if !p.arch.link {
			return Rule{}, ReasonRegister
		}
		r.RA, r.RAAt = Unchanged, int32(p.arch.ra)
	default:
		return Rule{}, ReasonExpression
	}
	r.Signed = st.signed

	switch st.fp.where {
	case whereUnset, whereSame:
		r.FP = Unchanged
	case whereCFA, whereFP:
		r.FP, r.FPAt = AtCFA, int32(st.fp.n)
		if st.fp.where == whereFP {
			r.FP = AtFP
		}
		if st.fp.n < minSlotAt || st.fp.n > maxSlotAt || st.fp.n%8 != 0 {
			r.FP, r.FPAt = Lost, 0
		}
	case whereRegister:
		if r.FP = Lost; st.fp.n == int64(p.arch.fp) {
			r.FP = Unchanged
		}
	default:
		r.FP = Lost
	}
	if b := st.bx; b.where == whereCFA && r.Kind == Normal && r.above() && b.n >= minSlotAt && b.n <= maxSlotAt && b.n%8 == 0 {
		r.BXAt = int32(b.n)
	}
	if !r.fits() {
		return Rule{}, ReasonRange
	}
	return r, ReasonCount
}
