package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/sink"
)

// evicted returns how many profiles went for a reason.
func evicted(st Stats, reason string, undelivered bool) int64 {
	for _, e := range st.Evictions {
		if e.Reason == reason && e.Undelivered == undelivered {
			return e.Profiles
		}
	}
	return 0
}

func TestSizeBoundHoldsAndOldestGoFirst(t *testing.T) {
	clock := newClock()
	const bound = 3 << 20
	log, logger := newLog()
	s := open(t, clock, func(c *Config) { c.MaxBytes, c.Sinks, c.Log = bound, []string{"a"}, logger })
	w := newWorkload(3, 1000, 1000, 16)
	var last sink.Profile
	var written int64
	for range 150 {
		p, q := w.window(t, clock, "cart", 200), w.window(t, clock, "web", 200)
		write(t, s, p, q)
		written += 2
		last = q
		clock.pass(10 * time.Second)
		if total, _ := s.bytesOnDisk(); total > bound+64<<10 { // the log's index is not counted
			t.Fatalf("%d bytes on disk, the bound is %d", total, bound)
		}
	}
	st := s.Stats()
	got := selected(t, s, Query{})
	if int64(len(got))+evicted(st, "size", true) != written || len(got) == 0 || len(got) == int(written) {
		t.Errorf("%d profiles left and %d evicted of %d written", len(got), evicted(st, "size", true), written)
	}
	if !got[0].End.Equal(last.End) {
		t.Error("the newest profile is gone")
	}
	for _, p := range got {
		if p.End.Before(got[len(got)-1].End) {
			t.Error("a profile older than the oldest kept one")
		}
	}
	if !strings.Contains(log.String(), "not delivered yet") {
		t.Error("the log does not say that undelivered profiles went")
	}
	// The counts survive a restart, and a lower bound is kept from the start.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, clock, func(c *Config) { c.Path, c.MaxBytes, c.Sinks = s.Path(), 2<<20, []string{"a"} })
	if total, _ := s.bytesOnDisk(); total > 2<<20+64<<10 {
		t.Errorf("%d bytes on disk after a restart with a bound of %d", total, 2<<20)
	}
	if after := evicted(s.Stats(), "size", true); after <= evicted(st, "size", true) {
		t.Errorf("%d evicted after the restart, %d before", after, evicted(st, "size", true))
	}
	write(t, s, w.window(t, clock, "cart", 200))
	if err := s.Check(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestWindowLargerThanTheBound(t *testing.T) {
	clock := newClock()
	s := open(t, clock, func(c *Config) { c.MaxBytes = 2 << 20 })
	w := small()
	write(t, s, w.window(t, clock, "cart", 10))
	huge := w.window(t, clock, "web", 10)
	huge.Pprof = make([]byte, 3<<20)
	err := s.Write(context.Background(), []sink.Profile{huge})
	if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "store.max_size") {
		t.Errorf("%v, want ErrFull with the setting", err)
	}
	if len(selected(t, s, Query{})) != 1 {
		t.Error("what was there was evicted for nothing")
	}
	if st := s.Stats(); st.FailedWrites["full"] != 1 {
		t.Errorf("failed writes %v", st.FailedWrites)
	}
	clock.pass(10 * time.Second)
	write(t, s, w.window(t, clock, "cart", 10))
}

func TestAgeBound(t *testing.T) {
	clock := newClock()
	s := open(t, clock, func(c *Config) { c.MaxAge = time.Hour })
	w := small()
	write(t, s, w.window(t, clock, "cart", 10))
	clock.pass(40 * time.Minute)
	write(t, s, w.window(t, clock, "web", 10))
	clock.pass(30 * time.Minute)
	maintain(t, s)
	if got := selected(t, s, Query{}); len(got) != 1 || got[0].Labels["container_name"] != "web" {
		t.Errorf("%d profiles left", len(got))
	}
	st := s.Stats()
	if evicted(st, "age", false) != 1 || st.Series != 1 {
		t.Errorf("evictions %v, %d series, want one each", st.Evictions, st.Series)
	}
}

func maintain(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Maintain(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestLowDiskGivesSpaceBack(t *testing.T) {
	clock := newClock()
	log, logger := newLog()
	s := open(t, clock, func(c *Config) { c.MinFree, c.Log = 0.1, logger })
	const total = 100 << 20
	other := int64(0) // what others occupy
	s.free = func(string) (int64, int64, error) {
		ours, _ := s.bytesOnDisk()
		return total - other - ours, total, nil
	}
	w := newWorkload(3, 1000, 1000, 16)
	for range 100 {
		write(t, s, w.window(t, clock, "cart", 300))
		clock.pass(10 * time.Second)
	}
	before := len(selected(t, s, Query{}))
	if before != 100 {
		t.Fatalf("%d profiles before the disk fills", before)
	}
	if err := s.checkpointNow(); err != nil {
		t.Fatal(err)
	}
	ours, _ := s.bytesOnDisk()
	other = total - total/10 - ours + 512<<10 // half a MiB below what must stay free
	for range 5 {
		write(t, s, w.window(t, clock, "cart", 300))
		clock.pass(10 * time.Second)
	}
	if free, _, _ := s.free(""); free < total/10-256<<10 {
		t.Errorf("%d bytes free, %d must stay", free, total/10)
	}
	after := selected(t, s, Query{})
	if n := evicted(s.Stats(), "disk", false); n == 0 || len(after)+int(n) != 105 || len(after) < 10 {
		t.Errorf("%d profiles left, %d evicted for the disk", len(after), n)
	}
	other = 0
	write(t, s, w.window(t, clock, "cart", 300))
	for _, text := range []string{"nearly full", "store.min_free", "has room again"} {
		if strings.Count(log.String(), text) != 1 {
			t.Errorf("the log has %q %d times, want once", text, strings.Count(log.String(), text))
		}
	}
}

// A database that may not grow behaves as a full disk does, for SQLite and for us.
func TestFullDiskIsAnErrorAndRecovers(t *testing.T) {
	clock := newClock()
	s := open(t, clock)
	w := newWorkload(3, 1000, 1000, 16)
	write(t, s, w.window(t, clock, "cart", 300))
	limit := func(pages int64) {
		t.Helper()
		if _, err := s.db.w.Exec(fmt.Sprintf("PRAGMA max_page_count=%d", pages)); err != nil {
			t.Fatal(err)
		}
	}
	limit(1) // clipped to what there is
	var err error
	n := 0
	for ; err == nil && n < 100; n++ {
		clock.pass(10 * time.Second)
		err = s.Write(context.Background(), []sink.Profile{w.window(t, clock, "cart", 300)})
	}
	if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "free space") {
		t.Fatalf("after %d windows: %v, want ErrFull with the remedy", n, err)
	}
	if got := len(selected(t, s, Query{})); got != n {
		t.Errorf("%d profiles readable while full, want %d: nothing may be evicted in vain", got, n)
	}
	limit(100_000)
	clock.pass(10 * time.Second)
	write(t, s, w.window(t, clock, "cart", 300))
	if got := len(selected(t, s, Query{})); got != n+1 {
		t.Errorf("%d profiles after the disk had room again, want %d", got, n+1)
	}
}

func TestLongReaderCannotGrowTheLogForEver(t *testing.T) {
	clock := newClock()
	s := open(t, clock, func(c *Config) { c.MaxBytes, c.ReadTimeout = 4<<20, 200*time.Millisecond })
	w := newWorkload(3, 1000, 1000, 16)
	write(t, s, w.window(t, clock, "cart", 300), w.window(t, clock, "web", 300))
	var last error
	for _, err := range s.Select(context.Background(), Query{}) {
		if last = err; err != nil {
			break
		}
		time.Sleep(400 * time.Millisecond) // a consumer that dawdles
	}
	if last == nil || !strings.Contains(last.Error(), "ask for less") {
		t.Errorf("a reader beyond its time: %v", last)
	}
}

func TestUnreadableStoreNamesTheRemedy(t *testing.T) {
	if os.Geteuid() == 0 {
		// Root reads everything: the same error comes from a directory where a file is expected.
		_, err := OpenReadOnly(t.TempDir())
		if err == nil {
			t.Error("a directory was opened")
		}
		return
	}
	s := open(t, newClock())
	path := s.Path()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	for _, f := range []func() error{func() error { _, err := Open(Config{Path: path}); return err }, func() error { _, err := OpenReadOnly(path); return err }} {
		if err := f(); !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "run as root") {
			t.Errorf("%v, want the remedy", err)
		}
	}
}

func TestClockThatJumpsMendsItsBoot(t *testing.T) {
	clock := newClock()
	right := clock.Now()
	clock.wall = time.Date(1970, 1, 1, 0, 10, 0, 0, time.UTC) // a board without a battery
	off := right.Sub(clock.wall)
	s := open(t, clock, func(c *Config) { c.MaxAge, c.Sinks = time.Hour, []string{"a"} })
	w := small()
	for range 3 {
		write(t, s, w.window(t, clock, "cart", 10))
		clock.pass(10 * time.Second)
	}
	unknown := w.window(t, clock, "old", 10)
	unknown.BootStart = 0
	write(t, s, unknown)
	clock.step(off) // NTP answers
	maintain(t, s)  // must not take everything for ancient
	got := selected(t, s, Query{Match: match(t, "container_name=cart")})
	if len(got) != 3 {
		t.Fatalf("%d profiles after the jump, want 3", len(got))
	}
	for i, p := range got {
		if want := right.Add(time.Duration(-10*i+10) * time.Second); !p.Start.Equal(want) || p.End.Sub(p.Start) != 10*time.Second {
			t.Errorf("profile %d starts at %v, want %v", i, p.Start, want)
		}
		parsed, err := parsePprof(p.Pprof)
		if err != nil || parsed.TimeNanos != p.Start.UnixNano() || firstTotal(parsed) != p.Total {
			t.Errorf("the pprof says %v (%v)", time.Unix(0, parsed.TimeNanos), err)
		}
	}
	if n := s.Stats().MendedProfiles; n != 3 {
		t.Errorf("%d mended, want 3", n)
	}
	// A small correction is none.
	clock.step(300 * time.Millisecond)
	if n, err := s.MendClock(context.Background()); n != 0 || err != nil {
		t.Errorf("a slew mended %d rows, %v", n, err)
	}
	// A jump while the agent was down, the same boot.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	clock.step(-time.Minute)
	s = open(t, clock, func(c *Config) { c.Path = s.Path() })
	if n, err := s.MendClock(context.Background()); n != 3 || err != nil {
		t.Errorf("after a restart %d rows were mended, %v", n, err)
	}
	// Another boot: what was taken before is not ours to move.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	clock.id, clock.boot = "boot-2", time.Minute
	s = open(t, clock, func(c *Config) { c.Path = s.Path() })
	clock.step(time.Hour)
	write(t, s, w.window(t, clock, "cart", 10))
	if n := s.Stats().MendedProfiles; n != 0 {
		t.Errorf("%d rows of another boot were moved", n)
	}
}

func TestMaintenanceRunsByItself(t *testing.T) {
	clock := newClock()
	s := open(t, clock, func(c *Config) { c.MaxAge, c.MaintainEvery = time.Hour, 5*time.Millisecond })
	write(t, s, small().window(t, clock, "cart", 10))
	clock.pass(2 * time.Hour)
	eventually(t, "the old profile goes", func() bool { return s.Stats().Profiles == 0 })
}
