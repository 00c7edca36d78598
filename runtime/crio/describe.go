package crio

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
)

// validID reports whether an id is one of CRI-O's: 64 hex digits. Nothing else is taken from it, or asked for.
func validID(id string) bool {
	if len(id) != 64 {
		return false
	}
	for i := range len(id) {
		if c := id[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// describe takes what a list says about a container and its pod; a nil pod is not known. CRI says nothing of an image's labels,
// and of annotations what the pod's author wrote: what CRI-O adds to them for its own use is left out.
func describe(l *cri.Container, p *cri.PodSandbox) container.Container {
	c := container.Container{
		ID: l.GetId(), Runtime: runtimeName, Name: l.GetMetadata().GetName(), KubernetesContainer: l.GetMetadata().GetName(),
		Labels: known(l.GetLabels()), Annotations: known(l.GetAnnotations()), CreatedAt: when(l.GetCreatedAt()),
	}
	// What was asked for when the container was made. Where that was a hash, the repository with a digest says more.
	if c.Image = l.GetImage().GetImage(); isHash(c.Image) {
		c.Image = cmp.Or(l.GetImageRef(), c.Image)
	}
	if p != nil {
		c.Pod = podOf(p)
	}
	return c
}

// isHash reports whether a reference names an image by its hash alone, or not at all.
func isHash(image string) bool { return image == "" || validID(strings.TrimPrefix(image, "sha256:")) }

// describeSandbox makes the container that a pod's pause process is, or would be: CRI-O leaves it out where it can.
func describeSandbox(p *cri.PodSandbox) container.Container {
	return container.Container{
		ID: p.GetId(), Runtime: runtimeName, Name: p.GetMetadata().GetName(), Sandbox: true, Pod: podOf(p), Labels: known(p.GetLabels()),
		Annotations: known(p.GetAnnotations()), CreatedAt: when(p.GetCreatedAt()),
	}
}

func podOf(p *cri.PodSandbox) container.Pod {
	m := p.GetMetadata()
	return container.Pod{Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid(), Labels: known(p.GetLabels()), Annotations: known(p.GetAnnotations())}
}

// known makes of no labels labels that are known to be none.
func known(m map[string]string) map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	return m
}

// when is a time of CRI: nanoseconds since 1970, and 0 or less for none.
func when(ns int64) time.Time {
	if ns <= 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// detail is what only the status of a container says.
type detail struct {
	state     cri.ContainerState
	pid       int
	env       map[string]string
	image     string // a name of the image, not by all means the one that was asked for
	startedAt time.Time
}

// parseStatus understands the answer to a question about one container, with what "verbose" adds to it.
func parseStatus(id string, answer *cri.ContainerStatusResponse) (detail, error) {
	s := answer.GetStatus()
	if s.GetId() != id {
		return detail{}, fmt.Errorf("the status is about the container %.80q, not %s", s.GetId(), id)
	}
	// A container that has not run yet has a start of the year 1, which in nanoseconds is before 1970.
	d := detail{state: s.GetState(), startedAt: when(s.GetStartedAt()), image: s.GetImage().GetImage()}
	text := answer.GetInfo()["info"]
	if text == "" {
		return d, errors.New("the status has no info")
	}
	var info struct {
		Pid         int `json:"pid"`
		RuntimeSpec struct {
			Process struct {
				Env []string `json:"env"`
			} `json:"process"`
		} `json:"runtimeSpec"`
	}
	if err := json.Unmarshal([]byte(text), &info); err != nil {
		return d, fmt.Errorf("read the info of container %s: %w", id, err)
	}
	if d.env = container.ServiceEnv(info.RuntimeSpec.Process.Env); info.Pid > 0 {
		d.pid = info.Pid
	}
	return d, nil
}

// locate finds the container's cgroup from its first process. A cgroup whose name does not say the container's id is somebody
// else's: the process has ended and another has its number, or it runs in a machine whose monitor is all that we can see.
func locate(h cgroupfs.Hierarchy, id string, pid int) (path string, cgroup uint64, err error) {
	if path, err = h.OfPID(pid); err != nil {
		return "", 0, err
	}
	n, ok := cgroupfs.ParsePath(path)
	if !ok || n.Kind != cgroupfs.KindContainer || n.ID != id {
		return "", 0, fmt.Errorf("process %d is in cgroup %.200q, which is not that of container %s", pid, path, id)
	}
	if cgroup, err = h.ID(n.Path); err != nil {
		return "", 0, err
	}
	return n.Path, cgroup, nil
}
