// Package systemd is a source of containers that are none: services and scopes of systemd, and of users' service managers, that the
// configuration asks for by name. Nothing else here is told of.
//
// A unit's cgroup has the unit's name, so the cgroup tree tells what exists: cgroupfs.Scanner watches it and finds a unit when its
// cgroup is made, which is before it has a process. That works without D-Bus, without rights to ask systemd anything, and in a
// container that sees only the host's cgroups. systemd itself is asked, over its private socket or the system bus, for what a
// name does not tell: main process, start, invocation, description. Nobody waits for that; users' managers are not asked, for
// they answer what the user likes.
//
// A Source may be used by any goroutine. In its Run one goroutine owns the scanner and another one asks systemd. It only
// reads; no unit is ever started, stopped or changed.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
)

// booted is a directory that exists if systemd is the first process: sd_booted(3).
const booted = "/run/systemd/system"

// Config says which units to tell of.
type Config struct {
	Patterns  Patterns
	Hierarchy cgroupfs.Hierarchy
	Log       *slog.Logger // nil discards
}

// Source tells of units. Make one with New.
type Source struct {
	log     *slog.Logger
	h       cgroupfs.Hierarchy
	scanner *cgroupfs.Scanner
	buses   []bus // in the order in which they are tried
	booted  string
	own     string // the cgroup that we ourselves are in, empty if that is not known

	patterns atomic.Pointer[Patterns]
	changed  chan struct{}

	described, failures atomic.Uint64

	mu     sync.Mutex // protects what follows
	asking error      // why systemd does not answer; nil: it does, or nothing was asked
	since  time.Time  // when the patterns were set
}

var (
	_ container.Source         = (*Source)(nil)
	_ container.StatusReporter = (*Source)(nil)
	_ container.CountReporter  = (*Source)(nil)
)

// New returns a source. Patterns have to be ones that CheckPattern takes; none is fine: SetPatterns may come later.
func New(cfg Config) *Source {
	s := &Source{log: cfg.Log, h: cfg.Hierarchy, buses: systemBuses, booted: booted, changed: make(chan struct{}, 1)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.log = s.log.With("source", s.Name())
	if own, err := cfg.Hierarchy.OfPID(os.Getpid()); err == nil {
		s.own = own
	} else {
		s.log.Debug("our own unit is not known: a pattern that matches it profiles the profiler", "err", err)
	}
	s.scanner = cgroupfs.NewJudged(s.Name(), cfg.Hierarchy, s.judge, cfg.Log)
	s.SetPatterns(cfg.Patterns)
	return s
}

// Name implements [container.Source].
func (s *Source) Name() string { return "systemd" }

// SetPatterns replaces the patterns of a running source. Units that none of them matches any more are told to be gone.
func (s *Source) SetPatterns(p Patterns) {
	if old := s.patterns.Load(); old != nil && slices.Equal(*old, p) {
		return
	}
	p = slices.Clone(p)
	s.patterns.Store(&p)
	s.mu.Lock()
	s.since = time.Now()
	s.mu.Unlock()
	s.scanner.Rescan()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// judge is the scanner's: it takes units that a pattern matches, and looks for more of them in slices and users' managers.
func (s *Source) judge(p string) (n cgroupfs.Name, found, below bool) {
	patterns := *s.patterns.Load()
	if len(patterns) == 0 {
		return cgroupfs.Name{}, false, false
	}
	n, below = parse(p)
	if n.ID == "" {
		return cgroupfs.Name{}, false, below
	}
	if c, ok := cgroupfs.ParsePath(p); ok && c.Kind == cgroupfs.KindContainer {
		return cgroupfs.Name{}, false, below // docker-ID.scope is a unit too, and told of by others
	}
	return n, patterns.match(n.ID, s.ours(p)), below
}

// ours reports whether we run in a cgroup.
func (s *Source) ours(p string) bool { return s.own == p || strings.HasPrefix(s.own, p+"/") }

// Run implements [container.Source]. It fails only when the cgroup tree cannot be read.
func (s *Source) Run(ctx context.Context, emit func(container.Event)) error {
	for len(*s.patterns.Load()) == 0 {
		for _, t := range []container.EventType{container.Syncing, container.Synced} { // there is nothing: that is all
			emit(container.Event{Type: t, Source: s.Name(), At: time.Now()})
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.changed:
		}
	}
	if _, err := os.Stat(s.booted); errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("units are configured, and systemd does not run here: they are found if there are cgroups of their names", "patterns", *s.patterns.Load())
	}
	d := newDescriber(s, emit)
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	asking.Go(func() { d.run(ctx) })
	return s.scanner.Run(ctx, func(e container.Event) {
		emit(e)
		d.hear(&e)
	})
}

// Status implements [container.StatusReporter]. Connected means that units are found as they come; Err may still say why they have no
// description.
func (s *Source) Status() container.Status {
	s.mu.Lock()
	asking, since := s.asking, s.since
	s.mu.Unlock()
	if len(*s.patterns.Load()) == 0 {
		return container.Status{Absent: true, Since: since, Err: `no units are asked for (systemd: ["nginx.service"])`}
	}
	if _, err := os.Stat(s.booted); errors.Is(err, fs.ErrNotExist) {
		return container.Status{Since: since, Err: fmt.Sprintf("units are configured, and systemd does not run here (there is no %s); remove the key systemd", s.booted)}
	}
	st := s.scanner.Status()
	if st.Connected && st.Err == "" && asking != nil {
		st.Err = "units are found but not described: " + asking.Error()
	}
	return st
}

// Counts implements [container.CountReporter].
func (s *Source) Counts() map[string]uint64 {
	counts := s.scanner.Counts()
	counts["described"], counts["undescribed"] = s.described.Load(), s.failures.Load()
	return counts
}

// answered notes whether systemd answers, and says so when that changes.
func (s *Source) answered(err error) {
	s.mu.Lock()
	before := s.asking
	s.asking = err
	s.mu.Unlock()
	if err != nil && (before == nil || before.Error() != err.Error()) {
		s.log.Info("units are found but not described", "err", err)
	}
}
