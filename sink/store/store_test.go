package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/stoker-profiler/stoker/sink"
)

func TestWhatWasWrittenIsSelected(t *testing.T) {
	clock := newClock()
	s := open(t, clock)
	w := small()
	var want []sink.Profile
	for range 3 {
		a, b := w.window(t, clock, "cart", 50), w.window(t, clock, "web", 20)
		write(t, s, a, b)
		want = append(want, a, b)
		clock.pass(10 * time.Second)
	}
	got := selected(t, s, Query{})
	if len(got) != len(want) || sum(got) != sum(want) {
		t.Fatalf("selected %d profiles with total %d, want %d and %d", len(got), sum(got), len(want), sum(want))
	}
	if !got[0].End.Equal(want[5].End) {
		t.Errorf("first is of %v, want the newest of %v", got[0].End, want[5].End)
	}
	for _, g := range got {
		p, err := profile.ParseData(g.Pprof)
		if err != nil {
			t.Fatal(err)
		}
		if p.TimeNanos != g.Start.UnixNano() || firstTotal(p) != g.Total || len(p.Sample) != g.Samples || g.Type.ID(0) != sink.CPU.ID(0) {
			t.Errorf("profile %v does not agree with its row", g.Labels)
		}
	}
	for _, c := range []struct {
		name string
		q    Query
		want int
	}{
		{"by equal label", Query{Match: match(t, `container_name=cart`)}, 3},
		{"by quoted label", Query{Match: match(t, `container_name="cart"`)}, 3},
		{"by unequal label", Query{Match: match(t, `container_name!=cart`)}, 3},
		{"by regexp, anchored", Query{Match: match(t, `service_name=~shop/c`)}, 0},
		{"by regexp", Query{Match: match(t, `service_name=~shop/c.*`)}, 3},
		{"by negative regexp", Query{Match: match(t, `service_name!~shop/c.*`)}, 3},
		{"absent label is empty", Query{Match: match(t, `pod=`)}, 6},
		{"by two", Query{Match: match(t, `container_name=cart`, `node=other`)}, 0},
		{"by __name__", Query{Match: match(t, `__name__=process_cpu`)}, 6},
		{"by type name", Query{Type: "process_cpu"}, 6},
		{"by type id", Query{Type: sink.CPU.ID(0)}, 6},
		{"by another type", Query{Type: "memory"}, 0},
		{"by container", Query{ContainerID: want[0].ContainerID}, 3},
		{"newest", Query{Limit: 2}, 2},
		{"from", Query{From: want[2].End}, 2},
		{"to", Query{To: want[2].Start}, 2},
		{"range", Query{From: want[2].Start, To: want[2].End}, 2},
	} {
		if got := selected(t, s, c.q); len(got) != c.want {
			t.Errorf("%s: %d profiles, want %d", c.name, len(got), c.want)
		}
	}
	labels, err := s.Labels(context.Background(), Query{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(labels), "map[container_name:[cart web] node:[edge-1] service_name:[shop/cart shop/web]]"; got != want {
		t.Errorf("labels %s, want %s", got, want)
	}
	if err := s.Check(context.Background()); err != nil {
		t.Error(err)
	}
}

func match(t *testing.T, texts ...string) (out []Matcher) {
	t.Helper()
	for _, text := range texts {
		m, err := ParseMatcher(text)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

func TestBadMatchersAreErrors(t *testing.T) {
	for _, text := range []string{"", "a", "=b", "a=~(", "a!b"} {
		if m, err := ParseMatcher(text); err == nil {
			t.Errorf("ParseMatcher(%q) = %v, want an error", text, m)
		}
	}
}

func TestReplayedWriteAddsNothing(t *testing.T) {
	clock := newClock()
	s := open(t, clock, func(c *Config) { c.Sinks = []string{"a", "b"} })
	w := small()
	whole := w.window(t, clock, "cart", 50)
	part := whole // a split window: equal labels and times, other samples
	part.Pprof, part.Total, part.Samples = w.pprof(t, part.Start, part.End, 9)
	twin := part // and even equal bytes
	write(t, s, whole, part, twin)
	write(t, s, whole, part, twin)
	if got := selected(t, s, Query{}); len(got) != 3 {
		t.Errorf("%d profiles, want 3", len(got))
	}
	st := s.Stats()
	if st.ReplayedProfiles != 3 || st.WrittenProfiles != 3 {
		t.Errorf("%d replayed and %d written, want 3 and 3", st.ReplayedProfiles, st.WrittenProfiles)
	}
	ds, err := s.Deliveries(context.Background(), DeliveryQuery{State: Pending})
	if err != nil || len(ds) != 6 {
		t.Errorf("%d deliveries (%v), want 3 for each of 2 sinks", len(ds), err)
	}
}

func TestInvalidProfilesDoNotKeepOthersOut(t *testing.T) {
	clock := newClock()
	log, logger := newLog()
	s := open(t, clock, func(c *Config) { c.Log = logger })
	good := small().window(t, clock, "cart", 5)
	bad := []sink.Profile{{}, good, good, good, good}
	bad[1].Labels = sink.Labels{"node": "n"}
	bad[2].Pprof = nil
	bad[3].End = bad[3].Start
	bad[4].Type = sink.Type{Name: "x"}
	write(t, s, append(bad, good)...)
	if st := s.Stats(); st.InvalidProfiles != 5 || st.Profiles != 1 {
		t.Errorf("%d invalid, %d stored, want 5 and 1", st.InvalidProfiles, st.Profiles)
	}
	if !strings.Contains(log.String(), "it has no service_name") {
		t.Errorf("the log does not say why: %s", log)
	}
}

func TestSeriesSharesWindowsOutExactly(t *testing.T) {
	clock := newClock()
	s := open(t, clock)
	w := small()
	var want int64
	clock.pass(3 * time.Second) // windows across steps
	for range 20 {
		p := w.window(t, clock, "cart", 31)
		want += p.Total
		write(t, s, p)
		clock.pass(10 * time.Second)
	}
	for _, step := range []time.Duration{time.Second, 7 * time.Second, time.Minute, time.Hour} {
		series, err := s.Series(context.Background(), Query{}, step)
		if err != nil || len(series) != 1 {
			t.Fatalf("step %v: %d series, %v", step, len(series), err)
		}
		var got int64
		for _, p := range series[0].Points {
			got += p.V
		}
		if got != want {
			t.Errorf("step %v: points add up to %d, want %d", step, got, want)
		}
	}
}

func TestReadersAndWriterAtOnce(t *testing.T) {
	clock := newClock()
	s := open(t, clock)
	w := small()
	ctx := context.Background()
	write(t, s, w.window(t, clock, "cart", 5))
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 6 { // more than there are connections
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				n := 0
				for _, err := range s.Select(ctx, Query{}) {
					if err != nil {
						t.Error(err)
						return
					}
					n++
				}
				if n == 0 {
					t.Error("a reader saw nothing")
				}
			}
		})
	}
	ro, err := OpenReadOnly(s.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	for i := range 30 {
		clock.pass(10 * time.Second)
		write(t, s, w.window(t, clock, "cart", 5))
		if got := len(selected(t, ro, Query{})); got != i+2 {
			t.Fatalf("the read-only store sees %d profiles, want %d", got, i+2)
		}
	}
	close(stop)
	readers.Wait()
}

func TestReadOnlyWithoutAgent(t *testing.T) {
	clock := newClock()
	s := open(t, clock)
	write(t, s, small().window(t, clock, "cart", 5))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadDir(filepath.Dir(s.Path()))
	if err != nil {
		t.Fatal(err)
	}
	ro, err := OpenReadOnly(s.Path())
	if err != nil {
		t.Fatal(err)
	}
	if got := len(selected(t, ro, Query{})); got != 1 {
		t.Errorf("%d profiles, want 1", got)
	}
	if err := ro.Write(context.Background(), []sink.Profile{small().window(t, clock, "web", 5)}); err == nil {
		t.Error("a read-only store was written to")
	}
	if err := ro.Close(); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.ReadDir(filepath.Dir(s.Path())); len(after) > len(before)+2 { // -wal and -shm may stay
		t.Errorf("reading left %d files, there were %d", len(after), len(before))
	}
	if _, err := OpenReadOnly(s.Path() + ".absent"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent store: %v", err)
	}
}

func TestOneAgentPerFile(t *testing.T) {
	s := open(t, newClock())
	_, err := Open(Config{Path: s.Path()})
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("second agent: %v, want ErrLocked with the process", err)
	}
}

func TestRestartKeepsEverything(t *testing.T) {
	clock := newClock()
	s := open(t, clock)
	write(t, s, small().window(t, clock, "cart", 5))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Write(context.Background(), []sink.Profile{small().window(t, clock, "cart", 5)}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("write after Close: %v", err)
	}
	again := open(t, clock, func(c *Config) { c.Path = s.Path() })
	if got := len(selected(t, again, Query{})); got != 1 {
		t.Errorf("%d profiles after a restart, want 1", got)
	}
	if info, err := os.Stat(s.Path()); err != nil || info.Mode().Perm()&0o007 != 0 {
		t.Errorf("mode %v (%v): others may look into it", info.Mode(), err)
	}
}

func TestCorruptFileIsSetAside(t *testing.T) {
	for _, c := range []struct {
		name string
		harm func(t *testing.T, path string)
	}{
		{"first page overwritten", func(t *testing.T, path string) { overwrite(t, path, 0, 4096) }},
		{"not a database", func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte("hello, I am a text of some length, and no database at all"), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"cut to half a page", func(t *testing.T, path string) {
			if err := os.Truncate(path, 2048); err != nil {
				t.Fatal(err)
			}
		}},
		{"cut to two pages", func(t *testing.T, path string) {
			if err := os.Truncate(path, 8192); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			clock := newClock()
			log, logger := newLog()
			s := open(t, clock)
			write(t, s, small().window(t, clock, "cart", 5))
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			c.harm(t, s.Path())
			if _, err := OpenReadOnly(s.Path()); !errors.Is(err, ErrCorrupt) {
				t.Errorf("read-only: %v, want ErrCorrupt", err)
			}
			s = open(t, clock, func(cfg *Config) { cfg.Path, cfg.Log = s.Path(), logger })
			write(t, s, small().window(t, clock, "web", 5))
			if got := selected(t, s, Query{}); len(got) != 1 || got[0].Labels["container_name"] != "web" {
				t.Errorf("%d profiles in the fresh store", len(got))
			}
			aside, err := filepath.Glob(s.Path() + ".corrupt-*Z")
			if err != nil || len(aside) != 1 {
				t.Errorf("set aside: %v (%v), want one file", aside, err)
			}
			if !strings.Contains(log.String(), "set aside") || s.Stats().CorruptFiles != 1 {
				t.Errorf("the log does not say so: %s", log)
			}
		})
	}
}

func overwrite(t *testing.T, path string, at int64, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xa5}, n), at); err != nil {
		t.Fatal(err)
	}
}

func TestCorruptionWhileRunningIsSetAside(t *testing.T) {
	clock := newClock()
	s := open(t, clock)
	w := small()
	for range 50 {
		write(t, s, w.window(t, clock, "cart", 90))
		clock.pass(10 * time.Second)
	}
	if err := s.checkpointNow(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(s.Path())
	if err != nil {
		t.Fatal(err)
	}
	overwrite(t, s.Path(), 8192, int(info.Size())-8192) // everything but the schema
	// Readers have nothing of it in their caches: they meet the damage, and maintenance draws the conclusion.
	var met error
	for _, err := range s.Select(context.Background(), Query{}) {
		met = err
	}
	if !errors.Is(met, ErrCorrupt) {
		t.Fatalf("select: %v, want ErrCorrupt", met)
	}
	if err := s.Maintain(context.Background()); err != nil {
		t.Fatal(err)
	}
	write(t, s, w.window(t, clock, "web", 5))
	if got := selected(t, s, Query{}); len(got) != 1 || s.Stats().CorruptFiles != 1 {
		t.Errorf("%d profiles in the fresh store, %d files set aside", len(got), s.Stats().CorruptFiles)
	}
}

// checkpointNow folds the log into the file.
func (s *Store) checkpointNow() error {
	s.writer.Lock()
	defer s.writer.Unlock()
	return s.checkpoint(context.Background(), "TRUNCATE")
}

func TestOtherPeoplesFilesAreLeftAlone(t *testing.T) {
	dir := t.TempDir()
	make := func(name, sqlText string) string {
		path := filepath.Join(dir, name)
		db, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.Exec(sqlText); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		path string
		want error
	}{
		{make("foreign.db", "CREATE TABLE accounts (id)"), ErrForeign},
		{make("newer.db", fmt.Sprintf("CREATE TABLE x (y); PRAGMA application_id=%d; PRAGMA user_version=%d", applicationID, schemaVersion+1)), ErrNewer},
	} {
		before, err := os.ReadFile(c.path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(Config{Path: c.path}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.path, err, c.want)
		}
		if _, err := OpenReadOnly(c.path); !errors.Is(err, c.want) {
			t.Errorf("read-only %s: %v, want %v", c.path, err, c.want)
		}
		if after, err := os.ReadFile(c.path); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s was changed (%v)", c.path, err)
		}
	}
	if _, err := Open(Config{Path: dir}); err == nil {
		t.Error("a directory was opened as a store")
	}
	if _, err := Open(Config{Path: filepath.Join(dir, "s.db"), MaxBytes: 1000}); err == nil || !strings.Contains(err.Error(), "store.max_size") {
		t.Errorf("tiny bound: %v, want the setting to be named", err)
	}
	if _, err := Open(Config{Path: filepath.Join(dir, "foreign.db", "x", "s.db")}); err == nil {
		t.Error("a file served as a directory")
	}
}

func TestTolerantStoreWaitsForItsFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lib")
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // a file where the directory should be
		t.Fatal(err)
	}
	clock := newClock()
	log, logger := newLog()
	path := filepath.Join(dir, "profiles.db")
	if _, err := Open(Config{Path: path, Clock: clock, Log: logger}); err == nil {
		t.Fatal("the store was opened")
	}
	s := open(t, clock, func(c *Config) { c.Path, c.Tolerant, c.Log, c.Sinks = path, true, logger, []string{"a"} })
	up := &server{name: "a"}
	deliver(t, s, up, fast)
	p := small().window(t, clock, "cart", 5)
	err := s.Write(context.Background(), []sink.Profile{p})
	if err == nil || !strings.Contains(err.Error(), "create its directory") {
		t.Errorf("write: %v, want the reason", err)
	}
	if st := s.Stats(); !strings.Contains(st.Err, "create its directory") {
		t.Errorf("stats: %q, want the reason", st.Err)
	}
	if !strings.Contains(log.String(), "nothing is stored until this is mended") {
		t.Errorf("the log does not say so: %s", log)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	write(t, s, p)
	eventually(t, "it is delivered", func() bool { return len(up.got()) == 1 })
	if !strings.Contains(log.String(), "the store is open") {
		t.Errorf("the log does not say that it works: %s", log)
	}
	// Two agents on one file are never tolerated.
	if _, err := Open(Config{Path: path, Tolerant: true, Log: logger}); !errors.Is(err, ErrLocked) {
		t.Errorf("second agent: %v", err)
	}
}

func TestMetrics(t *testing.T) {
	clock := newClock()
	s := open(t, clock, func(c *Config) { c.Sinks, c.MaxAge = []string{"a"}, time.Minute })
	fill(t, s, clock, 10)
	maintain(t, s)
	reg := prometheus.NewPedanticRegistry()
	if err := reg.Register(s.Collector()); err != nil {
		t.Fatal(err)
	}
	values := func() map[string]float64 {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]float64{}
		for _, f := range families {
			for _, m := range f.Metric {
				name := f.GetName()
				for _, l := range m.Label {
					name += "," + l.GetValue()
				}
				out[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
		return out
	}
	got := values()
	for name, want := range map[string]float64{
		"stoker_store_profiles": 6, "stoker_store_series": 1, "stoker_store_writes_total,ok": 10, "stoker_store_written_profiles_total,stored": 10,
		"stoker_store_evicted_profiles_total,age,true": 4, "stoker_store_deliveries,a,pending": 6, "stoker_store_readable": 1,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	if got["stoker_store_bytes"] < 4096 || got["stoker_store_max_bytes"] != 256<<20 {
		t.Errorf("bytes %v of %v", got["stoker_store_bytes"], got["stoker_store_max_bytes"])
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := values(); got["stoker_store_readable"] != 0 {
		t.Error("a closed store is said to be readable")
	}
}
