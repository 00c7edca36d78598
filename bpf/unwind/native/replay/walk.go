package replay

import (
	"debug/elf"
	"fmt"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/unwind/native/cfi"
)

// MaxFrames is how many frames a walk has at most: twice the kernel's, so that a walk that loops is seen as one.
const MaxFrames = 512

// Registers is what is known of a frame's registers.
type Registers struct {
	PC uint64
	// ReturnAddress: PC is one, and the code that called lies before it.
	ReturnAddress bool
	// R are the registers by DWARF number. Known has a bit for each that has the frame's value.
	R     [32]uint64
	Known uint32
	// SPLow: the stack pointer lies somewhere below the frame's. On arm64 a frame record is at the bottom of its frame or anywhere in
	// it (AAPCS64 6.4.6), so where the frame ends a step by frame pointer has not learned.
	SPLow bool
}

func (g *Registers) get(r cfi.Register) (uint64, bool) { return g.R[r], g.Known>>r&1 != 0 }

func (g *Registers) set(r cfi.Register, v uint64) { g.R[r], g.Known = v, g.Known|1<<r }

// End says why a walk ended.
type End uint8

const (
	// Complete: the outermost frame was reached.
	Complete End = iota
	// NoRule: no table speaks of the code.
	NoRule
	// NoCode: the address is in no executable mapping of a file.
	NoCode
	// NoRegister: a rule needs a register that is not known in this frame.
	NoRegister
	// NoMemory: the stack could not be read.
	NoMemory
	// NoProgress: the caller's frame would lie below.
	NoProgress
	// TooDeep: more than MaxFrames.
	TooDeep
)

var endNames = []string{"complete", "no rule", "no code", "no register", "no memory", "no progress", "too deep"}

func (e End) String() string {
	if int(e) < len(endNames) {
		return endNames[e]
	}
	return fmt.Sprintf("end %d", uint8(e))
}

// Memory reads a word of the process; false where it cannot.
type Memory func(address uint64) (uint64, bool)

// Code returns the rule at an address of the process; NoCode or NoRule where there is none, Complete where there is.
type Code func(address uint64) (cfi.Rule, End)

// Walker walks stacks of one process.
type Walker struct {
	Machine elf.Machine // EM_X86_64 or EM_AARCH64
	Memory  Memory
	Code    Code
	// CodeMask has the bits of a return address that are address; 0 means all. On arm64 the others may be a signature.
	CodeMask uint64
}

// Walk returns the frames of a stack, innermost first, and why they end.
func (w *Walker) Walk(g Registers) ([]Registers, End) {
	frames := []Registers{g}
	for len(frames) < MaxFrames {
		next, end, ok := w.Step(g)
		if !ok {
			return frames, end
		}
		g = next
		frames = append(frames, g)
	}
	return frames, TooDeep
}

// place are the numbers of a machine's registers.
type place struct{ sp, fp, bx cfi.Register }

func (w *Walker) place() place {
	if w.Machine == elf.EM_AARCH64 {
		return place{cfi.ARM64SP, cfi.ARM64FP, 0}
	}
	return place{cfi.X86SP, cfi.X86FP, cfi.X86BX}
}

// Step returns the registers of the caller of a frame; false with the reason if there is none.
func (w *Walker) Step(g Registers) (Registers, End, bool) {
	at := g.PC
	if g.ReturnAddress {
		at--
	}
	rule, end := w.Code(at)
	if end != Complete {
		return g, end, false
	}
	return w.Apply(rule, g)
}

// Apply is Step with a given rule.
func (w *Walker) Apply(rule cfi.Rule, g Registers) (Registers, End, bool) {
	p := w.place()
	sp, ok := g.get(p.sp)
	if !ok {
		return g, NoRegister, false
	}
	x86 := w.Machine == elf.EM_X86_64
	var next Registers
	switch rule.Kind {
	case cfi.Invalid:
		return g, NoRule, false
	case cfi.Stop:
		return g, Complete, false
	case cfi.Signal:
		return w.signal(sp)
	case cfi.FramePointer:
		fp, ok := g.get(p.fp)
		if !ok {
			return g, NoRegister, false
		}
		if fp == 0 {
			return g, Complete, false
		}
		up, ok1 := w.Memory(fp)
		ra, ok2 := w.Memory(fp + 8)
		if !ok1 || !ok2 {
			return g, NoMemory, false
		}
		next.set(p.fp, up)
		next.set(p.sp, fp+16)
		next.SPLow = !x86
		return w.caller(next, ra)
	}

	base, ok := g.get(rule.Base)
	if !ok {
		return g, NoRegister, false
	}
	var cfa uint64
	switch {
	case g.SPLow && rule.Base == p.sp:
		// The stack pointer is needed and not known. A function that saves the frame pointer and right above it the return address
		// makes a frame record, to which the frame pointer leads; of another one nothing is known.
		fp, ok := g.get(p.fp)
		if !ok || rule.Kind != cfi.Normal || rule.FP != cfi.AtCFA || rule.RA != cfi.AtCFA || rule.RAAt != rule.FPAt+8 || fp&7 != 0 || fp < sp {
			return g, NoRegister, false
		}
		cfa = fp - uint64(int64(rule.FPAt))
	case rule.Kind == cfi.Normal:
		cfa = base + uint64(int64(rule.CFA))
	case rule.Kind == cfi.Deref || rule.Kind == cfi.Indexed:
		from := base + uint64(int64(rule.CFA))
		if rule.Kind == cfi.Indexed {
			from = sp + uint64(int64(rule.CFA)) + 8*base
		}
		if cfa, ok = w.Memory(from); !ok {
			return g, NoMemory, false
		}
		cfa += uint64(int64(rule.Plus))
	case rule.Kind == cfi.PLT:
		cfa = base + uint64(int64(rule.CFA))
		if g.PC&15 >= uint64(rule.Plus) {
			cfa += 8
		}
	default:
		return g, NoRule, false
	}
	// Only the first frame, and what a signal interrupted, may have pushed nothing.
	if cfa < sp || cfa == sp && g.ReturnAddress {
		return g, NoProgress, false
	}
	next.set(p.sp, cfa)

	fp, fpKnown := g.get(p.fp)
	switch rule.FP {
	case cfi.Unchanged:
		if fpKnown {
			next.set(p.fp, fp)
		}
	case cfi.AtCFA, cfi.AtFP:
		from := cfa
		if rule.FP == cfi.AtFP {
			from = fp
		}
		if rule.FP == cfi.AtCFA || fpKnown {
			v, ok := w.Memory(from + uint64(int64(rule.FPAt)))
			if !ok {
				return g, NoMemory, false
			}
			next.set(p.fp, v)
		}
	}
	if x86 && (rule.Kind == cfi.Normal || rule.Kind == cfi.PLT) {
		if rule.BXAt != 0 {
			v, ok := w.Memory(cfa + uint64(int64(rule.BXAt)))
			if !ok {
				return g, NoMemory, false
			}
			next.set(p.bx, v)
		} else if v, ok := g.get(p.bx); ok {
			next.set(p.bx, v)
		}
	}
	if ax, ok := g.get(cfi.X86AX); x86 && ok && !g.ReturnAddress { // see register__value in native.bpf.c
		next.set(cfi.X86AX, ax)
	}
	var ra uint64
	switch rule.RA {
	case cfi.AtCFA:
		if ra, ok = w.Memory(cfa + uint64(int64(rule.RAAt))); !ok {
			return g, NoMemory, false
		}
	default:
		if ra, ok = g.get(cfi.Register(rule.RAAt)); !ok {
			return g, NoRegister, false
		}
	}
	return w.caller(next, ra)
}

// caller finishes the registers of a caller.
func (w *Walker) caller(next Registers, ra uint64) (Registers, End, bool) {
	if w.CodeMask != 0 {
		ra &= w.CodeMask
	}
	if ra == 0 {
		return next, Complete, false
	}
	next.PC, next.ReturnAddress = ra, true
	return next, Complete, true
}

// signal reads the registers that a signal interrupted: see [cfi.Signal].
func (w *Walker) signal(sp uint64) (Registers, End, bool) {
	var next Registers
	read := func(r cfi.Register, at uint64) bool {
		v, ok := w.Memory(sp + at)
		next.set(r, v)
		return ok
	}
	ok := true
	if w.Machine == elf.EM_AARCH64 {
		for r := range cfi.Register(32) {
			ok = ok && read(r, 312+8*uint64(r))
		}
		if next.PC, ok = w.word(ok, sp+568); !ok {
			return next, NoMemory, false
		}
		return next, Complete, true
	}
	// struct sigcontext, from 40 on: r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip.
	for i, r := range []cfi.Register{8, 9, 10, 11, 12, 13, 14, 15, 5, 4, 6, 3, 1, 0, 2, 7} {
		ok = ok && read(r, 40+8*uint64(i))
	}
	if next.PC, ok = w.word(ok, sp+168); !ok {
		return next, NoMemory, false
	}
	return next, Complete, true
}

func (w *Walker) word(ok bool, at uint64) (uint64, bool) {
	if !ok {
		return 0, false
	}
	return w.Memory(at)
}

// Files is the code of a process: its mappings, and the rows of their files.
type Files struct {
	maps *process.Maps
	open func(m *process.Mapping) (*File, error)
	// Err is the first error that reading a file gave.
	Err   error
	files map[string]*File
}

// NewFiles makes a Code of a process's mappings. open is called once per path.
func NewFiles(maps *process.Maps, open func(m *process.Mapping) (*File, error)) *Files {
	return &Files{maps: maps, open: open, files: make(map[string]*File)}
}

// Rule is a [Code].
func (f *Files) Rule(address uint64) (cfi.Rule, End) {
	m, ok := f.maps.Find(address)
	if !ok || !m.Executable || !m.Backed() && m.Path != "[vdso]" {
		return cfi.Rule{}, NoCode
	}
	file, known := f.files[m.Path]
	if !known {
		var err error
		if file, err = f.open(m); err != nil {
			f.fail(err)
			file = nil
		}
		f.files[m.Path] = file
	}
	if file == nil {
		return cfi.Rule{}, NoCode
	}
	rule, err := file.rule(m.FileOffset(address))
	if err != nil {
		f.fail(err)
	}
	if rule.Kind == cfi.Invalid {
		return rule, NoRule
	}
	return rule, Complete
}

func (f *Files) fail(err error) {
	if f.Err == nil {
		f.Err = err
	}
}
