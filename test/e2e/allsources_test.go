//go:build root

package e2e

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stoker-profiler/stoker/hook/oci/wire"
	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/sink/web"
	"github.com/stoker-profiler/stoker/test/critest"
	"github.com/stoker-profiler/stoker/test/dockertest"
	"github.com/stoker-profiler/stoker/test/podmantest"
	"github.com/stoker-profiler/stoker/test/workload"
)

// engine is one of the engines on the node, as this test needs it.
type engine struct {
	name    string
	needs   string                                       // another engine without which it starts nothing
	run     func(t *testing.T, n int, name string) *tool // a container that burns CPU in unique_N
	sources []string                                     // who has to tell about it
	labels  map[string]string                            // of its profiles
	pause   func() error
	resume  func() error
	kill    func() error
	restart func(context.Context) error
}

// tool is a container of any engine.
type tool struct {
	id, name string
	engine   *engine
	n        int
	remove   func(context.Context) error
	scope    uint32
}

// Every source at once: containerd 1.6 with a dockerd on it, containerd 2.4 with pods, NRI and hooks, Podman, the cgroup tree. Each container is one
// record with all its sources, in scope in time and with its own samples, while one engine after the other hangs, is killed and
// comes back.
func TestAllSourcesAtOnce(t *testing.T) {
	old := startDaemon(t)
	docker := dockertest.NewForTest(t, old.d)
	if err := docker.Load(t.Context(), run.image); err != nil {
		t.Fatal(err)
	}
	a := newAgent(t, options{})
	hook := filepath.Join(run.dir, "stoker-hook")
	build := exec.Command("go", "build", "-o", hook, "github.com/stoker-profiler/stoker/cmd/stoker-hook")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build stoker-hook: %v\n%s", err, out)
	}
	pods := critest.NewForTest(t, critest.Options{BaseSpec: func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: hook, Env: []string{wire.SocketVariable + "=" + a.hook}}}}
	}})
	if err := pods.Image(run.image); err != nil {
		t.Fatal(err)
	}
	podman := podmantest.NewForTest(t)
	if err := podman.Load(t.Context(), run.image); err != nil {
		t.Fatal(err)
	}
	if err := podman.StartService(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.opts.socket, a.opts.docker = fmt.Sprintf("[%s, %s]", old.socket(), pods.Socket()), docker.Socket()
	a.opts.runtimes = fmt.Sprintf(", nri: {enabled: true, socket: %s}, podman: {address: %s}", pods.NRISocket(), podman.Socket())
	a.configure(t)
	a.start(t)
	a.ready(t)
	burn := func(n int) []string { return []string{"/" + workload.Burn, "0", fmt.Sprint(n)} }
	mine := map[string]string{testLabel: t.Name()}
	engines := []*engine{
		{
			name: "containerd", sources: []string{"containerd"}, labels: map[string]string{"container_runtime": "containerd", "container_image": imageRef},
			run: func(t *testing.T, n int, _ string) *tool {
				b := old.start(t, spec{args: burn(n)})
				return &tool{id: b.id, remove: b.c.Delete}
			},
			pause: old.d.PauseDaemon, resume: old.d.ResumeDaemon, kill: old.d.KillDaemon, restart: old.d.StartDaemon,
		},
		{
			name: "docker", needs: "containerd", sources: []string{"cgroup", "containerd", "docker"},
			labels: map[string]string{"container_runtime": "docker", "container_image": imageRef},
			run: func(t *testing.T, n int, name string) *tool {
				id, err := docker.Run(t.Context(), dockertest.Spec{Name: name, Image: imageRef, Args: burn(n), Labels: mine})
				if err != nil {
					t.Fatal(err)
				}
				return &tool{id: id, name: name, remove: func(ctx context.Context) error {
					_, err := docker.Docker(ctx, "rm", "--force", id)
					return err
				}}
			},
			pause: docker.PauseDaemon, resume: docker.ResumeDaemon, kill: docker.KillDaemon, restart: docker.StartDaemon,
		},
		{
			name: "pods", sources: []string{"cgroup", "containerd:" + pods.Socket(), "hook", "nri"},
			labels: map[string]string{"container_runtime": "containerd", "namespace": "shop", "container": "main"},
			run: func(t *testing.T, n int, name string) *tool {
				pod, err := pods.RunPod(t.Context(), critest.PodSpec{Name: name, Namespace: "shop", Labels: mine})
				if err != nil {
					t.Fatal(err)
				}
				c, err := pod.Run(t.Context(), critest.ContainerSpec{Name: "main", Image: imageRef, Args: burn(n), Labels: mine})
				if err != nil {
					t.Fatal(err)
				}
				return &tool{id: c.ID(), remove: pod.Remove}
			},
			pause: pods.PauseDaemon, resume: pods.ResumeDaemon, kill: pods.KillDaemon, restart: pods.StartDaemon,
		},
		{
			name: "podman", sources: []string{"cgroup", "podman"}, labels: map[string]string{"container_runtime": "podman", "container_image": imageRef},
			run: func(t *testing.T, n int, name string) *tool {
				id, err := podman.Run(t.Context(), podmantest.Spec{Name: name, Image: imageRef, Args: burn(n), Labels: mine})
				if err != nil {
					t.Fatal(err)
				}
				return &tool{id: id, name: name, remove: func(ctx context.Context) error {
					_, err := podman.Podman(ctx, "rm", "--force", "--time", "0", id)
					return err
				}}
			},
			pause: podman.PauseDaemon, resume: podman.ResumeDaemon, kill: podman.StopService, restart: podman.StartService,
		},
	}
	var all []*tool
	start := func(e *engine, while string) *tool {
		t.Helper()
		n := len(all)
		x := e.run(t, n, fmt.Sprintf("stoker-all-%d-%d", os.Getpid(), n))
		x.engine, x.n = e, n
		all = append(all, x)
		c := a.becomes(t, x.id, fmt.Sprintf("a container of %s is in scope while %s", e.name, while), func(c web.Container) bool {
			return !c.InScopeAt.IsZero() && c.State != "gone"
		})
		if ms := c.ScopeAfterStartMS; ms != nil {
			t.Logf("%s, while %s: in scope %.1f ms after its start, found by %s", e.name, while, *ms, strings.Join(slices.Sorted(maps.Keys(c.Sources)), ", "))
			// No bar on a machine that does other things: but what waits for an engine that hangs waits for its timeouts.
			if *ms > 2000 {
				t.Errorf("a container of %s came in scope %.1f ms after its start, while %s", e.name, *ms, while)
			}
		}
		return x
	}
	// complete waits until everybody has told about a container, in one record.
	complete := func(x *tool) {
		t.Helper()
		c := a.becomes(t, x.id, fmt.Sprintf("all sources have told about a container of %s", x.engine.name), func(c web.Container) bool {
			return c.State == "profiled" && slices.Equal(slices.Sorted(maps.Keys(c.Sources)), x.engine.sources) && (x.name == "" || c.Name == x.name)
		})
		x.scope = c.ScopeID
	}
	once := func(when string) {
		t.Helper()
		seen := map[string]int{}
		for _, c := range a.known(t) {
			if c.GoneAt.IsZero() && c.State != "excluded" {
				seen[c.ID]++
			}
		}
		for _, x := range all {
			if n := seen[x.id]; n > 1 {
				t.Errorf("%s: container %s of %s is listed %d times", when, x.id, x.engine.name, n)
			}
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	var first []*tool
	for _, e := range engines {
		x := start(e, "all is well")
		complete(x)
		first = append(first, x)
		a.stored(t, x.id, "a profile of a container of "+e.name, func(p sink.Profile) bool { return p.Total > 0 })
	}
	once("at first")

	// One engine after the other hangs: the others' containers come in scope as if it were not there.
	for _, hung := range engines {
		must(hung.pause())
		var made []*tool
		for _, e := range engines {
			if e != hung && e.needs != hung.name {
				made = append(made, start(e, hung.name+" hangs"))
			}
		}
		must(hung.resume())
		for _, x := range made {
			complete(x)
			must(x.remove(t.Context()))
		}
	}
	once("after engines have hung")

	// One after the other is killed and comes back: what runs stays what it is, what comes is found.
	for i, e := range engines {
		if e.name == "containerd" {
			must(engines[1].kill()) // dockerd does not survive it
		}
		var lost *tool
		if e.name == "pods" {
			lost = start(e, "all is well")
			complete(lost)
		}
		must(e.kill())
		if lost != nil { // it ends while nobody who would tell is there
			pid, err := processOf(a, t, lost.id)
			must(err)
			must(syscall.Kill(pid, syscall.SIGKILL))
		}
		must(e.restart(t.Context()))
		if e.name == "containerd" {
			must(engines[1].restart(t.Context()))
		}
		complete(start(e, e.name+" is back"))
		c := a.becomes(t, first[i].id, "a container outlives its engine", func(c web.Container) bool { return c.State == "profiled" })
		if c.ScopeID != first[i].scope {
			t.Errorf("a container of %s has scope %d after its engine was killed, before it had %d", e.name, c.ScopeID, first[i].scope)
		}
		if lost != nil {
			eventually(t, 2*time.Minute, "a container that ended while its engine was away is gone", func() error {
				for _, c := range a.known(t) {
					if c.ID == lost.id && c.GoneAt.IsZero() {
						return fmt.Errorf("it is %s, told by %v", c.State, c.Sources)
					}
				}
				return nil
			})
		}
	}
	once("after engines were killed")
	sources, errs, code := a.command(t, "ps", "--sources")
	if code != 0 {
		t.Errorf("stoker ps --sources: exit code %d: %s", code, errs)
	}
	t.Logf("\n%s", sources)
	for _, x := range first {
		a.stored(t, x.id, "a profile of after all that", func(p sink.Profile) bool { return p.Start.After(time.Now().Add(-2 * a.opts.window)) })
		if x.engine.name == "docker" {
			must(x.remove(t.Context()))
		}
	}
	a.stop(t)

	for _, x := range all {
		profiles := a.profiles(t, x.id)
		pic := look(t, profiles)
		own := fmt.Sprintf("unique_%d", x.n)
		for name := range pic.cum {
			if strings.HasPrefix(name, "unique_") && name != own {
				t.Errorf("container %d of %s has %s\n%s", x.n, x.engine.name, name, pic)
			}
		}
		for _, p := range profiles {
			for label, want := range x.engine.labels {
				if p.Labels[label] != want {
					t.Errorf("label %s of a container of %s is %q, want %q; all: %v", label, x.engine.name, p.Labels[label], want, p.Labels)
				}
			}
		}
		if slices.Contains(first, x) && pic.cum[own] == 0 {
			t.Errorf("container %d of %s has no samples of its own:\n%s", x.n, x.engine.name, pic)
		}
	}
}

// processOf is the first process of a container, as the agent knows it.
func processOf(a *agent, t *testing.T, id string) (int, error) {
	t.Helper()
	for _, c := range a.known(t) {
		if c.ID == id && c.PID != 0 {
			return c.PID, nil
		}
	}
	return 0, fmt.Errorf("the agent knows no process of container %s", id)
}
