package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Clock is where times come from. The wall clock may jump (a board without a battery starts in 1970 until NTP answers), the
// boot-time clock never does.
type Clock interface {
	// Now is the wall clock.
	Now() time.Time
	// Boottime is CLOCK_BOOTTIME: time since boot, suspended time included.
	Boottime() time.Duration
	// BootID names the running boot (/proc/sys/kernel/random/boot_id).
	BootID() (string, error)
}

type machineClock struct{}

func (machineClock) Now() time.Time { return time.Now() }

func (machineClock) Boottime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // every Linux since 2.6.39 has it; 0 means "not known" everywhere
	}
	return time.Duration(ts.Nano())
}

func (machineClock) BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// clockStep is the least difference that counts as a jump. The kernel slews both clocks alike, so the wall clock minus
// CLOCK_BOOTTIME only changes when somebody steps the wall clock; below a second it is not worth touching rows.
const clockStep = time.Second

// offset returns the wall clock minus CLOCK_BOOTTIME, read so that no pause of this goroutine falls between the two.
func offset(c Clock) (time.Duration, bool) {
	for range 5 {
		before := c.Boottime()
		wall := c.Now().UnixNano()
		after := c.Boottime()
		if before == 0 {
			return 0, false
		}
		if after-before < 10*time.Millisecond {
			return time.Duration(wall) - before, true
		}
	}
	return 0, false
}

// noteBoot finds or makes the row of the running boot.
func (s *Store) noteBoot(ctx context.Context, w *sql.DB) (int64, error) {
	id, err := s.cfg.Clock.BootID()
	if err != nil {
		return 0, fmt.Errorf("read the boot id: %w", err)
	}
	off, _ := offset(s.cfg.Clock)
	var boot int64
	err = w.QueryRowContext(ctx, "SELECT id FROM boots WHERE boot_id = ?", id).Scan(&boot)
	if errors.Is(err, sql.ErrNoRows) {
		err = w.QueryRowContext(ctx, "INSERT INTO boots (boot_id, offset_ns) VALUES (?, ?) RETURNING id", id, int64(off)).Scan(&boot)
	}
	return boot, err
}

// MendClock compares the wall clock with CLOCK_BOOTTIME. When the wall clock was stepped since the last look, it corrects the
// times of all profiles that were taken since this boot, and returns how many. Write and Maintain do this by themselves.
func (s *Store) MendClock(ctx context.Context) (int64, error) {
	if err := s.writable(); err != nil {
		return 0, err
	}
	s.writer.Lock()
	defer s.writer.Unlock()
	n, err := s.mend(ctx)
	if err != nil {
		return 0, fmt.Errorf("store %s: mend times after the clock was set: %w", s.cfg.Path, remedy(err))
	}
	return n, nil
}

// mend does MendClock's work. Callers hold s.writer.
func (s *Store) mend(ctx context.Context) (mended int64, err error) {
	now, ok := offset(s.cfg.Clock)
	if !ok {
		return 0, nil
	}
	db, release, err := s.use()
	if err != nil {
		return 0, err
	}
	boot := db.boot
	var was int64
	err = db.w.QueryRowContext(ctx, "SELECT offset_ns FROM boots WHERE id = ?", boot).Scan(&was)
	release()
	if err != nil {
		return 0, err
	}
	step := now - time.Duration(was)
	if step.Abs() < clockStep {
		return 0, nil
	}
	err = s.update(ctx, false, func(tx *sql.Tx, _ *database) error {
		// The length of a window was measured by one clock before the jump or by both: keep it, place its start.
		r, err := tx.ExecContext(ctx, `UPDATE profiles SET start_ns = boottime_ns + ?1, end_ns = boottime_ns + ?1 + (end_ns - start_ns), mended = 1
			WHERE boot = ?2 AND boottime_ns > 0 AND abs(boottime_ns + ?1 - start_ns) >= ?3`, int64(now), boot, int64(clockStep))
		if err != nil {
			return err
		}
		if mended, err = r.RowsAffected(); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "UPDATE deliveries SET next_ns = 0 WHERE state = 'pending' AND next_ns > 0"); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "UPDATE boots SET offset_ns = ? WHERE id = ?", int64(now), boot)
		return err
	})
	if err != nil {
		return 0, err
	}
	s.n.mended.Add(uint64(mended))
	s.log.Warn("the wall clock was set: times of the profiles since boot corrected", "step", step.Round(time.Millisecond), "profiles", mended)
	return mended, nil
}
