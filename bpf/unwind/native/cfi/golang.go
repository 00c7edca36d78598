package cfi

import (
	"bytes"
	"strings"

	"github.com/stoker-profiler/stoker/bpf/symbol"
)

// golang adds the rows of [from, to), which is Go's code. Where a function has set up its frame pointer the rule is
// [FramePointer]; everywhere else, in prologues, in functions without a frame and in assembly, the table of stack sizes is
// exact.
func (w *walk) golang(from, to Address) {
	w.b.add(from, Rule{})
	w.f.layout.Go().Each(w.r, from, to, func(fn *symbol.GoFunction) bool {
		inner := *w.b
		w.b.to = min(fn.End, to)
		w.function(fn)
		w.b.to = inner.to
		return true
	})
	w.b.add(to, Rule{})
}

// goRoots are the functions nobody called, for the tables of Go before 1.17, which do not say.
var goRoots = []string{"runtime.goexit", "runtime.mstart", "runtime.mcall", "runtime.rt0_go"}

// maxGoPopped is how many bytes above its return address a function may take off the stack.
const maxGoPopped = 64

func (w *walk) function(fn *symbol.GoFunction) {
	switch {
	case strings.HasPrefix(fn.Name, "runtime.sigreturn"):
		// The handler's return address is the first byte, and return addresses are looked up one byte before.
		w.b.add(fn.Start-1, Rule{Kind: Signal})
		w.b.add(fn.Start, Rule{Kind: Signal})
		return
	case strings.HasPrefix(fn.Name, "runtime.sigtramp"), strings.HasPrefix(fn.Name, "runtime.cgoSigtramp"):
		// Marked as a top frame, but the kernel called it from a frame that can be walked.
	case fn.TopFrame:
		w.b.add(fn.Start, Rule{Kind: Stop})
		return
	default:
		for _, root := range goRoots {
			if fn.Name == root {
				w.b.add(fn.Start, Rule{Kind: Stop})
				return
			}
		}
	}
	w.b.add(fn.Start, Rule{})     // some are no code: marks of the linker's, without a table
	frame, ok := goFrame{}, false // how the function keeps its frame pointer, once it has a frame
	fn.StackSizes(func(from, to Address, size int32) {
		if size < -maxGoPopped || size%8 != 0 {
			w.stats.Refused[ReasonRange]++
			w.b.add(from, Rule{})
			return
		}
		if size < 0 { // assembly that has taken its own return address off the stack
			r := w.f.arch.called()
			r.CFA += size
			w.b.add(from, r)
			return
		}
		if size == 0 {
			if fn.WritesSP { // it has switched to another stack, and the chain tells the way back
				w.b.add(from, Rule{Kind: FramePointer})
				return
			}
			w.b.add(from, w.f.arch.called())
			return
		}
		if !ok {
			frame, ok = w.goFrame(from, size), true
		}
		frame.rows(w.b, &w.f.arch, from, size, fn.WritesSP)
	})
}

// goFrame says what a function does behind the instruction that makes its frame.
type goFrame struct {
	saves  bool    // it saves the frame pointer
	stored Address // from where on it is in memory
	set    Address // from where on the frame pointer is the function's own
	pushed bool    // x86-64: by push, so that an epilogue restores it last
	link   bool    // arm64: the return address is at the stack pointer, as in all frames the compiler makes
}

// goFrame reads the instructions around address at, where the stack pointer has just moved by size.
func (w *walk) goFrame(at Address, size int32) goFrame {
	if w.f.arch.link {
		return goFrameARM64(w.r.ReadAddress(at-8, 24), at)
	}
	return goFrameX86(w.r.ReadAddress(at-1, 24), at, size)
}

// goFrameX86 knows the prologues of Go's assembler (cmd/internal/obj/x86/obj6.go): from 1.21 on push %rbp; mov %rsp, %rbp;
// before, sub $n, %rsp; mov %rbp, n-8(%rsp); lea n-8(%rsp), %rbp. b begins one byte before at.
func goFrameX86(b []byte, at Address, size int32) goFrame {
	if len(b) < 24 {
		return goFrame{}
	}
	before, b := b[0], b[1:]
	if before == 0x55 && size == 8 && bytes.HasPrefix(b, []byte{0x48, 0x89, 0xe5}) {
		return goFrame{saves: true, stored: at, set: at + 3, pushed: true}
	}
	store := 0
	switch {
	case bytes.HasPrefix(b, []byte{0x48, 0x89, 0x6c, 0x24}):
		store = 5
	case bytes.HasPrefix(b, []byte{0x48, 0x89, 0xac, 0x24}):
		store = 8
	default:
		return goFrame{}
	}
	if b[store] == 0x48 && b[store+1] == 0x8d && (b[store+2] == 0x6c || b[store+2] == 0xac) && b[store+3] == 0x24 {
		return goFrame{saves: true, stored: at + Address(store), set: at + Address(2*store)}
	}
	return goFrame{}
}

// goFrameARM64 knows the prologues of Go's assembler (cmd/internal/obj/arm64/obj7.go): str x30, [sp, #-n]! and then
// stur x29, [sp, #-8]; or, for large frames, stp x29, x30, [x20, #-8] and then mov sp, x20. b begins 8 bytes before at.
func goFrameARM64(b []byte, at Address) goFrame {
	if len(b) < 16 {
		return goFrame{}
	}
	before, last, next := le32(b), le32(b[4:]), le32(b[8:])
	switch {
	case last&0xffe00fff == 0xf8000ffe && next == 0xf81f83fd:
		return goFrame{saves: true, link: true, stored: at + 4, set: at + 8}
	case last == 0x9100029f && before == 0xa93ffa9d:
		return goFrame{saves: true, link: true, stored: at, set: at + 4}
	}
	return goFrame{}
}

// rows adds the rows of a piece of a function that begins at from and has one stack size.
func (g *goFrame) rows(b *builder, a *arch, from Address, size int32, writesSP bool) {
	if g.saves && from >= g.set && (writesSP || g.pushed) {
		b.add(from, Rule{Kind: FramePointer})
		return
	}
	if size > maxCFA-8 || a.link && !g.link { // or a frame that assembly made itself
		b.add(from, Rule{})
		return
	}
	r := Rule{Kind: Normal, Base: a.sp, CFA: size + 8, RA: AtCFA, RAAt: -8}
	at := int32(-16) // of the saved frame pointer
	if a.link {
		r.CFA, r.RAAt, at = size, -size, -size-8
	}
	add := func(from Address, r Rule) {
		if !r.fits() { // arm64: a frame of more than 256 KiB
			r = Rule{}
			if g.saves && from >= g.set {
				r.Kind = FramePointer
			}
		}
		b.add(from, r)
	}
	if g.saves && from >= g.stored {
		r.FP, r.FPAt = AtCFA, at
		add(from, r)
	} else if add(from, r); g.saves {
		r.FP, r.FPAt = AtCFA, at
		add(g.stored, r)
	}
	if g.saves && g.pushed && from < g.set {
		b.add(g.set, Rule{Kind: FramePointer})
	}
}
