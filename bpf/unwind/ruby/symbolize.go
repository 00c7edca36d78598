package ruby

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/symbol"
	"github.com/stoker-profiler/stoker/bpf/unwind"
)

const (
	// codesBytes bounds the code that is remembered, of all processes.
	codesBytes = 8 << 20
	// idleWindows is how many windows it is remembered what a file is that no process has mapped anew: as long as nobody maps it
	// another file may get its inode.
	idleWindows = 3
	// maxUnknown is how many builds the log tells of that are not supported: a hostile file can have any.
	maxUnknown = 16
	// Names of frames that stand where there is no function, and the mapping of all of Ruby's.
	mappingName = "[ruby]"
	frameLost   = "[ruby: frames lost]"
	codeGone    = "[ruby: code gone]"
	codeForeign = "[ruby: unreadable code]"
	nativeFrame = "[ruby: native method]"
)

// symbolizer names the frames of Ruby. It belongs to the goroutine of the [unwind.Symbolizer].
type symbolizer struct {
	u       *Unwinder
	env     *unwind.Env
	window  uint64
	number  uint32 // the last that the kernel side was told
	images  map[fileKey]*known
	codes   *unwind.Recent[codeKey, *named]
	places  *unwind.Recent[placeKey, *profile.Location]
	unknown map[string]bool          // releases of which it was said that they are not supported
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
	process      *process.Process
	iseq, method uint64 // addresses; iseq 0: a native method
	cookie       uint16
}

// named is code that was read, or could not be.
type named struct {
	code
	err      error
	function *profile.Function
}

type placeKey struct {
	function *profile.Function
	line     int32
}

// Symbolizer implements [unwind.Symbolizing].
func (u *Unwinder) Symbolizer(env *unwind.Env) unwind.FrameSymbolizer {
	return &symbolizer{u: u, env: env, images: map[fileKey]*known{}, unknown: map[string]bool{}, waiting: map[*attachment]struct{}{},
		codes: unwind.NewRecent[codeKey, *named](codesBytes), places: unwind.NewRecent[placeKey, *profile.Location](codesBytes)}
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
		"codes_read":         s.read.Load(),        // iseqs and native methods
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
	names  *symbols // nil: not found yet
}

var _ unwind.Interpreter = (*attachment)(nil)

// Exec implements [unwind.Attachment].
func (*attachment) Exec() {}

// Mapped implements [unwind.Attachment]: it looks whether an interpreter is mapped, and tells the kernel side.
func (a *attachment) Mapped(bool) {
	if a.p.Gone() {
		return
	}
	if compiled(a.p.Maps().Code()) {
		a.detach()
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
			a.attach(im, bias, musl(a.p.Maps().Code()))
			return
		}
	}
	a.detach()
}

// image returns what the file of a mapping has of CRuby; nil: nothing that we know.
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
		s.u.log.Debug("a file could not be searched for Ruby", "file", m.Path, "pid", pid, "err", err)
		return nil, err
	case im == nil:
		return nil, nil
	case im.table == nil:
		if !s.unknown[im.release] && len(s.unknown) < maxUnknown {
			s.unknown[im.release] = true
			s.u.log.Warn("this build of Ruby is not supported (docs/ruby.md): its methods are not shown, only the interpreter's functions", "version", im.release, "file", m.Path)
		}
		return nil, nil
	}
	return im, nil
}

// compiledBytes is more code than libffi and the kernel put into a process without a file, and less than YJIT reserves.
const compiledBytes = 1 << 20

// compiled says whether the process runs code that a compiler made of Ruby. Its calls are not the loop's, so that nobody could say where
// among the native frames Ruby's belong: they are left out, and the code is [jit].
func compiled(code []process.Mapping) bool {
	for i := range code {
		if m := &code[i]; !m.Backed() && m.End-m.Start >= compiledBytes {
			return true
		}
	}
	return false
}

// musl says whether the process's C library is musl, by the name that its dynamic linker always has (musl, ldso/dlstart).
func musl(code []process.Mapping) bool {
	for i := range code {
		if strings.Contains(code[i].Path, "/ld-musl-") {
			return true
		}
	}
	return false
}

// attach tells the kernel side of the process, once the programs are loaded.
func (a *attachment) attach(im *image, bias uint64, musl bool) {
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
		a.kernel = im.attach(bias, musl)
		if err = m.Put(a.s.number, a.kernel); err == nil {
			a.image, a.bias, a.number = im, bias, a.s.number
			err = a.s.env.SetLanguage(a.p.ID(), a.number)
		}
	}
	if err != nil {
		a.s.failed.Add(1)
		a.s.u.log.Debug("Ruby's functions are not shown", "pid", a.p.ID().PID, "err", err)
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
	a.image, a.number, a.names = nil, 0, nil
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

// Bits of a frame's words: see ruby.bpf.c.
const (
	cookieShift      = 48
	nativeBit        = 1
	instructionBits  = 20
	instructionsMask = 1<<instructionBits - 1
	methodShift      = 17
)

// Symbolize implements [unwind.Attachment].
func (a *attachment) Symbolize(dst []*profile.Location, f unwind.RawFrame, _ *unwind.Stack) []*profile.Location {
	names := a.s.env.Names
	if f.Kind != unwind.LanguageFrame && f.Kind != unwind.LanguageEntry {
		return append(dst, names.Fixed(frameLost, mappingName))
	}
	key := codeKey{process: a.p, cookie: uint16(f.A >> cookieShift), method: f.B >> instructionBits << (instructionBits - methodShift)}
	if f.A&nativeBit == 0 {
		key.iseq = f.A & (1<<cookieShift - 1)
	} else if key.method == 0 {
		return append(dst, names.Fixed(nativeFrame, mappingName))
	}
	c := a.code(key)
	switch {
	case errors.Is(c.err, errGone):
		a.s.env.Count(a.p, unwind.NamedUnknown)
		return append(dst, names.Fixed(codeGone, mappingName))
	case c.err != nil:
		a.s.env.Count(a.p, unwind.NamedUnknown)
		return append(dst, names.Fixed(codeForeign, mappingName))
	}
	a.s.env.Count(a.p, unwind.NamedSymbol)
	var line int32
	if key.iseq != 0 {
		line = c.line(int(f.B & instructionsMask))
	}
	place := placeKey{c.function, line}
	l, ok := a.s.places.Get(place)
	if !ok {
		l = &profile.Location{
			Mapping: names.Mapping(unwind.MappingKey{File: mappingName}),
			Line:    []profile.Line{{Function: c.function, Line: int64(line)}},
		}
		a.s.places.Put(place, l, 256)
	}
	return append(dst, l)
}

// errGone says that other code, or nothing, is where code was.
var errGone = errors.New("the code is gone")

// code returns what a frame ran.
func (a *attachment) code(key codeKey) *named {
	if c, ok := a.s.codes.Get(key); ok {
		return c
	}
	c := &named{err: errGone}
	if a.image != nil && !a.p.Gone() {
		names, data := a.names, symbol.Range{Address: a.image.data.Address + symbol.Address(a.bias), Size: a.image.data.Size}
		if names == nil {
			names = &symbols{memory: memory{process.Memory{PID: a.p.ID().PID}, a.image.table}}
		}
		var r read
		r, c.err = unwind.Patiently(a.s.env.Patience, a.p.Scope(), func() (read, error) { return readVerified(*names, data, key) })
		if c.err == nil {
			c.code = r.code
			if a.names = &r.names; r.namesErr != nil {
				a.names = nil
				a.s.u.log.Debug("Ruby's names of classes are not shown", "pid", a.p.ID().PID, "err", r.namesErr)
			}
		}
	}
	switch {
	case c.err == nil:
		a.s.read.Add(1)
		c.function = a.s.env.Names.Function(c.name, c.file, int64(c.first))
	case errors.Is(c.err, unwind.ErrSlow):
		a.s.slow.Add(1)
		return c // not kept: it may be read the next time
	case errors.Is(c.err, errGone):
		a.s.gone.Add(1)
	default:
		a.s.unreadable.Add(1)
	}
	a.s.codes.Put(key, c, int64(256+len(c.lines)+len(c.index)))
	return c
}

// read is what came of reading a process's code: the code, and what was found out about its names on the way.
type read struct {
	code
	names    symbols
	namesErr error // its table of symbols was not found: methods go without their class
}

// readVerified reads what a frame ran, and looks before and after whether it is what was sampled. The names are a copy: nobody waits for
// a process that lets its memory be read slowly.
func readVerified(names symbols, data symbol.Range, key codeKey) (read, error) {
	r := read{names: names}
	if err := verify(&r.names, key); err != nil {
		return r, err
	}
	if r.names.ids == 0 {
		if found, err := findSymbols(r.names.memory, uint64(data.Address), int(data.Size)); err == nil {
			r.names = *found
		} else {
			r.namesErr = err
		}
	}
	var err error
	if key.iseq != 0 {
		r.code, err = r.names.sequence(key.iseq, key.method)
	} else {
		r.code, err = r.names.native(key.method)
	}
	if err == nil {
		err = verify(&r.names, key)
	}
	if errors.Is(err, process.ErrGone) && !errors.Is(err, errGone) {
		err = fmt.Errorf("%w: %w", errGone, err)
	}
	return r, err
}

// verify compares what is at an address with what was there when it was sampled.
func verify(s *symbols, key codeKey) error {
	got, err := s.cookieOf(key.iseq, key.method)
	if err != nil {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	if got != key.cookie {
		return fmt.Errorf("%w: its cookie is %#x, it was %#x", errGone, got, key.cookie)
	}
	return nil
}
