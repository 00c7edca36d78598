//go:build root

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stoker-profiler/stoker/hook/oci/wire"
	"github.com/stoker-profiler/stoker/internal/unixsocket"
	"github.com/stoker-profiler/stoker/sink/web"
	"github.com/stoker-profiler/stoker/test/critest"
	"github.com/stoker-profiler/stoker/test/podmantest"
	"github.com/stoker-profiler/stoker/test/runctest"
	"github.com/stoker-profiler/stoker/test/workload"
)

// hookBinary builds the hook where `stoker hook install` accepts it: not below /tmp, which engines may not see.
func hookBinary(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/lib", "stoker-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "stoker-hook")
	build := exec.Command("go", "build", "-o", path, "github.com/stoker-profiler/stoker/cmd/stoker-hook")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the hook: %v\n%s", err, out)
	}
	return path
}

// hookCases reads what the agent has counted about hooks.
func (a *agent) hookCases(t *testing.T) map[string]int {
	t.Helper()
	page, err := a.get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for line := range strings.Lines(string(page)) {
		rest, ok := strings.CutPrefix(line, `stoker_source_cases_total{case="`)
		name, rest, ok2 := strings.Cut(rest, `",source="hook"} `)
		if !ok || !ok2 {
			continue
		}
		if counts[name], err = strconv.Atoi(strings.TrimSpace(rest)); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
	}
	return counts
}

// brief is one container of 100 ms of CPU in unique_N, announced by the hook.
type brief struct {
	id      string
	n       int
	started time.Time // when its program began, as the container itself or its engine says
}

// wantBrief checks that all were in scope before they started, and have samples under their own labels, and nobody else's.
func (a *agent) wantBrief(t *testing.T, all []brief, found map[string]web.Container, labels func(brief) map[string]string) {
	t.Helper()
	var lead []time.Duration
	sampled := 0
	for _, b := range all {
		c := found[b.id]
		if _, ok := c.Sources["hook"]; !ok || c.InScopeAt.IsZero() {
			t.Errorf("container %d: in scope at %v, found by %v", b.n, c.InScopeAt, c.Sources)
			continue
		}
		if !c.InScopeAt.Before(b.started) {
			t.Errorf("container %d came in scope %s after its start", b.n, c.InScopeAt.Sub(b.started))
		}
		lead = append(lead, b.started.Sub(c.InScopeAt))
		profiles := a.profiles(t, b.id)
		total := int64(0)
		for _, p := range profiles {
			total += p.Total
			for label, want := range labels(b) {
				if p.Labels[label] != want {
					t.Errorf("label %s of container %d is %q, want %q; all: %v", label, b.n, p.Labels[label], want, p.Labels)
				}
			}
		}
		for name := range look(t, profiles).cum {
			if strings.HasPrefix(name, "unique_") && name != fmt.Sprintf("unique_%d", b.n%20) {
				t.Errorf("container %d has %s", b.n, name)
			}
		}
		if total > 0 {
			sampled++
		}
		if total > int64(400*time.Millisecond) {
			t.Errorf("container %d has %s of CPU in profiles, and asked for 100 ms", b.n, time.Duration(total))
		}
	}
	if sampled != len(all) {
		t.Errorf("%d of %d containers have samples", sampled, len(all))
	}
	if slices.Sort(lead); len(lead) > 0 {
		t.Logf("start − scope over %d containers: least %s, p50 %s, p99 %s; %d have samples", len(lead), lead[0], quantile(lead, 50), quantile(lead, 99), sampled)
	}
}

// By the hook that `stoker hook install` puts in front of Podman's containers: each is in scope before its first instruction, which
// writes down when that was.
func TestPodmansContainersAreInScopeBeforeTheirFirstInstructionByTheHook(t *testing.T) {
	const runs = 30
	binary, hooks := hookBinary(t), t.TempDir()
	e := podmantest.NewForTest(t, "--hooks-dir", hooks)
	if err := e.Load(t.Context(), run.image); err != nil {
		t.Fatal(err)
	}
	a := startAgent(t, options{socket: "off", targets: "[]"})
	hook := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(run.stoker, append(append([]string{"hook"}, args...), "--runtime", "podman", "--hooks-dir", hooks, "--binary", binary)...)
		cmd.Env = append(os.Environ(), "STOKER_CONFIG="+a.config)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("stoker hook %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	if out := hook("install", "--dry-run"); !strings.Contains(out, "+    \"path\": \""+binary+"\"") {
		t.Errorf("install --dry-run:\n%s", out)
	}
	hook("install")
	var status []struct {
		Installed, UpToDate bool
		SocketErr           string `json:"socket_error"`
	}
	if err := json.Unmarshal([]byte(hook("status", "--output", "json")), &status); err != nil || len(status) != 1 || !status[0].Installed || status[0].SocketErr != "" {
		t.Errorf("status %+v, %v", status, err)
	}
	var all []brief
	found := map[string]web.Container{}
	start := func(n int) (id, out string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "id")
		out, err := e.Podman(t.Context(), "run", "--rm", "--cidfile", file, "--annotation", fmt.Sprintf("stoker.service=hook-%d", n), imageRef,
			"/"+workload.Now, "/"+workload.Burn, "100", fmt.Sprint(n%20))
		if err != nil {
			t.Fatalf("container %d does not run: %v", n, err)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b)), strings.TrimSpace(out)
	}
	for n := range runs {
		id, out := start(n)
		ns, err := strconv.ParseInt(out, 10, 64)
		if err != nil {
			t.Fatalf("container %d wrote %q", n, out)
		}
		all = append(all, brief{id: id, n: n, started: time.Unix(0, ns)})
		for _, c := range a.known(t) {
			found[c.ID] = c
		}
	}
	if counts := a.hookCases(t); counts["announced"] != runs {
		t.Errorf("counts %v", counts)
	}
	// The file first, then the program: containers start on. The other way round none would.
	hook("uninstall")
	if left, err := os.ReadDir(hooks); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := os.Remove(binary); err != nil {
		t.Fatal(err)
	}
	start(runs)
	if counts := a.hookCases(t); counts["announced"] != runs {
		t.Errorf("announced after uninstall: %v", counts)
	}
	a.stop(t)
	a.wantBrief(t, all, found, func(b brief) map[string]string {
		return map[string]string{"service_name": fmt.Sprintf("hook-%d", b.n), "container_runtime": "podman"}
	})
}

// By the hook in containerd's base_runtime_spec, with nobody else who tells but the cgroup tree.
func TestPodsAreInScopeBeforeTheirFirstInstructionByTheHook(t *testing.T) {
	const runs = 30
	binary := hookBinary(t)
	a := newAgent(t, options{socket: "off", targets: "[]"})
	within := 2 // seconds
	d := startPods(t, critest.Options{BaseSpec: func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: binary, Env: []string{"GOMAXPROCS=1", wire.SocketVariable + "=" + a.hook}, Timeout: &within}}}
	}})
	started := watchStarts(t, d.Socket())
	a.start(t)
	a.ready(t)
	pod, err := d.RunPod(t.Context(), critest.PodSpec{Name: "jobs-0", Namespace: "batch"})
	if err != nil {
		t.Fatal(err)
	}
	var all []brief
	found := map[string]web.Container{}
	for n := range runs {
		c, err := pod.Run(t.Context(), critest.ContainerSpec{Name: fmt.Sprintf("job-%d", n), Image: imageRef, Args: []string{"/" + workload.Burn, "100", fmt.Sprint(n % 20)}})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, c := range a.known(t) {
			found[c.ID] = c
		}
		if err := c.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		b := brief{id: c.ID(), n: n}
		eventually(t, time.Minute, "containerd says when it started the container", func() (err error) {
			at, ok := started.of(b.id)
			if b.started = at; !ok {
				err = fmt.Errorf("not for container %d", n)
			}
			return err
		})
		all = append(all, b)
	}
	if counts := a.hookCases(t); counts["announced"] != runs {
		t.Errorf("counts %v", counts)
	}
	a.stop(t)
	a.wantBrief(t, all, found, func(b brief) map[string]string {
		return map[string]string{"service_name": fmt.Sprintf("batch/job-%d", b.n), "namespace": "batch", "pod": "jobs-0", "container": fmt.Sprintf("job-%d", b.n),
			"container_runtime": "containerd", "container_image": imageRef}
	})
}

// Whatever happens to the agent, all containers start, and none waits longer than the hook may.
func TestContainersStartWhateverHappensToTheAgent(t *testing.T) {
	const containers, abreast = 100, 4
	binary := hookBinary(t)
	r := runctest.NewForTest(t)
	a := startAgent(t, options{socket: "off", targets: "[]"})
	// As /run/stoker is: everybody reaches the socket.
	if err := os.Chmod(filepath.Dir(a.hook), 0o755); err != nil {
		t.Fatal(err)
	}
	full := filepath.Join(filepath.Dir(a.hook), "full.sock")
	l, err := unixsocket.Listen(full, unixsocket.Config{Network: "unixpacket", Mode: 0o666, Backlog: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 2 { // nobody accepts them
		c, err := net.DialTimeout("unixpacket", full, time.Second)
		if err != nil {
			break // it is full
		}
		defer c.Close()
	}
	long := func(bytes int) map[string]string {
		return map[string]string{"a": strings.Repeat("x", bytes), "stoker.service": "long"}
	}
	starts := 0
	start := func(what, socket string, annotations map[string]string) {
		t.Helper()
		starts++
		var wg sync.WaitGroup
		next := make(chan int)
		took := make([]time.Duration, containers)
		for range abreast {
			wg.Go(func() {
				for n := range next {
					out, d, err := r.Run(t.Context(), runctest.Spec{
						ID: fmt.Sprintf("stoker-e2e-%d-%d-%d", os.Getpid(), starts, n), Args: []string{"/bin/echo", "runs"}, Annotations: annotations,
						CreateRuntime: []runctest.Hook{{Path: binary, Args: []string{"stoker-hook"}, Env: []string{"GOMAXPROCS=1", wire.SocketVariable + "=" + socket}, Timeout: 2}},
					})
					if took[n] = d; err != nil || string(out) != "runs\n" {
						t.Errorf("%s: container %d does not start: %v, %q", what, n, err, out)
					}
				}
			})
		}
		for n := range containers {
			next <- n
		}
		close(next)
		wg.Wait()
		slices.Sort(took)
		t.Logf("%d containers, %d abreast, %s: p50 %s, p99 %s", containers, abreast, what, quantile(took, 50), quantile(took, 99))
	}
	// alone is how long the hook itself takes, once for no container that there is, thirty times.
	alone := func(what, socket string) time.Duration {
		t.Helper()
		var took []time.Duration
		for range 30 {
			cmd := exec.Command(binary)
			cmd.Env = []string{"GOMAXPROCS=1", wire.SocketVariable + "=" + socket}
			cmd.Stdin = strings.NewReader(`{"id":"none","pid":1}`)
			began := time.Now()
			if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
				t.Fatalf("%s: the hook fails: %v, %q", what, err, out)
			}
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		t.Logf("the hook alone, %s: least %s, p50 %s, p99 %s", what, took[0], quantile(took, 50), quantile(took, 99))
		return quantile(took, 50)
	}

	start("the agent runs", a.hook, nil)
	start("64 KiB of annotations", a.hook, long(64<<10))
	start("2 MiB of annotations", a.hook, long(2<<20))
	// On a machine that is as busy as this one some hooks give up waiting, and their containers have ended when the agent looks. Every
	// message is there all the same.
	eventually(t, time.Minute, "all have told the agent", func() error {
		if counts := a.hookCases(t); counts["announced"]+counts["refused_gone"] != 3*containers || counts["announced"] < 2*containers {
			return fmt.Errorf("counts %v", counts)
		}
		return nil
	})
	start("the socket's queue is full", full, nil)
	alone("the socket's queue is full", full)
	missing := filepath.Join(filepath.Dir(a.hook), "missing.sock")
	start("no socket", missing, nil)
	none := alone("no socket", missing)
	// As a rootless engine runs it: a user without rights, alone in a user namespace.
	for _, socket := range []string{a.hook, missing, "/root/hidden/hook.sock"} {
		cmd := exec.Command("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", "unshare", "--user", "--map-root-user", binary)
		cmd.Env = append(os.Environ(), wire.SocketVariable+"="+socket)
		cmd.Stdin = strings.NewReader(fmt.Sprintf(`{"id":"none","pid":%d}`, os.Getpid()))
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("the hook of a user, %s: %v, %q", socket, err, out)
		}
	}
	eventually(t, time.Minute, "what the user says of root's process is refused", func() error {
		if counts := a.hookCases(t); counts["refused_stranger"] != 1 {
			return fmt.Errorf("counts %v", counts)
		}
		return nil
	})

	if err := a.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	start("the agent is stopped (SIGSTOP)", a.hook, nil)
	stopped := alone("the agent is stopped (SIGSTOP)", a.hook)
	if err := a.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// The bar, of the hook's wait, over what the same process takes without.
	if wait := stopped - none; wait > 21*time.Millisecond {
		t.Errorf("the hook waits %s for an agent that is stopped, want 20 ms", wait)
	}
	a.kill(t)
	start("the agent was killed and its socket is there", a.hook, nil)
	alone("the agent was killed and its socket is there", a.hook)
}
