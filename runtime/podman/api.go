package podman

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// This file speaks Podman's own API (libpod's) over its socket: three GETs. What it says is about names only; where a container
// is, the kernel says.

const (
	// maxAnswer bounds what one answer may hold in bytes: a thousand containers with long labels fit several times.
	maxAnswer = 16 << 20
	// maxHeader bounds the header of an answer in bytes.
	maxHeader = 64 << 10
)

var (
	// errTooLong is what reading an answer ends with that is longer than any honest one.
	errTooLong = errors.New("the answer is longer than any that Podman gives")
	// errNotOwner: somebody else listens.
	errNotOwner = errors.New("another user listens there")
	// errNotPodman: whoever listens does not know what Podman knows.
	errNotPodman = errors.New("whoever listens there is not Podman")
)

// versions are the API's, as the server calls them.
var versions = regexp.MustCompile(`^[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}$`)

// api is a connection to one service.
type api struct {
	client  *http.Client
	version string
	call    time.Duration
	answer  int64 // bytes
	event   int   // bytes
}

// dial connects to a socket on which a process of that user, or of root, listens: a socket's path may be another's by now.
func dial(ctx context.Context, address string, uid uint32) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", address)
	if err != nil {
		return nil, err
	}
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	var peer *unix.Ucred
	var peerErr error
	if err := raw.Control(func(fd uintptr) { peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if peerErr != nil {
		return nil, errors.Join(fmt.Errorf("ask who listens at %s: %w", address, peerErr), conn.Close())
	}
	if peer.Uid != uid && peer.Uid != 0 {
		return nil, errors.Join(fmt.Errorf("%w: user %d, not %d", errNotOwner, peer.Uid, uid), conn.Close())
	}
	return conn, nil
}

// connectAPI asks the service for its version.
func connectAPI(ctx context.Context, address string, uid uint32, t times) (*api, error) {
	a := &api{call: t.call, answer: t.answer, event: t.event, client: &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				ctx, cancel := context.WithTimeout(ctx, t.call)
				defer cancel()
				return dial(ctx, address, uid)
			},
			DisableCompression: true, MaxResponseHeaderBytes: maxHeader, ResponseHeaderTimeout: t.list,
			DisableKeepAlives: true, // what an idle connection receives net/http writes to the log, every time
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	ctx, cancel := context.WithTimeout(ctx, t.call)
	defer cancel()
	answer, err := a.get(ctx, "/libpod/_ping", nil)
	if err != nil {
		a.close()
		return nil, fmt.Errorf("ping: %w", err)
	}
	defer answer.Body.Close()
	if a.version = answer.Header.Get("Libpod-Api-Version"); !versions.MatchString(a.version) {
		a.close()
		return nil, errNotPodman
	}
	return a, nil
}

func (a *api) close() { a.client.CloseIdleConnections() }

func (a *api) get(ctx context.Context, path string, query url.Values) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "podman", Path: path, RawQuery: query.Encode()}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("User-Agent", "stoker")
	answer, err := a.client.Do(r)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		answer.Body.Close()
		return nil, fmt.Errorf("%s is answered with %q", path, answer.Status)
	}
	return answer, nil
}

func filters(f map[string][]string) url.Values {
	b, err := json.Marshal(f)
	if err != nil {
		panic(err) // texts
	}
	return url.Values{"filters": {string(b)}}
}

// list describes the containers that run, or one of them. It waits while any container starts: whoever asks has a deadline.
func (a *api) list(ctx context.Context, id string) (map[string]description, error) {
	f := map[string][]string{"status": {"running", "paused"}}
	if id != "" {
		f = map[string][]string{"id": {id}}
	}
	query := filters(f)
	query.Set("all", "true")
	answer, err := a.get(ctx, "/v"+a.version+"/libpod/containers/json", query)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(io.LimitReader(answer.Body, a.answer+1))
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	if int64(len(b)) > a.answer {
		return nil, fmt.Errorf("list containers: %w", errTooLong)
	}
	known, err := parseList(b)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	return known, nil
}

// parseList understands a list of containers (pkg/domain/entities, ListContainer).
func parseList(b []byte) (map[string]description, error) {
	var list []struct {
		ID           string `json:"Id"`
		Names        []string
		Image        string
		Labels       map[string]string
		Pod, PodName string
		IsInfra      bool
		Created      time.Time
		StartedAt    int64 // seconds
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, err
	}
	known := make(map[string]description, min(len(list), maxKnown))
	for _, c := range list {
		if !validID(c.ID) || len(known) >= maxKnown {
			continue
		}
		d := description{image: c.Image, labels: c.Labels, pod: c.Pod, podName: c.PodName, infra: c.IsInfra, created: c.Created}
		if len(c.Names) > 0 && len(c.Names[0]) <= maxName {
			d.name = c.Names[0]
		}
		if d.labels == nil {
			d.labels = map[string]string{} // known to be none
		}
		known[c.ID] = d
	}
	return known, nil
}

// events subscribes to what happens to containers. The answer's body ends with ctx.
func (a *api) events(ctx context.Context) (io.ReadCloser, error) {
	query := filters(map[string][]string{"type": {"container"}})
	query.Set("stream", "true")
	// A stream that hangs is silent; its beginning is not.
	ctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(a.call, cancel)
	answer, err := a.get(ctx, "/v"+a.version+"/libpod/events", query)
	if !late.Stop() {
		err = errors.Join(context.DeadlineExceeded, err)
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("subscribe to events: %w", err)
	}
	return &stream{answer.Body, cancel}, nil
}

// stream frees what it holds when it is closed.
type stream struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (s *stream) Close() error {
	s.cancel()
	return s.ReadCloser.Close()
}

// parseEvents reads a stream of events, one a line, until it ends. bad is told of what could not be understood.
func parseEvents(r io.Reader, maxEvent int, take func(logEvent), bad func(error)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, min(4096, maxEvent)), maxEvent)
	for lines.Scan() {
		if len(lines.Bytes()) == 0 {
			continue
		}
		e, err := parseEvent(lines.Bytes())
		if err != nil {
			bad(err)
			continue
		}
		take(e)
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return errTooLong
	case err != nil:
		return err
	}
	return io.EOF
}

// parseEvent understands an event of the API (pkg/domain/entities/events.go, Event).
func parseEvent(b []byte) (logEvent, error) {
	var e struct {
		Type, Action string
		Actor        struct {
			ID         string
			Attributes map[string]string
		}
		TimeNano int64 `json:"timeNano"`
	}
	if err := json.Unmarshal(b, &e); err != nil {
		return logEvent{}, err
	}
	out := logEvent{typ: e.Type, status: strings.ToLower(e.Action), id: e.Actor.ID, at: time.Unix(0, e.TimeNano)}
	if e.TimeNano <= 0 {
		out.at = time.Time{}
	}
	// Labels share the map with what is the event's own: a label that is called as one of these is lost in it.
	out.labels = map[string]string{}
	for name, value := range e.Actor.Attributes {
		switch name {
		case "name":
			out.name = value
		case "image":
			out.image = value
		case "podId":
			out.pod = value
		case "containerExitCode", "exitCode":
		default:
			out.labels[name] = value
		}
	}
	return out, nil
}
