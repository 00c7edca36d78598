package cgroupfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// sourceName is who speaks.
const sourceName = "cgroup"

// rescanEvery is how often the whole tree is read again: what inotify lost, or could not watch, is found then.
const rescanEvery = time.Minute

// settleAfter is how long after a cgroup was made we look whether its process is a pause container: by then it runs its
// own program and not the runtime's.
const settleAfter = time.Second

// settleFor is how long a cgroup that a walk found empty may wait for its first process. Later ones are found by the rescan.
const settleFor = 10 * time.Second

// maxContainers bounds what hostile cgroup trees can make us remember. Nodes have at most a few hundred containers.
const maxContainers = 16384

// maxDepth bounds the walk; the kernel itself allows deeper trees, runtimes make about eight levels.
const maxDepth = 64

// Judge says what a cgroup is to a Scanner: whether it is told of and under which name, and whether those below it are looked at.
// It is called with the path below the root of the hierarchy, for a cgroup only if all above it were looked into.
type Judge func(path string) (n Name, found, below bool)

// judgeContainer takes containers, and does not look into them.
func judgeContainer(p string) (n Name, found, below bool) {
	if n, ok := ParsePath(p); ok && n.Kind == KindContainer {
		return n, n.Path == p, false
	}
	return Name{}, false, !helper(path.Base(p))
}

// Scanner is a source of containers that reads the cgroup tree and watches it with inotify. It finds a container when its
// cgroup is made, which is before it has a process, and knows nothing of it but the runtime's and the container's id from
// the path. Hence its events are Inferred, and not Complete unless the id is all there is to know (LXC, nspawn): the registry
// waits for somebody who knows more, and after a while goes on with what it has.
//
// Systemd's services are no business of the Scanner that NewScanner returns, and it does not look below a container's cgroup.
type Scanner struct {
	h      Hierarchy
	name   string
	judge  Judge
	again  chan struct{}
	log    *slog.Logger
	rescan time.Duration
	now    func() time.Time

	watches, unwatched, overflows, rescans, dropped atomic.Int64

	mu     sync.Mutex // protects status
	status container.Status
}

// ScannerStats are counts since the start, but for Watches and Unwatched, which are of the last walk.
type ScannerStats struct {
	Watches   int64 // directories that are watched
	Unwatched int64 // directories that could not be, mostly for fs.inotify.max_user_watches; they are seen by the rescan only
	Overflows int64 // times that the kernel's queue overflowed; each one is followed by a rescan
	Rescans   int64
	Dropped   int64 // containers not told because there were too many
}

var (
	_ container.Source         = (*Scanner)(nil)
	_ container.StatusReporter = (*Scanner)(nil)
	_ container.CountReporter  = (*Scanner)(nil)
)

// NewScanner returns a Scanner that finds the containers of a hierarchy. A nil log discards.
func NewScanner(h Hierarchy, log *slog.Logger) *Scanner {
	return NewJudged(sourceName, h, judgeContainer, log)
}

// NewJudged returns a Scanner with a name of its own that finds what judge says. judge is called in the goroutine of Run.
func NewJudged(name string, h Hierarchy, judge Judge, log *slog.Logger) *Scanner {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Scanner{h: h, name: name, judge: judge, again: make(chan struct{}, 1), log: log.With("source", name), rescan: rescanEvery, now: time.Now}
}

// Name implements [container.Source].
func (s *Scanner) Name() string { return s.name }

// Rescan makes Run read the whole tree again, soon: for a Judge that has changed its mind. What it no longer takes is told to be
// gone.
func (s *Scanner) Rescan() {
	select {
	case s.again <- struct{}{}:
	default: // it will anyway
	}
}

// Status implements [container.StatusReporter]. Not connected means that only the rescan works.
func (s *Scanner) Status() container.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func (s *Scanner) setStatus(connected bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := ""
	if err != nil {
		text = err.Error()
	}
	if s.status.Connected != connected || s.status.Err != text {
		s.status = container.Status{Connected: connected, Err: text, Since: s.now()}
	}
}

// Stats may be called at any time.
func (s *Scanner) Stats() ScannerStats {
	return ScannerStats{Watches: s.watches.Load(), Unwatched: s.unwatched.Load(), Overflows: s.overflows.Load(),
		Rescans: s.rescans.Load(), Dropped: s.dropped.Load()}
}

// Counts implements [container.CountReporter].
func (s *Scanner) Counts() map[string]uint64 {
	st := s.Stats()
	return map[string]uint64{"overflow": uint64(st.Overflows), "rescan": uint64(st.Rescans), "dropped": uint64(st.Dropped)}
}

// found is a container that was told.
type found struct {
	id      uint64
	name    Name
	empty   int // successive rescans that saw no process in it
	settled bool
	due     time.Time // when to look what runs in it, unless settled
	round   int64     // the last rescan that saw it
}

// scan is the state of one Run; its goroutine owns it.
type scan struct {
	*Scanner
	emit  func(container.Event)
	w     *watcher         // nil: no inotify, rescans only
	dirs  map[int32]string // watched directories by watch descriptor
	found map[string]*found
	empty map[string]time.Time // cgroups without a process, and until when one may still be on its way
	round int64
	full  bool // inotify is out of watches
}

// Run implements [container.Source]. It fails only when the tree itself cannot be read.
func (s *Scanner) Run(ctx context.Context, emit func(container.Event)) error {
	c := &scan{Scanner: s, emit: emit, dirs: map[int32]string{}, found: map[string]*found{}, empty: map[string]time.Time{}}
	changes := make(chan []change)
	w, err := newWatcher()
	if err != nil {
		s.log.Warn("containers are found by the rescan only", "err", err)
		s.setStatus(false, err)
	} else {
		c.w = w
		var reader sync.WaitGroup
		// The kernel's queue is the bounded one: what does not fit there arrives as an overflow.
		reader.Go(func() { s.readChanges(ctx, w, changes) })
		defer reader.Wait()
		defer w.close()
	}
	if err := c.walk(); err != nil {
		return err
	}
	rescan := time.NewTicker(s.rescan)
	defer rescan.Stop()
	settle := time.NewTimer(settleAfter)
	defer settle.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case batch := <-changes:
			for _, ch := range batch {
				if err := c.apply(ch); err != nil {
					return err
				}
			}
		case <-rescan.C:
			if err := c.walk(); err != nil {
				return err
			}
		case <-s.again:
			if err := c.walk(); err != nil {
				return err
			}
		case <-settle.C:
			c.settle()
			settle.Reset(settleAfter / 2)
		}
	}
}

func (s *Scanner) readChanges(ctx context.Context, w *watcher, out chan<- []change) {
	buf := make([]byte, 64<<10)
	for {
		batch, err := w.read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			// Never seen; without events the rescan still works.
			s.log.Warn("containers are found by the rescan only", "err", err)
			s.setStatus(false, err)
			return
		}
		select {
		case out <- batch:
		case <-ctx.Done():
			return
		}
	}
}

// walk reads the whole tree: tells what exists, then what no longer does.
func (c *scan) walk() error {
	c.round++
	c.rescans.Add(1)
	c.full = false
	c.unwatched.Store(0)
	c.emit(container.Event{Type: container.Syncing, Source: c.Name(), Inferred: true, At: c.now()})
	if _, err := os.ReadDir(c.h.Mount); err != nil {
		err = fmt.Errorf("read the cgroup tree at %s: %w", c.h.Mount, err)
		c.setStatus(false, err)
		return err
	}
	c.visit("/", 0, true)
	for p, f := range c.found {
		if f.round != c.round {
			c.gone(p, f)
		}
	}
	c.emit(container.Event{Type: container.Synced, Source: c.Name(), Inferred: true, At: c.now()})
	c.watches.Store(int64(len(c.dirs)))
	if c.w != nil {
		var err error
		if c.full {
			err = fmt.Errorf("%d cgroups are not watched: raise fs.inotify.max_user_watches", c.unwatched.Load())
		}
		c.setStatus(true, err)
	}
	return nil
}

// visit looks at a cgroup and, unless it is a container's, at those below it. In a walk, containers that have no process are
// left-overs; when a cgroup was just made, the process is still to come.
func (c *scan) visit(p string, depth int, walking bool) {
	if depth > maxDepth {
		return
	}
	n, found, below := c.judge(p)
	if found {
		c.container(p, n, walking)
	}
	if !below {
		return
	}
	dir := c.h.Dir(p)
	c.watch(p, dir)
	entries, err := os.ReadDir(dir) // after the watch: a directory is in at least one of the two
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
		c.log.Warn("part of the cgroup tree is not searched for containers", "cgroup", p, "err", err)
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			c.visit(path.Join(p, e.Name()), depth+1, walking)
		}
	}
}

func (c *scan) watch(p, dir string) {
	if c.w == nil || c.full {
		if c.full {
			c.unwatched.Add(1)
		}
		return
	}
	wd, err := c.w.add(dir)
	switch {
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOMEM):
		if !c.full {
			c.log.Warn("out of inotify watches, some containers are found by the rescan only; raise fs.inotify.max_user_watches", "cgroup", p)
		}
		c.full = true
		c.unwatched.Add(1)
	case err != nil: // it is gone
	default:
		c.dirs[wd] = p
	}
}

// container tells a container that exists, and that another one was there before.
func (c *scan) container(p string, n Name, walking bool) {
	id, err := c.h.ID(p)
	if err != nil {
		return // it is gone; IN_DELETE follows
	}
	f := c.found[p]
	if f != nil && f.id != id {
		c.gone(p, f)
		f = nil
	}
	if walking && !c.h.populated(p) {
		if f == nil {
			if len(c.empty) < maxContainers {
				c.empty[p] = c.now().Add(settleFor)
			}
			return
		}
		if f.empty > 0 { // since the last rescan: its container has ended and the runtime left the directory
			c.gone(p, f)
			return
		}
		f.empty++
	} else if f != nil {
		f.empty = 0
	}
	if f == nil {
		if len(c.found) >= maxContainers {
			c.dropped.Add(1)
			return
		}
		f = &found{id: id, name: n, due: c.now().Add(settleAfter), settled: n.Kind == KindService}
		c.found[p] = f
		delete(c.empty, p)
		if walking {
			f.due = c.now() // it runs for a while already
		}
	}
	f.round = c.round
	c.tell(p, f)
}

func (c *scan) tell(p string, f *found) {
	if !f.settled && !c.now().Before(f.due) {
		f.settled = true
		c.tellAs(p, f, c.pause(p))
		return
	}
	c.tellAs(p, f, false)
}

func (c *scan) tellAs(p string, f *found, sandbox bool) {
	n := f.name
	e := container.Event{Type: container.Upsert, Source: c.Name(), Inferred: true, At: c.now(), Complete: sandbox || n.Named(),
		Container: container.Container{
			ID: n.ID, Runtime: n.Runtime, Namespace: n.Namespace, SystemdUnit: n.Unit, Sandbox: sandbox,
			CgroupPath: p, CgroupID: f.id, Pod: container.Pod{UID: n.PodUID},
		}}
	if n.Named() {
		e.Container.Name = n.ID
	}
	c.emit(e)
}

// settle looks at containers that are old enough to run their own program, and tells those that are pause containers. Those
// that a walk met between the making of the cgroup and the first process are told when the process is there.
func (c *scan) settle() {
	now := c.now()
	for p, until := range c.empty {
		switch {
		case c.h.populated(p):
			if n, found, _ := c.judge(p); found {
				c.container(p, n, false)
			}
			delete(c.empty, p)
		case now.After(until):
			delete(c.empty, p)
		}
	}
	for p, f := range c.found {
		if f.settled || now.Before(f.due) {
			continue
		}
		f.settled = true
		if c.pause(p) {
			c.tellAs(p, f, true)
		}
	}
}

// pause reports whether the only process of a cgroup is a pod's pause process. A container that calls its process so hides
// from the profiler, as it may by a label.
func (c *scan) pause(p string) bool {
	pids, err := c.h.Processes(p)
	if err != nil || len(pids) != 1 {
		return false
	}
	f, err := os.Open(filepath.Join(c.h.proc(), strconv.Itoa(pids[0]), "comm"))
	if err != nil {
		return false // it is gone
	}
	defer f.Close()
	comm, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return false
	}
	name := strings.TrimSpace(string(comm))
	return name == "pause" || name == "catatonit" // Podman's pods have the latter
}

func (c *scan) gone(p string, f *found) {
	delete(c.found, p)
	c.emit(container.Event{Type: container.Gone, Source: c.Name(), Inferred: true, At: c.now(),
		Container: container.Container{ID: f.name.ID, Runtime: f.name.Runtime, Namespace: f.name.Namespace, CgroupPath: p, CgroupID: f.id}})
}

// apply takes one change of the tree.
func (c *scan) apply(ch change) error {
	if ch.mask&unix.IN_Q_OVERFLOW != 0 {
		c.overflows.Add(1)
		return c.walk()
	}
	dir, ok := c.dirs[ch.wd]
	if !ok {
		return nil // of a directory that was forgotten meanwhile
	}
	if ch.mask&unix.IN_IGNORED != 0 { // the directory is gone
		delete(c.dirs, ch.wd)
		c.watches.Store(int64(len(c.dirs)))
		return nil
	}
	if ch.mask&unix.IN_ISDIR == 0 || ch.name == "" {
		return nil
	}
	p := path.Join(dir, ch.name)
	if ch.mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0 {
		c.visit(p, strings.Count(p, "/"), false)
		c.watches.Store(int64(len(c.dirs)))
		return nil
	}
	if f := c.found[p]; f != nil {
		// The event may be about an older directory of this name: ask what is there now.
		if id, err := c.h.ID(p); err != nil || id != f.id {
			c.gone(p, f)
			if err == nil {
				c.visit(p, strings.Count(p, "/"), false)
			}
		}
	}
	return nil
}
