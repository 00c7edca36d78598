package node

import (
	"encoding/hex"
	"testing"
)

// The tables of one function of V8 11.3 and of 14.6, and what they say: function leaf(n) { sum.n += n; if (go) halt(); return n + 1; }.
var tables = []struct {
	flagged bool
	table   string
}{
	{false, "01e81502201924070b0820" + "0c20070006280524" + "0610"},
	{true, "02e815072032240e0b1320" + "1b200e000f280a24" + "0f10"},
}

func TestPositions(t *testing.T) {
	want := []struct {
		at     int64
		offset int
	}{{-1, 697}, {0, 705}, {11, 705}, {12, 714}, {14, 714}, {15, 711}, {19, 719}, {25, 727}, {28, 727}, {31, 737}, {33, 746}, {36, 750}, {99, 750}}
	for _, c := range tables {
		table, err := hex.DecodeString(c.table)
		if err != nil {
			t.Fatal(err)
		}
		l := &Layout{flaggedPositions: c.flagged}
		for _, w := range want {
			p, ok, err := l.positionAt(table, w.at)
			if err != nil || !ok || p.offset() != w.offset || p.inlined() != -1 || p.external() {
				t.Errorf("flagged %v: position at %d is %d (%v, %v), want %d", c.flagged, w.at, p.offset(), ok, err, w.offset)
			}
		}
		if _, ok, err := l.positionAt(table, -2); ok || err != nil {
			t.Errorf("there is a position before the first: %v", err)
		}
		if _, _, err := l.positionAt(table[:len(table)-1], 99); err == nil {
			t.Error("a table that is cut is read without an error")
		}
	}
}

func TestInlinedPosition(t *testing.T) {
	p := position(4<<31 | 8<<1)
	if p.inlined() != 3 || p.offset() != 7 || p.external() {
		t.Errorf("position %#x is at %d, inlined %d, external %v", uint64(p), p.offset(), p.inlined(), p.external())
	}
}

// sizes are of four bytecodes: the two prefixes with their twins for debuggers, and two more.
var sizes = []byte{1, 1, 1, 1, 2, 3, 1, 1, 1, 1, 3, 5, 1, 1, 1, 1, 5, 9}

func TestBaselineBytecode(t *testing.T) {
	l := &Layout{bytecodeSizes: sizes}
	bytecode := []byte{4, 9, 5, 9, 9, 0, 4, 9, 9, 1, 4, 9, 9, 9, 9, 4, 9}
	table := []byte{10, 4, 0, 0x80, 1, 5, 6} // of the prologue, then of each
	for _, c := range []struct {
		pc uint64
		at int
		ok bool
	}{{0, 0, false}, {9, 0, false}, {10, 0, true}, {13, 0, true}, {14, 5, true}, {141, 5, true}, {142, 9, true}, {147, 15, true}, {152, 15, true}} {
		at, ok, err := l.baselineBytecode(table, bytecode, c.pc)
		if err != nil || at != c.at || ok != c.ok {
			t.Errorf("bytecode of %d is %d, %v, %v; want %d, %v", c.pc, at, ok, err, c.at, c.ok)
		}
	}
	if _, _, err := l.baselineBytecode(table, bytecode, 153); err == nil {
		t.Error("an instruction behind the code has a bytecode")
	}
	if _, _, err := (&Layout{}).baselineBytecode(table, bytecode, 20); err == nil {
		t.Error("without the lengths of bytecodes there is a bytecode")
	}
}

func FuzzPositions(f *testing.F) {
	for _, c := range tables {
		table, _ := hex.DecodeString(c.table)
		f.Add(table, c.flagged, int64(19))
	}
	f.Fuzz(func(t *testing.T, table []byte, flagged bool, at int64) {
		l := &Layout{flaggedPositions: flagged, bytecodeSizes: sizes}
		p, ok, err := l.positionAt(table, at)
		if ok && err == nil && (p.offset() < -1 || p.offset() >= 1<<30 || p.inlined() < -1 || p.inlined() >= 1<<16) {
			t.Errorf("position %#x", uint64(p))
		}
		if n, ok, err := l.baselineBytecode(table, table, uint64(at)); ok && err == nil && (n < 0 || n >= len(table)) {
			t.Errorf("bytecode %d of %d", n, len(table))
		}
	})
}

// FuzzHeap reads frames from a memory that is nothing but what the fuzzer likes.
func FuzzHeap(f *testing.F) {
	l := &Layout{bytecodeSizes: sizes}
	l.types.script, l.types.scopeInfo, l.types.sharedFunction, l.types.bytecodeArray, l.types.code = 200, 201, 202, 203, 204
	l.types.instructionStream, l.types.byteArray, l.types.fixedArray = 205, 206, 207
	l.mapInstanceType = 12
	l.string.length, l.string.chars, l.string.first, l.string.second, l.string.parent, l.string.offset, l.string.actual, l.string.resource =
		12, 16, 16, 24, 16, 24, 16, 16
	l.fixedArray.length, l.fixedArray.data = 8, 16
	l.shared.data, l.shared.name, l.shared.script, l.shared.length, l.shared.flags = 8, 16, 32, 40, 48
	l.script.source, l.script.name, l.script.lineOffset, l.script.columnOffset, l.script.lineEnds = 8, 16, 24, 32, 56
	l.scopeInfo.locals, l.scopeInfo.firstVars = 2, 3
	l.bytecode.length, l.bytecode.positions, l.bytecode.data = 8, 24, 64
	l.code.deopt, l.code.positions, l.code.start, l.code.flags, l.code.size, l.code.kindMask, l.code.baseline = 8, 16, 40, 48, 52, 15, 11
	l.stream.code, l.stream.start = 8, 32
	l.deopt.inlinedCount, l.deopt.literals, l.deopt.shared, l.deopt.inlining = 1, 2, 6, 7
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xca\x00"), uint64(1), uint64(64))
	f.Fuzz(func(t *testing.T, memory []byte, shared, pc uint64) {
		h := NewHeap(l, repeated(memory))
		_, _ = h.Interpreted(nil, shared, 0, int(pc))
		_, _ = h.Compiled(nil, shared, 0, pc, true, 0)
		_, _ = h.function(shared)
		_, _ = h.string(shared, 100)
		_, _ = h.codeAt(pc)
	})
}

// repeated is a memory of 64 KiB that has the same text over and over.
type repeated []byte

func (r repeated) ReadAt(p []byte, off int64) (int, error) {
	if len(r) == 0 || off < 0 || off > 64<<10 {
		return 0, errTableEnd
	}
	for i := range p {
		p[i] = r[(int(off)+i)%len(r)]
	}
	return len(p), nil
}
