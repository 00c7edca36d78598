package containerd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/internal/sourcetest"
	"github.com/stoker-profiler/stoker/runtime/registry"
)

// quick shortens a client's times.
func quick(c *Client) *Client {
	c.loop.Times.MinBackoff, c.loop.Times.AbsentEvery, c.loop.Times.SecondList = 5*time.Millisecond, 5*time.Millisecond, 20*time.Millisecond
	return c
}

func started(t *testing.T) (*fake, *bench) {
	t.Helper()
	f := newFake(t)
	f.start()
	b := newBench(t, quick(NewClient("containerd", f.socket(), f.hierarchy(), nil)))
	b.fake = f
	return f, b
}

func TestContainersOfAllNamespacesAreTold(t *testing.T) {
	f, b := started(t)
	one := f.run("default", "web", 100)
	f.run("k8s.io", "web", 101)
	f.create("default", "stopped", nil) // a record without a process
	b.run()
	b.synced()
	rec := b.StateIn("default", "web", registry.Profiled)
	if rec.CgroupID != one || rec.CgroupPath != "/default/web" || rec.PID != 100 || rec.Name != "web" || rec.Image != "img:web" || rec.Runtime != "containerd" ||
		rec.CreatedAt.IsZero() || len(rec.Env) != 1 || rec.Env["OTEL_SERVICE_NAME"] != "svc" {
		t.Errorf("record %+v", rec)
	}
	b.StateIn("k8s.io", "web", registry.Profiled)
	if _, ok := b.FindIn("default", "stopped"); ok {
		t.Error("a container without a process is listed")
	}

	// Then what changes, also in a namespace that did not exist.
	two := f.run("new", "later", 102)
	rec = b.StateIn("new", "later", registry.Profiled)
	sourcetest.Eventually(t, "its start is told", func() bool { rec, _ = b.FindIn("new", "later"); return !rec.StartedAt.IsZero() })
	if rec.CgroupID != two || rec.TaskCreatedAt.IsZero() || rec.StartedAt.Before(rec.TaskCreatedAt) {
		t.Errorf("record %+v", rec)
	}
	// The end of a process of exec is not the container's.
	f.publish("new", "/tasks/exit", &events.TaskExit{ContainerID: "later", ID: "exec-1", Pid: 555})
	f.publish("default", "/tasks/exit", &events.TaskExit{ContainerID: "web", ID: "web", Pid: 100})
	b.StateIn("default", "web", registry.Gone)
	b.StateIn("new", "later", registry.Profiled)
	b.StateIn("k8s.io", "web", registry.Profiled)
	if b.Scopes.Has(one) || !b.Scopes.Has(two) {
		t.Error("the kernel's scopes do not follow")
	}
}

func TestARestartIsAnotherRun(t *testing.T) {
	f, b := started(t)
	b.run()
	b.synced()
	first := f.run("default", "web", 100)
	b.StateIn("default", "web", registry.Profiled)
	f.publish("default", "/tasks/exit", &events.TaskExit{ContainerID: "web", ID: "web", Pid: 100})
	b.StateIn("default", "web", registry.Gone)
	f.removeProcess(100, "/default/web")
	second := f.task("default", "web", 200)
	rec := b.StateIn("default", "web", registry.Profiled)
	if first == second || rec.CgroupID != second || rec.PID != 200 || rec.Image != "img:web" || b.Scopes.Has(first) {
		t.Errorf("record %+v, first cgroup %d, second %d", rec, first, second)
	}
}

func TestNobodyWaitsForAnAnswer(t *testing.T) {
	f, b := started(t)
	b.client.times.call = time.Minute
	b.client.loop.Times.SecondList = time.Hour // it would describe them
	f.get = func(ctx context.Context, k key) error {
		if strings.HasPrefix(k.id, "slow") {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	b.run()
	b.synced()
	for i := range 2 * asking { // more than are asked about at a time
		f.run("default", fmt.Sprintf("slow%d", i), 100+i)
	}
	f.run("default", "fast", 99)
	for i := range 2 * asking {
		b.StateIn("default", fmt.Sprintf("slow%d", i), registry.Provisional)
	}
	if rec := b.StateIn("default", "fast", registry.Provisional); !b.Scopes.Has(rec.CgroupID) {
		t.Errorf("a container waits for the description of others: %+v", rec)
	}
}

func TestARecordThatCannotBeReadIsAskedForAgain(t *testing.T) {
	f, b := started(t)
	b.run()
	b.synced()
	failures := 0
	f.mu.Lock()
	f.get = func(context.Context, key) error {
		if failures++; failures < 3 {
			return status.Error(codes.Unavailable, "busy")
		}
		return nil
	}
	f.mu.Unlock()
	f.run("default", "web", 100)
	b.StateIn("default", "web", registry.Profiled)
}

func TestAContainerFasterThanOurQuestionHasItsName(t *testing.T) {
	f, b := started(t)
	b.run()
	b.synced()
	gone := make(chan struct{})
	f.mu.Lock()
	f.get = func(context.Context, key) error { <-gone; return nil }
	f.mu.Unlock()
	f.run("default", "true", 100)
	f.publish("default", "/tasks/exit", &events.TaskExit{ContainerID: "true", ID: "true", Pid: 100})
	f.publish("default", "/tasks/delete", &events.TaskDelete{ContainerID: "true", Pid: 100})
	f.publish("default", "/containers/delete", &events.ContainerDelete{ID: "true"})
	b.StateIn("default", "true", registry.Gone)
	close(gone)
	sourcetest.Eventually(t, "it is described", func() bool {
		rec, ok := b.FindIn("default", "true")
		return ok && rec.Described && rec.Image == "img:true" && rec.State == registry.Gone && rec.Profiled()
	})
}

func TestPodsAndTheirContainers(t *testing.T) {
	f, b := started(t)
	sandbox, main := strings.Repeat("a", 64), strings.Repeat("b", 64)
	pod := map[string]string{labelPodName: "web-0", labelPodNamespace: "shop", labelPodUID: "u-1"}
	with := func(extra ...string) map[string]string {
		labels := map[string]string{}
		for k, v := range pod {
			labels[k] = v
		}
		for i := 0; i < len(extra); i += 2 {
			labels[extra[i]] = extra[i+1]
		}
		return labels
	}
	records := func(suffix string) {
		f.record("k8s.io", &containers.Container{ID: sandbox[:63] + suffix, Labels: with(labelKind, "sandbox", "app", "web"), Spec: specOf(t, "", nil),
			Extensions: map[string]*anypb.Any{extensionSandbox: {Value: []byte(`{"Version":"v1","Metadata":{"ID":"x","Config":{"metadata":{"name":"web-0"},"annotations":{"pyroscope.io/service_name":"shop-web"}}}}`)}}})
		f.record("k8s.io", &containers.Container{ID: main[:63] + suffix, Image: "nginx", Labels: with(labelKind, "container", labelContainerName, "main"),
			Spec: specOf(t, "/kubepods/podu-1/"+main, map[string]string{annotationSandbox: sandbox[:63] + suffix})})
	}
	check := func(suffix string) {
		t.Helper()
		rec := b.StateIn("k8s.io", main[:63]+suffix, registry.Profiled)
		if rec.Name != "main" || rec.KubernetesContainer != "main" || rec.Pod.Name != "web-0" || rec.Pod.Namespace != "shop" || rec.Pod.UID != "u-1" ||
			rec.Pod.Labels["app"] != "web" || rec.Pod.Labels[labelKind] != "" || rec.Pod.Annotations["pyroscope.io/service_name"] != "shop-web" {
			t.Errorf("record %+v", rec)
		}
		if _, ok := b.FindIn("k8s.io", sandbox[:63]+suffix); ok {
			t.Error("the pause container is listed")
		}
	}
	records("1")
	f.task("k8s.io", sandbox[:63]+"1", 10)
	f.task("k8s.io", main[:63]+"1", 11)
	b.run()
	b.synced()
	check("1") // listed
	records("2")
	cgroup := f.task("k8s.io", sandbox[:63]+"2", 20)
	f.task("k8s.io", main[:63]+"2", 21)
	check("2") // from events
	sourcetest.Eventually(t, "the pause container is out of scope", func() bool { return !b.Scopes.Has(cgroup) })
}

func TestDockersContainersAreNotComplete(t *testing.T) {
	f, b := started(t)
	id := strings.Repeat("c", 64)
	f.record("moby", &containers.Container{ID: id, Labels: map[string]string{"com.docker/engine.bundle.path": "/x"}, Spec: specOf(t, "/docker/"+id, nil)})
	f.task("moby", id, 10)
	b.run()
	b.synced()
	rec := b.StateIn("moby", id, registry.Provisional)
	if rec.Runtime != "docker" || rec.Name != "" || rec.Described {
		t.Errorf("record %+v", rec)
	}
}

func TestNerdctlNamesItsContainers(t *testing.T) {
	d, err := describe("default", &containers.Container{ID: strings.Repeat("d", 64), Labels: map[string]string{labelNerdctlName: "web"},
		Spec: specOf(t, "system.slice:nerdctl:x", map[string]string{"a": "b"}, "OTEL_RESOURCE_ATTRIBUTES=service.name=x", "PASSWORD=y")})
	if err != nil || d.c.Name != "web" || d.c.Annotations["a"] != "b" || len(d.c.Env) != 1 || d.cgroupsPath != "system.slice:nerdctl:x" {
		t.Errorf("%+v, %v", d, err)
	}
	if d, err = describe("default", &containers.Container{ID: strings.Repeat("d", 64)}); err != nil || d.c.Name != "" {
		t.Errorf("an id of 64 digits is nobody's name: %+v, %v", d, err)
	}
}

func TestTooManyEventsAreMadeUpForByAList(t *testing.T) {
	f := newFake(t)
	f.start()
	c := quick(NewClient("containerd", f.socket(), f.hierarchy(), nil))
	c.loop.Queue = 8
	c.loop.Times.SecondList = time.Hour // the overflow alone must do it
	b := newBench(t, c)
	b.fake = f
	b.run()
	b.synced()
	f.run("default", "early", 50)
	b.StateIn("default", "early", registry.Profiled)
	b.hold.Lock() // the registry is stuck
	f.vanish("default", "early", 50, false)
	f.publish("default", "/tasks/exit", &events.TaskExit{ContainerID: "filler", ID: "x"})
	const n = 100
	for i := range n {
		f.run("default", fmt.Sprintf("c%d", i), 100+i)
	}
	f.publish("default", "/tasks/exit", &events.TaskExit{ContainerID: "early", ID: "early", Pid: 50})
	sourcetest.Eventually(t, "the queue overflows", func() bool { return c.Stats().Overflows > 0 })
	b.hold.Unlock()
	for i := range n {
		b.StateIn("default", fmt.Sprintf("c%d", i), registry.Profiled)
	}
	b.StateIn("default", "early", registry.Gone)
}

func TestALostConnectionLosesNothing(t *testing.T) {
	f, b := started(t)
	b.run()
	b.synced()
	stays := f.run("default", "stays", 10)
	f.run("default", "ends", 11)
	f.run("default", "deleted", 12)
	first := f.run("default", "restarts", 13)
	for _, id := range []string{"stays", "ends", "deleted", "restarts"} {
		b.StateIn("default", id, registry.Profiled)
	}
	f.stop()
	sourcetest.Eventually(t, "the loss is noticed", func() bool { return !b.client.Status().Connected })
	if st := b.client.Status(); !strings.Contains(st.Err, "lost") && !strings.Contains(st.Err, "nobody listens") && !strings.Contains(st.Err, "no containerd") {
		t.Errorf("status %+v", st)
	}
	f.vanish("default", "ends", 11, false)
	f.vanish("default", "deleted", 12, true)
	f.vanish("default", "restarts", 13, false)
	f.task("default", "restarts", 14)
	f.run("default", "new", 15)
	f.start()
	b.synced()
	b.StateIn("default", "ends", registry.Gone)
	b.StateIn("default", "deleted", registry.Gone)
	b.StateIn("default", "new", registry.Profiled)
	if rec := b.StateIn("default", "restarts", registry.Profiled); rec.PID != 14 || b.Scopes.Has(first) {
		t.Errorf("record %+v", rec)
	}
	rec := b.StateIn("default", "stays", registry.Profiled)
	if rec.CgroupID != stays || rec.TaskCreatedAt.IsZero() || rec.StartedAt.IsZero() {
		t.Errorf("record %+v, want what was known before", rec)
	}
	if c := b.client.Stats(); c.Connects < 2 || c.Lists < 2 {
		t.Errorf("stats %+v", c)
	}
	if n := b.Scopes.Added(); n != 6 {
		t.Errorf("%d scopes were made, want 6: one for each run", n)
	}
}

func TestAListThatIsOlderThanAnEventDoesNotBringAContainerBack(t *testing.T) {
	f, b := started(t)
	b.client.loop.Times.SecondList = time.Hour
	b.run()
	b.synced()
	f.run("default", "web", 10)
	b.StateIn("default", "web", registry.Profiled)
	f.mu.Lock()
	f.list = func() { // the tasks are read; before the answer arrives, one ends
		f.subscribed()
		f.publish("default", "/tasks/exit", &events.TaskExit{ContainerID: "web", ID: "web", Pid: 10})
		sourcetest.Eventually(t, "the end is told", func() bool { rec, _ := b.FindIn("default", "web"); return rec.State == registry.Gone })
		f.publish("default", "/tasks/create", &events.TaskCreate{ContainerID: "new", Pid: 20})
		sourcetest.Eventually(t, "the new one is told", func() bool { _, ok := b.FindIn("default", "new"); return ok })
	}
	f.mu.Unlock()
	f.process(20, "/default/new")
	f.stop()
	f.start()
	sourcetest.Eventually(t, "it has listed again", func() bool { return b.client.Stats().Connects == 2 && b.client.Status().Connected })
	b.mu.Lock()
	var after []string
	for _, e := range b.said {
		if e.Container.ID == "web" {
			after = append(after, e.Type.String())
		}
	}
	b.mu.Unlock()
	if last := after[len(after)-1]; last != "gone" {
		t.Errorf("the last word about it is %q, want gone; all: %v", last, after)
	}
	if rec, _ := b.FindIn("default", "new"); rec.State == registry.Gone {
		t.Error("a container that came while the list was made is taken for gone")
	}
}

func TestAnOlderEventAfterAListIsNotANewRun(t *testing.T) {
	f, b := started(t)
	b.run()
	cgroup := f.run("default", "web", 20)
	b.synced()
	b.StateIn("default", "web", registry.Profiled)
	f.publish("default", "/tasks/create", &events.TaskCreate{ContainerID: "web", Pid: 10}) // of the run before
	f.run("default", "fence", 30)
	b.StateIn("default", "fence", registry.Profiled)
	if rec := b.StateIn("default", "web", registry.Profiled); rec.PID != 20 || !b.Scopes.Has(cgroup) {
		t.Errorf("record %+v", rec)
	}
}

func TestAProcessThatMovedDownIsStillInItsContainersCgroup(t *testing.T) {
	f, b := started(t)
	f.create("default", "init", nil)
	want := f.process(10, "/default/init")
	f.process(10, "/default/init/init.scope")
	f.running[key{"default", "init"}] = &task.Process{ID: "init", Pid: 10, Status: task.Status_RUNNING}
	// The same where only the record says which cgroup is the container's own.
	f.record("default", &containers.Container{ID: "systemd", Spec: specOf(t, "/batch/one", nil)})
	own := f.process(11, "/batch/one")
	f.process(11, "/batch/one/system.slice/x.service")
	f.running[key{"default", "systemd"}] = &task.Process{ID: "systemd", Pid: 11, Status: task.Status_RUNNING}
	b.run()
	b.synced()
	if rec := b.StateIn("default", "systemd", registry.Profiled); rec.CgroupID != own || rec.CgroupPath != "/batch/one" {
		t.Errorf("record %+v", rec)
	}
	if rec := b.StateIn("default", "init", registry.Profiled); rec.CgroupID != want || rec.CgroupPath != "/default/init" {
		t.Errorf("record %+v", rec)
	}
}

func TestAProcessThatIsGoneLeavesItsCgroup(t *testing.T) {
	f, b := started(t)
	b.run()
	b.synced()
	f.create("default", "web", nil)
	want := f.process(10, "/default/web")
	if err := os.RemoveAll(filepath.Join(f.dir, "proc/10")); err != nil {
		t.Fatal(err)
	}
	f.publish("default", "/tasks/create", &events.TaskCreate{ContainerID: "web", Pid: 10})
	sourcetest.Eventually(t, "its cgroup is found by its record", func() bool { rec, _ := b.FindIn("default", "web"); return rec.CgroupID == want })
	f.publish("default", "/tasks/create", &events.TaskCreate{ContainerID: "nowhere", Pid: 11})
	b.StateIn("default", "nowhere", registry.Waiting)
	if b.client.Stats().Unlocated == 0 {
		t.Errorf("stats %+v", b.client.Stats())
	}
}

func TestRubbishIsCounted(t *testing.T) {
	f, b := started(t)
	f.record("default", &containers.Container{ID: "bad", Spec: &anypb.Any{Value: []byte("{")}})
	f.task("default", "bad", 10)
	b.run()
	b.synced()
	b.StateIn("default", "bad", registry.Profiled) // without its spec
	for _, name := range []string{"TaskCreate", "TaskStart", "TaskExit", "TaskDelete", "ContainerCreate", "ContainerUpdate", "ContainerDelete"} {
		f.envelope(&types.Envelope{Event: &anypb.Any{TypeUrl: "containerd.events." + name, Value: []byte{0xff, 0xff, 0xff}}})
	}
	f.envelope(&types.Envelope{Event: &anypb.Any{TypeUrl: "containerd.events.Unknown"}})
	f.envelope(&types.Envelope{})
	sourcetest.Eventually(t, "all is counted", func() bool { return b.client.Stats().Malformed >= 8 })
	f.run("default", "good", 11)
	b.StateIn("default", "good", registry.Profiled)
}

func TestStatusSaysWhatToDo(t *testing.T) {
	dir, err := os.MkdirTemp("", "stoker-status-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	listen := func() *net.UnixListener {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for _, c := range []struct {
		name   string
		set    func(t *testing.T)
		want   []string
		synced bool
	}{
		{"absent", func(*testing.T) {}, []string{"no containerd at", "start it, or set runtimes.containerd.address"}, true},
		{"nobody listens", func(*testing.T) {
			l := listen()
			l.SetUnlinkOnClose(false)
			l.Close()
		}, []string{"nobody listens at", "mount its directory"}, false},
		{"hangs", func(t *testing.T) {
			l := listen() // accepts, in the kernel's queue, and never answers
			t.Cleanup(func() { l.Close() })
		}, []string{"does not answer at", "stuck or overloaded"}, false},
		{"something else", func(t *testing.T) {
			s := grpc.NewServer()
			l := listen()
			go s.Serve(l)
			t.Cleanup(s.Stop)
		}, []string{"not containerd's gRPC socket at", "containerd.sock"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.RemoveAll(socket); err != nil {
				t.Fatal(err)
			}
			c.set(t)
			client := quick(NewClient("containerd", socket, cgroupfs.Hierarchy{}, nil))
			if client.times.call = time.Minute; c.name == "hangs" {
				client.times.call = 100 * time.Millisecond
			}
			b := newBench(t, client)
			b.run()
			sourcetest.Eventually(t, "there is a status", func() bool { return client.Status().Err != "" })
			st := client.Status()
			for _, want := range append(c.want, socket) {
				if !strings.Contains(st.Err, want) {
					t.Errorf("status %q, want it to say %q", st.Err, want)
				}
			}
			if st.Connected || st.Since.IsZero() {
				t.Errorf("status %+v", st)
			}
			if got := b.WaitSynced(t.Context(), 1, map[bool]time.Duration{true: time.Minute, false: 50 * time.Millisecond}[c.synced]); got != c.synced {
				t.Errorf("synced: %t, want %t", got, c.synced)
			}
		})
	}
}

func TestASocketThatComesLaterIsFound(t *testing.T) {
	f := newFake(t)
	b := newBench(t, quick(NewClient("containerd", f.socket(), f.hierarchy(), nil)))
	b.run()
	sourcetest.Eventually(t, "its absence is noticed", func() bool { return b.client.Status().Err != "" })
	f.run("default", "web", 10)
	f.start()
	b.StateIn("default", "web", registry.Profiled)
}

func TestAContainerdThatHangsLaterIsNoticed(t *testing.T) {
	f := newFake(t)
	f.start()
	c := quick(NewClient("containerd", f.socket(), f.hierarchy(), nil))
	c.times.list, c.loop.Times.ListEvery = 50*time.Millisecond, 20*time.Millisecond
	b := newBench(t, c)
	b.fake = f
	f.run("default", "web", 10)
	b.run()
	b.synced()
	release := make(chan struct{})
	f.mu.Lock()
	f.list = func() { <-release }
	f.mu.Unlock()
	sourcetest.Eventually(t, "the hang is noticed", func() bool { st := c.Status(); return !st.Connected && strings.Contains(st.Err, "does not answer") })
	// Events go on meanwhile, and nothing is taken for gone.
	f.run("default", "other", 11)
	b.StateIn("default", "other", registry.Profiled)
	b.StateIn("default", "web", registry.Profiled)
	f.mu.Lock()
	f.list = nil
	f.mu.Unlock()
	close(release)
	b.synced()
}

// What changes between two lists, or with an event, is told.
func TestLabelsThatChangeAreTold(t *testing.T) {
	f, b := started(t)
	b.client.loop.Times.ListEvery = 20 * time.Millisecond
	f.run("default", "web", 10)
	b.run()
	b.synced()
	first := b.StateIn("default", "web", registry.Profiled)
	f.record("default", &containers.Container{ID: "web", Image: "img:web", Labels: map[string]string{"team": "red"}, Spec: specOf(t, "/default/web", nil)})
	sourcetest.Eventually(t, "the next list tells it", func() bool { rec, _ := b.FindIn("default", "web"); return rec.Labels["team"] == "red" })
	f.record("default", &containers.Container{ID: "web", Image: "img:2", Spec: specOf(t, "/default/web", nil)})
	f.publish("default", "/containers/update", &events.ContainerUpdate{ID: "web", Image: "img:2"})
	sourcetest.Eventually(t, "the event tells it", func() bool { rec, _ := b.FindIn("default", "web"); return rec.Image == "img:2" && len(rec.Labels) == 0 })
	if rec, _ := b.FindIn("default", "web"); rec.ScopeID != first.ScopeID || rec.CreatedAt.IsZero() {
		t.Errorf("record %+v, want the same scope as %d", rec, first.ScopeID)
	}
}

func TestSources(t *testing.T) {
	s, err := Sources(Config{Addresses: []string{"unix:///a.sock", "/b.sock"}})
	if err != nil || len(s) != 2 || s[0].Name() != "containerd" || s[1].Name() != "containerd:/b.sock" || s[0].(*Client).Address() != "/a.sock" {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := Sources(Config{Addresses: []string{"relative"}}); err == nil || !strings.Contains(err.Error(), "absolute path") {
		t.Errorf("got %v", err)
	}
	s, err = Sources(Config{})
	if err != nil || len(s) != 1 || s[0].Name() != "containerd" || len(s[0].(*Usual).Clients()) != len(places) {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestTheUsualPlaces(t *testing.T) {
	f, g := newFake(t), newFake(t)
	u := newUsual([]place{{"containerd", f.socket()}, {"containerd-k3s", g.socket()}}, Config{Hierarchy: f.hierarchy()})
	for _, c := range u.clients {
		quick(c)
	}
	u.clients[1].h = g.hierarchy()
	b := newBench(t, nil)
	sourcetest.Run(t, u, b.emit)
	if !b.WaitSynced(t.Context(), 1, time.Minute) || b.WaitSynced(t.Context(), 2, 20*time.Millisecond) {
		t.Error("places without a containerd must count as one source that has nothing")
	}
	sourcetest.Eventually(t, "both are absent", func() bool { return u.clients[0].Status().Err != "" && u.clients[1].Status().Err != "" })
	if st := u.Status(); st.Connected || !st.Absent || !strings.Contains(st.Err, f.socket()) || !strings.Contains(st.Err, "set runtimes.containerd.address") {
		t.Errorf("status %+v", st)
	}
	g.run("k8s.io", "web", 10)
	g.start()
	b.StateIn("k8s.io", "web", registry.Profiled)
	sourcetest.Eventually(t, "the one that is there counts", func() bool { return u.Status().Connected })
	if n := u.Counts(); n["connect"] != 1 || n["list"] == 0 {
		t.Errorf("counts %v", n)
	}
	f.start()
	f.run("default", "web", 10)
	b.StateIn("default", "web", registry.Profiled)
	g.stop()
	// A socket that is gone would be a place without a containerd; one that nobody listens on is a containerd that is down.
	if err := os.WriteFile(g.socket(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	sourcetest.Eventually(t, "the one that does not work counts", func() bool { st := u.Status(); return !st.Connected && strings.Contains(st.Err, g.socket()) })
	var sources []string
	b.mu.Lock()
	for _, e := range b.said {
		if e.Type == container.Upsert && !slices.Contains(sources, e.Source) {
			sources = append(sources, e.Source)
		}
	}
	b.mu.Unlock()
	slices.Sort(sources)
	if !slices.Equal(sources, []string{"containerd", "containerd-k3s"}) {
		t.Errorf("sources %v", sources)
	}
}

func FuzzDescribe(f *testing.F) {
	f.Add([]byte(`{"annotations":{"a":"b"},"process":{"env":["OTEL_SERVICE_NAME=x","Y"]},"linux":{"cgroupsPath":"/a/b"}}`), []byte(`{"Metadata":{"Config":{"annotations":{"x":"y"}}}}`))
	f.Add([]byte(`{"process":null,"linux":{"cgroupsPath":3}}`), []byte(`{"Metadata":[]}`))
	f.Add([]byte(``), []byte(`null`))
	f.Fuzz(func(t *testing.T, spec, notes []byte) {
		r := &containers.Container{ID: "x", Spec: &anypb.Any{Value: spec}, Extensions: map[string]*anypb.Any{extensionSandbox: {Value: notes}}}
		d, _ := describe("default", r)
		for name := range d.c.Env {
			if name != "OTEL_SERVICE_NAME" && name != "OTEL_RESOURCE_ATTRIBUTES" {
				t.Errorf("variable %q is kept", name)
			}
		}
		if p, _ := describePod(r); p.annotations == nil || d.c.ID != "x" || d.c.Labels == nil || d.c.Annotations == nil {
			t.Errorf("%+v, %+v", d, p)
		}
	})
}

func TestVersionIsAsked(t *testing.T) {
	f := newFake(t)
	ask := func() (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		return Version(ctx, f.socket())
	}
	if _, err := ask(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nobody there: %v", err)
	}
	f.start()
	if _, err := ask(); err == nil || !strings.Contains(err.Error(), "tells no version") {
		t.Errorf("no version: %v", err)
	}
	f.version = "2.4.2"
	if v, err := ask(); err != nil || v != "2.4.2" {
		t.Errorf("%q, %v", v, err)
	}
	f.version = strings.Repeat("9", 1000)
	if v, err := ask(); err != nil || len(v) != 40 {
		t.Errorf("%q, %v", v, err)
	}
}
