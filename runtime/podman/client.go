package podman

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/internal/follow"
)

const (
	// callTimeout bounds each call about one thing. A service that takes longer is stuck, or waits for a container that starts.
	callTimeout = 2 * time.Second
	// listTimeout bounds the list of all containers, which waits while one starts.
	listTimeout = 10 * time.Second
	// queueLength is how many events may wait while we are busy.
	queueLength = 4096
	// asking is how many questions are under way at a time.
	asking = 4
	// secondList is when to list again after connecting.
	secondList = time.Second
	// listEvery is how often to compare with what there is.
	listEvery = time.Minute
	// lookEvery is how often to look for new containers where no service says that there are any. One with a cgroup of its own
	// is found at once, by its cgroup; this is for the others.
	lookEvery = 10 * time.Second
	// serviceEvery is how often to look whether a service has come up. Looking costs some system calls.
	serviceEvery = time.Second
	// again is when to ask a service again that does not work.
	again = 30 * time.Second
	// processWait is how long a container may take from its cgroup to its first process.
	processWait = 2 * time.Second
	// readTimeout bounds reading a user's files, which may be in a file system that hangs.
	readTimeout = 20 * time.Second

	minBackoff = 100 * time.Millisecond
	maxBackoff = 30 * time.Second
	// absentEvery is how often to look for a Podman where there is none. Looking costs some system calls.
	absentEvery = time.Second
)

var (
	// errService ends a connection to the files: a service may have come up.
	errService = errors.New("a service has come up")
	// errServiceEnded is how a connection to a service ends: it leaves when nobody needs it. The files go on.
	errServiceEnded = errors.New("the service has ended")
)

// client follows the Podman of one user.
type client struct {
	name    string
	uid     uint32
	address string // of the service's socket
	usual   bool   // address is where systemd would listen
	units   string // where that user's systemd shows its active units
	places  []string
	log     *slog.Logger
	h       cgroupfs.Hierarchy
	procs   *processes
	notes   *notes
	n       *counts
	times   times
	loop    *follow.Loop[event, listed]

	hints  chan conmon
	seen   atomic.Bool // it has, or had, a container
	failed atomic.Bool // the service did not list
	// without says why its files are followed though a service is there; nil: they are not, or there is none.
	without atomic.Pointer[string]
	broken  time.Time // when the service did not work; Run's goroutine owns it
}

// times are fixed; tests shorten them.
type times struct {
	call, list, look, service, again, process time.Duration
	answer                                    int64
	event                                     int
}

type counts struct {
	malformed, describeErrors, unlocated, users, hints atomic.Uint64
}

// userSocket is where a user's service listens.
var userSocket = regexp.MustCompile(`^/run/user/([0-9]{1,10})/`)

// newClient returns a client. An empty name is made of the user.
func newClient(cfg Config, uid uint32, address string, procs *processes, n *counts) *client {
	c := &client{
		name: "podman", uid: uid, address: address, h: cfg.Hierarchy, procs: procs, n: n, notes: newNotes(uid), hints: make(chan conmon, queueLength),
		times: times{callTimeout, listTimeout, lookEvery, serviceEvery, again, processWait, maxAnswer, maxLine},
	}
	run := filepath.Join(cfg.run, "user", strconv.FormatUint(uint64(uid), 10))
	if uid == 0 {
		run = cfg.run
		c.places = []string{filepath.Join(run, "libpod"), "/var/lib/containers/storage/overlay-containers"}
	} else {
		c.name += ":" + user(uid)
		c.places = []string{filepath.Join(run, "libpod")}
	}
	c.units = filepath.Join(run, "systemd/units")
	if usual := filepath.Join(run, "podman/podman.sock"); address == "" || address == usual {
		c.address, c.usual = usual, true
	}
	c.log = cfg.Log.With("source", c.name)
	c.loop = follow.New[event, listed](follow.Config{
		Source: c.name, Engine: "Podman", Address: c.address, Optional: true, Queue: queueLength, Asking: asking, Log: c.log,
		Times: follow.Times{SecondList: secondList, ListEvery: listEvery, MinBackoff: minBackoff, MaxBackoff: maxBackoff, AbsentEvery: absentEvery},
	})
	return c
}

// owner is the user of whom an address is: who owns the socket or, while it is not there, its directory.
func owner(address string) uint32 {
	for _, path := range []string{address, filepath.Dir(address)} {
		if info, err := os.Stat(path); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				return st.Uid
			}
		}
	}
	if m := userSocket.FindStringSubmatch(address); m != nil {
		if uid, err := strconv.ParseUint(m[1], 10, 32); err == nil {
			return uint32(uid)
		}
	}
	return 0
}

// hint tells of a container that is new. It does not block: what does not fit is found by the next look.
func (c *client) hint(m conmon) {
	c.seen.Store(true)
	select {
	case c.hints <- m:
	default:
		c.n.hints.Add(1)
	}
}

func (c *client) run(ctx context.Context, emit func(container.Event)) error {
	return c.loop.Run(ctx, emit, newTable(c))
}

// serving reports whether a service is there to be asked. Whoever connects to a socket of systemd's has Podman started, and
// who stays connected keeps it running: a profiler must not.
func (c *client) serving() bool {
	if info, err := os.Stat(c.address); err != nil || info.Mode().Type() != fs.ModeSocket {
		return false
	}
	if !c.usual {
		return true
	}
	if _, err := os.Lstat(filepath.Join(c.units, "invocation:podman.socket")); err == nil {
		return false
	}
	if c.uid == 0 {
		return true
	}
	// A user's service manager that shows no units is one that we know nothing about.
	if _, err := os.Stat(filepath.Join(filepath.Dir(c.units), "private")); err == nil {
		_, err = os.Stat(c.units)
		return err == nil
	}
	return true
}

// there reports whether this user has ever used Podman, as far as that can be seen at once.
func (c *client) there() bool {
	if c.seen.Load() {
		return true
	}
	for _, path := range c.places {
		if _, err := os.Stat(path); err == nil {
			return true
		}
	}
	return false
}

type connection = follow.Connection[event, listed]

// Connect implements [follow.Engine]. There is always something to follow: where no service answers, the processes and files.
func (t *table) Connect(ctx context.Context) (connection, error) {
	t.api, t.said = nil, newKnown()
	if t.failed.Swap(false) {
		t.broken = time.Now()
	}
	serving := t.serving()
	if !serving {
		t.without.Store(nil)
	}
	if serving && time.Since(t.broken) > t.times.again {
		conn, err := t.connectService(ctx)
		if err == nil || ctx.Err() != nil {
			t.without.Store(nil)
			return conn, err
		}
		t.broken = time.Now()
		_, err = t.Explain(err)
		why := "Podman's service is not followed; names and labels come from its files: " + err.Error()
		if old := t.without.Swap(&why); old == nil { // said once, until it works; ps shows the last
			t.log.Warn("Podman's service is not followed; names and labels come from its files", "err", err)
		}
	}
	if !serving && !t.there() {
		return connection{}, fmt.Errorf("%s: %w", t.address, fs.ErrNotExist)
	}
	return connection{Receive: t.watch, List: t.list}, nil
}

func (t *table) connectService(ctx context.Context) (connection, error) {
	a, err := connectAPI(ctx, t.address, t.uid, t.times)
	if err != nil {
		return connection{}, err
	}
	body, err := a.events(ctx)
	if err != nil {
		a.close()
		return connection{}, err
	}
	t.api = a
	t.log.Info("Podman's service is followed", "address", t.address, "api", a.version)
	return connection{
		Receive: func(ctx context.Context, take func(event)) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			stop := context.AfterFunc(ctx, func() { body.Close() })
			defer stop()
			hints := make(chan struct{})
			go func() {
				defer close(hints)
				t.receiveHints(ctx, take)
			}()
			err := parseEvents(body, a.event, func(e logEvent) { take(event{said: e}) }, t.complain)
			cancel()
			<-hints
			if errors.Is(err, errTooLong) {
				t.failed.Store(true)
			}
			if errors.Is(err, io.EOF) && !t.failed.Load() {
				return errServiceEnded
			}
			return fmt.Errorf("receive events: %w", err)
		},
		List: func(ctx context.Context) (listed, error) {
			l, err := t.list(ctx)
			if err != nil {
				return l, err
			}
			ctx, cancel := context.WithTimeout(ctx, t.times.list)
			defer cancel()
			if l.said, err = a.list(ctx, ""); err != nil {
				t.failed.Store(true)
				body.Close() // the files have to do
			}
			return l, err
		},
		Close: func() {
			body.Close()
			a.close()
		},
	}, nil
}

func (t *table) receiveHints(ctx context.Context, take func(event)) {
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-t.hints:
			take(event{hint: m})
		}
	}
}

// watch is what there is to receive where no service answers.
func (t *table) watch(ctx context.Context, take func(event)) error {
	look := time.NewTicker(t.times.look)
	defer look.Stop()
	service := time.NewTicker(t.times.service)
	defer service.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-t.hints:
			take(event{hint: m})
		case <-look.C:
			take(event{look: true})
		case <-service.C:
			if t.serving() && time.Since(t.broken) > t.times.again {
				return errService
			}
		}
	}
}

// Explain implements [follow.Engine].
func (c *client) Explain(err error) (follow.Trouble, error) {
	wrap := func(what, remedy string) error { return fmt.Errorf("%s at %s: %w; %s", what, c.address, err, remedy) }
	switch {
	case errors.Is(err, errService):
		return follow.Over, err
	case errors.Is(err, errServiceEnded):
		c.log.Info("Podman's service has ended; its files are followed")
		return follow.Over, err
	case errors.Is(err, fs.ErrNotExist):
		return follow.Absent, wrap("no Podman", "it is followed as soon as there is one; or set runtimes.podman.address to off")
	case errors.Is(err, fs.ErrPermission):
		return follow.Broken, wrap("Podman does not let us in", "run stoker as root")
	case errors.Is(err, errNotOwner):
		return follow.Broken, wrap("Podman's service is not asked", "the socket has to belong to the user whose containers it tells of")
	case errors.Is(err, errNotPodman) || errors.Is(err, errTooLong):
		return follow.Broken, wrap("this is not Podman", "set runtimes.podman.address to its service's socket")
	case errors.Is(err, syscall.ECONNREFUSED):
		return follow.Broken, wrap("nobody listens", "the socket is one that an earlier service left")
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded):
		return follow.Broken, wrap("Podman's service does not answer", "it is stuck, or a container takes long to start: look into its log; containers go on meanwhile")
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE):
		return follow.Broken, wrap("the connection to Podman's service was lost", "it has ended; its files are read")
	}
	return follow.Broken, wrap("Podman", "look into its log")
}

// complain counts what could not be understood.
func (c *client) complain(err error) {
	c.n.malformed.Add(1)
	c.log.Debug("part of what Podman says is not understood", "err", err)
}
