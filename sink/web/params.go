package web

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/sink/store"
)

// Limits of what a request may say. They keep a mistyped or hostile request from costing more than its own parsing.
const (
	maxMatchers     = 32              // more than any label set has names
	maxMatcherBytes = 1024            // a label value in Pyroscope has at most 2048 bytes, in practice far fewer
	maxRange        = 366 * 24 * 3600 // seconds: a range longer than any store's age is a mistake
	defaultRange    = "now-15m"
)

// matcher is one label condition, as it was written and as the store takes it.
type matcher struct {
	text string
	m    store.Matcher
}

func (m matcher) String() string { return m.text }

// selection is what most requests ask for: a range of time, a profile type, and which series.
type selection struct {
	From, To  time.Time
	Type      string // sink.Type.Name
	Match     []matcher
	Container string
}

// badRequest makes the error for something the caller can mend.
func badRequest(remedy, format string, args ...any) *Error {
	return &Error{Status: http.StatusBadRequest, Message: fmt.Sprintf(format, args...), Remedy: remedy}
}

// parseSelection reads from, to, type, match and container. prefix ("", "left_", "right_") goes before each name but type;
// with a prefix the names without one apply as well.
func parseSelection(q url.Values, prefix string, now time.Time) (selection, error) {
	s := selection{Type: q.Get("type"), Container: first(q, prefix+"container", "container")}
	if s.Type == "" {
		s.Type = sink.CPU.Name
	}
	// The five-part name that Pyroscope uses is as good: its first part is the series' name.
	s.Type, _, _ = strings.Cut(s.Type, ":")
	if len(s.Type) > 128 {
		return s, badRequest("use a name such as process_cpu", "type is longer than 128 bytes")
	}
	if len(s.Container) > 256 {
		return s, badRequest("use an id, an id prefix or a name", "container is longer than 256 bytes")
	}
	var err error
	if s.To, err = parseTime(first(q, prefix+"to", "to"), now, "now"); err != nil {
		return s, fmt.Errorf("%sto: %w", prefix, err)
	}
	if s.From, err = parseTime(first(q, prefix+"from", "from"), now, defaultRange); err != nil {
		return s, fmt.Errorf("%sfrom: %w", prefix, err)
	}
	if !s.From.Before(s.To) {
		return s, badRequest("from must be earlier than to", "%sfrom %s is not before %sto %s", prefix,
			s.From.UTC().Format(time.RFC3339), prefix, s.To.UTC().Format(time.RFC3339))
	}
	if s.To.Sub(s.From) > maxRange*time.Second {
		return s, badRequest("ask for less than a year", "the range of %s is too long", s.To.Sub(s.From))
	}
	texts := q["match"]
	if prefix != "" {
		texts = append(append([]string(nil), texts...), q[prefix+"match"]...)
	}
	if len(texts) > maxMatchers {
		return s, badRequest("use fewer conditions, or one with =~", "%d label conditions; at most %d are taken", len(texts), maxMatchers)
	}
	for _, t := range texts {
		m, err := parseMatcher(t)
		if err != nil {
			return s, err
		}
		s.Match = append(s.Match, m)
	}
	return s, nil
}

// first is the value of the first of the names that is given at all.
func first(q url.Values, names ...string) string {
	for _, n := range names {
		if q.Has(n) {
			return q.Get(n)
		}
	}
	return ""
}

// parseMatcher reads k=v, k!=v, k=~re or k!~re. A regular expression must match the whole value, as in Prometheus.
func parseMatcher(s string) (matcher, error) {
	const remedy = "write label=value, label!=value, label=~regexp or label!~regexp"
	if len(s) > maxMatcherBytes {
		return matcher{}, badRequest(remedy, "a label condition has %d bytes; at most %d are taken", len(s), maxMatcherBytes)
	}
	m, err := store.ParseMatcher(s)
	if err != nil {
		return matcher{}, badRequest(remedy, "%v", err)
	}
	return matcher{s, m}, nil
}

// Instants outside these years are mistakes, and their nanoseconds would not fit an int64.
var (
	earliest = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	latest   = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)
)

// parseTime reads RFC 3339, Unix milliseconds, "now", "now-1h30m", "-15m", also with d and w for days and weeks.
func parseTime(s string, now time.Time, otherwise string) (time.Time, error) {
	const remedy = "use RFC 3339 (2026-01-02T15:04:05Z), Unix milliseconds, now, now-1h or -15m"
	s = strings.TrimSpace(s)
	if s == "" {
		s = otherwise
	}
	if len(s) > 64 {
		return time.Time{}, badRequest(remedy, "a time of %d bytes", len(s))
	}
	t, err := func() (time.Time, error) {
		rest, isNow := strings.CutPrefix(s, "now")
		switch {
		case isNow && rest == "":
			return now, nil
		case isNow && rest[0] != '-' && rest[0] != '+':
			return time.Time{}, fmt.Errorf("%q after now", rest)
		case isNow || s[0] == '-' || s[0] == '+':
			if !isNow {
				rest = s
			}
			d, err := parseDuration(rest[1:])
			if err != nil {
				return time.Time{}, err
			}
			if rest[0] == '-' {
				d = -d
			}
			return now.Add(d), nil
		case strings.Trim(s, "0123456789") == "":
			ms, err := strconv.ParseInt(s, 10, 64)
			if err != nil {
				return time.Time{}, err
			}
			if ms < earliest.UnixMilli() && ms >= earliest.Unix() {
				return time.Time{}, fmt.Errorf("%d looks like seconds; append 000", ms)
			}
			return time.UnixMilli(ms), nil
		}
		return time.Parse(time.RFC3339Nano, s)
	}()
	if err != nil {
		return time.Time{}, badRequest(remedy, "time %q: %v", s, err)
	}
	if t.Before(earliest) || t.After(latest) {
		return time.Time{}, badRequest(remedy, "time %q is outside the years 2000 to 2200", s)
	}
	return t, nil
}

// parseDuration is time.ParseDuration with days and weeks, without a sign.
func parseDuration(s string) (time.Duration, error) {
	var total time.Duration
	rest := s
	for _, u := range []struct {
		name string
		d    time.Duration
	}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}} {
		n, after, ok := strings.Cut(rest, u.name)
		if !ok {
			continue
		}
		v, err := strconv.ParseUint(n, 10, 16)
		if err != nil {
			return 0, fmt.Errorf("%q is not a duration", s)
		}
		total += time.Duration(v) * u.d
		rest = after
	}
	if rest == "" && total > 0 {
		return total, nil
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration", s)
	}
	if total > 0 && d > latest.Sub(earliest) || total+d < 0 {
		return 0, fmt.Errorf("%q is too long", s)
	}
	return total + d, nil
}

// maxPoints bounds what one series costs in a chart; the pages ask for a few hundred.
const maxPoints = 2000

// parseStep reads how far apart the points of a series are: given, or such that the range has about a hundred and twenty,
// on a round number so that neighbouring requests share their steps, never finer than the window.
func parseStep(q url.Values, s selection, window time.Duration) (time.Duration, error) {
	span := s.To.Sub(s.From)
	if t := q.Get("step"); t != "" {
		d, err := parseDuration(t)
		if err != nil || d < time.Second {
			return 0, badRequest("use a duration of at least a second, such as 30s", "step %q is not usable", t)
		}
		if span/d > maxPoints {
			return 0, badRequest(fmt.Sprintf("use a step of at least %s", (span/maxPoints+time.Second).Round(time.Second)),
				"step %s gives more than %d points", d, maxPoints)
		}
		return d, nil
	}
	rounds := []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 20 * time.Second, 30 * time.Second,
		time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 20 * time.Minute, 30 * time.Minute,
		time.Hour, 2 * time.Hour, 4 * time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour, 7 * 24 * time.Hour}
	for _, d := range rounds {
		if d >= window && span/d <= 120 {
			return d, nil
		}
	}
	return rounds[len(rounds)-1], nil
}
