package web

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/google/pprof/profile"
	"github.com/klauspost/compress/gzhttp"

	"github.com/stoker-profiler/stoker/sink/file"
	"github.com/stoker-profiler/stoker/sink/store"
)

//go:embed ui
var ui embed.FS

// maxBody bounds what a client may send: a RecordRequest is a few hundred bytes.
const maxBody = 64 << 10

type server struct {
	backend Backend
	store   *store.Store
	cfg     Config
	guard   *guard
	heavy   *heavy
	deep    *deepView
}

// Handler returns the pages and the API over what b knows and st holds. One handler may be served on several listeners. It
// holds no resource that must be closed, and closes neither b nor st. An error means a Config that cannot be.
func Handler(b Backend, st *store.Store, cfg Config) (http.Handler, error) {
	if b == nil || st == nil {
		return nil, errors.New("web: no backend or no store")
	}
	cfg = cfg.withDefaults()
	s := &server{backend: b, store: st, cfg: cfg, heavy: &heavy{slots: make(chan struct{}, cfg.MaxHeavy), wait: 10 * time.Second}, deep: newDeepView(cfg.Token)}
	mux := http.NewServeMux()
	api := func(pattern string, h func(http.ResponseWriter, *http.Request) error) {
		mux.Handle(pattern, answer(h))
	}
	api("GET /api/v1/{$}", s.index)
	api("GET /api/v1/containers", s.containers)
	api("GET /api/v1/sources", s.sources)
	api("GET /api/v1/series", s.series)
	api("GET /api/v1/labels", s.labels)
	api("GET /api/v1/profile", s.profile)
	api("GET /api/v1/diff", s.diff)
	api("GET /api/v1/top", s.top)
	api("GET /api/v1/deep", s.deepLink)
	api("POST /api/v1/record", s.record)
	api("/api/", func(_ http.ResponseWriter, r *http.Request) error {
		return &Error{Status: http.StatusNotFound, Message: fmt.Sprintf("there is no %s %s", clip(r.Method, 20), clip(r.URL.Path, 100)), Remedy: "GET /api/v1/ lists what there is"}
	})
	api("GET /healthz", s.healthz)
	mux.Handle("GET /metrics", b.Metrics())
	api("GET /pprof/{$}", s.deepEntry)
	api("GET /pprof/{selection}/{$}", s.deepIndex)
	api("GET /pprof/{selection}/{page}", s.deepPage)
	mux.Handle("GET /assets/{name}", answer(asset))
	mux.Handle("GET /{$}", answer(func(w http.ResponseWriter, r *http.Request) error { return sendAsset(w, ui, "ui/index.html") }))
	mux.Handle("/favicon.ico", http.RedirectHandler("/assets/logo.svg", http.StatusFound))
	s.guard = newGuard(nil, cfg)
	next, err := compress(mux)
	if err != nil {
		return nil, fmt.Errorf("web: %w", err)
	}
	s.guard.next = next
	return s.guard, nil
}

// compress saves a slow link (ssh to an edge node) what JSON and scripts repeat. Streams and what is compressed already pass.
func compress(h http.Handler) (http.Handler, error) {
	wrap, err := gzhttp.NewWrapper(gzhttp.MinSize(1400), gzhttp.ContentTypes([]string{"application/json", "text/html", "text/css", "text/javascript", "image/svg+xml", "text/plain"}))
	if err != nil {
		return nil, err
	}
	zipped := wrap(h)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && r.URL.Path != "/metrics" {
			zipped.ServeHTTP(w, r)
			return
		}
		h.ServeHTTP(w, r)
	}), nil
}

// answer turns a handler that may fail into one that then answers with the error.
func answer(h func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			writeError(w, err)
		}
	})
}

// asset serves a file of the page, or the flame graph's renderer.
func asset(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("name")
	if name == "flamegraph.js" || name == "flamegraph.css" {
		return sendAsset(w, file.Assets, "assets/"+name)
	}
	return sendAsset(w, ui, "ui/"+name)
}

func sendAsset(w http.ResponseWriter, from fs.FS, name string) error {
	b, err := fs.ReadFile(from, path.Clean(name))
	if err != nil {
		return &Error{Status: http.StatusNotFound, Message: "there is no such file"}
	}
	w.Header().Set("Content-Type", mime.TypeByExtension(path.Ext(name)))
	if strings.HasSuffix(name, ".js") {
		w.Header().Set("Content-Type", "text/javascript; charset=utf-8") // whatever the host's mime.types says
	}
	// Small, local and changing with each version of the agent: asked for again each time.
	w.Header().Set("Cache-Control", "no-cache")
	_, _ = w.Write(b) // an error means that the client is gone
	return nil
}

// index lists the API for who opens it in a browser.
func (s *server) index(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, map[string]any{
		"requests": []string{"GET /api/v1/containers", "GET /api/v1/sources", "GET /api/v1/series", "GET /api/v1/labels", "GET /api/v1/profile", "GET /api/v1/diff", "GET /api/v1/top",
			"GET /api/v1/deep", "POST /api/v1/record (Unix socket)", "GET /metrics", "GET /healthz", "GET /pprof/"},
		"parameters": map[string]string{
			"from, to":       "RFC 3339, Unix milliseconds, now, now-1h, -15m",
			"type":           "process_cpu",
			"match":          "label=value, label!=value, label=~regexp, label!~regexp; repeated",
			"container":      "id, id prefix or name",
			"format":         strings.Join(formats(), ", "),
			"left_*,right_*": "the same for the two sides of /api/v1/diff",
		},
	})
	return nil
}

func (s *server) containers(w http.ResponseWriter, r *http.Request) error {
	list, err := s.backend.Containers(r.Context())
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	if list == nil {
		list = []Container{}
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}

func (s *server) sources(w http.ResponseWriter, r *http.Request) error {
	list, err := s.backend.Sources(r.Context())
	if err != nil {
		return fmt.Errorf("list sources: %w", err)
	}
	if list == nil {
		list = []Source{}
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}

func (s *server) top(w http.ResponseWriter, r *http.Request) error {
	t, err := s.backend.Top(r.Context())
	if err != nil {
		return fmt.Errorf("read the last window: %w", err)
	}
	if t.Containers == nil {
		t.Containers = []TopContainer{}
	}
	writeJSON(w, http.StatusOK, t)
	return nil
}

// healthz answers 200 while the agent does what it is for, if only in part, and 503 when it does not. Who sends no token
// where one is needed gets the state alone.
func (s *server) healthz(w http.ResponseWriter, r *http.Request) error {
	h := s.backend.Health()
	status := http.StatusOK
	if h.State() == Failing {
		status = http.StatusServiceUnavailable
	}
	_, local := PeerOf(r.Context())
	if !local && !s.guard.tokenRight(r) {
		writeJSON(w, status, map[string]HealthState{"status": h.State()})
		return nil
	}
	if h.Parts == nil {
		h.Parts = []HealthPart{}
	}
	writeJSON(w, status, struct {
		Status HealthState `json:"status"`
		Health
		Store storeHealth `json:"store"`
	}{h.State(), h, s.storeHealth()})
	return nil
}

// storeHealth is what /healthz says about the store.
type storeHealth struct {
	Bytes    int64     `json:"bytes"`
	MaxBytes int64     `json:"max_bytes,omitempty"`
	Profiles int64     `json:"profiles"`
	Series   int64     `json:"series"`
	Oldest   time.Time `json:"oldest,omitzero"`
	Newest   time.Time `json:"newest,omitzero"`
	Evicted  int64     `json:"evicted"` // profiles that had to go since the store was made
	Error    string    `json:"error,omitempty"`
}

func (s *server) storeHealth() storeHealth {
	st := s.store.Stats()
	h := storeHealth{Bytes: st.Bytes, MaxBytes: st.MaxBytes, Profiles: st.Profiles, Series: st.Series, Oldest: st.Oldest, Newest: st.Newest, Error: st.Err}
	for _, e := range st.Evictions {
		h.Evicted += e.Profiles
	}
	return h
}

// maxRecord bounds one recording; longer ones are what the store is for.
const maxRecord = time.Hour

// record streams one JSON message per line: progress while it lasts, then the profile or the error.
func (s *server) record(w http.ResponseWriter, r *http.Request) error {
	peer, local := PeerOf(r.Context())
	if !local {
		return &Error{Status: http.StatusForbidden, Message: "recording is possible only through the agent's Unix socket", Remedy: "use stoker record on the node, as root or as a member of the group " + s.cfg.Group}
	}
	if !mayRecord(peer, s.cfg.Group) {
		return &Error{Status: http.StatusForbidden, Message: fmt.Sprintf("user %d may not record", peer.UID), Remedy: "become root, or a member of the group " + s.cfg.Group}
	}
	var req RecordRequest
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		return badRequest(`send {"targets": ["NAME"], "duration": "10s"}`, "the request cannot be read: %v", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return badRequest("send one JSON object", "the request has something after its end")
	}
	d := time.Duration(req.Duration)
	switch {
	case d <= 0 || d > maxRecord:
		return badRequest("use a duration of at most "+maxRecord.String(), "a duration of %s is not possible", d)
	case req.Frequency < 0 || req.Frequency > 10_000:
		return badRequest("use 1 to 10000 Hz, or 0 for the agent's own", "a frequency of %d Hz is not possible", req.Frequency)
	case len(req.Targets) > 256:
		return badRequest("use fewer targets, or none for all", "%d targets; at most 256 are taken", len(req.Targets))
	}
	rc := http.NewResponseController(w)
	// The answer takes as long as the recording, and a while to symbolize and send.
	if err := errors.Join(rc.SetReadDeadline(time.Time{}), rc.SetWriteDeadline(time.Now().Add(d+2*time.Minute))); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("prepare the answer: %w", err)
	}
	ctx, cancel := context.WithTimeout(r.Context(), d+time.Minute)
	defer cancel()
	started := false
	enc := json.NewEncoder(w)
	send := func(m RecordMessage) {
		if !started {
			started = true
			w.Header().Set("Content-Type", "application/x-ndjson")
			w.WriteHeader(http.StatusOK)
		}
		if enc.Encode(m) != nil || rc.Flush() != nil {
			cancel() // nobody listens any more: stop sampling for them
		}
	}
	s.cfg.Logger.Info("recording", "targets", req.Targets, "duration", d, "frequency", req.Frequency, "peer_pid", peer.PID, "peer_uid", peer.UID)
	p, err := s.backend.Record(ctx, req, func(p RecordProgress) { send(RecordMessage{Progress: &p}) })
	var gz []byte
	if err == nil {
		gz, err = encodeProfile(p)
	}
	if err != nil {
		if !started {
			return fmt.Errorf("record: %w", err)
		}
		e := &Error{Message: "record: " + err.Error()}
		if inner, ok := errors.AsType[*Error](err); ok {
			e.Message, e.Remedy = "record: "+inner.Message, inner.Remedy
		}
		send(RecordMessage{Error: e})
		return nil
	}
	send(RecordMessage{Pprof: gz})
	return nil
}

// deepEntry turns /pprof/?from=…&match=… into the link of the merged selection.
func (s *server) deepEntry(w http.ResponseWriter, r *http.Request) error {
	if _, local := PeerOf(r.Context()); !local && !s.guard.tokenRight(r) {
		return &Error{Status: http.StatusUnauthorized, Message: "a token is needed", Remedy: "open the deep view from the page, which signs its link"}
	}
	link, err := s.deepURL(r)
	if err != nil {
		return err
	}
	http.Redirect(w, r, link, http.StatusFound)
	return nil
}

func (s *server) deepLink(w http.ResponseWriter, r *http.Request) error {
	link, err := s.deepURL(r)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, map[string]string{"url": link})
	return nil
}

func (s *server) deepURL(r *http.Request) (string, error) {
	now := s.cfg.Now()
	sel, err := parseSelection(r.URL.Query(), "", now)
	if err != nil {
		return "", err
	}
	seg := s.deep.encodeSelection(sel, now)
	if len(seg) > maxSelection {
		return "", badRequest("use fewer label conditions", "the selection has %d bytes", len(seg))
	}
	return "/pprof/" + seg + "/flamegraph", nil
}

func (s *server) deepIndex(w http.ResponseWriter, r *http.Request) error {
	// Relative, as pprof's own links are: behind a proxy the path may differ.
	w.Header().Set("Location", "flamegraph")
	w.WriteHeader(http.StatusFound)
	return nil
}

func (s *server) deepPage(w http.ResponseWriter, r *http.Request) error {
	now := s.cfg.Now()
	_, local := PeerOf(r.Context())
	seg := r.PathValue("selection")
	sel, err := s.deep.decodeSelection(seg, local, now)
	if err != nil {
		return err
	}
	leave, err := s.heavy.enter(r.Context())
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.Timeout)
	defer cancel()
	body, _, _ := strings.Cut(seg, ".")
	sess, err := s.deep.open(ctx, body, s.title(ctx, sel), now, func(ctx context.Context) (*profile.Profile, error) {
		m, err := s.merge(ctx, sel)
		if err != nil {
			return nil, err
		}
		if len(m.profile.Sample) == 0 {
			return nil, errNothing()
		}
		return m.profile, nil
	})
	if err != nil {
		return err
	}
	sess.serve(w, r, r.PathValue("page"))
	return nil
}

// title says what a selection is, for people.
func (s *server) title(ctx context.Context, sel selection) string {
	parts := []string{"all containers"}
	if sel.Container != "" {
		parts[0] = sel.Container
		if c, ok := s.container(ctx, sel.Container); ok {
			parts[0] = c.Name
		}
	}
	for _, m := range sel.Match {
		parts = append(parts, m.String())
	}
	from, to := sel.From.UTC(), sel.To.UTC()
	return strings.Join(parts, ", ") + " · " + from.Format("2006-01-02 15:04:05") + " to " + to.Format("15:04:05") + " UTC (" + strconv.Itoa(int(to.Sub(from).Seconds())) + " s)"
}

// container finds a container of the registry by id or by the beginning of an id.
func (s *server) container(ctx context.Context, text string) (Container, bool) {
	list, err := s.backend.Containers(ctx)
	if err != nil {
		return Container{}, false // the store may still know it by that id or name
	}
	var byPrefix []Container
	for _, c := range list {
		if c.ID == text {
			return c, true
		}
		if len(text) >= 4 && strings.HasPrefix(c.ID, text) {
			byPrefix = append(byPrefix, c)
		}
	}
	if len(byPrefix) == 1 {
		return byPrefix[0], true
	}
	return Container{}, false
}
