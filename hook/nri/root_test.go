//go:build root

package nri

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/containerd"
	"github.com/stoker-profiler/stoker/runtime/registry"
	"github.com/stoker-profiler/stoker/test/containerdtest"
	"github.com/stoker-profiler/stoker/test/critest"
)

const image = "localhost/nri-test:1"

func private(t *testing.T) *critest.Daemon {
	t.Helper()
	d := critest.NewForTest(t, critest.Options{})
	if err := d.Image(containerdtest.Image{Ref: image, Labels: map[string]string{"org.example.image": "yes"}}); err != nil {
		t.Fatal(err)
	}
	return d
}

// scopes count what is in scope.
type scopes struct {
	mu sync.Mutex // protects what follows
	n  uint32
	in map[uint64]bool
}

func (s *scopes) Add(id uint64, _ uint32) (uint32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	s.in[id] = true
	return s.n, nil
}

func (s *scopes) Bar(id uint64) error { return s.Remove(id) }

func (s *scopes) Remove(id uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.in, id)
	return nil
}

// node is a registry with sources that run, and what each said.
type node struct {
	*registry.Registry
	t *testing.T

	mu   sync.Mutex // protects said
	said map[string][]container.Event
}

func newNode(t *testing.T, sources ...container.Source) *node {
	t.Helper()
	n := &node{t: t, Registry: registry.New(registry.Config{Scopes: &scopes{in: map[uint64]bool{}}, Frequency: 97}), said: map[string][]container.Event{}}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, s := range sources {
		running.Go(func() { _ = s.Run(ctx, n.emit) })
	}
	t.Cleanup(func() { cancel(); running.Wait() })
	if !n.WaitSynced(ctx, len(sources), patience) {
		t.Fatal("the sources did not tell what exists")
	}
	return n
}

func (n *node) emit(e container.Event) {
	n.mu.Lock()
	n.said[e.Source] = append(n.said[e.Source], e)
	n.mu.Unlock()
	n.Apply(e)
}

// word is the last Upsert of a source about a container.
func (n *node) word(source, id string) (c container.Container) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.said[source] {
		if e.Type == container.Upsert && e.Container.ID == id {
			c = e.Container
		}
	}
	return c
}

func (n *node) eventually(what string, f func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("not within a minute: %s; records:\n%s", what, n)
		}
	}
}

func (n *node) String() string {
	var b strings.Builder
	for _, r := range n.List() {
		fmt.Fprintf(&b, "%+v\n", r)
	}
	return b.String()
}

// records are those about an id.
func (n *node) records(id string) []registry.Record {
	return slices.DeleteFunc(n.List(), func(r registry.Record) bool { return r.ID != id })
}

// one waits until the only record about a container is in a state.
func (n *node) one(id string, state registry.State) registry.Record {
	n.t.Helper()
	n.eventually(fmt.Sprintf("container %s is %s, once", id, state), func() bool {
		all := n.records(id)
		return len(all) == 1 && all[0].State == state
	})
	return n.records(id)[0]
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// The plugin, containerd's events and the scan of cgroups tell of the same pods, with containerd going away in between.
func TestRealPodsAreOneRecordEachWhoeverTells(t *testing.T) {
	d, ctx := private(t), t.Context()
	h := must(cgroupfs.Detect())(t)
	p := must(New(Config{Socket: d.NRISocket(), Hierarchy: h}))(t)
	p.times.minBackoff = 50 * time.Millisecond

	shop := must(d.RunPod(ctx, critest.PodSpec{Name: "shop-0", Namespace: "shop", Labels: map[string]string{"app": "web"}, Annotations: map[string]string{"team": "blue"}}))(t)
	spec := critest.ContainerSpec{Name: "main", Image: image, Args: []string{"/bin/sleep", "1000"}, Labels: map[string]string{"own": "label"},
		Annotations: map[string]string{"own": "annotation"}, Env: map[string]string{"OTEL_SERVICE_NAME": "svc", "PASSWORD": "x"}}
	before := must(shop.Run(ctx, spec))(t)

	n := newNode(t, p, containerd.NewClient("containerd", d.Socket(), h, nil), cgroupfs.NewScanner(h, nil))
	n.eventually("NRI has told what exists", func() bool { return p.Status().Connected })
	n.one(before.ID(), registry.Profiled)
	spec.Name = "second"
	after := must(shop.Run(ctx, spec))(t)
	n.eventually("its start is told", func() bool { return !n.one(after.ID(), registry.Profiled).StartedAt.IsZero() })
	for _, c := range []*critest.Container{before, after} {
		rec := n.one(c.ID(), registry.Profiled)
		n.eventually("all three found it", func() bool { return len(n.one(c.ID(), registry.Profiled).FoundBy) == 3 })
		if id := must(c.CgroupID())(t); rec.CgroupID != id || rec.CgroupPath != c.CgroupPath() {
			t.Errorf("record %+v, want cgroup %d, %s", rec, id, c.CgroupPath())
		}
		if rec.Pod.Name != "shop-0" || rec.Pod.Namespace != "shop" || rec.Pod.UID != shop.UID() || rec.Pod.Labels["app"] != "web" || rec.Pod.Annotations["team"] != "blue" {
			t.Errorf("pod %+v", rec.Pod)
		}
	}
	rec := n.one(after.ID(), registry.Profiled)
	if !rec.InScopeAt.Before(rec.StartedAt) {
		t.Errorf("in scope at %s, started at %s", rec.InScopeAt, rec.StartedAt)
	}
	t.Logf("in scope %s before its start, told by %v", rec.StartedAt.Sub(rec.InScopeAt), rec.FoundBy)

	// What NRI says is what containerd says of itself, and NRI says it in one event.
	a, b := n.word("nri", after.ID()), n.word("containerd", after.ID())
	if a.Name != b.Name || a.KubernetesContainer != b.KubernetesContainer || a.Image != b.Image || a.Runtime != b.Runtime || a.Namespace != b.Namespace ||
		a.PID != b.PID || a.CgroupID != b.CgroupID || a.CgroupPath != b.CgroupPath || !maps.Equal(a.Env, b.Env) || !maps.Equal(a.Labels, b.Labels) {
		t.Errorf("NRI says\n%+v\ncontainerd\n%+v", a, b)
	}
	for k, v := range b.Annotations { // NRI has the CRI's own in addition
		if a.Annotations[k] != v {
			t.Errorf("annotation %s is %q by NRI, %q by containerd", k, a.Annotations[k], v)
		}
	}
	if a.Annotations["own"] != "annotation" || a.Labels["own"] != "label" || a.Labels["org.example.image"] != "yes" || a.Env["OTEL_SERVICE_NAME"] != "svc" || len(a.Env) != 1 {
		t.Errorf("NRI says %+v", a)
	}
	for _, r := range n.List() {
		if r.ID == shop.ID() {
			t.Errorf("the pause container is listed: %+v", r)
		}
	}

	// containerd goes; one container ends meanwhile; it comes back and tells the plugin what is left.
	if err := d.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	n.eventually("the plugin notices", func() bool { return !p.Status().Connected })
	if err := syscall.Kill(rec.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := d.StartDaemon(ctx); err != nil {
		t.Fatal(err)
	}
	down := time.Now()
	n.eventually("the plugin is back", func() bool { return p.Status().Connected })
	t.Logf("connected again %s after containerd answered", time.Since(down))
	if p.Counts()["synchronize"] != 2 {
		t.Errorf("counts %v, want two synchronizations", p.Counts())
	}
	n.one(after.ID(), registry.Gone)
	n.one(before.ID(), registry.Profiled)
	spec.Name = "third"
	third := must(shop.Run(ctx, spec))(t)
	n.one(third.ID(), registry.Profiled)

	// The end: by itself, and by order.
	if err := third.Stop(ctx, 0); err != nil {
		t.Error(err)
	}
	n.one(third.ID(), registry.Gone)
	if err := shop.Remove(ctx); err != nil {
		t.Error(err)
	}
	n.one(before.ID(), registry.Gone)
	c := p.Counts()
	t.Logf("counts %v", c)
	if c["answer_early"]+c["dropped"]+c["panic"]+c["cgroup_not_found"] != 0 {
		t.Errorf("counts %v", c)
	}
}

// By NRI alone: nobody else tells. Its socket is not there at first.
func TestRealPodsByNRIAlone(t *testing.T) {
	d, ctx := private(t), t.Context()
	if err := errors.Join(d.StopDaemon(), os.Remove(d.NRISocket())); err != nil {
		t.Fatal(err)
	}
	p := must(New(Config{Socket: d.NRISocket(), Hierarchy: must(cgroupfs.Detect())(t)}))(t)
	n := newNode(t, p)
	if st := p.Status(); !st.Absent {
		t.Errorf("status %+v, want it absent", st)
	}
	if err := d.StartDaemon(ctx); err != nil {
		t.Fatal(err)
	}
	n.eventually("NRI has told what exists", func() bool { return p.Status().Connected })
	pod := must(d.RunPod(ctx, critest.PodSpec{Name: "job-0"}))(t)
	for name, args := range map[string][]string{"true": {"/bin/true"}, "short": {"/bin/usleep", "100000"}} {
		c := must(pod.Run(ctx, critest.ContainerSpec{Name: name, Image: image, Args: args}))(t)
		if rec := n.one(c.ID(), registry.Gone); !rec.Profiled() || rec.InScopeAt.IsZero() || rec.Name != name || !rec.Described {
			t.Errorf("record %+v", rec)
		}
	}
	// Created and never started: known, and gone when it is removed.
	c := must(pod.Create(ctx, critest.ContainerSpec{Name: "never", Image: image, Args: []string{"/bin/true"}}))(t)
	if err := c.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	if all := n.records(c.ID()); len(all) != 0 {
		t.Errorf("records %+v", all)
	}
}

// helperSocket is the environment variable that makes this test program a plugin that something happens to.
const helperSocket, helperDoes = "STOKER_TEST_NRI_SOCKET", "STOKER_TEST_NRI_DOES"

func init() {
	socket := os.Getenv(helperSocket)
	if socket == "" {
		return
	}
	p, err := New(Config{Socket: socket})
	if err != nil {
		panic(err)
	}
	connected := false
	_ = p.Run(context.Background(), func(e container.Event) {
		switch {
		case e.Type == container.Synced:
			connected = true
			fmt.Println("connected")
		case !connected || e.Type != container.Upsert:
		case os.Getenv(helperDoes) == "die":
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		case os.Getenv(helperDoes) == "hang":
			select {}
		}
	})
}

// A plugin is killed inside a container's start, is stopped, or waits for a registry that hangs: every container starts.
func TestRealPodsStartWhateverHappensToThePlugin(t *testing.T) {
	d, ctx := private(t), t.Context()
	pod := must(d.RunPod(ctx, critest.PodSpec{Name: "starts-0"}))(t)
	made := 0
	start := func(t *testing.T, how string) time.Duration {
		t.Helper()
		made++
		c := must(pod.Create(ctx, critest.ContainerSpec{Name: fmt.Sprintf("c-%d", made), Image: image, Args: []string{"/bin/sleep", "1000"}}))(t)
		begin := time.Now()
		if err := c.Start(ctx); err != nil {
			t.Errorf("%s: %v", how, err)
			return 0
		}
		took := time.Since(begin)
		if pid := must(c.PID(ctx))(t); pid == 0 {
			t.Errorf("%s: it does not run", how)
		}
		t.Logf("%s: started in %s", how, took)
		return took
	}
	// plugin starts the helper and waits until it is connected.
	plugin := func(t *testing.T, does string) *exec.Cmd {
		t.Helper()
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), helperSocket+"="+d.NRISocket(), helperDoes+"="+does)
		out := must(cmd.StdoutPipe())(t)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stop := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
		defer stop.Stop()
		t.Cleanup(func() {
			_ = cmd.Process.Kill() // if it is not dead already
			_ = cmd.Wait()
		})
		if line := make([]byte, 20); true {
			if _, err := out.Read(line); err != nil {
				t.Fatal(err)
			}
		}
		return cmd
	}
	start(t, "without a plugin")
	start(t, "without a plugin")
	t.Run("killed inside a start", func(t *testing.T) {
		cmd := plugin(t, "die")
		start(t, "the start in which it dies")
		if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("the plugin ended with %v, want it killed", err)
		}
		start(t, "the next")
	})
	t.Run("a registry that hangs", func(t *testing.T) {
		plugin(t, "hang")
		for range 3 {
			if took := start(t, "with a registry that hangs"); took >= 2*time.Second {
				t.Errorf("%s: the runtime waited until it gave the plugin up", took)
			}
		}
		if strings.Contains(d.Log(), "deadline exceeded") {
			t.Error("containerd gave the plugin up")
		}
	})
	t.Run("stopped", func(t *testing.T) {
		cmd := plugin(t, "nothing")
		start(t, "before it is stopped")
		if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		start(t, "the first after that")
		if took := start(t, "the second"); took >= 2*time.Second {
			t.Errorf("%s: containerd has not given it up after the first", took)
		}
	})
}
