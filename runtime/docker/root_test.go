//go:build root

package docker

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/containerd"
	"github.com/stoker-profiler/stoker/runtime/internal/sourcetest"
	"github.com/stoker-profiler/stoker/runtime/registry"
	"github.com/stoker-profiler/stoker/test/containerdtest"
	"github.com/stoker-profiler/stoker/test/dockertest"
)

const image = "localhost/stoker-test:1"

// private is a private dockerd with a client that follows it.
func private(t *testing.T) (*containerdtest.Daemon, *dockertest.Daemon, *bench) {
	t.Helper()
	c := containerdtest.NewForTest(t)
	d := dockertest.NewForTest(t, c)
	must(t, d.Load(t.Context(), containerdtest.Image{Ref: image, Cmd: []string{"/bin/sleep", "1000"}, Labels: map[string]string{"name": "of the image"}}))
	client := NewClient("docker", d.Socket(), nil)
	client.root = d.Root()
	return c, d, newBench(t, client)
}

// withContainerd has a client follow the containerd below, too.
func (b *bench) withContainerd(t *testing.T, d *containerdtest.Daemon) *containerd.Client {
	t.Helper()
	h, err := cgroupfs.Detect()
	must(t, err)
	c := containerd.NewClient("containerd", d.Socket(), h, nil)
	sourcetest.Run(t, c, b.emit)
	sourcetest.Eventually(t, "containerd is followed", func() bool { return c.Status().Connected })
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, d *dockertest.Daemon, s dockertest.Spec) string {
	t.Helper()
	s.Image = image
	s.Name = fmt.Sprintf("stoker-test-%d-%s", os.Getpid(), s.Name)
	id, err := d.Run(t.Context(), s)
	must(t, err)
	return id
}

func cgroupOf(t *testing.T, id string) uint64 {
	t.Helper()
	cgroup, err := dockertest.CgroupID(id)
	must(t, err)
	return cgroup
}

func TestRealContainers(t *testing.T) {
	c, d, b := private(t)
	ctx := t.Context()
	before := run(t, d, dockertest.Spec{Name: "before"})
	b.run()
	b.synced()
	b.withContainerd(t, c)
	rec := b.State(before, registry.Profiled)
	if !strings.HasSuffix(rec.Name, "-before") || rec.Image != image || rec.CgroupID != cgroupOf(t, before) || rec.Labels["name"] != "of the image" {
		t.Errorf("record %+v", rec)
	}

	web := run(t, d, dockertest.Spec{Name: "web", Env: []string{"OTEL_SERVICE_NAME=shop", "PASSWORD=x"},
		Labels: map[string]string{"team": "blue", "com.docker.compose.project": "shop", "com.docker.compose.service": "api"}})
	rec = b.Until(web, "all is known", func(rec registry.Record) bool {
		return rec.State == registry.Profiled && len(rec.Sources) == 2 && rec.Env["OTEL_SERVICE_NAME"] != "" && rec.Labels["name"] != ""
	})
	if !strings.HasSuffix(rec.Name, "-web") || rec.Image != image || rec.Runtime != "docker" || rec.Namespace != "moby" || rec.CgroupID != cgroupOf(t, web) ||
		rec.Labels["team"] != "blue" || rec.Labels["com.docker.compose.project"] != "shop" || rec.Labels["com.docker.compose.service"] != "api" ||
		rec.Labels["name"] != "of the image" || rec.Env["OTEL_SERVICE_NAME"] != "shop" || len(rec.Env) != 1 || rec.PID == 0 || len(b.All(web)) != 1 {
		t.Errorf("%d records; %+v", len(b.All(web)), rec)
	}

	// Another name, and nothing else.
	_, err := d.Docker(ctx, "rename", rec.Name, rec.Name+"-2")
	must(t, err)
	renamed := b.Until(web, "its new name is known", func(rec registry.Record) bool { return strings.HasSuffix(rec.Name, "-2") })
	if renamed.ScopeID != rec.ScopeID || renamed.Labels["team"] != "blue" {
		t.Errorf("record %+v", renamed)
	}
	for _, verb := range []string{"pause", "unpause"} {
		_, err := d.Docker(ctx, verb, web)
		must(t, err)
	}
	b.State(web, registry.Profiled)

	// A restart is another run.
	_, err = d.Docker(ctx, "restart", "--time", "0", web)
	must(t, err)
	again := b.Until(web, "the second run is found", func(rec registry.Record) bool {
		return rec.State == registry.Profiled && rec.CgroupID == cgroupOf(t, web)
	})
	if again.CgroupID == rec.CgroupID || again.ScopeID == rec.ScopeID || !strings.HasSuffix(again.Name, "-2") || again.Labels["team"] != "blue" || b.Scopes.Has(rec.CgroupID) {
		t.Errorf("first run %+v\nsecond run %+v", rec, again)
	}
	_, err = d.Docker(ctx, "rm", "--force", web)
	must(t, err)
	b.State(web, registry.Gone)

	// One that is made and not started is known, and goes.
	made, err := d.Create(ctx, dockertest.Spec{Name: fmt.Sprintf("stoker-test-%d-made", os.Getpid()), Image: image})
	must(t, err)
	b.State(made, registry.Waiting)
	_, err = d.Docker(ctx, "rm", made)
	must(t, err)
	b.State(made, registry.Gone)
	b.State(before, registry.Profiled)
}

// Without containerd's events the scan of the cgroup tree has the cgroup, and Docker the names.
func TestRealContainersWithoutContainerd(t *testing.T) {
	_, d, b := private(t)
	b.run()
	b.synced()
	h, err := cgroupfs.Detect()
	must(t, err)
	sourcetest.Run(t, cgroupfs.NewScanner(h, nil), b.emit)
	if !b.WaitSynced(t.Context(), 2, time.Minute) {
		t.Fatal("the sources do not sync")
	}
	web := run(t, d, dockertest.Spec{Name: "web", Labels: map[string]string{"team": "blue"}})
	rec := b.State(web, registry.Profiled)
	if rec.CgroupID != cgroupOf(t, web) || !strings.HasSuffix(rec.Name, "-web") || rec.Labels["team"] != "blue" || len(b.All(web)) != 1 || !b.Scopes.Has(rec.CgroupID) {
		t.Errorf("record %+v", rec)
	}
	_, err = d.Docker(t.Context(), "restart", "--time", "0", web)
	must(t, err)
	again := b.Until(web, "the second run is found", func(rec registry.Record) bool {
		return rec.State == registry.Profiled && rec.CgroupID == cgroupOf(t, web)
	})
	if again.CgroupID == rec.CgroupID || !strings.HasSuffix(again.Name, "-web") {
		t.Errorf("first run %+v\nsecond run %+v", rec, again)
	}
	_, err = d.Docker(t.Context(), "rm", "--force", web)
	must(t, err)
	b.State(web, registry.Gone)
}

// dockerd ends, by itself and by force, hangs, and comes back; containers live on meanwhile, or end and nobody tells.
func TestRealDockerThatComesAndGoes(t *testing.T) {
	c, d, b := private(t)
	ctx := t.Context()
	b.client.loop.Times.MinBackoff = 20 * time.Millisecond
	b.run()
	b.synced()
	b.withContainerd(t, c)
	stays := run(t, d, dockertest.Spec{Name: "stays"})
	dies := run(t, d, dockertest.Spec{Name: "dies"})
	b.State(stays, registry.Profiled)
	rec := b.State(dies, registry.Profiled)

	must(t, d.StopDaemon())
	sourcetest.Eventually(t, "the loss is noticed", func() bool { return !b.client.Status().Connected })
	b.State(stays, registry.Profiled)
	_, err := c.Ctr(ctx, "moby", "tasks", "kill", "-s", "SIGKILL", dies)
	must(t, err)
	b.State(dies, registry.Gone)
	must(t, d.StartDaemon(ctx))
	b.synced()
	b.State(stays, registry.Profiled)
	b.State(dies, registry.Gone)
	if b.Scopes.Has(rec.CgroupID) {
		t.Error("what has ended is in scope")
	}

	must(t, d.KillDaemon())
	sourcetest.Eventually(t, "the loss is noticed", func() bool { return !b.client.Status().Connected })
	must(t, d.StartDaemon(ctx))
	b.synced()
	last := run(t, d, dockertest.Spec{Name: "last"})
	b.Until(last, "it is known", func(rec registry.Record) bool { return rec.State == registry.Profiled && rec.Name != "" })
	b.State(stays, registry.Profiled)
}

// A paused dockerd hangs: that is said, and nothing else happens.
func TestRealDockerThatHangs(t *testing.T) {
	c, d, b := private(t)
	b.client.times.list, b.client.loop.Times.ListEvery, b.client.times.call = time.Second, 50*time.Millisecond, time.Second
	b.run()
	b.synced()
	b.withContainerd(t, c)
	web := run(t, d, dockertest.Spec{Name: "web"})
	b.State(web, registry.Profiled)
	must(t, d.PauseDaemon())
	sourcetest.Eventually(t, "the hang is noticed", func() bool {
		st := b.client.Status()
		return !st.Connected && strings.Contains(st.Err, "does not answer")
	})
	b.State(web, registry.Profiled)
	must(t, d.ResumeDaemon())
	b.synced()
	b.State(web, registry.Profiled)
}

// What the engine notes about its containers is understood.
func TestRealFiles(t *testing.T) {
	c, d, b := private(t)
	ctx := t.Context()
	web := run(t, d, dockertest.Spec{Name: "web", Labels: map[string]string{"team": "blue"}, Env: []string{"OTEL_SERVICE_NAME=shop"}})
	ended := run(t, d, dockertest.Spec{Name: "ended", Args: []string{"/bin/true"}})
	_, err := d.Docker(ctx, "wait", ended)
	must(t, err)
	made, err := d.Create(ctx, dockertest.Spec{Name: fmt.Sprintf("stoker-test-%d-made", os.Getpid()), Image: image})
	must(t, err)
	b.withContainerd(t, c)
	f := newFake(t) // stands before it and refuses
	f.handle = func(w http.ResponseWriter, _ *http.Request) bool {
		refuse(w, http.StatusForbidden, "no")
		return true
	}
	f.start()
	b.client.address = f.socket()
	b.run()
	if !b.WaitSynced(ctx, 2, 20*time.Second) {
		t.Fatal("its files are not read")
	}
	rec := b.State(web, registry.Profiled)
	if !strings.HasSuffix(rec.Name, "-web") || rec.Labels["team"] != "blue" || rec.Image != image || rec.Env["OTEL_SERVICE_NAME"] != "shop" {
		t.Errorf("record %+v", rec)
	}
	b.State(made, registry.Waiting)
	if _, ok := b.Find(ended); ok {
		t.Error("one that has ended is listed")
	}
}

// How soon containers are in scope, and known by their names. Reported, not asserted, but for what must be: nobody is lost.
func TestRealStartsAreInScopeBeforeTheyRun(t *testing.T) {
	c, d, b := private(t)
	b.run()
	b.synced()
	b.withContainerd(t, c)
	const n = 10
	var scope, named []time.Duration
	before := 0
	for i := range n {
		id := run(t, d, dockertest.Spec{Name: fmt.Sprint("c", i)})
		rec := b.Until(id, "all is known", func(rec registry.Record) bool {
			return !rec.StartedAt.IsZero() && !rec.TaskCreatedAt.IsZero() && rec.Name != ""
		})
		scope = append(scope, rec.InScopeAt.Sub(rec.TaskCreatedAt))
		named = append(named, rec.TaskCreatedAt.Sub(rec.AnnouncedAt))
		if rec.InScopeAt.Before(rec.StartedAt) {
			before++
		}
		_, err := d.Docker(context.Background(), "rm", "--force", id)
		must(t, err)
	}
	slices.Sort(scope)
	slices.Sort(named)
	t.Logf("of %d starts, from the first process to in scope: p50 %v, max %v; known by name before the first process: p50 %v, min %v; in scope before /tasks/start: %d",
		n, scope[n/2], scope[n-1], named[n/2], named[0], before)
}
