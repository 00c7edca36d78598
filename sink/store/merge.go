package store

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"
	"github.com/klauspost/compress/gzip"
)

// Merging. Windows of one container, one series and one boot that begin in the same slot of the clock and are old enough
// become one profile with exactly their sums; the totals of the single windows are kept beside it (profiles.parts), so that
// CPU over time keeps its resolution. What happens to their deliveries:
//
//   - Rows are merged only with rows whose deliveries agree: the same sinks, tenants and states. A delivered window is never
//     mixed with one that is still to be sent, so nothing is sent twice and nothing is left out.
//   - Pending windows that no server can have seen become one pending delivery: this is also how a backlog shrinks. A merged
//     profile stays below what a Pyroscope server takes in one piece.
//   - A row that is being sent, or whose reply was lost and that will be sent again, is left alone until that is settled: a
//     doubt must not grow to its neighbours.
//   - Delivered, refused and uncertain rows keep that state; the newest reason and the highest number of attempts stay.
//
// The merged row takes the place (the id) of its newest row.

// tier is one step of merging.
type tier struct {
	level   int
	after   time.Duration // a slot is merged when it ended longer ago than this
	width   time.Duration // of a slot
	pending bool          // only rows with a pending delivery
}

var (
	// tiers: a day of 20 containers in 10 s windows of 15 kB is 2.5 GB as written. In windows of five minutes it is about a
	// fifteenth of that, in hours a hundredth (BenchmarkOutageOfADay).
	tiers = []tier{{level: 2, after: 10 * time.Minute, width: 5 * time.Minute}, {level: 3, after: 6 * time.Hour, width: time.Hour}}
	// backlogTier joins when more deliveries wait than backlogRows: a push takes half a second whatever its size.
	backlogTier = tier{level: 1, after: 20 * time.Second, width: time.Minute, pending: true}
)

const (
	backlogRows = 256

	// What a default Pyroscope server takes in one profile, with a margin: 16,000 samples, a bucket of 2 MiB.
	maxSamples  = 15_500
	maxRawBytes = 1_900_000
)

// candidate is a row that may be merged.
type candidate struct {
	id, start, end, boottime int64
	total, raw               int64
	mended                   bool
	parts                    sql.NullString
	deliveries               string // canonical sinks, tenants and states
	blocked                  bool   // in flight or in doubt
}

// slot names the rows of one group.
type slot struct {
	series    int64
	container string
	boot      int64
	from      int64
}

// mergeOld merges what is old enough, one short transaction per slot.
func (s *Store) mergeOld(ctx context.Context) error {
	steps := tiers
	waiting, err := s.waiting(ctx)
	if err != nil {
		return err
	}
	if waiting > backlogRows {
		steps = append([]tier{backlogTier}, tiers...)
	}
	for _, t := range steps {
		slots, err := s.slots(ctx, t)
		if err != nil {
			return err
		}
		for _, sl := range slots {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := s.mergeSlot(ctx, t, sl); err != nil {
				return err
			}
		}
	}
	return nil
}

// The statements of every maintenance.
const (
	countWaiting = "SELECT count(*) FROM deliveries WHERE state = 'pending' AND sink IN (SELECT value FROM json_each(?))"
	findSlots    = `SELECT DISTINCT series_id, container_id, boot, start_ns / ?1 * ?1 FROM profiles INDEXED BY profiles_tier
		WHERE tier < ?2 AND start_ns >= 0 AND start_ns < ?3 ORDER BY 4`
	slotRows = `SELECT p.id, p.start_ns, p.end_ns, p.boottime_ns, p.total, p.raw_bytes, p.mended, p.parts,
			coalesce(group_concat(d.sink || char(1) || d.tenant || char(1) || d.state, char(2)), ''),
			coalesce(max(d.state = 'sending' OR (d.state = 'pending' AND d.doubts > 0)), 0)
		FROM profiles p INDEXED BY profiles_series LEFT JOIN deliveries d ON d.profile_id = p.id
		WHERE p.series_id = ? AND p.container_id = ? AND p.boot = ? AND p.start_ns >= ? AND p.start_ns < ? AND p.tier < ?
		GROUP BY p.id ORDER BY p.start_ns, p.id`
)

// waiting counts the deliveries that are still to be made.
func (s *Store) waiting(ctx context.Context) (n int64, err error) {
	s.writer.Lock()
	sinks := s.sinksJSON()
	s.writer.Unlock()
	db, release, err := s.use()
	if err != nil {
		return 0, err
	}
	defer release()
	err = db.r.QueryRowContext(ctx, countWaiting, sinks).Scan(&n)
	return n, err
}

// slots lists the groups of at least one row below the tier's level whose slot is over since t.after.
func (s *Store) slots(ctx context.Context, t tier) ([]slot, error) {
	db, release, err := s.use()
	if err != nil {
		return nil, err
	}
	defer release()
	cutoff := s.cfg.Clock.Now().Add(-t.after).Truncate(t.width).UnixNano()
	rows, err := db.r.QueryContext(ctx, findSlots, int64(t.width), t.level, cutoff)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []slot
	for rows.Next() {
		var sl slot
		if err := rows.Scan(&sl.series, &sl.container, &sl.boot, &sl.from); err != nil {
			return nil, err
		}
		out = append(out, sl)
	}
	return out, rows.Err()
}

// candidates reads the rows of a slot. q is the reading side or the transaction that replaces them.
func candidates(ctx context.Context, q interface {
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
}, t tier, sl slot) ([]candidate, error) {
	rows, err := q.QueryContext(ctx, slotRows, sl.series, sl.container, sl.boot, sl.from, sl.from+int64(t.width), t.level)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []candidate
	for rows.Next() {
		var c candidate
		if err := rows.Scan(&c.id, &c.start, &c.end, &c.boottime, &c.total, &c.raw, &c.mended, &c.parts, &c.deliveries, &c.blocked); err != nil {
			return nil, err
		}
		d := strings.Split(c.deliveries, "\x02")
		slices.Sort(d)
		c.deliveries = strings.Join(d, "\x02")
		out = append(out, c)
	}
	return out, rows.Err()
}

// mergeSlot merges the rows of one slot, apart by what their deliveries say.
func (s *Store) mergeSlot(ctx context.Context, t tier, sl slot) error {
	db, release, err := s.use()
	if err != nil {
		return err
	}
	all, err := candidates(ctx, db.r, t, sl)
	release()
	if err != nil {
		return err
	}
	groups := map[string][]candidate{}
	for _, c := range all {
		if !c.blocked && (!t.pending || strings.Contains(c.deliveries, "\x01pending")) {
			groups[c.deliveries] = append(groups[c.deliveries], c)
		}
	}
	for _, group := range groups {
		for len(group) > 0 {
			n, err := s.mergeRun(ctx, t, sl, group)
			if err != nil {
				return err
			}
			group = group[n:]
		}
	}
	return nil
}

// mergeRun merges as many rows from the front of group as stay within a server's limits, and returns how many it is done
// with. A row whose pprof cannot be read is passed over, marked so that it is not tried for ever, and counted.
func (s *Store) mergeRun(ctx context.Context, t tier, sl slot, group []candidate) (int, error) {
	var acc merged
	for n := len(acc.rows); n < len(group); n = len(acc.rows) {
		chunk, err := s.readChunk(ctx, group[n:])
		if errors.Is(err, sql.ErrNoRows) { // evicted meanwhile: what is left of the slot has its turn next time
			return len(group), nil
		}
		if err != nil && n > 0 {
			break // it gets its own turn
		}
		if err != nil && (code(err) != 0 || ctx.Err() != nil) {
			return 0, err
		}
		next, ok := acc, false
		if err == nil {
			next, ok, err = acc.add(chunk)
		}
		if err != nil && n == 0 {
			s.n.unreadable.Add(1)
			s.log.Error("a stored profile cannot be merged; it stays as it is", "profile", group[0].id, "err", err)
			return 1, s.setTier(ctx, t, group[:1])
		}
		if err != nil || !ok {
			break
		}
		acc = next
	}
	if len(acc.rows) <= 1 { // nothing to merge it with, or the next is too much
		return 1, s.setTier(ctx, t, group[:1])
	}
	return len(acc.rows), s.replace(ctx, t, sl, acc)
}

// chunkRaw is how much of uncompressed pprof is parsed at once: parsed profiles take several times that in memory.
const chunkRaw = 256 << 10

// part is a row with its parsed pprof.
type part struct {
	candidate
	p *profile.Profile
}

// readChunk parses rows from the front of group: at least one, the others while they are small together. It fails only
// if the first one cannot be read.
func (s *Store) readChunk(ctx context.Context, group []candidate) (chunk []part, err error) {
	var raw int64
	for i, c := range group {
		if raw += c.raw; i > 0 && raw > chunkRaw {
			return chunk, nil
		}
		gz, err := s.blob(ctx, c.id)
		if err == nil {
			var p *profile.Profile
			if p, err = parsePprof(gz); err == nil {
				if got := firstTotal(p); got != c.total {
					err = fmt.Errorf("its values add up to %d, the row says %d", got, c.total)
				}
			}
			// Durations do not add up, for there may be gaps: the merged profile spans from the first start to the last
			// end. The rows' times are right even where the pprof's own were taken from a wrong clock.
			if err == nil {
				p.TimeNanos, p.DurationNanos = c.start, c.end-c.start
				chunk = append(chunk, part{c, p})
			}
		}
		if err != nil && i == 0 {
			return nil, err
		}
		if err != nil {
			return chunk, nil
		}
	}
	return chunk, nil
}

// merged is the sum of some rows; the zero value is the empty sum.
type merged struct {
	p          *profile.Profile
	rows       []candidate
	start, end int64
	total      int64
	samples    int64
	raw        int64 // size before compression, or a bound above it
}

// add returns m and the chunk together and whether the sum is still within a server's limits; m stays as it was.
func (m merged) add(chunk []part) (merged, bool, error) {
	out := merged{rows: slices.Clone(m.rows), start: chunk[0].start, end: chunk[0].end, total: m.total, samples: m.samples, raw: m.raw}
	all := make([]*profile.Profile, 0, len(chunk)+1)
	if m.p != nil {
		out.start, out.end = min(m.start, out.start), max(m.end, out.end)
		all = append(all, m.p)
	}
	for _, c := range chunk {
		out.rows = append(out.rows, c.candidate)
		out.start, out.end = min(out.start, c.start), max(out.end, c.end)
		out.total += c.total
		out.raw += c.raw
		all = append(all, c.p)
	}
	if len(all) == 1 {
		out.p = all[0]
		return out, true, nil
	}
	p, err := profile.Merge(all)
	if err != nil {
		return merged{}, false, err
	}
	if got := firstTotal(p); got != out.total {
		return merged{}, false, fmt.Errorf("merging gives %d, the sum is %d", got, out.total)
	}
	p.TimeNanos, p.DurationNanos = out.start, out.end-out.start
	out.p, out.samples = p, int64(len(p.Sample))
	if out.samples > maxSamples {
		return out, false, nil
	}
	if out.raw > maxRawBytes { // the bound: merged profiles share their tables
		var size countingWriter
		if err := p.WriteUncompressed(&size); err != nil {
			return merged{}, false, err
		}
		out.raw = int64(size)
	}
	return out, out.raw <= maxRawBytes, nil
}

type countingWriter int64

func (w *countingWriter) Write(b []byte) (int, error) {
	*w += countingWriter(len(b))
	return len(b), nil
}

// encode returns the sum's pprof, gzipped, and its size before that.
func encodePprof(p *profile.Profile) (gz []byte, raw int64, err error) {
	var size countingWriter
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if err := p.WriteUncompressed(io.MultiWriter(w, &size)); err != nil {
		return nil, 0, err
	}
	if err := w.Close(); err != nil {
		return nil, 0, err
	}
	return z.Bytes(), int64(size), nil
}

// joinParts returns the windows in the rows as [offset ms from start, length ms, total].
func joinParts(rows []candidate, start int64) ([][3]int64, error) {
	var out [][3]int64
	for _, c := range rows {
		parts, err := decodeParts(c.parts, c.start, c.end, c.total)
		if err != nil {
			return nil, err
		}
		for _, q := range parts {
			out = append(out, [3]int64{q[0] + (c.start-start)/1e6, q[1], q[2]})
		}
	}
	return out, nil
}

// decodeParts returns the windows in a row as [offset ms, length ms, total]; a row as written is one window.
func decodeParts(text sql.NullString, start, end, total int64) ([][3]int64, error) {
	if !text.Valid {
		return [][3]int64{{0, (end - start) / 1e6, total}}, nil
	}
	var parts [][3]int64
	if err := json.Unmarshal([]byte(text.String), &parts); err != nil {
		return nil, fmt.Errorf("parts: %w", err)
	}
	return parts, nil
}

// setTier marks rows as done for a tier without changing them.
func (s *Store) setTier(ctx context.Context, t tier, rows []candidate) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	return s.update(ctx, false, func(tx *sql.Tx, _ *database) error {
		for _, c := range rows {
			if _, err := tx.ExecContext(ctx, "UPDATE profiles SET tier = ? WHERE id = ?", t.level, c.id); err != nil {
				return err
			}
		}
		return nil
	})
}

// replace puts m in the place of rows, unless one of them was claimed, settled, mended or evicted since it was read: then the
// next maintenance tries again.
func (s *Store) replace(ctx context.Context, t tier, sl slot, m merged) error {
	windows, err := joinParts(m.rows, m.start)
	if err != nil {
		return err
	}
	parts, err := json.Marshal(windows)
	if err != nil {
		return err
	}
	gz, raw, err := encodePprof(m.p)
	if err != nil {
		return err
	}
	rows := slices.Clone(m.rows)
	slices.SortFunc(rows, func(a, b candidate) int { return cmp.Compare(a.id, b.id) })
	newest := rows[len(rows)-1].id
	first := slices.MinFunc(rows, func(a, b candidate) int { return cmp.Compare(a.start, b.start) })
	s.writer.Lock()
	defer s.writer.Unlock()
	moved := false
	err = s.update(ctx, false, func(tx *sql.Tx, _ *database) error {
		now, err := candidates(ctx, tx, t, sl)
		if err != nil {
			return err
		}
		for _, c := range rows {
			if !slices.Contains(now, c) {
				moved = true
				return nil
			}
		}
		if _, err := tx.ExecContext(ctx, `UPDATE profiles SET start_ns = ?, end_ns = ?, boottime_ns = ?, mended = 0, tier = ?, total = ?, samples = ?, raw_bytes = ?,
			fingerprint = NULL, parts = ?, pprof = ? WHERE id = ?`, m.start, m.end, first.boottime, t.level, m.total, len(m.p.Sample), raw,
			string(parts), gz, newest); err != nil {
			return err
		}
		for _, c := range rows[:len(rows)-1] {
			if _, err := tx.ExecContext(ctx, `UPDATE deliveries SET
				attempts = max(attempts, (SELECT attempts FROM deliveries o WHERE o.profile_id = ?1 AND o.sink = deliveries.sink)),
				doubts = max(doubts, (SELECT doubts FROM deliveries o WHERE o.profile_id = ?1 AND o.sink = deliveries.sink)),
				next_ns = min(next_ns, (SELECT next_ns FROM deliveries o WHERE o.profile_id = ?1 AND o.sink = deliveries.sink))
				WHERE profile_id = ?2`, c.id, newest); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, "DELETE FROM profiles WHERE id = ?", c.id); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && !moved {
		s.n.merged.Add(uint64(len(rows)))
	}
	return err
}

// blob reads one pprof.
func (s *Store) blob(ctx context.Context, id int64) (gz []byte, err error) {
	db, release, err := s.use()
	if err != nil {
		return nil, err
	}
	defer release()
	err = db.r.QueryRowContext(ctx, "SELECT pprof FROM profiles WHERE id = ?", id).Scan(&gz)
	return gz, err
}

// unzip returns a pprof's bytes before compression, at most maxRaw of them.
func unzip(gz []byte) ([]byte, error) {
	if !bytes.HasPrefix(gz, []byte{0x1f, 0x8b}) {
		return gz, nil
	}
	z, err := gzip.NewReader(bytes.NewReader(gz))
	if err != nil {
		return nil, fmt.Errorf("pprof: %w", err)
	}
	raw, err := io.ReadAll(io.LimitReader(z, maxRaw+1))
	if err != nil {
		return nil, fmt.Errorf("pprof: after %d bytes: %w", len(raw), err)
	}
	if len(raw) > maxRaw {
		return nil, fmt.Errorf("pprof: unpacks to more than %d bytes", maxRaw)
	}
	return raw, nil
}

func parsePprof(gz []byte) (*profile.Profile, error) {
	raw, err := unzip(gz)
	if err != nil {
		return nil, err
	}
	p, err := profile.ParseUncompressed(raw)
	if err != nil {
		return nil, fmt.Errorf("pprof: %w", err)
	}
	if err := p.CheckValid(); err != nil {
		return nil, fmt.Errorf("pprof: %w", err)
	}
	return p, nil
}

// firstTotal adds up the first value of all samples.
func firstTotal(p *profile.Profile) (sum int64) {
	for _, s := range p.Sample {
		if len(s.Value) > 0 {
			sum += s.Value[0]
		}
	}
	return sum
}

// retime gives a pprof the times of its row.
func retime(gz []byte, start, end int64) ([]byte, error) {
	p, err := parsePprof(gz)
	if err != nil {
		return nil, err
	}
	p.TimeNanos, p.DurationNanos = start, end-start
	gz, _, err = encodePprof(p)
	return gz, err
}
