// Package pyroscope pushes stored profiles to a Grafana Pyroscope server through Grafana's own client module. It is an
// Uploader of the store: one request per profile, one series and one profile in it, for nothing in a larger request would be
// atomic. It keeps no queue and never retries by itself; what it owes the store is the truth about each profile: the server
// has it, will never take it, may have it, or does not have it.
//
// A Client is safe for concurrent use and owns no goroutine. Secrets are files, read again when they change.
package pyroscope

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	pushv1 "github.com/grafana/pyroscope/api/gen/proto/go/push/v1"
	"github.com/grafana/pyroscope/api/gen/proto/go/push/v1/pushv1connect"
	typesv1 "github.com/grafana/pyroscope/api/gen/proto/go/types/v1"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/stoker-profiler/stoker/sink"
)

// Config is one endpoint. URL is all that is needed.
type Config struct {
	// Name names the endpoint's deliveries in the store; it must not change as long as some wait. Empty means the host and
	// path of the URL.
	Name string
	// URL is the server's base URL, with a path where a reverse proxy wants one.
	URL string
	// TenantID is sent as X-Scope-OrgID for profiles without a tenant of their own; empty sends none.
	TenantID string
	// BasicAuth, or Authorization, or BearerTokenFile: at most one.
	BasicAuth       BasicAuth
	Authorization   Authorization
	BearerTokenFile string
	// Headers are sent with every request.
	Headers map[string]string
	TLS     TLS
	// Timeout bounds one push; 0 means 30 s, the least is 10 s: a server gives itself 5 s for the write path and 30 s for the
	// exchange, and giving up earlier only makes doubt about what was stored.
	Timeout time.Duration
	// Concurrency is how many requests one Send may have under way; 0 means 8.
	Concurrency int
}

// BasicAuth is HTTP basic authentication.
type BasicAuth struct{ Username, PasswordFile string }

// Authorization is an Authorization header: the type (default Bearer) and the secret in a file.
type Authorization struct{ Type, CredentialsFile string }

// TLS is the client side of TLS; the zero value trusts the system's authorities.
type TLS struct {
	CAFile, CertFile, KeyFile string
	ServerName                string
	InsecureSkipVerify        bool
}

const (
	defaultTimeout = 30 * time.Second
	minTimeout     = 10 * time.Second
)

// Client is one endpoint. It implements sink.Uploader.
type Client struct {
	cfg    Config
	push   pushv1connect.PusherServiceClient
	secret *secretFile // nil: no Authorization
	trans  *transport

	mu    sync.Mutex // guards what follows
	sends map[sink.Outcome]uint64
	bytes uint64
	secs  float64
}

// New checks the configuration; it reads the secrets once so that a wrong path is found at the start, and talks to nobody.
func New(cfg Config) (*Client, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.Timeout < minTimeout {
		return nil, fmt.Errorf("pyroscope %s: a timeout of %v makes doubt about what the server stored: set pyroscope.remote_timeout to %v or more", cfg.URL, cfg.Timeout, minTimeout)
	}
	return newClient(cfg)
}

func newClient(cfg Config) (*Client, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("pyroscope.url: %w", err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("pyroscope.url %q: write http://host:port or https://host, with a path where the server has one", cfg.URL)
	}
	if u.User != nil {
		return nil, fmt.Errorf("pyroscope.url of host %s contains a user: use pyroscope.basic_auth with a password_file", u.Host)
	}
	if u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("pyroscope.url %q: a base URL has no query", cfg.URL)
	}
	if cfg.Name == "" {
		cfg.Name = strings.TrimRight(u.Host+u.Path, "/")
	}
	if cfg.Concurrency <= 0 {
		cfg.Concurrency = 8
	}
	if err := checkTenant(cfg.TenantID); cfg.TenantID != "" && err != nil {
		return nil, fmt.Errorf("pyroscope.tenant_id: %w", err)
	}
	c := &Client{cfg: cfg, sends: map[sink.Outcome]uint64{}}
	ways := 0
	if cfg.BasicAuth != (BasicAuth{}) {
		ways++
		if cfg.BasicAuth.Username == "" && cfg.BasicAuth.PasswordFile == "" {
			return nil, errors.New("pyroscope.basic_auth needs a username")
		}
		if cfg.BasicAuth.PasswordFile != "" {
			c.secret = &secretFile{path: cfg.BasicAuth.PasswordFile, setting: "pyroscope.basic_auth.password_file"}
		}
	}
	if cfg.Authorization.CredentialsFile != "" {
		ways++
		c.secret = &secretFile{path: cfg.Authorization.CredentialsFile, setting: "pyroscope.authorization.credentials_file"}
	} else if cfg.Authorization.Type != "" {
		return nil, errors.New("pyroscope.authorization needs a credentials_file")
	}
	if cfg.BearerTokenFile != "" {
		ways++
		c.secret = &secretFile{path: cfg.BearerTokenFile, setting: "pyroscope.bearer_token_file"}
	}
	if ways > 1 {
		return nil, errors.New("pyroscope: basic_auth, authorization and bearer_token_file exclude each other")
	}
	if c.secret != nil {
		if _, err := c.secret.read(); err != nil {
			return nil, err
		}
	}
	if c.trans, err = newTransport(cfg.TLS); err != nil {
		return nil, err
	}
	client := &http.Client{
		Transport: c.trans,
		// A redirected POST would lose its body or its credentials, and hides that the URL is wrong.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	// The reply is empty; what is larger comes from somebody else.
	c.push = pushv1connect.NewPusherServiceClient(client, cfg.URL, connect.WithReadMaxBytes(1<<20))
	return c, nil
}

// Name is the endpoint's name in the store.
func (c *Client) Name() string { return c.cfg.Name }

// Close closes idle connections.
func (c *Client) Close() { c.trans.close() }

// Send pushes the profiles, several at once, and returns one Result for each, in their order.
func (c *Client) Send(ctx context.Context, profiles []sink.Profile) []sink.Result {
	out := make([]sink.Result, len(profiles))
	if len(profiles) == 1 {
		out[0] = c.send(ctx, &profiles[0])
		return out
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	slots := make(chan struct{}, c.cfg.Concurrency)
	var wg sync.WaitGroup
	for i := range profiles {
		slots <- struct{}{}
		wg.Go(func() {
			out[i] = c.send(ctx, &profiles[i])
			<-slots
		})
	}
	wg.Wait()
	return out
}

// send pushes one profile.
func (c *Client) send(ctx context.Context, p *sink.Profile) sink.Result {
	began := time.Now()
	r := c.try(ctx, p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sends[r.Outcome]++
	c.secs += time.Since(began).Seconds()
	if r.Outcome == sink.Delivered {
		c.bytes += uint64(len(p.Pprof))
	}
	return r
}

func (c *Client) try(ctx context.Context, p *sink.Profile) sink.Result {
	tenant := c.cfg.TenantID
	if p.Tenant != "" {
		tenant = p.Tenant
	}
	if err := checkTenant(tenant); tenant != "" && err != nil {
		return sink.Result{Outcome: sink.Refused, Reason: fmt.Sprintf("not sent: %v", err)}
	}
	req := connect.NewRequest(&pushv1.PushRequest{Series: []*pushv1.RawProfileSeries{{
		Labels:  labels(p),
		Samples: []*pushv1.RawSample{{RawProfile: p.Pprof}},
	}}})
	for k, v := range c.cfg.Headers {
		req.Header().Set(k, v)
	}
	if tenant != "" {
		req.Header().Set("X-Scope-OrgID", tenant)
	}
	authorization, err := c.authorization()
	if err != nil {
		return sink.Result{Outcome: sink.Retry, Reason: err.Error()}
	}
	if authorization != "" {
		req.Header().Set("Authorization", authorization)
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	ctx, x := observe(ctx)
	_, err = c.push.Push(ctx, req)
	return c.judge(x.seen(), err, p)
}

// Probe finds out whether the server would take pushes: it sends one without a profile, which a server that lets us write refuses
// for being empty and which leaves nothing. The error says what is wrong, and after the last colon what to do.
func (c *Client) Probe(ctx context.Context) error {
	req := connect.NewRequest(&pushv1.PushRequest{})
	for k, v := range c.cfg.Headers {
		req.Header().Set(k, v)
	}
	if c.cfg.TenantID != "" {
		if err := checkTenant(c.cfg.TenantID); err != nil {
			return fmt.Errorf("%w: correct pyroscope.tenant_id", err)
		}
		req.Header().Set("X-Scope-OrgID", c.cfg.TenantID)
	}
	authorization, err := c.authorization()
	if err != nil {
		return err
	}
	if authorization != "" {
		req.Header().Set("Authorization", authorization)
	}
	ctx, x := observe(ctx)
	_, err = c.push.Push(ctx, req)
	if r := c.judge(x.seen(), err, &sink.Profile{}); r.Outcome != sink.Delivered && (r.Outcome != sink.Refused || x.seen().status != http.StatusBadRequest) {
		return errors.New(r.Reason)
	}
	return nil
}

// labels are the profile's labels with __name__, sorted.
func labels(p *sink.Profile) []*typesv1.LabelPair {
	out := make([]*typesv1.LabelPair, 0, len(p.Labels)+1)
	out = append(out, &typesv1.LabelPair{Name: "__name__", Value: p.Type.Name})
	for _, name := range slices.Sorted(maps.Keys(p.Labels)) {
		out = append(out, &typesv1.LabelPair{Name: name, Value: p.Labels[name]})
	}
	return out
}

// checkTenant is the server's rule for tenant ids: what breaks it is a 401 for this profile only, so it is not sent.
func checkTenant(id string) error {
	if len(id) > 150 {
		return fmt.Errorf("a tenant id of %d characters is too long: 150 are allowed", len(id))
	}
	if id == "." || id == ".." {
		return fmt.Errorf("%q is no tenant id", id)
	}
	for _, r := range id {
		if (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && !strings.ContainsRune("!_.*'()-", r) {
			return fmt.Errorf("tenant id %q contains %q: letters, digits and !_.*'()- are allowed", id, r)
		}
	}
	return nil
}

// Collector returns the endpoint's metrics.
func (c *Client) Collector() prometheus.Collector { return collector{c} }

type collector struct{ c *Client }

func (k collector) descs() (sends, bytes, seconds *prometheus.Desc) {
	l := prometheus.Labels{"sink": k.c.cfg.Name}
	return prometheus.NewDesc("stoker_sink_writes_total", "Profiles handed to a sink, by result.", []string{"result"}, l),
		prometheus.NewDesc("stoker_sink_delivered_bytes_total", "Compressed bytes of the profiles that were delivered.", nil, l),
		prometheus.NewDesc("stoker_sink_write_seconds_total", "Time spent in pushes; several are under way at once.", nil, l)
}

func (k collector) Describe(ch chan<- *prometheus.Desc) {
	sends, bytes, seconds := k.descs()
	ch <- sends
	ch <- bytes
	ch <- seconds
}

func (k collector) Collect(ch chan<- prometheus.Metric) {
	sends, bytes, seconds := k.descs()
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	for _, o := range []sink.Outcome{sink.Delivered, sink.Refused, sink.Uncertain, sink.Retry} {
		ch <- prometheus.MustNewConstMetric(sends, prometheus.CounterValue, float64(k.c.sends[o]), o.String())
	}
	ch <- prometheus.MustNewConstMetric(bytes, prometheus.CounterValue, float64(k.c.bytes))
	ch <- prometheus.MustNewConstMetric(seconds, prometheus.CounterValue, k.c.secs)
}

var _ sink.Uploader = (*Client)(nil)
