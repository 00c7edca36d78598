package nri

import (
	"cmp"
	"strings"
	"time"

	"github.com/containerd/nri/pkg/api"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
)

// Where runtimes say which image a container is of, before NRI 0.11 had a field for it.
const (
	annotationImageContainerd = "io.kubernetes.cri.image-name"
	annotationImageCRIO       = "io.kubernetes.cri-o.ImageName"
)

func trimScheme(socket string) string { return strings.TrimPrefix(socket, "unix://") }

// runtimeName is what the other sources call a runtime, and containerd's namespace in which it has pods.
func runtimeName(said string) (runtime, namespace string) {
	switch said = strings.ToLower(said); said {
	case "containerd":
		return "containerd", "k8s.io"
	case "crio", "cri-o":
		return "cri-o", ""
	default:
		return said, ""
	}
}

// container is what an event says about a container, and its cgroup.
func (s *session) container(pod *api.PodSandbox, c *api.Container) container.Container {
	out := container.Container{
		ID: c.GetId(), Runtime: s.runtime, Namespace: s.namespace,
		Name: c.GetName(), KubernetesContainer: c.GetName(),
		Image:  cmp.Or(c.GetImage().GetName(), c.GetAnnotations()[annotationImageContainerd], c.GetAnnotations()[annotationImageCRIO]),
		Labels: known(c.GetLabels()), Annotations: known(c.GetAnnotations()), Env: container.ServiceEnv(c.GetEnv()),
		Pod: podOf(pod), PID: int(c.GetPid()), CreatedAt: when(c.GetCreatedAt()), StartedAt: when(c.GetStartedAt()),
	}
	s.locate(&out, c.GetLinux().GetCgroupsPath())
	return out
}

// pod is what an event says about a pod's pause container.
func (s *session) pod(p *api.PodSandbox) container.Container {
	out := container.Container{
		ID: p.GetId(), Runtime: s.runtime, Namespace: s.namespace, Sandbox: true,
		Labels: known(p.GetLabels()), Annotations: known(p.GetAnnotations()), Pod: podOf(p), PID: int(p.GetPid()),
	}
	s.locate(&out, p.GetLinux().GetCgroupsPath())
	return out
}

func podOf(p *api.PodSandbox) container.Pod {
	if p == nil {
		return container.Pod{}
	}
	return container.Pod{Name: p.GetName(), Namespace: p.GetNamespace(), UID: p.GetUid(), Labels: known(p.GetLabels()), Annotations: known(p.GetAnnotations())}
}

// locate asks the kernel which cgroup a container's first process is in. Where the runtime does not say which process that is (CRI-O
// did not as late as 2025), it asks for the cgroup that the runtime says it is to be in, which exists when the process does.
func (s *session) locate(c *container.Container, cgroupsPath string) {
	if c.PID == 0 {
		if path, ok := cgroupfs.SpecPath(cgroupsPath); ok {
			if id, err := s.p.h.ID(path); err == nil {
				c.CgroupPath, c.CgroupID = path, id
			}
		}
		return
	}
	path, err := s.p.h.OfContainer(c.PID, c.ID, cgroupsPath)
	if err == nil {
		c.CgroupID, err = s.p.h.ID(path)
	}
	if err != nil {
		s.p.n.unlocated.Add(1)
		s.p.log.Debug("the cgroup of a container is not found", "container", c.ID, "pid", c.PID, "err", err)
		return
	}
	c.CgroupPath = path
}

// known tells a map that is empty from one that was not told.
func known(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

// when makes a time of nanoseconds since 1970; 0 is none.
func when(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}
