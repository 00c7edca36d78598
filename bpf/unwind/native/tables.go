package native

import (
	"cmp"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/symbol"
	"github.com/stoker-profiler/stoker/bpf/unwind/native/cfi"
)

const (
	// maxTextFiles bounds the files whose pages have a place in the index.
	maxTextFiles = 4096
	// maxRequests bounds what waits to be read. What does not fit is asked for again by the next sample.
	maxRequests = 4096
	// knownLife is how long a file is taken for the one that was read when no process that we know of has it mapped any more:
	// until then nobody can have its inode number.
	knownLife = 10 * time.Second
	// evictShare of the rows is made free at once when there is no room.
	evictShare = 8
)

// tables decides what is in the memory that the kernel side walks by: the spaces of processes, the index of files' pages,
// their rows and rules. It reads nothing: the manager does, and puts here what it found.
//
// Everything that is given up is used again only after a grace period, for a walk may be reading it: reclaim. Methods may be
// called from any goroutine.
type tables struct {
	mem           *memory
	setGeneration func(uint32) error
	grace         func() error // returns when every walk that has begun has ended
	now           func() time.Time
	seed          maphash.Seed
	wake          chan struct{} // of one: there is something to do for the manager

	mu         sync.Mutex // guards all below
	generation uint32
	serial     uint32
	spaceRoom  *extents
	pageRoom   *extents
	rowRoom    *extents
	limbo      []func() // what to do after the next grace period
	spaces     map[uint64][]*space
	residents  map[uint32]*resident // by PID
	files      map[instance]*textFile
	known      map[fileKey]*known
	slots      []*textFile // those with pages, by base
	pages      map[uint32]*builtPage
	sets       map[uint64][]*rowSet
	ruleNumber map[uint64]uint16
	ruleUses   [maxRules]uint32
	ruleFree   []uint16
	requests   []request
	idle       []request           // pages that will be needed, when there is nothing else to do
	waiting    map[uint32]struct{} // pages that were asked for and are not built
	// Files that were asked for, and those that could not be read: they are not asked for again in this generation.
	askedFiles, failedFiles map[fileKey]struct{}

	stats tableStats
}

// tableStats counts; see counters.
type tableStats struct {
	spaces, spacesShared, spacesGone, spacesFull, spacesTooLarge    atomic.Uint64
	files, filesDropped, filesRefused, filesOdd, filesFailed        atomic.Uint64
	pages, pagesShared, pagesEmpty, pagesEvicted, pagesFailed       atomic.Uint64
	rows, rowsEvicted, rowsRefused, rulesFull                       atomic.Uint64
	asked, askedFiles, askedTooOften, graces, buildMicros, slowRead atomic.Uint64
	refused                                                         [cfi.ReasonCount]atomic.Uint64
}

// count takes what reading a page had to leave out.
func (s *tableStats) count(read *cfi.Stats) {
	for i, n := range read.Refused {
		s.refused[i].Add(uint64(n))
	}
}

func (s *tableStats) counters(out map[string]uint64) {
	for name, v := range map[string]*atomic.Uint64{
		"spaces_made":         &s.spaces,         // address spaces told to the kernel side
		"spaces_shared":       &s.spacesShared,   // processes that have the same one as another
		"spaces_dropped":      &s.spacesGone,     // and given up
		"spaces_full":         &s.spacesFull,     // not told for lack of room: those processes are walked by frame pointer
		"spaces_too_large":    &s.spacesTooLarge, // not told because they have more mappings than we tell
		"table_files":         &s.files,          // files whose tables were found
		"table_files_dropped": &s.filesDropped,   // and forgotten, because nobody has them mapped
		"table_files_refused": &s.filesRefused,   // not taken for lack of room
		"table_files_odd":     &s.filesOdd,       // mappings that do not fit the headers of their file
		"table_files_failed":  &s.filesFailed,    // files that could not be opened or read
		"table_files_slow":    &s.slowRead,       // not read within a moment, or not tried because of such
		"pages_built":         &s.pages,          // pages of text that got rows
		"pages_shared":        &s.pagesShared,    // of them, with rows that equal another page's
		"pages_empty":         &s.pagesEmpty,     // pages of which no unwind information speaks
		"pages_evicted":       &s.pagesEvicted,   // pages whose rows were given up for others
		"pages_failed":        &s.pagesFailed,    // pages that could not be built: asked for again
		"rows_built":          &s.rows,           // rows put into the kernel's maps
		"rows_evicted":        &s.rowsEvicted,
		"rows_refused":        &s.rowsRefused, // pages that were not built because all that is held is in use: the budget is too small
		"rules_full":          &s.rulesFull,   // rows that had to be left out because there are too many different rules
		"pages_asked":         &s.asked,       // by the kernel side
		"files_asked":         &s.askedFiles,
		"asked_too_often":     &s.askedTooOften, // requests put off because too many wait, or their container has used up its share
		"grace_periods":       &s.graces,        // waited for, to use memory again
		"build_us":            &s.buildMicros,   // time spent on reading tables
	} {
		out[name] = v.Load()
	}
	for i := range s.refused { // entries of tables that no rule can express
		out["rows_refused_"+cfi.Reason(i).String()] = s.refused[i].Load()
	}
}

// instance is one file at one time. The kernel says all of it, and a file that is mapped keeps its inode; unlike the device
// that stat shows, which is each overlay's own, that of a mapping is the same for all containers of an image.
type instance struct {
	major, minor uint32
	inode        uint64
	ctime, mtime int64 // ns
	size         int64
}

// textFile is a file with code. Immutable but for refs and used.
type textFile struct {
	instance instance
	elf      *cfi.File
	code     []symbol.Range // what of it is loaded as code
	kind     bpfMappingKind // of its mappings: rows, frame pointers, or nothing
	base     uint32         // slot of its first page
	first    cfi.PageNumber // its number
	n        uint32         // pages
	image    []byte         // the file itself: the vDSO
	refs     int            // entries of spaces
	used     uint32         // generation in which it was needed last
}

// address returns the ELF address of the byte at an offset in the file. n bytes are mapped from there: a mapping begins at a
// page of memory, so its first bytes may belong to what lies before the code.
func (f *textFile) address(offset, n uint64) (cfi.Address, bool) {
	for _, c := range f.code {
		if start := uint64(c.Offset); offset < start+c.Size && offset+n > start {
			return c.Address + cfi.Address(offset-start), true
		}
	}
	return 0, false
}

// known is what the file of a mapping was found to be.
type known struct {
	file  *textFile
	refs  int       // entries of spaces
	until time.Time // if refs is 0
}

// space is the mappings of a process, or of several that have the same, in the kernel's memory.
type space struct {
	maps   *process.Maps
	at     uint32 // of its head
	serial uint32
	hash   uint64
	keys   []*fileKey  // by entry; nil: no file
	files  []*textFile // by entry; nil: not known yet
	uses   int         // residents
}

// value is what the kernel side gets to know: see struct process and space__of.
func (s *space) value() uint64 { return uint64(s.serial)<<32 | uint64(s.at) }

// resident is a process with a space.
type resident struct {
	id    process.ID
	scope uint32
	space *space
}

// builtPage is a page with rows.
type builtPage struct {
	slot uint32
	set  *rowSet
}

// rowSet is rows in the kernel's memory, of one page or of several that are equal.
type rowSet struct {
	hash  uint64
	start uint32
	n     uint32
	rules []uint16 // each once
	uses  int
}

// request is something to read for the kernel side: a page of a file, or the file itself.
type request struct {
	file bool
	key  fileKey // of the file
	slot uint32  // of the page
	pid  uint32  // who asked
	// scope is the container that pid is in; 0: it has ended.
	scope uint32
	// offset is where in the file the sample was; 0: there was none.
	offset uint64
	// foreseen: nobody has asked yet.
	foreseen bool
}

func newTables(mem *memory, s sizes, setGeneration func(uint32) error, grace func() error) *tables {
	t := &tables{
		mem: mem, setGeneration: setGeneration, grace: grace, now: time.Now, seed: maphash.MakeSeed(), wake: make(chan struct{}, 1),
		generation: 1,
		spaceRoom:  newExtents(uint32(s.spaceBanks*spaceMappings), spaceMappings),
		pageRoom:   newExtents(uint32(s.pages), uint32(s.pages)),
		rowRoom:    newExtents(uint32(s.rowBanks*bankRows), bankRows),
		spaces:     map[uint64][]*space{}, residents: map[uint32]*resident{},
		files: map[instance]*textFile{}, known: map[fileKey]*known{}, pages: map[uint32]*builtPage{}, sets: map[uint64][]*rowSet{},
		ruleNumber: map[uint64]uint16{}, waiting: map[uint32]struct{}{}, askedFiles: map[fileKey]struct{}{}, failedFiles: map[fileKey]struct{}{},
	}
	for n := uint16(maxRules - 1); n > cfi.RuleInvalid; n-- {
		t.ruleFree = append(t.ruleFree, n)
	}
	return t
}

// publish puts the mappings of a process where the kernel side can walk by them, and returns what to tell it; 0 if that is
// not possible. With all, the files that nobody has read yet are asked for at once, not when a sample hits them. The caller
// tells the kernel side and then calls done, which gives up what the process had before.
func (t *tables) publish(id process.ID, scope uint32, maps *process.Maps, all bool) (value uint64, done func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.residents[id.PID]
	code := maps.Code()
	switch {
	case len(code) == 0:
	case len(code) >= spaceMappings:
		t.stats.spacesTooLarge.Add(1)
	default:
		if s := t.spaceFor(maps); s != nil {
			s.uses++
			t.residents[id.PID] = &resident{id, scope, s}
			value = s.value()
			for i, f := range s.files {
				if key := s.keys[i]; all && key != nil && f == nil {
					t.ask(request{file: true, key: *key, pid: id.PID, scope: scope})
				}
			}
		}
	}
	if old == nil {
		return value, func() {}
	}
	if value == 0 {
		delete(t.residents, id.PID)
	}
	return value, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.leave(old.space)
	}
}

// retire gives up what a process has.
func (t *tables) retire(id process.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.residents[id.PID]; r != nil && r.id == id {
		delete(t.residents, id.PID)
		t.leave(r.space)
	}
}

// spaceFor finds the space with these mappings, or makes it; nil if there is no room. Caller holds mu.
func (t *tables) spaceFor(maps *process.Maps) *space {
	code := maps.Code()
	hash := t.hashOf(code)
	for _, s := range t.spaces[hash] {
		if s.maps.Equal(maps) {
			t.stats.spacesShared.Add(1)
			return s
		}
	}
	n := uint32(len(code) + 1)
	at, ok := t.spaceRoom.take(n)
	if !ok {
		t.stats.spacesFull.Add(1)
		t.signal() // something may be in limbo
		return nil
	}
	t.serial++
	s := &space{maps: maps, at: at, serial: t.serial, hash: hash, keys: make([]*fileKey, len(code)), files: make([]*textFile, len(code))}
	now := t.now()
	for i := range code {
		m := &code[i]
		e := bpfMapping{Start: m.Start, End: m.End, Kind: uint32(bpfMappingKindMAPPING_UNKNOWN)}
		switch {
		case m.Backed() || m.Path == vdsoPath:
			key := &fileKey{m.Major, m.Minor, m.Inode, m.Path}
			s.keys[i] = key
			if k := t.known[*key]; k != nil {
				if k.refs == 0 && now.After(k.until) {
					delete(t.known, *key)
				} else {
					t.place(&e, m, k.file)
					s.files[i] = k.file
					t.hold(k)
				}
			}
		case m.Path == "[vsyscall]" || m.Path == "[vectors]":
			e.Kind = uint32(bpfMappingKindMAPPING_NONE)
		default: // code that was made at run time
			e.Kind = uint32(bpfMappingKindMAPPING_FP)
		}
		t.mem.spaces[at+1+uint32(i)] = e
	}
	head := t.mem.head(at)
	head.Count = n - 1
	atomic.StoreUint64(&head.Serial, uint64(s.serial))
	t.spaces[hash] = append(t.spaces[hash], s)
	t.stats.spaces.Add(1)
	return s
}

func (t *tables) hashOf(code []process.Mapping) uint64 {
	var h maphash.Hash
	h.SetSeed(t.seed)
	var b [40]byte
	for i := range code {
		m := &code[i]
		binary.LittleEndian.PutUint64(b[0:], m.Start)
		binary.LittleEndian.PutUint64(b[8:], m.End)
		binary.LittleEndian.PutUint64(b[16:], m.Offset)
		binary.LittleEndian.PutUint64(b[24:], m.Inode)
		binary.LittleEndian.PutUint64(b[32:], uint64(m.Major)<<32|uint64(m.Minor))
		h.Write(b[:])
	}
	return h.Sum64()
}

// leave takes one process from a space. Caller holds mu.
func (t *tables) leave(s *space) {
	if s.uses--; s.uses > 0 {
		return
	}
	atomic.StoreUint64(&t.mem.head(s.at).Serial, 0) // who was told of it and comes now finds nothing
	if rest := slices.DeleteFunc(t.spaces[s.hash], func(o *space) bool { return o == s }); len(rest) > 0 {
		t.spaces[s.hash] = rest
	} else {
		delete(t.spaces, s.hash)
	}
	for i, f := range s.files {
		if f != nil {
			t.release(*s.keys[i], f)
		}
	}
	x := extent{s.at, uint32(len(s.keys) + 1)}
	t.later(func() { t.spaceRoom.give(x) })
	t.stats.spacesGone.Add(1)
}

// hold notes that an entry of a space uses what is known of a file; release that it does no longer. Caller holds mu.
func (t *tables) hold(k *known) {
	k.refs++
	k.file.refs++
	k.file.used = t.generation
}

func (t *tables) release(key fileKey, f *textFile) {
	f.refs--
	if k := t.known[key]; k != nil && k.file == f {
		if k.refs--; k.refs == 0 {
			k.until = t.now().Add(knownLife)
		}
	}
}

// later puts off f until no walk can be reading what it gives up. Caller holds mu.
func (t *tables) later(f func()) { t.limbo = append(t.limbo, f) }

// signal tells the manager to look. Caller may hold mu.
func (t *tables) signal() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// reclaim waits for a grace period and makes what was given up before it usable. It reports whether there was anything.
func (t *tables) reclaim() (bool, error) {
	t.mu.Lock()
	limbo := t.limbo
	t.limbo = nil
	t.mu.Unlock()
	if len(limbo) == 0 {
		return false, nil
	}
	t.stats.graces.Add(1)
	err := t.grace()
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		t.limbo = append(limbo, t.limbo...)
		return false, err
	}
	for _, f := range limbo {
		f()
	}
	return true, nil
}

// place fills in an entry of a space for a mapping of a file. Caller holds mu.
func (t *tables) place(e *bpfMapping, m *process.Mapping, f *textFile) {
	e.Kind = uint32(f.kind)
	if f.kind != bpfMappingKindMAPPING_ROWS {
		return
	}
	at, ok := f.address(m.Offset, m.End-m.Start)
	end := uint64(at) + (m.End - m.Start) - 1
	if !ok || cfi.PageOf(at) < f.first || end < uint64(at) || uint64(cfi.PageOf(cfi.Address(end))) >= uint64(f.first)+uint64(f.n) {
		t.stats.filesOdd.Add(1)
		e.Kind = uint32(bpfMappingKindMAPPING_NONE)
		return
	}
	e.Bias = m.Start - uint64(at)
	e.Pages = f.base - uint32(f.first)
}

// learned takes what the file of a key was found to be, for all that have it mapped. A key that is known stays what it is: its
// inode is held by who has it mapped.
func (t *tables) learned(key fileKey, f *textFile) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.askedFiles, key)
	k := t.known[key]
	if k == nil || k.refs == 0 {
		k = &known{file: f, until: t.now().Add(knownLife)}
		t.known[key] = k
	}
	for _, spaces := range t.spaces {
		for _, s := range spaces {
			for i, have := range s.keys {
				if have == nil || s.files[i] != nil || *have != key {
					continue
				}
				s.files[i] = k.file
				t.hold(k)
				// It is being read: kind comes last, and says that the rest is there.
				at := s.at + 1 + uint32(i)
				e := &t.mem.spaces[at]
				var filled bpfMapping
				t.place(&filled, &s.maps.Code()[i], k.file)
				e.Bias, e.Pages = filled.Bias, filled.Pages
				t.mem.setKind(at, bpfMappingKind(filled.Kind))
			}
		}
	}
}

// unlearned notes that the file of a key could not be read now: it is asked for again when it is needed in the next generation.
func (t *tables) unlearned(key fileKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stats.filesFailed.Add(1)
	delete(t.askedFiles, key)
	t.failedFiles[key] = struct{}{}
}

// enter makes the file of an instance known and gives its pages a place in the index; nil if there is none. A file that is
// there already is returned as it is.
func (t *tables) enter(f *textFile) *textFile {
	t.mu.Lock()
	defer t.mu.Unlock()
	if have := t.files[f.instance]; have != nil {
		return have
	}
	if len(t.files) >= maxTextFiles {
		t.dropFiles()
	}
	if f.kind == bpfMappingKindMAPPING_ROWS {
		base, ok := t.pageRoom.take(f.n)
		if !ok {
			t.dropFiles() // for the next one: these pages have to wait for a grace period
			t.stats.filesRefused.Add(1)
			return nil
		}
		f.base = base
		for slot := base; slot < base+f.n; slot++ {
			t.mem.setPage(slot, pageWord(0, 0, bpfPageStatePAGE_EMPTY))
		}
		i, _ := slices.BinarySearchFunc(t.slots, f.base, compareBase)
		t.slots = slices.Insert(t.slots, i, f)
		t.stats.files.Add(1)
	}
	f.used = t.generation
	t.files[f.instance] = f
	return f
}

func compareBase(f *textFile, slot uint32) int { return cmp.Compare(f.base, slot) }

// dropFiles forgets the files that no space refers to and that were not needed lately. Caller holds mu.
func (t *tables) dropFiles() {
	for in, f := range t.files {
		if f.refs > 0 || f.used+1 >= t.generation {
			continue
		}
		delete(t.files, in)
		for key, k := range t.known {
			if k.file == f {
				delete(t.known, key)
			}
		}
		t.stats.filesDropped.Add(1)
		if f.kind != bpfMappingKindMAPPING_ROWS {
			continue
		}
		for slot := f.base; slot < f.base+f.n; slot++ {
			if p := t.pages[slot]; p != nil {
				t.evictPage(p)
			}
			delete(t.waiting, slot)
		}
		if i, ok := slices.BinarySearchFunc(t.slots, f.base, compareBase); ok {
			t.slots = slices.Delete(t.slots, i, i+1)
		}
		x := extent{f.base, f.n}
		t.later(func() { t.pageRoom.give(x) })
	}
}

// fileOf returns the file whose page has a slot, and the page's number. Caller holds mu.
func (t *tables) fileOf(slot uint32) (*textFile, cfi.PageNumber) {
	i, found := slices.BinarySearchFunc(t.slots, slot, compareBase)
	if !found {
		i--
	}
	if i < 0 || slot-t.slots[i].base >= t.slots[i].n {
		return nil, 0
	}
	f := t.slots[i]
	return f, f.first + cfi.PageNumber(slot-f.base)
}

// missed takes what the kernel side has asked for.
func (t *tables) missed(m bpfMiss) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m.Page != ^uint32(0) {
		t.stats.asked.Add(1)
		r := request{slot: m.Page, pid: m.Pid}
		if p := t.residents[m.Pid]; p != nil {
			r.scope = p.scope
		}
		t.ask(r)
		return
	}
	t.stats.askedFiles.Add(1)
	r := t.residents[m.Pid]
	if r == nil {
		return // it has ended, and its space went with it
	}
	for i, key := range r.space.keys {
		if c := &r.space.maps.Code()[i]; key != nil && c.Start <= m.Address && m.Address < c.End && r.space.files[i] == nil {
			t.ask(request{file: true, key: *key, pid: m.Pid, scope: r.scope, offset: c.FileOffset(m.Address)})
		}
	}
}

// ask queues what has to be read. Caller holds mu.
func (t *tables) ask(r request) {
	if r.file {
		if _, ok := t.askedFiles[r.key]; ok {
			return
		}
		if _, failed := t.failedFiles[r.key]; failed {
			return
		}
	} else if _, ok := t.waiting[r.slot]; ok {
		return
	}
	if len(t.requests) >= maxRequests {
		t.putOffLocked(r)
		return
	}
	if r.file {
		t.askedFiles[r.key] = struct{}{}
	} else {
		t.waiting[r.slot] = struct{}{}
	}
	t.requests = append(t.requests, r)
	t.signal()
}

// putOff leaves a request for the next generation, because there are too many.
func (t *tables) putOff(r request) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.putOffLocked(r)
}

func (t *tables) putOffLocked(r request) {
	t.stats.askedTooOften.Add(1)
	if r.file {
		delete(t.askedFiles, r.key)
		t.failedFiles[r.key] = struct{}{}
	} else {
		t.waiting[r.slot] = struct{}{}
	}
}

// currentGeneration counts the windows.
func (t *tables) currentGeneration() uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.generation
}

// take returns the next request.
func (t *tables) take() (r request, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, queue := range []*[]request{&t.requests, &t.idle} {
		if len(*queue) > 0 {
			r, *queue = (*queue)[0], (*queue)[1:]
			return r, true
		}
		*queue = nil
	}
	return r, false
}

// foresee queues pages of a file that nobody has asked for yet.
func (t *tables) foresee(list []request) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.idle)+len(list) <= maxRequests {
		t.idle = append(t.idle, list...)
	}
	t.signal()
}

// holder is a process that has a file mapped.
type holder struct {
	pid     uint32
	scope   uint32
	mapping process.Mapping
}

// maxHolders is how many processes are asked for one file.
const maxHolders = 4

// holders returns processes through which a file can be opened, who asked first.
func (t *tables) holders(pid uint32, match func(key *fileKey, f *textFile) bool) (out []holder) {
	t.mu.Lock()
	defer t.mu.Unlock()
	look := func(r *resident) {
		for i, key := range r.space.keys {
			if key != nil && match(key, r.space.files[i]) {
				out = append(out, holder{r.id.PID, r.scope, r.space.maps.Code()[i]})
				return
			}
		}
	}
	if r := t.residents[pid]; r != nil {
		look(r)
	}
	for other, r := range t.residents {
		if len(out) >= maxHolders {
			break
		}
		if other != pid {
			look(r)
		}
	}
	return out
}

// page returns what a page's request is about, unless that has been settled meanwhile.
func (t *tables) page(slot uint32) (*textFile, cfi.PageNumber, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f, n := t.fileOf(slot)
	if f == nil || t.pages[slot] != nil || t.mem.pageState(slot) == bpfPageStatePAGE_NONE {
		delete(t.waiting, slot)
		return nil, 0, false
	}
	return f, n, true
}

// unbuilt notes that a page could not be built now: it is asked for again when it is needed in the next generation.
func (t *tables) unbuilt(slot uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stats.pagesFailed.Add(1)
	t.waiting[slot] = struct{}{}
}

// errNoRoom says that the rows of a page do not fit: after a reclaim they may.
var errNoRoom = errors.New("no room for the rows of a page")

// install puts the rows of a page where the kernel side finds them. The numbers in rows are those of rules, whose first is
// not used.
func (t *tables) install(slot uint32, rows []cfi.CompactRow, rules []cfi.Rule) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f, _ := t.fileOf(slot); f == nil || t.pages[slot] != nil {
		return nil // it was dropped, or built, meanwhile
	}
	if len(rows) == 0 {
		delete(t.waiting, slot)
		t.stats.pagesEmpty.Add(1)
		t.mem.setPage(slot, pageWord(0, 0, bpfPageStatePAGE_NONE))
		return nil
	}
	var h maphash.Hash
	h.SetSeed(t.seed)
	var b [10]byte
	packed := make([]uint64, len(rules))
	for i := range rules {
		packed[i] = rules[i].Pack()
	}
	for _, r := range rows {
		binary.LittleEndian.PutUint16(b[:], r.Low)
		binary.LittleEndian.PutUint64(b[2:], packed[r.Rule])
		h.Write(b[:])
	}
	hash := h.Sum64()
	set := t.equalSet(hash, rows, packed)
	if set != nil {
		t.stats.pagesShared.Add(1)
	} else {
		n := uint32(len(rows))
		start, ok := t.rowRoom.take(n)
		if !ok {
			if !t.evict(max(n, t.rowRoom.total/evictShare)) {
				t.stats.rowsRefused.Add(1)
				return nil // it waits for the next generation
			}
			return errNoRoom
		}
		set = &rowSet{hash: hash, start: start, n: n}
		numbers := make([]uint16, len(rules))
		for i, r := range rows {
			if r.Rule != cfi.RuleInvalid && numbers[r.Rule] == cfi.RuleInvalid {
				if number, ok := t.intern(packed[r.Rule]); ok {
					numbers[r.Rule] = number
					set.rules = append(set.rules, number)
				} else {
					t.stats.rulesFull.Add(1)
				}
			}
			t.mem.rows[start+uint32(i)] = uint32(r.Low) | uint32(numbers[r.Rule])<<16
		}
		t.sets[hash] = append(t.sets[hash], set)
		t.stats.rows.Add(uint64(n))
	}
	set.uses++
	delete(t.waiting, slot)
	t.pages[slot] = &builtPage{slot, set}
	t.stats.pages.Add(1)
	atomic.StoreUint32(&t.mem.pages[slot].Used, t.generation)
	t.mem.setPage(slot, pageWord(set.start, set.n, bpfPageStatePAGE_ROWS))
	return nil
}

// equalSet finds rows that are the same, rule by rule. Caller holds mu.
func (t *tables) equalSet(hash uint64, rows []cfi.CompactRow, packed []uint64) *rowSet {
next:
	for _, s := range t.sets[hash] {
		if int(s.n) != len(rows) {
			continue
		}
		for i, r := range rows {
			have := t.mem.rows[s.start+uint32(i)]
			if uint16(have) != r.Low || t.mem.rules[have>>16] != packed[r.Rule] {
				continue next
			}
		}
		return s
	}
	return nil
}

// intern gives a rule a number. Caller holds mu.
func (t *tables) intern(packed uint64) (uint16, bool) {
	n, ok := t.ruleNumber[packed]
	if !ok {
		if len(t.ruleFree) == 0 {
			return 0, false
		}
		n = t.ruleFree[len(t.ruleFree)-1]
		t.ruleFree = t.ruleFree[:len(t.ruleFree)-1]
		t.ruleNumber[packed] = n
		atomic.StoreUint64(&t.mem.rules[n], packed)
	}
	t.ruleUses[n]++
	return n, true
}

// evict gives up the pages that were used least recently, until n rows will be free. It reports whether it gave up any; those
// that were used in this generation stay. Caller holds mu.
func (t *tables) evict(n uint32) bool {
	type candidate struct {
		page *builtPage
		used uint32
	}
	var all []candidate
	for _, p := range t.pages {
		if used := t.mem.pageUsed(p.slot); used < t.generation {
			all = append(all, candidate{p, used})
		}
	}
	slices.SortFunc(all, func(a, b candidate) int { return cmp.Compare(a.used, b.used) })
	freed := uint32(0)
	for _, c := range all {
		if freed >= n {
			break
		}
		freed += t.evictPage(c.page)
		t.stats.pagesEvicted.Add(1)
	}
	return freed > 0
}

// evictPage gives up a page's rows, and returns how many become free. Caller holds mu.
func (t *tables) evictPage(p *builtPage) uint32 {
	delete(t.pages, p.slot)
	t.mem.setPage(p.slot, pageWord(0, 0, bpfPageStatePAGE_EMPTY))
	s := p.set
	if s.uses--; s.uses > 0 {
		return 0
	}
	if rest := slices.DeleteFunc(t.sets[s.hash], func(o *rowSet) bool { return o == s }); len(rest) > 0 {
		t.sets[s.hash] = rest
	} else {
		delete(t.sets, s.hash)
	}
	t.stats.rowsEvicted.Add(uint64(s.n))
	t.later(func() {
		t.rowRoom.give(extent{s.start, s.n})
		for _, n := range s.rules {
			if t.ruleUses[n]--; t.ruleUses[n] == 0 {
				delete(t.ruleNumber, t.mem.rules[n])
				t.ruleFree = append(t.ruleFree, n)
			}
		}
	})
	return s.n
}

// nextGeneration lets what could not be read be asked for again, and begins to count anew what is used.
func (t *tables) nextGeneration() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.generation++
	queued := map[uint32]bool{}
	for _, r := range t.requests {
		queued[r.slot] = !r.file
	}
	for slot := range t.waiting {
		if !queued[slot] {
			t.mem.setPage(slot, pageWord(0, 0, bpfPageStatePAGE_EMPTY))
			delete(t.waiting, slot)
		}
	}
	if len(t.failedFiles) > 0 {
		for _, spaces := range t.spaces {
			for _, s := range spaces {
				for i, key := range s.keys {
					if key == nil || s.files[i] != nil {
						continue
					}
					if _, ok := t.failedFiles[*key]; ok {
						t.mem.setKind(s.at+1+uint32(i), bpfMappingKindMAPPING_UNKNOWN)
					}
				}
			}
		}
		clear(t.failedFiles)
	}
	return t.setGeneration(t.generation)
}

// fileFor returns the file of an instance, if it is known.
func (t *tables) fileFor(in instance) *textFile {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.files[in]
}
