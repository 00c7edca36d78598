package symbol

import (
	"container/list"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxFiles is how many files the cache knows; a node with 20 containers executes about 1,000 different ones.
	maxFiles = 16 << 10
	// maxFilesEach is how many of them may share one object: the same library in as many containers.
	maxFilesEach = 2 << 10
	// maxSame is how many objects with an equal beginning are compared with a new file, and maxSameBytes how much is read for
	// it. Beginnings hold the build id: only a container that writes such files on purpose has more, and it costs no more.
	maxSame      = 2
	maxSameBytes = 64 << 20
	// maxFailures bounds the memory for unreadable files.
	maxFailures = 1 << 10
	// failureLife is how long a file that could not be parsed is not tried again.
	failureLife = 5 * time.Minute
	// fingerprintBytes of a file's beginning tell which known object to compare it with: headers and build id lie there.
	fingerprintBytes = 4 << 10
	// fileCost is what knowing one file occupies.
	fileCost = 256
)

// fileKey tells whether a file is the one that was read, without reading it.
type fileKey struct {
	dev, ino     uint64
	ctime, mtime unix.Timespec
	size         int64
}

// fingerprint is an index only: files with the same one are compared byte by byte.
type fingerprint [sha256.Size]byte

// entry is one object in the cache.
type entry struct {
	object *Object
	print  fingerprint
	files  map[fileKey]struct{}
	age    *list.Element // in Cache.recent
}

// failure is a file that could not be parsed.
type failure struct {
	err   error
	until time.Time
}

// call is a parse that others wait for.
type call struct {
	done   chan struct{}
	object *Object
	err    error
}

// Cache holds the symbols of files within a budget of bytes and gives equal files the same Object. An Object that was evicted
// stays valid for whoever still holds it.
type Cache struct {
	budget int64
	now    func() time.Time

	mu       sync.Mutex // guards all below; never held while a file is read
	files    map[fileKey]*entry
	prints   map[fingerprint][]*entry // newest last
	ids      map[identity]*entry
	recent   *list.List // of *entry, most recently used first
	failures map[fileKey]failure
	calls    map[fileKey]*call
	stats    CacheStats
}

// CacheStats is what a Cache did since it was made; Objects, Files, Failures and Bytes are current.
type CacheStats struct {
	Objects, Files int   // objects held, and files known to be one of them
	Failures       int   // files remembered as unreadable
	Bytes, Budget  int64 // memory held and allowed

	Hits      uint64 // Loads answered without reading
	Shared    uint64 // Loads whose file was read, compared and found equal to a known one
	Parses    uint64 // files parsed
	ReadBytes uint64 // bytes read from files
	ParseTime time.Duration
	Failed    uint64 // files that could not be read or whose headers make no sense
	NotELF    uint64 // of these, files that are not ELF at all
	Panics    uint64 // of these, files that met a bug of the parser; the error says where
	Negative  uint64 // Loads answered with a remembered failure
	Degraded  uint64 // objects with less than their file has to tell: too large for the budget, or partly nonsense
	Evicted   uint64 // objects dropped to stay within the budget
}

// NewCache makes a cache that holds at most budgetBytes. One object may take half of it; a Go program that needs more keeps its
// function names and loses its lines.
func NewCache(budgetBytes int64) *Cache {
	return &Cache{
		budget:   budgetBytes,
		now:      time.Now,
		files:    make(map[fileKey]*entry),
		prints:   make(map[fingerprint][]*entry),
		ids:      make(map[identity]*entry),
		recent:   list.New(),
		failures: make(map[fileKey]failure),
		calls:    make(map[fileKey]*call),
	}
}

// Load returns the symbols of f, which may be closed afterwards; its read position is not used. A file that is known by
// device, inode, times and size is not read again; one that is not known is read and shares an Object with a known file if
// every byte that a parse looks at is equal. Concurrent Loads of one file read it once.
//
// A Load under way takes up to 8 MiB (32 MiB for a file with MiniDebugInfo), and 20 bytes per symbol of the file, beside the
// budget; whoever calls bounds how many there are. It takes as long as the file system does: one that never answers is waited
// for, without hindering other Loads.
//
// A file that is not ELF gives [ErrNotELF]; errors are remembered for five minutes. A file without any symbol gives an Object
// that can still turn offsets into addresses.
func (c *Cache) Load(f *os.File) (*Object, error) {
	key, err := keyOf(f)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	if e := c.files[key]; e != nil {
		c.recent.MoveToFront(e.age)
		c.stats.Hits++
		c.mu.Unlock()
		return e.object, nil
	}
	if n, ok := c.failures[key]; ok {
		if c.now().Before(n.until) {
			c.stats.Negative++
			c.mu.Unlock()
			return nil, n.err
		}
		delete(c.failures, key)
	}
	if w := c.calls[key]; w != nil {
		c.mu.Unlock()
		<-w.done
		return w.object, w.err
	}
	w := &call{done: make(chan struct{})}
	c.calls[key] = w
	c.mu.Unlock()

	w.object, w.err = c.read(f, key)

	c.mu.Lock()
	delete(c.calls, key)
	c.mu.Unlock()
	close(w.done)
	return w.object, w.err
}

func keyOf(f *os.File) (fileKey, error) {
	var st unix.Stat_t
	raw, err := f.SyscallConn()
	if err != nil {
		return fileKey{}, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	var statErr error
	if err := raw.Control(func(fd uintptr) { statErr = unix.Fstat(int(fd), &st) }); err != nil || statErr != nil {
		return fileKey{}, fmt.Errorf("stat %s: %w", f.Name(), errors.Join(err, statErr))
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fileKey{}, fmt.Errorf("read symbols of %s: %w", f.Name(), ErrNotRegular)
	}
	return fileKey{dev: uint64(st.Dev), ino: st.Ino, ctime: st.Ctim, mtime: st.Mtim, size: st.Size}, nil
}

// read finds a known object that equals f, or parses f.
func (c *Cache) read(f *os.File, key fileKey) (*Object, error) {
	start := c.now()
	counted := &countingReader{r: f}
	print, object, err := c.compare(counted, key)
	shared := object != nil
	bug := false
	if err == nil && !shared {
		object, bug, err = safeParse(counted, key.size, c.budget/2)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if bug {
		c.stats.Panics++
	}
	c.stats.ReadBytes += counted.n
	c.stats.ParseTime += c.now().Sub(start)
	if !shared {
		c.stats.Parses++
	}
	if err != nil {
		return nil, c.fail(key, fmt.Errorf("read symbols of %s: %w", f.Name(), err))
	}
	if shared {
		c.stats.Shared++
	}
	return c.keep(object, print, key), nil
}

// safeParse parses, and turns a panic into an error: a file of a container must not end the agent, not even through a bug of
// ours.
func safeParse(r io.ReaderAt, size, budget int64) (o *Object, bug bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			o, bug, err = nil, true, fmt.Errorf("bug in the parser, please report it with the file: %v\n%s", p, debug.Stack())
		}
	}()
	o, err = parse(r, size, budget)
	return o, false, err
}

// compare returns the fingerprint of f and the known object whose parsed bytes f has too, or nil.
func (c *Cache) compare(f io.ReaderAt, key fileKey) (fingerprint, *Object, error) {
	print, err := fingerprintOf(f, key.size)
	if err != nil {
		return print, nil, err
	}
	c.mu.Lock()
	known := slices.Clone(c.prints[print])
	c.mu.Unlock()
	left := uint64(maxSameBytes)
	for i := len(known) - 1; i >= max(0, len(known)-maxSame); i-- {
		o := known[i].object
		var n uint64
		for _, l := range o.log {
			n += l.n
		}
		if n > left {
			continue
		}
		left -= n
		if id, err := replay(f, key.size, o.log); err == nil && id == o.id {
			return print, o, nil
		}
	}
	return print, nil, nil
}

// fingerprintOf reads the beginning of a file.
func fingerprintOf(f io.ReaderAt, size int64) (fingerprint, error) {
	s := newSource(f, size)
	err := s.stream(0, uint64(min(size, fingerprintBytes)), "beginning", func([]byte) error { return nil })
	return fingerprint(s.identity()), err
}

// fail remembers that the file could not be read. Caller holds mu.
func (c *Cache) fail(key fileKey, err error) error {
	c.stats.Failed++
	if errors.Is(err, ErrNotELF) {
		c.stats.NotELF++
	}
	if len(c.failures) >= maxFailures {
		for k := range c.failures { // any: the worst that comes of it is one more attempt
			delete(c.failures, k)
			break
		}
	}
	c.failures[key] = failure{err, c.now().Add(failureLife)}
	return err
}

// keep enters object under key, or the equal one that is there already, evicts what exceeds the budget, and returns the
// object to use. Caller holds mu.
func (c *Cache) keep(object *Object, print fingerprint, key fileKey) *Object {
	e := c.ids[object.id]
	if e != nil {
		c.recent.MoveToFront(e.age)
	} else {
		e = &entry{object: object, print: print, files: make(map[fileKey]struct{})}
		e.age = c.recent.PushFront(e)
		c.ids[object.id] = e
		c.prints[print] = append(c.prints[print], e)
		c.stats.Bytes += object.bytes
		if object.degraded {
			c.stats.Degraded++
		}
	}
	if len(e.files) >= maxFilesEach {
		for k := range e.files { // any: the worst that comes of it is one more comparison
			c.forget(e, k)
			break
		}
	}
	if c.files[key] == nil {
		e.files[key] = struct{}{}
		c.files[key] = e
		c.stats.Bytes += fileCost
	}
	for (c.stats.Bytes > c.budget || len(c.files) > maxFiles) && c.recent.Len() > 1 {
		c.drop(c.recent.Back().Value.(*entry))
		c.stats.Evicted++
	}
	return e.object
}

// drop forgets e. Caller holds mu.
func (c *Cache) drop(e *entry) {
	c.recent.Remove(e.age)
	delete(c.ids, e.object.id)
	for k := range e.files {
		c.forget(e, k)
	}
	c.stats.Bytes -= e.object.bytes
	rest := slices.DeleteFunc(c.prints[e.print], func(o *entry) bool { return o == e })
	if len(rest) == 0 {
		delete(c.prints, e.print)
	} else {
		c.prints[e.print] = rest
	}
}

// forget takes key away from e. Caller holds mu.
func (c *Cache) forget(e *entry, key fileKey) {
	delete(e.files, key)
	delete(c.files, key)
	c.stats.Bytes -= fileCost
}

// Stats returns a copy of the counters.
func (c *Cache) Stats() CacheStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Budget, s.Objects, s.Files, s.Failures = c.budget, c.recent.Len(), len(c.files), len(c.failures)
	return s
}

// countingReader counts the bytes that are read.
type countingReader struct {
	r io.ReaderAt
	n uint64
}

func (c *countingReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.r.ReadAt(p, off)
	c.n += uint64(n)
	return n, err
}
