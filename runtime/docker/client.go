package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"

	"github.com/stoker-profiler/stoker/internal/unixsocket"
	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/internal/follow"
)

const (
	// callTimeout bounds each call about one thing. A Docker that takes longer is stuck.
	callTimeout = 2 * time.Second
	// listTimeout bounds the list of all containers.
	listTimeout = 10 * time.Second
	// maxAnswer bounds what one answer may hold in bytes: a thousand containers with long labels fit several times.
	maxAnswer = 16 << 20
	// maxEvent bounds one event in bytes: it carries the container's labels.
	maxEvent = 1 << 20
	// maxHeader bounds the header of an answer in bytes.
	maxHeader = 64 << 10
	// queueLength is how many events may wait while we are busy. Docker itself keeps 1024 for us.
	queueLength = 4096
	// secondList is when to list again after connecting.
	secondList = time.Second
	// listEvery is how often to compare with what Docker has: it skips events when we are slow, and does not say so.
	listEvery = time.Minute
	// filesEvery is how often to read the engine's files where it refuses to answer.
	filesEvery = 5 * time.Second

	minBackoff = 100 * time.Millisecond
	maxBackoff = 30 * time.Second
	// absentEvery is how often to look for a socket that does not exist. Looking costs a system call.
	absentEvery = time.Second
)

// DefaultRoot is where Docker keeps its files when nobody says otherwise.
const DefaultRoot = "/var/lib/docker"

// configFile is where Docker is told otherwise.
const configFile = "/etc/docker/daemon.json"

// systemdUnits has a link for each unit that is active.
const systemdUnits = "/run/systemd/units"

var (
	// errDormant: who connects starts Docker.
	errDormant = errors.New("systemd listens on it and would start Docker for whoever connects")
	// errTooLong is what reading an answer ends with that is longer than any honest one.
	errTooLong = errors.New("the answer is longer than any that Docker gives")
)

// Client follows one Docker engine. Make one with NewClient and call Run once.
type Client struct {
	name, address string
	root          string                         // where the engine's files are, unless its configuration says otherwise; empty when nobody knows
	config        string                         // the engine's configuration
	units         string                         // where systemd shows its active units
	user          func(net.Conn) (string, error) // whose the engine is; tests say that theirs is root's
	log           *slog.Logger
	loop          *follow.Loop[events.Message, listed]
	n             counts
	times         times
}

// times are fixed; tests shorten them.
type times struct {
	call, list    time.Duration
	answer, event int64
}

type counts struct {
	malformed, describeErrors, fileErrors, tooMany atomic.Uint64
}

// Stats are counts since the start.
type Stats struct {
	Connects       uint64 // connections that were made
	Events         uint64 // events received
	Overflows      uint64 // events thrown away because too many waited; each time everything is listed again
	Malformed      uint64 // events and containers that could not be understood
	Lists          uint64 // comparisons with all that Docker has
	ListErrors     uint64 // such that failed
	DescribeErrors uint64 // questions about a container that were not answered; the next list answers them
	FileErrors     uint64 // files of the engine that could not be read, where it refused to answer
	TooMany        uint64 // containers that were left out because there were too many
}

var (
	_ container.Source         = (*Client)(nil)
	_ container.StatusReporter = (*Client)(nil)
	_ container.CountReporter  = (*Client)(nil)
)

// NewClient returns a source that follows the Docker engine behind a socket. A nil log discards.
func NewClient(name, address string, log *slog.Logger) *Client {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	log = log.With("source", name)
	c := &Client{name: name, address: address, units: systemdUnits, user: userOf, log: log, times: times{callTimeout, listTimeout, maxAnswer, maxEvent},
		loop: follow.New[events.Message, listed](follow.Config{
			Source: name, Engine: "Docker", Address: address, Queue: queueLength, Asking: asking, Log: log,
			Times: follow.Times{SecondList: secondList, ListEvery: listEvery, MinBackoff: minBackoff, MaxBackoff: maxBackoff,
				AbsentEvery: absentEvery, IdleEvery: filesEvery},
		})}
	if c.usual() {
		c.root, c.config = DefaultRoot, configFile // where another engine's files are, nobody told
	}
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
		Connects: l.Connects, Events: l.Events, Overflows: l.Overflows, Malformed: c.n.malformed.Load(), Lists: l.Lists, ListErrors: l.ListErrors,
		DescribeErrors: c.n.describeErrors.Load(), FileErrors: c.n.fileErrors.Load(), TooMany: c.n.tooMany.Load(),
	}
}

// Counts implements [container.CountReporter].
func (c *Client) Counts() map[string]uint64 {
	s := c.Stats()
	return map[string]uint64{
		"connect": s.Connects, "event": s.Events, "overflow": s.Overflows, "malformed": s.Malformed, "list": s.Lists, "list_failed": s.ListErrors,
		"describe_failed": s.DescribeErrors, "file_failed": s.FileErrors, "too_many": s.TooMany,
	}
}

// Run implements [container.Source]. It ends with ctx only: that Docker is not there, or does not answer, is what Status tells.
func (c *Client) Run(ctx context.Context, emit func(container.Event)) error {
	return c.loop.Run(ctx, emit, newTable(c))
}

// dormant reports whether the socket is one of systemd's and Docker behind it is not running: connecting would start it.
func (c *Client) dormant() bool {
	active := func(unit string) bool {
		_, err := os.Lstat(filepath.Join(c.units, "invocation:"+unit))
		return err == nil
	}
	return c.usual() && active("docker.socket") && !active("docker.service")
}

// usual reports whether the socket is the one of systemd's unit docker.socket.
func (c *Client) usual() bool {
	return c.address == DefaultAddress || c.address == strings.TrimPrefix(DefaultAddress, "/var")
}

// connection is one connection, and what is received and read over it.
type connection = follow.Connection[events.Message, listed]

// Connect implements [follow.Engine].
func (t *table) Connect(ctx context.Context) (_ connection, err error) {
	c := t.Client
	if c.dormant() {
		return connection{}, errDormant
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: c.times.call}).DialContext(ctx, "unix", c.address)
	}
	// Ask the kernel first: its answer (no socket, no permission, nobody listens) is clearer than the library's.
	probe, err := dial(ctx, "", "")
	if err != nil {
		return connection{}, err
	}
	t.user, err = c.user(probe)
	if err := errors.Join(err, probe.Close()); err != nil {
		return connection{}, err
	}
	transport := &http.Transport{
		DialContext: dial, DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
		DisableKeepAlives: true, // what an idle connection receives net/http writes to the log, every time
	}
	ctx, cancel := context.WithCancel(ctx)
	free := func() {
		cancel()
		transport.CloseIdleConnections()
	}
	defer func() {
		if err != nil {
			free()
		}
	}()
	// Nothing from DOCKER_HOST and the like: they are for people. The version of the API is what both sides know, asked for
	// at each connection: an engine may have been replaced.
	api, err := client.New(client.WithHTTPClient(&http.Client{Transport: bounded{transport, c.times.answer, c.times.event}}), client.WithUserAgent("stoker"))
	if err != nil {
		return connection{}, err
	}
	call, cancelCall := context.WithTimeout(ctx, c.times.call)
	_, err = api.Ping(call, client.PingOptions{NegotiateAPIVersion: true})
	cancelCall()
	if err != nil {
		return connection{}, fmt.Errorf("ping: %w", err)
	}
	// A stream that hangs is silent; its beginning is not.
	since := time.Now() // Docker answers before it subscribes: what happens in between comes from its memory
	late := time.AfterFunc(c.times.call, cancel)
	stream := api.Events(ctx, client.EventsListOptions{
		Since: fmt.Sprintf("%d.%09d", since.Unix(), since.Nanosecond()),
		Filters: make(client.Filters).Add("type", string(events.ContainerEventType)).Add("event", string(events.ActionCreate), string(events.ActionStart),
			string(events.ActionDie), string(events.ActionDestroy), string(events.ActionRename), string(events.ActionPause), string(events.ActionUnPause)),
	})
	if !late.Stop() {
		return connection{}, fmt.Errorf("subscribe to events: %w", context.DeadlineExceeded)
	}
	t.api = api
	return connection{
		Receive: func(_ context.Context, take func(events.Message)) error { return receive(stream, take) },
		List: func(ctx context.Context) (listed, error) {
			l := t.list(ctx, api, "")
			return l, l.err
		},
		Close: free,
		About: []any{"api", api.ClientVersion()},
	}, nil
}

// userOf says whose the engine at the other end is: a user id in decimal, empty for root.
func userOf(c net.Conn) (string, error) {
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return "", fmt.Errorf("learn whose engine listens at %s: it is no unix socket", c.RemoteAddr())
	}
	peer, err := unixsocket.PeerOf(conn)
	if err != nil || peer.UID == 0 {
		return "", err
	}
	return strconv.FormatUint(uint64(peer.UID), 10), nil
}

// receive drains the stream: what we do not take in time, Docker skips.
func receive(stream client.EventsResult, take func(events.Message)) error {
	for {
		select {
		case m := <-stream.Messages:
			take(m)
		case err, ok := <-stream.Err:
			if !ok || err == nil {
				err = io.EOF
			}
			return fmt.Errorf("receive events: %w", err)
		}
	}
}

// barred reports whether Docker, or the kernel, refuses to answer.
func barred(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errdefs.IsPermissionDenied(err) || errdefs.IsUnauthorized(err)
}

// Explain implements [follow.Engine].
func (c *Client) Explain(err error) (follow.Trouble, error) {
	trouble := follow.Broken
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, errDormant):
		trouble = follow.Absent
	case barred(err):
		trouble = follow.Barred
	}
	return trouble, c.remedy(err)
}

// Idle implements [follow.Idler]: where Docker refuses to answer, its files tell.
func (t *table) Idle(why error) error {
	if t.root == "" {
		return why
	}
	n, err := t.readFiles()
	if err != nil {
		return fmt.Errorf("%w; and its files cannot be read: %w", why, err)
	}
	t.log.Debug("the engine's files were read", "containers", n)
	return fmt.Errorf("%w; until then names and labels come late, from its files below %s", why, t.dataRoot())
}

// remedy says what to do about an error, keeping it.
func (c *Client) remedy(err error) error {
	wrap := func(what, remedy string) error { return fmt.Errorf("%s at %s: %w; %s", what, c.address, err, remedy) }
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errDormant):
		return wrap("Docker does not run", "it is followed as soon as it does")
	case errors.Is(err, fs.ErrNotExist):
		return wrap("no Docker", "start it, or set runtimes.docker.address to its socket or to off")
	case errors.Is(err, fs.ErrPermission):
		return wrap("Docker does not let us in", "run stoker as root, or as a member of the group docker")
	case errdefs.IsPermissionDenied(err) || errdefs.IsUnauthorized(err):
		return wrap("Docker refuses to answer", "have its authorization plugin allow GET of /_ping, /events and /containers/json")
	case errors.Is(err, syscall.ECONNREFUSED):
		return wrap("nobody listens", "start Docker; if it runs, the socket is an old one: mount its directory, not the socket itself, into stoker's container")
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded):
		return wrap("Docker does not answer", "it is stuck or overloaded: look into its log, restart it if need be; containers go on meanwhile")
	case errors.Is(err, errTooLong):
		return wrap("this is not Docker", "set runtimes.docker.address to Docker's socket")
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE):
		return wrap("the connection to Docker was lost", "it is restarting, or has ended: look into its log")
	}
	return wrap("Docker", "look into its log; if something else listens there, set runtimes.docker.address to Docker's socket")
}

// bounded bounds what is read of answers: a whole one, or one line of the stream of events.
type bounded struct {
	http.RoundTripper
	answer, event int64
}

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := b.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	body := &limited{ReadCloser: answer.Body, max: b.answer, left: b.answer}
	if strings.HasSuffix(r.URL.Path, "/events") {
		body.max, body.left, body.perLine = b.event, b.event, true
	}
	answer.Body = body
	return answer, nil
}

// limited ends with errTooLong.
type limited struct {
	io.ReadCloser
	max, left int64
	perLine   bool // each line may have max bytes
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, errTooLong
	}
	if int64(len(p)) > l.left {
		p = p[:l.left]
	}
	n, err := l.ReadCloser.Read(p)
	l.left -= int64(n)
	if l.perLine {
		if i := bytes.LastIndexByte(p[:n], '\n'); i >= 0 {
			l.left = l.max - int64(n-i-1)
		}
	}
	return n, err
}
