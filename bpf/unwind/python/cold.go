package python

import (
	"cmp"
	"debug/elf"
	"encoding/binary"
	"slices"

	"golang.org/x/arch/x86/x86asm"

	"github.com/stoker-profiler/stoker/bpf/symbol"
)

// maxLoopBytes bounds the code of a loop that is searched: that of CPython has some 60 KB.
const maxLoopBytes = 1 << 20

// coldParts finds the pieces of a function that the compiler has put elsewhere because they are rarely run, as gcc does with
// -freorder-blocks-and-partition: a stripped file has no name for them. They are what conditional jumps out of the function lead to, each as
// long as .eh_frame_hdr says. x86-64 only: nothing is found on arm64, where code of that kind shows the interpreter's own frame.
func coldParts(l *symbol.Layout, in *symbol.Reader, f symbol.Symbol) (parts []symbol.Range) {
	if l.Machine != elf.EM_X86_64 || f.Size > maxLoopBytes {
		return nil
	}
	starts := functionStarts(in, l.Frames)
	code := slices.Clone(in.ReadAddress(f.Address, f.Size))
	for at := 0; at < len(code); {
		inst, err := x86asm.Decode(code[at:], 64)
		if err != nil || inst.Len == 0 {
			at++
			continue
		}
		at += inst.Len
		jump, ok := inst.Args[0].(x86asm.Rel)
		if !ok || inst.Op == x86asm.JMP || inst.Op == x86asm.CALL {
			continue
		}
		to := f.Address + symbol.Address(int64(at)+int64(jump))
		if to-f.Address < symbol.Address(f.Size) || slices.ContainsFunc(parts, func(p symbol.Range) bool { return to-p.Address < symbol.Address(p.Size) }) {
			continue
		}
		i, exact := slices.BinarySearch(starts, to)
		// Nobody jumps into another function but at its beginning.
		if exact || i == 0 || i == len(starts) {
			continue
		}
		if s, ok := l.Segment(to); ok && s.Exec && len(parts) < maxColdParts {
			parts = append(parts, symbol.Range{Address: starts[i-1], Size: uint64(starts[i] - starts[i-1])})
		}
	}
	slices.SortFunc(parts, func(a, b symbol.Range) int { return cmp.Compare(a.Address, b.Address) })
	return parts
}

// maxColdParts leaves room for the loop itself among the kernel side's MAX_LOOPS.
const maxColdParts = 3

// maxFunctions bounds the search table: the largest libpython has some 15,000 entries.
const maxFunctions = 1 << 18

// functionStarts returns where functions and their parts begin, in ascending order, by the search table of .eh_frame_hdr in the encoding
// that all linkers use (LSB, "Exception Frame Header").
func functionStarts(in *symbol.Reader, frames symbol.Range) []symbol.Address {
	head := in.ReadOffset(frames.Offset, min(frames.Size, 12))
	if len(head) < 12 || string(head[:4]) != "\x01\x1b\x03\x3b" {
		return nil
	}
	n := uint64(binary.LittleEndian.Uint32(head[8:]))
	if n > maxFunctions || 12+8*n > frames.Size {
		return nil
	}
	table := in.ReadOffset(frames.Offset+12, 8*n)
	starts := make([]symbol.Address, 0, n)
	for ; len(table) >= 8; table = table[8:] {
		starts = append(starts, frames.Address+symbol.Address(int64(int32(binary.LittleEndian.Uint32(table)))))
	}
	if !slices.IsSorted(starts) {
		return nil
	}
	return starts
}
