//go:build root || guest

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/sink/store"
	"github.com/stoker-profiler/stoker/sink/web"
)

// testLabel is a label of every container of these tests; its value is the test's name, so that an agent takes only the
// containers of its own test.
const testLabel = "stoker-e2e"

// imageRef has busybox and the workloads.
const imageRef = "localhost/workloads:1"

// options are what a test wants to be different from the agent's defaults.
type options struct {
	frequency int           // default 97
	window    time.Duration // default 2 s: a test does not want to wait ten
	targets   string        // YAML of targets; default: only the containers of this test
	extra     string        // more YAML, at top level
	runtimes  string        // more YAML, in runtimes: ", nri: {enabled: true}"
	socket    string        // containerd's; default the one of the test run
	docker    string        // Docker's; default off
	wrap      []string      // run under this command, as setpriv
}

// agent is a running `stoker run` with its own configuration, store and sockets.
type agent struct {
	dir, config, store, socket, hook, listen string
	opts                                     options

	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	log  logBuffer
}

// logBuffer is what a process wrote; safe for concurrent use.
type logBuffer struct {
	mu sync.Mutex // protects b
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newAgent writes the configuration of an agent and starts nothing.
func newAgent(t *testing.T, o options) *agent {
	t.Helper()
	if o.frequency == 0 {
		o.frequency = 97
	}
	if o.window == 0 {
		o.window = 2 * time.Second
	}
	if o.socket == "" {
		o.socket = containerdSocket()
	}
	if o.docker == "" {
		o.docker = "off"
	}
	if o.targets == "" {
		o.targets = fmt.Sprintf("[{label: {%s: %q}}, {exclude: true}]", testLabel, t.Name())
	}
	dir := t.TempDir()
	a := &agent{dir: dir, config: filepath.Join(dir, "stoker.yaml"), store: filepath.Join(dir, "profiles.db"), opts: o}
	// A unix socket's path is short; a test's directory may not be.
	sockets, err := os.MkdirTemp("", "stoker-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	a.socket, a.hook = filepath.Join(sockets, "api.sock"), filepath.Join(sockets, "hook.sock")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a.listen = l.Addr().String()
	l.Close()
	a.configure(t)
	return a
}

// configure writes the configuration from the options, as newAgent has completed them.
func (a *agent) configure(t *testing.T) {
	t.Helper()
	o := a.opts
	text := fmt.Sprintf(`sampling: {frequency: %d, window: %s}
targets: %s
store: {path: %s, min_free: 1%%}
web: {listen: "%s"}
socket: %s
runtimes: {containerd: {address: %s}, docker: {address: %s}, hook: {socket: %s}%s}
log: {level: debug}
%s`, o.frequency, o.window, o.targets, a.store, a.listen, a.socket, o.socket, o.docker, a.hook, o.runtimes, o.extra)
	if err := os.WriteFile(a.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// reload has the running agent read its configuration again.
func (a *agent) reload(t *testing.T) {
	t.Helper()
	if err := a.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
}

// known asks the agent for what it knows of containers, those included that ended within the last windows.
func (a *agent) known(t *testing.T) (list []web.Container) {
	t.Helper()
	out, errs, code := a.command(t, "ps", "--all", "--output", "json")
	if code != 0 {
		t.Fatalf("stoker ps: exit code %d: %s", code, errs)
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("stoker ps: %v in %q", err, out)
	}
	return list
}

// becomes waits until what the agent knows of a container that has not ended is as wanted, and returns it.
func (a *agent) becomes(t *testing.T, id, what string, ok func(web.Container) bool) (found web.Container) {
	t.Helper()
	eventually(t, 30*time.Second, what, func() error {
		for _, c := range a.known(t) {
			if c.ID == id && c.GoneAt.IsZero() {
				if found = c; ok(c) {
					return nil
				}
			}
		}
		return fmt.Errorf("container %s is %+v", id, found)
	})
	return found
}

// startAgent starts an agent and returns when it says that it is up.
func startAgent(t *testing.T, o options) *agent {
	t.Helper()
	a := newAgent(t, o)
	a.start(t)
	a.ready(t)
	return a
}

// start starts the process; it may be called again after the process has ended.
func (a *agent) start(t *testing.T) {
	t.Helper()
	args := append(append([]string(nil), a.opts.wrap...), run.stoker, "run", "--config", a.config)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &a.log, &a.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		cmd.Wait() // the exit code is in cmd.ProcessState, which the tests read
		close(done)
	}()
	a.cmd, a.done = cmd, done
	t.Cleanup(func() {
		if t.Failed() {
			out, errs, _ := a.command(t, "ps", "--output", "json")
			t.Logf("stoker ps:\n%s%s", out, errs)
		}
		cmd.Process.Kill()
		<-done
		if t.Failed() {
			t.Logf("log of the agent:\n%s", tail(a.log.String(), 60))
		}
	})
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// ready waits for /healthz.
func (a *agent) ready(t *testing.T) {
	t.Helper()
	eventually(t, 20*time.Second, "agent answers", func() error {
		select {
		case <-a.done:
			t.Fatalf("the agent ended by itself with %v:\n%s", a.cmd.ProcessState, tail(a.log.String(), 60))
		default:
		}
		_, err := a.get("/healthz")
		return err
	})
}

// get reads a page of the agent's web address.
func (a *agent) get(path string) ([]byte, error) {
	c := http.Client{Timeout: 20 * time.Second}
	r, err := c.Get("http://" + a.listen + path)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %s", path, r.Status, body)
	}
	return body, err
}

// stop sends SIGTERM, waits for the end and wants exit code 0: the last window is then in the store.
func (a *agent) stop(t *testing.T) {
	t.Helper()
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatalf("the agent has ended before it was told to: %v\n%s", err, tail(a.log.String(), 60))
	}
	if code := a.wait(t); code != 0 {
		t.Fatalf("the agent ended with %d after SIGTERM:\n%s", code, tail(a.log.String(), 60))
	}
}

// wait waits for the end of the process and returns its exit code.
func (a *agent) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-a.done:
	case <-time.After(60 * time.Second * slowness):
		t.Fatalf("the agent does not end:\n%s", tail(a.log.String(), 60))
	}
	return a.cmd.ProcessState.ExitCode()
}

// kill ends the agent as a crash would.
func (a *agent) kill(t *testing.T) {
	t.Helper()
	if err := a.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-a.done
}

// profiles reads from the agent's store what it has of one container, or of all if id is "", oldest first. It works while
// the agent runs and after.
func (a *agent) profiles(t *testing.T, id string) []sink.Profile {
	t.Helper()
	all, err := a.read(id)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (a *agent) read(id string) (all []sink.Profile, err error) {
	s, err := store.OpenReadOnly(a.store)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	for p, err := range s.Select(context.Background(), store.Query{From: time.Unix(0, 0), To: time.Now().Add(time.Hour), ContainerID: id}) {
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// stored waits until the store has a profile of the container that satisfies ok, and returns all of that container.
func (a *agent) stored(t *testing.T, id, what string, ok func(sink.Profile) bool) []sink.Profile {
	t.Helper()
	var found []sink.Profile
	eventually(t, 3*a.opts.window+30*time.Second, what, func() (err error) {
		if found, err = a.read(id); err != nil {
			return err // there is no store yet
		}
		for _, p := range found {
			if ok(p) {
				return nil
			}
		}
		return fmt.Errorf("%d profiles of %s in the store, none as wanted", len(found), id)
	})
	return found
}

// command runs the command line against this agent and returns what it printed.
func (a *agent) command(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(run.stoker, append(args, "--config", a.config)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// inScope waits until the agent says that it profiles the container.
func (a *agent) inScope(t *testing.T, id string) {
	t.Helper()
	eventually(t, 20*time.Second, "container "+id+" in scope", func() error {
		out, errs, code := a.command(t, "ps", "--output", "json")
		if code != 0 {
			return fmt.Errorf("stoker ps: exit code %d: %s", code, errs)
		}
		var answer any
		if err := json.Unmarshal([]byte(out), &answer); err != nil {
			return fmt.Errorf("stoker ps: %w in %q", err, out)
		}
		if !strings.Contains(out, id) {
			return fmt.Errorf("stoker ps does not list it:\n%s", out)
		}
		return nil
	})
}

// programs are the BPF programs that the agent holds.
func (a *agent) programs(t *testing.T) map[ebpf.ProgramID]bool {
	t.Helper()
	infos, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", a.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	found := map[ebpf.ProgramID]bool{}
	for _, path := range infos {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // closed meanwhile
		}
		for line := range strings.Lines(string(text)) {
			var id ebpf.ProgramID
			if n, err := fmt.Sscanf(line, "prog_id:\t%d", &id); n == 1 && err == nil {
				found[id] = true
			}
		}
	}
	return found
}
