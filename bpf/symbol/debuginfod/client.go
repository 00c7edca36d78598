// Package debuginfod fetches debug files that are on no disk of the node from debuginfod servers, by build id, and keeps them in a
// directory of bounded size. See debuginfod(8) of elfutils, "WEBAPI": GET /buildid/BUILDID/debuginfo.
//
// [Client.Open] never waits: it opens what is there and otherwise leaves the build id to the one goroutine of [Client.Run], which asks
// for one file at a time. What servers send is a stranger's: its size is bounded, it is written to a file of its own, and that gets its
// place only if it is an ELF file of that very build. What is wrong costs a counter, one line in the log per server, and names that stay as they
// were.
//
// A build id is all that leaves the node. It tells the server which builds of which programs run here, and it is a container's word: a
// container can make the agent ask for build ids of its choice, one in a second at most.
package debuginfod

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stoker-profiler/stoker/bpf/symbol"
)

const (
	// maxQueue bounds the build ids that wait to be asked for, maxAbsent those of which it is known that nobody has them.
	maxQueue, maxAbsent = 256, 4096
	// absentLife is how long a build id is not asked for again that no server has, failedLife one that could not be fetched,
	// refusedLife one of which a server sent something else, or too much.
	absentLife, failedLife, refusedLife = time.Hour, 10 * time.Minute, 24 * time.Hour
	// minBackoff and maxBackoff bound how long a server is left alone that does not answer as it should.
	minBackoff, maxBackoff = time.Minute, time.Hour
	// pause is between two requests.
	pause = time.Second
	// maxRedirects is how often a server may send us elsewhere.
	maxRedirects = 5
	// headerTimeout is how long a server may take to begin its answer: it may have to unpack the file first.
	headerTimeout = 90 * time.Second
	// touchEvery is how often it is written down that a file is in use.
	touchEvery = time.Hour
	// suffix ends the names of files in the cache, partial those of files that are being fetched.
	suffix, partial = ".debug", ".part"
)

// A build id that is worth asking for: LLVM's linker writes 8 bytes, others 16 or 20.
var buildIDForm = regexp.MustCompile(`^[0-9a-f]{16,128}$`)

// Config is what a Client needs. URLs, Dir and MaxBytes have no default.
type Config struct {
	URLs     []string      // of the servers, asked in this order
	Dir      string        // holds the files; made if it is not there, owned by nobody else
	MaxBytes int64         // of all files; one may have half of it
	Timeout  time.Duration // of one request, all of the answer included
	Version  string        // of the program, for User-Agent
	Log      *slog.Logger

	tls *tls.Config // nil: the system's authorities; tests have one of their own
}

// Stats is what a Client did since it was made; Files, Bytes and Waiting are current.
type Stats struct {
	Files   int   // in the cache
	Bytes   int64 // of them
	Waiting int   // build ids to be asked for

	Found    uint64 // files fetched
	Absent   uint64 // build ids that no server has
	Refused  uint64 // answers that were too large, no ELF file, or of another build
	Failed   uint64 // requests without an answer that means anything: not connected, timeouts, errors of a server
	Received uint64 // bytes
	Evicted  uint64 // files deleted to make room
	Dropped  uint64 // build ids not asked for because too many wait
	Unsaved  uint64 // files that could not be written
}

// Client fetches files. All methods are safe for concurrent use.
type Client struct {
	cfg   Config
	http  *http.Client
	now   func() time.Time
	pause time.Duration
	queue chan string

	mu      sync.Mutex // guards all below; held for no request, and for no more than a rename
	files   map[string]*cached
	pending map[string]bool
	absent  map[string]time.Time // until when
	stats   Stats

	servers []*server // Run's
}

// cached is a file in the cache.
type cached struct {
	size    int64
	used    time.Time
	touched time.Time // what the disk knows of that
}

// server is one server. The goroutine of Run owns it.
type server struct {
	url     string
	host    string // for the log
	backoff time.Duration
	until   time.Time // not asked before
}

// New makes a client; it makes the directory and looks what is in it, and asks nobody.
func New(cfg Config) (*Client, error) {
	c := &Client{
		cfg: cfg, now: time.Now, pause: pause, queue: make(chan string, maxQueue),
		files: map[string]*cached{}, pending: map[string]bool{}, absent: map[string]time.Time{},
	}
	for _, u := range cfg.URLs {
		at, err := url.Parse(u)
		if err != nil || at.Scheme != "http" && at.Scheme != "https" || at.Host == "" {
			return nil, fmt.Errorf("debuginfod server %q: write http://HOST or https://HOST, with a path where the server has one", u)
		}
		c.servers = append(c.servers, &server{url: strings.TrimRight(u, "/"), host: at.Host})
	}
	c.http = &http.Client{
		Timeout: cfg.Timeout,
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
			TLSHandshakeTimeout:    10 * time.Second,
			TLSClientConfig:        cfg.tls,
			ResponseHeaderTimeout:  headerTimeout,
			MaxResponseHeaderBytes: 64 << 10,
			MaxConnsPerHost:        1,
			MaxIdleConns:           1,
			IdleConnTimeout:        30 * time.Second,
			DisableCompression:     true, // what arrives is what is counted
		},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			switch {
			case len(via) > maxRedirects:
				return fmt.Errorf("more than %d redirects", maxRedirects)
			case req.URL.Scheme != "https" && (req.URL.Scheme != "http" || via[0].URL.Scheme == "https"):
				return fmt.Errorf("redirect from %s to %s", via[0].URL.Scheme, req.URL.Scheme)
			}
			return nil
		},
	}
	if err := c.scan(); err != nil {
		return nil, fmt.Errorf("cache of debug files: %w; name another directory with symbols.debuginfod.cache", err)
	}
	return c, nil
}

// scan finds the files that are there, and removes what an earlier process left behind half done.
func (c *Client) scan() error {
	if err := os.MkdirAll(c.cfg.Dir, 0o700); err != nil {
		return err
	}
	list, err := os.ReadDir(c.cfg.Dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		path := filepath.Join(c.cfg.Dir, e.Name())
		if strings.HasSuffix(e.Name(), partial) {
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		id, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok || !buildIDForm.MatchString(id) || !e.Type().IsRegular() {
			continue // not ours
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		c.files[id] = &cached{size: st.Size(), used: st.ModTime(), touched: st.ModTime()}
		c.stats.Bytes += st.Size()
	}
	c.makeRoom(0)
	return nil
}

func (c *Client) path(id string) string { return filepath.Join(c.cfg.Dir, id+suffix) }

// Open opens the debug file of a build id, in hex, if it is in the cache. Otherwise it will be asked for, and the error is
// [symbol.ErrNotYet], or it is known that nobody has it, and the error wraps [os.ErrNotExist].
func (c *Client) Open(buildID string) (*os.File, error) {
	if !buildIDForm.MatchString(buildID) {
		return nil, fmt.Errorf("build id %.64q: %w", buildID, os.ErrNotExist)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if k := c.files[buildID]; k != nil {
		f, err := os.Open(c.path(buildID))
		if err == nil {
			if k.used = now; now.Sub(k.touched) > touchEvery {
				k.touched = now
				_ = os.Chtimes(c.path(buildID), now, now) // it would go a little earlier after a restart
			}
			return f, nil
		}
		c.stats.Bytes -= k.size // somebody has removed it
		delete(c.files, buildID)
	}
	if until, ok := c.absent[buildID]; ok {
		if now.Before(until) {
			return nil, fmt.Errorf("debug file of build id %s: %w", buildID, os.ErrNotExist)
		}
		delete(c.absent, buildID)
	}
	if !c.pending[buildID] {
		select {
		case c.queue <- buildID:
			c.pending[buildID] = true
		default:
			c.stats.Dropped++
		}
	}
	return nil, symbol.ErrNotYet
}

// Run asks for what Open did not find, until ctx ends.
func (c *Client) Run(ctx context.Context) error {
	defer c.http.CloseIdleConnections()
	for {
		var id string
		select {
		case <-ctx.Done():
			return nil
		case id = <-c.queue:
		}
		life := c.fetch(ctx, id)
		c.mu.Lock()
		delete(c.pending, id)
		if life > 0 {
			if len(c.absent) >= maxAbsent {
				for k := range c.absent { // any: the worst that comes of it is one more request
					delete(c.absent, k)
					break
				}
			}
			c.absent[id] = c.now().Add(life)
		}
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(c.pause):
		}
	}
}

// errRefused says that a server sent what we do not take.
var errRefused = errors.New("refused")

// errUnsaved says that the file could not be kept, which is no fault of the server.
var errUnsaved = errors.New("not saved")

// fetch asks the servers for a file, one after the other, and returns how long it shall not be asked for again; 0 if it is there.
func (c *Client) fetch(ctx context.Context, id string) time.Duration {
	life := absentLife
	worse := func(d time.Duration, counter *uint64) {
		life = min(life, d)
		c.count(counter)
	}
	for _, s := range c.servers {
		if c.now().Before(s.until) {
			life = min(life, failedLife)
			continue
		}
		err := c.get(ctx, s, id)
		switch {
		case err == nil:
			c.answers(s)
			c.count(&c.stats.Found)
			return 0
		case ctx.Err() != nil:
			return failedLife
		case errors.Is(err, errUnsaved):
			c.cfg.Log.Warn("a debug file could not be saved", "dir", c.cfg.Dir, "err", err)
			worse(failedLife, &c.stats.Unsaved)
			return life
		case errors.Is(err, os.ErrNotExist):
			c.answers(s)
		case errors.Is(err, errRefused):
			c.cfg.Log.Debug("an answer of a debuginfod server was refused", "server", s.host, "build_id", id, "err", err)
			c.count(&c.stats.Refused)
			if life == absentLife {
				life = refusedLife
			}
		default:
			if s.backoff == 0 { // said once, until it answers again
				c.cfg.Log.Warn("a debuginfod server does not answer as it should; functions keep the names that they have without it",
					"server", s.host, "err", err)
			}
			s.backoff = min(max(2*s.backoff, minBackoff), maxBackoff)
			s.until = c.now().Add(s.backoff)
			worse(failedLife, &c.stats.Failed)
		}
	}
	if life == absentLife {
		c.count(&c.stats.Absent)
	}
	return life
}

// answers notes that a server works.
func (c *Client) answers(s *server) {
	if s.backoff > 0 {
		c.cfg.Log.Info("a debuginfod server answers again", "server", s.host)
	}
	s.backoff = 0
}

func (c *Client) count(n *uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*n++
}

// get fetches a file from one server into the cache.
func (c *Client) get(ctx context.Context, s *server, id string) (err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/buildid/"+id+"/debuginfo", nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "stoker/"+c.cfg.Version)
	res, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	limit := c.cfg.MaxBytes / 2
	switch {
	case res.StatusCode == http.StatusNotFound:
		return os.ErrNotExist
	case res.StatusCode != http.StatusOK:
		return fmt.Errorf("status %s", res.Status)
	case res.ContentLength > limit:
		return fmt.Errorf("%w: %d bytes, more than half of the cache", errRefused, res.ContentLength)
	}
	f, err := os.CreateTemp(c.cfg.Dir, id+"-*"+partial)
	if err != nil {
		return errors.Join(errUnsaved, err)
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	n, err := io.Copy(&roomWriter{c: c, f: f}, io.LimitReader(res.Body, limit+1))
	c.mu.Lock()
	c.stats.Received += uint64(n)
	c.mu.Unlock()
	switch {
	case err != nil:
		return err
	case n > limit:
		return fmt.Errorf("%w: more than %d bytes, half of the cache", errRefused, limit)
	}
	if err := symbol.VerifyDebugFile(f, id); err != nil {
		return errors.Join(errRefused, err)
	}
	// On the disk before it has its name: a crash leaves the whole file or none.
	if err := f.Sync(); err != nil {
		return errors.Join(errUnsaved, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.makeRoom(n)
	if err := os.Rename(f.Name(), c.path(id)); err != nil {
		return errors.Join(errUnsaved, err)
	}
	now := c.now()
	c.files[id] = &cached{size: n, used: now, touched: now}
	c.stats.Bytes += n
	return nil
}

// roomWriter writes a file while older ones make room for it, so that all of them together never exceed the limit.
type roomWriter struct {
	c *Client
	f *os.File
	n int64
}

func (w *roomWriter) Write(p []byte) (int, error) {
	w.n += int64(len(p))
	w.c.mu.Lock()
	w.c.makeRoom(w.n)
	w.c.mu.Unlock()
	n, err := w.f.Write(p)
	if err != nil {
		err = errors.Join(errUnsaved, err)
	}
	return n, err
}

// makeRoom deletes the files not used for longest, until n bytes more fit. Caller holds mu, or is New.
func (c *Client) makeRoom(n int64) {
	if c.stats.Bytes+n <= c.cfg.MaxBytes {
		return
	}
	ids := make([]string, 0, len(c.files))
	for id := range c.files {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b string) int { return c.files[a].used.Compare(c.files[b].used) })
	for _, id := range ids {
		if c.stats.Bytes+n <= c.cfg.MaxBytes {
			return
		}
		if err := os.Remove(c.path(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
			c.cfg.Log.Warn("a debug file could not be deleted", "err", err)
			continue
		}
		c.stats.Bytes -= c.files[id].size
		c.stats.Evicted++
		delete(c.files, id)
	}
}

// Stats returns a copy of the counters.
func (c *Client) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Files, s.Waiting = len(c.files), len(c.pending)
	return s
}
