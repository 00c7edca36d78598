package native

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"sync/atomic"
	"weak"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/symbol"
	"github.com/stoker-profiler/stoker/bpf/unwind"
)

const (
	// jit names code that was made while the program ran, that its runtime wrote down nowhere and that no unwinder of a language
	// knows. All of it is one function:
	// its addresses are random, are reused, and mean nothing outside of their process, so naming each would make thousands of
	// functions that never meet again. The frames stay, so that what they call and who calls them is right.
	jit = "[jit]"
	// anonymous is the mapping of code that has no file.
	anonymous = "[anon]"

	// retryWindows is how long a file that could not be read is not tried again for the same process.
	retryWindows = 6
	// maxDonors bounds the other processes that are asked for a file of one that is gone, maxSiblings those whose mappings are
	// compared with its hints, maxLearn the files that are read to find a build id.
	maxDonors   = 8
	maxSiblings = 32
	maxLearn    = 64
	// maxBases bounds the hints that are kept for a process, maxFiles the files: a process can map one after the other.
	maxBases = 64
	maxFiles = 2048

	locationBudget = 6 << 20 // bytes
	buildBudget    = 1 << 20
	jitBudget      = 256 << 10
	// objectBudget bounds the symbols that are held here beside the cache: those of files in use stay while others come and
	// go, and those that a process left behind stay for its last stacks.
	objectBudget = 8 << 20
)

// Symbolizer implements [unwind.Symbolizing].
func (u *Unwinder) Symbolizer(env *unwind.Env) unwind.FrameSymbolizer {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.reader = env.Reader
	return &symbolizer{
		env:         env,
		tables:      u.tables,
		loader:      newLoader(),
		liner:       newLiner(env.Cache),
		fetch:       u.fetch,
		attachments: map[*process.Process]*attachment{},
		locations:   unwind.NewRecent[locationKey, named](locationBudget),
		jits:        unwind.NewRecent[jitKey, *profile.Location](jitBudget),
		builds:      unwind.NewRecent[buildKey, build](buildBudget),
		objects:     unwind.NewRecent[weak.Pointer[symbol.Object], *symbol.Object](objectBudget),
		learned:     map[uint32]bool{},
	}
}

// symbolizer names native frames: address → mapping → file → ELF address → functions and lines.
type symbolizer struct {
	env         *unwind.Env
	tables      *tables // nil: nothing walks by them
	loader      *loader
	liner       *liner
	fetch       func(buildID string) (*os.File, error) // see symbol.DebugFinder
	window      uint64
	attachments map[*process.Process]*attachment
	// locations are shared by all processes: where a file is loaded does not matter. Those that have lines from DWARF are
	// shared within their scope.
	locations *unwind.Recent[locationKey, named]
	jits      *unwind.Recent[jitKey, *profile.Location]
	perf      perfMaps
	// builds finds a file by its build id, within one scope only: a container can ship a file that claims another's id.
	builds  *unwind.Recent[buildKey, build]
	objects *unwind.Recent[weak.Pointer[symbol.Object], *symbol.Object]
	// learned holds the scopes whose files were searched for build ids in this window.
	learned map[uint32]bool
	lines   []symbol.Line

	opened, donated, adopted       atomic.Uint64
	gone, denied, replaced, notELF atomic.Uint64
	slow, failed, searched, noVDSO atomic.Uint64
	spaceErrors, generationErrors  atomic.Uint64
}

// locationKey is a place in a file. The weak pointer is the file's identity: it stays what it is when the symbols are dropped.
type locationKey struct {
	object  weak.Pointer[symbol.Object]
	mapping *profile.Mapping
	address symbol.Address
	scope   uint32 // 0: any; set for what DWARF told
}

type named struct {
	location *profile.Location
	how      unwind.Named
}

type buildKey struct {
	scope uint32
	id    string // hex
}

type build struct {
	object weak.Pointer[symbol.Object]
	path   string
}

// Counters implements [unwind.FrameSymbolizer].
func (s *symbolizer) Counters() map[string]uint64 {
	out := map[string]uint64{
		"files_opened":          s.opened.Load(),   // and their symbols found
		"files_donated":         s.donated.Load(),  // of them, through another process, because the own was gone
		"files_gone":            s.gone.Load(),     // no longer to be found
		"files_denied":          s.denied.Load(),   // not permitted
		"files_replaced":        s.replaced.Load(), // another file has that path now
		"files_not_elf":         s.notELF.Load(),
		"files_slow":            s.slow.Load(),     // not read within a moment, or not tried because of such
		"files_failed":          s.failed.Load(),   // could not be read for another reason
		"build_id_searches":     s.searched.Load(), // files of a container searched for a build id
		"address_spaces_same":   s.adopted.Load(),  // processes gone early that were found to share another one's mappings
		"vdso_unreadable":       s.noVDSO.Load(),
		"perf_maps_read":        s.perf.read.Load(),   // lists of code that a runtime made
		"perf_maps_failed":      s.perf.failed.Load(), // that could not be read, or were written by somebody else
		"perf_maps_over_budget": s.perf.over.Load(),
		"perf_map_frames":       s.perf.named.Load(),       // named by them
		"lines_found":           s.liner.found.Load(),      // places of which DWARF, or a separate debug file, said more
		"lines_absent":          s.liner.absent.Load(),     // of which it said nothing
		"lines_dropped":         s.liner.dropped.Load(),    // not asked for, because too many wait
		"line_reads_separate":   s.liner.separate.Load(),   // readings of a debug file of its own
		"line_reads_failed":     s.liner.failed.Load(),     // that ended early: nonsense in the file, or larger than the limits
		"line_reads_slow":       s.liner.slow.Load(),       // that did not end in time
		"line_reads_continued":  s.liner.slices.Load(),     // that left something for the next: a large file is read a little at a time
		"line_reads_incomplete": s.liner.incomplete.Load(), // whose split or supplementary file was not there: lines without inlined functions
		"spaces_failed":         s.spaceErrors.Load(),      // the kernel side could not be told where a process's mappings are
		"generations_failed":    s.generationErrors.Load(), // or that time has passed
	}
	if s.tables != nil {
		s.tables.stats.counters(out)
	}
	return out
}

// Attach implements [unwind.FrameSymbolizer].
func (s *symbolizer) Attach(p *process.Process) unwind.Attachment {
	a := &attachment{s: s, p: p, files: map[fileKey]*file{}}
	s.attachments[p] = a
	return a
}

// Improve implements [unwind.FrameSymbolizer].
func (s *symbolizer) Improve() {
	s.liner.poll(s.withLines)
	s.collectPerfMaps(nil)
}

// WindowEnd implements [unwind.FrameSymbolizer].
func (s *symbolizer) WindowEnd() {
	s.window++
	s.loader.windowEnd()
	s.liner.windowEnd()
	clear(s.learned)
	if s.tables != nil {
		if err := s.tables.nextGeneration(); err != nil {
			s.generationErrors.Add(1)
		}
	}
}

// attachment is what is known of one process.
type attachment struct {
	s     *symbolizer
	p     *process.Process
	files map[fileKey]*file
	bases []base
	// adopted is true when a sibling's mappings were looked for.
	adopted  bool
	perf     perfMap
	detached bool
	// spaceless is true when the kernel side was not told of the mappings, for lack of room.
	spaceless bool
}

// fileKey tells the files of one process apart.
type fileKey struct {
	major, minor uint32
	inode        uint64
	path         string
}

// file is a mapped file. The cache decides how long its symbols are there; when they are needed again the file is read again.
type file struct {
	mapping *process.Mapping
	object  weak.Pointer[symbol.Object]
	load    *load[*symbol.Object] // not finished yet
	notELF  bool                  // executable all the same: code that was made at run time
	used    uint64                // last window in which the symbols were used, plus 1
	retry   uint64                // window before which it is not tried again
	missed  bool                  // frames were named without its symbols
}

// base is where a file lies in memory, as the kernel saw it: address − bias is an offset in the file with that build id.
type base struct {
	bias uint64
	id   string
}

// Exec implements [unwind.Attachment]. At that moment the executable and the dynamic linker are mapped.
func (a *attachment) Exec() {
	code := a.p.Maps().Code()
	for i := range code {
		if code[i].Backed() {
			a.object(a.file(&code[i]))
		}
	}
}

// Detach implements [unwind.Attachment].
func (a *attachment) Detach() {
	delete(a.s.attachments, a.p)
	a.s.perf.bytes -= a.perf.bytes()
	a.perf.codes, a.detached = nil, true
	if a.s.tables != nil {
		a.s.tables.retire(a.p.ID())
	}
}

// Mapped implements [unwind.Attachment].
func (a *attachment) Mapped(atExec bool) {
	if a.s.tables == nil || a.p.Gone() {
		return
	}
	value, done := a.s.tables.publish(a.p.ID(), a.p.Scope(), a.p.Maps(), atExec)
	defer done()
	a.spaceless = value == 0 && len(a.p.Maps().Code()) > 0
	if err := a.s.env.SetSpace(a.p.ID(), value); err != nil {
		a.s.spaceErrors.Add(1)
	}
}

// WindowEnd implements [unwind.Attachment].
func (a *attachment) WindowEnd() (better bool) {
	if a.spaceless {
		a.Mapped(false)
	}
	for _, f := range a.files {
		if f.missed && !f.notELF && a.object(f) != nil {
			f.missed, better = false, true
		}
	}
	if a.perf.missed { // the runtime may have written down meanwhile what it made
		a.readPerfMap()
	}
	return better
}

// Symbolize implements [unwind.Attachment].
func (a *attachment) Symbolize(dst []*profile.Location, f unwind.RawFrame, st *unwind.Stack) []*profile.Location {
	address := f.A
	if f.ReturnAddress {
		address--
	}
	a.remember(st.Hints)
	m, ok := a.p.Find(address)
	if !ok && (a.s.env.Reread(a.p) || a.adopt(st)) {
		m, ok = a.p.Find(address)
	}
	n := named{how: unwind.NamedUnknown}
	if ok {
		n = a.mapped(m, address)
		// A signal's handler returns to the first instruction of a function that nothing has called: before arm64's
		// __kernel_rt_sigreturn there is a nop without a name, for unwinders that look there.
		if n.how == unwind.NamedAddress && f.ReturnAddress && m.Path == vdsoPath {
			n = a.mapped(m, f.A)
		}
	} else if h, found := a.hinted(address, f, st); found {
		n = h
	}
	if n.location == nil {
		n.location = a.s.env.Names.Fixed(unwind.Unknown, unwind.Unknown)
	}
	a.s.env.Count(a.p, n.how)
	return append(dst, n.location)
}

// mapped names an address that lies in a mapping.
func (a *attachment) mapped(m *process.Mapping, address uint64) named {
	if !m.Backed() {
		switch {
		case m.Path == "[vdso]":
			object, err := symbol.VDSO()
			if err == nil {
				return a.place(object, nil, m, address)
			}
			a.s.noVDSO.Add(1)
			fallthrough
		case m.Path == "[vsyscall]" || m.Path == "[uprobes]" || m.Path == "[vectors]" || m.Path == "[sigpage]":
			return named{a.s.env.Names.Fixed(m.Path, m.Path), unwind.NamedSymbol}
		}
		return a.jit(m, address)
	}
	f := a.file(m)
	object := a.object(f)
	switch {
	case f.notELF:
		return a.jit(m, address)
	case object == nil:
		f.missed = true
	}
	return a.place(object, f, m, address)
}

// place names an address in a mapping of an object, or of a file whose symbols are not known (nil). f is the file if it can be
// read again.
func (a *attachment) place(object *symbol.Object, f *file, m *process.Mapping, address uint64) named {
	s := a.s
	offset := m.FileOffset(address)
	at := symbol.Address(offset)
	key := unwind.MappingKey{File: m.Path}
	var id weak.Pointer[symbol.Object]
	if object != nil {
		key.BuildID, id = object.BuildID(), weak.Make(object)
		v, ok := object.Address(symbol.FileOffset(offset))
		if ok {
			at = v
		} else {
			object = nil // no segment has it: there can be no symbol
		}
	}
	// Start and Limit are the segment's addresses in the file, as Address is: pprof finds the symbols of the file with them,
	// and the same file gives the same mapping in every process. A header that makes nonsense of them gives none.
	bias := address - uint64(at)
	if start, limit := m.Start-bias, m.End-bias; start <= uint64(at) && uint64(at) < limit {
		key.Start, key.Limit, key.Offset = start, limit, m.Offset
	}
	k := locationKey{object: id, mapping: s.env.Names.Mapping(key), address: at}
	if f == nil || object == nil || !object.MayHaveLines(at) {
		return s.at(k, object, path.Base(m.Path))
	}
	mine := k
	mine.scope = a.p.Scope()
	if n, ok := s.locations.Get(mine); ok {
		return n
	}
	n := s.at(k, object, path.Base(m.Path))
	if src := (lineSource{mine.scope, id}); s.liner.wants(src, mine) {
		s.liner.want(src, mine, n.location, lineFile{
			info: object.DebugSource(), open: a.open(f.mapping),
			find: symbol.DebugFinder{Path: m.Path, Root: s.env.Reader.RootOf(a.p.ID().PID), Host: "/", Fetch: s.fetch},
		})
	}
	return n
}

// at returns the location for a key; object may be nil.
func (s *symbolizer) at(k locationKey, object *symbol.Object, base string) named {
	if n, ok := s.locations.Get(k); ok {
		return n
	}
	l := &profile.Location{Mapping: k.mapping, Address: uint64(k.address)}
	if object != nil {
		s.lines = object.Lookup(s.lines[:0], k.address)
		l.Line = make([]profile.Line, 0, max(1, len(s.lines)))
		for _, line := range s.lines {
			if line.Function != "" {
				f := s.env.Names.Function(line.Function, line.File, int64(line.StartLine))
				l.Line = append(l.Line, profile.Line{Function: f, Line: int64(line.Line)})
			}
		}
	}
	n := named{l, unwind.NamedSymbol}
	if len(l.Line) == 0 {
		n.how = unwind.NamedAddress
		begins := k.address // of its function, so that one is not as many as it has sampled instructions
		if object != nil {
			if start, ok := object.Function(k.address); ok {
				begins = start
			}
		}
		name := fmt.Sprintf("%s!0x%x", base, uint64(begins))
		l.Line = append(l.Line, profile.Line{Function: s.env.Names.Function(name, "", 0)})
	}
	s.locations.Put(k, n, 256+64*int64(len(l.Line)))
	return n
}

// file finds what is known of the mapped file.
func (a *attachment) file(m *process.Mapping) *file {
	key := fileKey{m.Major, m.Minor, m.Inode, m.Path}
	f := a.files[key]
	if f == nil {
		if len(a.files) == maxFiles {
			clear(a.files)
		}
		f = &file{}
		a.files[key] = f
	}
	f.mapping = m // where it is mapped now
	return f
}

// object returns the symbols of a file, reading them if need be; nil if that is not possible, or not yet.
func (a *attachment) object(f *file) *symbol.Object {
	if object := f.object.Value(); object != nil {
		a.s.hold(f, object)
		return object
	}
	if f.notELF || f.load == nil && a.s.window < f.retry {
		return nil
	}
	l := f.load
	f.load = nil
	if l == nil {
		l = a.begin(a.open(f.mapping))
	}
	if l != nil && l.ended() && l.err != nil && !l.donor && mayBeElsewhere(l.err) {
		if donors := a.donors(f.mapping); len(donors) > 0 {
			if d := a.begin(a.openElsewhere(f.mapping, donors)); d != nil && !(d.ended() && d.err != nil) {
				l = d
			}
		}
	}
	switch {
	case l == nil: // too many reads that do not end
		f.retry = a.s.window + 1
		return nil
	case !l.ended():
		f.load = l
		return nil
	case l.err != nil:
		a.fail(f, l.err)
		return nil
	}
	a.s.opened.Add(1)
	if l.donor {
		a.s.donated.Add(1)
	}
	f.object = weak.Make(l.found)
	a.s.hold(f, l.found)
	a.s.register(a.p.Scope(), l.found, f.mapping.Path)
	return l.found
}

// begin starts to read a file and gives it a moment.
func (a *attachment) begin(open opener) *load[*symbol.Object] {
	l := start(a.s.loader, a.p.Scope(), open, a.s.env.Cache.Load)
	if l == nil || !a.s.loader.wait(&l.pending) {
		a.s.slow.Add(1)
	}
	return l
}

// fail counts why a file could not be read, and puts off the next attempt.
func (a *attachment) fail(f *file, err error) {
	f.retry = a.s.window + retryWindows
	switch {
	case errors.Is(err, symbol.ErrNotELF), errors.Is(err, symbol.ErrNotRegular):
		a.s.notELF.Add(1)
		f.notELF = true
	case errors.Is(err, process.ErrReplaced):
		a.s.replaced.Add(1)
	case errors.Is(err, process.ErrDenied):
		a.s.denied.Add(1)
	case errors.Is(err, process.ErrGone):
		a.s.gone.Add(1)
	default:
		a.s.failed.Add(1)
	}
}

// hold keeps an object in memory because it is in use. Once per window is enough.
func (s *symbolizer) hold(f *file, object *symbol.Object) {
	if f.used == s.window+1 {
		return
	}
	f.used = s.window + 1
	if _, ok := s.objects.Get(f.object); !ok {
		s.objects.Put(f.object, object, object.Bytes())
	}
}

// register makes an object known by its build id, in the form that hints have.
func (s *symbolizer) register(scope uint32, object *symbol.Object, path string) {
	if b, ok := object.KernelBuildID(); ok {
		id := hex.EncodeToString(b[:])
		s.builds.Put(buildKey{scope, id}, build{weak.Make(object), path}, 128+int64(len(id)+len(path)))
	}
}

// open returns a function that opens the file of a mapping through the process itself. It runs on another goroutine and
// touches nothing of ours.
func (a *attachment) open(m *process.Mapping) opener {
	reader, pid, gone, mapping := a.s.env.Reader, a.p.ID().PID, a.p.Gone(), *m
	return func() (*os.File, bool, error) {
		if gone {
			return nil, false, process.ErrGone
		}
		f, err := reader.Open(pid, &mapping)
		return f, false, err
	}
}

// mayBeElsewhere reports whether another process may have a file that could not be opened through its own.
func mayBeElsewhere(err error) bool {
	return errors.Is(err, process.ErrGone) || errors.Is(err, process.ErrDenied) || errors.Is(err, process.ErrReplaced)
}

// donor is a process of the same container, which sees the same files.
type donor struct {
	pid     uint32
	mapping *process.Mapping // its own mapping of the file; nil: only the path
}

// donors finds processes that may have the file of a mapping.
func (a *attachment) donors(m *process.Mapping) (out []donor) {
	for _, q := range a.s.env.Processes.Siblings(a.p, maxSiblings) {
		if q.Gone() || len(out) == maxDonors {
			continue
		}
		for i, c := range q.Maps().Code() {
			if c.Major == m.Major && c.Minor == m.Minor && c.Inode == m.Inode {
				out = append(out, donor{q.ID().PID, &q.Maps().Code()[i]})
				break
			}
		}
	}
	for i, pid := range a.s.env.Peers(a.p.Scope()) {
		if i == maxDonors {
			break
		}
		if uint32(pid) != a.p.ID().PID {
			out = append(out, donor{pid: uint32(pid)})
		}
	}
	return out
}

// openElsewhere is open through other processes.
func (a *attachment) openElsewhere(m *process.Mapping, donors []donor) opener {
	reader, mapping := a.s.env.Reader, *m
	return func() (f *os.File, donated bool, err error) {
		for _, d := range donors {
			if d.mapping != nil {
				f, err = reader.Open(d.pid, d.mapping)
			} else {
				f, err = reader.OpenPath(d.pid, &mapping)
			}
			if err == nil {
				return f, true, nil
			}
		}
		return nil, true, err
	}
}

// remember keeps what the kernel knew about addresses of the process: it comes once, with its first stack.
func (a *attachment) remember(hints []unwind.Hint) {
	for _, h := range hints {
		// Mappings begin at pages: anything else is a hint that was taken from another frame.
		if (h.Address^h.Offset)&0xfff != 0 || len(a.bases) == maxBases {
			continue
		}
		b := base{h.Address - h.Offset, hex.EncodeToString(h.BuildID[:])}
		known := false
		for _, k := range a.bases {
			known = known || k == b
		}
		if !known {
			a.bases = append(a.bases, b)
		}
	}
}

// hinted names an address of a process whose mappings are not known, by the build ids that came with its first stack.
func (a *attachment) hinted(address uint64, f unwind.RawFrame, st *unwind.Stack) (named, bool) {
	for _, b := range a.bases {
		object, path := a.s.byBuildID(a.p, b.id)
		if object == nil {
			continue
		}
		at, ok := object.Address(symbol.FileOffset(address - b.bias))
		if !ok {
			continue
		}
		// Where the mapping ends is not known, and another file may be mapped behind it: only a symbol proves that the address
		// is in this one.
		if a.s.lines = object.Lookup(a.s.lines[:0], at); len(a.s.lines) == 0 {
			continue
		}
		n := a.s.at(locationKey{
			object:  weak.Make(object),
			mapping: a.s.env.Names.Mapping(unwind.MappingKey{File: path, BuildID: b.id}),
			address: at,
		}, object, path)
		n.how = unwind.NamedHint
		return n, true
	}
	// A file that we have not got: its build id and the offset are enough for somebody who has.
	for i := range st.Hints {
		h := &st.Hints[i]
		if h.Address != f.A || (h.Address^h.Offset)&0xfff != 0 {
			continue
		}
		return a.s.at(locationKey{
			mapping: a.s.env.Names.Mapping(unwind.MappingKey{File: unwind.Unknown, BuildID: hex.EncodeToString(h.BuildID[:])}),
			address: symbol.Address(h.Offset - (f.A - address)),
		}, nil, "unknown"), true
	}
	return named{}, false
}

// byBuildID finds a file of the container by its build id: among those that were read for it, or among those that its other
// processes have mapped.
func (s *symbolizer) byBuildID(p *process.Process, id string) (*symbol.Object, string) {
	key := buildKey{p.Scope(), id}
	if b, ok := s.builds.Get(key); ok {
		if object := b.object.Value(); object != nil {
			return object, b.path
		}
	}
	if s.learned[p.Scope()] {
		return nil, ""
	}
	s.learned[p.Scope()] = true
	s.learn(p)
	if b, ok := s.builds.Get(key); ok {
		return b.object.Value(), b.path
	}
	return nil, ""
}

// learn reads the files that other processes of the container have mapped, to know them by their build ids.
func (s *symbolizer) learn(p *process.Process) {
	left := maxLearn
	for _, q := range s.env.Processes.Siblings(p, maxDonors) {
		a := s.attachments[q]
		if a == nil || q.Gone() {
			continue
		}
		for i, c := range q.Maps().Code() {
			if c.Backed() && left > 0 {
				left--
				s.searched.Add(1)
				a.object(a.file(&q.Maps().Code()[i]))
			}
		}
	}
	for i, pid := range s.env.Peers(p.Scope()) {
		if i == maxDonors || left == 0 {
			break
		}
		maps, err := s.env.Reader.MapsOf(uint32(pid))
		if err != nil && !errors.Is(err, process.ErrTooManyMappings) {
			continue // it has just ended, or is not ours to see: another one may help
		}
		for _, m := range maps.Code() {
			if !m.Backed() || left == 0 {
				continue
			}
			left--
			s.searched.Add(1)
			l := start(s.loader, p.Scope(), func() (*os.File, bool, error) {
				f, err := s.env.Reader.Open(uint32(pid), &m)
				return f, true, err
			}, s.env.Cache.Load)
			if l != nil && s.loader.wait(&l.pending) && l.err == nil {
				s.register(p.Scope(), l.found, m.Path)
			}
		}
	}
}

// adopt gives a process that was gone before its mappings could be read those of another one, if they are known to be the
// same: children that only fork share their parent's, and a process's address space is random. The hints of its first stack
// must agree with them, address by address and build id by build id.
func (a *attachment) adopt(st *unwind.Stack) bool {
	if a.adopted || !a.p.Gone() || a.p.Maps() != nil || len(st.Hints) == 0 {
		return false
	}
	a.adopted = true
	evidence := make([]process.Evidence, 0, len(st.Hints))
	for _, h := range st.Hints {
		evidence = append(evidence, process.Evidence{Address: h.Address, Offset: h.Offset})
	}
	for _, q := range a.s.env.Processes.Siblings(a.p, maxSiblings) {
		if q.Maps().Agrees(evidence) && a.s.sameBuilds(q, st.Hints) {
			a.s.adopted.Add(1)
			a.s.env.Processes.Adopt(a.p, q)
			return true
		}
	}
	return false
}

// sameBuilds reports whether q has files with these build ids where the hints say.
func (s *symbolizer) sameBuilds(q *process.Process, hints []unwind.Hint) bool {
	a := s.attachments[q]
	if a == nil {
		return false
	}
	for i := range hints {
		m, ok := q.Maps().Find(hints[i].Address)
		if !ok || !m.Backed() {
			return false
		}
		object := a.object(a.file(m))
		if object == nil {
			return false
		}
		if id, ok := object.KernelBuildID(); !ok || id != hints[i].BuildID {
			return false
		}
	}
	return true
}
