package replay

import (
	"debug/elf"
	"testing"

	"github.com/stoker-profiler/stoker/bpf/unwind/native/cfi"
)

// TestOnARM64AFrameRecordsEndIsNotTheStackPointer walks from a function that keeps a frame record at the bottom of a frame of 64 bytes, by
// frame pointer, to callers that find their frame by the stack pointer: known where their frame record is, and lost else.
func TestOnARM64AFrameRecordsEndIsNotTheStackPointer(t *testing.T) {
	const fp, sp = cfi.ARM64FP, cfi.ARM64SP
	memory := map[uint64]uint64{
		0x1000: 0x1040, 0x1008: 0x20001, // the frame record of the function at 0x10000, whose frame ends at 0x1040
		0x1040: 0x1080, 0x1048: 0x30001, // that of its caller, at the bottom of a frame of 0x60 bytes
		0x1060: 0x7777, 0x1068: 0x7777, // what lies where the frame would be if it ended behind the record
	}
	caller := cfi.Rule{Kind: cfi.Normal, Base: sp, CFA: 0x60, FP: cfi.AtCFA, FPAt: -0x60, RA: cfi.AtCFA, RAAt: -0x58}
	apart := caller
	apart.RAAt = -0x50 // the return address is not beside the frame pointer: this is no frame record
	plain := cfi.Rule{Kind: cfi.Normal, Base: sp, CFA: 0x60, RA: cfi.AtCFA, RAAt: -8}
	other := caller
	other.Base, other.CFA = fp, 0x60
	for _, c := range []struct {
		name string
		rule cfi.Rule
		end  End
		pc   uint64
		sp   uint64
	}{
		{"a frame record", caller, Complete, 0x30001, 0x10a0},
		{"no frame record", apart, NoRegister, 0, 0},
		{"the frame pointer is not saved", plain, NoRegister, 0, 0},
		{"by the frame pointer", other, Complete, 0x30001, 0x10a0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := Walker{Machine: elf.EM_AARCH64, Memory: func(a uint64) (uint64, bool) { v, ok := memory[a]; return v, ok }, Code: func(a uint64) (cfi.Rule, End) {
				if a>>16 == 1 {
					return cfi.Rule{Kind: cfi.FramePointer}, Complete
				}
				return c.rule, Complete
			}}
			g := Registers{PC: 0x10000}
			g.set(fp, 0x1000)
			g.set(sp, 0xff0)
			g, end, ok := w.Step(g)
			if !ok || g.PC != 0x20001 || !g.SPLow {
				t.Fatalf("the step by frame pointer leads to %#x, %v", g.PC, end)
			}
			next, end, ok := w.Step(g)
			if end != c.end || ok != (c.end == Complete) {
				t.Fatalf("the next step ends with %v, %v; want %v", end, ok, c.end)
			}
			if got, _ := next.get(sp); ok && (next.PC != c.pc || got != c.sp || next.SPLow) {
				t.Errorf("pc %#x, sp %#x (low: %v), want %#x, %#x", next.PC, got, next.SPLow, c.pc, c.sp)
			}
		})
	}
}
