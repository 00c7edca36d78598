package cfi

import "fmt"

// Kind says how a frame's caller is found.
type Kind uint8

const (
	// Invalid: there is no usable information here. The code may have a frame pointer or may be no code at all.
	Invalid Kind = iota
	// Stop: the outermost frame. The walk is complete.
	Stop
	// Normal: CFA = Base + CFA.
	Normal
	// Deref: CFA = *(Base + CFA) + Plus: functions that realign their stack (gcc's DRAP).
	Deref
	// Indexed: CFA = *(SP + CFA + 8 * Base) + Plus: the Montgomery multiplications of OpenSSL, which leave the caller's stack
	// pointer behind an array whose length is in a register. Only in a first frame, see [Register].
	Indexed
	// PLT: an entry of the procedure linkage table: CFA = SP + CFA, and 8 more when pc & 15 is at least Plus. FP is
	// unchanged.
	PLT
	// Signal: the code that a signal handler returns to. The interrupted registers, all of them, are in the kernel's signal
	// frame at SP, and the frame above is looked up at its pc, not at pc - 1: it was interrupted, it did not call.
	//
	// Where they are, from SP: x86-64: rbp 120, rbx 128, rsp 160, rip 168 (struct rt_sigframe with pretcode popped). arm64: x29 544,
	// x30 552, sp 560, pc 568 (struct rt_sigframe: siginfo of 128 bytes, then ucontext).
	Signal
	// FramePointer: the code keeps the chain of frame pointers and has set up its own frame: the caller's FP is at FP, the
	// return address at FP + 8, and the caller's SP is FP + 16.
	FramePointer

	kinds
)

var kindNames = [kinds]string{"invalid", "stop", "normal", "deref", "indexed", "plt", "signal", "fp"}

func (k Kind) String() string {
	if k < kinds {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Register is a DWARF register number (System V ABI x86-64 figure 3.36; DWARF for the Arm 64-bit architecture section 4.1).
// SP and FP are what a walk always knows. The others are known in the first frame of a walk, and in a frame that a signal
// interrupted; a rule that needs one elsewhere cannot be used there. rax is taken to be the same in the frame that called the first: a table
// says so of hand-written code only, which calls nothing that changes it.
type Register uint8

// Stack pointer, frame pointer and link register of the architectures.
const (
	X86AX   Register = 0 // rax
	X86BX   Register = 3 // rbx
	X86FP   Register = 6 // rbp
	X86SP   Register = 7 // rsp
	ARM64FP Register = 29
	ARM64LR Register = 30
	ARM64SP Register = 31

	registers = 32
)

// Place says where the caller's value of a register is.
type Place uint8

const (
	// Unchanged: in the register itself. For a return address: in the register [Rule.RAAt] names, which is the link register
	// of arm64 or, in a few functions written in assembly, another.
	Unchanged Place = iota
	// AtCFA: in memory at CFA + offset.
	AtCFA
	// AtFP: in memory at FP + offset.
	AtFP
	// Lost: it is not known. The walk goes on as long as no rule needs it.
	Lost

	places
)

// Rule says how to get from a frame to its caller. It is comparable, and [Rule.Pack] makes 8 bytes of it.
//
// The caller's SP is the CFA. With [Normal], [Deref] and [Indexed] all fields hold; the other kinds say what they use.
type Rule struct {
	Kind Kind
	Base Register // what the CFA is computed from
	CFA  int32    // in bytes, a multiple of 8, from -2 MiB to 2 MiB - 8
	Plus int16    // Deref, Indexed: bytes added to what was read, a multiple of 8. PLT: the threshold
	FP   Place
	FPAt int32 // in bytes, a multiple of 8, within ±256 KiB
	// RA is where the return address is; x86-64: at CFA - 8 but for a handful of functions.
	RA   Place
	RAAt int32 // AtCFA: in bytes, a multiple of 8, within ±256 KiB. Unchanged: the register's number
	// BXAt is where the caller's rbx is, from the CFA, in bytes, a multiple of 8, within ±256 KiB; 0: in rbx itself.
	// x86-64 only, and only of Normal; after other kinds but PLT and Signal rbx is not known. It is here because the dynamic
	// linker computes its CFA from rbx while it calls the functions that bind a symbol.
	BXAt int32
	// Signed: the return address carries a pointer authentication code (arm64), which is not a part of the address.
	Signed bool
}

// Bits of the packed form, from the lowest: kind 3, FP 2, RA 2, Signed 1, Base 5, CFA/8 19 signed, FPAt/8 16 signed, and a
// last word of 16 signed bits, whose meaning RA's two bits give: the register of the return address (0), RAAt/8 (1), or, when
// the return address is at CFA - 8 (3), Plus/8 of Deref and Indexed and BXAt/8 of the other kinds. Plus takes FPAt's place in
// PLT.
const (
	bitFP     = 3
	bitRA     = 5
	bitSigned = 7
	bitBase   = 8
	bitCFA    = 13
	bitFPAt   = 32
	bitLast   = 48
)

// raAbove is in RA's bits of the packed form: the return address is at CFA - 8.
const raAbove = 3

// Limits of what the packed form can express.
const (
	minCFA, maxCFA       = -2 << 20, 2<<20 - 8
	minSlotAt, maxSlotAt = -256 << 10, 256<<10 - 8
)

// slot says whether n, a distance in bytes, has a place in 16 bits.
func slot(n int32) bool { return n%8 == 0 && n >= minSlotAt && n <= maxSlotAt }

// above says whether the return address is where a call on x86-64 puts it.
func (r *Rule) above() bool { return r.RA == AtCFA && r.RAAt == -8 }

// plus says whether the rule dereferences and then adds Plus.
func (r *Rule) plus() bool { return r.Kind == Deref || r.Kind == Indexed }

// fits says whether r can be packed.
func (r *Rule) fits() bool {
	cfa := r.CFA%8 == 0 && r.CFA >= minCFA && r.CFA <= maxCFA && r.Base < registers
	fp := r.FP < places && (r.FP == AtCFA || r.FP == AtFP || r.FPAt == 0) && slot(r.FPAt)
	ra, bx := false, r.BXAt == 0 || r.above() && slot(r.BXAt) && r.Kind == Normal
	switch r.RA {
	case Unchanged:
		ra = r.RAAt >= 0 && r.RAAt < registers
	case AtCFA:
		ra = slot(r.RAAt)
	}
	plus := r.Plus == 0
	switch {
	case r.Kind == PLT:
		plus = r.FP == Unchanged && r.Plus >= 0 && r.Plus < 16
	case r.plus():
		plus = r.above() && r.Plus%8 == 0
	}
	return r.Kind < kinds && cfa && fp && ra && bx && plus
}

// Pack returns the form in which the kernel keeps r. Rules that [File.Page] and [File.Rows] return fit; the packed forms of
// different rules differ.
func (r Rule) Pack() uint64 {
	p := uint64(r.Kind) | uint64(r.FP)<<bitFP | uint64(r.Base)<<bitBase
	if r.Signed {
		p |= 1 << bitSigned
	}
	p |= uint64(uint32(r.CFA/8)&(1<<19-1)) << bitCFA
	fp := uint16(r.FPAt / 8)
	if r.Kind == PLT {
		fp = uint16(r.Plus)
	}
	ra, last := uint64(r.RA), uint16(r.RAAt)
	switch {
	case r.above() && r.plus():
		ra, last = raAbove, uint16(r.Plus/8)
	case r.above():
		ra, last = raAbove, uint16(r.BXAt/8)
	case r.RA == AtCFA:
		last = uint16(r.RAAt / 8)
	}
	return p | ra<<bitRA | uint64(fp)<<bitFPAt | uint64(last)<<bitLast
}

// Unpack is the inverse of [Rule.Pack].
func Unpack(p uint64) Rule {
	r := Rule{
		Kind: Kind(p & 7), FP: Place(p >> bitFP & 3), RA: Place(p >> bitRA & 3), Signed: p>>bitSigned&1 != 0,
		Base: Register(p >> bitBase & 31), CFA: int32(uint32(p)) >> bitCFA * 8,
	}
	if at := int16(p >> bitFPAt); r.Kind == PLT {
		r.Plus = at
	} else {
		r.FPAt = int32(at) * 8
	}
	last := int32(int16(p >> bitLast))
	switch {
	case r.RA == raAbove && r.plus():
		r.RA, r.RAAt, r.Plus = AtCFA, -8, int16(last*8)
	case r.RA == raAbove:
		r.RA, r.RAAt, r.BXAt = AtCFA, -8, last*8
	case r.RA == Unchanged:
		r.RAAt = last
	default:
		r.RAAt = last * 8
	}
	return r
}
