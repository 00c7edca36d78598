package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/services/containers/v1"
	eventsservice "github.com/containerd/containerd/api/services/events/v1"
	"github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/internal/follow"
	"github.com/stoker-profiler/stoker/runtime/internal/rpc"
)

const (
	// callTimeout bounds each call about one thing. A containerd that takes longer is stuck.
	callTimeout = 2 * time.Second
	// listTimeout bounds the lists of one namespace: containerd asks the shim of each task for its state.
	listTimeout = 10 * time.Second
	// maxMessage bounds what one answer may hold: the tasks of a namespace, or one record with its spec.
	maxMessage = 16 << 20
	// maxListed bounds what all records of one list may hold, in bytes: a thousand with specs of 60 kB.
	maxListed = 64 << 20
	// maxNamespaces bounds how many namespaces are looked into.
	maxNamespaces = 1024
	// maxEvent bounds one event, in bytes. It carries an id, and at most the labels of a record.
	maxEvent = 256 << 10
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

// errTooMuch: no containerd has that much.
var errTooMuch = errors.New("too much")

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
	loop          *follow.Loop[*types.Envelope, listed]
	n             counts
	times         times
}

// times are fixed; tests shorten them.
type times struct{ call, list time.Duration }

type counts struct {
	malformed, describeErrors, unlocated, late, tooMany atomic.Uint64
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
	TooMany        uint64 // containers that were left out because there were too many
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
	log = log.With("source", name)
	return &Client{name: name, address: address, h: h, log: log, times: times{callTimeout, listTimeout},
		loop: follow.New[*types.Envelope, listed](follow.Config{
			Source: name, Engine: "containerd", Address: address, Queue: queueLength, Asking: asking, Log: log,
			Times: follow.Times{SecondList: secondList, ListEvery: listEvery, MinBackoff: minBackoff, MaxBackoff: maxBackoff, AbsentEvery: absentEvery},
		})}
}

// Name implements [container.Source].
func (c *Client) Name() string { return c.name }

// Address is the path of the socket.
func (c *Client) Address() string { return c.address }

// Status implements [container.StatusReporter].
func (c *Client) Status() container.Status { return c.loop.Status() }

// Stats may be called at any time.
func (c *Client) Stats() Stats {
	l := c.loop.Stats()
	return Stats{
		Connects: l.Connects, Events: l.Events, Overflows: l.Overflows, Malformed: c.n.malformed.Load(), Lists: l.Lists, ListErrors: l.ListErrors,
		DescribeErrors: c.n.describeErrors.Load(), Unlocated: c.n.unlocated.Load(), Late: c.n.late.Load(), TooMany: c.n.tooMany.Load(),
	}
}

// Counts implements [container.CountReporter].
func (c *Client) Counts() map[string]uint64 {
	s := c.Stats()
	return map[string]uint64{
		"connect": s.Connects, "event": s.Events, "overflow": s.Overflows, "malformed": s.Malformed, "list": s.Lists, "list_failed": s.ListErrors,
		"describe_failed": s.DescribeErrors, "cgroup_not_found": s.Unlocated, "described_late": s.Late, "too_many": s.TooMany,
	}
}

// Run implements [container.Source]. It ends with ctx only: that containerd is not there, or does not answer, is what Status
// tells.
func (c *Client) Run(ctx context.Context, emit func(container.Event)) error {
	return c.loop.Run(ctx, emit, newTable(c))
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

// connection is one connection, and what is received and read over it.
type connection = follow.Connection[*types.Envelope, listed]

// Version asks the containerd behind a socket which one it is. It takes as long as ctx allows.
func Version(ctx context.Context, address string) (string, error) {
	conn, err := rpc.Dial(ctx, address, callTimeout, maxMessage)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	v, err := version.NewVersionClient(conn).Version(ctx, &emptypb.Empty{})
	if err != nil {
		return "", fmt.Errorf("ask for the version: %w", err)
	}
	if v.GetVersion() == "" {
		return "", errors.New("it answers, and tells no version")
	}
	return fmt.Sprintf("%.40s", v.GetVersion()), nil
}

// Connect implements [follow.Engine].
func (t *table) Connect(ctx context.Context) (_ connection, err error) {
	c := t.Client
	conn, err := rpc.Dial(ctx, c.address, c.times.call, maxMessage)
	if err != nil {
		return connection{}, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	a := &api{namespaces.NewNamespacesClient(conn), containers.NewContainersClient(conn), tasks.NewTasksClient(conn), eventsservice.NewEventsClient(conn)}
	t.api = a

	// A stream that hangs is silent; a call that hangs ends.
	call, cancelCall := context.WithTimeout(ctx, c.times.call)
	_, err = a.namespaces.List(call, &namespaces.ListNamespacesRequest{})
	cancelCall()
	if err != nil {
		return connection{}, fmt.Errorf("list namespaces: %w", err)
	}
	stream, err := a.events.Subscribe(ctx, &eventsservice.SubscribeRequest{Filters: filters})
	if err != nil {
		return connection{}, fmt.Errorf("subscribe to events: %w", err)
	}
	return connection{
		Receive: func(_ context.Context, take func(*types.Envelope)) error {
			for { // what we do not take, containerd keeps in memory without bound
				env, err := stream.Recv()
				if err != nil {
					return fmt.Errorf("receive events: %w", err)
				}
				if n := proto.Size(env); n > maxEvent {
					t.complain(fmt.Errorf("an event of %d bytes, of topic %.80q", n, env.GetTopic()))
					continue
				}
				take(env)
			}
		},
		List:  func(ctx context.Context) (listed, error) { return t.list(ctx, a) },
		Close: func() { conn.Close() },
	}, nil
}

// Explain implements [follow.Engine].
func (c *Client) Explain(err error) (follow.Trouble, error) {
	trouble := follow.Broken
	switch {
	case errors.Is(err, fs.ErrNotExist):
		trouble = follow.Absent
	case errors.Is(err, fs.ErrPermission):
		trouble = follow.Barred
	}
	return trouble, c.remedy(err)
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
	case code == codes.ResourceExhausted || errors.Is(err, errTooMuch):
		return wrap("this is not containerd", "what it answers is longer than anything containerd has; set runtimes.containerd.address to containerd's socket")
	case code == codes.Unavailable:
		return wrap("the connection to containerd was lost", "it is restarting, or has ended: look into its log")
	}
	return wrap("containerd", "look into its log")
}
