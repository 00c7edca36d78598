package crio

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/internal/follow"
	"github.com/stoker-profiler/stoker/runtime/internal/rpc"
)

const (
	// callTimeout bounds each call about one thing. A CRI-O that takes longer is stuck.
	callTimeout = 2 * time.Second
	// listTimeout bounds the lists of all containers and pods together.
	listTimeout = 10 * time.Second
	// maxMessage bounds what one answer may hold in bytes: as much as the kubelet takes.
	maxMessage = 16 << 20
	// listEvery is how often to list without a hint. The kubelet does it every second.
	listEvery = 10 * time.Second
	// listGap is how long after the beginning of one list the next begins at the earliest, however many containers start.
	listGap = 250 * time.Millisecond
	// hintDelay is how long after a hint to list: a cgroup is made about a tenth of a second before CRI-O lists its container.
	// Where that was too early, it is doubled.
	hintDelay = 100 * time.Millisecond
	// hintFor is how long a hint is worth lists: afterwards a container that was seen has no more samples to name.
	hintFor = 30 * time.Second
	// secondList is when to list again after connecting.
	secondList = time.Second
	// asking is how many questions are under way at a time.
	asking = 4

	minBackoff = 100 * time.Millisecond
	maxBackoff = 30 * time.Second
	// absentEvery is how often to look for a socket that does not exist. Looking costs a system call.
	absentEvery = time.Second

	// hintQueue is how many hints may wait while we are busy. More than that are found by the next list.
	hintQueue = 1024
)

// errNotCRIO: containerd, for one, answers the same calls.
var errNotCRIO = errors.New("another runtime answers")

// Client follows one CRI-O. Make one with NewClient and call Run once.
type Client struct {
	name, address string
	h             cgroupfs.Hierarchy
	log           *slog.Logger
	hints         chan hint
	n             counts
	times         times
	loop          *follow.Loop[hint, listed]
	api           cri.RuntimeServiceClient // of the connection that is open
}

// times are fixed; tests shorten them.
type times struct{ call, list, listGap, hint, hinted time.Duration }

type counts struct {
	malformed, describeErrors, unlocated, tooMany atomic.Uint64
}

// Stats are counts since the start.
type Stats struct {
	Connects       uint64 // connections that were made
	Hints          uint64 // containers that others found first, and asked us about
	Malformed      uint64 // containers, pods and statuses that could not be understood
	Lists          uint64 // comparisons with all that CRI-O has
	ListErrors     uint64 // such that failed
	DescribeErrors uint64 // containers whose status could not be read: their environment is not known
	Unlocated      uint64 // first processes whose cgroup is not their container's, mostly because they have ended
	TooMany        uint64 // containers that were left out because there were too many
}

var (
	_ container.Source         = (*Client)(nil)
	_ container.StatusReporter = (*Client)(nil)
	_ container.CountReporter  = (*Client)(nil)
	_ container.Hinted         = (*Client)(nil)
)

// NewClient returns a source that follows the CRI-O behind a socket. A nil log discards.
func NewClient(name, address string, h cgroupfs.Hierarchy, log *slog.Logger) *Client {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c := &Client{name: name, address: address, h: h, log: log.With("source", name), hints: make(chan hint, hintQueue),
		times: times{callTimeout, listTimeout, listGap, hintDelay, hintFor}}
	c.loop = follow.New[hint, listed](follow.Config{
		Source: name, Engine: "CRI-O", Address: address, Queue: hintQueue, Asking: asking, Log: c.log,
		Times: follow.Times{SecondList: secondList, ListEvery: listEvery, MinBackoff: minBackoff, MaxBackoff: maxBackoff, AbsentEvery: absentEvery},
	})
	return c
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
		Connects: l.Connects, Hints: l.Events, Malformed: c.n.malformed.Load(), Lists: l.Lists, ListErrors: l.ListErrors,
		DescribeErrors: c.n.describeErrors.Load(), Unlocated: c.n.unlocated.Load(), TooMany: c.n.tooMany.Load(),
	}
}

// Counts implements [container.CountReporter].
func (c *Client) Counts() map[string]uint64 {
	s := c.Stats()
	return map[string]uint64{
		"connect": s.Connects, "hint": s.Hints, "malformed": s.Malformed, "list": s.Lists, "list_failed": s.ListErrors,
		"describe_failed": s.DescribeErrors, "cgroup_not_found": s.Unlocated, "too_many": s.TooMany,
	}
}

// Hint implements [container.Hinted].
func (c *Client) Hint(found container.Container) {
	if found.Runtime != runtimeName || !validID(found.ID) {
		return
	}
	select {
	case c.hints <- hint{found, time.Now().Add(c.times.hinted)}:
	default: // the next list finds it
	}
}

// Run implements [container.Source]. It ends with ctx only: that CRI-O is not there, or does not answer, is what Status tells.
func (c *Client) Run(ctx context.Context, emit func(container.Event)) error {
	return c.loop.Run(ctx, emit, newTable(c))
}

// Connect implements [follow.Engine].
func (t *table) Connect(ctx context.Context) (follow.Connection[hint, listed], error) {
	var none follow.Connection[hint, listed]
	conn, err := rpc.Dial(ctx, t.address, t.times.call, maxMessage)
	if err != nil {
		return none, err
	}
	api := cri.NewRuntimeServiceClient(conn)
	call, cancel := context.WithTimeout(ctx, t.times.call)
	defer cancel()
	version, err := ask(call, api)
	if err != nil {
		return none, errors.Join(err, conn.Close())
	}
	t.api = api
	return follow.Connection[hint, listed]{
		Receive: t.receive, List: t.list, Close: func() { _ = conn.Close() }, // it was ours alone
		About: []any{"version", version},
	}, nil
}

// ask makes sure that it is CRI-O, and returns which.
func ask(ctx context.Context, api cri.RuntimeServiceClient) (version string, err error) {
	v, err := api.Version(ctx, &cri.VersionRequest{})
	if err != nil {
		return "", fmt.Errorf("ask for the version: %w", err)
	}
	if v.GetRuntimeName() != runtimeName {
		return "", fmt.Errorf("%w: %.80q", errNotCRIO, v.GetRuntimeName())
	}
	return fmt.Sprintf("%.40s", v.GetRuntimeVersion()), nil
}

// Version asks the CRI-O behind a socket which one it is. It takes as long as ctx allows.
func Version(ctx context.Context, address string) (string, error) {
	conn, err := rpc.Dial(ctx, address, callTimeout, maxMessage)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return ask(ctx, cri.NewRuntimeServiceClient(conn))
}

// receive gives hints to the loop: CRI-O itself has no stream that we could follow. That it is gone shows in the next list.
func (t *table) receive(ctx context.Context, take func(hint)) error {
	for {
		select {
		case h := <-t.hints:
			take(h)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Explain implements [follow.Engine].
func (t *table) Explain(err error) (follow.Trouble, error) {
	wrap := func(what, remedy string) error { return fmt.Errorf("%s at %s: %w; %s", what, t.address, err, remedy) }
	code := status.Code(err)
	switch {
	case err == nil:
		return follow.Broken, nil
	case errors.Is(err, fs.ErrNotExist):
		return follow.Absent, wrap("no CRI-O", "start it, or set runtimes.crio.address to its socket or to off")
	case errors.Is(err, fs.ErrPermission):
		return follow.Barred, wrap("CRI-O does not let us in", "run stoker as root")
	case errors.Is(err, errNotCRIO):
		return follow.Broken, wrap("this is not CRI-O", "set runtimes.crio.address to CRI-O's socket, or to off; containerd is followed by runtimes.containerd.address")
	case errors.Is(err, syscall.ECONNREFUSED):
		return follow.Broken, wrap("nobody listens", "start CRI-O; if it runs, the socket is an old one: mount its directory, not the socket itself, into stoker's container")
	case code == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded):
		return follow.Broken, wrap("CRI-O does not answer", "it is stuck or overloaded: look into its log, restart it if need be; containers go on meanwhile")
	case code == codes.Unimplemented:
		return follow.Broken, wrap("this is not CRI-O", "it does not speak version v1 of the CRI: stoker needs CRI-O 1.26 or later")
	case code == codes.ResourceExhausted:
		return follow.Broken, wrap("this is not CRI-O", "its answer is longer than any that a kubelet would take; set runtimes.crio.address to CRI-O's socket")
	case code == codes.Unavailable:
		return follow.Broken, wrap("the connection to CRI-O was lost", "it is restarting, or has ended: look into its log")
	}
	return follow.Broken, wrap("CRI-O", "look into its log")
}
