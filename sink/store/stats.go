package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// counters are what this process did; what must survive a restart is in the file.
type counters struct {
	writes, written, replayed, invalid   atomic.Uint64
	merged, mended, setAside, unreadable atomic.Uint64

	mu       sync.Mutex
	failures map[string]uint64    // of writes, by kind; guarded by mu
	results  map[[2]string]uint64 // of deliveries, by sink and result; guarded by mu
}

func (c *counters) count(sink, result string, n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.results == nil {
		c.results = map[[2]string]uint64{}
	}
	c.results[[2]string{sink, result}] += n
}

func (c *counters) failed(kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failures == nil {
		c.failures = map[string]uint64{}
	}
	c.failures[kind]++
}

// Stats is the state of the store. What is counted "since start" is this process's own.
type Stats struct {
	Path               string
	Bytes, MaxBytes    int64 // on disk, write-ahead log included; the bound
	UsedBytes          int64 // of the file, without its free pages
	Profiles, Series   int64
	Oldest, Newest     time.Time // first start and last end; zero when empty
	Evictions          []Eviction
	Deliveries         []DeliveryCount
	Writes             uint64 // windows written since start
	WrittenProfiles    uint64
	ReplayedProfiles   uint64            // written again after an error and recognised
	InvalidProfiles    uint64            // dropped because they broke the model's promises
	FailedWrites       map[string]uint64 // by kind: full, corrupt, busy, permission, closed, other
	MergedProfiles     uint64            // rows that went into larger windows
	MendedProfiles     uint64            // rows whose times were corrected after the clock was set
	UnreadableProfiles uint64            // damaged rows that a read or a merge met
	CorruptFiles       uint64            // files set aside
	Results            []DeliveryResult
	Err                string // why the numbers above that come from the file are missing
}

// Eviction is how much went for one reason since the file was made.
type Eviction struct {
	Reason          string // size, age or disk
	Undelivered     bool   // a delivery was still pending, in flight or uncertain
	Profiles, Bytes int64
}

// DeliveryCount is how many deliveries of a sink are in a state.
type DeliveryCount struct {
	Sink, State string
	Profiles    int64
}

// DeliveryResult is how often sending to a sink ended in a result since start: delivered, delivered_in_doubt (after a lost
// reply: the server may count it twice), refused, retry, uncertain.
type DeliveryResult struct {
	Sink, Result string
	Profiles     uint64
}

// Stats returns the state of the store. It reads the file, briefly.
func (s *Store) Stats() Stats {
	st := Stats{
		Path: s.cfg.Path, MaxBytes: s.cfg.MaxBytes,
		Writes: s.n.writes.Load(), WrittenProfiles: s.n.written.Load(), ReplayedProfiles: s.n.replayed.Load(), InvalidProfiles: s.n.invalid.Load(),
		MergedProfiles: s.n.merged.Load(), MendedProfiles: s.n.mended.Load(), UnreadableProfiles: s.n.unreadable.Load(), CorruptFiles: s.n.setAside.Load(),
	}
	s.n.mu.Lock()
	st.FailedWrites = maps.Clone(s.n.failures)
	for k, n := range s.n.results {
		st.Results = append(st.Results, DeliveryResult{k[0], k[1], n})
	}
	s.n.mu.Unlock()
	slices.SortFunc(st.Results, func(a, b DeliveryResult) int {
		return cmp.Or(cmp.Compare(a.Sink, b.Sink), cmp.Compare(a.Result, b.Result))
	})
	st.Bytes, _ = s.bytesOnDisk()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.read(ctx, func(ctx context.Context, tx *sql.Tx) error { return st.read(ctx, tx) }); err != nil {
		st.Err = err.Error()
	}
	return st
}

func (st *Stats) read(ctx context.Context, tx *sql.Tx) error {
	count, free, err := pages(ctx, tx)
	if err != nil {
		return err
	}
	st.UsedBytes = (count - free) * pageSize
	var oldest, newest sql.NullInt64
	if err := tx.QueryRowContext(ctx, "SELECT count(*), (SELECT count(*) FROM series), (SELECT min(start_ns) FROM profiles INDEXED BY profiles_time), (SELECT max(end_ns) FROM profiles) FROM profiles").
		Scan(&st.Profiles, &st.Series, &oldest, &newest); err != nil {
		return err
	}
	if oldest.Valid {
		st.Oldest, st.Newest = unixNano(oldest.Int64), unixNano(newest.Int64)
	}
	rows, err := tx.QueryContext(ctx, "SELECT reason, undelivered, profiles, bytes FROM evictions ORDER BY 1, 2")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var e Eviction
		if err := rows.Scan(&e.Reason, &e.Undelivered, &e.Profiles, &e.Bytes); err != nil {
			return err
		}
		st.Evictions = append(st.Evictions, e)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	rows, err = tx.QueryContext(ctx, "SELECT sink, state, count(*) FROM deliveries INDEXED BY deliveries_due GROUP BY 1, 2 ORDER BY 1, 2")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var d DeliveryCount
		if err := rows.Scan(&d.Sink, &d.State, &d.Profiles); err != nil {
			return err
		}
		st.Deliveries = append(st.Deliveries, d)
	}
	return errors.Join(rows.Err(), rows.Close())
}

// Check reads the whole file: SQLite's own integrity, references, and every profile's bytes against its row. It returns what
// is wrong, joined, at most a hundred findings; nil means all is well. It takes seconds and needs no agent to be stopped.
func (s *Store) Check(ctx context.Context) error {
	var found []error
	note := func(format string, args ...any) {
		if len(found) < 100 {
			found = append(found, fmt.Errorf(format, args...))
		}
	}
	db, release, err := s.use()
	if err != nil {
		return err
	}
	defer release()
	tx, err := db.r.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("store %s: check: %w", s.cfg.Path, remedy(err))
	}
	defer tx.Rollback() //nolint:errcheck // nothing was written
	if err := eachText(ctx, tx, "PRAGMA integrity_check(20)", func(line string) {
		if line != "ok" {
			note("%w: %s", ErrCorrupt, line)
		}
	}); err != nil {
		return fmt.Errorf("store %s: check: %w", s.cfg.Path, remedy(err))
	}
	if err := eachText(ctx, tx, `SELECT "table" || ' row ' || coalesce(rowid, '?') || ' refers to a missing row of ' || parent FROM pragma_foreign_key_check`, func(line string) {
		note("%w: %s", ErrCorrupt, line)
	}); err != nil {
		return fmt.Errorf("store %s: check: %w", s.cfg.Path, remedy(err))
	}
	rows, series, err := find(ctx, tx, &Query{})
	if err != nil {
		return fmt.Errorf("store %s: check: %w", s.cfg.Path, remedy(err))
	}
	for _, r := range series {
		if r.err != nil {
			note("%w", r.err)
		}
	}
	for _, f := range rows {
		var total, samples int64
		var gz []byte
		if err := tx.QueryRowContext(ctx, "SELECT total, samples, pprof FROM profiles WHERE id = ?", f.id).Scan(&total, &samples, &gz); err != nil {
			if isCorrupt(err) {
				note("profile %d: %w", f.id, err)
				continue
			}
			return fmt.Errorf("store %s: check profile %d: %w", s.cfg.Path, f.id, remedy(err))
		}
		p, err := parsePprof(gz)
		switch {
		case err != nil:
			note("profile %d: %w", f.id, err)
		case firstTotal(p) != total:
			note("profile %d: its values add up to %d, the row says %d", f.id, firstTotal(p), total)
		case int64(len(p.Sample)) != samples:
			note("profile %d: it has %d samples, the row says %d", f.id, len(p.Sample), samples)
		}
	}
	return errors.Join(found...)
}

func eachText(ctx context.Context, tx *sql.Tx, query string, f func(string)) error {
	rows, err := tx.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return err
		}
		f(line)
	}
	return rows.Err()
}

// Collector returns the store's metrics. It reads the file at each scrape.
func (s *Store) Collector() prometheus.Collector { return collector{s} }

type collector struct{ s *Store }

var (
	descBytes      = prometheus.NewDesc("stoker_store_bytes", "Bytes of the store on disk, write-ahead log included.", nil, nil)
	descMaxBytes   = prometheus.NewDesc("stoker_store_max_bytes", "Bound of the store's bytes.", nil, nil)
	descProfiles   = prometheus.NewDesc("stoker_store_profiles", "Profiles in the store.", nil, nil)
	descSeries     = prometheus.NewDesc("stoker_store_series", "Series in the store.", nil, nil)
	descOldest     = prometheus.NewDesc("stoker_store_oldest_timestamp_seconds", "Start of the oldest profile, seconds since 1970.", nil, nil)
	descWrites     = prometheus.NewDesc("stoker_store_writes_total", "Windows written, by result: ok, or why not.", []string{"result"}, nil)
	descWritten    = prometheus.NewDesc("stoker_store_written_profiles_total", "Profiles written, by result: stored, replayed (was there already), invalid (dropped).", []string{"result"}, nil)
	descEvicted    = prometheus.NewDesc("stoker_store_evicted_profiles_total", "Profiles evicted since the store was made, by reason and by whether a delivery was still due.", []string{"reason", "undelivered"}, nil)
	descMerged     = prometheus.NewDesc("stoker_store_merged_profiles_total", "Profiles that were merged into larger windows.", nil, nil)
	descMended     = prometheus.NewDesc("stoker_store_mended_profiles_total", "Profiles whose times were corrected after the clock was set.", nil, nil)
	descUnreadable = prometheus.NewDesc("stoker_store_unreadable_profiles_total", "Damaged profiles met by a read or a merge.", nil, nil)
	descCorrupt    = prometheus.NewDesc("stoker_store_corrupt_files_total", "Corrupt files set aside.", nil, nil)
	descDeliveries = prometheus.NewDesc("stoker_store_deliveries", "Deliveries in the store, by sink and state.", []string{"sink", "state"}, nil)
	descResults    = prometheus.NewDesc("stoker_store_delivery_results_total", "Profiles sent, by sink and result: delivered, delivered_in_doubt (after a lost reply, may count twice), refused, retry, uncertain.", []string{"sink", "result"}, nil)
	descUp         = prometheus.NewDesc("stoker_store_readable", "1 when the store's file could be read for these metrics.", nil, nil)
)

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descBytes, descMaxBytes, descProfiles, descSeries, descOldest, descWrites, descWritten, descEvicted, descMerged, descMended, descUnreadable, descCorrupt, descDeliveries, descResults, descUp} {
		ch <- d
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	st := c.s.Stats()
	gauge := func(d *prometheus.Desc, v float64, l ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, l...)
	}
	count := func(d *prometheus.Desc, v float64, l ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, l...)
	}
	gauge(descBytes, float64(st.Bytes))
	gauge(descMaxBytes, float64(st.MaxBytes))
	count(descWrites, float64(st.Writes), "ok")
	for kind, n := range st.FailedWrites {
		count(descWrites, float64(n), kind)
	}
	count(descWritten, float64(st.WrittenProfiles), "stored")
	count(descWritten, float64(st.ReplayedProfiles), "replayed")
	count(descWritten, float64(st.InvalidProfiles), "invalid")
	count(descMerged, float64(st.MergedProfiles))
	count(descMended, float64(st.MendedProfiles))
	count(descUnreadable, float64(st.UnreadableProfiles))
	count(descCorrupt, float64(st.CorruptFiles))
	for _, r := range st.Results {
		count(descResults, float64(r.Profiles), r.Sink, r.Result)
	}
	if st.Err != "" {
		gauge(descUp, 0)
		return
	}
	gauge(descUp, 1)
	gauge(descProfiles, float64(st.Profiles))
	gauge(descSeries, float64(st.Series))
	if !st.Oldest.IsZero() {
		gauge(descOldest, float64(st.Oldest.UnixNano())/1e9)
	}
	for _, e := range st.Evictions {
		count(descEvicted, float64(e.Profiles), e.Reason, fmt.Sprint(e.Undelivered))
	}
	for _, d := range st.Deliveries {
		gauge(descDeliveries, float64(d.Profiles), d.Sink, d.State)
	}
}
