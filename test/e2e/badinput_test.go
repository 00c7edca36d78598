//go:build root

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/test/workload"
)

// says waits until the agent's log has a line with all these words.
func (a *agent) says(t *testing.T, words ...string) {
	t.Helper()
	eventually(t, 30*time.Second, fmt.Sprintf("the log has a line with %q", words), func() error {
	lines:
		for line := range strings.Lines(a.log.String()) {
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue lines
				}
			}
			return nil
		}
		return fmt.Errorf("it has:\n%s", tail(a.log.String(), 30))
	})
}

// Without containerd the agent finds containers by their cgroups alone.
func TestNoContainerdSocket(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "containerd.sock")
	a := startAgent(t, options{socket: missing, targets: "[]"})
	a.says(t, "level=WARN", missing)
	b := start(t, spec{args: []string{"/" + workload.Burn, "0", "4"}, docker: true})
	a.stored(t, b.id, "profile of a container that only its cgroup tells of", func(p sink.Profile) bool { return p.Total > 0 })
	b.kill(t)
	a.stop(t)
}

// A socket that accepts and never answers delays nobody.
func TestContainerdSocketHangs(t *testing.T) {
	dir, err := os.MkdirTemp("", "stoker-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "containerd.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	a := startAgent(t, options{socket: path, targets: "[]"})
	a.says(t, "level=WARN", path)
	b := start(t, spec{args: []string{"/" + workload.Burn, "0", "5"}, docker: true})
	a.stored(t, b.id, "profile of a container that only its cgroup tells of", func(p sink.Profile) bool { return p.Total > 0 })
	b.kill(t)
	a.stop(t)
}

func TestUnknownKeyIsNamedWithItsNeighbour(t *testing.T) {
	a := newAgent(t, options{extra: "samplign: {frequency: 97}\n"})
	a.start(t)
	if code := a.wait(t); code != 2 {
		t.Errorf("exit code %d, want 2", code)
	}
	for _, want := range []string{"samplign", "sampling", "stoker.yaml"} {
		if !strings.Contains(a.log.String(), want) {
			t.Errorf("the message does not say %q:\n%s", want, a.log.String())
		}
	}
}

// Without any capability an agent watches and says so, and a sampler for one command does not start: the machine cannot do it.
func TestNoCapabilities(t *testing.T) {
	wrap := []string{"setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"}
	a := newAgent(t, options{wrap: wrap})
	alone := exec.Command(wrap[0], append(wrap[1:], run.stoker, "record", "--own-sampler", "-d", "1s", "-o", "-", "--config", a.config)...)
	out, err := alone.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 4 || !strings.Contains(string(out), "CAP_BPF and CAP_PERFMON are missing") {
		t.Errorf("stoker record: %v, want exit code 4 and why: %s", err, out)
	}
	a.start(t)
	a.watches(t)
	a.says(t, "level=ERROR", "CAP_BPF")
	a.says(t, "level=ERROR", "CAP_PERFMON")
	a.stop(t)
}

// A store that cannot be read is set aside, with a line that says where to, and the agent starts a fresh one.
func TestUnreadableStoreIsSetAside(t *testing.T) {
	a := newAgent(t, options{})
	if err := os.WriteFile(a.store, []byte(strings.Repeat("this is no database ", 5000)), 0o600); err != nil {
		t.Fatal(err)
	}
	a.start(t)
	a.ready(t)
	a.says(t, a.store, "aside")
	b := start(t, spec{args: []string{"/" + workload.Burn, "0", "6"}})
	a.stored(t, b.id, "profile in the fresh store", func(p sink.Profile) bool { return p.Total > 0 })
	b.kill(t)
	a.stop(t)
	kept, err := filepath.Glob(a.store + "*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range kept {
		if text, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(text), "this is no database ") {
			return
		}
	}
	t.Errorf("the old file is gone; there are %v", kept)
}

// Whatever a server answers, profiles stay in the store and the agent says why they are not delivered.
func TestServerThatRefuses(t *testing.T) {
	for _, status := range []int{400, 401, 413, 429, 500} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			var asked atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				asked.Add(1)
				http.Error(w, "refused by the test", status)
			}))
			t.Cleanup(server.Close)
			a := pushingAgent(t, server.URL)
			a.says(t, fmt.Sprint(status))
			if asked.Load() == 0 {
				t.Error("the server was not asked")
			}
		})
	}
	t.Run("hangs", func(t *testing.T) {
		release := make(chan struct{})
		server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
		t.Cleanup(func() { close(release); server.Close() })
		a := pushingAgent(t, server.URL)
		a.says(t, "level=WARN", server.Listener.Addr().String())
	})
	t.Run("closes", func(t *testing.T) {
		server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
		t.Cleanup(server.Close)
		a := pushingAgent(t, server.URL)
		a.says(t, "level=WARN", server.Listener.Addr().String())
	})
	t.Run("is not there", func(t *testing.T) {
		server := httptest.NewServer(nil)
		server.Close()
		a := pushingAgent(t, server.URL)
		a.says(t, "level=WARN", server.Listener.Addr().String())
	})
}

// pushingAgent starts an agent that pushes to url, lets it take two windows of a busy container, and checks that they are in
// the store whatever the server does.
func pushingAgent(t *testing.T, url string) *agent {
	t.Helper()
	a := startAgent(t, options{window: time.Second, extra: fmt.Sprintf("pyroscope: {url: %q, remote_timeout: 10s}\n", url)})
	b := start(t, spec{args: []string{"/" + workload.Burn, "0", "7"}})
	a.stored(t, b.id, "second profile", func(p sink.Profile) bool { return p.Total > 0 })
	first := time.Now()
	a.stored(t, b.id, "later profile", func(p sink.Profile) bool { return p.Start.After(first) })
	return a
}

// A store that cannot be opened is said, shown and tried again; meanwhile everything else works.
func TestStoreThatCannotBe(t *testing.T) {
	a := newAgent(t, options{window: time.Second})
	if err := os.Mkdir(a.store, 0o755); err != nil {
		t.Fatal(err)
	}
	a.start(t)
	a.says(t, "level=ERROR", a.store)
	b := start(t, spec{args: []string{"/" + workload.Burn, "0", "11"}})
	eventually(t, 20*time.Second, "live table", func() error {
		top, err := a.get("/api/v1/top")
		if err == nil && !strings.Contains(string(top), b.id) {
			err = fmt.Errorf("no %s in %s", b.id, top)
		}
		return err
	})
	if _, err := a.get("/healthz"); err == nil || !strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), a.store) {
		t.Errorf("/healthz: %v, want 503 and the store's name", err)
	}
	if err := os.Remove(a.store); err != nil {
		t.Fatal(err)
	}
	a.stored(t, b.id, "profile once the store can be", func(p sink.Profile) bool { return p.Total > 0 })
	b.kill(t)
	a.stop(t)
}

// A containerd socket that we may not use: as a user who is not root, with the capabilities and without the group.
func TestContainerdSocketForbidden(t *testing.T) {
	caps := "-all,+bpf,+perfmon,+sys_ptrace,+checkpoint_restore,+syslog"
	a := newAgent(t, options{targets: "[]", wrap: []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
		"--inh-caps=" + caps, "--ambient-caps=" + caps, "--bounding-set=" + caps}})
	open := func(path string) {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	// The test's own directories are root's; the agent has to reach its configuration and make its store.
	open(a.dir)
	open(filepath.Dir(a.dir))
	open(filepath.Dir(a.socket))
	open(run.dir)
	a.start(t)
	a.ready(t)
	a.says(t, "level=WARN", run.daemon.socket(), "permission denied")
	b := start(t, spec{args: []string{"/" + workload.Burn, "0", "8"}, docker: true})
	a.stored(t, b.id, "profile of a container that only its cgroup tells of", func(p sink.Profile) bool { return p.Total > 0 })
	b.kill(t)
	a.stop(t)
}
