package cfi

import (
	"bytes"
	"slices"

	"github.com/stoker-profiler/stoker/bpf/symbol"
)

// plt is a section of stubs without call frame information: lld writes none, on arm64 nobody does.
type plt struct {
	symbol.Range
	header    uint64 // bytes before the first stub
	pushed    uint64 // where in the header its one push is done; 0: no push
	threshold int16  // pc & 15 from which a stub has pushed; 16: never
}

// findPLT looks at the sections of stubs.
func (f *File) findPLT(r *symbol.Reader) {
	for _, name := range []string{".plt", ".plt.sec", ".plt.got", ".iplt"} {
		s, ok := f.layout.Section(name)
		if !ok || !s.Exec || s.Address == 0 || s.End() < s.Address {
			continue
		}
		code := slices.Clone(r.ReadOffset(s.Offset, min(s.Size, 64)))
		p := plt{Range: s, threshold: 16}
		if f.arch.link {
			p.arm64(code)
		} else {
			p.x86(code)
		}
		f.plt = append(f.plt, p)
	}
	slices.SortFunc(f.plt, func(a, b plt) int {
		if a.Address < b.Address {
			return -1
		}
		return 1
	})
}

var endbr64 = []byte{0xf3, 0x0f, 0x1e, 0xfa}

// x86 reads the form of the stubs from the first ones. The header of 16 bytes is push (6 bytes), jmp; a lazy stub is jmp (6),
// push (5), jmp, or with indirect branch tracking endbr64 (4), push (5), jmp, or with bounds checking push (5), bnd jmp.
func (p *plt) x86(code []byte) {
	if len(code) >= 16 && code[0] == 0xff && code[1] == 0x35 {
		p.header, p.pushed = 16, 6
		code = code[16:]
	}
	switch {
	case len(code) > 11 && code[0] == 0xff && code[1] == 0x25 && code[6] == 0x68:
		p.threshold = 11
	case bytes.HasPrefix(code, endbr64) && len(code) > 9 && code[4] == 0x68:
		p.threshold = 9
	case len(code) > 5 && code[0] == 0x68:
		p.threshold = 5
	}
	if p.Address%16 != 0 && p.threshold < 16 {
		p.threshold = -1
	}
}

// arm64 finds the header's push: [bti c;] stp x16, x30, [sp, #-16]!. The header has 32 bytes.
func (p *plt) arm64(code []byte) {
	for i := 0; i+4 <= len(code) && i <= 4; i += 4 {
		if le32(code[i:]) == 0xa9bf7bf0 {
			p.header, p.pushed = 32, uint64(i+4)
		}
	}
}

func le32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

// called is the rule at a function's first instruction.
func (a *arch) called() Rule {
	if a.link {
		return Rule{Kind: Normal, Base: a.sp, RA: Unchanged, RAAt: int32(a.ra)}
	}
	return Rule{Kind: Normal, Base: a.sp, CFA: 8, RA: AtCFA, RAAt: -8}
}

// rows adds the rows of the stubs.
func (p *plt) rows(a *arch, b *builder) {
	called := a.called()
	pushed := called
	if pushed.CFA += 8; a.link {
		pushed = Rule{Kind: Normal, Base: a.sp, CFA: 16, RA: AtCFA, RAAt: -8}
	}
	if p.header > 0 {
		before, after := called, pushed
		if !a.link { // a stub has pushed before it jumps here
			before, after = pushed, pushed
			after.CFA += 8
		}
		b.add(p.Address, before)
		b.add(p.Address+Address(p.pushed), after)
	}
	stub := called
	switch {
	case p.threshold < 0:
		stub = Rule{}
	case p.threshold < 16:
		stub.Kind, stub.Plus = PLT, p.threshold
	}
	b.add(p.Address+Address(p.header), stub)
}

// Shapes of code that has no call frame information where it matters, and the rule that holds in it.
type shape struct {
	code []byte
	rule Rule
	// early: the rule begins one byte before code, for a return address is looked up at pc - 1.
	early bool
}

var (
	x86Shapes = []shape{
		// mov $15, %rax; syscall: rt_sigreturn in glibc, Go
		{code: []byte{0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05}, rule: Rule{Kind: Signal}, early: true},
		// mov $15, %eax; syscall: in musl
		{code: []byte{0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05}, rule: Rule{Kind: Signal}, early: true},
		// xor %ebp, %ebp; pop %rdi; call *%r9; mov %eax, %edi; xor %eax, %eax; mov $60, %al; syscall; hlt: a new thread in musl's clone
		{code: []byte{0x31, 0xed, 0x5f, 0x41, 0xff, 0xd1, 0x89, 0xc7, 0x31, 0xc0, 0xb0, 0x3c, 0x0f, 0x05, 0xf4}, rule: Rule{Kind: Stop}},
	}
	arm64Shapes = []shape{
		// mov x8, #139; svc #0: rt_sigreturn
		{code: []byte{0x68, 0x11, 0x80, 0xd2, 0x01, 0, 0, 0xd4}, rule: Rule{Kind: Signal}, early: true},
		// blr x1; mov x8, #93; svc #0: a new thread in musl's clone
		{code: []byte{0x20, 0, 0x3f, 0xd6, 0xa8, 0x0b, 0x80, 0xd2, 0x01, 0, 0, 0xd4}, rule: Rule{Kind: Stop}},
	}
)

// glibc's __start_context, whose call frame information is that of a function that was called.
var (
	// mov %rbx, %rsp; mov (%rsp), %rdi; test %rdi, %rdi; je
	x86StartContext = []byte{0x48, 0x89, 0xdc, 0x48, 0x8b, 0x3c, 0x24, 0x48, 0x85, 0xff, 0x74}
	// nop; mov x0, x19, and cbnz x0 behind
	arm64StartContext = []byte{0x1f, 0x20, 0x03, 0xd5, 0xe0, 0x03, 0x13, 0xaa}
)

// startsContext says whether an entry is that of __start_context. It is a small function.
func (a *arch) startsContext(r *symbol.Reader, e *entry) bool {
	code := x86StartContext
	if a.link {
		code = arm64StartContext
	}
	return e.end-e.start < 64 && bytes.Equal(r.ReadAddress(e.start, uint64(len(code))), code)
}

// maxShape is at least as long as the longest of them.
const maxShape = 16

// entryBytes is how much code at the program's entry is taken for its outermost function, if no table says what is: enough
// for the call that never returns in every C library's start.
const entryBytes = 64

// hole adds what is known of [from, to), which no table describes: stubs of the PLT, trampolines of signals, the program's
// entry, the start of threads.
func (w *walk) hole(from, to Address) {
	w.b.add(from, Rule{})
	for i := range w.f.plt {
		p := &w.f.plt[i]
		start, end := max(p.Address, from), min(p.End(), to)
		if start >= end {
			continue
		}
		w.code(from, start)
		inner := *w.b
		w.b.from, w.b.to = start, end
		p.rows(&w.f.arch, w.b)
		w.b.from, w.b.to = inner.from, inner.to
		w.b.add(end, Rule{})
		from = end
	}
	w.code(from, to)
}

// code adds what the code itself tells of [from, to).
func (w *walk) code(from, to Address) {
	for _, s := range w.f.text {
		start, end := max(s.Address, from), min(s.End(), to)
		if start >= end {
			continue
		}
		if !w.f.arch.link && end-start <= maxPadded && padded(w.r.ReadAddress(start, uint64(end-start))) &&
			!slices.ContainsFunc(x86Shapes, func(h shape) bool { return h.early && bytes.Equal(w.r.ReadAddress(end, uint64(len(h.code))), h.code) }) {
			continue // what most holes of large programs are
		}
		// Where the range begins nobody has looked at what is before: a function may reach into the hole from there. What is
		// behind tells by its calls where functions begin; so that many small holes do not make a page expensive, it is as long
		// as a few of the hole.
		before, after := Address(0), min(s.End()-end, scanContext, 4*(end-start)+maxShape)
		if start == w.b.from {
			before = min(start-max(s.Address, min(w.floor, start)), scanContext)
		}
		code := w.r.ReadAddress(start-before, uint64(end-start+before+after))
		if Address(len(code)) < end-start+before {
			continue // the file ends early
		}
		w.piece(code, start-before, start, end, before < scanContext)
	}
}

// maxPadded is the longest hole that is looked at for being padding only: functions are aligned to 64 bytes at most, but for those
// of a few huge programs.
const maxPadded = 256

// padded says whether x86-64 code is nothing but padding: int3, zeros, and the nops that assemblers write.
func padded(code []byte) bool {
	for len(code) > 0 {
		n := 0
		for n < len(code) && n < 14 && (code[n] == 0x66 || code[n] == 0x2e) {
			n++
		}
		switch c := code[n:]; {
		case len(c) > 0 && (c[0] == 0x90 || n == 0 && c[0] == 0xcc):
			n++
		case n == 0 && len(c) > 1 && c[0] == 0 && c[1] == 0:
			n = 2
		case len(c) >= 3 && c[0] == 0x0f && c[1] == 0x1f:
			length := map[byte]int{0x00: 3, 0x40: 4, 0x44: 5, 0x80: 7, 0x84: 8}[c[2]]
			if length == 0 || length > len(c) {
				return false
			}
			n += length
		default:
			return false
		}
		code = code[n:]
	}
	return true
}

// span is a piece of code whose rule is known by its shape.
type span struct {
	from, to Address
	rule     Rule
}

// piece adds the rows of [from, to), whose code is given with some more around it, from base on; begins: not in the middle of
// a function.
func (w *walk) piece(code []byte, base, from, to Address, begins bool) {
	spans := w.shapes(code, base, from)
	inner := *w.b
	w.b.from, w.b.to = from, to
	rows := []Row{{from, Rule{}}}
	if !w.f.arch.link {
		var good, refused int
		rows, good, refused = scan(code, base, from, to, begins)
		w.stats.Scanned += good
		w.stats.Unclear += refused
	}
	outside := Rule{} // what holds where no shape is
	for _, s := range append(spans, span{to, to, Rule{}}) {
		for ; len(rows) > 0 && rows[0].Address < s.from; rows = rows[1:] {
			outside = rows[0].Rule
			w.b.add(rows[0].Address, outside)
		}
		w.b.add(s.from, s.rule)
		for ; len(rows) > 0 && rows[0].Address <= s.to; rows = rows[1:] {
			outside = rows[0].Rule
		}
		w.b.add(s.to, outside)
	}
	w.b.from, w.b.to = inner.from, inner.to
}

// shapes returns the known shapes in code, which begins at address base; start is where the hole begins.
func (w *walk) shapes(code []byte, base, start Address) (spans []span) {
	shapes, step := x86Shapes, 1
	if w.f.arch.link {
		shapes, step = arm64Shapes, 4
	}
next:
	for i := 0; i < len(code); i += step {
		a := base + Address(i)
		// The entry counts if it is in the hole, or just before where nobody has looked.
		if a == w.f.layout.Entry && (a >= start || start == w.b.from) {
			spans = append(spans, span{a, a + entryBytes, Rule{Kind: Stop}})
			i += entryBytes - step
			continue
		}
		for j := range shapes {
			h := &shapes[j]
			if code[i] != h.code[0] || !bytes.HasPrefix(code[i:], h.code) {
				continue
			}
			from := a
			if h.early && i > 0 {
				from--
			}
			spans = append(spans, span{from, a + Address(len(h.code)), h.rule})
			i += len(h.code) - step
			continue next
		}
	}
	return spans
}
