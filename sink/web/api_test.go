package web_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/sink/store"
	"github.com/stoker-profiler/stoker/sink/web"
	"github.com/stoker-profiler/stoker/sink/web/internal/fixture"
)

// now is a fixed moment: profiles lie in the twenty minutes before it.
var now = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

const minutes = 20

type agent struct {
	t     *testing.T
	h     http.Handler
	node  *fixture.Node
	store *store.Store
	path  string
}

func newAgent(t *testing.T, cfg web.Config, fill bool) *agent {
	t.Helper()
	a := &agent{t: t, node: fixture.New(now), path: filepath.Join(t.TempDir(), "profiles.db")}
	st, err := store.Open(store.Config{Path: a.path, MaintainEvery: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	a.store = st
	if fill {
		if err := fixture.Fill(t.Context(), st, now.Add(-minutes*time.Minute), now.Add(fixture.Window)); err != nil {
			t.Fatal(err)
		}
	}
	a.node.LastTop.WindowEnd = now
	cfg.Now = func() time.Time { return now }
	cfg.Logger = slog.New(slog.DiscardHandler)
	if a.h, err = web.Handler(a.node, st, cfg); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *agent) get(target string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", "http://localhost"+target, nil)
	w := httptest.NewRecorder()
	a.h.ServeHTTP(w, r)
	return w
}

// json asks and decodes, and fails the test unless the status is 200.
func (a *agent) json(target string, into any) {
	a.t.Helper()
	w := a.get(target)
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "application/json" {
		a.t.Fatalf("%s: status %d, %s: %.300s", target, w.Code, w.Header().Get("Content-Type"), w.Body)
	}
	if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
		a.t.Fatalf("%s: %v in %.300s", target, err, w.Body)
	}
}

// stored sums what the store holds, without this package.
func (a *agent) stored(q store.Query) (total int64, n int) {
	a.t.Helper()
	for p, err := range a.store.Select(a.t.Context(), q) {
		if err != nil {
			a.t.Fatal(err)
		}
		total += p.Total
		n++
	}
	return total, n
}

func TestContainersAreListed(t *testing.T) {
	a := newAgent(t, web.Config{}, false)
	var list []web.Container
	a.json("/api/v1/containers", &list)
	if len(list) != len(fixture.Load)+1 {
		t.Fatalf("%d containers", len(list))
	}
	for _, c := range list {
		if c.Name == "pause" && (c.State != "excluded" || c.Reason == "") {
			t.Errorf("pause is %+v", c)
		}
		if c.Name == "checkout" && (c.Pod == nil || c.Pod.Namespace != "shop" || c.ScopeBeforeStart == nil || !*c.ScopeBeforeStart || c.InScopeAt.IsZero()) {
			t.Errorf("checkout is %+v", c)
		}
	}
	a.node.List = nil
	if w := a.get("/api/v1/containers"); strings.TrimSpace(w.Body.String()) != "[]" {
		t.Errorf("no containers: %s", w.Body)
	}
}

func TestSourcesAreListed(t *testing.T) {
	a := newAgent(t, web.Config{}, false)
	if w := a.get("/api/v1/sources"); strings.TrimSpace(w.Body.String()) != "[]" {
		t.Errorf("no sources: %s", w.Body)
	}
	a.node.Told = []web.Source{{Name: "docker", State: web.SourceAbsent, Message: "no socket"}, {Name: "cgroup", State: web.SourceConnected, Containers: 3}}
	var list []web.Source
	a.json("/api/v1/sources", &list)
	if !reflect.DeepEqual(list, a.node.Told) {
		t.Errorf("got %+v, want %+v", list, a.node.Told)
	}
}

func TestProfileIsTheExactSumOfTheStore(t *testing.T) {
	a := newAgent(t, web.Config{}, true)
	want, n := a.stored(store.Query{From: now.Add(-10 * time.Minute), To: now})
	var v web.ProfileView
	a.json("/api/v1/profile?from=-10m&format=json", &v)
	if v.Total != want || v.Profiles != n || v.Tree.Total != want || v.Unit != "nanoseconds" || v.SampleType != "cpu" {
		t.Errorf("%d of %d profiles, tree %d, %s/%s; want %d of %d", v.Total, v.Profiles, v.Tree.Total, v.SampleType, v.Unit, want, n)
	}
	w := a.get("/api/v1/profile?from=-10m")
	p, err := profile.ParseData(w.Body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, s := range p.Sample {
		sum += s.Value[0]
	}
	if sum != want {
		t.Errorf("the pprof's sum is %d, want %d", sum, want)
	}
	// One container, by id, by the beginning of its id, by name, and by its label.
	id := fixture.Load[1].ID
	want, n = a.stored(store.Query{From: now.Add(-10 * time.Minute), To: now, ContainerID: id})
	for _, q := range []string{"container=" + id, "container=" + id[:12], "container=postgres", "match=container_name%3Dpostgres", "match=service_name%3D~.*/postgres&match=compose_project!%3Dedge", "container=postgres&match=container_runtime%3Ddocker"} {
		var v web.ProfileView
		a.json("/api/v1/profile?from=-10m&format=top&"+q, &v)
		if v.Total != want || v.Profiles != n || v.Tree != nil || len(v.Functions) == 0 {
			t.Errorf("%s: %d of %d profiles, want %d of %d", q, v.Total, v.Profiles, want, n)
		}
	}
	// A container that the registry has forgotten is found by its id all the same.
	a.node.List = nil
	a.json("/api/v1/profile?from=-10m&format=top&container="+id, &v)
	if v.Total != want {
		t.Errorf("forgotten: %d, want %d", v.Total, want)
	}
}

func TestEveryFormatIsServedAndCannotAct(t *testing.T) {
	a := newAgent(t, web.Config{}, true)
	for format, want := range map[string]string{"pprof": "application/octet-stream", "html": "text/html", "svg": "image/svg+xml", "folded": "text/plain", "speedscope": "application/json", "text": "text/plain"} {
		w := a.get("/api/v1/profile?format=" + format)
		if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), want) || w.Body.Len() < 100 {
			t.Errorf("%s: status %d, %s, %d bytes", format, w.Code, w.Header().Get("Content-Type"), w.Body.Len())
		}
		if d := w.Header().Get("Content-Disposition"); !strings.HasPrefix(d, "attachment; filename=") {
			t.Errorf("%s: it opens in the page's origin: %q", format, d)
		}
		if csp := w.Header().Get("Content-Security-Policy"); !strings.Contains(csp, "sandbox") {
			t.Errorf("%s: policy %q", format, csp)
		}
		if format == "html" && strings.Contains(w.Body.String(), "<script>window.pwned") {
			t.Error("a hostile name is a script in the page")
		}
	}
}

func TestNothingInTheSelectionIsNotAnError(t *testing.T) {
	a := newAgent(t, web.Config{}, false)
	var v web.ProfileView
	a.json("/api/v1/profile?format=json", &v)
	if v.Total != 0 || v.Profiles != 0 || v.Tree == nil || v.Functions == nil {
		t.Errorf("got %+v", v)
	}
	if w := a.get("/api/v1/profile"); w.Code != 200 {
		t.Errorf("pprof: status %d", w.Code)
	} else if p, err := profile.ParseData(w.Body.Bytes()); err != nil || len(p.Sample) != 0 {
		t.Errorf("pprof: %v, %v", p, err)
	}
	var d web.DiffAnswer
	a.json("/api/v1/diff", &d)
	if d.Functions == nil || d.Left.Total != 0 {
		t.Errorf("got %+v", d)
	}
	var s web.SeriesAnswer
	a.json("/api/v1/series", &s)
	if s.Series == nil || len(s.Series) != 0 || s.StepMS != 10_000 {
		t.Errorf("got %+v", s)
	}
	for _, target := range []string{"/api/v1/profile?format=svg", "/pprof/x/flamegraph"} {
		if w := a.get(target); w.Code != 404 && w.Code != 400 {
			t.Errorf("%s: status %d: %s", target, w.Code, w.Body)
		}
	}
}

func TestSeriesAddUpToTheStore(t *testing.T) {
	a := newAgent(t, web.Config{}, true)
	for _, c := range []struct {
		query string
		step  time.Duration
	}{{"from=-10m", 10 * time.Second}, {"from=-20m&step=1m", time.Minute}, {"from=-20m&step=7s", 7 * time.Second}} {
		var s web.SeriesAnswer
		a.json("/api/v1/series?"+c.query, &s)
		if time.Duration(s.StepMS)*time.Millisecond != c.step || len(s.Series) != len(fixture.Load) {
			t.Fatalf("%s: step %d ms, %d series", c.query, s.StepMS, len(s.Series))
		}
		var total int64
		var cores float64
		for i, one := range s.Series {
			if i > 0 && one.TotalNS > s.Series[i-1].TotalNS {
				t.Errorf("%s: not sorted", c.query)
			}
			if one.ContainerID == "" || one.Labels["service_name"] == "" || len(one.Cores) < s.Complete {
				t.Errorf("%s: series %+v", c.query, one)
			}
			total += one.TotalNS
			for _, v := range one.Cores {
				cores += v
			}
		}
		if got := cores * c.step.Seconds(); got < float64(total)/1e9*0.999 || got > float64(total)/1e9*1.001 {
			t.Errorf("%s: the steps add up to %f s, the total is %f s", c.query, got, float64(total)/1e9)
		}
		if c.query == "from=-20m&step=1m" {
			if want, _ := a.stored(store.Query{}); total != want {
				t.Errorf("%s: %d ns, the store has %d", c.query, total, want)
			}
		}
	}
}

func TestAStepThatHasOnlyBegunIsNotShownAsAFall(t *testing.T) {
	a := newAgent(t, web.Config{}, true)
	a.node.LastTop.WindowEnd = now.Add(-4 * time.Second)
	var s web.SeriesAnswer
	a.json("/api/v1/series?from=-10m", &s)
	if want := 59; s.Complete != want {
		t.Errorf("%d of %d steps are complete, want %d", s.Complete, len(s.Series[0].Cores), want)
	}
	// Of a long step, what was seen counts, per second of what was seen.
	a.node.LastTop.WindowEnd = now
	a.json("/api/v1/series?from=2026-11-25T11:41:00Z&to=2026-11-25T12:10:00Z&step=10m", &s)
	if s.Complete != 2 && s.Complete != 3 {
		t.Errorf("%d of %d steps are complete", s.Complete, len(s.Series[0].Cores))
	}
}

func TestLabelsAreListed(t *testing.T) {
	a := newAgent(t, web.Config{}, true)
	var l web.LabelsAnswer
	a.json("/api/v1/labels", &l)
	if got := fmt.Sprint(l.Labels["compose_project"]); got != "[edge shop]" {
		t.Errorf("compose_project: %s", got)
	}
	a.json("/api/v1/labels?match=compose_project%3Dedge", &l)
	if got := fmt.Sprint(l.Labels["service_name"]); got != "[ingress]" {
		t.Errorf("service_name: %s", got)
	}
}

func TestDiffComparesTwoSides(t *testing.T) {
	a := newAgent(t, web.Config{}, true)
	var d web.DiffAnswer
	a.json("/api/v1/diff?container=checkout&left_from=-20m&left_to=-15m&right_from=-5m&right_to=now&sides=1", &d)
	left, _ := a.stored(store.Query{From: now.Add(-20 * time.Minute), To: now.Add(-15 * time.Minute), ContainerID: fixture.Load[0].ID})
	right, _ := a.stored(store.Query{From: now.Add(-5 * time.Minute), To: now, ContainerID: fixture.Load[0].ID})
	if d.Left.Total != left || d.Right.Total != right || d.Tree.BaseTotal != left || d.Tree.Total != right || d.Left.Tree == nil {
		t.Errorf("got %d and %d (tree %d and %d), want %d and %d", d.Left.Total, d.Right.Total, d.Tree.BaseTotal, d.Tree.Total, left, right)
	}
	if f := d.Functions[0]; f.Name != "regexp.(*Regexp).backtrack" || f.RightFlat <= f.LeftFlat {
		t.Errorf("the largest change is %+v", f)
	}
	for format, want := range map[string]string{"pprof": "application/octet-stream", "html": "text/html"} {
		w := a.get("/api/v1/diff?left_from=-20m&left_to=-15m&right_from=-5m&format=" + format)
		if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), want) || !strings.HasPrefix(w.Header().Get("Content-Disposition"), "attachment") {
			t.Errorf("%s: status %d, %s", format, w.Code, w.Header().Get("Content-Type"))
		}
	}
	if w := a.get("/api/v1/diff?format=svg"); w.Code != 400 {
		t.Errorf("a format that cannot show a difference: status %d", w.Code)
	}
	var sum web.DiffFunction
	for _, f := range d.Functions {
		sum.LeftFlat += f.LeftFlat
		sum.RightFlat += f.RightFlat
	}
	if sum.LeftFlat != left || sum.RightFlat != right {
		t.Errorf("the table adds up to %d and %d, want %d and %d", sum.LeftFlat, sum.RightFlat, left, right)
	}
}

func TestTopIsTheLastWindow(t *testing.T) {
	a := newAgent(t, web.Config{}, false)
	var top web.Top
	a.json("/api/v1/top", &top)
	if len(top.Containers) != 1 || top.Containers[0].Functions[0].Name != "main.price" {
		t.Errorf("got %+v", top)
	}
}

func TestBadRequestsSayWhatToDo(t *testing.T) {
	a := newAgent(t, web.Config{}, false)
	for _, c := range []struct {
		target string
		status int
	}{
		{"/api/v1/profile?from=x", 400}, {"/api/v1/profile?format=exe", 400}, {"/api/v1/profile?match=x", 400}, {"/api/v1/profile?match=a%3D~(", 400}, {"/api/v1/series?step=1ns", 400}, {"/api/v1/series?from=now&to=now", 400},
		{"/api/v1/diff?left_from=x", 400}, {"/api/v1/diff?right_match=x", 400}, {"/api/v1/labels?to=x", 400}, {"/api/v1/deep?from=x", 400}, {"/pprof/?from=x", 400}, {"/pprof/!/flamegraph", 400},
		{"/api/v1/nothing", 404}, {"/api/v2/containers", 404}, {"/assets/../web.go", 404}, {"/assets/nothing.js", 404}, {"/api/v1/profile?container=" + strings.Repeat("a", 5000), 400},
	} {
		w := a.get(c.target)
		var e web.Error
		if c.target == "/assets/../web.go" {
			if w.Code == 200 {
				t.Errorf("%s: status %d", c.target, w.Code)
			}
			continue
		}
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || w.Code != c.status || e.Message == "" || (c.status == 400 && e.Remedy == "") {
			t.Errorf("%s: status %d, %s; want %d with error and remedy", clipped(c.target), w.Code, w.Body, c.status)
		}
	}
	for _, method := range []string{"POST", "DELETE"} {
		r := httptest.NewRequest(method, "http://localhost/api/v1/profile", nil)
		w := httptest.NewRecorder()
		a.h.ServeHTTP(w, r)
		if w.Code != 404 && w.Code != 405 {
			t.Errorf("%s: status %d", method, w.Code)
		}
	}
}

func clipped(s string) string { return s[:min(len(s), 80)] }

func TestSelectionsThatAreTooLargeAreRefused(t *testing.T) {
	a := newAgent(t, web.Config{MaxMergeBytes: 20_000}, true)
	w := a.get("/api/v1/profile?from=-20m")
	if w.Code != http.StatusRequestEntityTooLarge || !strings.Contains(w.Body.String(), "shorter range") {
		t.Errorf("status %d: %s", w.Code, w.Body)
	}
	if w := a.get("/api/v1/profile?from=-30s&container=ingress"); w.Code != 200 {
		t.Errorf("a small one: status %d: %s", w.Code, w.Body)
	}
}

func TestARequestThatIsGivenUpEndsQuietly(t *testing.T) {
	a := newAgent(t, web.Config{}, true)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, target := range []string{"/api/v1/profile", "/api/v1/diff", "/api/v1/series", "/api/v1/labels", "/api/v1/profile?container=nobody"} {
		r := httptest.NewRequest("GET", "http://localhost"+target, nil).WithContext(ctx)
		w := httptest.NewRecorder()
		a.h.ServeHTTP(w, r)
		if w.Code == 200 || strings.Contains(w.Body.String(), "internal error") {
			t.Errorf("%s: status %d: %s", target, w.Code, w.Body)
		}
	}
	b := newAgent(t, web.Config{Timeout: time.Nanosecond}, true)
	if w := b.get("/api/v1/profile"); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("a timeout: status %d: %s", w.Code, w.Body)
	}
}

func TestADamagedProfileIsCountedAndTheOthersAreShown(t *testing.T) {
	a := newAgent(t, web.Config{}, true)
	want, n := a.stored(store.Query{From: now.Add(-10 * time.Minute), To: now, ContainerID: fixture.Load[1].ID})
	db, err := sql.Open("sqlite", a.path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var id, total int64
	if err := db.QueryRow("SELECT id, total FROM profiles WHERE container_id = ? ORDER BY end_ns DESC LIMIT 1 OFFSET 3", fixture.Load[1].ID).Scan(&id, &total); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("UPDATE profiles SET pprof = x'1f8b0800' WHERE id = ?", id); err != nil {
		t.Fatal(err)
	}
	var v web.ProfileView
	a.json("/api/v1/profile?from=-10m&format=json&container=postgres", &v)
	if v.Unreadable != 1 || v.UnreadableReason == "" || v.Profiles != n-1 || v.Total != want-total {
		t.Errorf("%d unreadable (%s), %d profiles, total %d; want 1, %d, %d", v.Unreadable, v.UnreadableReason, v.Profiles, v.Total, n-1, want-total)
	}
}

func TestHealthSaysWhatIsWrong(t *testing.T) {
	a := newAgent(t, web.Config{}, true)
	for _, c := range []struct {
		state  web.HealthState
		status int
	}{{web.OK, 200}, {web.Degraded, 200}, {web.Failing, 503}} {
		a.node.State.Parts = []web.HealthPart{{Name: "store", State: web.OK}, {Name: "sampler", State: c.state, Message: "no BTF", Remedy: "use a kernel with CONFIG_DEBUG_INFO_BTF"}}
		w := a.get("/healthz")
		var h struct {
			Status web.HealthState
			Parts  []web.HealthPart
			Store  struct {
				Bytes    int64
				Profiles int64
			}
		}
		if err := json.Unmarshal(w.Body.Bytes(), &h); err != nil {
			t.Fatal(err)
		}
		if w.Code != c.status || h.Status != c.state || h.Parts[1].Remedy == "" || h.Store.Bytes == 0 || h.Store.Profiles == 0 {
			t.Errorf("%s: status %d, %s", c.state, w.Code, w.Body)
		}
	}
	b := newAgent(t, web.Config{Token: "0123456789abcdef"}, false)
	if w := b.get("/healthz"); strings.TrimSpace(w.Body.String()) != `{"status":"ok"}` {
		t.Errorf("without the token: %s", w.Body)
	}
}

func TestMetricsAndPageAreServed(t *testing.T) {
	a := newAgent(t, web.Config{}, false)
	if w := a.get("/metrics"); !strings.Contains(w.Body.String(), "stoker_samples_total") {
		t.Errorf("metrics: %d %s", w.Code, w.Body)
	}
	w := a.get("/")
	page := w.Body.String()
	if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/html") {
		t.Fatalf("page: %d %s", w.Code, w.Header().Get("Content-Type"))
	}
	for _, bad := range []string{"http://", "https://", "onclick=", "style=", "<style", "javascript:"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q in it", bad)
		}
	}
	for _, s := range strings.Split(page, "<script")[1:] {
		if !strings.Contains(s[:strings.Index(s, ">")], "src=") {
			t.Errorf("an inline script: %.80s", s)
		}
	}
	for name, want := range map[string]string{"app.js": "text/javascript", "theme.js": "text/javascript", "flamegraph.js": "text/javascript", "app.css": "text/css", "flamegraph.css": "text/css", "logo.svg": "image/svg+xml"} {
		if w := a.get("/assets/" + name); w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), want) || w.Body.Len() == 0 {
			t.Errorf("%s: status %d, %s", name, w.Code, w.Header().Get("Content-Type"))
		}
	}
	r := httptest.NewRequest("GET", "http://localhost/assets/app.js", nil)
	r.Header.Set("Accept-Encoding", "gzip")
	z := httptest.NewRecorder()
	a.h.ServeHTTP(z, r)
	if z.Header().Get("Content-Encoding") != "gzip" {
		t.Error("the script is not compressed for who asks for it")
	}
}

func TestDeepViewHasOnlyItsSafePages(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", "")
	os.Unsetenv("XDG_CONFIG_HOME")
	a := newAgent(t, web.Config{}, true)
	w := a.get("/pprof/?from=-10m")
	base := strings.TrimSuffix(w.Header().Get("Location"), "flamegraph")
	if w.Code != http.StatusFound || !strings.HasPrefix(base, "/pprof/") {
		t.Fatalf("status %d, to %q", w.Code, base)
	}
	for _, page := range []string{"flamegraph", "top", "peek?f=price", "flamegraph?f=placeOrder&i=json", "top?g=lines"} {
		w := a.get(base + page)
		if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/html") {
			t.Errorf("%s: status %d, %s: %.200s", page, w.Code, w.Header().Get("Content-Type"), w.Body)
			continue
		}
		csp := w.Header().Get("Content-Security-Policy")
		if !strings.Contains(csp, "sandbox allow-scripts") || !strings.Contains(csp, "script-src 'sha256-") || strings.Contains(csp, "allow-same-origin") || strings.Contains(csp, "script-src 'unsafe") {
			t.Errorf("%s: policy %s", page, csp)
		}
		if body := w.Body.String(); strings.Contains(body, "<img src=x") || strings.Contains(body, "</script><script>window.pwned") {
			t.Errorf("%s: a hostile name is markup", page)
		} else if m := regexp.MustCompile(`(src|href)="?(https?:)?//[^"]*`).FindString(body); m != "" {
			t.Errorf("%s: it points to another host: %s", page, m)
		}
	}
	for _, page := range []string{"source?f=main", "disasm?f=main", "graph", "saveconfig?config=x", "deleteconfig?config=x", "flamegraphold", "../../healthz/x", "nothing"} {
		if w := a.get(base + page); w.Code == 200 || strings.Contains(w.Body.String(), "root:") {
			t.Errorf("%s: status %d", page, w.Code)
		}
	}
	if w := a.get(base + "flamegraph?f=("); w.Code != 400 {
		t.Errorf("a bad expression: status %d", w.Code)
	}
	w = a.get(base + "download")
	if p, err := profile.ParseData(w.Body.Bytes()); err != nil || len(p.Sample) == 0 {
		t.Errorf("download: %v", err)
	}
	if w := a.get(base); w.Header().Get("Location") != "flamegraph" {
		t.Errorf("the index goes to %q", w.Header().Get("Location"))
	}
	if left, _ := os.ReadDir(home); len(left) != 0 {
		t.Errorf("something was written to the home directory: %v", left)
	}
	if v, ok := os.LookupEnv("XDG_CONFIG_HOME"); ok {
		t.Errorf("XDG_CONFIG_HOME was left as %q", v)
	}
	// Without any home, as a service is started.
	os.Unsetenv("HOME")
	if w := a.get("/pprof/?from=-5m"); a.get(w.Header().Get("Location")).Code != 200 {
		t.Error("it needs a home directory")
	}
}

func TestDeepViewServesManyAtOnceAndForgetsTheOldest(t *testing.T) {
	a := newAgent(t, web.Config{MaxHeavy: 4}, true)
	done := make(chan string)
	const each, selections = 3, 7
	get := func(target string) *httptest.ResponseRecorder {
		for { // a busy machine may turn somebody away after ten seconds
			if w := a.get(target); w.Code != http.StatusServiceUnavailable {
				return w
			}
		}
	}
	for i := range each * selections {
		go func() {
			w := get(fmt.Sprintf("/pprof/?from=-%dm&container=%s", i%selections+1, fixture.Load[i%2].ID))
			for _, page := range []string{"flamegraph", "top", "download"} {
				if w := get(strings.TrimSuffix(w.Header().Get("Location"), "flamegraph") + page); w.Code != 200 {
					done <- fmt.Sprintf("status %d: %.200s", w.Code, w.Body)
					return
				}
			}
			done <- ""
		}()
	}
	for range each * selections {
		if s := <-done; s != "" {
			t.Error(s)
		}
	}
}

// socket serves the agent on a Unix socket and returns a client for it.
func (a *agent) socket() *http.Client {
	a.t.Helper()
	path := filepath.Join(a.t.TempDir(), "s")
	l, err := web.Listen("unix:"+path, "")
	if err != nil {
		a.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- web.Serve(ctx, l, a.h, slog.New(slog.DiscardHandler)) }()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}
	a.t.Cleanup(func() {
		tr.CloseIdleConnections()
		cancel()
		if err := <-served; err != nil {
			a.t.Error(err)
		}
	})
	return &http.Client{Transport: tr}
}

func record(t *testing.T, c *http.Client, body string) (int, []web.RecordMessage, string) {
	t.Helper()
	resp, err := c.Post("http://agent/api/v1/record", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out []web.RecordMessage
	if resp.StatusCode != http.StatusOK {
		return resp.StatusCode, nil, string(b)
	}
	for line := range bytes.Lines(b) {
		var m web.RecordMessage
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		out = append(out, m)
	}
	return resp.StatusCode, out, string(b)
}

func TestRecordingStreamsProgressThenTheProfile(t *testing.T) {
	a := newAgent(t, web.Config{}, false)
	c := a.socket()
	var got web.RecordRequest
	a.node.Recording = func(_ context.Context, r web.RecordRequest, progress func(web.RecordProgress)) (*profile.Profile, error) {
		got = r
		progress(web.RecordProgress{Elapsed: web.Duration(time.Second), Duration: r.Duration, Samples: 97, Containers: 1})
		progress(web.RecordProgress{Elapsed: web.Duration(2 * time.Second), Duration: r.Duration, Samples: 194, Containers: 1})
		return profile.ParseData(fixture.Profile(fixture.Load[0], now, 0.5, 1).Pprof)
	}
	status, lines, _ := record(t, c, `{"targets": ["checkout", "team=payments"], "duration": "2s", "frequency": 199}`)
	if status != 200 || len(lines) != 3 || lines[0].Progress.Samples != 97 || lines[1].Progress.Samples != 194 || time.Duration(lines[1].Progress.Elapsed) != 2*time.Second {
		t.Fatalf("status %d, %+v", status, lines)
	}
	if p, err := profile.ParseData(lines[2].Pprof); err != nil || len(p.Sample) == 0 {
		t.Errorf("the profile: %v", err)
	}
	if fmt.Sprint(got.Targets) != "[checkout team=payments]" || time.Duration(got.Duration) != 2*time.Second || got.Frequency != 199 {
		t.Errorf("the agent was asked for %+v", got)
	}
}

func TestRecordingThatFailsSaysWhy(t *testing.T) {
	a := newAgent(t, web.Config{}, false)
	c := a.socket()
	noSuch := &web.Error{Status: http.StatusNotFound, Message: "no container is called nobody", Remedy: "stoker ps lists them"}
	a.node.Recording = func(context.Context, web.RecordRequest, func(web.RecordProgress)) (*profile.Profile, error) {
		return nil, noSuch
	}
	if status, _, body := record(t, c, `{"duration": "1s"}`); status != 404 || !strings.Contains(body, "stoker ps") {
		t.Errorf("before it began: status %d, %s", status, body)
	}
	a.node.Recording = nil
	a.node.RecordErr = fmt.Errorf("flush: %w", noSuch)
	status, lines, _ := record(t, c, `{"duration": "1s"}`)
	if last := lines[len(lines)-1]; status != 200 || len(lines) != 4 || last.Error == nil || last.Error.Remedy != noSuch.Remedy || !strings.Contains(last.Error.Message, "nobody") {
		t.Errorf("after it began: status %d, %+v", status, lines)
	}
	a.node.RecordErr = errors.New("the ring is broken")
	_, lines, _ = record(t, c, `{"duration": "1s"}`)
	if last := lines[len(lines)-1]; last.Error == nil || !strings.Contains(last.Error.Message, "the ring is broken") {
		t.Errorf("another error: %+v", last)
	}
	for _, body := range []string{"", "{", `{"duration": "0s"}`, `{"duration": "1000h"}`, `{"duration": "x"}`, `{"duration": "1s", "frequency": -1}`, `{"duration": "1s", "unknown": 1}`, `{"duration": "1s"} {"duration": "1s"}`,
		`{"duration": "1s", "targets": ["` + strings.Repeat("a", 100_000) + `"]}`} {
		if status, _, answer := record(t, c, body); status != 400 || !strings.Contains(answer, "remedy") {
			t.Errorf("%.60s: status %d, %s", body, status, answer)
		}
	}
}

func TestRecordingIsRefusedOverTCP(t *testing.T) {
	a := newAgent(t, web.Config{}, false)
	s := httptest.NewServer(a.h)
	defer s.Close()
	if status, _, body := record(t, &http.Client{Transport: rewrite{s.URL}}, `{"duration": "1s"}`); status != 403 || !strings.Contains(body, "Unix socket") {
		t.Errorf("status %d, %s", status, body)
	}
}

// rewrite sends requests for any host to a server.
type rewrite struct{ to string }

func (w rewrite) RoundTrip(r *http.Request) (*http.Response, error) {
	u, err := url.Parse(w.to)
	if err != nil {
		return nil, err
	}
	r = r.Clone(r.Context())
	r.URL.Host, r.Host = u.Host, u.Host
	return http.DefaultTransport.RoundTrip(r)
}

func TestARecordingEndsWhenItsClientGoes(t *testing.T) {
	a := newAgent(t, web.Config{}, false)
	ended := make(chan error, 1)
	a.node.Recording = func(ctx context.Context, r web.RecordRequest, progress func(web.RecordProgress)) (*profile.Profile, error) {
		progress(web.RecordProgress{Duration: r.Duration})
		<-ctx.Done()
		ended <- ctx.Err()
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "POST", "http://agent/api/v1/record", strings.NewReader(`{"duration": "30m"}`))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := a.socket().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	buf := make([]byte, 16)
	if _, err := resp.Body.Read(buf); err != nil { // the first line comes while it lasts
		t.Fatal(err)
	}
	cancel()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("it goes on for nobody")
	}
}

func TestTooManyAtOnceAreTurnedAway(t *testing.T) {
	a := newAgent(t, web.Config{MaxHeavy: 1}, true)
	results := make(chan int, 40)
	for range 40 {
		go func() { results <- a.get("/api/v1/profile?format=json").Code }()
	}
	for range 40 {
		if code := <-results; code != 200 && code != 503 {
			t.Errorf("status %d", code)
		}
	}
}

func TestHandlerNeedsItsParts(t *testing.T) {
	if _, err := web.Handler(nil, nil, web.Config{}); err == nil {
		t.Error("no backend: taken")
	}
}

var _ sink.Sink = (*store.Store)(nil)
