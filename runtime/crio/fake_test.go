package crio

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
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/internal/sourcetest"
)

// version is the CRI-O whose sources the fake follows. Its files, with what was taken from each:
//
//	server/version.go                        Version: the runtime's name
//	server/container_list.go                 ListContainers: without those whose making has not ended, with those that have ended
//	internal/oci/container.go                NewContainer, CRIContainer: what a list says; a paused container is running
//	server/sandbox_list.go                   ListPodSandbox
//	internal/lib/sandbox/sandbox.go          CRISandbox, State
//	server/container_status.go               ContainerStatus: image is a name of it, info is one JSON text: sandboxID, pid, runtimeSpec, privileged
//	internal/lib/container.go                GetContainerFromShortID: a container that is being made is not found
//	internal/factory/container/container.go  SpecAddAnnotations: what the spec's annotations are
//	internal/config/cgmgr/*_linux.go         ContainerCgroupPath, MoveConmonToCgroup: names of cgroups with both drivers
const version = "1.36.3"

// ctr is one container as CRI-O's memory has it.
type ctr struct {
	list    *cri.Container
	created bool // its making has ended
	started time.Time
	pid     int
	image   string // some name of the image
	cgroup  string
	env     []string
}

// fake is a CRI-O made of maps, on a real unix socket, with a cgroup tree and a /proc made of files.
type fake struct {
	cri.UnimplementedRuntimeServiceServer

	t      *testing.T
	dir    string
	server *grpc.Server
	next   int // pids

	mu      sync.Mutex
	name    string // what Version says
	pods    map[string]*cri.PodSandbox
	ctrs    map[string]*ctr
	before  func(ctx context.Context, method string) error // nil: answer
	calls   map[string]int
	listing func(*cri.ListContainersResponse)
}

func newFake(t *testing.T) *fake {
	dir, err := os.MkdirTemp("", "stoker-fake-") // short: it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{t: t, dir: dir, name: "cri-o", next: 1000, pods: map[string]*cri.PodSandbox{}, ctrs: map[string]*ctr{}, calls: map[string]int{}}
	for _, sub := range []string{"cgroup", "proc"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		f.stop()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *fake) socket() string { return filepath.Join(f.dir, "crio.sock") }

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
	f.server = grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		method := info.FullMethod[strings.LastIndexByte(info.FullMethod, '/')+1:]
		f.mu.Lock()
		f.calls[method]++
		before := f.before
		f.mu.Unlock()
		if before != nil {
			if err := before(ctx, method); err != nil {
				return nil, err
			}
		}
		return handler(ctx, req)
	}))
	cri.RegisterRuntimeServiceServer(f.server, f)
	go f.server.Serve(l)
}

func (f *fake) stop() {
	if f.server != nil {
		f.server.Stop()
		f.server = nil
	}
}

// with changes CRI-O while nobody asks.
func (f *fake) with(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fake) called(method string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[method]
}

func (f *fake) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &cri.VersionResponse{Version: "0.1.0", RuntimeName: f.name, RuntimeVersion: version, RuntimeApiVersion: "v1"}, nil
}

func (f *fake) ListContainers(_ context.Context, r *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.GetFilter() != nil {
		f.t.Errorf("a filter: %v", r.GetFilter())
	}
	answer := &cri.ListContainersResponse{}
	for _, c := range f.ctrs {
		if c.created {
			answer.Containers = append(answer.Containers, c.list)
		}
	}
	if f.listing != nil {
		f.listing(answer)
	}
	return answer, nil
}

func (f *fake) ListPodSandbox(context.Context, *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := &cri.ListPodSandboxResponse{}
	for _, p := range f.pods {
		answer.Items = append(answer.Items, p)
	}
	return answer, nil
}

func (f *fake) ContainerStatus(_ context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.ctrs[r.GetContainerId()]
	switch {
	case c == nil:
		return nil, status.Errorf(codes.NotFound, "could not find container %q: container with ID starting with %s not found: no such id", r.GetContainerId(), r.GetContainerId())
	case !c.created:
		f.t.Errorf("asked for container %s, which is being made", r.GetContainerId())
		return nil, status.Errorf(codes.NotFound, "could not find container %q: specified container %s is not yet created", r.GetContainerId(), r.GetContainerId())
	case !r.GetVerbose():
		f.t.Error("asked for a status that says little")
	}
	st := &cri.ContainerStatus{
		Id: c.list.Id, Metadata: c.list.Metadata, State: c.list.State, CreatedAt: c.list.CreatedAt, Image: &cri.ImageSpec{Image: c.image}, ImageRef: c.list.ImageRef,
		Labels: c.list.Labels, Annotations: c.list.Annotations,
	}
	if c.list.State == cri.ContainerState_CONTAINER_RUNNING || c.list.State == cri.ContainerState_CONTAINER_EXITED {
		st.StartedAt = c.started.UnixNano()
	}
	info, err := json.Marshal(map[string]any{
		"sandboxID": c.list.PodSandboxId, "pid": c.pid, "privileged": false,
		"runtimeSpec": map[string]any{
			"ociVersion": "1.2.1", "process": map[string]any{"user": map[string]any{"uid": 0, "gid": 0}, "args": []string{"/bin/app"}, "env": c.env, "cwd": "/"},
			"annotations": map[string]string{"io.kubernetes.cri-o.ContainerType": "container", "io.container.manager": "cri-o", "io.kubernetes.cri-o.Volumes": "[]"},
			"linux":       map[string]any{"cgroupsPath": c.cgroup},
		},
	})
	if err != nil {
		return nil, err
	}
	return &cri.ContainerStatusResponse{Status: st, Info: map[string]string{"info": string(info)}}, nil
}

// idOf makes an id as CRI-O's.
func idOf(n int) string { return fmt.Sprintf("%064x", n) }

const uid = "11111111-2222-3333-4444-555555555555"

// pod puts a pod there, ready. Its pause container is left out, as CRI-O does by default.
func (f *fake) pod(id, name, namespace string, labels, annotations map[string]string) {
	// populateSandboxLabels in server/sandbox_run_linux.go adds what the kubelet would have.
	all := map[string]string{"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": namespace, "io.kubernetes.pod.uid": uid}
	for k, v := range labels {
		all[k] = v
	}
	f.with(func() {
		f.pods[id] = &cri.PodSandbox{Id: id, Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: namespace, Uid: uid, Attempt: 1},
			State: cri.PodSandboxState_SANDBOX_READY, CreatedAt: time.Now().UnixNano(), Labels: all, Annotations: annotations, RuntimeHandler: ""}
	})
}

// systemd and cgroupfs are what cgroups are called with CRI-O's two drivers; crun is what its default runtime adds to the first.
func systemd(prefix, id string) string {
	u := strings.ReplaceAll(uid, "-", "_")
	return "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + u + ".slice/" + prefix + "-" + id + ".scope"
}

func crun(prefix, id string) string { return systemd(prefix, id) + "/container" }

func fsDriver(prefix, id string) string {
	return "/kubepods/burstable/pod" + uid + "/" + prefix + "-" + id
}

// begin makes the cgroup and the first process of a container: CRI-O does not list it yet.
func (f *fake) begin(id, pod, name string, cgroup func(prefix, id string) string) int {
	f.t.Helper()
	f.next++
	pid := f.next
	f.process(pid, cgroup("crio", id))
	f.with(func() {
		f.ctrs[id] = &ctr{
			list: &cri.Container{Id: id, PodSandboxId: pod, Metadata: &cri.ContainerMetadata{Name: name, Attempt: 0}, CreatedAt: time.Now().UnixNano(),
				State: cri.ContainerState_CONTAINER_CREATED,
				// The kubelet asks for an image by its hash; the reference is a repository and digest.
				Image: &cri.ImageSpec{Image: strings.Repeat("ab", 32)}, ImageRef: "quay.io/shop/" + name + "@sha256:" + strings.Repeat("cd", 32),
				Labels:      map[string]string{"io.kubernetes.container.name": name, "io.kubernetes.pod.uid": uid, "tier": "front"},
				Annotations: map[string]string{"io.kubernetes.container.hash": "f00"}},
			pid: pid, image: "quay.io/shop/" + name + ":v1", cgroup: cgroup("crio", id), env: []string{"PATH=/bin", "OTEL_SERVICE_NAME=svc-" + name, "SECRET=x"},
		}
	})
	return pid
}

// created ends the making of a container.
func (f *fake) created(id string) { f.with(func() { f.ctrs[id].created = true }) }

func (f *fake) state(id string, s cri.ContainerState) {
	f.with(func() {
		c := f.ctrs[id]
		c.list = proto.CloneOf(c.list) // as CRI-O does: what was given out does not change
		c.list.State = s
		if s == cri.ContainerState_CONTAINER_RUNNING {
			c.started = time.Now()
		}
	})
}

// run makes a container that runs.
func (f *fake) run(id, pod, name string, cgroup func(prefix, id string) string) int {
	f.t.Helper()
	pid := f.begin(id, pod, name, cgroup)
	f.created(id)
	f.state(id, cri.ContainerState_CONTAINER_RUNNING)
	return pid
}

// exit ends a container; CRI-O still lists it.
func (f *fake) exit(id string) {
	f.t.Helper()
	var pid int
	var cgroup string
	f.with(func() { pid, cgroup = f.ctrs[id].pid, f.ctrs[id].cgroup })
	f.state(id, cri.ContainerState_CONTAINER_EXITED)
	f.removeProcess(pid, strings.TrimSuffix(cgroup, "/container"))
}

// process puts a process into a cgroup, made if need be.
func (f *fake) process(pid int, cgroup string) {
	f.t.Helper()
	f.write(filepath.Join("proc", fmt.Sprint(pid), "cgroup"), "0::"+cgroup+"\n")
	f.write(filepath.Join("proc", fmt.Sprint(pid), "comm"), "app\n")
	f.write(filepath.Join("cgroup", cgroup, "cgroup.procs"), fmt.Sprintln(pid))
}

func (f *fake) write(name, text string) {
	f.t.Helper()
	name = filepath.Join(f.dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fake) removeProcess(pid int, cgroup string) {
	f.t.Helper()
	for _, dir := range []string{filepath.Join(f.dir, "proc", fmt.Sprint(pid)), filepath.Join(f.dir, "cgroup", cgroup)} {
		if err := os.RemoveAll(dir); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *fake) cgroupID(cgroup string) uint64 {
	f.t.Helper()
	id, err := f.hierarchy().ID(cgroup)
	if err != nil {
		f.t.Fatal(err)
	}
	return id
}

// bench is a client, and the scan of the cgroup tree, that feed a registry as the agent has them do.
type bench struct {
	t      *testing.T
	fake   *fake
	client *Client
	*sourcetest.Bench
	mu   sync.Mutex
	said []container.Event
}

func newBench(t *testing.T, f *fake) *bench {
	b := &bench{t: t, fake: f, Bench: sourcetest.New(t), client: quick(NewClient("cri-o", f.socket(), f.hierarchy(), nil))}
	return b
}

// quick shortens a client's times.
func quick(c *Client) *Client {
	c.loop.Times.MinBackoff, c.loop.Times.AbsentEvery, c.loop.Times.SecondList = 5*time.Millisecond, 5*time.Millisecond, 20*time.Millisecond
	c.times.listGap, c.times.hint = time.Millisecond, 5*time.Millisecond
	return c
}

func (b *bench) emit(e container.Event) {
	b.mu.Lock()
	b.said = append(b.said, e)
	b.mu.Unlock()
	b.Apply(e)
	if e.Type == container.Upsert && !e.Complete && e.Source != b.client.Name() {
		b.client.Hint(e.Container)
	}
}

func (b *bench) run() { b.t.Helper(); sourcetest.Run(b.t, b.client, b.emit) }

func (b *bench) scan() {
	b.t.Helper()
	sourcetest.Run(b.t, cgroupfs.NewScanner(b.fake.hierarchy(), nil), b.emit)
}

func (b *bench) synced() {
	b.t.Helper()
	sourcetest.Synced(b.t, b.client)
}
