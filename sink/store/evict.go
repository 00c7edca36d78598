package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// Why a profile was evicted: the values of the metric's label "reason".
const (
	evictSize = "size" // the store's own bound
	evictAge  = "age"  // Config.MaxAge
	evictDisk = "disk" // Config.MinFree of the file system
)

// eviction is what one pass took away for one reason.
type eviction struct {
	reason          string
	undelivered     bool
	profiles, bytes int64
}

// walReserve is the share of MaxBytes that the write-ahead log may take.
func (s *Store) walReserve() int64 { return min(max(s.cfg.MaxBytes/8, 512<<10), 8<<20) }

// pages asks SQLite for the file's pages, the free ones among them included.
func pages(ctx context.Context, q interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
}) (count, free int64, err error) {
	if err = q.QueryRowContext(ctx, "PRAGMA page_count").Scan(&count); err == nil {
		err = q.QueryRowContext(ctx, "PRAGMA freelist_count").Scan(&free)
	}
	return count, free, err
}

// makeRoom evicts the oldest profiles until room bytes fit within MaxBytes beside the write-ahead log's share.
func (s *Store) makeRoom(ctx context.Context, tx *sql.Tx, room int64) ([]eviction, error) {
	limit := s.cfg.MaxBytes - max(s.walReserve(), room+room/4)
	var out []eviction
	for {
		count, free, err := pages(ctx, tx)
		if err != nil {
			return nil, err
		}
		over := (count-free)*pageSize + room - limit
		if over <= 0 {
			return out, nil
		}
		ev, err := s.evict(ctx, tx, evictSize, over, oldestFirst)
		if err != nil {
			return nil, err
		}
		if len(ev) == 0 {
			return nil, fmt.Errorf("%w: a window of %d bytes does not fit a bound of %d bytes: raise store.max_size", ErrFull, room, s.cfg.MaxBytes)
		}
		out = append(out, ev...)
	}
}

// The order in which profiles are evicted.
const (
	oldestFirst = "ORDER BY id"
	olderThan   = "INDEXED BY profiles_time WHERE end_ns < ?"
)

// evict deletes the profiles that the rest of a SELECT names until need bytes are free, and records them. Undelivered ones go
// like the others, for a bound is a bound, but are counted apart; endpoints that are not configured any more do not count.
func (s *Store) evict(ctx context.Context, tx *sql.Tx, reason string, need int64, which string, args ...any) ([]eviction, error) {
	rows, err := tx.QueryContext(ctx, `SELECT id, length(pprof), EXISTS (SELECT 1 FROM deliveries d WHERE d.profile_id = p.id AND d.state NOT IN ('delivered', 'refused')
		AND d.sink IN (SELECT value FROM json_each(?))) FROM profiles p `+which, append([]any{s.sinksJSON()}, args...)...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var ids []int64
	by := [2]eviction{{reason: reason}, {reason: reason, undelivered: true}}
	for need > 0 && rows.Next() {
		var id, size int64
		var undelivered bool
		if err := rows.Scan(&id, &size, &undelivered); err != nil {
			return nil, err
		}
		ids = append(ids, id)
		freed := (size/pageSize + 1) * pageSize
		need -= freed
		e := &by[0]
		if undelivered {
			e = &by[1]
		}
		e.profiles++
		e.bytes += size
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, err
	}
	for _, id := range ids {
		if _, err := tx.ExecContext(ctx, "DELETE FROM profiles WHERE id = ?", id); err != nil {
			return nil, err
		}
	}
	var out []eviction
	for _, e := range by {
		if e.profiles == 0 {
			continue
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO evictions (reason, undelivered, profiles, bytes) VALUES (?, ?, ?, ?)
			ON CONFLICT (reason, undelivered) DO UPDATE SET profiles = profiles + excluded.profiles, bytes = bytes + excluded.bytes`,
			e.reason, e.undelivered, e.profiles, e.bytes); err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// noteEvicted tells the operator about profiles that went before they were delivered. The counts are in the file already.
func (s *Store) noteEvicted(evs []eviction) {
	by := map[string]int64{}
	for _, e := range evs {
		if e.undelivered {
			by[e.reason] += e.profiles
		}
	}
	for reason, n := range by {
		s.log.Warn("evicted profiles that were not delivered yet: mend the endpoint, or raise store.max_size and store.max_age", "reason", reason, "profiles", n)
	}
}

// keepFree gives space back to the file system when less than MinFree of it is left. Callers hold s.writer.
func (s *Store) keepFree(ctx context.Context, incoming int64) error {
	if s.cfg.MinFree == 0 {
		return nil
	}
	need, free, total, err := s.missing()
	if err == nil && need > 0 {
		// The log may hold much of what is missing, and evicting needs some of it anyway.
		if cerr := s.checkpoint(ctx, "TRUNCATE"); cerr != nil {
			s.log.Debug("checkpoint before giving space back", "err", cerr)
		}
		need, free, total, err = s.missing()
	}
	if err != nil {
		return err
	}
	if need <= 0 {
		if s.lowDisk && free > int64(s.cfg.MinFree*float64(total))+s.walReserve() {
			s.log.Info("the file system of the store has room again", "path", s.cfg.Path)
			s.lowDisk = false
		}
		return nil
	}
	if !s.lowDisk {
		s.log.Warn("the file system of the store is nearly full: evicting the oldest profiles; free space on it or lower store.min_free", "path", s.cfg.Path, "free_bytes", free, "min_free_bytes", int64(s.cfg.MinFree*float64(total)))
	}
	s.lowDisk = true
	var evicted []eviction
	err = s.update(ctx, false, func(tx *sql.Tx, _ *database) (err error) {
		evicted, err = s.evict(ctx, tx, evictDisk, need+incoming, oldestFirst)
		return err
	})
	if err != nil {
		return err
	}
	s.noteEvicted(evicted)
	return s.shrink(ctx, (need+pageSize-1)/pageSize)
}

// missing returns how many bytes the file system lacks of what must stay free, beside what it has. What is in the write-ahead
// log will be in the file as well before the log is used again.
func (s *Store) missing() (need, free, total int64, err error) {
	free, total, err = s.free(filepath.Dir(s.cfg.Path))
	_, wal := s.bytesOnDisk()
	return int64(s.cfg.MinFree*float64(total)) + wal - free, free, total, err
}

// shrink gives up to n free pages back to the file system. Callers hold s.writer.
func (s *Store) shrink(ctx context.Context, n int64) error {
	db, release, err := s.use()
	if err != nil {
		return err
	}
	defer release()
	if err := vacuum(ctx, db.w, n); err != nil {
		return err
	}
	if err := s.checkpoint(ctx, "TRUNCATE"); err != nil {
		s.log.Debug("checkpoint after giving space back", "err", err) // the next one will do it
	}
	return nil
}

// vacuum frees up to n pages. The pragma frees one page a step: its rows have to be read to the end.
func vacuum(ctx context.Context, w *sql.DB, n int64) error {
	rows, err := w.QueryContext(ctx, fmt.Sprintf("PRAGMA incremental_vacuum(%d)", n))
	if err != nil {
		return err
	}
	for rows.Next() {
	}
	return errors.Join(rows.Err(), rows.Close())
}

// fit brings a file that is larger than the configured bound within it, and has SQLite itself hold the bound from then on.
func (s *Store) fit(ctx context.Context, db *database) error {
	limit := (s.cfg.MaxBytes - s.walReserve()) / pageSize
	count, free, err := pages(ctx, db.w)
	if err != nil {
		return err
	}
	if count > limit {
		if over := (count - free) - limit; over > 0 {
			tx, err := db.w.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			defer tx.Rollback() //nolint:errcheck // after Commit it does nothing
			evicted, err := s.makeRoom(ctx, tx, 0)
			if err != nil {
				return err
			}
			if err := tx.Commit(); err != nil {
				return err
			}
			s.noteEvicted(evicted)
		}
		if err := vacuum(ctx, db.w, count-limit); err != nil {
			return err
		}
		// The file itself shrinks when the log is folded in. A reader in another process can keep that from happening
		// now; a later checkpoint does it then.
		if _, err := db.w.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
			return err
		}
	}
	_, err = db.w.ExecContext(ctx, fmt.Sprintf("PRAGMA max_page_count=%d", limit))
	return err
}

// maintainLoop is the store's own goroutine.
func (s *Store) maintainLoop(ctx context.Context) {
	t := time.NewTicker(s.cfg.MaintainEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := s.Maintain(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("maintenance of the store failed; it is tried again", "err", err)
		}
	}
}

// Maintain does what the background goroutine does every Config.MaintainEvery: evict what is too old, give space back, merge
// old windows, forget series without profiles, and look at the file when a read met corruption.
func (s *Store) Maintain(ctx context.Context) error {
	if err := s.writable(); err != nil {
		return err
	}
	if err := s.verifySuspect(ctx); err != nil {
		return err
	}
	if err := s.expire(ctx); err != nil {
		return fmt.Errorf("store %s: evict: %w", s.cfg.Path, remedy(err))
	}
	if err := s.mergeOld(ctx); err != nil {
		if isCorrupt(err) {
			s.suspect.Store(true)
		}
		return fmt.Errorf("store %s: merge old windows: %w", s.cfg.Path, remedy(err))
	}
	return nil
}

// verifySuspect checks the file when a read met corruption, and sets it aside when that is confirmed.
func (s *Store) verifySuspect(ctx context.Context) error {
	if !s.suspect.Swap(false) {
		return nil
	}
	s.writer.Lock()
	defer s.writer.Unlock()
	db, release, err := s.use()
	if err != nil {
		return err
	}
	var verdict string
	err = db.w.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict)
	release()
	switch {
	case isCorrupt(err):
		return s.replaceCorrupt(ctx, err)
	case err != nil:
		return fmt.Errorf("store %s: check: %w", s.cfg.Path, remedy(err))
	case verdict != "ok":
		return s.replaceCorrupt(ctx, fmt.Errorf("%w: %s", ErrCorrupt, verdict))
	}
	return nil
}

// expire evicts by age and gives space back.
func (s *Store) expire(ctx context.Context) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	if _, err := s.mend(ctx); err != nil { // first: by a clock that jumped everything would look old
		return err
	}
	if err := s.keepFree(ctx, 0); err != nil {
		return err
	}
	var evicted []eviction
	var count, free int64
	orphans := false
	err := s.update(ctx, false, func(tx *sql.Tx, _ *database) (err error) {
		if s.cfg.MaxAge > 0 {
			cutoff := s.cfg.Clock.Now().Add(-s.cfg.MaxAge).UnixNano()
			if evicted, err = s.evict(ctx, tx, evictAge, 1<<62, olderThan, cutoff); err != nil {
				return err
			}
		}
		r, err := tx.ExecContext(ctx, "DELETE FROM series WHERE NOT EXISTS (SELECT 1 FROM profiles WHERE series_id = series.id)")
		if err != nil {
			return err
		}
		n, err := r.RowsAffected()
		if err != nil {
			return err
		}
		orphans = n > 0
		count, free, err = pages(ctx, tx)
		return err
	})
	if err != nil {
		return err
	}
	if orphans {
		s.series = map[string]int64{} // filled again by the next windows
	}
	s.noteEvicted(evicted)
	if free > count/4 && free > 1024 {
		return s.shrink(ctx, free-count/8)
	}
	return nil
}
