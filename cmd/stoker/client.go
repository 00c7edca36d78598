package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/cmd/stoker/config"
	"github.com/stoker-profiler/stoker/sink/pprof"
	"github.com/stoker-profiler/stoker/sink/web"
)

// observer is what ps, top and record ask: the agent over its socket, or a sampler of our own. Any web.Backend is one.
type observer interface {
	Containers(ctx context.Context) ([]web.Container, error)
	Sources(ctx context.Context) ([]web.Source, error)
	Record(ctx context.Context, r web.RecordRequest, progress func(web.RecordProgress)) (*profile.Profile, error)
	Top(ctx context.Context) (web.Top, error)
}

// session is a connection to an observer.
type session struct {
	observer
	own   bool         // it is our own sampler, not the agent
	close func() error // ends it; call it once
}

// Bounds on what the agent may answer: a socket in our place may be anybody's.
const (
	maxAnswer     = 64 << 20
	maxRecording  = 256 << 20
	answerTimeout = 15 * time.Second
)

// connect reaches the agent, or starts a sampler of our own: where no agent listens, or where ownSampler asks for it.
func (a *app) connect(ctx context.Context, cfg config.Config, ownSampler bool) (*session, error) {
	if !ownSampler {
		c, err := net.DialTimeout("unix", cfg.Socket, answerTimeout)
		switch {
		case err == nil:
			c.Close()
			client := newClient(cfg.Socket)
			return &session{observer: client, close: func() error { client.http.CloseIdleConnections(); return nil }}, nil
		case errors.Is(err, fs.ErrPermission):
			return nil, machine(fmt.Errorf("use the agent's socket %s: %w", cfg.Socket, err),
				"run the command as root or as a member of the group "+web.Group)
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED):
		default:
			return nil, fmt.Errorf("connect to the agent at %s: %w; name another socket with --socket", cfg.Socket, err)
		}
	}
	log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	captureLibraries(log)
	backend, end, err := a.local(ctx, cfg, log)
	if err != nil && !ownSampler {
		return nil, fmt.Errorf("no agent listens at %s (start one with `stoker run`, or name its socket with --socket), "+
			"and a sampler of our own does not start: %w", cfg.Socket, err)
	}
	if err != nil {
		return nil, fmt.Errorf("start a sampler: %w", err)
	}
	return &session{observer: backend, own: true, close: end}, nil
}

// client asks the agent over its Unix socket. Safe for concurrent use.
type client struct {
	socket string
	http   *http.Client
}

func newClient(socket string) *client {
	return &client{socket, &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}
}

func (c *client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var text bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&text).Encode(body); err != nil {
			return nil, fmt.Errorf("%s %s: %w", method, path, err)
		}
	}
	// The host is the one that the agent's check of the Host header knows; the socket is where the request goes.
	r, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, &text)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	answer, err := c.http.Do(r)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("the agent at %s took the connection but does not answer; look at its log (journalctl -u stoker)", c.socket)
	}
	if err != nil {
		return nil, fmt.Errorf("ask the agent at %s: %w", c.socket, err)
	}
	if answer.StatusCode/100 == 2 {
		return answer, nil
	}
	defer answer.Body.Close()
	refusal := &web.Error{}
	text.Reset()
	if _, err := io.Copy(&text, io.LimitReader(answer.Body, 1<<20)); err != nil {
		return nil, fmt.Errorf("ask the agent at %s: status %s, and then %w", c.socket, answer.Status, err)
	}
	if err := json.Unmarshal(text.Bytes(), refusal); err != nil || refusal.Message == "" {
		return nil, fmt.Errorf("%s %s: the program at %s answered %s; is it a stoker agent?", method, path, c.socket, answer.Status)
	}
	refusal.Status = answer.StatusCode
	return nil, refusal
}

func (c *client) get(ctx context.Context, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	answer, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if err := json.NewDecoder(io.LimitReader(answer.Body, maxAnswer)).Decode(into); err != nil {
		return fmt.Errorf("read the agent's answer to %s: %w", path, err)
	}
	return nil
}

// Containers implements observer.
func (c *client) Containers(ctx context.Context) ([]web.Container, error) {
	var list []web.Container
	err := c.get(ctx, "/api/v1/containers", &list)
	return list, err
}

// Sources implements observer.
func (c *client) Sources(ctx context.Context) ([]web.Source, error) {
	var list []web.Source
	err := c.get(ctx, "/api/v1/sources", &list)
	return list, err
}

// Top implements observer.
func (c *client) Top(ctx context.Context) (web.Top, error) {
	var top web.Top
	err := c.get(ctx, "/api/v1/top", &top)
	return top, err
}

// Health asks how the agent does. One that does badly answers too (status 503).
func (c *client) Health(ctx context.Context) (h web.Health, err error) {
	text, err := c.page(ctx, "/healthz")
	if err != nil {
		return h, err
	}
	if err := json.Unmarshal(text, &h); err != nil || h.Parts == nil {
		return h, fmt.Errorf("the program at %s does not say how it does; is it a stoker agent?", c.socket)
	}
	return h, nil
}

// page reads a page as it is, whatever its status.
func (c *client) page(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", path, err)
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return nil, fmt.Errorf("ask the agent at %s: %w", c.socket, err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read the agent's answer to %s: %w", path, err)
	}
	return text, nil
}

// Record implements observer.
func (c *client) Record(ctx context.Context, r web.RecordRequest, progress func(web.RecordProgress)) (*profile.Profile, error) {
	// What the agent needs beyond the time asked for: the rest of a window, and the merge.
	const beyond = time.Minute
	ctx, cancel := context.WithTimeout(ctx, time.Duration(r.Duration)+beyond)
	defer cancel()
	answer, err := c.do(ctx, http.MethodPost, "/api/v1/record", r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	for lines := json.NewDecoder(io.LimitReader(answer.Body, maxRecording)); ; {
		var m web.RecordMessage
		if err := lines.Decode(&m); err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return nil, fmt.Errorf("the agent's recording broke off: %w", err)
		}
		switch {
		case m.Error != nil:
			return nil, m.Error
		case m.Pprof != nil:
			return pprof.Parse(m.Pprof)
		case m.Progress != nil && progress != nil:
			progress(*m.Progress)
		}
	}
}
