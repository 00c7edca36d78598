// Package podman is a source of containers: it follows Podman, root's and every user's, and tells of containers by the names
// that people gave them, with their labels, images, pods and units, and where they run.
//
// Podman has no daemon, so nothing here depends on one. What runs is what the kernel shows: each container has a conmon above
// its first process, whose user is the engine's. Names and images come from conmon's command line and from the storage's
// files, labels from Podman's log of events, which is a file or the journal. Where a service runs (podman system service),
// its API says all that sooner. A service that systemd would start for whoever connects is not asked: connecting starts it,
// and staying connected keeps it from leaving again.
//
// What a user's processes, files and service say is believed about that user's containers only. A container is told with a
// cgroup if the kernel has its first process, a child of its conmon, in a cgroup that is named after it; the registry refuses
// cgroups outside of the user's slice, and ids that are another's. Only files that the user owns are read. A conmon in a
// container, or in another pid namespace, is nobody's.
//
// A Podman is one source. It runs one client per user, each with a goroutine that owns what it knows, so that a user whose
// service or file system hangs delays nobody else. Hint may be called from any goroutine.
//
// It only reads: /proc, files, the journal, and three GETs of the API (ping, events, list). It never inspects a container,
// which waits for one that starts, and asks nothing about a container before it has started.
package podman

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
)

// DefaultAddress is where root's service listens when nobody says otherwise.
const DefaultAddress = "/run/podman/podman.sock"

const (
	// usersEvery is how often to look whether a user has come or gone. Looking reads one directory.
	usersEvery = time.Second
	// scanEvery is how often to look for conmons of users who have no runtime directory.
	scanEvery = time.Minute
	// maxUsers bounds how many users are followed.
	maxUsers = 256
	// hintFor is how long a container that somebody found may take until its conmon is found: it is there before.
	hintFor = 2 * time.Second
	// hintAgain is when to look for it again.
	hintAgain = 50 * time.Millisecond
)

// Config says which Podmans to follow.
type Config struct {
	// Addresses are paths of services' sockets, with or without "unix://" in front. The containers of each socket's owner are
	// followed, also while no service listens there. Empty: those of all users, with the usual sockets.
	Addresses []string
	// Hierarchy is where containers' cgroups are looked up.
	Hierarchy cgroupfs.Hierarchy
	Log       *slog.Logger // nil discards

	run string // /run, but in tests
}

// Sources returns the source. It looks for Podmans in Run; that none is there is no error. The error is about an address that
// cannot be one.
func Sources(cfg Config) ([]container.Source, error) {
	var errs []error
	cfg.Addresses = slices.Clone(cfg.Addresses)
	for i, address := range cfg.Addresses {
		cfg.Addresses[i] = strings.TrimPrefix(address, "unix://")
		if !filepath.IsAbs(cfg.Addresses[i]) {
			errs = append(errs, fmt.Errorf("podman address %q: want the absolute path of a socket, as %s", address, DefaultAddress))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return []container.Source{New(cfg)}, nil
}

// Podman is the source. Make one with New and call Run once.
type Podman struct {
	cfg   Config
	log   *slog.Logger
	procs *processes
	n     counts
	hints chan string
	tune  func(*client) // tests shorten times

	mu      sync.Mutex // protects clients
	clients map[uint32]*running
}

// running is a client with its goroutine.
type running struct {
	*client
	stop func()
	done chan struct{}
}

var (
	_ container.Source         = (*Podman)(nil)
	_ container.StatusReporter = (*Podman)(nil)
	_ container.CountReporter  = (*Podman)(nil)
	_ container.Hinted         = (*Podman)(nil)
)

// New returns a source of the Podmans that cfg names, whose addresses are absolute paths.
func New(cfg Config) *Podman {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.run == "" {
		cfg.run = "/run"
	}
	return &Podman{cfg: cfg, log: cfg.Log.With("source", "podman"), procs: newProcesses(cfg.Hierarchy), hints: make(chan string, queueLength),
		clients: map[uint32]*running{}}
}

// Name implements [container.Source]. Users' containers are told under "podman:UID", so that what one user no longer has is not
// mistaken for what another one has.
func (p *Podman) Name() string { return "podman" }

// Hint implements [container.Hinted]: a cgroup says that it is a container of Podman's.
func (p *Podman) Hint(c container.Container) {
	if c.Runtime != "podman" || !validID(c.ID) {
		return
	}
	select {
	case p.hints <- c.ID:
	default: // it is found by the next look
		p.n.hints.Add(1)
	}
}

// Run implements [container.Source]. It ends with ctx only.
func (p *Podman) Run(ctx context.Context, emit func(container.Event)) error {
	var clients sync.WaitGroup
	defer clients.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	start := func(uid uint32, address string) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.clients[uid] != nil {
			return
		}
		if len(p.clients) >= maxUsers {
			p.n.users.Add(1)
			return
		}
		c := newClient(p.cfg, uid, address, p.procs, &p.n)
		if p.tune != nil {
			p.tune(c)
		}
		own, stop := context.WithCancel(ctx)
		r := &running{c, stop, make(chan struct{})}
		p.clients[uid] = r
		clients.Go(func() {
			defer close(r.done)
			_ = c.run(own, emit)  // it ends with its context only
			if ctx.Err() == nil { // the user is gone, with all containers
				emit(container.Event{Type: container.Syncing, Source: c.name, At: time.Now()})
				emit(container.Event{Type: container.Synced, Source: c.name, At: time.Now()})
			}
		})
	}
	if len(p.cfg.Addresses) == 0 {
		start(0, "")
	}
	for _, address := range p.cfg.Addresses {
		uid := owner(address)
		if p.client(uid) != nil {
			p.log.Warn("a second service of one user is not asked: that user's containers are named from files where the first does not know them",
				"address", address, "user", uid)
			continue
		}
		start(uid, address)
	}
	if p.client(0) == nil {
		emit(container.Event{Type: container.Synced, Source: p.Name(), At: time.Now()}) // nothing is told under our own name
	}
	users := time.NewTicker(usersEvery)
	defer users.Stop()
	var scanned time.Time
	waiting := map[string]time.Time{} // hinted ids, and until when to look for them
	var again <-chan time.Time
	for {
		if len(p.cfg.Addresses) == 0 {
			p.users(start, time.Since(scanned) > scanEvery)
			if time.Since(scanned) > scanEvery {
				scanned = time.Now()
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-users.C:
			continue
		case id := <-p.hints:
			waiting[id] = time.Now().Add(hintFor)
		case <-again:
		}
		for range len(p.hints) { // one look for all
			waiting[<-p.hints] = time.Now().Add(hintFor)
		}
		p.resolve(waiting, start)
		if again = nil; len(waiting) > 0 {
			again = time.After(hintAgain)
		}
	}
}

func (p *Podman) client(uid uint32) *running {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.clients[uid]
}

// resolve tells clients of containers that were hinted at.
func (p *Podman) resolve(waiting map[string]time.Time, start func(uint32, string)) {
	all, err := p.procs.conmons()
	if err != nil {
		p.log.Debug("Podman's containers are not looked for", "err", err)
		return
	}
	now := time.Now()
	for _, m := range all {
		if _, ok := waiting[m.id]; !ok {
			continue
		}
		if len(p.cfg.Addresses) == 0 {
			start(m.uid, "")
		}
		if c := p.client(m.uid); c != nil {
			c.hint(m)
		}
		delete(waiting, m.id)
	}
	for id, until := range waiting {
		if now.After(until) {
			delete(waiting, id)
		}
	}
}

// users starts clients of users who have come, and stops those of users who are gone.
func (p *Podman) users(start func(uint32, string), scan bool) {
	there := map[uint32]bool{0: true}
	dirs, err := os.ReadDir(filepath.Join(p.cfg.run, "user"))
	if err != nil {
		dirs = nil // a machine without logind
	}
	for _, d := range dirs {
		uid, err := strconv.ParseUint(d.Name(), 10, 32)
		if err != nil || uid == 0 {
			continue
		}
		dir := filepath.Join(p.cfg.run, "user", d.Name())
		for _, name := range []string{"libpod", "containers", "podman/podman.sock"} {
			if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
				there[uint32(uid)] = true
				start(uint32(uid), "")
				break
			}
		}
	}
	if !scan {
		return
	}
	all, err := p.procs.conmons()
	if err != nil {
		p.log.Debug("Podman's containers are not looked for", "err", err)
		return
	}
	for _, m := range all {
		there[m.uid] = true
		start(m.uid, "")
	}
	p.mu.Lock()
	gone := maps.Clone(p.clients)
	p.mu.Unlock()
	for uid, c := range gone {
		if there[uid] {
			continue
		}
		c.stop()
		<-c.done // before another one tells under the same name
		p.mu.Lock()
		delete(p.clients, uid)
		p.mu.Unlock()
	}
}

// Status implements [container.StatusReporter]: connected means that each Podman that is there is followed.
func (p *Podman) Status() container.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out container.Status
	for _, uid := range slices.Sorted(maps.Keys(p.clients)) {
		st := p.clients[uid].loop.Status()
		if why := p.clients[uid].without.Load(); why != nil && st.Connected {
			st.Err = *why
		}
		switch {
		case st.Err != "" && !st.Absent:
			return st // one is there and does not work: that is what people have to know
		case st.Connected && !out.Connected, st.Absent && out.Since.IsZero():
			out = st
		}
	}
	return out
}

// Counts implements [container.CountReporter]: the sums over all users.
func (p *Podman) Counts() map[string]uint64 {
	counts := map[string]uint64{
		"malformed": p.n.malformed.Load(), "describe_failed": p.n.describeErrors.Load(), "cgroup_not_found": p.n.unlocated.Load(),
		"too_many_users": p.n.users.Load(), "hint_lost": p.n.hints.Load(), "process_not_readable": p.procs.unreadable.Load(), "connect": 0, "event": 0, "overflow": 0, "list": 0, "list_failed": 0,
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.clients {
		s := c.loop.Stats()
		for name, n := range map[string]uint64{"connect": s.Connects, "event": s.Events, "overflow": s.Overflows, "list": s.Lists, "list_failed": s.ListErrors} {
			counts[name] += n
		}
	}
	return counts
}
