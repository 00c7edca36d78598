package unwind

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/symbol"
)

// Names of locations that stand where there is no function. Brackets keep them apart from anything a program can define.
const (
	// StackNotDelivered stands for stacks that the kernel counted and could not send (Key.Hash 0).
	StackNotDelivered = "[stack not delivered]"
	// StackLost stands for a stack that should be here and is not: a bug, or records that could not be read.
	StackLost = "[stack lost]"
	// StackNotCounted stands for samples that were counted per container only, because the window was full.
	StackNotCounted = "[stack not counted]"
	// StackOverBudget stands for a stack whose container has more names than its share of the memory allows.
	StackOverBudget = "[stack over budget]"
	// Truncated is the outermost frame of a stack whose walk ended too early.
	Truncated = "[truncated]"
	// Unknown is a frame of which nothing is known: no file, no build id. It carries no address: an address in a space that
	// is random and gone merges with nothing and helps nobody, but would make a new function in every profile.
	Unknown = "[unknown]"
	// KernelUnknown is a kernel address without a name. Its address would tell where the kernel was loaded, which
	// the kernel takes care to hide.
	KernelUnknown = "[kernel]"

	marksFile  = "[stoker]"
	kernelFile = "[kernel.kallsyms]" // what perf and pprof call the kernel image
)

// Named says how a frame got its name.
type Named uint8

// The ways to a name.
const (
	NamedSymbol        Named = iota // a function of the file that is mapped there
	NamedAddress                    // file!0xADDR: the file has no symbol there, or could not be read
	NamedHint                       // by what the kernel knew at the sample: the process is gone
	NamedJIT                        // code that a program made while it ran
	NamedUnknown                    // not at all
	NamedKernel                     // a kernel function
	NamedKernelUnknown              // in the kernel, not at all
	namedCount
)

func (n Named) String() string {
	switch n {
	case NamedSymbol:
		return "symbol"
	case NamedAddress:
		return "address"
	case NamedHint:
		return "hint"
	case NamedJIT:
		return "jit"
	case NamedUnknown:
		return "unknown"
	case NamedKernel:
		return "kernel"
	case NamedKernelUnknown:
		return "kernel_unknown"
	}
	return "other"
}

// FrameSymbolizer names the frames of one unwinder. The Symbolizer's goroutine calls it and its Attachments.
type FrameSymbolizer interface {
	// Attach is called once for each process, when it is first seen. It must be cheap.
	Attach(*process.Process) Attachment
	// Improve is called before the stacks of a window are asked for, and when stacks come: names that were found in the
	// background are handed over by [Env.Replace]. It must be cheap when there are none.
	Improve()
	// WindowEnd is called at the end of each window, after the Attachments'.
	WindowEnd()
	// Counters returns what it counts beside frames, by the name that the metric has. Any goroutine may call it.
	Counters() map[string]uint64
}

// Attachment names the frames of one process for one unwinder.
type Attachment interface {
	// Exec is called when the process has just exec'd and may be gone at once: what will be needed is read now.
	Exec()
	// Mapped is called when the maps of the process were read and differ from before; atExec: because it has just exec'd. When it
	// returns, what is sampled next is walked by them.
	Mapped(atExec bool)
	// Symbolize appends the locations of a frame to dst, innermost first, and returns it. Locations are immutable and have a
	// line with a function. The stack is the one the frame is in.
	Symbolize(dst []*profile.Location, f RawFrame, s *Stack) []*profile.Location
	// WindowEnd reports whether frames that were named so far would get a better name now.
	WindowEnd() bool
	// Detach is called when the process is forgotten.
	Detach()
}

// Interpreter is implemented by Attachments of languages, whose frames the kernel side has appended to the native ones.
type Interpreter interface {
	Attachment
	// Loop reports whether code at an address of the process is the interpreter's loop: in the place of a native frame there
	// the Symbolizer puts the frames that it has run.
	Loop(address uint64) bool
}

// Symbolizing is implemented by unwinders whose frames have names. It is called once, by NewSymbolizer.
type Symbolizing interface {
	Symbolizer(*Env) FrameSymbolizer
}

// Env is what the Symbolizer offers to those of its unwinders, for use on its goroutine.
type Env struct {
	Reader    process.Reader
	Processes *process.Table
	Cache     *symbol.Cache
	Names     *Names
	// Patience is for reads of strangers' files and memory, which languages do on the Symbolizer's goroutine.
	Patience *Patience
	// Peers returns the PIDs of a container's processes.
	Peers func(scope uint32) []int
	// SetSpace gives the kernel side what [SymbolizerConfig.SetSpace] says.
	SetSpace func(id process.ID, space uint64) error
	// SetLanguage tells the kernel side under which number this unwinder, a language, knows a process; 0: not at all. Its children have
	// the same number until they exec or are told another one.
	SetLanguage func(id process.ID, number uint32) error

	s *Symbolizer
}

// Count notes how a frame of p was named. A frame that was NamedUnknown is tried again when the mappings of p have changed.
func (e *Env) Count(p *process.Process, n Named) {
	e.s.stats.named[n].Add(1)
	if n == NamedUnknown {
		e.s.state(p).unknown = true
	}
}

// Better has the stacks of p sent and named again: its frames would get better names now.
func (e *Env) Better(p *process.Process) { e.s.changed(p, process.Change{}, true) }

// Replace puts a better location in the place of one that Symbolize returned, in all stacks of a scope that are held. It takes
// effect when the stacks of a window are asked for the next time.
func (e *Env) Replace(scope uint32, old, better *profile.Location) {
	e.s.replaced[place{scope, old}] = better
}

// Reread reads the maps of p again, because an address lies nowhere, unless that was done a moment ago. It reports whether
// it is worth looking again.
func (e *Env) Reread(p *process.Process) bool {
	c := e.Processes.Reread(p)
	e.s.changed(p, c, false)
	return c.Fresh
}

// SymbolizerConfig configures a Symbolizer.
type SymbolizerConfig struct {
	// ProcRoot is where procfs is mounted; "" means /proc.
	ProcRoot string
	// Unwinders is the list that the sampler has: those which implement [Symbolizing] name the frames of their slot.
	Unwinders []Unwinder
	// Cache holds the symbols of files. Required.
	Cache *symbol.Cache
	// Kernel names kernel addresses; nil when the kernel hides them.
	Kernel *symbol.Kernel
	// Peers returns the PIDs of the processes in a scope, some or all. nil: nobody knows.
	Peers func(scope uint32) []int
	// Current says that the kernel still knows this PID as this process with this exec count. nil: always.
	Current func(process.ID) bool
	// RaiseEpoch makes the kernel send the stacks of a process again. nil: it cannot.
	RaiseEpoch func(process.ID) error
	// SetSpace tells the kernel side where an unwinder has put the mappings of a process, in the unwinder's own terms; 0: nowhere.
	// A process that the kernel side does not know yet becomes known by it. nil: nobody needs it.
	SetSpace func(id process.ID, space uint64) error
	// SetLanguage tells the kernel side under which number the language in a slot knows a process, as SetSpace. nil: nobody needs it.
	SetLanguage func(id process.ID, slot uint8, number uint32) error
	// MaxProcesses bounds the processes that are remembered. Default 8192.
	MaxProcesses int
	// MaxBytes bounds the memory for stacks and what they refer to, about. One scope may use a quarter of it. Default 32 MiB.
	MaxBytes int64
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Symbolizer turns stacks into pprof locations. It resolves a stack when it arrives, because the process may be gone a moment
// later, and keeps the result until it is told to forget it. One goroutine owns it; [Symbolizer.Stats] may be called from any.
type Symbolizer struct {
	cfg    SymbolizerConfig
	env    *Env
	table  *process.Table
	slots  []FrameSymbolizer // slots[i] names the frames of slot i+1; nil: nobody does
	states map[*process.Process]*state
	stacks map[Key]held
	// What stacks hold in memory: locations are charged to the scope that had them first, for as long as any stack has them.
	refs   map[*profile.Location]ref
	scopes map[uint32]int64 // bytes
	bytes  int64

	execs map[uint32]int // execs read in this window, by scope

	kernel           *Recent[uint64, *profile.Location] // by address
	kernelFunctions  *Recent[fixedKey, *profile.Location]
	kernelGeneration uint64
	kernelWait       int // windows until the next refresh may come
	kernelBackoff    int

	buf      []*profile.Location
	merger   merger
	replaced map[place]*profile.Location // by Env.Replace, not in the stacks yet

	notDelivered, lost, notCounted, overBudget []*profile.Location

	stats symbolizerCounters
}

// state is what we keep of a process.
type state struct {
	attachments []Attachment  // by slot-1; nil until it is needed
	unknown     bool          // frames were named Unknown
	maps        *process.Maps // as the attachments know them
}

// held is a stack.
type held struct {
	locations []*profile.Location
	bytes     int64 // without the locations
}

// place is a location in the stacks of a scope.
type place struct {
	scope    uint32
	location *profile.Location
}

// ref counts the frames that have a location.
type ref struct {
	n     int32
	scope uint32
}

// SymbolizerStats is what a Symbolizer did since it was made; Stacks and Bytes are current.
type SymbolizerStats struct {
	Frames        map[string]uint64 // of new stacks, by how they were named
	Stacks, Bytes int64             // held
	Resolved      uint64            // stacks that arrived
	OverBudget    uint64            // stacks that were not kept
	ExecsHeld     uint64            // execs that were not looked at, because their scope has so many
	Epochs        uint64            // times that a process's stacks were asked for again
	EpochErrors   uint64            // times that this failed
	KernelReads   uint64            // times that the kernel's symbols were read again
	Processes     process.Stats
	Unwinders     map[string]map[string]uint64 // by unwinder and counter
}

type symbolizerCounters struct {
	named                                                         [namedCount]atomic.Uint64
	stacks, bytes                                                 atomic.Int64
	resolved, overBudget, execsHeld, epochs, epochErrors, kernels atomic.Uint64
}

// maxExecs is how many processes of one scope are read at their exec in one window. Each costs some 150 µs, and a build or a
// shell script starts hundreds in a second of which few are ever sampled.
const maxExecs = 500

// stackCost is what keeping a stack takes beside its frames: a key, an entry of the map.
const stackCost = 128

// NewSymbolizer makes a Symbolizer.
func NewSymbolizer(cfg SymbolizerConfig) *Symbolizer {
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = 32 << 20
	}
	if cfg.Current == nil {
		cfg.Current = func(process.ID) bool { return true }
	}
	if cfg.Peers == nil {
		cfg.Peers = func(uint32) []int { return nil }
	}
	if cfg.RaiseEpoch == nil {
		cfg.RaiseEpoch = func(process.ID) error { return nil }
	}
	if cfg.SetSpace == nil {
		cfg.SetSpace = func(process.ID, uint64) error { return nil }
	}
	if cfg.SetLanguage == nil {
		cfg.SetLanguage = func(process.ID, uint8, uint32) error { return nil }
	}
	s := &Symbolizer{
		cfg:             cfg,
		states:          map[*process.Process]*state{},
		stacks:          map[Key]held{},
		refs:            map[*profile.Location]ref{},
		scopes:          map[uint32]int64{},
		execs:           map[uint32]int{},
		replaced:        map[place]*profile.Location{},
		kernel:          NewRecent[uint64, *profile.Location](8192),
		kernelFunctions: NewRecent[fixedKey, *profile.Location](4096),
	}
	reader := process.Reader{Root: cfg.ProcRoot}
	s.table = process.NewTable(process.Config{Reader: reader, MaxProcesses: cfg.MaxProcesses, Current: cfg.Current, Now: cfg.Now},
		s.forgotten)
	s.env = &Env{Reader: reader, Processes: s.table, Cache: cfg.Cache, Names: newNames(cfg.MaxBytes / 8), Peers: cfg.Peers,
		Patience: newPatience(), SetSpace: cfg.SetSpace, s: s}
	s.slots = make([]FrameSymbolizer, len(cfg.Unwinders))
	for i, u := range cfg.Unwinders {
		if n, ok := u.(Symbolizing); ok {
			env := *s.env
			env.SetLanguage = func(id process.ID, number uint32) error { return cfg.SetLanguage(id, uint8(i+1), number) }
			s.slots[i] = n.Symbolizer(&env)
		}
	}
	mark := func(name string) []*profile.Location {
		return []*profile.Location{s.env.Names.Fixed(name, marksFile)}
	}
	s.notDelivered, s.lost, s.notCounted, s.overBudget = mark(StackNotDelivered), mark(StackLost), mark(StackNotCounted), mark(StackOverBudget)
	return s
}

// Exec enters a process in scope that has just exec'd and reads its maps and files: it may be gone in a millisecond.
func (s *Symbolizer) Exec(id process.ID, scope uint32) {
	if s.execs[scope] == maxExecs {
		s.stats.execsHeld.Add(1)
		return // it is read at its first stack
	}
	s.execs[scope]++
	p := s.table.Exec(id, scope)
	st := s.state(p)
	s.mapped(p, true)
	for slot, f := range s.slots {
		if f != nil {
			s.attachment(p, st, slot).Exec()
		}
	}
}

// Exit notes that a process is ending; it is forgotten two windows later.
func (s *Symbolizer) Exit(id process.ID) { s.table.Exit(id) }

// Sweep looks which processes have ended: records of exits were lost.
func (s *Symbolizer) Sweep() { s.table.Sweep() }

// MapsChanged reads the maps of a process again, because the kernel saw more or fewer executable pages than before.
func (s *Symbolizer) MapsChanged(id process.ID) {
	if p, ok := s.table.Lookup(id); ok {
		s.changed(p, s.table.Reread(p), false)
	}
}

// Stack resolves a new stack. A stack that is known is resolved again.
func (s *Symbolizer) Stack(st Stack) {
	s.stats.resolved.Add(1)
	s.Forget(st.Key)
	s.buf = s.buf[:0]
	var (
		p  *process.Process
		ps *state
	)
	for _, f := range s.merged(&st) {
		n := len(s.buf)
		switch slot := int(f.Unwinder) - 1; {
		case f.Unwinder == KernelSlot && f.Kind == KindKernel:
			s.buf = append(s.buf, s.kernelLocation(f))
		case f.Unwinder == KernelSlot && f.Kind == KindTruncated:
			s.buf = append(s.buf, s.env.Names.Fixed(Truncated, marksFile))
		case slot >= 0 && slot < len(s.slots) && s.slots[slot] != nil:
			if p == nil { // asked for only when it has frames of its own
				p = s.table.Get(st.Key.Process, st.Key.Scope, evidence(st.Hints))
				ps = s.state(p)
				s.mapped(p, false)
			}
			s.buf = s.attachment(p, ps, slot).Symbolize(s.buf, f, &st)
		}
		if len(s.buf) == n { // nobody reads this slot: the frame is shown all the same
			s.stats.named[NamedUnknown].Add(1)
			s.buf = append(s.buf, s.env.Names.Fixed(Unknown, Unknown))
		}
	}
	if len(s.buf) == 0 {
		s.buf = append(s.buf, s.env.Names.Fixed(Unknown, Unknown))
	}
	s.keep(st.Key, s.buf)
	clear(s.buf)
	for _, f := range s.slots {
		if f != nil {
			f.Improve()
		}
	}
}

// merged returns the frames of a stack with those of languages in their places.
func (s *Symbolizer) merged(st *Stack) []RawFrame {
	if !slices.ContainsFunc(st.Frames, func(f RawFrame) bool { return f.appended() }) {
		return st.Frames
	}
	p := s.table.Get(st.Key.Process, st.Key.Scope, evidence(st.Hints))
	ps := s.state(p)
	s.mapped(p, false)
	return s.merger.merge(st.Frames, func(slot uint8, address uint64) bool {
		i := int(slot) - 1
		if i >= len(s.slots) || s.slots[i] == nil {
			return false
		}
		a, ok := s.attachment(p, ps, i).(Interpreter)
		return ok && a.Loop(address)
	})
}

// WindowBegin is called before the stacks of a window are asked for: frames that have found a better name since have it from here on.
func (s *Symbolizer) WindowBegin() {
	for _, f := range s.slots {
		if f != nil {
			f.Improve()
		}
	}
	if len(s.replaced) == 0 {
		return
	}
	var changed []Key
	for k, h := range s.stacks {
		if slices.ContainsFunc(h.locations, func(l *profile.Location) bool { return s.replaced[place{k.Scope, l}] != nil }) {
			changed = append(changed, k)
		}
	}
	for _, k := range changed {
		s.buf = append(s.buf[:0], s.stacks[k].locations...)
		for i, l := range s.buf {
			if better := s.replaced[place{k.Scope, l}]; better != nil {
				s.buf[i] = better
			}
		}
		s.Forget(k)
		s.keep(k, s.buf)
	}
	clear(s.buf)
	clear(s.replaced)
}

// evidence is what hints say about where files lie in memory.
func evidence(hints []Hint) []process.Evidence {
	out := make([]process.Evidence, 0, len(hints))
	for _, h := range hints {
		out = append(out, process.Evidence{Address: h.Address, Offset: h.Offset})
	}
	return out
}

// keep holds the locations of a stack, or one that says that they did not fit.
func (s *Symbolizer) keep(k Key, locations []*profile.Location) {
	h := held{bytes: stackCost + 8*int64(len(locations))}
	more := h.bytes
	for _, l := range locations {
		if _, ok := s.refs[l]; !ok {
			more += locationCost(l)
		}
	}
	if s.bytes+more > s.cfg.MaxBytes || s.scopes[k.Scope]+more > s.cfg.MaxBytes/4 {
		s.stats.overBudget.Add(1)
		locations = s.overBudget
		h.bytes = stackCost
	}
	h.locations = slices.Clone(locations)
	for _, l := range h.locations {
		r, ok := s.refs[l]
		if !ok {
			r.scope = k.Scope
			s.charge(k.Scope, locationCost(l))
		}
		r.n++
		s.refs[l] = r
	}
	s.charge(k.Scope, h.bytes)
	s.stacks[k] = h
	s.stats.stacks.Store(int64(len(s.stacks)))
}

// locationCost is what a location takes, with its share of what it refers to.
func locationCost(l *profile.Location) int64 {
	n := int64(192)
	for _, line := range l.Line {
		n += 64 + int64(len(line.Function.Name))
	}
	return n
}

// charge adds to what a scope holds.
func (s *Symbolizer) charge(scope uint32, bytes int64) {
	s.bytes += bytes
	if s.scopes[scope] += bytes; s.scopes[scope] == 0 {
		delete(s.scopes, scope)
	}
	s.stats.bytes.Store(s.bytes)
}

// Locations returns the frames of a stack, leaf first. They are immutable and shared, and each has a line with a function;
// the slice is too. Without the stack the answer is one location that says so: for a key with Hash 0 [StackNotDelivered] and
// true, for one whose stack should be here [StackLost] and false, which the caller counts.
func (s *Symbolizer) Locations(k Key) ([]*profile.Location, bool) {
	if k.Hash == 0 {
		return s.notDelivered, true
	}
	if h, ok := s.stacks[k]; ok {
		return h.locations, true
	}
	return s.lost, false
}

// NotCounted returns the location for samples that were not counted stack by stack: [StackNotCounted].
func (s *Symbolizer) NotCounted() []*profile.Location { return s.notCounted }

// Forget drops a stack.
func (s *Symbolizer) Forget(k Key) {
	h, ok := s.stacks[k]
	if !ok {
		return
	}
	delete(s.stacks, k)
	for _, l := range h.locations {
		r := s.refs[l]
		if r.n--; r.n > 0 {
			s.refs[l] = r
			continue
		}
		delete(s.refs, l)
		s.charge(r.scope, -locationCost(l))
	}
	s.charge(k.Scope, -h.bytes)
	s.stats.stacks.Store(int64(len(s.stacks)))
}

// WindowEnd is called after the counts of a window have been joined with their stacks; active are the processes that it
// counted, with their scopes. It looks whether their code is still where it was, and forgets processes that ended two windows
// ago.
func (s *Symbolizer) WindowEnd(active map[process.ID]uint32) {
	s.kernelWait = max(0, s.kernelWait-1)
	s.env.Patience.windowEnd()
	clear(s.execs)
	better := map[*process.Process]bool{}
	for p, st := range s.states {
		for _, a := range st.attachments {
			if a != nil && a.WindowEnd() {
				better[p] = true
			}
		}
	}
	seen := make(map[*process.Process]bool, len(active))
	for id, scope := range active {
		p, ok := s.table.Lookup(id)
		if !ok { // it was forgotten while it did nothing: its stacks are known, so none of them brings it back
			s.mapped(s.table.Get(id, scope, nil), false)
			continue
		}
		if seen[p] {
			continue
		}
		seen[p] = true
		s.changed(p, s.table.Refresh(p), better[p])
		delete(better, p)
	}
	for p := range better { // not sampled in this window, but it may be in the next
		s.changed(p, process.Change{}, true)
	}
	for _, f := range s.slots {
		if f != nil {
			f.WindowEnd()
		}
	}
	s.table.WindowEnd()
}

// mapped tells the attachments of a process that its maps are other ones, if they are.
func (s *Symbolizer) mapped(p *process.Process, atExec bool) {
	st := s.state(p)
	if p.Maps() == st.maps {
		return
	}
	st.maps = p.Maps()
	for slot, f := range s.slots {
		if f != nil {
			s.attachment(p, st, slot).Mapped(atExec)
		}
	}
}

// changed raises the epoch of a process whose stacks would be named differently now: after what the kernel side walks by is
// that of its new mappings.
func (s *Symbolizer) changed(p *process.Process, c process.Change, better bool) {
	s.mapped(p, false)
	st := s.state(p)
	if !c.Moved && !better && !(c.Fresh && st.unknown) {
		return
	}
	st.unknown = false
	s.stats.epochs.Add(1)
	if err := s.cfg.RaiseEpoch(p.ID()); err != nil {
		s.stats.epochErrors.Add(1)
	}
}

func (s *Symbolizer) state(p *process.Process) *state {
	st := s.states[p]
	if st == nil {
		st = &state{attachments: make([]Attachment, len(s.slots))}
		s.states[p] = st
	}
	return st
}

func (s *Symbolizer) attachment(p *process.Process, st *state, slot int) Attachment {
	if st.attachments[slot] == nil {
		st.attachments[slot] = s.slots[slot].Attach(p)
	}
	return st.attachments[slot]
}

// forgotten is called by the table.
func (s *Symbolizer) forgotten(p *process.Process) {
	if st := s.states[p]; st != nil {
		for _, a := range st.attachments {
			if a != nil {
				a.Detach()
			}
		}
		delete(s.states, p)
	}
}

// kernelLocation names a kernel frame. Locations are one per function and have no address: it would tell where the kernel
// was loaded.
func (s *Symbolizer) kernelLocation(f RawFrame) *profile.Location {
	address := f.A
	if f.ReturnAddress {
		address--
	}
	if s.cfg.Kernel != nil {
		if g := s.cfg.Kernel.Generation(); g != s.kernelGeneration {
			s.kernel.Clear()
			s.kernelGeneration = g
		}
		if l, ok := s.kernel.Get(address); ok {
			s.stats.named[NamedKernel].Add(1)
			return l
		}
		name, module, ok := s.cfg.Kernel.Lookup(address)
		if !ok && s.refreshKernel() {
			name, module, ok = s.cfg.Kernel.Lookup(address)
		}
		if ok {
			key := fixedKey{name, kernelFile}
			if module != "" {
				key.mapping = "[" + module + "]"
			}
			l, known := s.kernelFunctions.Get(key)
			if !known {
				l = s.env.Names.Unaddressed(name, key.mapping)
				s.kernelFunctions.Put(key, l, 1)
			}
			s.kernel.Put(address, l, 1)
			s.stats.named[NamedKernel].Add(1)
			return l
		}
	}
	s.stats.named[NamedKernelUnknown].Add(1)
	return s.env.Names.Fixed(KernelUnknown, kernelFile)
}

// maxKernelBackoff is how many windows pass at most between two attempts to find an unknown kernel address: reading the
// kernel's symbols costs some 50 ms.
const maxKernelBackoff = 64

// refreshKernel reads the kernel's symbols again, because modules and BPF programs come and go; at most once per window, and
// ever less often while it does not help.
func (s *Symbolizer) refreshKernel() bool {
	if s.kernelWait > 0 {
		return false
	}
	before := s.cfg.Kernel.Generation()
	err := s.cfg.Kernel.Refresh()
	s.stats.kernels.Add(1)
	if err == nil && s.cfg.Kernel.Generation() != before {
		s.kernelBackoff, s.kernelWait = 1, 1
		return true
	}
	s.kernelBackoff = min(max(1, 2*s.kernelBackoff), maxKernelBackoff)
	s.kernelWait = s.kernelBackoff
	return false
}

// Stats returns a copy of the counters. Any goroutine may call it.
func (s *Symbolizer) Stats() SymbolizerStats {
	c := &s.stats
	out := SymbolizerStats{
		Frames: make(map[string]uint64, namedCount), Stacks: c.stacks.Load(), Bytes: c.bytes.Load(), Resolved: c.resolved.Load(),
		OverBudget: c.overBudget.Load(), ExecsHeld: c.execsHeld.Load(), Epochs: c.epochs.Load(), EpochErrors: c.epochErrors.Load(), KernelReads: c.kernels.Load(),
		Processes: s.table.Stats(), Unwinders: map[string]map[string]uint64{},
	}
	for n := range namedCount {
		out.Frames[n.String()] = c.named[n].Load()
	}
	for i, f := range s.slots {
		if f != nil {
			out.Unwinders[s.cfg.Unwinders[i].Name()] = f.Counters()
		}
	}
	return out
}
