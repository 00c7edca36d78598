package store

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/sink"
)

// Rows that somebody else wrote: whatever is in them ends in an error or in a profile, for every way of reading, and never
// in a panic, a hang or memory without bound.
func FuzzRow(f *testing.F) {
	clock := newClock()
	good := small().window(f, clock, "cart", 5)
	r, err := encodeRow(&good)
	if err != nil {
		f.Fatal(err)
	}
	add := func(change func(*row), parts string) {
		x := r
		change(&x)
		f.Add(x.typ, x.labels, x.pprof, parts, x.start, x.end, x.total)
	}
	add(func(*row) {}, "")
	add(func(*row) {}, "[[0,10000,1],[10000,10000,2]]")
	add(func(*row) {}, "[[-1,9223372036854775807,-9223372036854775808]]")
	add(func(*row) {}, "[[1]]")
	add(func(x *row) { x.typ = "{" }, "")
	add(func(x *row) { x.typ = `{"name":"a","samples":[],"period":[]}` }, "")
	add(func(x *row) { x.labels = `["a"]` }, "")
	add(func(x *row) { x.labels = `{"a":1}` }, "")
	add(func(x *row) { x.labels = "null" }, "")
	add(func(x *row) { x.pprof = x.pprof[:len(x.pprof)/2] }, "")
	add(func(x *row) { x.pprof = []byte{0x1f, 0x8b} }, "")
	add(func(x *row) { x.pprof = nil }, "")
	add(func(x *row) { x.start, x.end = -1<<63, 1<<63-1 }, "")
	add(func(x *row) { x.end = x.start - 5 }, "")
	s := open(f, clock, withSinks("a"))
	f.Fuzz(func(t *testing.T, typ, labels string, pprof []byte, parts string, start, end, total int64) {
		ctx := context.Background()
		for _, q := range []string{"DELETE FROM profiles", "DELETE FROM series"} {
			if _, err := s.db.w.Exec(q); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.db.w.Exec("INSERT INTO series (id, type, labels) VALUES (1, ?, ?)", typ, labels); err != nil {
			t.Fatal(err)
		}
		var text any
		if parts != "" {
			text = parts
		}
		if pprof == nil {
			pprof = []byte{}
		}
		for i := range int64(2) { // two, so that there is something to merge
			if _, err := s.db.w.Exec(`INSERT INTO profiles (series_id, container_id, start_ns, end_ns, boot, boottime_ns, mended, total, samples, raw_bytes, parts, pprof)
				VALUES (1, 'c', ?, ?, 1, 1, ?, ?, 1, 10, ?, ?)`, start, end, i, total, text, pprof); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.db.w.Exec("INSERT INTO deliveries (profile_id, sink, tenant, state) SELECT id, 'a', '', 'pending' FROM profiles"); err != nil {
			t.Fatal(err)
		}
		n := 0
		for p, err := range s.Select(ctx, Query{}) {
			if n++; err == nil && p.Type.Name == "" {
				t.Errorf("a profile without a type: %+v", p)
			}
		}
		if n != 2 {
			t.Errorf("selected %d rows, want 2, each with a profile or an error", n)
		}
		s.Select(ctx, Query{Match: []Matcher{must(ParseMatcher("a=~.*"))}})(func(sink.Profile, error) bool { return true })
		s.Series(ctx, Query{}, time.Second) //nolint:errcheck // an error is fine
		s.Labels(ctx, Query{})              //nolint:errcheck
		s.Deliveries(ctx, DeliveryQuery{})  //nolint:errcheck
		s.Check(ctx)                        //nolint:errcheck
		if st := s.Stats(); st.Err != "" {
			t.Errorf("stats: %s", st.Err)
		}
		if err := s.Maintain(ctx); err != nil {
			t.Errorf("maintenance stopped at a damaged row: %v", err)
		}
	})
}

func must(m Matcher, err error) Matcher {
	if err != nil {
		panic(err)
	}
	return m
}

// A file with damaged bytes: opening it for reading and everything after that ends.
func FuzzFile(f *testing.F) {
	clock := newClock()
	s := open(f, clock, withSinks("a"))
	w := newWorkload(3, 50, 50, 10)
	for range 12 {
		if err := s.Write(context.Background(), []sink.Profile{w.window(f, clock, "cart", 30)}); err != nil {
			f.Fatal(err)
		}
		clock.pass(10 * time.Second)
	}
	if err := s.Close(); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(s.Path())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(0, []byte("SQLite format 3\x00"), len(whole))
	f.Add(16, []byte{0, 1}, len(whole))
	f.Add(100, []byte{13, 255, 255}, len(whole))
	f.Add(4096, bytes.Repeat([]byte{255}, 64), len(whole))
	f.Add(3*4096, bytes.Repeat([]byte{0}, 4096), len(whole))
	f.Add(5*4096+8, []byte{1, 2, 3, 4}, len(whole)-1000)
	f.Add(0, []byte{}, 0)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, at int, bytes []byte, size int) {
		if size < 0 || size > len(whole) || at < 0 || at > size {
			return
		}
		data := append([]byte(nil), whole[:size]...)
		copy(data[at:], bytes)
		path := filepath.Join(dir, "profiles.db")
		for _, suffix := range []string{"-wal", "-shm"} {
			os.Remove(path + suffix)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		ctx := context.Background()
		if ro, err := OpenReadOnly(path); err == nil {
			for range ro.Select(ctx, Query{}) {
			}
			ro.Series(ctx, Query{}, time.Second) //nolint:errcheck // an error is fine
			ro.Check(ctx)                        //nolint:errcheck
			ro.Stats()
			if err := ro.Close(); err != nil {
				t.Error(err)
			}
		}
		// An agent goes on with what works, or with a fresh file.
		rw, err := Open(Config{Path: path, Clock: clock, MaintainEvery: -1, Log: quiet})
		if err != nil {
			return // another program's or a newer version's file by the looks of it
		}
		rw.Write(ctx, []sink.Profile{w.window(t, clock, "web", 3)}) //nolint:errcheck
		rw.Maintain(ctx)                                            //nolint:errcheck
		rw.Close()                                                  //nolint:errcheck
		for _, old := range must2(filepath.Glob(path + ".corrupt-*")) {
			os.Remove(old)
		}
	})
}

func must2(s []string, err error) []string {
	if err != nil {
		panic(err)
	}
	return s
}
