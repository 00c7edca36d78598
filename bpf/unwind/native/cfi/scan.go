package cfi

import (
	"bytes"
	"math"
	"slices"
	"sync"

	"golang.org/x/arch/x86/x86asm"
)

const (
	// scanContext is how much code before and behind a piece is looked at with it: functions begin before it, and are called
	// from elsewhere.
	scanContext = 16 << 10
	// maxScanSteps bounds the instructions followed for one piece; a page of code has some 16,000.
	maxScanSteps = 1 << 18
)

// flow says where an instruction leads.
type flow uint8

const (
	flowNext     flow = iota
	flowCall          // and next
	flowBranch        // to target, and next
	flowJump          // to target
	flowIndirect      // who knows
	flowReturn
	flowEnd     // nowhere: ud2, hlt
	flowPadding // between functions
	flowBad     // no instruction
)

// instruction is one of a piece of code.
type instruction struct {
	at      int32 // offset in the code
	target  int32 // offset in the code, or outside
	flow    flow
	called  bool // the target of a call
	branch  bool // the target of a branch
	visited bool
	owner   int32 // which follow visited it
	weak    bool  // visited behind a call, which perhaps does not return
	nop     bool
	saves   bool // pushes a register that belongs to the caller: nobody does but at the beginning
	entry   bool // endbr64: an indirect call or jump leads here
	effect  effect
	operand int32
	state   stackState // before it
}

// effect is what an instruction does to the stack and frame pointers.
type effect uint8

const (
	effectNone    effect = iota
	effectPush           // operand: the register, or -1
	effectPop            // operand: the register
	effectSub            // rsp -= operand
	effectFromFP         // rsp = rbp + operand
	effectFrame          // rbp = rsp + operand
	effectLeave          // rsp = rbp, pop rbp
	effectLostSP         // rsp is something else now
	effectLostFP         // rbp is
	effectUnknown        // the stack is
)

// stackState is what is known before an instruction. Distances are in bytes.
type stackState struct {
	depth  int32 // CFA - rsp
	frame  int32 // CFA - rbp, if framed
	fp, bx int32 // CFA - where the caller's rbp and rbx are saved; 0: in the register
	known  bool  // depth
	framed bool
	lostFP bool // rbp was overwritten without having been saved
}

// scan finds the rules of code that no table describes, by following its instructions: where functions begin is known from
// the calls to them and from what ends before them, and from there on every push, pop and addition to the stack pointer tells
// where the return address is. A function is believed only if all its ways agree, and if each return finds the return address
// on top of the stack. code begins at address base; the result is the rows of [from, to), and how many functions were believed
// and how many not. begins: a function can begin where code does.
//
// It is for x86-64. (On arm64 compilers keep a chain of frame pointers wherever they save the link register.)
func scan(code []byte, base, from, to Address, begins bool) (rows []Row, functions, refused int) {
	room := scanRooms.Get().(*scanRoom)
	defer scanRooms.Put(room)
	room.index = slices.Grow(room.index[:0], len(code))[:len(code)]
	s := scanner{code: code, list: room.list[:0], index: room.index, steps: maxScanSteps, align: int32(-base & 15), noreturn: map[int32]bool{}}
	defer func() { room.list = s.list }()
	s.decode()
	for i := range s.list {
		if n := &s.list[i]; n.flow == flowCall && n.target != outside && s.ends(int32(i)) {
			s.noreturn[n.target] = true
		}
	}
	// What is called is a function for sure.
	for i := range s.list {
		if s.list[i].called {
			s.function(int32(i), true)
		}
	}
	// What follows the end of another function and nobody branches to is one, or a case of a switch, or a block that the
	// compiler moved: it must prove itself.
	ended := begins
	indirect := int32(-1)
	for i := range s.list {
		n := &s.list[i]
		if n.flow == flowPadding || ended && n.nop && !n.branch {
			n.flow = flowPadding
			continue
		}
		if ended && !n.visited && !n.branch && n.flow != flowBad {
			sure := n.saves || n.begins() && n.at&15 == s.align
			if !s.function(int32(i), sure) && indirect >= 0 {
				s.block(int32(i), s.list[indirect].state)
			}
		}
		ended = n.flow == flowJump || n.flow == flowIndirect || n.flow == flowReturn || n.flow == flowEnd ||
			n.flow == flowCall && (s.noreturn[n.target] || s.ends(int32(i)))
		if n.flow == flowIndirect && n.visited {
			indirect = int32(i)
		}
	}
	b := builder{from: from, to: to, max: MaxPageRows}
	b.add(from, Rule{})
	for i := 0; i < len(s.list); i++ {
		n := &s.list[i]
		next := i + 1
		if n.flow == flowPadding {
			for next < len(s.list) && s.list[next].flow == flowPadding {
				next++
			}
		}
		end := base + Address(len(code))
		if next < len(s.list) {
			end = base + Address(s.list[next].at)
		}
		if n.flow == flowPadding && end-base-Address(n.at) <= maxPadding && i > 0 {
			continue
		}
		r := Rule{}
		if n.visited {
			r = n.state.rule()
		}
		if end > from {
			b.add(base+Address(n.at), r)
		}
		i = next - 1
	}
	return b.dst, s.good, s.refused
}

// rule is what a state says.
func (t *stackState) rule() Rule {
	r := Rule{Kind: Normal, Base: X86SP, CFA: t.depth, RA: AtCFA, RAAt: -8}
	switch {
	case t.framed && t.frame == 16 && t.fp == 16: // whatever other ways to here have done to the stack pointer
		r.Base, r.CFA = X86FP, t.frame
	case t.known:
	case t.framed:
		r.Base, r.CFA = X86FP, t.frame
	default:
		return Rule{}
	}
	if t.fp != 0 {
		r.FP, r.FPAt = AtCFA, -t.fp
	} else if t.lostFP {
		r.FP = Lost
	}
	if r.BXAt = -t.bx; !r.fits() {
		return Rule{}
	}
	return r
}

type scanner struct {
	merges int   // of the current function, with what others have visited
	owner  int32 // the current function
	// noreturn are the targets of calls that end a function somewhere: abort, __stack_chk_fail.
	noreturn map[int32]bool
	code     []byte
	list     []instruction
	index    []int32 // of the instruction at an offset, -1: none begins there
	align    int32   // what offsets of aligned addresses have in their lowest four bits
	steps    int
	good     int
	refused  int
	path     []int32 // instructions that the current function has visited
	work     []pending
	returns  int // of the current function, with the return address on top of the stack
}

// scanRoom is what scans use one after the other: a page of a large program can have hundreds of holes.
type scanRoom struct {
	list  []instruction
	index []int32
}

var scanRooms = sync.Pool{New: func() any { return new(scanRoom) }}

// outside is the target of what leads nobody knows where. (Negative ones are before the code.)
const outside = math.MinInt32

// pending is a place to go on from.
type pending struct {
	i     int32
	state stackState
	weak  bool // behind a call
}

// decode makes the list of instructions, one after the other: x86-64 code of compilers has no data in between.
func (s *scanner) decode() {
	for i := range s.index {
		s.index[i] = -1
	}
	for at := 0; at < len(s.code); {
		n := instruction{at: int32(at), target: outside}
		length := s.one(at, &n)
		s.index[at] = int32(len(s.list))
		s.list = append(s.list, n)
		at += length
	}
	for i := range s.list {
		n := &s.list[i]
		if to := s.to(n); to >= 0 {
			if n.flow == flowCall || n.flow == flowNext && s.list[to].at&15 == s.align { // or its address is taken
				s.list[to].called = true
			} else if n.flow != flowNext {
				s.list[to].branch = true
			}
		}
	}
}

// to returns the instruction that n leads to, -1 if it is outside.
func (s *scanner) to(n *instruction) int32 {
	if n.target < 0 || int(n.target) >= len(s.index) {
		return -1
	}
	return s.index[n.target]
}

// padding says whether the last instruction was none.
func (s *scanner) padding() bool { return len(s.list) > 0 && s.list[len(s.list)-1].flow == flowPadding }

var rdssp = []byte{0xf3, 0x48, 0x0f, 0x1e} // and a register: reads the shadow stack's pointer

// one decodes the instruction at an offset and returns its length.
func (s *scanner) one(at int, n *instruction) int {
	zero := s.code[at] == 0 && (at+1 < len(s.code) && s.code[at+1] == 0 || at > 0 && s.code[at-1] == 0 && s.padding())
	if s.code[at] == 0xcc || zero { // int3; zeros
		n.flow = flowPadding
		return 1
	}
	if b := s.code[at:]; bytes.HasPrefix(b, endbr64) { // the decoder does not know it
		n.entry = true
		return len(endbr64)
	} else if bytes.HasPrefix(b, rdssp) {
		return len(rdssp) + 1
	}
	if length := vector(s.code[at:], n); length > 0 { // nor these
		return length
	}
	x, err := x86asm.Decode(s.code[at:min(len(s.code), at+15)], 64)
	if err != nil || x.Len <= 0 {
		n.flow, n.effect = flowBad, effectUnknown
		return 1
	}
	relative := func() {
		if rel, ok := x.Args[0].(x86asm.Rel); ok {
			n.target = int32(at + x.Len + int(rel))
			if int64(n.target) != int64(at)+int64(x.Len)+int64(rel) {
				n.target = outside
			}
		} else {
			n.flow = flowIndirect
		}
	}
	switch x.Op {
	case x86asm.NOP:
		n.nop = true
	case x86asm.CALL:
		relative()
		n.flow = flowCall
	case x86asm.JMP:
		n.flow = flowJump
		relative()
	case x86asm.JA, x86asm.JAE, x86asm.JB, x86asm.JBE, x86asm.JCXZ, x86asm.JE, x86asm.JECXZ, x86asm.JG, x86asm.JGE, x86asm.JL,
		x86asm.JLE, x86asm.JNE, x86asm.JNO, x86asm.JNP, x86asm.JNS, x86asm.JO, x86asm.JP, x86asm.JRCXZ, x86asm.JS,
		x86asm.LOOP, x86asm.LOOPE, x86asm.LOOPNE:
		n.flow = flowBranch
		relative()
	case x86asm.RET:
		n.flow = flowReturn
	case x86asm.HLT, x86asm.UD1, x86asm.UD2:
		n.flow = flowEnd
	case x86asm.PUSH:
		n.effect, n.operand = effectPush, number(x.Args[0])
		switch x.Args[0] {
		case x86asm.RBX, x86asm.RBP, x86asm.R12, x86asm.R13, x86asm.R14, x86asm.R15:
			n.saves = true
		}
	case x86asm.PUSHF, x86asm.PUSHFQ:
		n.effect, n.operand = effectPush, -1
	case x86asm.POP:
		if n.effect, n.operand = effectPop, number(x.Args[0]); n.operand == int32(X86SP) {
			n.effect = effectLostSP
		}
	case x86asm.POPF, x86asm.POPFQ:
		n.effect, n.operand = effectPop, -1
	case x86asm.LEAVE:
		n.effect = effectLeave
	case x86asm.ENTER, x86asm.LRET, x86asm.IRET, x86asm.IRETQ:
		n.effect = effectUnknown
	case x86asm.CMP, x86asm.TEST:
	default:
		if m, ok := x.Args[1].(x86asm.Mem); ok && x.Op == x86asm.LEA && m.Base == x86asm.RIP && m.Index == 0 && m.Disp > -1<<24 && m.Disp < 1<<24 {
			n.target = int32(at+x.Len) + int32(m.Disp)
		}
		s.writes(&x, n)
	}
	return x.Len
}

// writes finds out what an instruction that writes its first operand does to rsp or rbp.
func (s *scanner) writes(x *x86asm.Inst, n *instruction) {
	to := number(x.Args[0])
	if x.Op == x86asm.XCHG && (number(x.Args[1]) == int32(X86SP) || number(x.Args[1]) == int32(X86FP)) {
		n.effect = effectUnknown
		return
	}
	if to != int32(X86SP) && to != int32(X86FP) {
		return
	}
	if n.effect = effectLostSP; to == int32(X86FP) {
		n.effect = effectLostFP
	}
	imm, isImm := x.Args[1].(x86asm.Imm)
	mem, isMem := x.Args[1].(x86asm.Mem)
	from := number(x.Args[1])
	small := func(v int64) bool { return v > -1<<28 && v < 1<<28 }
	switch {
	case to == int32(X86SP) && x.Op == x86asm.SUB && isImm && small(int64(imm)):
		n.effect, n.operand = effectSub, int32(imm)
	case to == int32(X86SP) && x.Op == x86asm.ADD && isImm && small(int64(imm)):
		n.effect, n.operand = effectSub, -int32(imm)
	case to == int32(X86SP) && x.Op == x86asm.MOV && from == int32(X86FP):
		n.effect, n.operand = effectFromFP, 0
	case to == int32(X86FP) && x.Op == x86asm.MOV && from == int32(X86SP):
		n.effect, n.operand = effectFrame, 0
	case x.Op == x86asm.LEA && isMem && mem.Index == 0 && small(mem.Disp):
		switch base := number(mem.Base); {
		case to == int32(X86SP) && base == int32(X86SP):
			n.effect, n.operand = effectSub, -int32(mem.Disp)
		case to == int32(X86SP) && base == int32(X86FP):
			n.effect, n.operand = effectFromFP, int32(mem.Disp)
		case to == int32(X86FP) && base == int32(X86SP):
			n.effect, n.operand = effectFrame, int32(mem.Disp)
		}
	}
}

// number returns the DWARF number of the stack pointer, the frame pointer or rbx, -1 for everything else. Parts of them count
// as the whole: who writes ebp has overwritten rbp.
func number(a x86asm.Arg) int32 {
	switch a {
	case x86asm.RSP, x86asm.ESP, x86asm.SP, x86asm.SPB:
		return int32(X86SP)
	case x86asm.RBP, x86asm.EBP, x86asm.BP, x86asm.BPB:
		return int32(X86FP)
	case x86asm.RBX:
		return int32(X86BX)
	}
	return -1
}

// begins says whether an instruction looks like a function's first.
func (n *instruction) begins() bool {
	return n.entry || n.saves || n.effect == effectSub && n.operand > 0 || n.flow == flowIndirect
}

// function follows a function from its first instruction, and says whether it is one. sure: somebody calls it, so it
// need not return to prove that it is one.
func (s *scanner) function(i int32, sure bool) bool {
	if s.list[i].visited {
		return false
	}
	ok := s.follow(i, stackState{depth: 8, known: true}, sure)
	if ok {
		s.good++
	} else {
		s.refused++
	}
	return ok
}

// block follows a piece of a function that only an indirect jump leads to, with the state of that jump.
func (s *scanner) block(i int32, state stackState) {
	if !s.follow(i, state, true) {
		return
	}
	if s.returns+s.merges == 0 {
		s.undo(0)
	}
}

// follow visits what can be reached from i with a state, and says whether it makes sense. If not, nothing stays visited, and
// path has what was. What is not sure to be code of that state must return somewhere.
func (s *scanner) follow(i int32, state stackState, sure bool) bool {
	s.path, s.work, s.returns = s.path[:0], append(s.work[:0], pending{i: i, state: state}), 0
	s.owner, s.merges = s.owner+1, 0
	first, ok := i, true
	for pass := 0; len(s.work) > 0 && ok; pass++ {
		for len(s.work) > 0 && ok {
			p := s.work[len(s.work)-1]
			s.work = s.work[:len(s.work)-1]
			if !s.line(first, p) && !p.weak {
				ok = false
			}
		}
		// A way may have ended where another was, which was then found to be none.
		if ok && pass < maxPasses {
			s.again(first)
		}
	}
	ok = ok && (sure || s.returns > 0 || s.merges > 0) // what it leads to has proven itself, with the same depth
	if !ok {
		s.undo(0)
	}
	return ok
}

// maxPasses is how often a function is gone through again for what was lost.
const maxPasses = 3

// again finds the places that visited instructions lead to and that are not visited.
func (s *scanner) again(first int32) {
	for _, i := range s.path {
		n := &s.list[i]
		if !n.visited {
			continue
		}
		st := n.state
		if !st.apply(n) {
			continue
		}
		if n.flow == flowJump || n.flow == flowBranch {
			if to := s.to(n); to >= 0 && to != first && !s.list[to].called && !s.list[to].visited {
				s.work = append(s.work, pending{to, st, true})
			}
		}
		next := int(i) + 1
		goesOn := n.flow == flowNext || n.flow == flowBranch || n.flow == flowCall && !s.noreturn[n.target] && !s.ends(i)
		if goesOn && next < len(s.list) && !s.list[next].called && !s.list[next].visited {
			s.work = append(s.work, pending{int32(next), st, true})
		}
	}
}

// undo takes the visits from path[n] on back.
func (s *scanner) undo(n int) {
	for _, j := range s.path[n:] {
		s.list[j].visited = false
	}
}

// line follows instructions from i on until they lead elsewhere. If what follows a call makes no sense, the call does not
// return, and there is no such way.
func (s *scanner) line(first int32, p pending) bool {
	i, st, weak := p.i, p.state, p.weak
	path, work, returns := -1, 0, 0 // as they were at the last call
	if weak {                       // or at the beginning, if that is behind one
		path, work, returns = len(s.path), len(s.work), s.returns
	}
	fail := func() bool {
		if path < 0 || s.steps < 0 {
			return false
		}
		s.undo(path)
		s.path, s.work, s.returns = s.path[:path], s.work[:work], returns
		return true
	}
	for {
		if i >= int32(len(s.list)) {
			return true // beyond what we look at
		}
		n := &s.list[i]
		if n.visited { // where two ways meet
			better := st.known && !n.state.known && !n.state.framed
			if !better && (!n.state.known || !st.known || n.state.depth == st.depth) {
				if path < 0 {
					n.weak = false
				}
				if n.owner != s.owner && n.state.known && st.known {
					s.merges++
				}
				return true
			}
			if n.owner != s.owner || !better && (path >= 0 || !n.weak) {
				return fail()
			}
			// The call by which it was reached before does not return, and this way counts.
		}
		if n.called && i != first || n.flow == flowPadding {
			return true // the call before does not return, or this is the next function
		}
		if s.steps--; s.steps < 0 || n.flow == flowBad {
			return fail()
		}
		n.visited, n.state, n.weak, n.owner = true, st, path >= 0, s.owner
		s.path = append(s.path, i)
		if !st.apply(n) {
			return fail()
		}
		switch n.flow {
		case flowCall:
			path, work, returns = len(s.path), len(s.work), s.returns
			if s.noreturn[n.target] || s.ends(i) {
				return true
			}
		case flowReturn:
			if st.known && st.depth != 8 {
				return fail()
			}
			s.returns++
			return true
		case flowEnd, flowIndirect:
			return true
		case flowJump, flowBranch:
			to := s.to(n)
			if to >= 0 && (!s.list[to].called || to == first) {
				s.work = append(s.work, pending{to, st, path >= 0 || weak})
			} else if n.flow == flowJump && to >= 0 {
				if st.known && st.depth != 8 {
					return fail() // a tail call with things on the stack
				}
				s.returns++
			} else if n.flow == flowJump && n.target != outside && st.known && st.depth == 8 {
				s.returns++ // a tail call far away
			}
			if n.flow == flowJump {
				return true
			}
		}
		i++
	}
}

// ends says whether a function ends with instruction i, a call: what follows is aligned, and nobody branches there, or it looks
// like a function's beginning.
func (s *scanner) ends(i int32) bool {
	j := i + 1
	for int(j) < len(s.list) && s.list[j].nop && !s.list[j].branch {
		j++
	}
	if int(j) >= len(s.list) {
		return false
	}
	n := &s.list[j]
	if n.at&15 != s.align || n.branch {
		return false
	}
	return j > i+1 || n.begins()
}

// apply does what an instruction does; false if that cannot be.
func (t *stackState) apply(n *instruction) bool {
	switch n.effect {
	case effectPush:
		t.depth += 8
		if t.known && n.operand == int32(X86FP) && t.fp == 0 && !t.framed && !t.lostFP {
			t.fp = t.depth
		}
		if t.known && n.operand == int32(X86BX) && t.bx == 0 {
			t.bx = t.depth
		}
	case effectPop:
		if n.operand == int32(X86FP) {
			if t.known && t.fp == t.depth {
				t.fp, t.lostFP = 0, false
			} else if t.fp == 0 {
				t.lostFP = true
			}
			t.framed = false
		}
		if n.operand == int32(X86BX) && t.known && t.bx == t.depth {
			t.bx = 0
		}
		t.depth -= 8
	case effectSub:
		t.depth += n.operand
	case effectFromFP:
		if t.known = t.framed; t.framed {
			t.depth = t.frame - n.operand
		}
	case effectFrame:
		if t.framed = t.known; t.known {
			t.frame = t.depth - n.operand
		}
		t.lostFP = t.lostFP || t.fp == 0
	case effectLeave:
		if !t.framed {
			return false
		}
		t.known, t.depth, t.framed = true, t.frame-8, false
		if t.fp == t.frame {
			t.fp = 0
		}
	case effectLostSP:
		t.known = false
	case effectLostFP:
		t.framed = false
		t.lostFP = t.lostFP || t.fp == 0
	case effectUnknown:
		return false
	}
	return !t.known || t.depth >= 8 && t.depth < 1<<29 || n.flow == flowReturn
}
