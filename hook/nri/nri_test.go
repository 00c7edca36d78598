package nri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	"github.com/containerd/nri/pkg/net/multiplex"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
)

const patience = 20 * time.Second

// bench is a machine of files with a plugin on it.
type bench struct {
	t      *testing.T
	dir    string
	socket string
	p      *Plugin
	// closing is closed when the test is over.
	closing chan struct{}

	mu   sync.Mutex // protects what follows
	all  []container.Event
	hook func(container.Event) // called in emit
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir, err := os.MkdirTemp("", "nri-") // short: a socket is in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &bench{t: t, dir: dir, socket: filepath.Join(dir, "nri.sock"), closing: make(chan struct{})}
	b.p, err = New(Config{Socket: "unix://" + b.socket, Hierarchy: cgroupfs.Hierarchy{Mount: filepath.Join(dir, "cgroup"), Proc: filepath.Join(dir, "proc")}})
	if err != nil {
		t.Fatal(err)
	}
	b.p.times = times{hold: 200 * time.Millisecond, start: 300 * time.Millisecond, sync: 300 * time.Millisecond, minBackoff: 5 * time.Millisecond,
		maxBackoff: 20 * time.Millisecond, absentEvery: 5 * time.Millisecond}
	return b
}

// process makes a process that is in a cgroup.
func (b *bench) process(pid int, cgroup string) {
	b.t.Helper()
	for _, dir := range []string{filepath.Join("proc", fmt.Sprint(pid)), filepath.Join("cgroup", cgroup)} {
		if err := os.MkdirAll(filepath.Join(b.dir, dir), 0o755); err != nil {
			b.t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(b.dir, "proc", fmt.Sprint(pid), "cgroup"), []byte("0::"+cgroup+"\n"), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// run starts the plugin; it is stopped when the test ends.
func (b *bench) run() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.p.Run(ctx, b.emit) }()
	b.t.Cleanup(func() {
		cancel()
		close(b.closing)
		select {
		case err := <-ended:
			if !errors.Is(err, context.Canceled) {
				b.t.Errorf("Run ended with %v", err)
			}
		case <-time.After(patience):
			b.t.Error("Run did not end with its context")
		}
	})
}

func (b *bench) emit(e container.Event) {
	b.mu.Lock()
	hook := b.hook
	b.all = append(b.all, e)
	b.mu.Unlock()
	if hook != nil {
		hook(e)
	}
}

func (b *bench) setHook(f func(container.Event)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hook = f
}

// events are those that were told so far, as text.
func (b *bench) events() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, e := range b.all {
		line := e.Type.String()
		if c := e.Container; c.ID != "" {
			line += fmt.Sprintf(" %s", c.ID)
		}
		out = append(out, line)
	}
	return out
}

// connected waits until the plugin and the runtime are done with what comes first.
func (b *bench) connected(r *runtime) {
	b.t.Helper()
	b.eventually("it is connected", func() bool { return b.p.Status().Connected })
	r.BlockPluginSync().Unblock()
}

func (b *bench) eventually(what string, f func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("not within %s: %s; events %q, status %+v, counts %v", patience, what, b.events(), b.p.Status(), b.p.Counts())
		}
	}
}

// runtime is the runtime's side of NRI, as it is in containerd.
type runtime struct {
	*adaptation.Adaptation
	t *testing.T

	mu         sync.Mutex // protects what follows
	pods       []*api.PodSandbox
	containers []*api.Container
}

type quiet struct{}

func (quiet) Debugf(context.Context, string, ...any) {}
func (quiet) Infof(context.Context, string, ...any)  {}
func (quiet) Warnf(context.Context, string, ...any)  {}
func (quiet) Errorf(context.Context, string, ...any) {}

func (b *bench) runtime(pods []*api.PodSandbox, containers []*api.Container) *runtime {
	b.t.Helper()
	r := &runtime{t: b.t, pods: pods, containers: containers}
	sync := func(ctx context.Context, tell adaptation.SyncCB) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		_, err := tell(ctx, r.pods, r.containers)
		return err
	}
	update := func(context.Context, []*adaptation.ContainerUpdate) ([]*adaptation.ContainerUpdate, error) {
		b.t.Error("the plugin wants to change a container")
		return nil, nil
	}
	var err error
	r.Adaptation, err = adaptation.New("containerd", "2.4.2", sync, update, adaptation.WithSocketPath(b.socket), adaptation.WithPluginPath(b.dir+"/none"),
		adaptation.WithPluginConfigPath(b.dir+"/none"))
	if err != nil {
		b.t.Fatal(err)
	}
	if err := r.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(r.Stop)
	return r
}

func TestMain(m *testing.M) {
	nrilog.Set(quiet{}) // the runtime's side
	os.Exit(m.Run())
}

// start tells of a start as a runtime does, and how long it took.
func (r *runtime) start(pod *api.PodSandbox, c *api.Container) time.Duration {
	r.t.Helper()
	begin := time.Now()
	c = proto.Clone(c).(*api.Container)
	c.State = api.ContainerState_CONTAINER_CREATED
	if err := r.StartContainer(context.Background(), &adaptation.StartContainerRequest{Pod: pod, Container: c}); err != nil {
		r.t.Errorf("the start of container %s fails: %v", c.GetId(), err)
	}
	return time.Since(begin)
}

var (
	pod = &api.PodSandbox{Id: "p1", Name: "web-0", Namespace: "shop", Uid: "u-1", Labels: map[string]string{"app": "web"},
		Annotations: map[string]string{"team": "blue"}, Pid: 10, Linux: &api.LinuxPodSandbox{CgroupsPath: "/kubepods/podu-1/p1"}}
	first = &api.Container{Id: "c1", PodSandboxId: "p1", Name: "main", State: api.ContainerState_CONTAINER_RUNNING, Pid: 11,
		Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"x": "y"}, Env: []string{"OTEL_SERVICE_NAME=svc", "PASSWORD=secret"},
		Image: &api.Image{Name: "localhost/web:1"}, CreatedAt: 5e9, StartedAt: 6e9, Linux: &api.LinuxContainer{CgroupsPath: "/kubepods/podu-1/c1"}}
	second = &api.Container{Id: "c2", PodSandboxId: "p1", Name: "side", State: api.ContainerState_CONTAINER_CREATED, Pid: 12,
		Annotations: map[string]string{"io.kubernetes.cri.image-name": "localhost/side:1"}}
	ended = &api.Container{Id: "c3", PodSandboxId: "p1", State: api.ContainerState_CONTAINER_STOPPED}
)

func TestTellsWhatExistsAndWhatStartsAndStops(t *testing.T) {
	b := newBench(t)
	b.process(10, "/kubepods/podu-1/p1")
	b.process(11, "/kubepods/podu-1/c1/below") // it has moved below its own
	b.process(12, "/kubepods/podu-1/c2")
	r := b.runtime([]*api.PodSandbox{pod}, []*api.Container{first, ended})
	b.run()
	b.connected(r)
	r.start(pod, second)
	ctx := context.Background()
	if _, err := r.StopContainer(ctx, &adaptation.StopContainerRequest{Pod: pod, Container: second}); err != nil {
		t.Error(err)
	}
	if err := r.RemoveContainer(ctx, &adaptation.RemoveContainerRequest{Pod: pod, Container: second}); err != nil {
		t.Error(err)
	}
	if err := r.RunPodSandbox(ctx, &adaptation.RunPodSandboxRequest{Pod: &api.PodSandbox{Id: "p2", Name: "db"}}); err != nil {
		t.Error(err)
	}
	if err := r.RemovePodSandbox(ctx, &adaptation.RemovePodSandboxRequest{Pod: &api.PodSandbox{Id: "p2"}}); err != nil {
		t.Error(err)
	}
	want := []string{"syncing", "upsert p1", "upsert c1", "synced", "upsert c2", "gone c2", "gone c2", "upsert p2", "gone p2"}
	if got := b.events(); !slices.Equal(got, want) {
		t.Fatalf("events\n%q, want\n%q", got, want)
	}
	p1, c1, c2 := b.all[1].Container, b.all[2].Container, b.all[4].Container
	if !p1.Sandbox || p1.PID != 10 || p1.CgroupPath != "/kubepods/podu-1/p1" || p1.CgroupID == 0 || p1.Pod.Name != "web-0" {
		t.Errorf("pod %+v", p1)
	}
	if c1.Sandbox || c1.Runtime != "containerd" || c1.Namespace != "k8s.io" || c1.Name != "main" || c1.KubernetesContainer != "main" || c1.Image != "localhost/web:1" ||
		c1.Labels["a"] != "b" || c1.Annotations["x"] != "y" || len(c1.Env) != 1 || c1.Env["OTEL_SERVICE_NAME"] != "svc" || c1.PID != 11 ||
		c1.CgroupPath != "/kubepods/podu-1/c1" || c1.CgroupID == 0 || c1.CreatedAt.Unix() != 5 || c1.StartedAt.Unix() != 6 {
		t.Errorf("container %+v", c1)
	}
	if p := c1.Pod; p.Name != "web-0" || p.Namespace != "shop" || p.UID != "u-1" || p.Labels["app"] != "web" || p.Annotations["team"] != "blue" {
		t.Errorf("its pod %+v", p)
	}
	if c2.Image != "localhost/side:1" || c2.CgroupPath != "/kubepods/podu-1/c2" || c2.CgroupID == 0 || c2.Labels == nil || !c2.StartedAt.IsZero() {
		t.Errorf("container %+v", c2)
	}
	for i, e := range b.all {
		if e.Source != "nri" || e.At.IsZero() || e.Complete != (e.Type == container.Upsert) || e.Inferred {
			t.Errorf("event %d: %+v", i, e)
		}
	}
}

// CRI-O tells no pids; its containers' cgroups are made before it says that they start.
func TestWithoutAPidTheCgroupIsWhereTheRuntimeSaysIt(t *testing.T) {
	b := newBench(t)
	b.process(1, "/kubepods.slice/kubepods-podu.slice/crio-c1.scope")
	r := b.runtime(nil, []*api.Container{{Id: "c0", State: api.ContainerState_CONTAINER_CREATED, Linux: &api.LinuxContainer{CgroupsPath: "kubepods-podu.slice:crio:c0"}}})
	b.run()
	b.connected(r)
	r.start(nil, &api.Container{Id: "c1", Annotations: map[string]string{"io.kubernetes.cri-o.ImageName": "img"}, Linux: &api.LinuxContainer{CgroupsPath: "kubepods-podu.slice:crio:c1"}})
	if c := b.all[1].Container; c.ID != "c0" || c.CgroupID != 0 || c.CgroupPath != "" {
		t.Errorf("not started yet: %+v", c)
	}
	if c := b.all[3].Container; c.ID != "c1" || c.CgroupID == 0 || c.CgroupPath != "/kubepods.slice/kubepods-podu.slice/crio-c1.scope" || c.Image != "img" {
		t.Errorf("started: %+v", c)
	}
	if n := b.p.Counts()["cgroup_not_found"]; n != 0 {
		t.Errorf("%d cgroups not found", n)
	}
}

func TestASocketThatIsAbsentIsNoErrorAndFoundLater(t *testing.T) {
	b := newBench(t)
	b.run()
	b.eventually("it says that there is none", func() bool { return b.p.Status().Absent })
	if st := b.p.Status(); st.Connected || !strings.Contains(st.Err, b.socket) || !strings.Contains(st.Err, "runtimes.nri.socket") {
		t.Errorf("status %+v", st)
	}
	if got := b.events(); !slices.Equal(got, []string{"synced"}) {
		t.Errorf("events %q, want only that nothing is to be waited for", got)
	}
	b.runtime(nil, []*api.Container{first})
	b.eventually("it is connected", func() bool { return b.p.Status().Connected })
	if got := b.events(); !slices.Equal(got, []string{"synced", "syncing", "upsert c1", "synced"}) {
		t.Errorf("events %q", got)
	}
}

// Whatever happens to what the plugin tells: the runtime goes on, at once, and does not cut it off.
func TestNothingHoldsUpTheRuntime(t *testing.T) {
	t.Run("a registry that hangs", func(t *testing.T) {
		b := newBench(t)
		r := b.runtime(nil, nil)
		b.run()
		b.connected(r)
		release := make(chan struct{})
		b.setHook(func(container.Event) { <-release })
		for _, c := range []*api.Container{first, second} {
			if took := r.start(pod, c); took < b.p.times.hold {
				t.Errorf("answered after %s, want the plugin to give the registry %s", took, b.p.times.hold)
			}
		}
		if n := b.p.Counts()["answer_early"]; n != 2 {
			t.Errorf("%d answers before the registry's, want 2", n)
		}
		b.setHook(nil)
		close(release)
		r.start(pod, &api.Container{Id: "c4"})
		if got, want := b.events(), []string{"syncing", "synced", "upsert c1", "upsert c2", "upsert c4"}; !slices.Equal(got, want) {
			t.Errorf("events %q, want %q", got, want)
		}
		if n := b.p.Counts()["connect"]; n != 1 {
			t.Errorf("%d connections: it was cut off", n)
		}
	})
	t.Run("a panic", func(t *testing.T) {
		b := newBench(t)
		r := b.runtime(nil, nil)
		b.run()
		b.connected(r)
		b.setHook(func(container.Event) { panic("a bug") })
		r.start(pod, first)
		b.setHook(nil)
		r.start(nil, second)
		if c := b.p.Counts(); c["panic"] != 1 || c["connect"] != 1 || c["start"] != 2 {
			t.Errorf("counts %v", c)
		}
	})
	t.Run("a queue that is full", func(t *testing.T) {
		b := newBench(t)
		b.p.jobs = make(chan job, 1)
		b.p.times.hold = time.Millisecond
		r := b.runtime(nil, []*api.Container{first})
		b.run()
		b.connected(r)
		release := make(chan struct{})
		b.setHook(func(container.Event) { <-release })
		for range 3 { // one is being told, one waits, one is too many
			r.start(pod, second)
		}
		if n := b.p.Counts()["dropped"]; n != 1 {
			t.Errorf("%d events dropped, want 1", n)
		}
		b.eventually("it ends the connection, to be told everything again", func() bool { return !b.p.Status().Connected })
		b.setHook(nil)
		close(release)
		b.eventually("it is connected", func() bool { return b.p.Status().Connected })
		if got := b.events(); !slices.Equal(got[len(got)-3:], []string{"syncing", "upsert c1", "synced"}) {
			t.Errorf("events %q", got)
		}
	})
}

// serve speaks for a runtime on the socket, one connection after the other, and tells when each begins.
func (b *bench) serve(f func(net.Conn)) (connections chan struct{}) {
	b.t.Helper()
	l, err := net.Listen("unix", b.socket)
	if err != nil {
		b.t.Fatal(err)
	}
	connections = make(chan struct{}, 100)
	var conns sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			select {
			case connections <- struct{}{}:
			case <-ctx.Done():
			}
			conns.Go(func() {
				stop := context.AfterFunc(ctx, func() { conn.Close() })
				defer stop()
				f(conn)
			})
		}
	})
	b.t.Cleanup(func() { cancel(); l.Close(); conns.Wait() })
	return connections
}

// register lets the plugin register, and calls then with what its services are called through.
func (b *bench) register(conn net.Conn, then func(api.PluginService)) {
	mux := multiplex.Multiplex(conn, multiplex.WithBlockedRead()) // what comes before the server is up is not lost
	defer mux.Close()
	l, err := mux.Listen(multiplex.RuntimeServiceConn)
	if err != nil {
		b.t.Error(err)
		return
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		b.t.Error(err)
		return
	}
	defer server.Close()
	registered := make(chan struct{})
	api.RegisterRuntimeService(server, registrar{registered})
	go func() { _ = server.Serve(context.Background(), l) }() // it ends with the connection
	mux.Unblock()
	select {
	case <-registered:
	case <-b.closing:
		return
	case <-time.After(patience):
		b.t.Error("the plugin does not register")
		return
	}
	pc, err := mux.Open(multiplex.PluginServiceConn)
	if err != nil {
		b.t.Error(err)
		return
	}
	then(api.NewPluginClient(ttrpc.NewClient(pc)))
}

type registrar struct{ registered chan struct{} }

func (r registrar) RegisterPlugin(context.Context, *api.RegisterPluginRequest) (*api.Empty, error) {
	close(r.registered)
	return &api.Empty{}, nil
}

func (r registrar) UpdateContainers(context.Context, *api.UpdateContainersRequest) (*api.UpdateContainersResponse, error) {
	return nil, errors.New("not expected")
}

func TestConnectsAgainWhenTheRuntimeHasRestarted(t *testing.T) {
	b := newBench(t)
	restart := make(chan *api.Container)
	b.serve(func(conn net.Conn) {
		b.register(conn, func(p api.PluginService) {
			ctx := context.Background()
			var c *api.Container
			select {
			case c = <-restart:
			case <-b.closing:
				return
			}
			if r, err := p.Configure(ctx, &api.ConfigureRequest{RuntimeName: "CRI-O"}); err != nil || r.GetFailurePolicy().GetKeepConnected() ||
				r.GetFailurePolicy().GetFailRequest() {
				t.Errorf("configured: %v, %v, want a plugin that is cut off when it is late, and never fails a request", r, err)
			}
			// In two parts, as what is too long for one message.
			if _, err := p.Synchronize(ctx, &api.SynchronizeRequest{Containers: []*api.Container{first}, More: true}); err != nil {
				t.Error(err)
			}
			if _, err := p.Synchronize(ctx, &api.SynchronizeRequest{Pods: []*api.PodSandbox{pod}, Containers: []*api.Container{c}}); err != nil {
				t.Error(err)
			}
		})
	})
	b.run()
	for n := range 3 {
		restart <- &api.Container{Id: fmt.Sprintf("new-%d", n), State: api.ContainerState_CONTAINER_CREATED}
		b.eventually("it is told everything", func() bool { return b.p.Counts()["synchronize"] == uint64(n+1) })
		b.eventually("it notices that the runtime has gone", func() bool { return !b.p.Status().Connected })
	}
	got := b.events()
	for n := range 3 {
		if want := []string{"syncing", "upsert p1", "upsert c1", fmt.Sprintf("upsert new-%d", n), "synced"}; !slices.Equal(got[:5], want) {
			t.Errorf("events %q, want %q", got[:5], want)
		}
		got = got[5:]
	}
	if c := b.all[2].Container; c.Runtime != "cri-o" || c.Namespace != "" || c.Pod.Name != "web-0" {
		t.Errorf("container %+v", c)
	}
}

// Runtimes that are killed, or stuck, between any two steps of a plugin's connection.
func TestConnectsAgainWhereverTheRuntimeFailed(t *testing.T) {
	// The plugin's end of the connection is what is waited for.
	blocked := func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }
	for name, f := range map[string]func(*bench, net.Conn){
		"closes at once":       func(_ *bench, conn net.Conn) { conn.Close() },
		"says nothing":         func(_ *bench, conn net.Conn) { blocked(conn) },
		"says nonsense":        func(_ *bench, conn net.Conn) { conn.Write([]byte(strings.Repeat("nonsense", 1000))); blocked(conn) },
		"says 4 GiB will come": func(_ *bench, conn net.Conn) { conn.Write([]byte("\x00\x00\x00\x01\xff\xff\xff\xff")); blocked(conn) },
		"registers and closes": func(b *bench, conn net.Conn) { b.register(conn, func(api.PluginService) {}) },
		"registers and waits": func(b *bench, conn net.Conn) {
			b.register(conn, func(api.PluginService) { blocked(conn) })
		},
		"configures and closes": func(b *bench, conn net.Conn) {
			b.register(conn, func(p api.PluginService) {
				p.Configure(context.Background(), &api.ConfigureRequest{RuntimeName: "CRI-O"})
			})
		},
		"configures and waits": func(b *bench, conn net.Conn) {
			b.register(conn, func(p api.PluginService) {
				p.Configure(context.Background(), &api.ConfigureRequest{RuntimeName: "CRI-O"})
				blocked(conn)
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			connections := b.serve(func(conn net.Conn) { f(b, conn) })
			b.run()
			for range 3 {
				select {
				case <-connections:
				case <-time.After(patience):
					t.Fatalf("it does not connect again; status %+v", b.p.Status())
				}
			}
			if st := b.p.Status(); st.Connected || st.Err == "" || st.Absent {
				t.Errorf("status %+v", st)
			}
		})
	}
}

// Run ends with its context whatever state the connection is in.
func TestEndsWhileTheRuntimeIsSilent(t *testing.T) {
	b := newBench(t)
	b.p.times.start, b.p.times.sync = time.Hour, time.Hour
	configured := make(chan struct{})
	b.serve(func(conn net.Conn) {
		b.register(conn, func(api.PluginService) {
			close(configured)
			<-b.closing
		})
	})
	b.run()
	<-configured
}

func TestSocketHasToBeAPath(t *testing.T) {
	for in, want := range map[string]string{"": DefaultSocket, "/x/nri.sock": "/x/nri.sock", "unix:///x/nri.sock": "/x/nri.sock"} {
		if p, err := New(Config{Socket: in}); err != nil || p.socket != want {
			t.Errorf("%q: %v, %v", in, p, err)
		}
	}
	if _, err := New(Config{Socket: "nri.sock"}); err == nil || !strings.Contains(err.Error(), DefaultSocket) {
		t.Errorf("got %v, want an error that says what is wanted", err)
	}
}

func FuzzDescribe(f *testing.F) {
	for _, c := range []*api.Container{first, second, ended} {
		text, err := proto.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		of, err := proto.Marshal(pod)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, of)
	}
	f.Fuzz(func(t *testing.T, text, of []byte) {
		var c api.Container
		var pod api.PodSandbox
		if proto.Unmarshal(text, &c) != nil || proto.Unmarshal(of, &pod) != nil {
			return
		}
		p, err := New(Config{Hierarchy: cgroupfs.Hierarchy{Mount: "/nonexistent", Proc: "/nonexistent"}})
		if err != nil {
			t.Fatal(err)
		}
		s := &session{p: p, runtime: "containerd"}
		got := s.container(&pod, &c)
		if got.ID != c.GetId() || got.Labels == nil || got.Annotations == nil || got.Env == nil || len(got.Env) > 2 || got.CgroupID != 0 || got.Sandbox {
			t.Errorf("%+v", got)
		}
		if got := s.pod(&pod); !got.Sandbox || got.ID != pod.GetId() {
			t.Errorf("%+v", got)
		}
	})
}
