//go:build root

package containerd

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/internal/sourcetest"
	"github.com/stoker-profiler/stoker/runtime/registry"
	"github.com/stoker-profiler/stoker/test/containerdtest"
)

const image = "localhost/stoker-test:1"

// private is a private containerd with a client that follows it.
func private(t *testing.T) (*containerdtest.Daemon, *bench) {
	t.Helper()
	d := containerdtest.NewForTest(t)
	if err := d.Image(containerdtest.Image{Ref: image, Cmd: []string{"/bin/sleep", "1000"}, Labels: map[string]string{"org.example.image": "yes"}}); err != nil {
		t.Fatal(err)
	}
	h, err := cgroupfs.Detect()
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t, NewClient("containerd", d.Socket(), h, nil))
	return d, b
}

func launch(t *testing.T, d *containerdtest.Daemon, s containerdtest.Spec) *containerdtest.Container {
	t.Helper()
	s.Image = image
	c, err := d.Run(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func cgroupOf(t *testing.T, c *containerdtest.Container) uint64 {
	t.Helper()
	id, err := c.CgroupID()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRealContainers(t *testing.T) {
	d, b := private(t)
	ctx := t.Context()
	before := launch(t, d, containerdtest.Spec{ID: "before", Labels: map[string]string{"app": "old"}})
	b.run()
	b.synced()
	rec := b.StateIn("default", "before", registry.Profiled)
	if rec.CgroupID != cgroupOf(t, before) || rec.CgroupPath != before.CgroupPath() || rec.PID != before.PID() || rec.Image != image || rec.Name != "before" ||
		rec.Labels["app"] != "old" || rec.Labels["org.example.image"] != "yes" || rec.CreatedAt.IsZero() {
		t.Errorf("record %+v", rec)
	}

	// In another namespace, of the same id, with what names its service.
	other := launch(t, d, containerdtest.Spec{Namespace: "other", ID: "before", Env: []string{"OTEL_SERVICE_NAME=shop", "PASSWORD=x"}, Annotations: map[string]string{"note": "n"}})
	rec = b.StateIn("other", "before", registry.Profiled)
	if rec.CgroupID != cgroupOf(t, other) || rec.Env["OTEL_SERVICE_NAME"] != "shop" || len(rec.Env) != 1 || rec.Annotations["note"] != "n" {
		t.Errorf("record %+v", rec)
	}
	sourcetest.Eventually(t, "its start is told", func() bool { rec, _ = b.FindIn("other", "before"); return !rec.StartedAt.IsZero() })
	if rec.TaskCreatedAt.IsZero() || rec.StartedAt.Before(rec.TaskCreatedAt) {
		t.Errorf("task created %v, started %v", rec.TaskCreatedAt, rec.StartedAt)
	}

	// exec is not the container's end.
	if _, err := other.Exec(ctx, "/bin/true"); err != nil {
		t.Fatal(err)
	}
	b.StateIn("other", "before", registry.Profiled)

	// A restart is another run.
	first := rec
	must(t, other.Restart(ctx))
	sourcetest.Eventually(t, "the second run is found", func() bool {
		rec, _ = b.FindIn("other", "before")
		return rec.State == registry.Profiled && rec.PID == other.PID()
	})
	if rec.CgroupID == first.CgroupID || rec.CgroupID != cgroupOf(t, other) || rec.ScopeID == first.ScopeID || b.Scopes.Has(first.CgroupID) {
		t.Errorf("first run %+v\nsecond run %+v", first, rec)
	}
	if old, ok := b.Lookup(first.ScopeID); !ok || old.State != registry.Gone || old.PID != first.PID {
		t.Errorf("first run by its scope: %+v, %t", old, ok)
	}
	must(t, other.Delete(ctx))
	b.StateIn("other", "before", registry.Gone)
	b.StateIn("default", "before", registry.Profiled)
}

// A container that is over in a few milliseconds is known with its name, and was in scope.
func TestRealContainerThatIsOverAtOnce(t *testing.T) {
	d, b := private(t)
	b.run()
	b.synced()
	c := launch(t, d, containerdtest.Spec{ID: "short", Args: []string{"/bin/true"}, Labels: map[string]string{"app": "job"}})
	must(t, c.Delete(t.Context()))
	rec := b.StateIn("default", "short", registry.Gone)
	sourcetest.Eventually(t, "it is described", func() bool { rec, _ = b.FindIn("default", "short"); return rec.Described })
	if rec.Labels["app"] != "job" || !rec.Profiled() || rec.InScopeAt.IsZero() {
		t.Errorf("record %+v", rec)
	}
}

// containerd is killed while containers come and go, again and again; in the end the registry knows what the machine has.
func TestRealContainerdIsKilledUnderLoad(t *testing.T) {
	d, b := private(t)
	b.client.loop.Times.MinBackoff = 20 * time.Millisecond
	ctx := t.Context()
	must(t, d.StopDaemon())
	must(t, d.StartDaemon(ctx))
	stays := launch(t, d, containerdtest.Spec{ID: "stays"})
	dies := launch(t, d, containerdtest.Spec{ID: "dies"})
	b.run()
	b.synced()
	b.StateIn("default", "dies", registry.Profiled)

	// A load that fails while containerd is down, and goes on.
	loadCtx, stop := context.WithCancel(ctx)
	var load sync.WaitGroup
	var mu sync.Mutex
	var running []*containerdtest.Container
	var starts atomic.Int64
	for w := range 2 {
		load.Go(func() {
			for i := 0; loadCtx.Err() == nil; i++ {
				c, err := d.Run(loadCtx, containerdtest.Spec{Namespace: fmt.Sprintf("load%d", w), ID: fmt.Sprintf("c%d-%d", w, i), Image: image})
				if err != nil {
					time.Sleep(20 * time.Millisecond)
					continue
				}
				starts.Add(1)
				if i%3 == 0 {
					mu.Lock()
					running = append(running, c)
					mu.Unlock()
					continue
				}
				_ = c.Delete(loadCtx) // may fail for the same reason; then it stays, which is a case too
			}
		})
	}
	for range 3 {
		n := starts.Load()
		sourcetest.Eventually(t, "the load is in the middle of something", func() bool { return starts.Load() >= n+4 })
		must(t, d.KillDaemon())
		sourcetest.Eventually(t, "the loss is noticed", func() bool { return !b.client.Status().Connected })
		if dies != nil { // an end that no event tells
			must(t, syscall.Kill(dies.PID(), syscall.SIGKILL))
			must(t, dies.Wait(ctx))
			dies = nil
		}
		must(t, d.StartDaemon(ctx))
		b.synced()
	}
	b.StateIn("default", "dies", registry.Gone)
	n := starts.Load()
	sourcetest.Eventually(t, "the load went on", func() bool { return starts.Load() >= n+2 })
	stop()
	load.Wait()
	last := launch(t, d, containerdtest.Spec{ID: "last"})
	b.StateIn("default", "last", registry.Profiled)
	b.StateIn("default", "stays", registry.Profiled)

	// What runs by containerd's own words. Asked again with each comparison: a kill that was under way when the load was
	// stopped may still end a container.
	want := []string{"default/last", "default/stays"}
	for _, c := range running {
		want = append(want, c.Namespace()+"/"+c.ID())
	}
	var actual, got []string
	agree := func() bool {
		actual, got = nil, nil
		namespaces, err := d.Ctr(ctx, "", "namespaces", "ls", "-q")
		must(t, err)
		for ns := range strings.FieldsSeq(namespaces) {
			out, err := d.Ctr(ctx, ns, "tasks", "ls")
			must(t, err)
			for line := range strings.Lines(out) {
				// CREATED: containerd was killed between create and start. Its first process is there, and waits.
				if f := strings.Fields(line); len(f) == 3 && (f[2] == "RUNNING" || f[2] == "CREATED") {
					actual = append(actual, ns+"/"+f[0])
				}
			}
		}
		for _, rec := range b.List() {
			if rec.State == registry.Profiled {
				got = append(got, rec.Namespace+"/"+rec.ID)
			}
		}
		slices.Sort(actual)
		slices.Sort(got)
		return slices.Equal(got, actual)
	}
	for deadline := time.Now().Add(20 * time.Second); !agree(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the registry has %v\nwhat runs is    %v\nclient %+v", got, actual, b.client.Stats())
		}
	}
	for _, w := range want {
		if !slices.Contains(actual, w) {
			t.Fatalf("%s does not run; what runs: %v", w, actual)
		}
	}
	for _, c := range append(running, stays, last) {
		rec, _ := b.FindIn(c.Namespace(), c.ID())
		if rec.PID != c.PID() || rec.CgroupID != cgroupOf(t, c) || !b.Scopes.Has(rec.CgroupID) {
			t.Errorf("container %s: %+v, want pid %d", c.ID(), rec, c.PID())
		}
	}
	if b.Scopes.Len() != len(actual) {
		t.Errorf("%d cgroups are in scope, %d containers run", b.Scopes.Len(), len(actual))
	}
	t.Logf("%d containers were started, %d run in the end; client %+v", starts.Load()+4, len(actual), b.client.Stats())
}

// A paused containerd hangs: that is said, and nothing else happens.
func TestRealContainerdThatHangs(t *testing.T) {
	d, b := private(t)
	b.client.times.list, b.client.loop.Times.ListEvery, b.client.times.call = time.Second, 50*time.Millisecond, time.Second
	launch(t, d, containerdtest.Spec{ID: "web"})
	b.run()
	b.synced()
	b.StateIn("default", "web", registry.Profiled)
	must(t, d.PauseDaemon())
	sourcetest.Eventually(t, "the hang is noticed", func() bool {
		st := b.client.Status()
		return !st.Connected && strings.Contains(st.Err, "does not answer")
	})
	b.StateIn("default", "web", registry.Profiled)
	must(t, d.ResumeDaemon())
	b.synced()
	b.StateIn("default", "web", registry.Profiled)
}

// The socket belongs to root.
func TestRealSocketThatIsNotOurs(t *testing.T) {
	if os.Getenv("STOKER_TEST_SOCKET") != "" {
		b := newBench(t, quick(NewClient("containerd", os.Getenv("STOKER_TEST_SOCKET"), cgroupfs.Hierarchy{}, nil)))
		b.run()
		sourcetest.Eventually(t, "there is a status", func() bool { return b.client.Status().Err != "" })
		fmt.Println(b.client.Status().Err)
		return
	}
	d, _ := private(t)
	must(t, os.Chmod(d.Dir(), 0o755))
	self, err := os.Executable()
	must(t, err)
	// Test binaries are in a directory that only root may enter.
	copied := filepath.Join(d.Dir(), "containerd.test")
	binary, err := os.ReadFile(self)
	must(t, err)
	must(t, os.WriteFile(copied, binary, 0o755))
	cmd := exec.CommandContext(t.Context(), copied, "-test.run", "^"+t.Name()+"$")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "STOKER_TEST_SOCKET="+d.Socket(), "TMPDIR=/tmp")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"does not let us in", d.Socket(), "run stoker as root"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("got %q, want it to say %q", out, want)
		}
	}
}

// With the scan of the cgroup tree beside it, each run of a container is one record, whoever was first.
func TestRealContainersOfTwoSourcesAreOneRecord(t *testing.T) {
	d, b := private(t)
	h, err := cgroupfs.Detect()
	must(t, err)
	sourcetest.Run(t, cgroupfs.NewScanner(h, nil), b.emit)
	b.run()
	b.synced()
	if !b.WaitSynced(t.Context(), 2, time.Minute) {
		t.Fatal("the sources do not sync")
	}
	// ctr's own layout, where the scan knows them; ids that nobody else on the machine has.
	prefix := fmt.Sprintf("stoker-test-%d-", os.Getpid())
	var wg sync.WaitGroup
	const n = 12
	for i := range n {
		wg.Go(func() {
			id := fmt.Sprint(prefix, i)
			c, err := d.Run(t.Context(), containerdtest.Spec{ID: id, Image: image, CgroupsPath: "/default/" + id, Args: []string{"/bin/sleep", "1000"}})
			if err != nil {
				t.Error(err)
				return
			}
			if i%2 == 0 {
				if err := c.Restart(t.Context()); err != nil {
					t.Error(err)
				}
			}
			if i%3 == 0 {
				if err := c.Delete(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	runs := func() (all, live int) {
		seen := map[uint64]bool{}
		for _, rec := range b.List() {
			if !strings.HasPrefix(rec.ID, prefix) {
				continue
			}
			if seen[rec.CgroupID] || rec.CgroupID == 0 {
				t.Fatalf("two records of one run, or one without a cgroup: %+v", rec)
			}
			seen[rec.CgroupID] = true
			all++
			if rec.State != registry.Gone {
				live++
			}
		}
		return all, live
	}
	sourcetest.Eventually(t, "all runs are known and the deleted ones are gone", func() bool { all, live := runs(); return all == n+n/2 && live == n-n/3 })
	both := 0
	for _, rec := range b.List() {
		if strings.HasPrefix(rec.ID, prefix) && len(rec.Sources) == 2 {
			both++
		}
	}
	s := b.Stats()
	if both == 0 {
		t.Error("no record has both sources")
	}
	t.Logf("of %d runs %d were told by both sources; %d in scope before their start, %d after; conflicts %d", n+n/2, both, s.Early, s.Late, s.Conflicts)
}

// How soon containers are in scope: of many starts, one after the other, the time from the making of the first process, and
// whether it is before the user's code runs. Reported, not asserted, but for what must be: nobody is lost.
func TestRealStartsAreInScopeBeforeTheyRun(t *testing.T) {
	d, b := private(t)
	b.run()
	b.synced()
	const n = 60
	var delays []time.Duration
	before := 0
	for i := range n {
		c := launch(t, d, containerdtest.Spec{ID: fmt.Sprintf("c%d", i), Args: []string{"/bin/sleep", "1000"}})
		var rec registry.Record
		sourcetest.Eventually(t, "its start is told", func() bool { rec, _ = b.FindIn("default", c.ID()); return !rec.StartedAt.IsZero() })
		if rec.TaskCreatedAt.IsZero() || rec.InScopeAt.IsZero() {
			t.Fatalf("record %+v", rec)
		}
		delays = append(delays, rec.InScopeAt.Sub(rec.TaskCreatedAt))
		if rec.InScopeAt.Before(rec.StartedAt) {
			before++
		}
		must(t, c.Delete(t.Context()))
	}
	slices.Sort(delays)
	t.Logf("from /tasks/create to in scope, of %d starts: p50 %v, p90 %v, p99 %v, max %v; before /tasks/start: %d", n, delays[n/2], delays[n*9/10], delays[n*99/100], delays[n-1], before)
	s := b.Stats()
	if s.Early+s.Late != n || int(s.Early) != before {
		t.Errorf("stats count %d early and %d late, want %d and %d", s.Early, s.Late, before, n-before)
	}
}
