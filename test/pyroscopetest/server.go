// Package pyroscopetest is a Pyroscope server's push API for tests and demos: the handler of Grafana's own module, made as
// strict as the real server with its default limits, and stricter where the real one takes something and silently loses it.
// A server runs on loopback and keeps what it accepted in memory; every method is safe for concurrent use. Tests of any
// package call New, programs Start. It answers nothing but pushes and never deduplicates, as the real one does not.
package pyroscopetest

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/pprof/profile"
	pushv1 "github.com/grafana/pyroscope/api/gen/proto/go/push/v1"
	"github.com/grafana/pyroscope/api/gen/proto/go/push/v1/pushv1connect"
	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"
)

// Options change what the server is like; the zero value is a default Pyroscope server.
type Options struct {
	// MultiTenant demands a valid X-Scope-OrgID; otherwise the header is ignored and the tenant is "anonymous".
	MultiTenant bool
	// RejectOlderThan is -validation.reject-older-than; 0 means one hour, negative no limit.
	RejectOlderThan time.Duration
	// Rate and Burst are a tenant's ingestion limit in bytes; 0 means 4 MiB/s and 2 MiB, a negative Rate no limit.
	Rate, Burst int64
	// Delay is how long an answer takes (a real server needs half a second).
	Delay time.Duration
	// Prefix is a path before the API's own, as behind a reverse proxy: "/pyroscope".
	Prefix string
	// Username and Password, or Token, are demanded when set, as by a reverse proxy: 401 without a Connect error.
	Username, Password, Token string
	// TLS makes the server speak https; CertificatePEM returns what a client has to trust.
	TLS bool
	// ClientCert demands a client certificate (any); only with TLS.
	ClientCert bool
	// Listen is the address; empty means a free port of 127.0.0.1.
	Listen string
	// Now is the server's clock; nil means time.Now.
	Now func() time.Time
	// Discard keeps no bytes and no parsed profiles, only what identifies them: for long runs.
	Discard bool
}

// Received is one profile that was accepted. A real server would show it in its flame graphs.
type Received struct {
	Tenant string
	Labels map[string]string // with __name__
	// TypeID is the five-part name of the first sample type.
	TypeID string
	Time   time.Time // TimeNanos
	// Total is the sum of the first sample type's values, without what a real server drops.
	Total   int64
	Samples int
	Raw     []byte           // the uncompressed pprof
	Profile *profile.Profile // the same, parsed
	Header  http.Header      // of the request
}

// Fault is what a request meets instead of, or after, being handled. The zero Fault is none.
type Fault struct {
	// Status answers with this HTTP status and Connect's error for it; with Bare as something in front of the server
	// would, with an HTML page.
	Status  int
	Bare    bool
	Message string
	Header  map[string]string // of the answer: Retry-After, Location
	// Store handles the request before the fault: the profile is stored, the client does not learn of it.
	Store bool
	// Close cuts the connection instead of answering, Hang never answers.
	Close, Hang bool
	// Gzip answers gzipped, as a real server does when the request was gzipped.
	Gzip bool
}

// Server is a running receiver.
type Server struct {
	o    Options
	http *httptest.Server

	mu         sync.Mutex // guards what follows
	received   []Received
	violations []string
	requests   int
	fault      func(tenant string, labels map[string]string) Fault
	limiters   map[string]*rate.Limiter
	seen       map[string]bool // identity of accepted profiles
	inFlight   int
	peak       int

	quit chan struct{}
}

// New starts a server that ends with t. When t ends, every violation fails it: see Violations.
func New(t testing.TB, o Options) *Server {
	t.Helper()
	s, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		for _, v := range s.Violations() {
			t.Errorf("a Pyroscope server would have lost something: %s", v)
		}
	})
	return s
}

// Start starts a server; the caller ends it with Close.
func Start(o Options) (*Server, error) {
	if o.RejectOlderThan == 0 {
		o.RejectOlderThan = time.Hour
	}
	if o.Rate == 0 {
		o.Rate = 4 << 20
	}
	if o.Burst == 0 {
		o.Burst = 2 << 20
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	s := &Server{o: o, limiters: map[string]*rate.Limiter{}, seen: map[string]bool{}, quit: make(chan struct{})}
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("pyroscopetest: %w", err)
	}
	path, handler := pushv1connect.NewPusherServiceHandler(s, connect.WithReadMaxBytes(maxRequest))
	mux := http.NewServeMux()
	mux.Handle(o.Prefix+path, http.StripPrefix(o.Prefix, s.front(handler)))
	s.http = &httptest.Server{Listener: l, Config: &http.Server{Handler: mux, ErrorLog: quiet}, EnableHTTP2: o.TLS}
	if o.TLS {
		s.http.TLS = tlsConfig(o.ClientCert)
		s.http.StartTLS()
	} else {
		s.http.Start()
	}
	return s, nil
}

// Close ends the server and every request that hangs. It may be called twice.
func (s *Server) Close() {
	s.mu.Lock()
	select {
	case <-s.quit:
		s.mu.Unlock()
		return
	default:
	}
	close(s.quit)
	s.mu.Unlock()
	s.http.CloseClientConnections()
	s.http.Close()
}

// URL is the base URL to configure, with the prefix.
func (s *Server) URL() string { return s.http.URL + s.o.Prefix }

// Inject makes the next n requests meet f; a negative n means all, until Inject is called again. A zero Fault heals.
func (s *Server) Inject(f Fault, n int) {
	s.InjectFunc(func(string, map[string]string) Fault {
		if n == 0 {
			return Fault{}
		}
		n--
		return f
	})
}

// InjectFunc lets f decide what each request meets, by its tenant and its first series' labels. f is called under the
// server's lock; nil heals.
func (s *Server) InjectFunc(f func(tenant string, labels map[string]string) Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Profiles returns what was accepted, in the order of arrival.
func (s *Server) Profiles() []Received {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.received)
}

// Total adds up what was accepted for a tenant ("" means all).
func (s *Server) Total(tenant string) (sum int64) {
	for _, r := range s.Profiles() {
		if tenant == "" || tenant == r.Tenant {
			sum += r.Total
		}
	}
	return sum
}

// Requests returns how many pushes arrived, PeakInFlight how many were under way at once at most.
func (s *Server) Requests() int { s.mu.Lock(); defer s.mu.Unlock(); return s.requests }

// PeakInFlight returns how many pushes were under way at once at most.
func (s *Server) PeakInFlight() int { s.mu.Lock(); defer s.mu.Unlock(); return s.peak }

// Violations names everything that the server took, or was asked to take, and that a real one would silently lose or show
// wrongly, that an agent must not send, and every refusal for the content of a profile.
func (s *Server) Violations() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.violations)
}

// ClearViolations forgets them: for tests that provoke some.
func (s *Server) ClearViolations() { s.mu.Lock(); defer s.mu.Unlock(); s.violations = nil }

func (s *Server) violate(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.violations) < 1000 {
		s.violations = append(s.violations, fmt.Sprintf(format, args...))
	}
}

const maxRequest = 256 << 20

// front is what stands before the handler: authentication, faults, the delay.
func (s *Server) front(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.authorized(r) {
			w.Header().Set("WWW-Authenticate", `Basic realm="pyroscope"`)
			page(w, http.StatusUnauthorized, "authorization required")
			return
		}
		body, err := io.ReadAll(io.LimitReader(r.Body, maxRequest+1))
		if err != nil {
			return // the client went away in the middle of its request: nothing was received
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		f := s.arrive(r, body)
		defer s.leave()
		if s.o.Delay > 0 {
			s.sleep(r.Context(), s.o.Delay)
		}
		if f.Store && (f.Hang || f.Close || f.Status != 0) {
			next.ServeHTTP(httptest.NewRecorder(), r)
		}
		switch {
		case f.Hang:
			s.sleep(r.Context(), time.Hour)
			panic(http.ErrAbortHandler)
		case f.Close:
			panic(http.ErrAbortHandler)
		case f.Status != 0:
			for k, v := range f.Header {
				w.Header().Set(k, v)
			}
			if f.Bare {
				page(w, f.Status, f.Message)
				return
			}
			refuse(w, f.Status, f.Message)
		case f.Gzip || r.Header.Get("Content-Encoding") == "gzip":
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			for k, v := range rec.Header() {
				w.Header()[k] = v
			}
			w.Header().Del("Content-Length")
			w.Header().Set("Content-Encoding", "gzip")
			w.WriteHeader(rec.Code)
			z := gzip.NewWriter(w)
			z.Write(unpacked(rec)) //nolint:errcheck // a client that went away is no fault of the test
			z.Close()              //nolint:errcheck
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// unpacked is a recorded body without the gzip that the handler may have put on it.
func unpacked(rec *httptest.ResponseRecorder) []byte {
	if rec.Header().Get("Content-Encoding") != "gzip" {
		return rec.Body.Bytes()
	}
	z, err := gzip.NewReader(rec.Body)
	if err != nil {
		return nil
	}
	b, err := io.ReadAll(z)
	if err != nil {
		return nil
	}
	return b
}

func (s *Server) authorized(r *http.Request) bool {
	if s.o.Username != "" || s.o.Password != "" {
		u, p, _ := r.BasicAuth()
		return u == s.o.Username && p == s.o.Password
	}
	if s.o.Token != "" {
		return r.Header.Get("Authorization") == "Bearer "+s.o.Token
	}
	return true
}

// arrive counts a request and chooses its fault.
func (s *Server) arrive(r *http.Request, body []byte) Fault {
	tenant := r.Header.Get("X-Scope-OrgID")
	labels := map[string]string{}
	if r.Header.Get("Content-Encoding") == "gzip" {
		if z, err := gzip.NewReader(bytes.NewReader(body)); err == nil {
			body, _ = io.ReadAll(io.LimitReader(z, maxRequest)) // only to choose a fault: the handler judges the body
		}
	}
	var req pushv1.PushRequest
	if proto.Unmarshal(body, &req) == nil && len(req.Series) > 0 {
		for _, l := range req.Series[0].Labels {
			labels[l.Name] = l.Value
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	s.inFlight++
	s.peak = max(s.peak, s.inFlight)
	if s.fault == nil {
		return Fault{}
	}
	return s.fault(tenant, labels)
}

func (s *Server) leave() { s.mu.Lock(); defer s.mu.Unlock(); s.inFlight-- }

func (s *Server) sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	case <-s.quit:
	}
}

// refuse writes Connect's error for an HTTP status.
func refuse(w http.ResponseWriter, status int, message string) {
	code := map[int]connect.Code{400: connect.CodeInvalidArgument, 401: connect.CodeUnauthenticated, 403: connect.CodePermissionDenied, 408: connect.CodeDeadlineExceeded,
		429: connect.CodeResourceExhausted, 500: connect.CodeUnknown, 501: connect.CodeUnimplemented, 503: connect.CodeUnavailable, 504: connect.CodeDeadlineExceeded}[status]
	if code == 0 {
		code = connect.CodeUnknown
	}
	if message == "" {
		message = strings.ToLower(http.StatusText(status))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"code": code.String(), "message": message}) //nolint:errcheck // the client may be gone
}

// page writes what a proxy or another program answers.
func page(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "text/html")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<html><body><h1>%s %s</h1>%s</body></html>", strconv.Itoa(status), http.StatusText(status), message)
}

// Push is the API's one method, in the order of the real server's checks.
func (s *Server) Push(_ context.Context, req *connect.Request[pushv1.PushRequest]) (*connect.Response[pushv1.PushResponse], error) {
	tenant := "anonymous"
	if s.o.MultiTenant {
		var err error
		if tenant, err = checkTenant(req.Header().Values("X-Scope-OrgID")); err != nil {
			return nil, connect.NewError(connect.CodeUnauthenticated, err)
		}
	}
	// Decoding: what cannot be decoded is an internal error, as if the server were ill.
	var items []item
	var errs []error
	samples := 0
	for _, series := range req.Msg.Series {
		for _, sample := range series.Samples {
			samples++
			it, err := decode(series.Labels, sample.RawProfile)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			items = append(items, it)
		}
	}
	if samples == 0 {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("no profiles received"))
	}
	if len(items) == 0 {
		return nil, errors.Join(errs...)
	}
	if len(req.Msg.Series) > 1 || samples > 1 {
		s.violate("a request with %d series and %d profiles: nothing of it is atomic", len(req.Msg.Series), samples)
	}
	// The rate is charged before validation: what is refused uses it up too.
	size := 0
	for _, it := range items {
		size += it.size()
	}
	if !s.allow(tenant, size) {
		if int64(size) > s.o.Burst {
			s.violate("a profile of %d bytes never passes a bucket of %d", size, s.o.Burst)
		}
		return nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("push rate limit (%d bytes) exceeded while adding %d bytes", s.o.Rate, size))
	}
	for _, it := range items {
		if err := s.accept(tenant, req.Header(), it); err != nil {
			errs = append(errs, err) // the others of the request are stored all the same
		}
	}
	if err := errors.Join(errs...); err != nil {
		if _, ok := errors.AsType[*connect.Error](err); ok {
			return nil, connect.NewError(connect.CodeInvalidArgument, err)
		}
		return nil, err
	}
	return connect.NewResponse(&pushv1.PushResponse{}), nil
}

func (s *Server) allow(tenant string, n int) bool {
	if s.o.Rate < 0 {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.limiters[tenant]
	if l == nil {
		l = rate.NewLimiter(rate.Limit(s.o.Rate), int(s.o.Burst))
		s.limiters[tenant] = l
	}
	return l.AllowN(time.Now(), n)
}

// checkTenant is the server's rule for tenant ids.
func checkTenant(values []string) (string, error) {
	if len(values) == 0 || values[0] == "" {
		return "", errors.New("no org id")
	}
	id := values[0]
	if strings.Contains(id, "|") || len(values) > 1 {
		return "", errors.New("multiple org IDs present")
	}
	if len(id) > 150 || id == "." || id == ".." {
		return "", fmt.Errorf("tenant ID %.160q is too long or unsafe", id)
	}
	if strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ!_.*'()-") != "" || strings.IndexFunc(id, func(r rune) bool {
		return !strings.ContainsRune("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ!_.*'()-", r)
	}) >= 0 {
		return "", fmt.Errorf("tenant ID %q contains an unsupported character", id)
	}
	return id, nil
}
