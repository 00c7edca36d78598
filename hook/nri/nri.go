// Package nri is a source of containers: a plugin of the Node Resource Interface, through which containerd (2.0 and newer, in 1.7 by
// configuration) and CRI-O tell of pods and their containers while they make them, and wait for an answer. So a container is in
// scope before it runs its first instruction, with all its names: the runtime starts it when we have answered.
//
// That the runtime waits is also the danger: whoever is connected here can hold up every pod of the node. So the plugin is off
// unless a person turns it on, changes nothing about any container, never answers with an error, and never keeps the runtime
// waiting: a handler hands over what it was told to one worker and answers when the worker has told the registry, which takes well
// under a millisecond, or after maxHold without it. Neither a registry that hangs nor a panic reaches the runtime.
//
// A Plugin owns one connection, and one worker through which everything it tells goes in the order in which it was told. It
// reconnects for as long as its Run runs. It asks the runtime nothing, and of the machine only which cgroup a process is in.
package nri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/nri/pkg/api"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
)

// DefaultSocket is where runtimes listen for plugins when nobody says otherwise.
const DefaultSocket = api.DefaultSocketPath

const (
	// maxHold is how long a runtime ever waits for us. It gives all plugins together two seconds for an event, and cuts off one that
	// takes them.
	maxHold = 100 * time.Millisecond
	// slowHold is when an answer is counted as slow.
	slowHold = time.Millisecond
	// queueLength is how many events may wait for a worker that does not come to them. The runtime sends one at a time and gives up
	// each after seconds, so a queue that is full has not moved for an hour.
	queueLength = 1024

	dialTimeout = 2 * time.Second
	// startTimeout is how long a runtime may take to say that it knows us; the stub gives it five seconds for half of that.
	startTimeout = 10 * time.Second
	// syncTimeout is how long it may take after that until it tells what exists. It does so when no container is being started or
	// stopped, and one that is being stopped may have minutes for it; a plugin that asked again would only have to wait again. But
	// runtimes have also been seen to forget a plugin at this point.
	syncTimeout = 10 * time.Minute

	minBackoff = time.Second
	maxBackoff = 30 * time.Second
	// absentEvery is how often to look for a socket that does not exist. Looking costs a system call.
	absentEvery = time.Second
)

// Config says where to connect.
type Config struct {
	// Socket is the absolute path of the runtime's socket for plugins, with or without "unix://" in front; empty is DefaultSocket.
	Socket string
	// Hierarchy is where containers' cgroups are looked up.
	Hierarchy cgroupfs.Hierarchy
	Log       *slog.Logger // nil discards
}

// Plugin is the source. Make one with New and call Run once.
type Plugin struct {
	socket string
	h      cgroupfs.Hierarchy
	log    *slog.Logger
	times  times
	n      counts
	jobs   chan job

	mu     sync.Mutex // protects status
	status container.Status
}

// times are fixed; tests shorten them.
type times struct{ hold, start, sync, minBackoff, maxBackoff, absentEvery time.Duration }

type counts struct {
	connects, syncs, starts, stops, pods, unlocated, slow, late, dropped, panics atomic.Uint64
}

var (
	_ container.Source         = (*Plugin)(nil)
	_ container.StatusReporter = (*Plugin)(nil)
	_ container.CountReporter  = (*Plugin)(nil)
)

// New returns a plugin that connects in Run; that nobody listens is no error. The error is about a socket that cannot be one.
func New(cfg Config) (*Plugin, error) {
	socket, err := socketPath(cfg.Socket)
	if err != nil {
		return nil, err
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Plugin{socket: socket, h: cfg.Hierarchy, log: log.With("source", name), jobs: make(chan job, queueLength),
		times: times{maxHold, startTimeout, syncTimeout, minBackoff, maxBackoff, absentEvery}}, nil
}

// name is the source's and the plugin's.
const name = "nri"

// Name implements [container.Source].
func (p *Plugin) Name() string { return name }

// Status implements [container.StatusReporter].
func (p *Plugin) Status() container.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// Counts implements [container.CountReporter].
func (p *Plugin) Counts() map[string]uint64 {
	return map[string]uint64{
		"connect":          p.n.connects.Load(),
		"synchronize":      p.n.syncs.Load(),
		"start":            p.n.starts.Load(),
		"stop":             p.n.stops.Load(),
		"pod":              p.n.pods.Load(),
		"cgroup_not_found": p.n.unlocated.Load(),
		"answer_slow":      p.n.slow.Load(),    // after more than a millisecond
		"answer_early":     p.n.late.Load(),    // before the registry had taken the event, because that took too long
		"dropped":          p.n.dropped.Load(), // events; the plugin then connects again to hear everything
		"panic":            p.n.panics.Load(),
	}
}

// Run implements [container.Source]. It ends with ctx only.
func (p *Plugin) Run(ctx context.Context, emit func(container.Event)) error {
	var worker sync.WaitGroup
	defer worker.Wait()
	worker.Go(func() { p.work(ctx) })
	backoff := p.times.minBackoff
	for first := true; ; first = false {
		synced, err := p.connect(ctx, emit)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err = p.remedy(err)
		absent := errors.Is(err, fs.ErrNotExist)
		if p.setStatus(container.Status{Err: err.Error(), Absent: absent}) {
			level := slog.LevelWarn
			if absent {
				level = slog.LevelInfo
			}
			p.log.Log(ctx, level, "not connected to NRI", "err", err)
		}
		if first && !synced { // whoever waits for what we know need not wait longer
			p.do(func() { emit(container.Event{Type: container.Synced, Source: name, At: time.Now()}) })
		}
		if synced {
			backoff = p.times.minBackoff
		}
		// Between half and all of the back-off: plugins of one runtime do not come back in step.
		wait := backoff/2 + rand.N(backoff/2+1)
		backoff = min(2*backoff, p.times.maxBackoff)
		if absent {
			wait, backoff = p.times.absentEvery, p.times.minBackoff
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// setStatus takes a new state and reports whether it differs from the one before.
func (p *Plugin) setStatus(s container.Status) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Since = p.status.Since
	if s == p.status && !s.Since.IsZero() {
		return false
	}
	s.Since = time.Now()
	p.status = s
	return true
}

// remedy says what to do about the end of a connection, keeping the error.
func (p *Plugin) remedy(err error) error {
	wrap := func(what, remedy string) error { return fmt.Errorf("%s at %s: %w; %s", what, p.socket, err, remedy) }
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return wrap("no runtime listens for NRI plugins", "containerd 2 does where its CRI plugin is on, 1.7 where its configuration turns NRI on, CRI-O from 1.30; "+
			"runtimes.nri.socket names another place")
	case errors.Is(err, fs.ErrPermission):
		return wrap("NRI does not let us in", "run stoker as root: the socket is root's alone, on purpose")
	case errors.Is(err, syscall.ECONNREFUSED):
		return wrap("nobody listens", "start the runtime; if it runs, the socket is an old one: mount its directory, not the socket itself, into stoker's container")
	case errors.Is(err, errLost):
		return wrap("NRI", "the runtime has ended, restarts, or has cut us off: look into its log for \"plugin\"")
	case errors.Is(err, errSilent):
		return wrap("NRI", "the runtime is stuck, or gave up on our first answer: look into its log for \"plugin\"")
	}
	return wrap("NRI", "look into the runtime's log for \"plugin\"")
}

// job is something for the worker, done when done is closed.
type job struct {
	f    func()
	done chan struct{}
}

// work does the jobs in their order until ctx ends.
func (p *Plugin) work(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case j := <-p.jobs:
			p.run(j)
		}
	}
}

func (p *Plugin) run(j job) {
	defer close(j.done)
	defer p.recover()
	j.f()
}

// recover is deferred where a panic would otherwise end the agent, or an event of the runtime with an error.
func (p *Plugin) recover() {
	if v := recover(); v != nil {
		p.n.panics.Add(1)
		p.log.Error("an NRI event was not understood: this is a bug in stoker", "err", v)
	}
}

// do gives a job to the worker and waits for it, as long as a runtime may be made to wait. It reports whether the worker has it.
func (p *Plugin) do(f func()) bool {
	j := job{f, make(chan struct{})}
	select {
	case p.jobs <- j:
	default:
		p.n.dropped.Add(1)
		return false
	}
	timer := time.NewTimer(p.times.hold)
	defer timer.Stop()
	select {
	case <-j.done:
	case <-timer.C:
		p.n.late.Add(1)
		p.log.Debug("an NRI event was answered before it was taken", "waited", p.times.hold)
	}
	return true
}

// dial connects to the runtime.
func (p *Plugin) dial(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", p.socket)
}

func socketPath(socket string) (string, error) {
	switch path := trimScheme(socket); {
	case path == "":
		return DefaultSocket, nil
	case !filepath.IsAbs(path):
		return "", fmt.Errorf("NRI socket %q: want the absolute path of a socket, as %s", socket, DefaultSocket)
	default:
		return path, nil
	}
}
