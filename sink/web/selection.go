package web

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/pprof/profile"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/sink/file"
	"github.com/stoker-profiler/stoker/sink/pprof"
	"github.com/stoker-profiler/stoker/sink/store"
)

const (
	maxSeries    = 2000 // series in one answer; the largest stay
	maxFunctions = 1000 // rows of a table of functions
	maxNodes     = 4096 // of a flame graph in the page; a phone must draw it
	maxValues    = 1000 // values of one label
)

// merged is the sum of a selection's profiles.
type merged struct {
	profile  *profile.Profile // of the selected type; without samples where nothing matched
	profiles int
	from, to time.Time // what the profiles cover; both zero where nothing matched
	damaged  int       // profiles that could not be read
	reason   error     // why, for the first of them
}

// query is the selection as the store takes it. A container is given by id, by the beginning of the id of one that the
// registry knows, or by name: then all that ever had that name are meant, for a restart gives a new id.
func (s *server) query(ctx context.Context, sel selection) (store.Query, error) {
	q := store.Query{From: sel.From, To: sel.To, Type: sel.Type}
	for _, m := range sel.Match {
		q.Match = append(q.Match, m.m)
	}
	if sel.Container == "" {
		return q, nil
	}
	if c, ok := s.container(ctx, sel.Container); ok {
		q.ContainerID = c.ID
		return q, nil
	}
	byID := q
	byID.ContainerID, byID.Limit = sel.Container, 1
	found := false
	for _, err := range s.store.Select(ctx, byID) {
		if err != nil {
			return q, fmt.Errorf("read the store: %w", err)
		}
		found = true // the only one
	}
	if found {
		q.ContainerID = sel.Container
		return q, nil
	}
	m, err := labels.NewMatcher(labels.MatchEqual, "container_name", sel.Container)
	if err != nil {
		return q, badRequest("use an id, the beginning of an id, or a name", "container %q: %v", sel.Container, err)
	}
	q.Match = append(q.Match, m)
	return q, nil
}

// merge adds the selection's profiles up, one at a time. It needs a slot of s.heavy.
func (s *server) merge(ctx context.Context, sel selection) (*merged, error) {
	q, err := s.query(ctx, sel)
	if err != nil {
		return nil, err
	}
	var (
		m      pprof.Merger
		out    merged
		bytes  int64
		failed error
	)
	// After a failure the read is cancelled and left to end by itself: it may still have an error to yield.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fail := func(err error) {
		failed = cmp.Or(failed, err)
		cancel()
	}
	for p, err := range s.store.Select(ctx, q) {
		switch {
		case ctx.Err() != nil:
			fail(fmt.Errorf("read the store: %w", ctx.Err()))
			continue
		case err != nil:
			out.unreadable(err)
			continue
		}
		if bytes += int64(len(p.Pprof)); bytes > s.cfg.MaxMergeBytes {
			fail(&Error{Status: http.StatusRequestEntityTooLarge, Message: fmt.Sprintf("the selection has more than %d KiB of profiles", s.cfg.MaxMergeBytes>>10),
				Remedy: "choose a shorter range, one container or a label; or use stoker query on the node"})
			continue
		}
		if err := m.Add(p.Pprof); errors.Is(err, pprof.ErrTooLarge) {
			fail(&Error{Status: http.StatusRequestEntityTooLarge, Message: err.Error(), Remedy: "choose a shorter range, one container or a label"})
			continue
		} else if err != nil {
			out.unreadable(fmt.Errorf("profile of %s at %s: %w", p.ContainerID, p.Start.UTC().Format(time.RFC3339), err))
			continue
		}
		if out.from.IsZero() || p.Start.Before(out.from) {
			out.from = p.Start
		}
		if p.End.After(out.to) {
			out.to = p.End
		}
	}
	if failed != nil {
		return nil, failed
	}
	if out.profiles = m.Len(); out.profiles > 0 {
		out.profile, err = m.Profile()
		return &out, err
	}
	if out.damaged > 0 {
		return nil, fmt.Errorf("read the store: %w", out.reason)
	}
	out.profile, err = empty(sink.Type{Name: sel.Type, Samples: sink.CPU.Samples, Period: sink.CPU.Period}, sel)
	return &out, err
}

// unreadable notes a profile that is damaged: the others are still worth seeing, and the answer says that one is missing.
func (m *merged) unreadable(err error) {
	if m.damaged++; m.reason == nil {
		m.reason = err
	}
}

// empty is a valid profile without samples: what was asked for, and nothing in it.
func empty(t sink.Type, sel selection) (*profile.Profile, error) {
	p := &profile.Profile{TimeNanos: sel.From.UnixNano(), DurationNanos: int64(sel.To.Sub(sel.From)), PeriodType: &profile.ValueType{Type: t.Period.Type, Unit: t.Period.Unit}}
	for _, v := range t.Samples {
		p.SampleType = append(p.SampleType, &profile.ValueType{Type: v.Type, Unit: v.Unit})
	}
	return p, p.CheckValid()
}

func errNothing() error {
	return &Error{Status: http.StatusNotFound, Message: "there are no profiles in this selection", Remedy: "choose a longer range, or fewer conditions"}
}

func encodeProfile(p *profile.Profile) ([]byte, error) {
	if p == nil {
		return nil, errors.New("there is no profile")
	}
	return pprof.Encode(p)
}

// formats are the values of the parameter format.
func formats() []string {
	return []string{"pprof", "html", "svg", "folded", "speedscope", "text", "json", "top"}
}

// ProfileView is the answer of GET /api/v1/profile?format=json, and of format=top without the tree.
type ProfileView struct {
	FromMS int64 `json:"from_ms"`
	ToMS   int64 `json:"to_ms"`
	// CoveredFromMS and CoveredToMS are what the profiles really cover: older ones are kept in pieces of minutes, later hours.
	CoveredFromMS int64 `json:"covered_from_ms,omitempty"`
	CoveredToMS   int64 `json:"covered_to_ms,omitempty"`
	Profiles      int   `json:"profiles"`
	// Unreadable profiles are damaged and not in the sum; UnreadableReason is the first one's.
	Unreadable       int             `json:"unreadable,omitempty"`
	UnreadableReason string          `json:"unreadable_reason,omitempty"`
	SampleType       string          `json:"sample_type"`
	Unit             string          `json:"unit"`
	Total            int64           `json:"total"`
	Functions        []file.Function `json:"functions"` // the largest flat first, at most 1000
	Tree             *file.Tree      `json:"tree,omitempty"`
}

func (s *server) profile(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	sel, err := parseSelection(q, "", s.cfg.Now())
	if err != nil {
		return err
	}
	format := cmp.Or(q.Get("format"), "pprof")
	if !slices.Contains(formats(), format) {
		return badRequest("use one of "+strings.Join(formats(), ", "), "there is no format %q", clip(format, 50))
	}
	leave, err := s.heavy.enter(r.Context())
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.Timeout)
	defer cancel()
	m, err := s.merge(ctx, sel)
	if err != nil {
		return err
	}
	if format == "json" || format == "top" {
		v, err := view(sel, m, format == "json")
		if err != nil {
			return err
		}
		writeJSON(w, http.StatusOK, v)
		return nil
	}
	if m.profiles == 0 && format != file.Pprof.String() {
		return errNothing()
	}
	return s.send(w, format, m.profile, file.Options{Title: s.title(ctx, sel)})
}

// send answers with p as a file to be saved.
func (s *server) send(w http.ResponseWriter, format string, p *profile.Profile, opts file.Options) error {
	f, err := file.ParseFormat(format)
	if err != nil {
		return badRequest("use one of "+strings.Join(formats(), ", "), "%v", err)
	}
	var buf bytes.Buffer
	if err := file.Write(&buf, f, p, opts); err != nil {
		return err
	}
	w.Header().Set("Content-Type", f.ContentType())
	w.Header().Set("Content-Disposition", `attachment; filename="stoker`+f.Ending()+`"`)
	// Opened instead of saved, an exported page runs in an origin of its own and cannot read the API.
	w.Header().Set("Content-Security-Policy", "sandbox; default-src 'none'")
	w.Header().Set("Content-Length", strconv.Itoa(buf.Len()))
	_, _ = w.Write(buf.Bytes()) // an error means that the client is gone
	return nil
}

func view(sel selection, m *merged, tree bool) (*ProfileView, error) {
	st := m.profile.SampleType[0]
	v := &ProfileView{FromMS: sel.From.UnixMilli(), ToMS: sel.To.UnixMilli(), Profiles: m.profiles, SampleType: st.Type, Unit: st.Unit}
	if v.Unreadable = m.damaged; m.reason != nil {
		v.UnreadableReason = m.reason.Error()
	}
	if m.profiles > 0 {
		v.CoveredFromMS, v.CoveredToMS = m.from.UnixMilli(), m.to.UnixMilli()
	}
	v.Functions, v.Total = file.Top(m.profile, 0)
	v.Functions = append([]file.Function{}, v.Functions[:min(len(v.Functions), maxFunctions)]...)
	if tree {
		t, err := file.Build(m.profile, 0, maxNodes)
		if err != nil {
			return nil, err
		}
		v.Tree = t
	}
	return v, nil
}

// SeriesAnswer is the answer of GET /api/v1/series: CPU over time, on a common grid that starts at StartMS.
type SeriesAnswer struct {
	FromMS  int64    `json:"from_ms"`
	ToMS    int64    `json:"to_ms"`
	StartMS int64    `json:"start_ms"`
	StepMS  int64    `json:"step_ms"`
	Series  []Series `json:"series"` // the largest first
	// Complete is how many steps are told in full; later ones have only begun and count too little.
	Complete int `json:"complete"`
	Omitted  int `json:"omitted,omitempty"` // series beyond the largest 2000
}

// Series is one container's CPU over time.
type Series struct {
	ContainerID string      `json:"container_id"`
	Name        string      `json:"name"`
	Labels      sink.Labels `json:"labels"`
	TotalNS     int64       `json:"total_ns"`
	// Cores holds CPU seconds per second, one value for each step.
	Cores []float64 `json:"cores"`
}

func (s *server) series(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	now := s.cfg.Now()
	sel, err := parseSelection(q, "", now)
	if err != nil {
		return err
	}
	step, err := parseStep(q, sel, s.cfg.Window)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.Timeout)
	defer cancel()
	start := sel.From.Truncate(step)
	n := int((sel.To.Sub(start) + step - 1) / step)
	query, err := s.query(ctx, sel)
	if err != nil {
		return err
	}
	// Whole steps: a part of the first or the last would look like a fall.
	query.From, query.To = start, start.Add(time.Duration(n)*step)
	list, err := s.store.Series(ctx, query, step)
	if err != nil {
		return fmt.Errorf("read the store: %w", err)
	}
	out := SeriesAnswer{FromMS: sel.From.UnixMilli(), ToMS: sel.To.UnixMilli(), StartMS: start.UnixMilli(), StepMS: step.Milliseconds(), Series: []Series{}}
	last, lastLength := s.complete(ctx, now, start, step, n)
	out.Complete = last
	for _, x := range list {
		one := Series{ContainerID: x.ContainerID, Name: seriesName(x.Labels), Labels: x.Labels, Cores: make([]float64, n)}
		for _, p := range x.Points {
			i := int(p.T.Sub(start) / step)
			if i < 0 || i >= n {
				continue
			}
			one.TotalNS += p.V
			length := step
			if i == last-1 {
				length = lastLength
			}
			one.Cores[i] += math.Round(float64(p.V)/float64(length)*1e5) / 1e5
		}
		out.Series = append(out.Series, one)
	}
	slices.SortStableFunc(out.Series, func(a, b Series) int {
		return cmp.Or(cmp.Compare(b.TotalNS, a.TotalNS), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ContainerID, b.ContainerID))
	})
	if len(out.Series) > maxSeries {
		out.Omitted = len(out.Series) - maxSeries
		out.Series = out.Series[:maxSeries]
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// complete says how many of n steps are told by the store, and how long the last of these has lasted. What a window holds is
// written when it ends, so a range up to now ends with a step that has only begun: it is left out, unless it lasted long
// enough that the unknown rest of a window hardly matters.
func (s *server) complete(ctx context.Context, now, start time.Time, step time.Duration, n int) (steps int, lastLength time.Duration) {
	written := now.Add(-s.cfg.Window)
	if t, err := s.backend.Top(ctx); err == nil && t.WindowEnd.After(now.Add(-3*s.cfg.Window)) && t.WindowEnd.Before(now) {
		written = t.WindowEnd
	}
	full := int(written.Sub(start) / step)
	if full >= n {
		return n, step
	}
	if begun := written.Sub(start.Add(time.Duration(full) * step)); begun >= 6*s.cfg.Window {
		return max(full, 0) + 1, begun
	}
	return max(full, 0), step
}

// seriesName is what people call the container of a series.
func seriesName(l sink.Labels) string {
	if l["pod"] != "" {
		return l["namespace"] + "/" + cmp.Or(l["container"], l["container_name"])
	}
	return cmp.Or(l["container_name"], l["systemd_unit"], l["service_name"])
}

// LabelsAnswer is the answer of GET /api/v1/labels.
type LabelsAnswer struct {
	Labels map[string][]string `json:"labels"` // sorted, at most 1000 values each
}

func (s *server) labels(w http.ResponseWriter, r *http.Request) error {
	sel, err := parseSelection(r.URL.Query(), "", s.cfg.Now())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.Timeout)
	defer cancel()
	query, err := s.query(ctx, sel)
	if err != nil {
		return err
	}
	known, err := s.store.Labels(ctx, query)
	if err != nil {
		return fmt.Errorf("read the store: %w", err)
	}
	out := LabelsAnswer{Labels: map[string][]string{}}
	for name, values := range known {
		out.Labels[name] = values[:min(len(values), maxValues)]
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// DiffAnswer is the answer of GET /api/v1/diff: left is the base, right what is compared with it.
type DiffAnswer struct {
	SampleType string         `json:"sample_type"`
	Unit       string         `json:"unit"`
	Left       *ProfileView   `json:"left"`
	Right      *ProfileView   `json:"right"`
	Functions  []DiffFunction `json:"functions"` // the largest change of the share first, at most 1000
	Tree       *file.Tree     `json:"tree"`      // total and self of the right side, baseTotal and baseSelf of the left
}

// DiffFunction is one function on both sides.
type DiffFunction struct {
	Name      string `json:"name"`
	Module    string `json:"module,omitempty"`
	LeftFlat  int64  `json:"left_flat"`
	LeftCum   int64  `json:"left_cum"`
	RightFlat int64  `json:"right_flat"`
	RightCum  int64  `json:"right_cum"`
}

func (s *server) diff(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	now := s.cfg.Now()
	left, err := parseSelection(q, "left_", now)
	if err != nil {
		return err
	}
	right, err := parseSelection(q, "right_", now)
	if err != nil {
		return err
	}
	sides, format := q.Get("sides") == "1", cmp.Or(q.Get("format"), "json")
	if !slices.Contains([]string{"json", "pprof", "html"}, format) {
		return badRequest("use json, pprof or html", "a difference has no format %q", clip(format, 50))
	}
	leave, err := s.heavy.enter(r.Context())
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.Timeout)
	defer cancel()
	a, err := s.merge(ctx, left)
	if err != nil {
		return fmt.Errorf("left: %w", err)
	}
	b, err := s.merge(ctx, right)
	if err != nil {
		return fmt.Errorf("right: %w", err)
	}
	if format != "json" {
		if a.profiles == 0 && b.profiles == 0 {
			return errNothing()
		}
		return s.send(w, format, b.profile, file.Options{Title: s.title(ctx, right) + " compared with " + s.title(ctx, left), Base: a.profile})
	}
	out := DiffAnswer{SampleType: b.profile.SampleType[0].Type, Unit: b.profile.SampleType[0].Unit}
	if out.Left, err = view(left, a, sides); err != nil {
		return err
	}
	if out.Right, err = view(right, b, sides); err != nil {
		return err
	}
	if out.Tree, err = file.BuildDiff(a.profile, b.profile, 0, maxNodes); err != nil {
		return err
	}
	out.Functions = diffFunctions(a.profile, b.profile)
	writeJSON(w, http.StatusOK, out)
	return nil
}

func diffFunctions(a, b *profile.Profile) []DiffFunction {
	left, leftTotal := file.Top(a, 0)
	right, rightTotal := file.Top(b, 0)
	type key struct{ name, module string }
	index := map[key]int{}
	out := []DiffFunction{}
	at := func(f file.Function) *DiffFunction {
		k := key{f.Name, f.Module}
		i, ok := index[k]
		if !ok {
			i = len(out)
			index[k] = i
			out = append(out, DiffFunction{Name: f.Name, Module: f.Module})
		}
		return &out[i]
	}
	for _, f := range left {
		d := at(f)
		d.LeftFlat, d.LeftCum = f.Flat, f.Cum
	}
	for _, f := range right {
		d := at(f)
		d.RightFlat, d.RightCum = f.Flat, f.Cum
	}
	change := func(f DiffFunction) float64 {
		var l, r float64
		if leftTotal > 0 {
			l = float64(f.LeftFlat) / float64(leftTotal)
		}
		if rightTotal > 0 {
			r = float64(f.RightFlat) / float64(rightTotal)
		}
		return math.Abs(r - l)
	}
	slices.SortStableFunc(out, func(a, b DiffFunction) int {
		return cmp.Or(cmp.Compare(change(b), change(a)), cmp.Compare(b.RightCum+b.LeftCum, a.RightCum+a.LeftCum), cmp.Compare(a.Name, b.Name))
	})
	return out[:min(len(out), maxFunctions)]
}
