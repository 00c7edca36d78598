package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/services/containers/v1"
	eventsservice "github.com/containerd/containerd/api/services/events/v1"
	"github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/internal/sourcetest"
)

// fake is a containerd made of maps, on a real unix socket, with a cgroup tree and a /proc made of files.
type fake struct {
	eventsservice.UnimplementedEventsServer
	version.UnimplementedVersionServer

	t       *testing.T
	dir     string
	server  *grpc.Server
	version string // what it says it is

	mu          sync.Mutex
	records     map[key]*containers.Container
	running     map[key]*task.Process
	subscribers map[chan *types.Envelope]bool
	get         func(ctx context.Context, k key) error // nil: answer
	list        func()                                 // called when tasks are listed, after they were read
	keep        []*os.File                             // cgroup directories, so that their inodes are not used again
}

func newFake(t *testing.T) *fake {
	dir, err := os.MkdirTemp("", "stoker-fake-") // short: it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{t: t, dir: dir, records: map[key]*containers.Container{}, running: map[key]*task.Process{}, subscribers: map[chan *types.Envelope]bool{}}
	for _, sub := range []string{"cgroup", "proc"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		f.stop()
		for _, d := range f.keep {
			d.Close()
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *fake) socket() string { return filepath.Join(f.dir, "containerd.sock") }

func (f *fake) hierarchy() cgroupfs.Hierarchy {
	return cgroupfs.Hierarchy{Mount: filepath.Join(f.dir, "cgroup"), Proc: filepath.Join(f.dir, "proc")}
}

func (f *fake) start() {
	f.t.Helper()
	if err := os.RemoveAll(f.socket()); err != nil {
		f.t.Fatal(err)
	}
	l, err := net.Listen("unix", f.socket())
	if err != nil {
		f.t.Fatal(err)
	}
	f.server = grpc.NewServer()
	containers.RegisterContainersServer(f.server, fakeContainers{f: f})
	tasks.RegisterTasksServer(f.server, fakeTasks{f: f})
	namespaces.RegisterNamespacesServer(f.server, fakeNamespaces{f: f})
	eventsservice.RegisterEventsServer(f.server, f)
	version.RegisterVersionServer(f.server, f)
	go f.server.Serve(l)
}

func (f *fake) Version(context.Context, *emptypb.Empty) (*version.VersionResponse, error) {
	return &version.VersionResponse{Version: f.version}, nil
}

func (f *fake) stop() {
	if f.server != nil {
		f.server.Stop()
		f.server = nil
	}
}

func namespaceOf(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	return strings.Join(md.Get("containerd-namespace"), ",")
}

func (f *fake) Subscribe(_ *eventsservice.SubscribeRequest, s eventsservice.Events_SubscribeServer) error {
	ch := make(chan *types.Envelope, 10000)
	f.mu.Lock()
	f.subscribers[ch] = true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.subscribers, ch)
		f.mu.Unlock()
	}()
	for {
		select {
		case env := <-ch:
			if err := s.Send(env); err != nil {
				return err
			}
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}

func (f *fake) namespaces() []*namespaces.Namespace {
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := map[string]bool{}
	var all []*namespaces.Namespace
	for k := range f.records {
		if !seen[k.namespace] {
			seen[k.namespace] = true
			all = append(all, &namespaces.Namespace{Name: k.namespace})
		}
	}
	return all
}

// subscribed waits until events reach somebody: a subscriber is added some time after it has its stream, as in the real one.
func (f *fake) subscribed() {
	f.t.Helper()
	sourcetest.Eventually(f.t, "somebody has subscribed", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.subscribers) > 0
	})
}

func (f *fake) publish(namespace, topic string, m proto.Message) {
	f.t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		f.t.Fatal(err)
	}
	f.envelope(&types.Envelope{Timestamp: timestamppb.Now(), Namespace: namespace, Topic: topic,
		Event: &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: b}})
}

func (f *fake) envelope(env *types.Envelope) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for ch := range f.subscribers {
		ch <- env
	}
}

// process puts a process into a cgroup, made if need be.
func (f *fake) process(pid int, cgroup string) uint64 {
	f.t.Helper()
	dir := filepath.Join(f.dir, "cgroup", cgroup)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		f.t.Fatal(err)
	}
	d, err := os.Open(dir)
	if err != nil {
		f.t.Fatal(err)
	}
	f.keep = append(f.keep, d)
	proc := filepath.Join(f.dir, "proc", fmt.Sprint(pid))
	if err := os.MkdirAll(proc, 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(proc, "cgroup"), []byte("0::"+cgroup+"\n"), 0o644); err != nil {
		f.t.Fatal(err)
	}
	id, err := f.hierarchy().ID(cgroup)
	if err != nil {
		f.t.Fatal(err)
	}
	return id
}

func (f *fake) removeProcess(pid int, cgroup string) {
	f.t.Helper()
	for _, dir := range []string{filepath.Join(f.dir, "proc", fmt.Sprint(pid)), filepath.Join(f.dir, "cgroup", cgroup)} {
		if err := os.RemoveAll(dir); err != nil {
			f.t.Fatal(err)
		}
	}
}

func specOf(t *testing.T, cgroupsPath string, annotations map[string]string, env ...string) *anypb.Any {
	t.Helper()
	b, err := json.Marshal(map[string]any{"annotations": annotations, "process": map[string]any{"env": env}, "linux": map[string]any{"cgroupsPath": cgroupsPath}})
	if err != nil {
		t.Fatal(err)
	}
	return &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: b}
}

// create makes a record and tells it.
func (f *fake) create(namespace, id string, labels map[string]string) {
	f.record(namespace, &containers.Container{ID: id, Image: "img:" + id, Labels: labels, Spec: specOf(f.t, "/"+namespace+"/"+id, nil, "SECRET=1", "OTEL_SERVICE_NAME=svc")})
	f.publish(namespace, "/containers/create", &events.ContainerCreate{ID: id, Image: "img:" + id})
}

func (f *fake) record(namespace string, r *containers.Container) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r.CreatedAt, r.UpdatedAt = timestamppb.Now(), timestamppb.Now()
	f.records[key{namespace, r.GetID()}] = r
}

// task makes the first process of a container and tells it, and returns the cgroup id.
func (f *fake) task(namespace, id string, pid int) uint64 {
	cgroup := f.process(pid, "/"+namespace+"/"+id)
	f.mu.Lock()
	f.running[key{namespace, id}] = &task.Process{ID: id, Pid: uint32(pid), Status: task.Status_RUNNING}
	f.mu.Unlock()
	f.publish(namespace, "/tasks/create", &events.TaskCreate{ContainerID: id, Pid: uint32(pid)})
	return cgroup
}

func (f *fake) run(namespace, id string, pid int) uint64 {
	f.create(namespace, id, nil)
	cgroup := f.task(namespace, id, pid)
	f.publish(namespace, "/tasks/start", &events.TaskStart{ContainerID: id, Pid: uint32(pid)})
	return cgroup
}

// vanish ends a container without telling.
func (f *fake) vanish(namespace, id string, pid int, record bool) {
	f.removeProcess(pid, "/"+namespace+"/"+id)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.running, key{namespace, id})
	if record {
		delete(f.records, key{namespace, id})
	}
}

// Adapters: the services have methods of the same names.
type fakeContainers struct {
	containers.UnimplementedContainersServer
	f *fake
}
type fakeTasks struct {
	tasks.UnimplementedTasksServer
	f *fake
}
type fakeNamespaces struct {
	namespaces.UnimplementedNamespacesServer
	f *fake
}

func (c fakeContainers) Get(ctx context.Context, r *containers.GetContainerRequest) (*containers.GetContainerResponse, error) {
	k := key{namespaceOf(ctx), r.GetID()}
	c.f.mu.Lock()
	hook := c.f.get
	record := c.f.records[k]
	c.f.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, k); err != nil {
			return nil, err
		}
	}
	if record == nil {
		return nil, status.Error(codes.NotFound, "not found")
	}
	return &containers.GetContainerResponse{Container: record}, nil
}

func (c fakeContainers) ListStream(_ *containers.ListContainersRequest, s containers.Containers_ListStreamServer) error {
	c.f.mu.Lock()
	var all []*containers.Container
	for k, r := range c.f.records {
		if k.namespace == namespaceOf(s.Context()) {
			all = append(all, r)
		}
	}
	c.f.mu.Unlock()
	for _, r := range all {
		if err := s.Send(&containers.ListContainerMessage{Container: r}); err != nil {
			return err
		}
	}
	return nil
}

func (c fakeTasks) List(ctx context.Context, _ *tasks.ListTasksRequest) (*tasks.ListTasksResponse, error) {
	c.f.mu.Lock()
	out := &tasks.ListTasksResponse{}
	for k, p := range c.f.running {
		if k.namespace == namespaceOf(ctx) {
			out.Tasks = append(out.Tasks, p)
		}
	}
	hook := c.f.list
	c.f.mu.Unlock()
	if hook != nil {
		hook()
	}
	return out, nil
}

func (c fakeNamespaces) List(context.Context, *namespaces.ListNamespacesRequest) (*namespaces.ListNamespacesResponse, error) {
	return &namespaces.ListNamespacesResponse{Namespaces: c.f.namespaces()}, nil
}

// bench is a client that feeds a registry.
type bench struct {
	t      *testing.T
	client *Client
	fake   *fake // nil: a real containerd
	*sourcetest.Bench
	hold sync.Mutex // held: emit waits

	mu   sync.Mutex
	said []container.Event
}

func newBench(t *testing.T, c *Client) *bench {
	b := &bench{t: t, client: c, Bench: sourcetest.New(t)}
	return b
}

func (b *bench) emit(e container.Event) {
	b.hold.Lock()
	defer b.hold.Unlock()
	b.mu.Lock()
	b.said = append(b.said, e)
	b.mu.Unlock()
	b.Apply(e)
}

func (b *bench) run() {
	b.t.Helper()
	sourcetest.Run(b.t, b.client, b.emit)
}

func (b *bench) synced() {
	b.t.Helper()
	sourcetest.Synced(b.t, b.client)
	if b.fake != nil {
		b.fake.subscribed()
	}
}
