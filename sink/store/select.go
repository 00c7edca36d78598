package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/stoker-profiler/stoker/sink"
)

// Matcher is Prometheus' label matcher: =, !=, =~ and !~ with anchored regular expressions; a label that is not there has the
// empty value. The label __name__ is the name of the profile's type.
type Matcher = *labels.Matcher

// ParseMatcher reads k=v, k!=v, k=~v or k!~v. The value may be in double quotes.
func ParseMatcher(s string) (Matcher, error) {
	i := strings.IndexAny(s, "=!")
	if i <= 0 {
		return nil, fmt.Errorf("matcher %q: write label=value, label!=value, label=~regexp or label!~regexp", s)
	}
	name, rest := strings.TrimSpace(s[:i]), s[i:]
	for _, op := range []struct {
		text string
		typ  labels.MatchType
	}{{"=~", labels.MatchRegexp}, {"!~", labels.MatchNotRegexp}, {"!=", labels.MatchNotEqual}, {"=", labels.MatchEqual}} {
		value, ok := strings.CutPrefix(rest, op.text)
		if !ok {
			continue
		}
		if v := strings.TrimSpace(value); len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
			value = v[1 : len(v)-1]
		}
		m, err := labels.NewMatcher(op.typ, name, value)
		if err != nil {
			return nil, fmt.Errorf("matcher %q: %w", s, err)
		}
		return m, nil
	}
	return nil, fmt.Errorf("matcher %q: write label=value, label!=value, label=~regexp or label!~regexp", s)
}

// Query selects profiles. The zero Query selects all.
type Query struct {
	// From and To bound the time: every profile that overlaps [From, To) is selected, whole, also where it reaches beyond.
	// The zero time means no bound.
	From, To time.Time
	// Type is a profile type's name ("process_cpu") or one of its five-part ids; empty means all.
	Type string
	// Match must all match.
	Match []Matcher
	// ContainerID is a container's id; empty means all.
	ContainerID string
	// Limit keeps the newest profiles; 0 means all.
	Limit int
}

// found is a selected row without its bytes.
type found struct {
	id, series, start, end int64
	container              string
}

// seriesRow is one row of the table series, decoded.
type seriesRow struct {
	typ    sink.Type
	labels sink.Labels
	err    error // why it cannot be read
}

func (r *seriesRow) matches(q *Query) bool {
	if q.Type != "" && q.Type != r.typ.Name {
		ok := false
		for i := range r.typ.Samples {
			ok = ok || r.typ.ID(i) == q.Type
		}
		if !ok {
			return false
		}
	}
	for _, m := range q.Match {
		v := r.labels[m.Name]
		if m.Name == "__name__" {
			v = r.typ.Name
		}
		if !m.Matches(v) {
			return false
		}
	}
	return true
}

// read runs f on one snapshot of the database, within the configured time.
func (s *Store) read(ctx context.Context, f func(ctx context.Context, tx *sql.Tx) error) error {
	db, release, err := s.use()
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.ReadTimeout, fmt.Errorf("reading took longer than %v: ask for less", s.cfg.ReadTimeout))
	defer cancel()
	tx, err := db.r.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err == nil {
		err = f(ctx, tx)
		tx.Rollback() //nolint:errcheck // nothing was written
	}
	if err == nil {
		return nil
	}
	if isCorrupt(err) {
		s.suspect.Store(true)
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return fmt.Errorf("store %s: read: %w", s.cfg.Path, remedy(err))
}

const selectRange = `SELECT id, series_id, container_id, start_ns, end_ns FROM profiles INDEXED BY profiles_time
		WHERE end_ns > ? AND start_ns < ? ORDER BY end_ns DESC, start_ns DESC`

// find lists the rows of q, newest first, and their series. A series that cannot be decoded is in the map with its error and
// its rows are listed: what is damaged must not look like nothing.
func find(ctx context.Context, tx *sql.Tx, q *Query) ([]found, map[int64]*seriesRow, error) {
	series := map[int64]*seriesRow{}
	rows, err := tx.QueryContext(ctx, "SELECT id, type, labels FROM series")
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		var typ, lbl string
		if err := rows.Scan(&id, &typ, &lbl); err != nil {
			return nil, nil, err
		}
		r := &seriesRow{}
		if r.typ, r.err = decodeType(typ); r.err == nil {
			r.labels, r.err = decodeLabels(lbl)
		}
		if r.err != nil {
			r.err = fmt.Errorf("series %d: %w", id, r.err)
		}
		if r.err != nil || r.matches(q) {
			series[id] = r
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, nil, err
	}
	from, to := int64(-1<<63), int64(1<<63-1)
	if !q.From.IsZero() {
		from = q.From.UnixNano()
	}
	if !q.To.IsZero() {
		to = q.To.UnixNano()
	}
	rows, err = tx.QueryContext(ctx, selectRange, from, to)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	var out []found
	for rows.Next() {
		var f found
		if err := rows.Scan(&f.id, &f.series, &f.container, &f.start, &f.end); err != nil {
			return nil, nil, err
		}
		if series[f.series] == nil || (q.ContainerID != "" && q.ContainerID != f.container) {
			continue
		}
		out = append(out, f)
		if q.Limit > 0 && len(out) == q.Limit {
			break
		}
	}
	return out, series, errors.Join(rows.Err(), rows.Close())
}

// Select yields the profiles of q, newest first, from one snapshot: what is written, merged or evicted meanwhile does not
// show. A row that is damaged yields an error and the next rows follow; any other error is the last. The consumer should not
// wait for long between two profiles, for an open read keeps the write-ahead log from being reused, and must not write to the
// store or close it from within the loop.
func (s *Store) Select(ctx context.Context, q Query) iter.Seq2[sink.Profile, error] {
	return func(yield func(sink.Profile, error) bool) {
		enough := false // the consumer broke off: it must not be called again, whatever else has ended meanwhile
		err := s.read(ctx, func(ctx context.Context, tx *sql.Tx) error {
			rows, series, err := find(ctx, tx, &q)
			if err != nil {
				return err
			}
			get, err := tx.PrepareContext(ctx, "SELECT boottime_ns, mended, total, samples, pprof FROM profiles WHERE id = ?")
			if err != nil {
				return err
			}
			defer get.Close()
			for _, f := range rows {
				p := sink.Profile{ContainerID: f.container, Start: unixNano(f.start), End: unixNano(f.end)}
				var boottime int64
				var mended bool
				if err := get.QueryRowContext(ctx, f.id).Scan(&boottime, &mended, &p.Total, &p.Samples, &p.Pprof); err != nil {
					return err
				}
				p.BootStart = time.Duration(boottime)
				r := series[f.series]
				p.Type, p.Labels = r.typ, r.labels
				err := r.err
				if err == nil && mended {
					p.Pprof, err = retime(p.Pprof, f.start, f.end)
				}
				if err != nil {
					s.n.unreadable.Add(1)
					p, err = sink.Profile{}, fmt.Errorf("store %s: profile %d: %w", s.cfg.Path, f.id, err)
				}
				if enough = !yield(p, err); enough {
					return nil
				}
			}
			return nil
		})
		if err != nil && !enough {
			yield(sink.Profile{}, err)
		}
	}
}

// Point is what was counted in one step: V is the sum of the profile's first value in [T, T+step), nanoseconds for CPU.
type Point struct {
	T time.Time
	V int64
}

// Series is one series of one container over time. Points are in order; a step in which nothing was counted has none.
type Series struct {
	Type        sink.Type
	Labels      sink.Labels
	ContainerID string
	Points      []Point
}

// Series returns the totals of q's profiles over time, sorted by labels. Steps begin at multiples of step since 1970. A
// window that spans several steps is shared out in proportion, exactly; windows that were merged keep their own times.
func (s *Store) Series(ctx context.Context, q Query, step time.Duration) ([]Series, error) {
	if step < time.Millisecond {
		return nil, fmt.Errorf("series with a step of %v: it must be at least a millisecond", step)
	}
	type key struct {
		series    int64
		container string
	}
	sums := map[key]map[int64]int64{}
	var known map[int64]*seriesRow
	err := s.read(ctx, func(ctx context.Context, tx *sql.Tx) error {
		rows, series, err := find(ctx, tx, &q)
		if err != nil {
			return err
		}
		known = series
		get, err := tx.PrepareContext(ctx, "SELECT total, parts FROM profiles WHERE id = ?")
		if err != nil {
			return err
		}
		defer get.Close()
		for _, f := range rows {
			if series[f.series].err != nil {
				return series[f.series].err
			}
			var total int64
			var text sql.NullString
			if err := get.QueryRowContext(ctx, f.id).Scan(&total, &text); err != nil {
				return err
			}
			parts, err := decodeParts(text, f.start, f.end, total)
			if err != nil {
				return fmt.Errorf("profile %d: %w", f.id, err)
			}
			k := key{f.series, f.container}
			if sums[k] == nil {
				sums[k] = map[int64]int64{}
			}
			for _, p := range parts {
				spread(sums[k], f.start/1e6+p[0], p[1], p[2], step.Milliseconds())
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := make([]Series, 0, len(sums))
	for k, points := range sums {
		r := known[k.series]
		one := Series{Type: r.typ, Labels: r.labels, ContainerID: k.container}
		for _, t := range slices.Sorted(maps.Keys(points)) {
			at := time.UnixMilli(t)
			// What a selected profile holds outside of the range is not part of the answer.
			if (!q.From.IsZero() && !at.Add(step).After(q.From)) || (!q.To.IsZero() && !at.Before(q.To)) {
				continue
			}
			one.Points = append(one.Points, Point{at, points[t]})
		}
		if len(one.Points) > 0 {
			out = append(out, one)
		}
	}
	slices.SortFunc(out, func(a, b Series) int {
		return strings.Compare(a.Labels.String()+a.Type.Name+a.ContainerID, b.Labels.String()+b.Type.Name+b.ContainerID)
	})
	return out, nil
}

// maxSteps bounds over how many steps one window is spread: a row with absurd times must not fill the memory.
const maxSteps = 100_000

// spread adds total to the steps that [start, start+length) overlaps, in proportion; what each step gets adds up to total.
// All times are milliseconds.
func spread(sums map[int64]int64, start, length, total, step int64) {
	floor := func(t int64) int64 { return t - ((t%step)+step)%step }
	first := floor(start)
	if length <= 0 || length > maxSteps*step || length > 1<<52 || start > 1<<52 || start < -1<<52 {
		sums[first] += total
		return
	}
	var given int64
	for at := first; at < start+length; at += step {
		// Cumulative shares, so that rounding never loses a unit.
		upTo := share(total, min(at+step, start+length)-start, length)
		sums[at] += upTo - given
		given = upTo
	}
}

// share returns total × part / whole, in 128 bits.
func share(total, part, whole int64) int64 {
	neg := total < 0
	u := uint64(total)
	if neg {
		u = -u
	}
	hi, lo := bits.Mul64(u, uint64(part))
	q, _ := bits.Div64(hi, lo, uint64(whole)) // part <= whole: the quotient fits
	if neg {
		return -int64(q)
	}
	return int64(q)
}

// Labels returns the label names of q's profiles and their values, sorted.
func (s *Store) Labels(ctx context.Context, q Query) (map[string][]string, error) {
	sets := map[string]map[string]struct{}{}
	err := s.read(ctx, func(ctx context.Context, tx *sql.Tx) error {
		rows, series, err := find(ctx, tx, &q)
		if err != nil {
			return err
		}
		done := map[int64]bool{}
		for _, f := range rows {
			if done[f.series] {
				continue
			}
			done[f.series] = true
			if series[f.series].err != nil {
				return series[f.series].err
			}
			for n, v := range series[f.series].labels {
				if sets[n] == nil {
					sets[n] = map[string]struct{}{}
				}
				sets[n][v] = struct{}{}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := make(map[string][]string, len(sets))
	for n, vs := range sets {
		out[n] = slices.Sorted(maps.Keys(vs))
	}
	return out, nil
}
