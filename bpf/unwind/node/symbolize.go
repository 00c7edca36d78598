package node

import (
	"errors"
	"strings"
	"sync/atomic"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/symbol"
	"github.com/stoker-profiler/stoker/bpf/unwind"
)

const (
	// mappingName is where a profile says that functions of JavaScript are, anonymous stands for those that have no name.
	mappingName = "[javascript]"
	anonymous   = "(anonymous)"
	// gone stands for a function that was moved or freed before it was named, or whose process has ended.
	gone = "[javascript: code gone]"

	frameBytes    = 8 << 20 // of frames that are remembered, of all processes
	locationBytes = 4 << 20 // of places in scripts

	// minFile is the smallest file that is looked at, in bytes: V8 itself has more than twice as many.
	minFile = 8 << 20
	// idleWindows is how many windows it is remembered what a file is that no process has mapped anew: as long as nobody maps it
	// another file may get its inode.
	idleWindows = 3
	// maxUnknown is how many unknown versions the log tells of: a hostile file can have any.
	maxUnknown = 16
)

// symbolizer names the frames of JavaScript. It belongs to the goroutine of the [unwind.Symbolizer].
type symbolizer struct {
	u         *Unwinder
	env       *unwind.Env
	window    uint64
	number    uint32 // the last that the kernel side was told
	files     map[fileKey]*known
	frames    *unwind.Recent[frameKey, *profile.Location]
	locations *unwind.Recent[string, *profile.Location] // equal places of all processes are one
	unknown   map[string]bool                           // what was said of versions that are not known

	waiting map[*attachment]struct{} // for the programs to be loaded

	attached, failed, filesFailed, read, gone, noLine, slow atomic.Uint64
}

type fileKey struct {
	major, minor uint32
	inode        uint64
	path         string
}

// known is what a file was found to be.
type known struct {
	layout *Layout // nil: there is no V8 in it, or none that we know
	failed bool    // to be read again
	used   uint64  // window
}

// frameKey is a frame of a process, as the kernel has sent it.
type frameKey struct {
	process       *process.Process
	a, b          uint64
	kind          uint8
	returnAddress bool
}

// Symbolizer implements [unwind.Symbolizing].
func (u *Unwinder) Symbolizer(env *unwind.Env) unwind.FrameSymbolizer {
	return &symbolizer{
		u: u, env: env, files: map[fileKey]*known{}, unknown: map[string]bool{}, waiting: map[*attachment]struct{}{},
		frames:    unwind.NewRecent[frameKey, *profile.Location](frameBytes),
		locations: unwind.NewRecent[string, *profile.Location](locationBytes),
	}
}

// Attach implements [unwind.FrameSymbolizer].
func (s *symbolizer) Attach(p *process.Process) unwind.Attachment { return &attachment{s: s, p: p} }

// Improve implements [unwind.FrameSymbolizer]: it attaches to processes that had to wait for the programs.
func (s *symbolizer) Improve() {
	if len(s.waiting) == 0 || !s.u.ready() {
		return
	}
	for a := range s.waiting {
		delete(s.waiting, a)
		a.Mapped(false)
	}
}

// WindowEnd implements [unwind.FrameSymbolizer].
func (s *symbolizer) WindowEnd() {
	s.window++
	for key, k := range s.files {
		if s.window-k.used > idleWindows {
			delete(s.files, key)
		}
	}
}

// Counters implements [unwind.FrameSymbolizer].
func (s *symbolizer) Counters() map[string]uint64 {
	out := map[string]uint64{
		"processes_attached":  s.attached.Load(),    // whose V8 the kernel side was told of
		"processes_failed":    s.failed.Load(),      // of which it could not be told
		"files_failed":        s.filesFailed.Load(), // that could not be searched for V8: tried again
		"frames_read":         s.read.Load(),        // different ones, from their processes' memory
		"frames_gone":         s.gone.Load(),        // whose function was moved or freed before, or whose process had ended
		"frames_without_line": s.noLine.Load(),      // of those that were read: their code is gone, or does not say
		"frames_slow":         s.slow.Load(),        // that were not read within a moment: tried again
	}
	s.u.kernelCounters(out)
	return out
}

// attachment is one process.
type attachment struct {
	s      *symbolizer
	p      *process.Process
	layout *Layout // nil: no V8 that we know
	number uint32  // what the kernel side knows it by; 0: nothing
	heap   *Heap   // nil: nothing was read yet, or a read has not ended
}

// Exec implements [unwind.Attachment].
func (*attachment) Exec() {}

// Mapped implements [unwind.Attachment]: it looks whether V8 is mapped in a process that makes code while it runs, and tells the kernel
// side.
func (a *attachment) Mapped(bool) {
	if a.p.Gone() {
		return
	}
	code := a.p.Maps().Code()
	makes := false
	for i := range code {
		makes = makes || !code[i].Backed()
	}
	for i := range code {
		if !makes || !code[i].Backed() {
			continue
		}
		if l := a.s.layout(a.p, &code[i]); l != nil {
			a.attach(l)
			return
		}
	}
	a.detach()
}

// layout returns the layout of the V8 in the file of a mapping; nil: there is none that we know.
func (s *symbolizer) layout(p *process.Process, m *process.Mapping) *Layout {
	key := fileKey{m.Major, m.Minor, m.Inode, m.Path}
	k := s.files[key]
	if k == nil || k.failed && k.used < s.window {
		l, err := s.inspect(p, m)
		k = &known{layout: l, failed: err != nil}
		s.files[key] = k
	}
	k.used = s.window
	return k.layout
}

// inspect reads the file of a mapping. With an error it is worth reading it again in another window.
func (s *symbolizer) inspect(p *process.Process, m *process.Mapping) (*Layout, error) {
	reader, pid, mapping := s.env.Reader, p.ID().PID, *m
	l, err := unwind.Patiently(s.env.Patience, p.Scope(), func() (*Layout, error) {
		f, err := reader.Open(pid, &mapping)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return nil, err
		}
		if st.Size() < minFile {
			return nil, ErrNotV8
		}
		return ReadLayout(f, st.Size())
	})
	var format *symbol.FormatError
	var unknown *UnknownVersion
	var odd *OddLayout
	switch {
	case errors.Is(err, ErrNotV8), errors.Is(err, symbol.ErrNotELF), errors.Is(err, symbol.ErrNotRegular), errors.As(err, &format):
		return nil, nil // code of another kind
	case errors.As(err, &unknown), errors.As(err, &odd):
		if say := err.Error(); !s.unknown[say] && len(s.unknown) < maxUnknown {
			s.unknown[say] = true
			s.u.log.Warn("functions of JavaScript are not shown, only addresses of their code", "err", err,
				"known", "those of Node.js 18 to 26", "file", m.Path)
		}
		return nil, nil
	case err != nil:
		s.filesFailed.Add(1)
		s.u.log.Debug("a file could not be searched for V8", "file", m.Path, "pid", pid, "err", err)
		return nil, err
	}
	return l, nil
}

// attach tells the kernel side of the process.
func (a *attachment) attach(l *Layout) {
	if a.number != 0 && a.layout == l {
		return
	}
	a.detach()
	m, err := a.s.u.processes()
	if err == nil && m == nil {
		a.s.waiting[a] = struct{}{}
		return
	}
	if err == nil {
		a.s.number++
		if err = m.Put(a.s.number, kernelLayout(l)); err == nil {
			a.layout, a.number = l, a.s.number
			err = a.s.env.SetLanguage(a.p.ID(), a.number)
		}
	}
	if err != nil {
		a.s.failed.Add(1)
		a.s.u.log.Debug("functions of JavaScript are not shown", "pid", a.p.ID().PID, "err", err)
		return
	}
	a.s.attached.Add(1)
}

func (a *attachment) detach() {
	delete(a.s.waiting, a)
	if a.number == 0 {
		return
	}
	number := a.number
	a.layout, a.number, a.heap = nil, 0, nil
	if err := a.s.env.SetLanguage(a.p.ID(), 0); err != nil {
		a.s.failed.Add(1)
	}
	if m, err := a.s.u.processes(); err == nil && m != nil {
		_ = m.Delete(number) // it is there, or the sampler has been closed
	}
}

// Detach implements [unwind.Attachment].
func (a *attachment) Detach() { a.detach() }

// WindowEnd implements [unwind.Attachment].
func (*attachment) WindowEnd() bool { return false }

// Symbolize implements [unwind.Attachment].
func (a *attachment) Symbolize(dst []*profile.Location, f unwind.RawFrame, _ *unwind.Stack) []*profile.Location {
	s := a.s
	key := frameKey{a.p, f.A, f.B, f.Kind, f.ReturnAddress}
	l, ok := s.frames.Get(key)
	if !ok {
		frames := a.read(f)
		if len(frames) == 0 {
			s.env.Count(a.p, unwind.NamedUnknown)
			return append(dst, s.env.Names.Fixed(gone, mappingName))
		}
		l = s.location(frames)
		s.frames.Put(key, l, 160)
	}
	s.env.Count(a.p, unwind.NamedSymbol)
	return append(dst, l)
}

// read reads what a frame is, innermost inlined function first; nothing if that cannot be.
func (a *attachment) read(f unwind.RawFrame) []Frame {
	s := a.s
	if a.layout == nil || a.p.Gone() {
		s.gone.Add(1)
		return nil
	}
	if a.heap == nil {
		a.heap = NewHeap(a.layout, process.Memory{PID: a.p.ID().PID})
	}
	heap := a.heap
	frames, err := unwind.Patiently(s.env.Patience, a.p.Scope(), func() ([]Frame, error) { return heap.frames(f) })
	if errors.Is(err, unwind.ErrSlow) {
		a.heap = nil // it belongs to who still reads
		s.slow.Add(1)
		return nil
	}
	if err != nil {
		s.gone.Add(1)
		return nil
	}
	s.read.Add(1)
	if frames[0].Line == 0 {
		s.noLine.Add(1)
	}
	return frames
}

// frames decodes a frame of the kernel side's: enum node_kind of node.bpf.c.
func (h *Heap) frames(f unwind.RawFrame) ([]Frame, error) {
	const word = 1<<48 - 1
	switch bpfNodeKind(f.Kind) {
	case bpfNodeKindNODE_INTERPRETED:
		return h.Interpreted(nil, f.A&word, uint16(f.A>>48), int(uint32(f.B)))
	case bpfNodeKindNODE_COMPILED:
		return h.Compiled(nil, f.B&word, uint16(f.B>>48), f.A&word, f.ReturnAddress, uint16(f.A>>48))
	case bpfNodeKindNODE_FUNCTION:
		return h.Called(nil, f.A&word, uint16(f.A>>48))
	}
	return nil, errors.New("the kernel side has sent a frame of an unknown kind")
}

// location is the one location of a place, with what is inlined there.
func (s *symbolizer) location(frames []Frame) *profile.Location {
	var key strings.Builder
	for _, f := range frames {
		key.WriteString(f.key())
	}
	if l, ok := s.locations.Get(key.String()); ok {
		return l
	}
	l := &profile.Location{Mapping: s.env.Names.Mapping(unwind.MappingKey{File: mappingName})}
	for _, f := range frames {
		name := f.Function
		if name == "" {
			name = anonymous
		}
		function := s.env.Names.Function(name, strings.TrimPrefix(f.File, "file://"), int64(f.StartLine))
		l.Line = append(l.Line, profile.Line{Function: function, Line: int64(f.Line), Column: int64(f.Column)})
	}
	s.locations.Put(key.String(), l, int64(200+48*len(frames)+2*key.Len()))
	return l
}
