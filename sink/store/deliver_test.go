package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/sink"
)

// server is an Uploader whose answers a test decides; it keeps what it took.
type server struct {
	name   string
	answer func(n int, p sink.Profile) sink.Result // n counts from 0
	delay  time.Duration

	mu            sync.Mutex
	n             int
	taken         []sink.Profile
	inFlight, top int
}

func (f *server) Name() string { return f.name }

func (f *server) Send(ctx context.Context, ps []sink.Profile) []sink.Result {
	f.mu.Lock()
	f.inFlight++
	f.top = max(f.top, f.inFlight)
	n := f.n
	f.n++
	f.mu.Unlock()
	r := sink.Result{Outcome: sink.Delivered}
	if f.answer != nil {
		r = f.answer(n, ps[0])
	}
	if f.delay > 0 {
		select {
		case <-time.After(f.delay):
		case <-ctx.Done():
			r = sink.Result{Outcome: sink.Uncertain, Reason: "cut off"}
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inFlight--
	if r.Outcome == sink.Delivered {
		f.taken = append(f.taken, ps[0])
	}
	return []sink.Result{r}
}

func (f *server) got() []sink.Profile {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]sink.Profile(nil), f.taken...)
}

func (f *server) sent() int { f.mu.Lock(); defer f.mu.Unlock(); return f.n }

// fast is a configuration that does not keep tests waiting.
var fast = DeliverConfig{MinBackoff: time.Millisecond, MaxBackoff: 20 * time.Millisecond, BytesPerSecond: 1 << 30, Burst: 1 << 30}

// deliver runs a loop until the test ends, or the returned function is called.
func deliver(t testing.TB, s *Store, up sink.Uploader, cfg DeliverConfig) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Deliver(ctx, up, cfg) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// states counts the deliveries of a sink by state.
func states(t testing.TB, s *Store, name string) map[string]int {
	t.Helper()
	ds, err := s.Deliveries(context.Background(), DeliveryQuery{Sink: name})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for _, d := range ds {
		out[d.State]++
	}
	return out
}

func result(s *Store, result string) uint64 {
	for _, r := range s.Stats().Results {
		if r.Result == result {
			return r.Profiles
		}
	}
	return 0
}

// fill writes n windows of one container.
func fill(t testing.TB, s *Store, clock *fakeClock, n int) {
	t.Helper()
	w := small()
	for range n {
		write(t, s, w.window(t, clock, "cart", 5))
		clock.pass(10 * time.Second)
	}
}

func withSinks(names ...string) func(*Config) { return func(c *Config) { c.Sinks = names } }

func TestBacklogGoesNewestFirstExactlyOnce(t *testing.T) {
	clock := newClock()
	s := open(t, clock, withSinks("a"))
	fill(t, s, clock, 100)
	up := &server{name: "a"}
	cfg := fast
	cfg.InFlight = 1 // so that the order of arrival is the order of sending
	deliver(t, s, up, cfg)
	eventually(t, "all are delivered", func() bool { return states(t, s, "a")[Delivered] == 100 })
	got := up.got()
	if len(got) != 100 {
		t.Fatalf("%d profiles at the server, want 100", len(got))
	}
	for i := 1; i < len(got); i++ {
		if !got[i].Start.Before(got[i-1].Start) {
			t.Fatalf("profile %d of %v came after the one of %v", i, got[i].Start, got[i-1].Start)
		}
	}
	if sum(got) != sum(selected(t, s, Query{})) {
		t.Error("the server has another sum than the store")
	}
	// A new window is sent at once, without waiting for a poll.
	fill(t, s, clock, 1)
	eventually(t, "the new window is delivered", func() bool { return len(up.got()) == 101 })
}

func TestSeveralInFlight(t *testing.T) {
	clock := newClock()
	s := open(t, clock, withSinks("a"))
	fill(t, s, clock, 40)
	gate := make(chan struct{})
	up := &server{name: "a", answer: func(n int, _ sink.Profile) sink.Result {
		if n == 7 {
			close(gate)
		}
		<-gate // until the eighth is there
		return sink.Result{Outcome: sink.Delivered}
	}}
	deliver(t, s, up, fast)
	eventually(t, "all are delivered", func() bool { return states(t, s, "a")[Delivered] == 40 })
	if up.top != 8 {
		t.Errorf("%d in flight at most, want 8", up.top)
	}
}

func TestFailingEndpointIsRetriedAndNotHammered(t *testing.T) {
	clock := newClock()
	clock.run()
	log, logger := newLog()
	s := open(t, clock, withSinks("a", "b"), func(c *Config) { c.Log = logger })
	fill(t, s, clock, 30)
	up := &server{name: "a", answer: func(n int, _ sink.Profile) sink.Result {
		if n < 50 {
			return sink.Result{Outcome: sink.Retry, Reason: "HTTP 503: mend it"}
		}
		return sink.Result{Outcome: sink.Delivered}
	}, delay: time.Millisecond}
	other := &server{name: "b"}
	deliver(t, s, up, fast)
	deliver(t, s, other, fast)
	eventually(t, "the other endpoint has all", func() bool { return len(other.got()) == 30 })
	eventually(t, "all are delivered", func() bool { return states(t, s, "a")[Delivered] == 30 })
	if len(up.got()) != 30 {
		t.Errorf("%d at the server, want 30", len(up.got()))
	}
	if up.sent() != 80 {
		t.Errorf("%d requests, want 50 that failed and 30", up.sent())
	}
	if n := strings.Count(log.String(), "cannot be delivered; they stay"); n != 1 {
		t.Errorf("%d warnings, want one for the whole outage:\n%s", n, log)
	}
	if !strings.Contains(log.String(), "mend it") || !strings.Contains(log.String(), "delivering again") {
		t.Errorf("the log names neither the remedy nor the end: %s", log)
	}
}

// While an endpoint fails only one request at a time goes to it, and the waits grow.
func TestBackoffGrowsAndProbesAlone(t *testing.T) {
	d := &deliverer{cfg: DeliverConfig{MinBackoff: 500 * time.Millisecond, MaxBackoff: 5 * time.Minute}}
	for n, want := range map[int]time.Duration{1: 500 * time.Millisecond, 2: time.Second, 5: 8 * time.Second, 11: 5 * time.Minute, 1000: 5 * time.Minute} {
		for range 20 {
			if got := d.backoff(n); got < want/2 || got > want {
				t.Errorf("wait %d is %v, want between %v and %v", n, got, want/2, want)
			}
		}
	}
	clock := newClock()
	clock.run()
	s := open(t, clock, withSinks("a"))
	fill(t, s, clock, 20)
	up := &server{name: "a", delay: 2 * time.Millisecond}
	peak := 0 // after the first round
	up.answer = func(n int, _ sink.Profile) sink.Result {
		up.mu.Lock()
		defer up.mu.Unlock()
		if n >= 8 {
			peak = max(peak, up.inFlight)
		}
		return sink.Result{Outcome: sink.Retry, Reason: "down"}
	}
	stop := deliver(t, s, up, fast)
	eventually(t, "some probes", func() bool { return up.sent() > 20 })
	stop()
	if peak != 1 {
		t.Errorf("%d requests at once to an endpoint that fails, want one", peak)
	}
	if got := states(t, s, "a"); got[Pending] != 20 {
		t.Errorf("states %v, want all pending", got)
	}
}

func TestServersWaitIsHonoured(t *testing.T) {
	clock := newClock()
	s := open(t, clock, withSinks("a"))
	fill(t, s, clock, 1)
	up := &server{name: "a", answer: func(n int, _ sink.Profile) sink.Result {
		return sink.Result{Outcome: sink.Retry, Reason: "HTTP 429", After: 30 * time.Minute}
	}}
	stop := deliver(t, s, up, fast)
	eventually(t, "the answer is settled", func() bool { return result(s, "retry") == 1 })
	stop()
	ds, err := s.Deliveries(context.Background(), DeliveryQuery{State: Pending})
	if err != nil || len(ds) != 1 {
		t.Fatalf("%v, %v", ds, err)
	}
	if wait := ds[0].NextTry.Sub(clock.Now()); wait < 29*time.Minute || wait > 30*time.Minute || ds[0].Reason != "HTTP 429" || ds[0].Attempts != 1 {
		t.Errorf("next try in %v, want 30 min: %+v", wait, ds[0])
	}
}

func TestRefusedIsInNobodysWay(t *testing.T) {
	clock := newClock()
	log, logger := newLog()
	s := open(t, clock, withSinks("a"), func(c *Config) { c.Log = logger })
	fill(t, s, clock, 20)
	up := &server{name: "a", answer: func(n int, _ sink.Profile) sink.Result {
		if n%2 == 0 {
			return sink.Result{Outcome: sink.Refused, Reason: "HTTP 400: raise -validation.reject-older-than"}
		}
		return sink.Result{Outcome: sink.Delivered}
	}}
	deliver(t, s, up, fast)
	eventually(t, "all are settled", func() bool { st := states(t, s, "a"); return st[Delivered] == 10 && st[Refused] == 10 })
	if up.sent() != 20 {
		t.Errorf("%d requests, want 20: a refusal is final", up.sent())
	}
	ds, err := s.Deliveries(context.Background(), DeliveryQuery{State: Refused, Limit: 1})
	if err != nil || len(ds) != 1 || !strings.Contains(ds[0].Reason, "reject-older-than") {
		t.Errorf("%+v, %v", ds, err)
	}
	if len(selected(t, s, Query{})) != 20 {
		t.Error("refused profiles are not in the store any more")
	}
	if n := strings.Count(log.String(), "the server refused profiles"); n != 1 {
		t.Errorf("%d lines about refusals, want one a minute", n)
	}
}

func TestSuspectProfileIsGivenUpOnlyWhenOthersPass(t *testing.T) {
	clock := newClock()
	clock.run()
	s := open(t, clock, withSinks("a"))
	w := small()
	poison := w.window(t, clock, "poison", 5)
	write(t, s, poison)
	up := &server{name: "a", answer: func(_ int, p sink.Profile) sink.Result {
		if p.Labels["container_name"] == "poison" {
			return sink.Result{Outcome: sink.Retry, Suspect: true, Reason: "HTTP 500: cannot decode"}
		}
		return sink.Result{Outcome: sink.Delivered}
	}}
	deliver(t, s, up, fast)
	// Alone, it may as well be the server that is ill.
	eventually(t, "many tries", func() bool { return up.sent() > 3*maxSuspicions })
	if st := states(t, s, "a"); st[Refused] != 0 {
		t.Fatalf("states %v: given up while nothing else was taken", st)
	}
	eventually(t, "the poison is given up", func() bool {
		clock.pass(time.Second)
		fill(t, s, clock, 1)
		return states(t, s, "a")[Refused] == 1
	})
	ds, err := s.Deliveries(context.Background(), DeliveryQuery{State: Refused})
	if err != nil || len(ds) != 1 || ds[0].Labels["container_name"] != "poison" || !strings.Contains(ds[0].Reason, "cannot decode") {
		t.Errorf("%+v, %v", ds, err)
	}
}

func TestLostReplyIsResentOnceOrKept(t *testing.T) {
	for _, c := range []struct {
		policy string
		always bool // the reply is lost each time
		state  string
		sends  int
		result string
	}{
		{Resend, false, Delivered, 2, "delivered_in_doubt"},
		{Resend, true, Uncertain, 2, "uncertain"},
		{Keep, false, Uncertain, 1, "uncertain"},
	} {
		t.Run(fmt.Sprint(c.policy, c.always), func(t *testing.T) {
			clock := newClock()
			clock.run()
			s := open(t, clock, withSinks("a"))
			fill(t, s, clock, 1)
			up := &server{name: "a", answer: func(n int, _ sink.Profile) sink.Result {
				if n == 0 || c.always {
					return sink.Result{Outcome: sink.Uncertain, Reason: "no answer came"}
				}
				return sink.Result{Outcome: sink.Delivered}
			}}
			cfg := fast
			cfg.Uncertain = c.policy
			deliver(t, s, up, cfg)
			eventually(t, c.state, func() bool { return states(t, s, "a")[c.state] == 1 })
			fill(t, s, clock, 1)
			eventually(t, "the next one is settled", func() bool { return up.sent() > c.sends })
			ds, err := s.Deliveries(context.Background(), DeliveryQuery{})
			if err != nil || ds[1].Attempts != c.sends || ds[1].Doubts == 0 {
				t.Errorf("%+v, %v; want %d attempts", ds, err, c.sends)
			}
			if result(s, c.result) == 0 || result(s, "uncertain") == 0 {
				t.Errorf("results %v, want %s and uncertain", s.Stats().Results, c.result)
			}
		})
	}
}

func TestTenantsDoNotWaitForEachOther(t *testing.T) {
	clock := newClock()
	s := open(t, clock, withSinks("a"))
	w := small()
	for i := range 20 {
		p := w.window(t, clock, "cart", 5)
		p.Tenant = []string{"good", "bad"}[i%2]
		write(t, s, p)
		clock.pass(10 * time.Second)
	}
	up := &server{name: "a", answer: func(_ int, p sink.Profile) sink.Result {
		if p.Tenant == "bad" {
			return sink.Result{Outcome: sink.Retry, After: time.Hour, Reason: "HTTP 429: a usage limit"}
		}
		return sink.Result{Outcome: sink.Delivered}
	}}
	deliver(t, s, up, fast)
	eventually(t, "the good tenant has all", func() bool { return states(t, s, "a")[Delivered] == 10 })
	if st := states(t, s, "a"); st[Pending] != 10 {
		t.Errorf("states %v", st)
	}
}

func TestSendingIsPacedByBytes(t *testing.T) {
	clock := newClock()
	s := open(t, clock, withSinks("a"))
	fill(t, s, clock, 20)
	var size int64
	if err := s.db.r.QueryRow("SELECT max(p.raw_bytes + length(s.labels)) FROM profiles p JOIN series s ON s.id = p.series_id").Scan(&size); err != nil {
		t.Fatal(err)
	}
	up := &server{name: "a"}
	cfg := fast
	// A bucket of three profiles that fills too slowly for this test.
	cfg.Burst, cfg.BytesPerSecond = 3*size, 1
	stop := deliver(t, s, up, cfg)
	eventually(t, "three are delivered", func() bool { return states(t, s, "a")[Delivered] >= 3 })
	stop()
	if n := up.sent(); n < 3 || n > 4 {
		t.Errorf("%d sent out of a bucket of three", n)
	}
}

func TestBacklogIsMergedBeforeItIsSent(t *testing.T) {
	clock := newClock()
	clock.wall = clock.wall.Truncate(time.Hour)
	s := open(t, clock, withSinks("a"))
	fill(t, s, clock, 6*50) // an outage of 50 minutes
	want := selected(t, s, Query{})
	maintain(t, s)
	up := &server{name: "a"}
	deliver(t, s, up, fast)
	eventually(t, "all are delivered", func() bool { return states(t, s, "a")[Pending]+states(t, s, "a")[Sending] == 0 })
	got := up.got()
	// Eight slots of five minutes, and minutes since, but for the last one or two.
	if len(got) > 8+12+12 {
		t.Errorf("%d requests for %d windows", len(got), len(want))
	}
	if sum(got) != sum(want) {
		t.Errorf("the server has %d, want %d", sum(got), sum(want))
	}
}

func TestOneLoopPerEndpoint(t *testing.T) {
	s := open(t, newClock(), withSinks("a"))
	up := &server{name: "a"}
	stop := deliver(t, s, up, fast)
	eventually(t, "the first runs", func() bool { s.deliver.Lock(); defer s.deliver.Unlock(); return len(s.deliver.running) == 1 })
	if err := s.Deliver(context.Background(), up, fast); err == nil || !strings.Contains(err.Error(), "name of its own") {
		t.Errorf("second loop: %v", err)
	}
	stop()
	for _, cfg := range []DeliverConfig{{Uncertain: "maybe"}, {InFlight: -1}, {MinBackoff: time.Hour}} {
		if err := s.Deliver(context.Background(), up, cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
}

func TestShutdownLetsRequestsEnd(t *testing.T) {
	clock := newClock()
	s := open(t, clock, withSinks("a", "b"))
	fill(t, s, clock, 1)
	quick, stuck := &server{name: "a", delay: 50 * time.Millisecond}, &server{name: "b", delay: time.Hour}
	cfg := fast
	cfg.Grace = 300 * time.Millisecond
	stopA, stopB := deliver(t, s, quick, fast), deliver(t, s, stuck, cfg)
	eventually(t, "both are under way", func() bool { return quick.sent() == 1 && stuck.sent() == 1 })
	stopA()
	stopB()
	if states(t, s, "a")[Delivered] != 1 {
		t.Errorf("states %v: the answer that came in time was not stored", states(t, s, "a"))
	}
	if st := states(t, s, "b"); st[Sending] != 0 || result(s, "uncertain") != 1 {
		t.Errorf("states %v: what was cut off must be a doubt", st)
	}
}

func TestDamagedRowIsRefusedWithoutSending(t *testing.T) {
	clock := newClock()
	s := open(t, clock, withSinks("a"))
	fill(t, s, clock, 1)
	if _, err := s.db.w.Exec("UPDATE series SET labels = '{'"); err != nil {
		t.Fatal(err)
	}
	up := &server{name: "a"}
	deliver(t, s, up, fast)
	eventually(t, "it is refused", func() bool { return result(s, "refused") == 1 })
	if up.sent() != 0 {
		t.Error("a damaged row was sent")
	}
}

func TestFullDiskStopsSendingUntilItCanBeNoted(t *testing.T) {
	clock := newClock()
	log, logger := newLog()
	s := open(t, clock, withSinks("a"), func(c *Config) { c.Log = logger })
	fill(t, s, clock, 3)
	// Whoever holds the database's write lock keeps answers from being noted.
	up := &server{name: "a"}
	block := make(chan struct{})
	var once sync.Once
	up.answer = func(int, sink.Profile) sink.Result {
		once.Do(func() { <-block })
		return sink.Result{Outcome: sink.Delivered}
	}
	cfg := fast
	cfg.InFlight = 1
	deliver(t, s, up, cfg)
	eventually(t, "one is under way", func() bool { return up.sent() == 1 })
	if _, err := s.db.w.Exec("CREATE TEMP TRIGGER fail BEFORE UPDATE OF state ON deliveries WHEN NEW.state = 'delivered' BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"); err != nil {
		t.Fatal(err)
	}
	close(block)
	eventually(t, "the failure is logged", func() bool { return strings.Contains(log.String(), "nothing is sent until they can") })
	if up.sent() != 1 {
		t.Errorf("%d sent though the first answer could not be noted", up.sent())
	}
	if _, err := s.db.w.Exec("DROP TRIGGER fail"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all are delivered", func() bool { return states(t, s, "a")[Delivered] == 3 })
	if up.sent() != 3 {
		t.Errorf("%d sent, want each once", up.sent())
	}
}

// The test binary runs itself as an agent and is killed at the worst moments.
func TestMain(m *testing.M) {
	if path := os.Getenv("STOKER_TEST_AGENT"); path != "" {
		agent(path)
	}
	if path := os.Getenv("STOKER_TEST_READER"); path != "" {
		reader(path)
	}
	os.Exit(m.Run())
}

// agent writes windows and never gets an answer for what it sends.
func agent(path string) {
	clock := newClock()
	s, err := Open(Config{Path: path, Sinks: []string{"a"}, Clock: clock, MaintainEvery: -1})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	var t fatal
	w := small()
	for range 5 {
		write(t, s, w.window(t, clock, "cart", 5))
		clock.pass(10 * time.Second)
	}
	up := &server{name: "a", delay: time.Hour, answer: func(n int, _ sink.Profile) sink.Result {
		fmt.Println("sending")
		return sink.Result{Outcome: sink.Delivered}
	}}
	cfg := fast
	cfg.InFlight = 2
	fmt.Println(s.Deliver(context.Background(), up, cfg))
	os.Exit(1)
}

// reader prints how many profiles it can read, or why it cannot.
func reader(path string) {
	s, err := OpenReadOnly(path)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	n := 0
	for _, err := range s.Select(context.Background(), Query{}) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		n++
	}
	fmt.Println(n, "profiles")
	os.Exit(0)
}

// fatal is a testing.TB outside of a test.
type fatal struct{ testing.TB }

func (fatal) Helper()           {}
func (fatal) Fatal(args ...any) { fmt.Println(args...); os.Exit(1) }

func TestKilledAgentLosesNothingAndLeavesDoubts(t *testing.T) {
	for _, policy := range []string{Resend, Keep} {
		t.Run(policy, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "profiles.db")
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "STOKER_TEST_AGENT="+path)
			out := &logBuffer{}
			cmd.Stdout, cmd.Stderr = out, out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() { cmd.Wait(); close(ended) }()
			eventually(t, "two are under way", func() bool { return strings.Count(out.String(), "sending") == 2 })
			if err := cmd.Process.Kill(); err != nil { // kill -9
				t.Fatal(err)
			}
			<-ended
			clock := newClock()
			clock.pass(time.Minute)
			s := open(t, clock, func(c *Config) { c.Path, c.Sinks = path, []string{"a"} })
			if got := len(selected(t, s, Query{})); got != 5 {
				t.Fatalf("%d windows after kill -9, want all 5 that were committed", got)
			}
			if st := states(t, s, "a"); st[Sending] != 2 || st[Pending] != 3 {
				t.Fatalf("states %v after kill -9", st)
			}
			up := &server{name: "a"}
			cfg := fast
			cfg.Uncertain = policy
			deliver(t, s, up, cfg)
			want := map[string]int{Resend: 5, Keep: 3}[policy]
			eventually(t, "the rest is delivered", func() bool { return states(t, s, "a")[Delivered] == want })
			if st := states(t, s, "a"); st[Uncertain] != 5-want {
				t.Errorf("states %v", st)
			}
			if n := result(s, "uncertain"); n != 2 {
				t.Errorf("%d counted as uncertain, want 2", n)
			}
			if policy == Resend && result(s, "delivered_in_doubt") != 2 {
				t.Errorf("results %v, want two that may count twice", s.Stats().Results)
			}
			if err := s.Check(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestUploaderWithoutAnAnswerIsADoubt(t *testing.T) {
	clock := newClock()
	s := open(t, clock, withSinks("a"))
	fill(t, s, clock, 1)
	cfg := fast
	cfg.Uncertain = Keep
	deliver(t, s, silent{}, cfg)
	eventually(t, "it is uncertain", func() bool { return states(t, s, "a")[Uncertain] == 1 })
}

type silent struct{}

func (silent) Name() string                                       { return "a" }
func (silent) Send(context.Context, []sink.Profile) []sink.Result { return nil }

func TestDeliverToAReadOnlyStore(t *testing.T) {
	s := open(t, newClock())
	ro, err := OpenReadOnly(s.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	if err := ro.Deliver(context.Background(), silent{}, fast); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("%v, want an error", err)
	}
}
