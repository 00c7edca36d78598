package pyroscope

import (
	"context"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/sink/store"
	"github.com/stoker-profiler/stoker/test/pyroscopetest"
)

// The whole way from the store to the server, with the real client in between.

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}
func (l *logBuffer) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

func openStore(t testing.TB, log io.Writer, sinks ...string) *store.Store {
	t.Helper()
	s, err := store.Open(store.Config{Path: filepath.Join(t.TempDir(), "profiles.db"), Sinks: sinks, MaintainEvery: -1, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// fill writes n windows, the last of which began ago.
func fill(t testing.TB, s *store.Store, n int, ago time.Duration) (total int64) {
	t.Helper()
	for i := range n {
		p := cpu(t, ago+time.Duration(n-1-i)*10*time.Second, int64(1+i))
		total += p.Total
		if err := s.Write(context.Background(), []sink.Profile{p}); err != nil {
			t.Fatal(err)
		}
	}
	return total
}

func deliver(t testing.TB, s *store.Store, up sink.Uploader, cfg store.DeliverConfig) {
	t.Helper()
	cfg.MinBackoff, cfg.MaxBackoff = time.Millisecond, 50*time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Deliver(ctx, up, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// settled waits until nothing is pending for the sink and returns the states.
func settled(t testing.TB, s *store.Store, name string) map[string]int64 {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		out := map[string]int64{}
		for _, d := range s.Stats().Deliveries {
			if d.Sink == name {
				out[d.State] = d.Profiles
			}
		}
		if out[store.Pending]+out[store.Sending] == 0 {
			return out
		}
		if time.Now().After(deadline) {
			t.Fatalf("deliveries to %s do not settle: %v", name, out)
		}
	}
}

func TestOutage(t *testing.T) {
	server := pyroscopetest.New(t, pyroscopetest.Options{})
	server.Inject(pyroscopetest.Fault{Status: 503}, 25)
	log := &logBuffer{}
	s := openStore(t, log, "p")
	total := fill(t, s, 120, 20*time.Second)
	deliver(t, s, client(t, Config{URL: server.URL(), Name: "p"}), store.DeliverConfig{InFlight: 1})
	if st := settled(t, s, "p"); st[store.Delivered] != 120 {
		t.Errorf("states %v", st)
	}
	got := server.Profiles()
	if len(got) != 120 || server.Total("") != total || server.Requests() != 145 {
		t.Errorf("%d profiles with total %d in %d requests, want 120 with %d in 145", len(got), server.Total(""), server.Requests(), total)
	}
	for i := 1; i < len(got); i++ {
		if !got[i].Time.Before(got[i-1].Time) {
			t.Fatal("the backlog did not arrive newest first")
		}
	}
	for _, text := range []string{"cannot be delivered", "down, starting or overloaded", "delivering again"} {
		if strings.Count(log.String(), text) != 1 {
			t.Errorf("the log has %q %d times, want once:\n%s", text, strings.Count(log.String(), text), log)
		}
	}
}

func TestBacklogOlderThanTheServerTakes(t *testing.T) {
	strict := pyroscopetest.New(t, pyroscopetest.Options{})
	patient := pyroscopetest.New(t, pyroscopetest.Options{RejectOlderThan: 25 * time.Hour})
	log := &logBuffer{}
	s := openStore(t, log, "strict", "patient")
	old := fill(t, s, 10, 3*time.Hour)
	recent := fill(t, s, 10, time.Minute)
	deliver(t, s, client(t, Config{URL: strict.URL(), Name: "strict"}), store.DeliverConfig{})
	deliver(t, s, client(t, Config{URL: patient.URL(), Name: "patient"}), store.DeliverConfig{})
	if st := settled(t, s, "strict"); st[store.Delivered] != 10 || st[store.Refused] != 10 || strict.Total("") != recent {
		t.Errorf("strict: %v, total %d", st, strict.Total(""))
	}
	if st := settled(t, s, "patient"); st[store.Delivered] != 20 || patient.Total("") != recent+old {
		t.Errorf("patient: %v, total %d", st, patient.Total(""))
	}
	ds, err := s.Deliveries(context.Background(), store.DeliveryQuery{State: store.Refused})
	if err != nil || len(ds) != 10 || !strings.Contains(ds[0].Reason, "-validation.reject-older-than") {
		t.Errorf("%+v, %v", ds, err)
	}
	if !strings.Contains(log.String(), "-validation.reject-older-than") {
		t.Errorf("the log does not name the setting: %s", log)
	}
	n := 0
	for range s.Select(context.Background(), store.Query{}) {
		n++
	}
	if n != 20 {
		t.Errorf("%d profiles in the store, want 20: what was refused stays", n)
	}
}

func TestTwiceOnlyWhereAReplyWasLost(t *testing.T) {
	server := pyroscopetest.New(t, pyroscopetest.Options{})
	s := openStore(t, io.Discard, "p")
	total := fill(t, s, 27, 20*time.Second)
	lost := map[string]bool{"a": true, "b": true, "c": true} // the reply to the first push of these
	for name := range lost {
		p := cpu(t, 5*time.Minute, 100)
		p.Labels = sink.Labels{"service_name": name}
		total += p.Total
		if err := s.Write(context.Background(), []sink.Profile{p}); err != nil {
			t.Fatal(err)
		}
	}
	server.InjectFunc(func(_ string, labels map[string]string) pyroscopetest.Fault {
		f := pyroscopetest.Fault{Close: lost[labels["service_name"]], Store: true}
		delete(lost, labels["service_name"])
		return f
	})
	deliver(t, s, client(t, Config{URL: server.URL(), Name: "p"}), store.DeliverConfig{InFlight: 1})
	if st := settled(t, s, "p"); st[store.Delivered] != 30 {
		t.Errorf("states %v", st)
	}
	results := map[string]uint64{}
	for _, r := range s.Stats().Results {
		results[r.Result] = r.Profiles
	}
	doubts := results["delivered_in_doubt"]
	if doubts != 3 || results["uncertain"] != 3 || int(doubts)+30 != len(server.Profiles()) {
		t.Errorf("%d at the server, results %v: each profile too many must be a counted doubt", len(server.Profiles()), results)
	}
	if got := server.Total(""); got != total+3*100*period {
		t.Errorf("total %d, want %d and three profiles of %d twice", got, total, 100*period)
	}
	if got := len(server.Violations()); got != int(doubts) {
		t.Errorf("violations %v, want one for each doubt", server.Violations())
	}
	server.ClearViolations()
}

func TestPoisonIsSetAside(t *testing.T) {
	server := pyroscopetest.New(t, pyroscopetest.Options{})
	s := openStore(t, io.Discard, "p")
	poison := cpu(t, time.Minute, 1)
	poison.Pprof = []byte("rubbish")
	if err := s.Write(context.Background(), []sink.Profile{poison}); err != nil {
		t.Fatal(err)
	}
	deliver(t, s, client(t, Config{URL: server.URL(), Name: "p"}), store.DeliverConfig{InFlight: 1})
	for i := 0; ; i++ {
		ds, err := s.Deliveries(context.Background(), store.DeliveryQuery{State: store.Refused})
		if err != nil {
			t.Fatal(err)
		}
		if len(ds) == 1 {
			if !strings.Contains(ds[0].Reason, "given up after") || !strings.Contains(ds[0].Reason, "failed to parse profile") {
				t.Errorf("reason %q", ds[0].Reason)
			}
			break
		}
		if i == 5000 {
			t.Fatal("the poison is not given up")
		}
		fill(t, s, 1, time.Duration(i)*10*time.Second%(50*time.Minute))
		time.Sleep(5 * time.Millisecond)
	}
}

// Profiles of a MiB each: without pacing a default server would answer most of them with 429.
func TestPacingStaysBelowTheServersRate(t *testing.T) {
	server := pyroscopetest.New(t, pyroscopetest.Options{Delay: 50 * time.Millisecond})
	s := openStore(t, io.Discard, "p")
	var total int64
	for i := range 8 {
		p := large(t, time.Duration(i+1)*10*time.Second)
		total += p.Total
		if err := s.Write(context.Background(), []sink.Profile{p}); err != nil {
			t.Fatal(err)
		}
	}
	deliver(t, s, client(t, Config{URL: server.URL(), Name: "p"}), store.DeliverConfig{})
	if st := settled(t, s, "p"); st[store.Delivered] != 8 || server.Total("") != total {
		t.Errorf("states %v, total %d want %d", st, server.Total(""), total)
	}
	// On a machine that stalls, two requests that left apart may arrive together, and one is sent again; without pacing each is, and more than once.
	if n := server.Requests(); n < 8 || n > 10 {
		t.Errorf("%d requests for 8 profiles: the server's rate was exceeded", n)
	}
}

// Whatever a server does, the operator reads one clear line with the remedy, and nothing is lost from the store.
func TestEachTroubleIsOneLineInTheLog(t *testing.T) {
	for _, c := range []struct {
		name   string
		fault  pyroscopetest.Fault
		remedy string
	}{
		{"400", pyroscopetest.Fault{Status: 400, Message: "profile has no sample type"}, "profile has no sample type"},
		{"401", pyroscopetest.Fault{Status: 401, Bare: true}, "check pyroscope.basic_auth"},
		{"401 of the server", pyroscopetest.Fault{Status: 401}, "set pyroscope.tenant_id"},
		{"413", pyroscopetest.Fault{Status: 413, Bare: true}, "client_max_body_size"},
		{"429", pyroscopetest.Fault{Status: 429}, "ingestion_rate_mb"},
		{"500", pyroscopetest.Fault{Status: 500}, "see its log"},
		{"503", pyroscopetest.Fault{Status: 503}, "overloaded"},
		{"hangs", pyroscopetest.Fault{Hang: true}, "no answer came"},
		{"closes", pyroscopetest.Fault{Close: true}, "no answer came"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			server := pyroscopetest.New(t, pyroscopetest.Options{})
			server.Inject(c.fault, -1)
			log := &logBuffer{}
			s := openStore(t, log, "p")
			fill(t, s, 5, 20*time.Second)
			deliver(t, s, client(t, Config{URL: server.URL(), Name: "p", Timeout: 300 * time.Millisecond}), store.DeliverConfig{InFlight: 1})
			for deadline := time.Now().Add(60 * time.Second); server.Requests() < 3 || !strings.Contains(log.String(), c.remedy); time.Sleep(5 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("after %d requests the log does not say %q:\n%s", server.Requests(), c.remedy, log)
				}
			}
			n := 0
			for line := range strings.Lines(log.String()) {
				if strings.Contains(line, "level=WARN") && !strings.Contains(line, "is not sent again") {
					n++
				}
			}
			if n != 1 {
				t.Errorf("%d warnings, want one:\n%s", n, log)
			}
			if st := s.Stats(); st.Profiles != 5 {
				t.Errorf("%d profiles in the store, want all 5", st.Profiles)
			}
		})
	}
}
