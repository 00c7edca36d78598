package python

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/symbol"
	"github.com/stoker-profiler/stoker/bpf/unwind"
	"github.com/stoker-profiler/stoker/bpf/unwind/python/offsets"
)

const (
	// codesBytes bounds the code objects that are remembered, of all processes.
	codesBytes = 8 << 20
	// idleWindows is how many windows it is remembered what a file is that no process has mapped anew: as long as nobody maps it
	// another file may get its inode.
	idleWindows = 3
	// maxUnknown is how many unknown versions the log tells of: a hostile file can have any.
	maxUnknown = 16
	// Names of frames that stand where there is no function, and the mapping of all of Python's.
	mappingName = "[python]"
	frameLost   = "[python: frames lost]"
	codeGone    = "[python: code gone]"
	codeForeign = "[python: unreadable code]"
)

// symbolizer names the frames of Python. It belongs to the goroutine of the [unwind.Symbolizer].
type symbolizer struct {
	u       *Unwinder
	env     *unwind.Env
	window  uint64
	number  uint32 // the last that the kernel side was told
	images  map[fileKey]*known
	codes   *unwind.Recent[codeKey, *code]
	places  *unwind.Recent[placeKey, *profile.Location]
	unknown map[string]bool          // versions of which it was said that they are unknown
	waiting map[*attachment]struct{} // for the programs to be loaded

	attached, failed, filesFailed, read, gone, unreadable, slow atomic.Uint64
}

type fileKey struct {
	major, minor uint32
	inode        uint64
	path         string
}

// known is what a file was found to be.
type known struct {
	image  *image // nil: no interpreter
	failed bool   // to be read again
	used   uint64 // window
}

type codeKey struct {
	process *process.Process
	object  uint64
	cookie  uint32
}

// code is a code object that was read, or could not be.
type code struct {
	Code
	err  error
	name *profile.Function
}

type placeKey struct {
	function *profile.Function
	line     int
}

// Symbolizer implements [unwind.Symbolizing].
func (u *Unwinder) Symbolizer(env *unwind.Env) unwind.FrameSymbolizer {
	return &symbolizer{u: u, env: env, images: map[fileKey]*known{}, unknown: map[string]bool{}, waiting: map[*attachment]struct{}{},
		codes: unwind.NewRecent[codeKey, *code](codesBytes), places: unwind.NewRecent[placeKey, *profile.Location](codesBytes)}
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
	for key, k := range s.images {
		if s.window-k.used > idleWindows {
			delete(s.images, key)
		}
	}
}

// Counters implements [unwind.FrameSymbolizer].
func (s *symbolizer) Counters() map[string]uint64 {
	out := map[string]uint64{
		"processes_attached": s.attached.Load(),    // whose interpreter the kernel side was told of
		"processes_failed":   s.failed.Load(),      // of which it could not be told
		"files_failed":       s.filesFailed.Load(), // that could not be searched for an interpreter: tried again
		"codes_read":         s.read.Load(),        // code objects
		"codes_gone":         s.gone.Load(),        // that were others when they were looked at, or whose process had ended
		"codes_unreadable":   s.unreadable.Load(),  // in which something is wrong
		"codes_slow":         s.slow.Load(),        // that were not read within a moment: tried again
	}
	s.u.kernelCounters(out)
	return out
}

// attachment is one process.
type attachment struct {
	s      *symbolizer
	p      *process.Process
	image  *image // nil: no interpreter that we know
	bias   uint64
	number uint32 // what the kernel side knows it by; 0: nothing
	kernel bpfInterpreter
}

var _ unwind.Interpreter = (*attachment)(nil)

// Exec implements [unwind.Attachment].
func (*attachment) Exec() {}

// Mapped implements [unwind.Attachment]: it looks whether an interpreter is mapped, and tells the kernel side.
func (a *attachment) Mapped(bool) {
	if a.p.Gone() {
		return
	}
	for i, m := range a.p.Maps().Code() {
		if !m.Backed() {
			continue
		}
		im := a.s.image(a.p, &a.p.Maps().Code()[i])
		if im == nil {
			continue
		}
		if bias, ok := im.biasOf(&m); ok {
			a.attach(im, bias)
			return
		}
	}
	a.detach()
}

// image returns what the file of a mapping has of CPython; nil: nothing that we know.
func (s *symbolizer) image(p *process.Process, m *process.Mapping) *image {
	key := fileKey{m.Major, m.Minor, m.Inode, m.Path}
	k := s.images[key]
	if k == nil || k.failed && k.used < s.window {
		im, err := s.inspect(p, m)
		k = &known{image: im, failed: err != nil}
		s.images[key] = k
	}
	k.used = s.window
	return k.image
}

// inspect reads the file of a mapping. With an error it is worth reading it again in another window.
func (s *symbolizer) inspect(p *process.Process, m *process.Mapping) (*image, error) {
	reader, pid, mapping := s.env.Reader, p.ID().PID, *m
	im, err := unwind.Patiently(s.env.Patience, p.Scope(), func() (*image, error) {
		f, err := reader.Open(pid, &mapping)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return nil, err
		}
		return readImage(f, st.Size())
	})
	var format *symbol.FormatError
	switch {
	case errors.Is(err, symbol.ErrNotELF), errors.Is(err, symbol.ErrNotRegular), errors.As(err, &format):
		return nil, nil // code of another kind
	case err != nil:
		s.filesFailed.Add(1)
		s.u.log.Debug("a file could not be searched for Python", "file", m.Path, "pid", pid, "err", err)
		return nil, err
	case im == nil:
		return nil, nil
	case im.table == nil:
		if !s.unknown[im.release] && len(s.unknown) < maxUnknown {
			s.unknown[im.release] = true
			s.u.log.Warn("this version of Python is not known: its functions are not shown, only the interpreter's", "version", im.release, "file", m.Path)
		}
		return nil, nil
	}
	return im, nil
}

// attach tells the kernel side of the process, once the programs are loaded.
func (a *attachment) attach(im *image, bias uint64) {
	if a.number != 0 && a.image == im && a.bias == bias {
		return
	}
	a.detach()
	m, err := a.s.u.interpreters()
	if err == nil && m == nil {
		a.s.waiting[a] = struct{}{}
		return
	}
	if err == nil {
		a.s.number++
		a.kernel = im.attach(bias)
		if err = m.Put(a.s.number, a.kernel); err == nil {
			a.image, a.bias, a.number = im, bias, a.s.number
			err = a.s.env.SetLanguage(a.p.ID(), a.number)
		}
	}
	if err != nil {
		a.s.failed.Add(1)
		a.s.u.log.Debug("Python's functions are not shown", "pid", a.p.ID().PID, "err", err)
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
	a.image, a.number = nil, 0
	if err := a.s.env.SetLanguage(a.p.ID(), 0); err != nil {
		a.s.failed.Add(1)
	}
	if m, err := a.s.u.interpreters(); err == nil && m != nil {
		_ = m.Delete(number) // it is there, or the sampler has been closed
	}
}

// Detach implements [unwind.Attachment].
func (a *attachment) Detach() { a.detach() }

// WindowEnd implements [unwind.Attachment].
func (*attachment) WindowEnd() bool { return false }

// Loop implements [unwind.Interpreter].
func (a *attachment) Loop(address uint64) bool {
	for _, l := range a.kernel.Loops {
		if l.Start <= address && address < l.End {
			return true
		}
	}
	return false
}

// Symbolize implements [unwind.Attachment].
func (a *attachment) Symbolize(dst []*profile.Location, f unwind.RawFrame, _ *unwind.Stack) []*profile.Location {
	names := a.s.env.Names
	if f.Kind != unwind.LanguageFrame && f.Kind != unwind.LanguageEntry {
		return append(dst, names.Fixed(frameLost, mappingName))
	}
	c := a.code(f.A, uint32(f.B>>32))
	switch {
	case errors.Is(c.err, errGone):
		a.s.env.Count(a.p, unwind.NamedUnknown)
		return append(dst, names.Fixed(codeGone, mappingName))
	case c.err != nil:
		a.s.env.Count(a.p, unwind.NamedUnknown)
		return append(dst, names.Fixed(codeForeign, mappingName))
	}
	instruction := uint64(uint32(f.B))
	if a.kernel.Indexed == 0 {
		instruction = f.A + uint64(int64(int32(f.B)))
	}
	line, err := c.Line(instruction)
	if err != nil {
		line = int(c.First)
	}
	a.s.env.Count(a.p, unwind.NamedSymbol)
	key := placeKey{c.name, line}
	l, ok := a.s.places.Get(key)
	if !ok {
		l = &profile.Location{
			Mapping: names.Mapping(unwind.MappingKey{File: mappingName}),
			Line:    []profile.Line{{Function: c.name, Line: int64(line)}},
		}
		a.s.places.Put(key, l, 256)
	}
	return append(dst, l)
}

// errGone says that other code, or nothing, is where a code object was.
var errGone = errors.New("the code object is gone")

// code returns a code object of the process that had a cookie when it was sampled.
func (a *attachment) code(at uint64, cookie uint32) *code {
	key := codeKey{a.p, at, cookie}
	if c, ok := a.s.codes.Get(key); ok {
		return c
	}
	c := &code{err: errGone}
	if a.image != nil && !a.p.Gone() {
		mem, table, kernel := process.Memory{PID: a.p.ID().PID}, a.image.table, a.kernel
		c.Code, c.err = unwind.Patiently(a.s.env.Patience, a.p.Scope(), func() (Code, error) {
			return readVerified(mem, table, &kernel, at, cookie)
		})
	}
	switch {
	case c.err == nil:
		a.s.read.Add(1)
		c.name = a.s.env.Names.Function(c.Name, c.File, int64(c.First))
	case errors.Is(c.err, unwind.ErrSlow):
		a.s.slow.Add(1)
		return c // not kept: it may be read the next time
	case errors.Is(c.err, errGone):
		a.s.gone.Add(1)
	default:
		a.s.unreadable.Add(1)
	}
	a.s.codes.Put(key, c, int64(256+len(c.table)))
	return c
}

// readVerified reads the code object at an address, and looks before and after whether it is what was sampled.
func readVerified(mem process.Memory, t *offsets.Table, k *bpfInterpreter, at uint64, cookie uint32) (Code, error) {
	if err := verify(mem, k, at, cookie); err != nil {
		return Code{}, err
	}
	c, err := ReadCode(mem, t, at)
	if err == nil {
		err = verify(mem, k, at, cookie)
	}
	if errors.Is(err, process.ErrGone) && !errors.Is(err, errGone) {
		err = fmt.Errorf("%w: %w", errGone, err)
	}
	return c, err
}

// codeBytes is CODE_BYTES of python.bpf.c.
const codeBytes = 144

// verify compares what is at an address with what was there when it was sampled.
func verify(mem process.Memory, k *bpfInterpreter, at uint64, cookie uint32) error {
	var b [codeBytes]byte
	if err := readAt(mem, b[:], at); err != nil {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	if k.CodeType != 0 && binary.LittleEndian.Uint64(b[8:]) != k.CodeType {
		return fmt.Errorf("%w: what is at %#x is no code object", errGone, at)
	}
	if got := cookieOf(&b, k); cookie != 0 && got != cookie {
		return fmt.Errorf("%w: its cookie is %#x, it was %#x", errGone, got, cookie)
	}
	return nil
}

// cookieOf mirrors what walk__step of python.bpf.c makes of a code object.
func cookieOf(b *[codeBytes]byte, k *bpfInterpreter) uint32 {
	le := binary.LittleEndian
	mix := func(h, v uint64) uint64 {
		h = (h ^ v) * 0x9fb21c651e98df25
		return h ^ h>>32
	}
	h := mix(le.Uint64(b[k.Name:]), uint64(le.Uint32(b[k.FirstLine:]))<<32|uint64(le.Uint32(b[k.Flags:])))
	return uint32(mix(h, le.Uint64(b[k.Lines:]))>>32) | 1
}
