package critest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/stoker-profiler/stoker/test/containerdtest"
)

// Labels that a kubelet puts on pods and containers.
const (
	LabelPodName       = "io.kubernetes.pod.name"
	LabelPodNamespace  = "io.kubernetes.pod.namespace"
	LabelPodUID        = "io.kubernetes.pod.uid"
	LabelContainerName = "io.kubernetes.container.name"
)

// PodSpec says what pod to run.
type PodSpec struct {
	Name      string
	Namespace string // of Kubernetes; "" is "default"
	UID       string // "" makes one
	// Labels and Annotations are the pod's own; the labels that a kubelet adds are added.
	Labels, Annotations map[string]string
	// CgroupParent is the cgroup of the pod's containers as a path below the root of each hierarchy; "" is
	// /kubepods/besteffort/podUID, as a kubelet with the cgroupfs driver names it.
	CgroupParent string
}

// Pod is one pod sandbox of a Daemon.
type Pod struct {
	d      *Daemon
	spec   PodSpec
	id     string
	config *cri.PodSandboxConfig
}

// ContainerSpec says what container to make in a pod.
type ContainerSpec struct {
	Name                string
	Image               string // a reference that Daemon.Image made
	Args                []string
	Env                 map[string]string
	Labels, Annotations map[string]string // the labels that a kubelet adds are added
	// Mounts are bind mounts, host path → absolute path in the container, read-write.
	Mounts map[string]string
}

// Container is one container of a Pod.
type Container struct {
	pod  *Pod
	spec ContainerSpec
	id   string
}

func call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, callTimeout)
}

// gone makes success of "it is not there (any more)".
func gone(err error) error {
	if status.Code(err) == codes.NotFound {
		return nil
	}
	return err
}

// RunPod makes a pod sandbox and starts its pause container.
func (d *Daemon) RunPod(ctx context.Context, spec PodSpec) (*Pod, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	if spec.Namespace == "" {
		spec.Namespace = "default"
	}
	if spec.UID == "" {
		d.mu.Lock()
		d.uids++
		spec.UID = fmt.Sprintf("57041e00-%04x-4000-8000-%012x", d.uids&0xffff, os.Getpid()) // unique among the machine's tests
		d.mu.Unlock()
	}
	if spec.CgroupParent == "" {
		spec.CgroupParent = "/kubepods/besteffort/pod" + spec.UID
	}
	if err := d.importImage(ctx, pauseImage); err != nil {
		return nil, fmt.Errorf("run pod %s: %w", spec.Name, err)
	}
	d.ClaimCgroup(spec.CgroupParent) // before the first process: Stop must find it whatever happens
	logs := filepath.Join(d.Dir(), "pods", spec.Namespace+"_"+spec.Name+"_"+spec.UID)
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return nil, fmt.Errorf("run pod %s: %w", spec.Name, err)
	}
	p := &Pod{d: d, spec: spec, config: &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: spec.Name, Namespace: spec.Namespace, Uid: spec.UID},
		LogDirectory: logs,
		Labels:       with(spec.Labels, LabelPodName, spec.Name, LabelPodNamespace, spec.Namespace, LabelPodUID, spec.UID),
		Annotations:  spec.Annotations,
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: spec.CgroupParent, SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: namespaces(),
		}},
	}}
	r, err := d.runtime().RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		return nil, fmt.Errorf("run pod %s: %w", spec.Name, err)
	}
	p.id = r.GetPodSandboxId()
	return p, nil
}

func namespaces() *cri.NamespaceOption {
	return &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER, Ipc: cri.NamespaceMode_POD}
}

// with returns a copy of labels with more of them.
func with(labels map[string]string, more ...string) map[string]string {
	all := maps.Clone(labels)
	if all == nil {
		all = map[string]string{}
	}
	for i := 0; i < len(more); i += 2 {
		all[more[i]] = more[i+1]
	}
	return all
}

// ID is the sandbox's id, Name, Namespace and UID are the pod's.
func (p *Pod) ID() string { return p.id }

// Name: see ID.
func (p *Pod) Name() string { return p.spec.Name }

// Namespace: see ID.
func (p *Pod) Namespace() string { return p.spec.Namespace }

// UID: see ID.
func (p *Pod) UID() string { return p.spec.UID }

// CgroupPath is the cgroup of the pod, with its containers' and the pause container's below it, as a path below the root of each
// hierarchy.
func (p *Pod) CgroupPath() string { return p.spec.CgroupParent }

// Create makes a container and does not start it.
func (p *Pod) Create(ctx context.Context, spec ContainerSpec) (*Container, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	if err := p.d.importImage(ctx, spec.Image); err != nil {
		return nil, fmt.Errorf("create container %s: %w", spec.Name, err)
	}
	c := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: spec.Name},
		Image:    &cri.ImageSpec{Image: spec.Image, UserSpecifiedImage: spec.Image},
		Command:  spec.Args,
		Labels: with(spec.Labels, LabelContainerName, spec.Name, LabelPodName, p.spec.Name, LabelPodNamespace, p.spec.Namespace,
			LabelPodUID, p.spec.UID),
		Annotations: spec.Annotations,
		LogPath:     spec.Name + ".log",
		Linux:       &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: namespaces()}},
	}
	for name, value := range spec.Env {
		c.Envs = append(c.Envs, &cri.KeyValue{Key: name, Value: []byte(value)})
	}
	for from, to := range spec.Mounts {
		c.Mounts = append(c.Mounts, &cri.Mount{HostPath: from, ContainerPath: to})
	}
	r, err := p.d.runtime().CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, Config: c, SandboxConfig: p.config})
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", spec.Name, err)
	}
	return &Container{pod: p, spec: spec, id: r.GetContainerId()}, nil
}

// Run makes a container and starts it. It returns when the first process runs the user's code.
func (p *Pod) Run(ctx context.Context, spec ContainerSpec) (*Container, error) {
	c, err := p.Create(ctx, spec)
	if err != nil {
		return nil, err
	}
	return c, c.Start(ctx)
}

// Remove ends the pod with its containers at once and removes all that containerd has of it.
func (p *Pod) Remove(ctx context.Context) error {
	ctx, cancel := call(ctx)
	defer cancel()
	if _, err := p.d.runtime().StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id}); gone(err) != nil {
		return fmt.Errorf("stop pod %s: %w", p.spec.Name, err)
	}
	if _, err := p.d.runtime().RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id}); gone(err) != nil {
		return fmt.Errorf("remove pod %s: %w", p.spec.Name, err)
	}
	return nil
}

// ID is the container's id, Pod the pod that it is in.
func (c *Container) ID() string { return c.id }

// Pod: see ID.
func (c *Container) Pod() *Pod { return c.pod }

// CgroupPath is the container's cgroup as a path below the root of each hierarchy.
func (c *Container) CgroupPath() string { return path.Join(c.pod.spec.CgroupParent, c.id) }

// CgroupID is what the kernel calls the id of the container's cgroup. It has one while it runs.
func (c *Container) CgroupID() (uint64, error) { return containerdtest.CgroupID(c.CgroupPath()) }

// Start starts a container that was created. It returns when the first process runs the user's code.
func (c *Container) Start(ctx context.Context) error {
	ctx, cancel := call(ctx)
	defer cancel()
	if _, err := c.pod.d.runtime().StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.id}); err != nil {
		return fmt.Errorf("start container %s: %w", c.spec.Name, err)
	}
	return nil
}

// Stop asks the container to end and kills it after so many seconds.
func (c *Container) Stop(ctx context.Context, seconds int64) error {
	ctx, cancel := call(ctx)
	defer cancel()
	if _, err := c.pod.d.runtime().StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.id, Timeout: seconds}); gone(err) != nil {
		return fmt.Errorf("stop container %s: %w", c.spec.Name, err)
	}
	return nil
}

// Wait waits until the container has ended by itself.
func (c *Container) Wait(ctx context.Context) error {
	ctx, cancel := call(ctx)
	defer cancel()
	return poll(ctx, "the end of container "+c.spec.Name, func() error {
		r, err := c.pod.d.runtime().ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.id})
		if err != nil {
			return gone(err)
		}
		if s := r.GetStatus().GetState(); s != cri.ContainerState_CONTAINER_EXITED {
			return errors.New("it is " + s.String())
		}
		return nil
	})
}

// Remove ends the container at once and removes all that containerd has of it.
func (c *Container) Remove(ctx context.Context) error {
	ctx, cancel := call(ctx)
	defer cancel()
	if _, err := c.pod.d.runtime().RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: c.id}); gone(err) != nil {
		return fmt.Errorf("remove container %s: %w", c.spec.Name, err)
	}
	return nil
}

// PID is the container's first process as the host numbers it, while it runs.
func (c *Container) PID(ctx context.Context) (int, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	r, err := c.pod.d.runtime().ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	if err != nil {
		return 0, fmt.Errorf("read the pid of container %s: %w", c.spec.Name, err)
	}
	var info struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(r.GetInfo()["info"]), &info); err != nil {
		return 0, fmt.Errorf("read the pid of container %s: %w", c.spec.Name, err)
	}
	if info.PID == 0 {
		return 0, fmt.Errorf("container %s has no process", c.spec.Name)
	}
	return info.PID, nil
}

// Log returns what the container's first process and its children wrote so far.
func (c *Container) Log() string {
	text, err := os.ReadFile(filepath.Join(c.pod.config.GetLogDirectory(), c.spec.Name+".log"))
	if errors.Is(err, fs.ErrNotExist) {
		return "" // it has not written anything yet
	}
	if err != nil {
		return err.Error()
	}
	// CRI's format: "TIME stdout F text", P for a part of a line.
	var out strings.Builder
	for line := range strings.Lines(string(text)) {
		if fields := strings.SplitN(line, " ", 4); len(fields) == 4 {
			if fields[2] == "P" {
				fields[3] = strings.TrimSuffix(fields[3], "\n")
			}
			out.WriteString(fields[3])
		}
	}
	return out.String()
}
