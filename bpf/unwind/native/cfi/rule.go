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
	// PLT: an entry of the procedure linkage table: CFA = SP + CFA, and 8 more when pc & 15 is at least Plus. FP is
	// unchanged.
	PLT
	// Signal: the code that a signal handler returns to. The interrupted registers, all of them, are in the kernel's signal
	// frame at SP, and the frame above is looked up at its pc, not at pc - 1: it was interrupted, it did not call.
	//
	// Where they are, from SP: x86-64: rbp 120, rsp 160, rip 168 (struct rt_sigframe with pretcode popped). arm64: x29 544,
	// x30 552, sp 560, pc 568 (struct rt_sigframe: siginfo of 128 bytes, then ucontext).
	Signal
	// FramePointer: the code keeps the chain of frame pointers and has set up its own frame: the caller's FP is at FP, the
	// return address at FP + 8, and the caller's SP is FP + 16.
	FramePointer

	kinds
)

var kindNames = [kinds]string{"invalid", "stop", "normal", "deref", "plt", "signal", "fp"}

func (k Kind) String() string {
	if k < kinds {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Register is a DWARF register number (System V ABI x86-64 figure 3.36; DWARF for the Arm 64-bit architecture section 4.1).
// SP and FP are what a walk always knows. The others are known in the first frame of a walk, and in a frame that a signal
// interrupted; a rule that needs one elsewhere cannot be used there.
type Register uint8

// Stack pointer, frame pointer and link register of the architectures.
const (
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
// The caller's SP is the CFA. With [Normal] and [Deref] all fields but Plus hold; the other kinds say what they use.
type Rule struct {
	Kind Kind
	Base Register // what the CFA is computed from
	CFA  int32    // in bytes, a multiple of 8, from -2 MiB to 2 MiB - 8
	Plus int16    // Deref: bytes added to what was read, a multiple of 8. PLT: the threshold
	FP   Place
	FPAt int32 // in bytes, a multiple of 8, within ±256 KiB
	// RA is where the return address is; x86-64: at CFA - 8 but for a handful of functions.
	RA   Place
	RAAt int32 // AtCFA, AtFP: in bytes, a multiple of 8, within ±256 KiB. Unchanged: the register's number
	// Signed: the return address carries a pointer authentication code (arm64), which is not a part of the address.
	Signed bool
}

// Bits of the packed form, from the lowest: kind 3, FP 2, RA 2, Signed 1, Base 5, CFA/8 19 signed, FPAt/8 16 signed,
// RAAt/8 16 signed. A register number in RAAt is not divided. Plus takes FPAt's place in PLT. In Deref, whose return address
// is always at CFA - 8, it takes RAAt's.
const (
	bitFP     = 3
	bitRA     = 5
	bitSigned = 7
	bitBase   = 8
	bitCFA    = 13
	bitFPAt   = 32
	bitRAAt   = 48
)

// Limits of what the packed form can express.
const (
	minCFA, maxCFA       = -2 << 20, 2<<20 - 8
	minSlotAt, maxSlotAt = -256 << 10, 256<<10 - 8
)

// fits says whether r can be packed.
func (r *Rule) fits() bool {
	cfa := r.CFA%8 == 0 && r.CFA >= minCFA && r.CFA <= maxCFA
	fp := r.FPAt%8 == 0 && r.FPAt >= minSlotAt && r.FPAt <= maxSlotAt
	ra := r.RAAt%8 == 0 && r.RAAt >= minSlotAt && r.RAAt <= maxSlotAt
	if r.RA == Unchanged {
		ra = r.RAAt >= 0 && r.RAAt < registers
	}
	switch r.Kind {
	case PLT:
		fp = r.FP == Unchanged && r.Plus >= 0 && r.Plus < 16
	case Deref:
		ra = r.RA == AtCFA && r.RAAt == -8 && r.Plus%8 == 0
	}
	return cfa && fp && ra && r.Base < registers && r.FP < places && r.RA < places
}

// Pack returns the form in which the kernel keeps r. Rules that [File.Page] and [File.Rows] return fit; the packed forms of
// different rules differ.
func (r Rule) Pack() uint64 {
	p := uint64(r.Kind) | uint64(r.FP)<<bitFP | uint64(r.RA)<<bitRA | uint64(r.Base)<<bitBase
	if r.Signed {
		p |= 1 << bitSigned
	}
	p |= uint64(uint32(r.CFA/8)&(1<<19-1)) << bitCFA
	fp, ra := uint16(r.FPAt/8), uint16(r.RAAt/8)
	if r.RA == Unchanged {
		ra = uint16(r.RAAt)
	}
	switch r.Kind {
	case PLT:
		fp = uint16(r.Plus)
	case Deref:
		ra = uint16(r.Plus / 8)
	}
	return p | uint64(fp)<<bitFPAt | uint64(ra)<<bitRAAt
}

// Unpack is the inverse of [Rule.Pack].
func Unpack(p uint64) Rule {
	r := Rule{
		Kind: Kind(p & 7), FP: Place(p >> bitFP & 3), RA: Place(p >> bitRA & 3), Signed: p>>bitSigned&1 != 0,
		Base: Register(p >> bitBase & 31), CFA: int32(uint32(p)) >> bitCFA * 8,
		FPAt: int32(int16(p>>bitFPAt)) * 8, RAAt: int32(int16(p>>bitRAAt)) * 8,
	}
	if r.RA == Unchanged {
		r.RAAt = int32(int16(p >> bitRAAt))
	}
	switch r.Kind {
	case PLT:
		r.FPAt, r.Plus = 0, int16(p>>bitFPAt)
	case Deref:
		r.RAAt, r.Plus = -8, int16(r.RAAt)
	}
	return r
}
