package debuginfod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/bpf/symbol"
)

const (
	one   = "0123456789abcdef0123456789abcdef01234567"
	two   = "fedcba9876543210fedcba9876543210fedcba98"
	three = "aaaaaaaaaaaaaaaa"
)

// debugFile makes the debug file of a program with a build id, as distributions do.
func debugFile(t testing.TB, buildID string) []byte {
	t.Helper()
	dir := t.TempDir()
	source, program, debug := filepath.Join(dir, "p.c"), filepath.Join(dir, "p"), filepath.Join(dir, "p.debug")
	if err := os.WriteFile(source, []byte("int main(void) { return 0; }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"gcc", "-g", "-Wl,--build-id=0x" + buildID, "-o", program, source},
		{"objcopy", "--only-keep-debug", program, debug},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", args, err, out)
		}
	}
	b, err := os.ReadFile(debug)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// bench is a client whose clock and pauses are the test's.
type bench struct {
	*Client
	t     *testing.T
	dir   string
	log   *bytes.Buffer // Run's goroutine writes, the test reads when it is idle
	clock atomic.Int64  // seconds
}

func newBench(t *testing.T, change func(*Config), urls ...string) *bench {
	t.Helper()
	b := &bench{t: t, dir: filepath.Join(t.TempDir(), "cache"), log: new(bytes.Buffer)}
	cfg := Config{URLs: urls, Dir: b.dir, MaxBytes: 1 << 20, Timeout: 10 * time.Second, Version: "test", Log: slog.New(slog.NewTextHandler(b.log, nil))}
	if change != nil {
		change(&cfg)
	}
	b.dir = cfg.Dir
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.pause, c.now = 0, func() time.Time { return time.Unix(1e9+b.clock.Load(), 0) }
	b.Client = c
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if parts, _ := filepath.Glob(filepath.Join(b.dir, "*"+partial)); len(parts) > 0 {
			t.Errorf("left behind: %q", parts)
		}
	})
	return b
}

// settle asks for a build id until it is known whether there is a file.
func (b *bench) settle(id string) ([]byte, error) {
	b.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		f, err := b.Open(id)
		if errors.Is(err, symbol.ErrNotYet) {
			continue
		}
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return io.ReadAll(f)
	}
	b.t.Fatal("no answer")
	return nil, nil
}

// serve starts a server on loopback and counts what it is asked.
func serve(t *testing.T, h http.HandlerFunc) (url string, asked *atomic.Int64) {
	t.Helper()
	asked = new(atomic.Int64)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked.Add(1); h(w, r) }))
	t.Cleanup(s.Close)
	return s.URL, asked
}

// files is a server that has these.
func files(have map[string][]byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for id, b := range have {
			if r.Method == http.MethodGet && r.URL.Path == "/buildid/"+id+"/debuginfo" && r.UserAgent() == "stoker/test" {
				_, _ = w.Write(b) // a client that went away is what some tests want
				return
			}
		}
		http.NotFound(w, r)
	}
}

func TestFilesAreFetchedOnceAndKept(t *testing.T) {
	want := debugFile(t, one)
	nobody, askedNobody := serve(t, http.NotFound)
	url, asked := serve(t, files(map[string][]byte{one: want}))
	b := newBench(t, nil, nobody, url+"/")
	if _, err := b.Open(one); !errors.Is(err, symbol.ErrNotYet) {
		t.Fatalf("at first: %v", err)
	}
	for range 3 {
		got, err := b.settle(one)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, want %d, %v", len(got), len(want), err)
		}
	}
	if askedNobody.Load() != 1 || asked.Load() != 1 {
		t.Errorf("asked %d and %d times", askedNobody.Load(), asked.Load())
	}
	// That nobody has it is remembered for a while.
	for range 3 {
		if _, err := b.settle(two); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("a file that nobody has: %v", err)
		}
	}
	if asked.Load() != 2 {
		t.Errorf("asked %d times", asked.Load())
	}
	b.clock.Add(int64(absentLife/time.Second) + 1)
	if _, err := b.settle(two); !errors.Is(err, os.ErrNotExist) || asked.Load() != 3 {
		t.Errorf("after a while: %v, asked %d times", err, asked.Load())
	}
	st := b.Stats()
	if st.Found != 1 || st.Absent != 2 || st.Received != uint64(len(want)) || st.Bytes != int64(len(want)) || st.Files != 1 {
		t.Errorf("%+v", st)
	}
	// The next process finds it; what an earlier one had not finished is gone.
	if err := os.WriteFile(filepath.Join(b.dir, one+"-1"+partial), want, 0o600); err != nil {
		t.Fatal(err)
	}
	again := newBench(t, func(c *Config) { c.Dir = b.dir })
	if got, err := again.settle(one); err != nil || !bytes.Equal(got, want) {
		t.Errorf("after a restart: %d bytes, %v", len(got), err)
	}
	if st := again.Stats(); st.Bytes != int64(len(want)) {
		t.Errorf("after a restart: %+v", st)
	}
}

func TestTheCacheIsBounded(t *testing.T) {
	have := map[string][]byte{one: debugFile(t, one), two: debugFile(t, two), three: debugFile(t, three)}
	url, _ := serve(t, files(have))
	room := int64(2*len(have[one]) + len(have[one])/2)
	b := newBench(t, func(c *Config) { c.MaxBytes = room }, url)
	for i, id := range []string{one, two, one, three} {
		b.clock.Add(1)
		if _, err := b.settle(id); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	if st := b.Stats(); st.Files != 2 || st.Evicted != 1 || st.Bytes > room {
		t.Errorf("%+v, room %d", st, room)
	}
	if _, err := os.Stat(b.path(two)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("not the file that was used longest ago has gone: %v", err)
	}
	// A smaller limit holds from the start.
	small := newBench(t, func(c *Config) { c.Dir, c.MaxBytes = b.dir, room/2 })
	if st := small.Stats(); st.Files != 1 || st.Bytes > room/2 {
		t.Errorf("after the limit was lowered: %+v", st)
	}
}

// Whatever a server sends, it costs a bounded number of bytes and a counter.
func TestServersThatMeanHarm(t *testing.T) {
	good := debugFile(t, one)
	other := debugFile(t, two)
	plain, _ := serve(t, files(map[string][]byte{one: good}))
	for name, c := range map[string]struct {
		serve http.HandlerFunc
		want  func(Stats) uint64
	}{
		"endless": {func(w http.ResponseWriter, r *http.Request) {
			for chunk := bytes.Repeat([]byte("\x7fELF"), 4096); ; {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}, func(s Stats) uint64 { return s.Refused }},
		"too large, it says": {func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Content-Length", "99999999999") },
			func(s Stats) uint64 { return s.Refused + s.Failed }},
		"another build": {func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(other) }, func(s Stats) uint64 { return s.Refused }},
		"garbage":       {func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "<html>not found</html>") }, func(s Stats) uint64 { return s.Refused }},
		"nothing":       {func(w http.ResponseWriter, r *http.Request) {}, func(s Stats) uint64 { return s.Refused }},
		"cut short":     {func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(good[:len(good)/8]) }, func(s Stats) uint64 { return s.Refused }},
		"broken off": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "9000")
			_, _ = w.Write(good[:100])
		}, func(s Stats) uint64 { return s.Failed }},
		"status 500": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) }, func(s Stats) uint64 { return s.Failed }},
		"status 206": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(206); _, _ = w.Write(good) }, func(s Stats) uint64 { return s.Failed }},
		"redirects":  {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path+"x", http.StatusFound) }, func(s Stats) uint64 { return s.Failed }},
		"redirect to file": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}, func(s Stats) uint64 { return s.Failed }},
	} {
		t.Run(name, func(t *testing.T) {
			url, asked := serve(t, c.serve)
			b := newBench(t, func(c *Config) { c.MaxBytes = 256 << 10 }, url)
			if _, err := b.settle(one); !errors.Is(err, os.ErrNotExist) {
				t.Fatalf("got %v", err)
			}
			st := b.Stats()
			if c.want(st) != 1 || st.Found != 0 || st.Files != 0 || st.Received > 256<<10 {
				t.Errorf("%+v", st)
			}
			if n := asked.Load(); n > maxRedirects+2 {
				t.Errorf("asked %d times", n)
			}
			// Another server is asked all the same.
			both := newBench(t, nil, url, plain)
			if got, err := both.settle(one); err != nil || !bytes.Equal(got, good) {
				t.Errorf("with another server: %d bytes, %v", len(got), err)
			}
		})
	}
}

// A server that does not answer costs the time of one request, and is not asked again until a while has passed.
func TestServersThatHang(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	working := atomic.Bool{}
	good := debugFile(t, three)
	url, asked := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if working.Load() {
			files(map[string][]byte{three: good})(w, r)
			return
		}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	b := newBench(t, func(c *Config) { c.Timeout = 50 * time.Millisecond }, url)
	for _, id := range []string{one, two} {
		if _, err := b.settle(id); !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if st := b.Stats(); asked.Load() != 1 || st.Failed != 1 {
		t.Errorf("asked %d times, %+v", asked.Load(), st)
	}
	if n := strings.Count(b.log.String(), "does not answer as it should"); n != 1 {
		t.Errorf("said %d times:\n%s", n, b.log)
	}
	working.Store(true)
	b.clock.Add(int64(minBackoff/time.Second) + 1)
	if _, err := b.settle(three); err != nil || !strings.Contains(b.log.String(), "answers again") {
		t.Errorf("when it works again: %v\n%s", err, b.log)
	}
}

// A build id is a container's word: what is none goes nowhere, and too many are dropped.
func TestBuildIDsOfStrangers(t *testing.T) {
	url, asked := serve(t, http.NotFound)
	b := newBench(t, nil, url)
	for _, id := range []string{"", "../../../../etc/passwd", "0123456789ABCDEF0123", "0123", strings.Repeat("0", 129), "0123456789abcdef/x"} {
		if _, err := b.Open(id); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%q: %v", id, err)
		}
	}
	if asked.Load() != 0 {
		t.Error("a server was asked")
	}
	idle, err := New(Config{URLs: []string{url}, Dir: filepath.Join(t.TempDir(), "c"), MaxBytes: 1 << 20, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxQueue + 10 {
		if _, err := idle.Open(fmt.Sprintf("%016x", i)); !errors.Is(err, symbol.ErrNotYet) {
			t.Fatal(err)
		}
	}
	if st := idle.Stats(); st.Waiting != maxQueue || st.Dropped != 10 {
		t.Errorf("%+v", st)
	}
}

// Where nothing can be written, that is said at the start; what goes wrong later leaves no pieces.
func TestTheCacheCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Dir: filepath.Join(dir, "file"), MaxBytes: 1}); err == nil || !strings.Contains(err.Error(), "symbols.debuginfod.cache") {
		t.Errorf("a file in its place: %v", err)
	}
	if _, err := New(Config{Dir: dir, URLs: []string{"ftp://x"}}); err == nil {
		t.Error("a server of another kind is taken")
	}
	url, _ := serve(t, files(map[string][]byte{one: debugFile(t, one)}))
	b := newBench(t, nil, url)
	if err := os.RemoveAll(b.dir); err != nil {
		t.Fatal(err)
	}
	if _, err := b.settle(one); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if st := b.Stats(); st.Unsaved != 1 || st.Files != 0 {
		t.Errorf("%+v", st)
	}
}

// Over TLS the server's certificate is checked, and no redirect leads to where it is not.
func TestServersOverTLS(t *testing.T) {
	good := debugFile(t, one)
	plain, askedPlain := serve(t, files(map[string][]byte{one: good, two: good}))
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, two) {
			http.Redirect(w, r, plain+r.URL.Path, http.StatusFound)
			return
		}
		files(map[string][]byte{one: good})(w, r)
	}))
	defer server.Close()
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	stranger := newBench(t, nil, server.URL)
	if _, err := stranger.settle(one); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if st := stranger.Stats(); st.Failed != 1 || !strings.Contains(stranger.log.String(), "certificate") {
		t.Errorf("a certificate that nobody trusts: %+v\n%s", st, stranger.log)
	}
	b := newBench(t, func(c *Config) { c.tls = server.Client().Transport.(*http.Transport).TLSClientConfig }, server.URL)
	if got, err := b.settle(one); err != nil || !bytes.Equal(got, good) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := b.settle(two); !errors.Is(err, os.ErrNotExist) || askedPlain.Load() != 0 {
		t.Errorf("a redirect to http: %v, asked %d times", err, askedPlain.Load())
	}
}
