//go:build root

package podman

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/internal/sourcetest"
	"github.com/stoker-profiler/stoker/runtime/registry"
	"github.com/stoker-profiler/stoker/test/containerdtest"
	"github.com/stoker-profiler/stoker/test/podmantest"
)

const image = "localhost/stoker-test:1"

// private is a private Podman with a source that follows it.
func private(t *testing.T, scan bool) (*podmantest.Engine, *bench) {
	t.Helper()
	e := podmantest.NewForTest(t)
	must(t, e.Load(t.Context(), containerdtest.Image{Ref: image, Cmd: []string{"/bin/sleep", "1000"}, Labels: map[string]string{"name": "of the image"}}))
	h, err := cgroupfs.Detect()
	must(t, err)
	b := newBench(t, New(Config{Addresses: []string{e.Socket()}, Hierarchy: h}))
	if scan {
		sourcetest.Run(t, cgroupfs.NewScanner(h, nil), b.emit)
	}
	return e, b
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func runContainer(t *testing.T, e *podmantest.Engine, s podmantest.Spec) string {
	t.Helper()
	s.Image = image
	s.Name = fmt.Sprintf("stoker-test-%d-%s", os.Getpid(), s.Name)
	id, err := e.Run(t.Context(), s)
	must(t, err)
	return id
}

// Without a service and with one, before the source and after it: names, labels, image, pod, unit, environment, cgroup, end.
func TestRealContainers(t *testing.T) {
	for _, c := range []struct {
		name          string
		service, scan bool
	}{{"files", false, true}, {"service", true, true}, {"service alone", true, false}} {
		t.Run(c.name, func(t *testing.T) {
			e, b := private(t, c.scan)
			ctx := t.Context()
			if c.service {
				must(t, e.StartService(ctx))
			}
			spec := podmantest.Spec{Name: "early", Labels: map[string]string{"team": "blue", "PODMAN_SYSTEMD_UNIT": "web.service"},
				Env: []string{"OTEL_SERVICE_NAME=shop", "PASSWORD=x"}, Options: []string{"--annotation", "a.b=c"}}
			early := runContainer(t, e, spec)
			b.run()
			b.State(early, registry.Profiled)
			spec.Name = "late"
			late := runContainer(t, e, spec)
			_, err := e.Podman(ctx, "pod", "create", "--name", "stoker-pod", "--infra-image", image, "--share", "ipc")
			must(t, err)
			member := runContainer(t, e, podmantest.Spec{Name: "member", Options: []string{"--pod", "stoker-pod", "--rm"}})
			for id, name := range map[string]string{early: "-early", late: "-late", member: "-member"} {
				rec := b.Until(id, "it is described", func(rec registry.Record) bool { return rec.State == registry.Profiled && rec.Labels != nil })
				cgroup, err := podmantest.CgroupID(id)
				must(t, err)
				if !strings.HasSuffix(rec.Name, name) || rec.Image != image || rec.Runtime != "podman" || rec.CgroupID != cgroup || rec.PID == 0 || rec.User != "" ||
					rec.CreatedAt.IsZero() || rec.TaskCreatedAt.IsZero() || len(b.All(id)) != 1 {
					t.Errorf("record %+v", rec)
				}
				if id == member {
					if rec.Pod.Name != "stoker-pod" || len(rec.Pod.UID) != 64 {
						t.Errorf("pod %+v", rec.Pod)
					}
					continue
				}
				// Events lose the label that is called as a field of theirs; asking and the file of events do not.
				rec = b.Until(id, "it has its labels", func(rec registry.Record) bool { return len(rec.Labels) == 3 })
				if rec.Labels["team"] != "blue" || rec.Labels["name"] != "of the image" || rec.SystemdUnit != "web.service" ||
					rec.Annotations["a.b"] != "c" || len(rec.Env) != 1 || rec.Env["OTEL_SERVICE_NAME"] != "shop" {
					t.Errorf("record %+v", rec)
				}
			}
			sourcetest.Eventually(t, "the pod's pause container is one", func() bool { return b.sandboxes() == 1 })
			_, err = e.Podman(ctx, "rename", late, "stoker-renamed")
			must(t, err)
			if c.service {
				b.Until(late, "it has its new name", func(rec registry.Record) bool { return rec.Name == "stoker-renamed" })
			}
			// A restart is another run.
			first := b.State(late, registry.Profiled)
			_, err = e.Podman(ctx, "restart", "--time", "0", late)
			must(t, err)
			rec := b.Until(late, "it runs again", func(rec registry.Record) bool {
				return rec.State == registry.Profiled && rec.CgroupID != first.CgroupID && rec.PID != 0 && rec.PID != first.PID && rec.Name == "stoker-renamed"
			})
			if cgroup, err := podmantest.CgroupID(late); err != nil || rec.CgroupID != cgroup || rec.Labels["team"] != "blue" {
				t.Errorf("record %+v; %v", rec, err)
			}
			_, err = e.Podman(ctx, "rm", "--force", "--time", "0", early)
			must(t, err)
			b.State(early, registry.Gone)
			if _, ok := b.Find(late); !ok || !b.Scopes.Has(rec.CgroupID) || b.Scopes.Has(first.CgroupID) {
				t.Error("the kernel's scopes do not follow")
			}
		})
	}
}

// A container in a cgroup with others is told with the reason, and never in scope.
func TestRealContainerWithoutACgroup(t *testing.T) {
	for _, service := range []bool{false, true} {
		t.Run(fmt.Sprint("service ", service), func(t *testing.T) {
			e, b := private(t, true)
			if service {
				must(t, e.StartService(t.Context()))
			}
			b.source.tune = func(c *client) { c.times.look = 50 * time.Millisecond }
			b.run()
			id := runContainer(t, e, podmantest.Spec{Name: "bare", NoCgroup: true, Labels: map[string]string{"team": "blue"}})
			rec := b.State(id, registry.Excluded)
			if rec.CgroupID != 0 || !strings.Contains(rec.NoCgroup, "--cgroups=disabled") || !strings.Contains(rec.NoCgroup, "/stoker-podman-") ||
				!strings.HasSuffix(rec.Name, "-bare") || rec.Labels["team"] != "blue" || rec.PID == 0 {
				t.Errorf("record %+v", rec)
			}
			_, err := e.Podman(t.Context(), "rm", "--force", "--time", "0", id)
			must(t, err)
			b.State(id, registry.Gone)
		})
	}
}

// A service that comes, hangs and goes: what runs stays known, and what is new is named from the files.
func TestRealServiceThatHangs(t *testing.T) {
	e, b := private(t, true)
	ctx := t.Context()
	b.source.tune = func(c *client) {
		c.times.call, c.times.list, c.times.service, c.times.again = 500*time.Millisecond, 500*time.Millisecond, 20*time.Millisecond, 2*time.Second
		c.loop.Times.ListEvery = 100 * time.Millisecond
	}
	b.run()
	one := runContainer(t, e, podmantest.Spec{Name: "one"})
	b.State(one, registry.Profiled)
	must(t, e.StartService(ctx))
	sourcetest.Eventually(t, "the service is followed", func() bool { return strings.Contains(b.log.String(), "api=4") })
	two := runContainer(t, e, podmantest.Spec{Name: "two", Labels: map[string]string{"team": "blue"}})
	b.Until(two, "it is described", func(rec registry.Record) bool { return rec.State == registry.Profiled && rec.Labels["team"] == "blue" })
	must(t, e.PauseDaemon())
	sourcetest.Eventually(t, "the hang is noticed", func() bool { return strings.Contains(b.log.String(), "does not answer") })
	three := runContainer(t, e, podmantest.Spec{Name: "three", Labels: map[string]string{"team": "red"}})
	b.Until(three, "it is described", func(rec registry.Record) bool { return rec.State == registry.Profiled && rec.Labels["team"] == "red" })
	must(t, e.ResumeDaemon())
	must(t, e.StopService())
	four := runContainer(t, e, podmantest.Spec{Name: "four", Labels: map[string]string{"team": "green"}})
	b.Until(four, "it is described", func(rec registry.Record) bool { return rec.State == registry.Profiled && rec.Labels["team"] == "green" })
	for _, id := range []string{one, two, three, four} {
		if b.State(id, registry.Profiled); len(b.All(id)) != 1 {
			t.Errorf("%d records of %s", len(b.All(id)), id)
		}
	}
}

// How soon containers are in scope and named. Reported, not asserted, but for what must be: nobody is lost.
func TestRealStartsAreInScope(t *testing.T) {
	e, b := private(t, true)
	b.run()
	const n = 10
	var scope, named []time.Duration
	before := 0
	for i := range n {
		began := time.Now()
		id := runContainer(t, e, podmantest.Spec{Name: fmt.Sprint("c", i)})
		rec := b.Until(id, "it is named", func(rec registry.Record) bool { return rec.State == registry.Profiled && rec.Name != "" })
		named = append(named, time.Since(began))
		out, err := e.Podman(t.Context(), "inspect", "--format", "{{.State.StartedAt.Format \"2006-01-02T15:04:05.999999999Z07:00\"}}", id)
		must(t, err)
		started, err := time.Parse(time.RFC3339Nano, strings.TrimSpace(out))
		must(t, err)
		scope = append(scope, rec.InScopeAt.Sub(started))
		if rec.InScopeAt.Before(started) {
			before++
		}
	}
	slices.Sort(scope)
	slices.Sort(named)
	t.Logf("of %d starts, from what Podman calls the start to in scope: p50 %v, max %v; in scope before it: %d; from `podman run` to named: p50 %v, max %v",
		n, scope[n/2], scope[n-1], before, named[n/2], named[n-1])
}

// listenAs has this test listen for another one.
const listenAs = "STOKER_TEST_LISTEN"

// A socket whose path is a user's may have another user behind it: what that one says is not that user's.
func TestAnotherUserListens(t *testing.T) {
	if path := os.Getenv(listenAs); path != "" {
		l, err := net.Listen("unix", path)
		must(t, err)
		conn, err := l.Accept()
		must(t, err)
		_, err = io.Copy(io.Discard, conn)
		must(t, err)
		return
	}
	dir, err := os.MkdirTemp("", "podman-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o777))
	program := filepath.Join(dir, "test") // the test's own directory may not be that user's to enter
	own, err := os.Executable()
	must(t, err)
	b, err := os.ReadFile(own)
	must(t, err)
	must(t, os.WriteFile(program, b, 0o755))
	const nobody = 65534
	cmd := exec.Command(program, "-test.run", "^"+t.Name()+"$")
	cmd.Dir = dir
	cmd.Env = []string{listenAs + "=" + filepath.Join(dir, "s"), "PATH=/usr/bin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out := &logBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	must(t, cmd.Start())
	defer cmd.Wait()
	defer cmd.Process.Kill()
	var conn net.Conn
	sourcetest.Eventually(t, "somebody listens", func() bool {
		conn, err = dial(t.Context(), filepath.Join(dir, "s"), 1000)
		return conn != nil || errors.Is(err, errNotOwner)
	})
	if conn != nil || !errors.Is(err, errNotOwner) {
		t.Errorf("nobody passes for user 1000: %v, %v; it wrote:\n%s", conn, err, out)
	}
}

func (b *bench) sandboxes() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.pause)
}
