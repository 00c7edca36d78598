package cfi

import (
	"debug/elf"
	"errors"
)

// arch is what differs between architectures.
type arch struct {
	sp, fp, bx Register
	ra         uint64 // DWARF column of the return address
	link       bool   // calls put the return address into that register
}

// noRegister is a number that no instruction can name.
const noRegister Register = 255

func archOf(m elf.Machine) (arch, bool) {
	switch m {
	case elf.EM_X86_64:
		return arch{sp: X86SP, fp: X86FP, bx: X86BX, ra: 16}, true
	case elf.EM_AARCH64:
		return arch{sp: ARM64SP, fp: ARM64FP, bx: noRegister, ra: uint64(ARM64LR), link: true}, true
	}
	return arch{}, false
}

// where says how a register's value in the caller is found.
type where uint8

const (
	whereUnset where = iota // nothing said: for most registers unchanged
	whereSame
	whereUndefined
	whereCFA        // at CFA + n
	whereFP         // at fp + n
	whereRegister   // in register n
	whereSignal     // at sp + n
	whereExpression // somewhere a rule cannot say
)

// saved is the rule of one register.
type saved struct {
	where where
	n     int64
}

// cfaForm says how the CFA is computed.
type cfaForm uint8

const (
	cfaUnset   cfaForm = iota
	cfaOffset          // register + offset
	cfaDeref           // *(register + offset) + plus
	cfaIndexed         // *(sp + offset + 8 * register) + plus
	cfaPLT             // sp + offset, and 8 more if pc & 15 >= plus
	cfaExpression
)

// state is one row of the table that a CFA program describes, reduced to what a walk needs.
type state struct {
	form cfaForm
	// Of cfaOffset. An expression leaves them alone: def_cfa_register after one takes the offset from before, as libgcc's
	// unwinder does and libgcrypt's assembly expects.
	register uint64
	offset   int64
	// Of the other forms.
	base       uint64
	at, plus   int64
	sp         where // whereUnset: the CFA, as ever
	fp, ra, bx saved
	signed     bool
}

// maxRemembered is how deep remember_state may nest; compilers nest once.
const maxRemembered = 16

var (
	errProgram = errors.New("call frame instructions cut short")
	errOpcode  = errors.New("unknown call frame instruction")
	errBudget  = errors.New("too many call frame instructions")
)

// DWARF 5 section 7.24, and extensions: LSB core specification section 10.6.1, DWARF for the Arm 64-bit architecture 4.4.
const (
	opAdvanceLoc = 0x40
	opOffset     = 0x80
	opRestore    = 0xc0

	opNop                     = 0x00
	opSetLoc                  = 0x01
	opAdvanceLoc1             = 0x02
	opAdvanceLoc2             = 0x03
	opAdvanceLoc4             = 0x04
	opOffsetExtended          = 0x05
	opRestoreExtended         = 0x06
	opUndefined               = 0x07
	opSameValue               = 0x08
	opRegister                = 0x09
	opRememberState           = 0x0a
	opRestoreState            = 0x0b
	opDefCFA                  = 0x0c
	opDefCFARegister          = 0x0d
	opDefCFAOffset            = 0x0e
	opDefCFAExpression        = 0x0f
	opExpression              = 0x10
	opOffsetExtendedSF        = 0x11
	opDefCFASF                = 0x12
	opDefCFAOffsetSF          = 0x13
	opValOffset               = 0x14
	opValOffsetSF             = 0x15
	opValExpression           = 0x16
	opNegateRAStateWithPC     = 0x2c // arm64
	opNegateRAState           = 0x2d // arm64
	opGNUArgsSize             = 0x2e
	opGNUNegativeOffsetExtend = 0x2f
)

// program runs CFA programs.
type program struct {
	arch      arch
	codeAlign uint64
	dataAlign int64
	enc       uint8 // of the pointers in set_loc
	initial   state // after the instructions of the CIE: what restore goes back to
	steps     int   // instructions that may still be run
}

// run executes the instructions in c, beginning at address loc with the given state. It calls row with each address at which
// a state begins to hold, until the addresses reach end, and returns the last state and the address it got to. A repeated
// address replaces the one before.
func (p *program) run(c *cursor, st state, loc, end Address, row func(Address, *state)) (state, Address, error) {
	var remembered [maxRemembered]state
	depth := 0
	advance := func(delta uint64) bool {
		row(loc, &st)
		if p.codeAlign == 0 || delta > uint64(end-loc)/p.codeAlign {
			loc = end
			return false
		}
		loc += Address(delta * p.codeAlign)
		return loc < end
	}
	for len(c.b) > 0 {
		if p.steps--; p.steps < 0 {
			return st, loc, errBudget
		}
		more := true
		op := c.u8()
		low := uint64(op & 0x3f)
		switch op & 0xc0 {
		case opAdvanceLoc:
			more = advance(low)
		case opOffset:
			p.set(&st, low, saved{whereCFA, p.factored(int64(c.uleb()))})
		case opRestore:
			p.restore(&st, low)
		default:
			switch op {
			case opNop:
			case opSetLoc:
				to := c.pointer(p.enc, 0)
				row(loc, &st)
				if to < loc {
					return st, loc, errProgram
				}
				loc = to
				more = loc < end
			case opAdvanceLoc1:
				more = advance(uint64(c.u8()))
			case opAdvanceLoc2:
				more = advance(uint64(c.u16()))
			case opAdvanceLoc4:
				more = advance(uint64(c.u32()))
			case opOffsetExtended:
				r := c.uleb()
				p.set(&st, r, saved{whereCFA, p.factored(int64(c.uleb()))})
			case opOffsetExtendedSF:
				r := c.uleb()
				p.set(&st, r, saved{whereCFA, p.factored(c.sleb())})
			case opGNUNegativeOffsetExtend:
				r := c.uleb()
				p.set(&st, r, saved{whereCFA, -p.factored(int64(c.uleb()))})
			case opRestoreExtended:
				p.restore(&st, c.uleb())
			case opUndefined:
				p.set(&st, c.uleb(), saved{where: whereUndefined})
			case opSameValue:
				p.set(&st, c.uleb(), saved{where: whereSame})
			case opRegister:
				r := c.uleb()
				n := c.uleb()
				if n >= registers {
					p.set(&st, r, saved{where: whereExpression})
				} else {
					p.set(&st, r, saved{whereRegister, int64(n)})
				}
			case opRememberState:
				if depth == len(remembered) {
					return st, loc, errBudget
				}
				remembered[depth] = st
				depth++
			case opRestoreState:
				if depth == 0 {
					return st, loc, errProgram
				}
				depth--
				st = remembered[depth]
			case opDefCFA:
				st.form, st.register = cfaOffset, c.uleb()
				st.offset = int64(c.uleb())
			case opDefCFASF:
				st.form, st.register = cfaOffset, c.uleb()
				st.offset = p.factored(c.sleb())
			case opDefCFARegister:
				st.form, st.register = cfaOffset, c.uleb()
			case opDefCFAOffset:
				st.offset = int64(c.uleb())
			case opDefCFAOffsetSF:
				st.offset = p.factored(c.sleb())
			case opDefCFAExpression:
				p.cfaExpression(&st, c.take(c.uleb()))
			case opExpression:
				r := c.uleb()
				p.set(&st, r, p.expression(c.take(c.uleb())))
			case opValOffset:
				r := c.uleb()
				c.uleb()
				p.set(&st, r, saved{where: whereExpression})
			case opValOffsetSF:
				r := c.uleb()
				c.sleb()
				p.set(&st, r, saved{where: whereExpression})
			case opValExpression:
				r := c.uleb()
				c.take(c.uleb())
				p.set(&st, r, saved{where: whereExpression})
			case opNegateRAState, opNegateRAStateWithPC:
				if !p.arch.link { // 0x2d is GNU_window_save elsewhere: SPARC's
					return st, loc, errOpcode
				}
				st.signed = !st.signed
			case opGNUArgsSize:
				c.uleb()
			default:
				return st, loc, errOpcode
			}
		}
		if c.failed {
			return st, loc, errProgram
		}
		if !more {
			return st, loc, nil
		}
	}
	row(loc, &st)
	return st, loc, nil
}

// factored multiplies by the data alignment; what overflows becomes an offset that fits no rule.
func (p *program) factored(n int64) int64 {
	const limit = 1 << 40
	if n > limit || n < -limit || p.dataAlign > 1<<16 || p.dataAlign < -1<<16 {
		return 1
	}
	return n * p.dataAlign
}

// slot returns where st keeps the rule of a register that matters, nil for others.
func (p *program) slot(st *state, r uint64) *saved {
	switch r {
	case uint64(p.arch.fp):
		return &st.fp
	case uint64(p.arch.bx):
		return &st.bx
	case p.arch.ra:
		return &st.ra
	}
	return nil
}

func (p *program) set(st *state, r uint64, v saved) {
	if r == uint64(p.arch.sp) {
		st.sp = v.where
		return
	}
	if at := p.slot(st, r); at != nil {
		*at = v
	}
}

func (p *program) restore(st *state, r uint64) {
	if r == uint64(p.arch.sp) {
		st.sp = p.initial.sp
		return
	}
	if at := p.slot(st, r); at != nil {
		*at = *p.slot(&p.initial, r)
	}
}
