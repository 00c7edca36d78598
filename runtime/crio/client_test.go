package crio

import (
	"context"
	"errors"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/internal/sourcetest"
	"github.com/stoker-profiler/stoker/runtime/registry"
)

func started(t *testing.T) (*fake, *bench) {
	t.Helper()
	f := newFake(t)
	f.start()
	return f, newBench(t, f)
}

// described checks that a record has all that CRI-O says about a container.
func described(t *testing.T, rec registry.Record, pod string) {
	t.Helper()
	name := rec.Name
	if rec.Runtime != "cri-o" || rec.KubernetesContainer != name || rec.Image != "quay.io/shop/"+name+":v1" || rec.Labels["tier"] != "front" ||
		rec.Annotations["io.kubernetes.container.hash"] != "f00" || !maps.Equal(rec.Env, map[string]string{"OTEL_SERVICE_NAME": "svc-" + name}) || rec.CreatedAt.IsZero() {
		t.Errorf("container %+v", rec.Container)
	}
	if p := rec.Pod; p.Name != pod || p.Namespace != "shop" || p.UID != uid || p.Labels["app"] != "web" || p.Labels["io.kubernetes.pod.name"] != pod || p.Annotations["team"] != "blue" {
		t.Errorf("pod %+v", p)
	}
}

func (f *fake) webPod(id, name string) {
	f.pod(id, name, "shop", map[string]string{"app": "web"}, map[string]string{"team": "blue"})
}

// What CRI-O 1.36.3 has is told, with the answers of a fake that follows its sources.
func TestWhatCRIOHasIsTold(t *testing.T) {
	for name, driver := range map[string]func(prefix, id string) string{"systemd": systemd, "systemd with crun": crun, "cgroupfs": fsDriver} {
		t.Run(name, func(t *testing.T) {
			f, b := started(t)
			f.webPod(idOf(1), "web-0")
			pid := f.run(idOf(2), idOf(1), "main", driver)
			f.run(idOf(3), idOf(1), "old", driver)
			f.exit(idOf(3))
			f.begin(idOf(4), idOf(1), "next", driver) // being made
			b.run()
			b.synced()
			rec := b.Until(idOf(2), "described", func(rec registry.Record) bool { return rec.State == registry.Profiled && rec.Env != nil })
			described(t, rec, "web-0")
			own := strings.TrimSuffix(driver("crio", idOf(2)), "/container")
			if rec.PID != pid || rec.CgroupPath != own || rec.CgroupID != f.cgroupID(own) || !b.Scopes.Has(rec.CgroupID) || rec.StartedAt.IsZero() {
				t.Errorf("process %+v", rec.Container)
			}
			if len(b.All(idOf(3))) != 0 || len(b.All(idOf(4))) != 0 {
				t.Errorf("a container that had ended, or is not made yet, is listed")
			}
			for _, rec := range b.List() {
				if rec.ID == idOf(1) {
					t.Errorf("the pod's sandbox is listed: %+v", rec)
				}
			}
			// What comes and goes without a hint is found by comparing.
			f.created(idOf(4))
			b.client.Hint(container.Container{Runtime: "cri-o", ID: idOf(4)})
			described(t, b.Until(idOf(4), "described", func(rec registry.Record) bool { return rec.Env != nil }), "web-0")
			f.exit(idOf(2))
			b.client.Hint(container.Container{Runtime: "cri-o", ID: idOf(5)}) // something else: everything is listed
			b.State(idOf(2), registry.Gone)
			if b.Scopes.Has(rec.CgroupID) {
				t.Error("a container that has ended is in scope")
			}
		})
	}
}

// The scan finds a container as soon as it has a cgroup; its names come as soon as CRI-O lists it, and are not waited for.
func TestContainersThatTheScanFindsFirst(t *testing.T) {
	for name, driver := range map[string]func(prefix, id string) string{"systemd": systemd, "systemd with crun": crun, "cgroupfs": fsDriver} {
		t.Run(name, func(t *testing.T) {
			f, b := started(t)
			b.client.loop.Times.ListEvery = time.Hour // only hints
			b.scan()
			b.run()
			b.synced()
			f.webPod(idOf(1), "web-0")
			f.process(1, driver("crio", idOf(1))) // a pod with a pause process
			f.process(2, driver("crio-conmon", idOf(2)))
			f.begin(idOf(2), idOf(1), "main", driver)
			rec := b.Until(idOf(2), "in scope", func(rec registry.Record) bool { return b.Scopes.Has(rec.CgroupID) })
			if rec.Described {
				t.Errorf("it is described before CRI-O could say anything: %+v", rec)
			}
			lists := f.called("ListContainers")
			sourcetest.Eventually(t, "CRI-O is asked again", func() bool { return f.called("ListContainers") > lists+1 })
			f.created(idOf(2))
			rec = b.Until(idOf(2), "described", func(rec registry.Record) bool { return rec.State == registry.Profiled && rec.Env != nil })
			described(t, rec, "web-0")
			if len(b.All(idOf(2))) != 1 || rec.Sources["cgroup"].IsZero() || rec.Sources["cri-o"].IsZero() {
				t.Errorf("%d records; %+v", len(b.All(idOf(2))), rec)
			}
			sourcetest.Eventually(t, "the pause process is out of scope", func() bool {
				return !b.Scopes.Has(f.cgroupID(strings.TrimSuffix(driver("crio", idOf(1)), "/container")))
			})
			for _, rec := range b.List() {
				if rec.ID != idOf(2) {
					t.Errorf("listed: %+v", rec)
				}
			}
			// One that has its name before it starts is asked about once more when it runs: then it is known since when.
			if !rec.StartedAt.IsZero() {
				t.Errorf("it has not started: %v", rec.StartedAt)
			}
			f.state(idOf(2), cri.ContainerState_CONTAINER_RUNNING)
			b.client.Hint(container.Container{Runtime: "cri-o", ID: idOf(9)})
			b.Until(idOf(2), "known to have started", func(rec registry.Record) bool { return !rec.StartedAt.IsZero() })
			f.exit(idOf(2))
			b.State(idOf(2), registry.Gone)
		})
	}
}

// A container that has ended before CRI-O could be asked still gets its names: CRI-O lists it until the kubelet removes it.
func TestShortLivedContainersGetTheirNames(t *testing.T) {
	f, b := started(t)
	b.client.loop.Times.ListEvery = time.Hour
	b.scan()
	b.run()
	b.synced()
	f.webPod(idOf(1), "web-0")
	f.run(idOf(3), idOf(1), "long", systemd)
	b.Until(idOf(3), "described", func(rec registry.Record) bool { return rec.Env != nil })
	asked := f.called("ContainerStatus")
	f.begin(idOf(2), idOf(1), "short", systemd)
	b.Until(idOf(2), "in scope", func(rec registry.Record) bool { return b.Scopes.Has(rec.CgroupID) })
	f.with(func() {
		f.before = func(context.Context, string) error { return status.Error(codes.Unavailable, "not now") }
	})
	f.created(idOf(2))
	f.state(idOf(2), cri.ContainerState_CONTAINER_RUNNING)
	f.exit(idOf(2))
	b.State(idOf(2), registry.Gone)
	f.with(func() { f.before = nil })
	rec := b.Until(idOf(2), "described", func(rec registry.Record) bool { return rec.Env != nil })
	described(t, rec, "web-0")
	if found := b.All(idOf(2)); len(found) != 1 || rec.State != registry.Gone || b.Scopes.Has(rec.CgroupID) || rec.PID != 0 {
		t.Errorf("%d records; %+v", len(found), rec)
	}
	// Nobody asks about it a second time.
	asked = f.called("ContainerStatus") - asked
	lists := f.called("ListContainers")
	b.client.Hint(rec.Container)
	b.client.Hint(container.Container{Runtime: "cri-o", ID: idOf(9)})
	sourcetest.Eventually(t, "everything is listed again", func() bool { return f.called("ListContainers") > lists+1 })
	if n := len(b.All(idOf(2))); n != 1 || asked != 1 {
		t.Errorf("%d records, asked %d times", n, asked)
	}
}

// containerd answers the same calls. Nothing but its version is asked of it.
func TestAnotherRuntimeIsLeftAlone(t *testing.T) {
	f, b := started(t)
	f.name = "containerd"
	f.webPod(idOf(1), "web-0")
	f.run(idOf(2), idOf(1), "main", systemd)
	b.run()
	sourcetest.Eventually(t, "it is asked again and again", func() bool { return f.called("Version") > 3 })
	st := b.client.Status()
	if st.Connected || st.Absent || !strings.Contains(st.Err, "this is not CRI-O") || !strings.Contains(st.Err, "containerd") || !strings.Contains(st.Err, "runtimes.crio.address") {
		t.Errorf("status %+v", st)
	}
	f.with(func() {
		for method := range f.calls {
			if method != "Version" {
				t.Errorf("%s was called", method)
			}
		}
		f.name = "cri-o"
	})
	b.Until(idOf(2), "described", func(rec registry.Record) bool { return rec.Env != nil })
}

func TestNoCRIO(t *testing.T) {
	f := newFake(t)
	b := newBench(t, f)
	b.client.loop.Optional = true
	b.run()
	if !b.WaitSynced(t.Context(), 1, 20*time.Second) {
		t.Error("whoever waits for the first list waits for nothing")
	}
	if st := b.client.Status(); st.Connected || !st.Absent || !strings.Contains(st.Err, "runtimes.crio.address") {
		t.Errorf("status %+v", st)
	}
	f.webPod(idOf(1), "web-0")
	f.run(idOf(2), idOf(1), "main", systemd)
	f.start() // it appears
	b.State(idOf(2), registry.Profiled)
	// And ends, and is another when it is back.
	f.stop()
	b.client.Hint(container.Container{Runtime: "cri-o", ID: idOf(9)})
	sourcetest.Eventually(t, "the loss is noticed", func() bool { return !b.client.Status().Connected })
	if st := b.client.Status(); st.Absent {
		t.Errorf("status %+v", st)
	}
	f.exit(idOf(2))
	f.run(idOf(3), idOf(1), "other", systemd)
	f.start()
	b.State(idOf(2), registry.Gone)
	described(t, b.Until(idOf(3), "described", func(rec registry.Record) bool { return rec.Env != nil }), "web-0")
}

// A status that is not answered costs a container its environment and nothing else, and holds up no other.
func TestAStatusThatHangs(t *testing.T) {
	f, b := started(t)
	b.client.times.call = 300 * time.Millisecond
	b.client.loop.Times.ListEvery = 50 * time.Millisecond
	b.scan()
	b.run()
	b.synced()
	hang := true
	f.with(func() {
		f.before = func(ctx context.Context, method string) error {
			f.mu.Lock()
			stuck := hang && method == "ContainerStatus"
			f.mu.Unlock()
			if stuck {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
	})
	f.webPod(idOf(1), "web-0")
	for i := range 10 {
		f.run(idOf(10+i), idOf(1), "main", systemd)
	}
	for i := range 10 {
		rec := b.Until(idOf(10+i), "described", func(rec registry.Record) bool { return rec.State == registry.Profiled && rec.Pod.Name == "web-0" })
		if rec.Name != "main" || rec.Env != nil || rec.Image != "quay.io/shop/main@sha256:"+strings.Repeat("cd", 32) {
			t.Errorf("record %+v", rec)
		}
	}
	sourcetest.Eventually(t, "failures are counted", func() bool { return b.client.Stats().DescribeErrors > 0 })
	if st := b.client.Status(); !st.Connected {
		t.Errorf("status %+v", st)
	}
	f.with(func() { hang = false })
	for i := range 10 {
		described(t, b.Until(idOf(10+i), "described", func(rec registry.Record) bool { return rec.Env != nil }), "web-0")
	}
}

// Everything may hang: Run ends at once all the same, and Status says what is wrong.
func TestACRIOThatHangs(t *testing.T) {
	for _, method := range []string{"Version", "ListContainers", "ListPodSandbox"} {
		t.Run(method, func(t *testing.T) {
			f, b := started(t)
			b.client.times.call, b.client.times.list = 50*time.Millisecond, 50*time.Millisecond
			f.before = func(ctx context.Context, m string) error {
				if m == method {
					<-ctx.Done()
				}
				return ctx.Err()
			}
			b.run()
			sourcetest.Eventually(t, "it is said", func() bool { return strings.Contains(b.client.Status().Err, "does not answer") })
			f.webPod(idOf(1), "web-0")
			f.run(idOf(2), idOf(1), "main", systemd)
			f.with(func() { f.before = nil })
			b.State(idOf(2), registry.Profiled)
		})
	}
}

// A pid that is wrong, because the process has ended and another has its number, or because CRI-O lies, moves nobody's scope.
func TestAWrongPidIsNotBelieved(t *testing.T) {
	f, b := started(t)
	f.webPod(idOf(1), "web-0")
	f.run(idOf(2), idOf(1), "main", systemd)
	f.process(77, "/system.slice/sshd.service")
	f.process(78, "/")
	f.process(79, systemd("crio-conmon", idOf(2)))
	other := f.run(idOf(3), idOf(1), "other", systemd)
	for i, pid := range []int{77, 78, 79, other, 404, -5, 1 << 31} {
		f.run(idOf(10+i), idOf(1), "liar", systemd)
		f.with(func() { f.ctrs[idOf(10+i)].pid = pid })
	}
	b.run()
	for i := range 7 {
		rec := b.Until(idOf(10+i), "described", func(rec registry.Record) bool { return rec.Env != nil })
		if rec.CgroupID != 0 || rec.State != registry.Waiting {
			t.Errorf("pid %d: %+v", rec.PID, rec)
		}
	}
	b.State(idOf(3), registry.Profiled)
	if b.client.Stats().Unlocated == 0 || b.Scopes.Has(f.cgroupID("/system.slice/sshd.service")) || b.Scopes.Has(f.cgroupID(systemd("crio-conmon", idOf(2)))) {
		t.Errorf("stats %+v, %d in scope", b.client.Stats(), b.Scopes.Len())
	}
	b.scan() // which knows better
	for i := range 7 {
		b.State(idOf(10+i), registry.Profiled)
	}
}

// What a list says that cannot be is counted, and the rest of the list holds.
func TestNonsenseInAList(t *testing.T) {
	f, b := started(t)
	f.webPod(idOf(1), "web-0")
	f.run(idOf(2), idOf(1), "main", systemd)
	f.listing = func(l *cri.ListContainersResponse) {
		l.Containers = append(l.Containers, &cri.Container{}, &cri.Container{Id: "../../etc"}, &cri.Container{Id: strings.Repeat("G", 64)},
			l.Containers[0], &cri.Container{Id: idOf(7), PodSandboxId: "none", State: 99}, &cri.Container{Id: strings.Repeat("x", 100_000)})
	}
	b.run()
	described(t, b.Until(idOf(2), "described", func(rec registry.Record) bool { return rec.Env != nil }), "web-0")
	if rec := b.State(idOf(7), registry.Waiting); rec.Pod.Name != "" || rec.Labels == nil {
		t.Errorf("record %+v", rec)
	}
	if n := b.client.Stats().Malformed; n < 5 {
		t.Errorf("%d counted", n)
	}
	if list := b.List(); len(list) != 2 {
		t.Errorf("list %+v", list)
	}
}

func TestExplainNamesTheRemedy(t *testing.T) {
	c := newTable(NewClient("cri-o", "/var/run/crio/crio.sock", newFake(t).hierarchy(), nil))
	for want, err := range map[string]error{
		"stoker as root":           os.ErrPermission,
		"no CRI-O":                 os.ErrNotExist,
		"does not answer":          context.DeadlineExceeded,
		"CRI-O 1.26 or later":      status.Error(codes.Unimplemented, "unknown service"),
		"restarting, or has ended": status.Error(codes.Unavailable, "EOF"),
		"that a kubelet would":     status.Error(codes.ResourceExhausted, "received message larger than max"),
		"look into its log":        errors.New("surprise"),
	} {
		if _, got := c.Explain(err); !strings.Contains(got.Error(), want) || !errors.Is(got, err) || !strings.Contains(got.Error(), c.address) {
			t.Errorf("%v: got %q, want %q in it", err, got, want)
		}
	}
}

func TestSources(t *testing.T) {
	sources, err := Sources(Config{})
	if err != nil || len(sources) != 1 || sources[0].Name() != "cri-o" || sources[0].(*Client).Address() != DefaultAddress || !sources[0].(*Client).loop.Optional {
		t.Errorf("got %v, %v", sources, err)
	}
	sources, err = Sources(Config{Addresses: []string{"unix:///a/b", "/c"}})
	if err != nil || len(sources) != 2 || sources[0].(*Client).Address() != "/a/b" || sources[1].Name() != "cri-o:/c" || sources[0].(*Client).loop.Optional {
		t.Errorf("got %v, %v", sources, err)
	}
	if _, err = Sources(Config{Addresses: []string{"crio.sock"}}); err == nil || !strings.Contains(err.Error(), DefaultAddress) {
		t.Errorf("got %v", err)
	}
}

func FuzzParseStatus(f *testing.F) {
	f.Add(idOf(1), []byte(`{"sandboxID":"x","pid":7,"runtimeSpec":{"process":{"env":["OTEL_SERVICE_NAME=x","Y"]}}}`))
	f.Add(idOf(1), []byte(`{"pid":-1,"runtimeSpec":null}`))
	f.Add("", []byte(`[]`))
	f.Fuzz(func(t *testing.T, id string, info []byte) {
		d, err := parseStatus(id, &cri.ContainerStatusResponse{Status: &cri.ContainerStatus{Id: id}, Info: map[string]string{"info": string(info)}})
		if d.pid < 0 || err == nil && d.env == nil {
			t.Errorf("%+v, %v", d, err)
		}
		for name := range d.env {
			if !strings.HasPrefix(name, "OTEL_") {
				t.Errorf("variable %q is kept", name)
			}
		}
		if _, err := parseStatus(id+"x", &cri.ContainerStatusResponse{Status: &cri.ContainerStatus{Id: id}}); err == nil {
			t.Error("a status of another container is taken")
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
	if v, err := ask(); err != nil || v != version {
		t.Errorf("%q, %v", v, err)
	}
	f.with(func() { f.name = "containerd" })
	if v, err := ask(); !errors.Is(err, errNotCRIO) {
		t.Errorf("another runtime: %q, %v", v, err)
	}
}
