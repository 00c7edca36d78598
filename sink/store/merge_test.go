package store

import (
	"context"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/sink"
)

// stacks adds up the values of each stack in the profiles, by function names.
func stacks(t testing.TB, ps []sink.Profile) map[string]int64 {
	t.Helper()
	out := map[string]int64{}
	for _, p := range ps {
		parsed, err := profile.ParseData(p.Pprof)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range parsed.Sample {
			var b strings.Builder
			for _, l := range s.Location {
				b.WriteString(l.Line[0].Function.Name + ";")
			}
			out[b.String()] += s.Value[0]
		}
	}
	return out
}

func TestOldWindowsAreMergedExactly(t *testing.T) {
	clock := newClock()
	s := open(t, clock)
	w := newWorkload(5, 300, 200, 15)
	for range 6 * 60 { // an hour
		write(t, s, w.window(t, clock, "cart", 40), w.window(t, clock, "web", 10))
		clock.pass(10 * time.Second)
	}
	before := selected(t, s, Query{})
	want, wantSeries := stacks(t, before), points(t, s)
	maintain(t, s)
	after := selected(t, s, Query{})
	if len(after) > 2*(12+62) || len(after) < 2*(10+60) {
		t.Errorf("%d rows after merging an hour, want about 140", len(after))
	}
	if !maps.Equal(stacks(t, after), want) || sum(after) != sum(before) {
		t.Error("merging changed the sums")
	}
	if got := points(t, s); !maps.Equal(got, wantSeries) {
		t.Error("merging lost the resolution of CPU over time")
	}
	for _, p := range after {
		parsed, err := profile.ParseData(p.Pprof)
		if err != nil {
			t.Fatal(err)
		}
		if parsed.TimeNanos != p.Start.UnixNano() || parsed.DurationNanos != int64(p.End.Sub(p.Start)) || parsed.Period != period || firstTotal(parsed) != p.Total || len(parsed.Sample) != p.Samples {
			t.Errorf("the merged profile of %v does not agree with its row", p.Start)
		}
	}
	maintain(t, s) // nothing more to do
	if again := selected(t, s, Query{}); len(again) != len(after) {
		t.Errorf("a second maintenance merged again: %d rows, there were %d", len(again), len(after))
	}
	clock.pass(12 * time.Hour)
	maintain(t, s)
	last := selected(t, s, Query{})
	if len(last) > 4 || !maps.Equal(stacks(t, last), want) {
		t.Errorf("%d rows in hours, want at most 4 with the same sums", len(last))
	}
	if got := points(t, s); !maps.Equal(got, wantSeries) {
		t.Error("merging into hours lost the resolution of CPU over time")
	}
	if err := s.Check(context.Background()); err != nil {
		t.Error(err)
	}
}

// points returns CPU over time, by container and second.
func points(t testing.TB, s *Store) map[string]int64 {
	t.Helper()
	series, err := s.Series(context.Background(), Query{}, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int64{}
	for _, one := range series {
		for _, p := range one.Points {
			out[one.ContainerID+p.T.String()] = p.V
		}
	}
	return out
}

func TestMergingKeepsDeliveriesApart(t *testing.T) {
	clock := newClock()
	clock.wall = clock.wall.Truncate(5 * time.Minute).Add(10 * time.Second)
	s := open(t, clock, func(c *Config) { c.Sinks = []string{"a"} })
	w := small()
	var all []sink.Profile
	for range 12 {
		p := w.window(t, clock, "cart", 20)
		write(t, s, p)
		all = append(all, p)
		clock.pass(10 * time.Second)
	}
	// Two each: delivered, pending, refused, in flight, to be sent again after a lost reply, uncertain.
	states := []string{Delivered, Pending, Refused, Sending, Pending, Uncertain}
	for i := range all {
		doubts := 0
		if i/2 >= 4 {
			doubts = 1
		}
		if _, err := s.db.w.Exec("UPDATE deliveries SET state = ?, doubts = ?, attempts = ? WHERE profile_id = ?", states[i/2], doubts, i, i+1); err != nil {
			t.Fatal(err)
		}
	}
	clock.pass(time.Hour)
	maintain(t, s)
	ds, err := s.Deliveries(context.Background(), DeliveryQuery{})
	if err != nil {
		t.Fatal(err)
	}
	type kind struct {
		state  string
		doubts int
	}
	got := map[kind]int{}
	for _, d := range ds {
		got[kind{d.State, d.Doubts}]++
	}
	want := map[kind]int{{Delivered, 0}: 1, {Pending, 0}: 1, {Refused, 0}: 1, {Sending, 0}: 2, {Pending, 1}: 2, {Uncertain, 1}: 1}
	if !maps.Equal(got, want) {
		t.Errorf("deliveries after merging: %v, want %v", got, want)
	}
	for _, d := range ds {
		if d.State == Pending && d.Doubts == 0 && d.Attempts != 3 {
			t.Errorf("the merged pending delivery has %d attempts, want the most of its rows, 3", d.Attempts)
		}
	}
	if left := selected(t, s, Query{}); !maps.Equal(stacks(t, left), stacks(t, all)) {
		t.Error("merging changed the sums")
	}
}

func TestMergedProfilesStayWithinAServersLimits(t *testing.T) {
	clock := newClock()
	clock.wall = clock.wall.Truncate(time.Hour).Add(10 * time.Second)
	s := open(t, clock)
	w := newWorkload(9, 3000, 16_800, 30)
	w.zipf = nil
	var total int64
	for i := range 24 { // each window has stacks of its own
		p := w.window2(t, clock, i*700, (i+1)*700)
		total += p.Total
		write(t, s, p)
		clock.pass(10 * time.Second)
	}
	clock.pass(9 * time.Hour)
	maintain(t, s)
	rows := selected(t, s, Query{})
	if len(rows) < 2 || len(rows) > 12 || sum(rows) != total {
		t.Errorf("%d rows with total %d, want some between 2 and 12 with total %d", len(rows), sum(rows), total)
	}
	for _, p := range rows {
		raw, err := unzip(p.Pprof)
		if err != nil || len(raw) > maxRawBytes || p.Samples > maxSamples {
			t.Errorf("a merged profile of %d bytes and %d samples (%v)", len(raw), p.Samples, err)
		}
	}
}

// window2 makes a profile of the stacks from..to, one sample each.
func (w *workload) window2(t testing.TB, c *fakeClock, from, to int) sink.Profile {
	t.Helper()
	part := &workload{rnd: w.rnd, stacks: w.stacks[from:to], prefix: w.prefix}
	end := c.Now()
	p := sink.Profile{Type: sink.CPU, Labels: sink.Labels{"service_name": "big"}, Start: end.Add(-10 * time.Second), End: end, BootStart: c.Boottime() - 10*time.Second}
	p.Pprof, p.Total, p.Samples = part.pprof(t, p.Start, p.End, -1)
	return p
}

func TestDamagedProfileDoesNotStopMerging(t *testing.T) {
	clock := newClock()
	clock.wall = clock.wall.Truncate(5 * time.Minute).Add(10 * time.Second)
	log, logger := newLog()
	s := open(t, clock, func(c *Config) { c.Log = logger })
	w := small()
	for range 10 {
		write(t, s, w.window(t, clock, "cart", 20))
		clock.pass(10 * time.Second)
	}
	if _, err := s.db.w.Exec("UPDATE profiles SET pprof = 'rubbish' WHERE id = 5"); err != nil {
		t.Fatal(err)
	}
	clock.pass(time.Hour)
	maintain(t, s)
	maintain(t, s)
	if n := s.Stats().Profiles; n != 3 {
		t.Errorf("%d rows, want the damaged one and one on each side", n)
	}
	if n := strings.Count(log.String(), "cannot be merged"); n != 1 {
		t.Errorf("the log says %d times that a profile cannot be merged, want once", n)
	}
	if err := s.Check(context.Background()); err == nil || !strings.Contains(err.Error(), "profile 5") {
		t.Errorf("check: %v, want the damaged profile", err)
	}
}
