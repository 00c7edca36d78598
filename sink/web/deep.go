package web

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/pprof/driver"
	"github.com/google/pprof/profile"
)

// The deep view is google/pprof's own web UI on one merged selection, under /pprof/SELECTION/PAGE. The selection is in the
// path, so that pprof's relative links and its own parameters (f, i, h, s, si, …) work unchanged and a link can be kept.
//
// pprof is written for a developer's own machine: it opens source files by the names that a profile contains, runs objdump
// and dot, fetches URLs and saves settings. None of that is reachable here: only the pages in deepPages are served, and the
// driver gets an ObjTool, Symbolizer, Fetcher and Writer that can do nothing.

// deepPages are the pages of google/pprof that only compute. Left out on purpose: source and disasm (read files of the host),
// graph (runs dot), saveconfig and deleteconfig (write to a home directory).
var deepPages = map[string]bool{"flamegraph": true, "top": true, "peek": true}

const (
	maxSessions   = 4                // merged profiles kept for the deep view; each is some megabytes
	sessionIdle   = 10 * time.Minute // after this long without a request a session is dropped at the next one
	deepLinkLife  = 12 * time.Hour   // how long a signed link works
	maxDeepPage   = 32 << 20         // bytes of one page
	maxSelection  = 4 << 10          // bytes of a selection in a path
	deepReportMax = 60 * time.Second
)

// deepView keeps the sessions. Safe for concurrent use.
type deepView struct {
	key []byte // signs links; nil when no token is configured

	mu       sync.Mutex
	sessions map[string]*session
}

type session struct {
	ready    chan struct{} // closed when the fields below are set
	handlers map[string]http.Handler
	pprof    []byte
	title    string
	err      error
	used     time.Time
}

func newDeepView(token string) *deepView {
	d := &deepView{sessions: map[string]*session{}}
	if token != "" {
		sum := sha256.Sum256([]byte("stoker deep view link\x00" + token))
		d.key = sum[:]
	}
	return d
}

// encodeSelection is the path segment of a selection, its times made absolute.
func (d *deepView) encodeSelection(s selection, now time.Time) string {
	q := url.Values{"from": {strconv.FormatInt(s.From.UnixMilli(), 10)}, "to": {strconv.FormatInt(s.To.UnixMilli(), 10)}, "type": {s.Type}}
	if s.Container != "" {
		q.Set("container", s.Container)
	}
	for _, m := range s.Match {
		q.Add("match", m.String())
	}
	seg := base64.RawURLEncoding.EncodeToString([]byte(q.Encode()))
	if d.key == nil {
		return seg
	}
	seg += "." + strconv.FormatInt(now.Add(deepLinkLife).Unix(), 10)
	return seg + "." + d.mac(seg)
}

func (d *deepView) mac(s string) string {
	m := hmac.New(sha256.New, d.key)
	m.Write([]byte(s))
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

// decodeSelection reads a path segment back, and its signature where there must be one.
func (d *deepView) decodeSelection(seg string, trusted bool, now time.Time) (selection, error) {
	if len(seg) > maxSelection {
		return selection{}, badRequest("use fewer label conditions", "the selection has %d bytes", len(seg))
	}
	body, proof, _ := strings.Cut(seg, ".")
	if d.key != nil && !trusted {
		expiry, sum, _ := strings.Cut(proof, ".")
		if !hmac.Equal([]byte(sum), []byte(d.mac(body+"."+expiry))) {
			return selection{}, &Error{Status: http.StatusUnauthorized, Message: "this link is not signed with the current token", Remedy: "open the deep view from the page again"}
		}
		if t, err := strconv.ParseInt(expiry, 10, 64); err != nil || now.Unix() > t {
			return selection{}, &Error{Status: http.StatusUnauthorized, Message: "this link has expired", Remedy: "open the deep view from the page again"}
		}
	}
	raw, err := base64.RawURLEncoding.DecodeString(body)
	if err != nil {
		return selection{}, badRequest("open the deep view from the page again", "the selection in this link is damaged: %v", err)
	}
	q, err := url.ParseQuery(string(raw))
	if err != nil {
		return selection{}, badRequest("open the deep view from the page again", "the selection in this link is damaged: %v", err)
	}
	return parseSelection(q, "", now)
}

// open returns the session of a selection, making it with load if there is none. Two requests for one selection share one.
func (d *deepView) open(ctx context.Context, id, title string, now time.Time, load func(context.Context) (*profile.Profile, error)) (*session, error) {
	d.mu.Lock()
	for k, s := range d.sessions {
		if now.Sub(s.used) > sessionIdle {
			delete(d.sessions, k)
		}
	}
	s, ok := d.sessions[id]
	if ok {
		s.used = now
		d.mu.Unlock()
		select {
		case <-s.ready:
			return s, s.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	for len(d.sessions) >= maxSessions {
		var oldest string
		for k, s := range d.sessions {
			if oldest == "" || s.used.Before(d.sessions[oldest].used) {
				oldest = k
			}
		}
		delete(d.sessions, oldest)
	}
	s = &session{ready: make(chan struct{}), used: now, title: title, err: errors.New("the deep view could not be opened")}
	d.sessions[id] = s
	d.mu.Unlock()

	defer func() {
		if s.err != nil { // also after a panic: a failure is not kept
			d.mu.Lock()
			if d.sessions[id] == s {
				delete(d.sessions, id)
			}
			d.mu.Unlock()
		}
		close(s.ready)
	}()
	p, err := load(ctx)
	if err != nil {
		s.err = err
		return s, err
	}
	s.handlers, s.pprof, s.err = openDriver(p)
	return s, s.err
}

// driverMu: google/pprof's configuration is a package variable, and so is the environment it reads its settings path from.
var driverMu sync.Mutex

// openDriver starts pprof's web interface on p and returns its handlers instead of serving them.
func openDriver(p *profile.Profile) (map[string]http.Handler, []byte, error) {
	var buf bytes.Buffer
	if err := p.Write(&buf); err != nil {
		return nil, nil, fmt.Errorf("encode the profile: %w", err)
	}
	p, err := profile.ParseData(buf.Bytes())
	if err != nil {
		return nil, nil, fmt.Errorf("read the profile back: %w", err)
	}
	for _, m := range p.Mapping {
		// The driver globs for files by build id; an id is what a container's file says it is.
		m.BuildID = ""
	}
	driverMu.Lock()
	defer driverMu.Unlock()
	// Its settings file must be under some directory that exists by name: one that can hold no file. A service has no HOME,
	// and a HOME of root is nothing to read from.
	old, had := os.LookupEnv("XDG_CONFIG_HOME")
	if err := os.Setenv("XDG_CONFIG_HOME", os.DevNull); err != nil {
		return nil, nil, err
	}
	defer func() {
		if had {
			os.Setenv("XDG_CONFIG_HOME", old)
		} else {
			os.Unsetenv("XDG_CONFIG_HOME")
		}
	}()
	var handlers map[string]http.Handler
	ui := &silentUI{}
	err = driver.PProf(&driver.Options{
		Flagset:       deepFlags{},
		Fetch:         onlyProfile{p},
		Sym:           noSymbols{},
		Obj:           noObjects{},
		Writer:        noWriter{},
		UI:            ui,
		HTTPTransport: noTransport{},
		HTTPServer: func(a *driver.HTTPServerArgs) error {
			handlers = a.Handlers
			return nil
		},
	})
	if err != nil {
		return nil, nil, fmt.Errorf("google/pprof: %w", err)
	}
	if handlers == nil {
		return nil, nil, errors.New("google/pprof gave no pages")
	}
	return handlers, buf.Bytes(), nil
}

// deepFlags is the command line that the driver reads: -http localhost:0 -no_browser -symbolize none SELECTION.
type deepFlags struct{}

func (deepFlags) Bool(name string, def bool, _ string) *bool {
	v := def || name == "no_browser"
	return &v
}
func (deepFlags) Int(_ string, def int, _ string) *int             { return &def }
func (deepFlags) Float64(_ string, def float64, _ string) *float64 { return &def }
func (deepFlags) String(name, def, _ string) *string {
	switch name {
	case "http":
		def = "localhost:0"
	case "symbolize":
		def = "none"
	}
	return &def
}
func (deepFlags) StringList(string, string, string) *[]*string { return &[]*string{} }
func (deepFlags) ExtraUsage() string                           { return "" }
func (deepFlags) AddExtraUsage(string)                         {}
func (deepFlags) Parse(func()) []string                        { return []string{"selection"} }

type onlyProfile struct{ p *profile.Profile }

func (f onlyProfile) Fetch(string, time.Duration, time.Duration) (*profile.Profile, string, error) {
	return f.p, "", nil
}

type noSymbols struct{}

func (noSymbols) Symbolize(string, driver.MappingSources, *profile.Profile) error { return nil }

var errNotHere = errors.New("not available in stoker's deep view")

type noObjects struct{}

func (noObjects) Open(string, uint64, uint64, uint64, string) (driver.ObjFile, error) {
	return nil, errNotHere
}
func (noObjects) Disasm(string, uint64, uint64, bool) ([]driver.Inst, error) { return nil, errNotHere }

type noWriter struct{}

func (noWriter) Open(string) (io.WriteCloser, error) { return nil, errNotHere }

type noTransport struct{}

func (noTransport) RoundTrip(*http.Request) (*http.Response, error) { return nil, errNotHere }

// silentUI: what the driver says goes onto the page by its own error list.
type silentUI struct{}

func (*silentUI) ReadLine(string) (string, error)     { return "", io.EOF }
func (*silentUI) Print(...any)                        {}
func (*silentUI) PrintErr(...any)                     {}
func (*silentUI) IsTerminal() bool                    { return false }
func (*silentUI) WantBrowser() bool                   { return false }
func (*silentUI) SetAutoComplete(func(string) string) {}

// page is an http.ResponseWriter that keeps a page of pprof, so that it can be changed before it is sent.
type page struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (p *page) Header() http.Header { return p.header }
func (p *page) WriteHeader(s int)   { p.status = s }
func (p *page) Write(b []byte) (int, error) {
	if p.body.Len()+len(b) > maxDeepPage {
		return 0, errors.New("the page is too large")
	}
	return p.body.Write(b)
}

// serve answers one page of the session.
func (s *session) serve(w http.ResponseWriter, r *http.Request, name string) {
	if name == "download" { // not the driver's own: that one writes to the shared profile
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Disposition", `attachment; filename="stoker.pb.gz"`)
		_, _ = w.Write(s.pprof) // an error means that the client is gone
		return
	}
	h := s.handlers["/"+name]
	if h == nil || !deepPages[name] {
		writeError(w, &Error{Status: http.StatusNotFound, Message: fmt.Sprintf("the deep view has no page %q", clip(name, 50)),
			Remedy: "use flamegraph, top or peek; for source and disassembly download the profile and run: go tool pprof -http=: FILE"})
		return
	}
	p := &page{header: http.Header{}, status: http.StatusOK}
	h.ServeHTTP(p, r)
	if p.status != http.StatusOK {
		writeError(w, badRequest("mend the expression in the address", "google/pprof: %s", strings.TrimSpace(clip(p.body.String(), 500))))
		return
	}
	body := dressPage(p.body.Bytes(), s.title)
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", deepCSP(body))
	_, _ = w.Write(body)
}

// deepStyle hides the menu entries whose pages are not served.
const deepStyle = `<style>#graphbtn,#list,#disasm,#config,#action-source,#action-source-tab,#action-menu hr:first-of-type{display:none!important}
.stoker-back{display:flex;gap:1em;align-items:center;padding:4px 10px;font:13px system-ui,sans-serif;background:#1b1f27;color:#aab2c0}
.stoker-back a{color:#ffb454;text-decoration:none}.stoker-back a:focus-visible{outline:2px solid #ffb454}</style></head>`

// dressPage adds a way back and hides what is not served. The first </head> and the first <body> are the template's own:
// what comes from the profile stands later, or escaped in the title.
func dressPage(b []byte, title string) []byte {
	b = bytes.Replace(b, []byte("</head>"), []byte(deepStyle), 1)
	bar := `<body><div class="stoker-back"><a href="/">← stoker</a><span>` + html.EscapeString(title) + `</span></div>`
	return bytes.Replace(b, []byte("<body>"), []byte(bar), 1)
}

// deepCSP allows exactly the inline scripts that the page has, by hash: event handlers in attributes, which are what an
// escaping fault would give an attacker first, stay forbidden. The sandbox makes the page an origin of its own: whatever
// runs there cannot read the API. Its styles are inline in places that no hash covers.
func deepCSP(body []byte) string {
	var b strings.Builder
	b.WriteString("default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; " +
		"frame-ancestors 'none'; sandbox allow-scripts allow-downloads allow-popups; script-src")
	n := 0
	for {
		i := bytes.Index(body, []byte("<script>"))
		if i < 0 {
			break
		}
		body = body[i+len("<script>"):]
		j := bytes.Index(body, []byte("</script>"))
		if j < 0 {
			break
		}
		sum := sha256.Sum256(body[:j])
		b.WriteString(" 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'")
		body = body[j:]
		n++
	}
	if n == 0 {
		b.WriteString(" 'none'")
	}
	return b.String()
}
