package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"github.com/spf13/cobra"

	"github.com/stoker-profiler/stoker/cmd/stoker/config"
	"github.com/stoker-profiler/stoker/sink/web"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; run with -update and look at the difference\n got:\n%s\nwant:\n%s", path, got, want)
	}
}

// Times are printed in local time; the golden files are in UTC.
func init() { time.Local = time.UTC }

var clock = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// fakeBackend is an agent, or a sampler of our own, without a kernel.
type fakeBackend struct {
	err     error
	request web.RecordRequest
	frames  []string      // leaf first; none: no samples
	windows *atomic.Int64 // Top has seen that many windows
	hang    chan struct{} // closed when a recording has begun that never ends by itself
}

func (b *fakeBackend) Containers(context.Context) ([]web.Container, error) {
	yes := true
	return []web.Container{
		{
			ID: "3f9c00aa11bb22cc", Name: "web", Image: "registry.example.net:5000/shop/web:1.4@sha256:00", Runtime: "docker", State: "profiled",
			Sources: map[string]time.Time{"containerd": clock, "cgroup": clock.Add(time.Millisecond), "docker": clock.Add(210 * time.Millisecond)},
			Labels:  map[string]string{"team": "shop\x07"}, Notes: []string{`stoker.tenant="red" is not among the tenants of container_labels`},
			TaskCreatedAt: clock.Add(-5 * time.Millisecond),
			StartedAt:     clock.Add(12 * time.Millisecond), InScopeAt: clock, ScopeBeforeStart: &yes, Service: "shop/web", PID: 42, CgroupPath: "/docker/3f",
			GivenFrequency: 97,
		},
		{
			ID: "77", KubernetesContainer: "app", Image: "docker.io/library/postgres:16", Runtime: "containerd", State: "excluded",
			Reason: "rule 1 of targets excludes image: *postgres*, namespace: data", Pod: &web.Pod{Name: "db-0", Namespace: "data"}, StartedAt: clock.Add(-50 * time.Hour),
		},
		{
			ID: "88", Name: "evil\x1b[2J\nname", Image: "x", Runtime: "containerd", State: "profiled", AskedFrequency: 499, GivenFrequency: 199,
			StartedAt: clock, InScopeAt: clock.Add(3 * time.Millisecond), Sources: map[string]time.Time{"cgroup": clock},
		},
		{ID: "99", Name: "job", Image: "job", Runtime: "podman", User: "1000", State: "gone", GoneAt: clock, StartedAt: clock.Add(-time.Second), InScopeAt: clock.Add(-990 * time.Millisecond)},
	}, b.err
}

func (b *fakeBackend) Sources(context.Context) ([]web.Source, error) {
	return []web.Source{
		{Name: "containerd", State: web.SourceConnected, Containers: 1},
		{Name: "docker", State: web.SourceAbsent, Message: "no Docker at /var/run/docker.sock: connect: no such file or directory; start it"},
		{Name: "podman", State: web.SourceFailing, Message: "ask Podman: \x1b[2J permission denied: run as root"},
		{Name: "cgroup", State: web.SourceConnected, Containers: 2},
	}, b.err
}

func (b *fakeBackend) Record(ctx context.Context, r web.RecordRequest, progress func(web.RecordProgress)) (*profile.Profile, error) {
	b.request = r
	if b.err != nil {
		return nil, b.err
	}
	if b.hang != nil {
		close(b.hang)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	progress(web.RecordProgress{Elapsed: r.Duration / 2, Duration: r.Duration, Samples: 3, Containers: 1})
	return testProfile(b.frames...), nil
}

func (b *fakeBackend) Top(context.Context) (web.Top, error) {
	if b.windows != nil && b.windows.Add(1) < 3 {
		return web.Top{}, b.err
	}
	return web.Top{
		WindowStart: clock, WindowEnd: clock.Add(10 * time.Second), Cores: 1.5,
		Containers: []web.TopContainer{
			{ID: "3f9c00aa11bb22cc", Name: "web", Service: "shop/web", Cores: 1.25, Samples: 1213, Functions: []web.TopFunction{
				{Name: "encode", File: "web", Self: 9e9, Total: 9e9}, {Name: "serve", File: "web", Self: 1e9, Total: 12e9},
			}},
			{ID: "88", Name: "evil\x1b[2J\nname", Cores: 0.25, Samples: 242, Functions: []web.TopFunction{{Name: "spin", Self: 2e9, Total: 2e9}}},
		},
	}, b.err
}

func (b *fakeBackend) Health() web.Health    { return web.Health{} }
func (b *fakeBackend) Metrics() http.Handler { return http.NotFoundHandler() }

// testProfile is one stack of CPU time, 30 ms.
func testProfile(frames ...string) *profile.Profile {
	p := &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "cpu", Unit: "nanoseconds"}}, PeriodType: &profile.ValueType{Type: "cpu", Unit: "nanoseconds"},
		Period: 1e7, TimeNanos: clock.UnixNano(), DurationNanos: 1e9,
	}
	s := &profile.Sample{Value: []int64{3e7}}
	for i, name := range frames {
		f := &profile.Function{ID: uint64(i + 1), Name: name}
		l := &profile.Location{ID: uint64(i + 1), Line: []profile.Line{{Function: f}}}
		p.Function, p.Location, s.Location = append(p.Function, f), append(p.Location, l), append(s.Location, l)
	}
	if len(frames) > 0 {
		p.Sample = append(p.Sample, s)
	}
	return p
}

// testApp is an app on a machine where no agent runs and b is the sampler that it can start.
func testApp(t *testing.T, b *fakeBackend, environ ...string) (a *app, stdout, stderr *bytes.Buffer) {
	t.Helper()
	stdout, stderr = new(bytes.Buffer), new(bytes.Buffer)
	dir := t.TempDir()
	file := filepath.Join(dir, "stoker.yaml")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return &app{
		stdout: stdout, stderr: stderr, version: "1.2.3",
		environ: append([]string{"STOKER_CONFIG=" + file, "STOKER_SOCKET=" + filepath.Join(dir, "no.sock"), "STOKER_STORE_PATH=" + filepath.Join(dir, "no.db")}, environ...),
		run: func(_ context.Context, cfg config.Config, log *slog.Logger, version string, _ <-chan config.Config) error {
			log.Info("running", "version", version, "frequency", cfg.Sampling.Frequency)
			return nil
		},
		local: func(context.Context, config.Config, *slog.Logger) (web.Backend, func() error, error) {
			return b, func() error { return nil }, nil
		},
	}, stdout, stderr
}

// TestHelpIsReadable holds the help of every command, so that a change of it is seen and read.
func TestHelpIsReadable(t *testing.T) {
	a, _, _ := testApp(t, nil)
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Name() == "help" || cmd.Name() == "completion" {
			return
		}
		a, stdout, _ := testApp(t, nil)
		args := append(strings.Fields(cmd.CommandPath())[1:], "--help")
		if code := a.execute(context.Background(), args); code != 0 {
			t.Errorf("%q: exit code %d", args, code)
		}
		golden(t, "help/"+strings.ReplaceAll(cmd.CommandPath(), " ", "-")+".txt", stdout.String())
		if cmd.Runnable() && !cmd.HasSubCommands() && cmd.Example == "" {
			t.Errorf("%s has no example", cmd.CommandPath())
		}
		for _, c := range cmd.Commands() {
			walk(c)
		}
	}
	walk(a.root())
	// Without a command the same help is the answer.
	a, stdout, _ := testApp(t, nil)
	if code := a.execute(context.Background(), nil); code != 0 {
		t.Errorf("stoker alone: exit code %d", code)
	}
	if text, err := os.ReadFile("testdata/help/stoker.txt"); err != nil || stdout.String() != string(text) {
		t.Errorf("stoker alone prints %s", stdout)
	}
}

// lacking is an error of the sampler, as far as the command line knows it.
type lacking struct{}

func (lacking) Error() string  { return "load the BPF program: operation not permitted" }
func (lacking) Remedy() string { return "run as root" }

// TestExitCodes is the contract's table of codes, with what is said.
func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		args string
		err  error // of the backend
		code int
		says string
	}{
		{"version", nil, 0, ""},
		{"ps", nil, 0, ""},
		{"top --once", nil, 0, ""},
		{"record -d 1s", nil, 0, ""},
		{"run", nil, 0, "msg=running version=1.2.3 frequency=97"},
		{"run --sampling-frequency 49", nil, 0, "frequency=49"},

		{"ps", errors.New("broken"), 1, "stoker: broken"},
		{"record", context.Canceled, 1, "stoker: interrupted"},

		{"recrod", nil, 2, `stoker: there is no command "recrod"; did you mean ` + "`stoker record`?"},
		{"xyzzy", nil, 2, "`stoker --help` lists them"},
		{"config sohw", nil, 2, "did you mean `stoker config show`?"},
		{"ps --bogus", nil, 2, "unknown flag: --bogus; see `stoker ps --help`"},
		{"ps --output xml", nil, 2, "--output xml: choose one of table, wide, json"},
		{"top -n 0", nil, 2, "give a number of rows"},
		{"top -n x", nil, 2, "see `stoker top --help`"},
		{"record -d 10", nil, 2, `--duration: "10" is not a duration; write it like 10s, 5m, 72h or 3d`},
		{"record -d 0s", nil, 2, "choose more than 0"},
		{"record -d 2h", nil, 2, "at most 1h"},
		{"record -F 0", nil, 2, "choose 1 to 10000"},
		{"record -o flame.png", nil, 2, `"flame.png" does not say which format to write`},
		{"record -o /no/such/dir/x.svg", nil, 2, "create the directory first"},
		{"record -o x.svg --output json", nil, 2, "does not go together"},
		{"record pid:x", nil, 2, "behind pid: stands the number of a process"},
		{"run --sampling-frequency fast", nil, 2, `stoker: --sampling-frequency: sampling.frequency: "fast" is not a whole number`},
		{"run --config /no/such/stoker.yaml", nil, 2, "write the file or leave out --config"},
		{"config check /no/such/stoker.yaml", nil, 2, "no such file"},
		{"query --last 1x", nil, 2, `"1x" is not a duration`},
		{"query -l service_name", nil, 2, "service_name"},
		{"query --from 12:00 --last 1h", nil, 2, "--last"},
		{"query --from yesterdayish", nil, 2, "yesterdayish"},

		{"ps nobody", nil, 3, `no container is meant by "nobody": the containers are`},
		{"ps --sources web", nil, 2, "--sources prints no containers"},
		{"record web", &web.Error{Status: 404, Message: `no container is meant by "web"`, Remedy: "the containers are db"}, 3, `stoker: no container is meant by "web": the containers are db`},

		{"record", fmt.Errorf("start: %w", lacking{}), 4, "stoker: start: load the BPF program: operation not permitted: run as root"},
		{"record", &web.Error{Status: 403, Message: "not for you", Remedy: "be root"}, 4, "not for you: be root"},
	} {
		t.Run(c.args, func(t *testing.T) {
			a, _, stderr := testApp(t, &fakeBackend{err: c.err, frames: []string{"leaf"}})
			code := a.execute(context.Background(), strings.Fields(c.args))
			if code != c.code || !strings.Contains(stderr.String(), c.says) || strings.Contains(stderr.String(), "\x1b") {
				t.Errorf("exit code %d, want %d; said %q, want %q in it", code, c.code, stderr, c.says)
			}
			if c.code == 0 && c.says == "" && stderr.Len() > 0 {
				t.Errorf("said %q", stderr)
			}
		})
	}
}

// TestNoAgentAndNoRights: who cannot reach an agent nor sample by himself hears both, and what to do.
func TestNoAgentAndNoRights(t *testing.T) {
	a, _, stderr := testApp(t, nil)
	a.local = func(context.Context, config.Config, *slog.Logger) (web.Backend, func() error, error) {
		return nil, nil, lacking{}
	}
	if code := a.execute(context.Background(), []string{"top"}); code != exitMachine {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{"no agent listens at", "`stoker run`", "does not start", "run as root"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("%q does not say %q", stderr, want)
		}
	}
}

// TestTables holds what ps and top print, in a pipe and as JSON.
func TestTables(t *testing.T) {
	for _, c := range []struct{ name, args string }{
		{"ps", "ps"}, {"ps-all", "ps -a"}, {"ps-json", "ps --output json"}, {"ps-sources", "ps --sources"}, {"ps-sources-json", "ps --sources --output json"},
		{"ps-target-json", "ps 77 --output json"}, {"top", "top"}, {"top-2", "top -n 1"}, {"top-json", "top --output json"},
		{"config-show", "config show"}, {"record", "record -d 1s"}, {"record-json", "record -d 1s --output json"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &fakeBackend{frames: []string{"leaf", "main"}}
			if strings.HasPrefix(c.args, "top") {
				b.windows = new(atomic.Int64) // there has not been one yet
			}
			a, stdout, stderr := testApp(t, b)
			if c.name == "config-show" {
				a.environ = a.environ[:1] // the defaults, not the paths of this test
			}
			if code := a.execute(context.Background(), strings.Fields(c.args)); code != 0 {
				t.Fatalf("exit code %d: %s", code, stderr)
			}
			text := stdout.String()
			if strings.ContainsAny(text, "\x1b\x00") {
				t.Errorf("a container's name reaches the terminal: %q", text)
			}
			if strings.HasSuffix(c.name, "json") && !json.Valid([]byte(text)) {
				t.Errorf("not JSON: %s", text)
			}
			golden(t, "tables/"+c.name+".txt", text)
		})
	}
}

// TestWidePs has a column whose text depends on now.
func TestWidePs(t *testing.T) {
	b := &fakeBackend{}
	containers, err := b.Containers(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := psTable(containers, map[string]float64{"3f9c00aa11bb22cc": 1.25, "88": 0.25}, true, 0, clock.Add(90*time.Minute)).print(&out, 0); err != nil {
		t.Fatal(err)
	}
	golden(t, "tables/ps-wide.txt", out.String())
}

// TestPsOnTerminals holds what one reads on a terminal of 80 columns and of 200, and about one container.
func TestPsOnTerminals(t *testing.T) {
	containers, err := (&fakeBackend{}).Containers(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	cpu := map[string]float64{"3f9c00aa11bb22cc": 1.25, "88": 0.25}
	for _, width := range []int{80, 200} {
		var out strings.Builder
		if err := psTable(containers, cpu, false, width, clock).print(&out, width); err != nil {
			t.Fatal(err)
		}
		golden(t, fmt.Sprintf("tables/ps-%d.txt", width), out.String())
	}
	var out strings.Builder
	for _, c := range containers {
		if err := printContainer(&out, c, cpu, clock.Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	if strings.ContainsAny(out.String(), "\x1b\x00") {
		t.Errorf("a container's name reaches the terminal: %q", &out)
	}
	golden(t, "tables/ps-one.txt", out.String())
}

// TestTablesFitTheTerminal: what may shrink does, down to a least, and a line never wraps.
func TestTablesFitTheTerminal(t *testing.T) {
	table := table{columns: []column{{title: "NAME", shrink: true}, {title: "IMAGE", shrink: true}, {title: "CPU", right: true}}}
	table.add("a-rather-long-name-of-a-container", "registry/with/a/long/path:tag", "0.25")
	table.add("ü", "x", "10.00")
	for _, width := range []int{0, 80, 40, 20, 5, 1} {
		var out strings.Builder
		if err := table.print(&out, width); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out.String()) {
			if n := len([]rune(strings.TrimSuffix(line, "\n"))); width > 0 && n > width {
				t.Errorf("width %d: line of %d: %q", width, n, line)
			}
		}
		if width == 40 && !strings.Contains(out.String(), "0.25") {
			t.Errorf("width 40 cuts the last column off:\n%s", &out)
		}
	}
}

// TestRecordWritesWhatTheEndingSays, and passes on what was asked for.
func TestRecordWritesWhatTheEndingSays(t *testing.T) {
	dir := t.TempDir()
	for name, want := range map[string]string{"r.html": "<!DOCTYPE html>", "r.svg": "<svg", "r.folded": "main;leaf 30000000", "r.json": "speedscope", "r.pb.gz": "\x1f\x8b"} {
		b := &fakeBackend{frames: []string{"leaf", "main"}}
		a, stdout, stderr := testApp(t, b)
		path := filepath.Join(dir, name)
		if code := a.execute(context.Background(), []string{"record", "web", "pid:7", "-d", "5s", "-F", "499", "-o", path}); code != 0 {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), want) || stdout.Len() > 0 {
			t.Errorf("%s holds no %q, or standard output holds %q", name, want, stdout)
		}
		if b.request.Frequency != 499 || time.Duration(b.request.Duration) != 5*time.Second || strings.Join(b.request.Targets, " ") != "web pid:7" {
			t.Errorf("asked for %+v", b.request)
		}
	}
}

// TestConfigCheck: all mistakes at once, with their places, as text and as JSON.
func TestConfigCheck(t *testing.T) {
	file := filepath.Join(t.TempDir(), "stoker.yaml")
	if err := os.WriteFile(file, []byte("samplin: {frequency: 97}\nsystemd: [a]\nlog: {level: loud}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a, _, stderr := testApp(t, nil)
	if code := a.execute(context.Background(), []string{"config", "check", file}); code != exitUsage {
		t.Errorf("exit code %d", code)
	}
	golden(t, "config-check.txt", strings.ReplaceAll(stderr.String(), file, "stoker.yaml"))

	a, stdout, _ := testApp(t, nil)
	if code := a.execute(context.Background(), []string{"config", "check", "--output", "json", file}); code != exitUsage {
		t.Errorf("exit code %d", code)
	}
	var answer struct {
		Problems []struct{ Where, Key, Message string }
	}
	if err := json.Unmarshal(stdout.Bytes(), &answer); err != nil || len(answer.Problems) != 3 || answer.Problems[0].Where != file+":1:1" {
		t.Errorf("%v: %s", err, stdout)
	}

	if err := os.WriteFile(file, []byte("log: {level: debug}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a, stdout, stderr = testApp(t, nil, "STOKER_SERVICE_HOST=10.0.0.1")
	if code := a.execute(context.Background(), []string{"config", "check", file}); code != 0 || stdout.String() != "ok: "+file+"\n" {
		t.Errorf("exit code %d: %s", code, stdout)
	}
	if !strings.Contains(stderr.String(), "STOKER_SERVICE_HOST names no key") {
		t.Errorf("said %q", stderr)
	}
}

// TestHangupReloads: what can change live is handed on, what cannot is said, mistakes leave the old configuration in force.
func TestHangupReloads(t *testing.T) {
	file := filepath.Join(t.TempDir(), "stoker.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("labels: {site: a}")
	load := func() (*config.Loaded, error) { return config.Load(config.Options{File: file}) }
	first, err := load()
	if err != nil {
		t.Fatal(err)
	}
	var said lockedBuffer
	level := new(slog.LevelVar)
	log := newLogger(&said, first.Config.Log, level)
	ctx, cancel := context.WithCancel(context.Background())
	hangups, reload, done := make(chan os.Signal), make(chan config.Config), make(chan struct{})
	go func() {
		defer close(done)
		r := reloader{load: load, inForce: first.Config, level: level, log: log, to: reload}
		r.run(ctx, hangups)
	}()

	write("labels: {site: b}\nsampling: {frequency: 49}\nlog: {level: debug}")
	hangups <- syscall.SIGHUP
	got := <-reload
	if got.Labels["site"] != "b" || got.Sampling.Frequency != 97 || level.Level() != slog.LevelDebug {
		t.Errorf("in force: %+v, level %s", got, level.Level())
	}
	if text := said.String(); !strings.Contains(text, "needs a restart") || !strings.Contains(text, "key=sampling.frequency from=97 to=49") {
		t.Errorf("said %s", text)
	}

	write("labels: {site: c}\nsamplin: {}\nstor: {}")
	hangups <- syscall.SIGHUP
	for deadline := time.Now().Add(30 * time.Second); strings.Count(said.String(), "the configuration is not reloaded") < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the mistakes are not said: %s", said.String())
		}
	}
	write("labels: {site: d}\nsampling: {frequency: 49}")
	hangups <- syscall.SIGHUP
	if got := <-reload; got.Labels["site"] != "d" || got.Sampling.Frequency != 97 {
		t.Errorf("in force: %+v", got)
	}
	cancel()
	<-done
}

// lockedBuffer is a bytes.Buffer for several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestPsOffersNRIWhereARuntimeDoes(t *testing.T) {
	dir, err := os.MkdirTemp("", "nri-") // short: a socket is in it
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "nri.sock")
	cfg := config.Default()
	cfg.Runtimes.NRI.Socket = socket
	if hint := nriHint(cfg, nil); hint != "" {
		t.Errorf("offered where there is none: %s", hint)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if hint := nriHint(cfg, []web.Source{{Name: "containerd"}}); !strings.Contains(hint, socket) || !strings.Contains(hint, "runtimes.nri.enabled") {
		t.Errorf("hint %q", hint)
	}
	if hint := nriHint(cfg, []web.Source{{Name: "nri"}}); hint != "" {
		t.Errorf("offered where the agent has it: %s", hint)
	}
	cfg.Runtimes.NRI.Enabled = true
	if hint := nriHint(cfg, nil); hint != "" {
		t.Errorf("offered where it is on: %s", hint)
	}
}
