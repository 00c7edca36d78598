package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/services/containers/v1"
	eventsservice "github.com/containerd/containerd/api/services/events/v1"
	"github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
)

const (
	// callTimeout bounds each call about one thing. A containerd that takes longer is stuck.
	callTimeout = 2 * time.Second
	// listTimeout bounds the lists of one namespace: containerd asks the shim of each task for its state.
	listTimeout = 10 * time.Second
	// maxMessage bounds what one answer may hold: the tasks of a namespace, or one record with its spec.
	maxMessage = 16 << 20
	// queueLength is how many events may wait while we are busy. A thousand containers that start at once make about four
	// thousand; beyond that we list, which costs less than keeping up.
	queueLength = 4096
	// secondList is when to list again after connecting: containerd adds a subscriber some time after it said yes.
	secondList = time.Second
	// listEvery is how often to compare with what containerd has.
	listEvery = time.Minute

	minBackoff = 100 * time.Millisecond
	maxBackoff = 30 * time.Second
	// absentEvery is how often to look for a socket that does not exist. Looking costs a system call.
	absentEvery = time.Second
)

// filters name the topics that are wanted, one string each: they are OR-ed.
var filters = []string{
	`topic=="/containers/create"`, `topic=="/containers/update"`, `topic=="/containers/delete"`,
	`topic=="/tasks/create"`, `topic=="/tasks/start"`, `topic=="/tasks/exit"`, `topic=="/tasks/delete"`,
}

// Client follows one containerd. Make one with NewClient and call Run once.
type Client struct {
	name, address string
	h             cgroupfs.Hierarchy
	log           *slog.Logger
	optional      bool // nobody asked for this socket: that it is absent is not worth a warning
	status        state
	n             counts
	times         times
	// first is called once: when all that exists was told, or when it is clear that nothing can be (no socket, no permission).
	// nil says Synced in the second case.
	first func(told bool)
}

// times are fixed; tests shorten them.
type times struct {
	call, list, secondList, listEvery, minBackoff, absentEvery time.Duration
	queue                                                      int
}

type counts struct {
	connects, events, overflows, malformed, lists, listErrors, describeErrors, unlocated, late atomic.Uint64
}

// Stats are counts since the start.
type Stats struct {
	Connects       uint64 // connections that were made
	Events         uint64 // events received
	Overflows      uint64 // events thrown away because too many waited; each time everything is listed again
	Malformed      uint64 // events, specs and metadata that could not be read
	Lists          uint64 // comparisons with all that containerd has
	ListErrors     uint64 // such that failed
	DescribeErrors uint64 // containers whose record could not be read in time; the next list describes them
	Unlocated      uint64 // first processes whose cgroup could not be found, mostly because they had ended already
	Late           uint64 // containers whose record was read after their end
}

var (
	_ container.Source         = (*Client)(nil)
	_ container.StatusReporter = (*Client)(nil)
	_ container.CountReporter  = (*Client)(nil)
)

// NewClient returns a source that follows the containerd behind a socket. A nil log discards.
func NewClient(name, address string, h cgroupfs.Hierarchy, log *slog.Logger) *Client {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Client{name: name, address: address, h: h, log: log.With("source", name),
		times: times{callTimeout, listTimeout, secondList, listEvery, minBackoff, absentEvery, queueLength}}
}

// Name implements [container.Source].
func (c *Client) Name() string { return c.name }

// Address is the path of the socket.
func (c *Client) Address() string { return c.address }

// Status implements [container.StatusReporter].
func (c *Client) Status() container.Status {
	st, _ := c.status.get()
	return st
}

// Stats may be called at any time.
func (c *Client) Stats() Stats {
	return Stats{
		Connects: c.n.connects.Load(), Events: c.n.events.Load(), Overflows: c.n.overflows.Load(), Malformed: c.n.malformed.Load(), Lists: c.n.lists.Load(),
		ListErrors: c.n.listErrors.Load(), DescribeErrors: c.n.describeErrors.Load(), Unlocated: c.n.unlocated.Load(), Late: c.n.late.Load(),
	}
}

// Counts implements [container.CountReporter].
func (c *Client) Counts() map[string]uint64 {
	s := c.Stats()
	return map[string]uint64{
		"connect": s.Connects, "event": s.Events, "overflow": s.Overflows, "malformed": s.Malformed, "list": s.Lists, "list_failed": s.ListErrors,
		"describe_failed": s.DescribeErrors, "cgroup_not_found": s.Unlocated, "described_late": s.Late,
	}
}

// Run implements [container.Source]. It ends with ctx only: that containerd is not there, or does not answer, is what Status
// tells.
func (c *Client) Run(ctx context.Context, emit func(container.Event)) error {
	t := newTable(c, emit)
	backoff := c.times.minBackoff
	for {
		synced, err := c.connect(ctx, t)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err = c.remedy(err)
		absent := errors.Is(err, fs.ErrNotExist)
		if c.status.set(false, err) {
			level := slog.LevelWarn
			if absent && c.optional {
				level = slog.LevelDebug // most machines have one containerd, not one at each usual place
			}
			c.log.Log(ctx, level, "containerd is not followed", "err", err)
		}
		if absent || errors.Is(err, fs.ErrPermission) {
			t.settled(false) // whoever waits for the first list need not wait for us
		}
		if synced {
			backoff = c.times.minBackoff
		}
		// Between half and all of the back-off: agents of many nodes, or sources of many sockets, do not march in step.
		wait := backoff/2 + rand.N(backoff/2+1)
		backoff = min(2*backoff, maxBackoff)
		if absent {
			wait, backoff = c.times.absentEvery, c.times.minBackoff
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// api is the part of containerd's API that is used.
type api struct {
	namespaces namespaces.NamespacesClient
	containers containers.ContainersClient
	tasks      tasks.TasksClient
	events     eventsservice.EventsClient
}

// inNamespace makes calls about the objects of a namespace.
func inNamespace(ctx context.Context, namespace string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "containerd-namespace", namespace)
}

// connect follows containerd until the connection is lost. synced tells whether all that it has was told at least once.
func (c *Client) connect(ctx context.Context, t *table) (synced bool, err error) {
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: c.times.call}).DialContext(ctx, "unix", c.address)
	}
	// Ask the kernel first: its answer (no socket, no permission, nobody listens) is clearer than gRPC's.
	probe, err := dial(ctx, "")
	if err != nil {
		return false, err
	}
	if err := probe.Close(); err != nil {
		return false, err
	}
	conn, err := grpc.NewClient("passthrough:///"+c.address, grpc.WithContextDialer(dial), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)), grpc.WithDisableServiceConfig(), grpc.WithAuthority("localhost"))
	if err != nil {
		return false, err
	}
	defer conn.Close()
	a := &api{namespaces.NewNamespacesClient(conn), containers.NewContainersClient(conn), tasks.NewTasksClient(conn), eventsservice.NewEventsClient(conn)}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	// A stream that hangs is silent; a call that hangs ends.
	call, cancelCall := context.WithTimeout(ctx, c.times.call)
	_, err = a.namespaces.List(call, &namespaces.ListNamespacesRequest{})
	cancelCall()
	if err != nil {
		return false, fmt.Errorf("list namespaces: %w", err)
	}
	stream, err := a.events.Subscribe(ctx, &eventsservice.SubscribeRequest{Filters: filters})
	if err != nil {
		return false, fmt.Errorf("subscribe to events: %w", err)
	}
	c.n.connects.Add(1)
	queue := make(chan *types.Envelope, c.times.queue)
	overflow := make(chan struct{}, 1)
	ended := make(chan error, 1)
	var receiver sync.WaitGroup
	receiver.Go(func() { ended <- c.receive(stream, queue, overflow) })
	defer receiver.Wait() // after cancel
	defer cancel()
	return t.follow(ctx, a, queue, overflow, ended)
}

// receive drains the stream: what we do not take, containerd keeps in memory without bound.
func (c *Client) receive(stream eventsservice.Events_SubscribeClient, queue chan<- *types.Envelope, overflow chan<- struct{}) error {
	for {
		env, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("receive events: %w", err)
		}
		c.n.events.Add(1)
		select {
		case queue <- env:
		default:
			c.n.overflows.Add(1)
			select {
			case overflow <- struct{}{}:
			default: // it is known already
			}
		}
	}
}

// remedy says what to do about an error, keeping it.
func (c *Client) remedy(err error) error {
	wrap := func(what, remedy string) error { return fmt.Errorf("%s at %s: %w; %s", what, c.address, err, remedy) }
	code := status.Code(err)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return wrap("no containerd", "start it, or set runtimes.containerd.address to its socket or to off")
	case errors.Is(err, fs.ErrPermission):
		return wrap("containerd does not let us in", "run stoker as root, or as a member of the group that owns the socket (grpc.gid in containerd's configuration)")
	case errors.Is(err, syscall.ECONNREFUSED):
		return wrap("nobody listens", "start containerd; if it runs, the socket is an old one: mount its directory, not the socket itself, into stoker's container")
	case code == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded):
		return wrap("containerd does not answer", "it is stuck or overloaded: look into its log, restart it if need be; containers go on meanwhile")
	case code == codes.Unimplemented:
		return wrap("this is not containerd's gRPC socket", "set runtimes.containerd.address to containerd.sock, not to one that ends in .ttrpc")
	case code == codes.Unavailable:
		return wrap("the connection to containerd was lost", "it is restarting, or has ended: look into its log")
	}
	return wrap("containerd", "look into its log")
}
