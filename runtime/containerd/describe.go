package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/containerd/containerd/api/services/containers/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// Labels and annotations by which containerd's clients say what a container is.
const (
	labelKind           = "io.cri-containerd.kind" // "container" or "sandbox"
	labelPodName        = "io.kubernetes.pod.name"
	labelPodNamespace   = "io.kubernetes.pod.namespace"
	labelPodUID         = "io.kubernetes.pod.uid"
	labelContainerName  = "io.kubernetes.container.name"
	labelNerdctlName    = "nerdctl/name"
	annotationSandbox   = "io.kubernetes.cri.sandbox-id"
	annotationType      = "io.kubernetes.cri.container-type" // "container" or "sandbox"
	extensionSandbox    = "io.cri-containerd.sandbox.metadata"
	namespaceDocker     = "moby"
	namespaceDockerPlug = "plugins.moby"
)

// description is what a container's record says, which does not change while it runs.
type description struct {
	c           container.Container
	cgroupsPath string // as in the spec: "/ns/id", or "slice:prefix:id"
	sandbox     string // id of the record of its pod, if it is in one
	updatedAt   time.Time
}

// pod is what the record of a sandbox says about the pod.
type pod struct {
	labels, annotations map[string]string
	size                int // about, where it is remembered
}

// describe reads a record. What it cannot make sense of it leaves out; the error says what, and the description is good
// without it.
func describe(namespace string, r *containers.Container) (description, error) {
	d := description{c: container.Container{
		ID: r.GetID(), Namespace: namespace, Runtime: "containerd", Image: r.GetImage(), Labels: r.GetLabels(), Annotations: map[string]string{},
		Env: map[string]string{}, CreatedAt: r.GetCreatedAt().AsTime(),
	}}
	c := &d.c
	if r.GetUpdatedAt() != nil {
		d.updatedAt = r.GetUpdatedAt().AsTime()
	}
	if r.GetCreatedAt() == nil {
		c.CreatedAt = time.Time{}
	}
	if c.Labels == nil {
		c.Labels = map[string]string{} // known to be none
	}
	if namespace == namespaceDocker || namespace == namespaceDockerPlug {
		c.Runtime = "docker"
	}
	var spec specs.Spec
	var err error
	if b := r.GetSpec().GetValue(); len(b) > 0 {
		if err = json.Unmarshal(b, &spec); err != nil {
			err = fmt.Errorf("read the spec of container %s: %w", c.ID, err)
		}
	}
	if spec.Annotations != nil {
		c.Annotations = spec.Annotations
	}
	if spec.Process != nil {
		c.Env = container.ServiceEnv(spec.Process.Env)
	}
	if spec.Linux != nil {
		d.cgroupsPath = spec.Linux.CgroupsPath
	}
	d.sandbox = spec.Annotations[annotationSandbox]
	if r.GetSandbox() != "" {
		d.sandbox = r.GetSandbox()
	}
	c.Sandbox = c.Labels[labelKind] == "sandbox" || spec.Annotations[annotationType] == "sandbox"
	c.Pod = container.Pod{Name: c.Labels[labelPodName], Namespace: c.Labels[labelPodNamespace], UID: c.Labels[labelPodUID]}
	c.KubernetesContainer = c.Labels[labelContainerName]
	switch {
	case c.Labels[labelNerdctlName] != "":
		c.Name = c.Labels[labelNerdctlName]
	case c.KubernetesContainer != "":
		c.Name = c.KubernetesContainer
	case c.Runtime == "containerd" && len(c.ID) != 64:
		c.Name = c.ID // ctr has people choose the id
	}
	return d, err
}

// describePod reads the record of a sandbox: its labels are the pod's, its annotations are in the CRI plugin's own notes.
func describePod(r *containers.Container) (pod, error) {
	p := pod{labels: maps.Clone(r.GetLabels()), annotations: map[string]string{}}
	delete(p.labels, labelKind)
	b := r.GetExtensions()[extensionSandbox].GetValue()
	if len(b) == 0 {
		return p, nil
	}
	var notes struct {
		Metadata struct {
			Config struct {
				Annotations map[string]string `json:"annotations"`
			}
		}
	}
	if err := json.Unmarshal(b, &notes); err != nil {
		return p, fmt.Errorf("read the pod of sandbox %s: %w", r.GetID(), err)
	}
	if notes.Metadata.Config.Annotations != nil {
		p.annotations = notes.Metadata.Config.Annotations
	}
	return p, nil
}

// pods remembers what was read about pods: their containers ask at the same time.
type pods struct {
	mu    sync.Mutex // protects what follows
	known map[key]pod
	room  container.Room
}

func (p *pods) get(k key) (pod, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, ok := p.known[k]
	return v, ok
}

func (p *pods) put(k key, v pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.known[k]; !ok && len(p.known) >= container.MaxContainers {
		return // it is read again for each of its containers
	}
	c := container.Container{Pod: container.Pod{Labels: v.labels, Annotations: v.annotations}}
	size := p.room.Take(&c, p.known[k].size)
	p.known[k] = pod{c.Pod.Labels, c.Pod.Annotations, size}
}

func (p *pods) forget(k key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop(k)
}

// drop is called with mu held.
func (p *pods) drop(k key) {
	p.room.Leave(p.known[k].size)
	delete(p.known, k)
}

func (d *description) of(p pod) { d.c.Pod.Labels, d.c.Pod.Annotations = p.labels, p.annotations }

// described is the answer to a question about one container.
type described struct {
	k   key
	d   description
	err error
}

// tries is how often a record is asked for before the next list has to do.
const tries = 5

// ask reads the record of a container and of its pod, again after a while where that fails.
func (c *Client) ask(ctx context.Context, a *api, p *pods, k key) described {
	wait := c.loop.Times.MinBackoff
	for try := 1; ; try++ {
		d, err := c.askOnce(ctx, a, p, k)
		if err == nil || status.Code(err) == codes.NotFound || try == tries || ctx.Err() != nil {
			return described{k, d, err}
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait *= 2
	}
}

func (c *Client) askOnce(ctx context.Context, a *api, p *pods, k key) (description, error) {
	ctx, cancel := context.WithTimeout(inNamespace(ctx, k.namespace), c.times.call)
	defer cancel()
	answer, err := a.containers.Get(ctx, &containers.GetContainerRequest{ID: k.id})
	if err != nil {
		return description{}, fmt.Errorf("read container %s: %w", k.id, err)
	}
	if answer.GetContainer() == nil {
		return description{}, errors.New("read container " + k.id + ": the answer has none")
	}
	d, err := describe(k.namespace, answer.GetContainer())
	c.complain(err)
	if d.c.Sandbox || d.sandbox == "" {
		return d, nil
	}
	sandbox := key{k.namespace, d.sandbox}
	if known, ok := p.get(sandbox); ok {
		d.of(known)
		return d, nil
	}
	answer, err = a.containers.Get(ctx, &containers.GetContainerRequest{ID: d.sandbox})
	switch {
	case status.Code(err) == codes.NotFound:
		return d, nil // a pod without a pause container: nothing more is to be had
	case err != nil:
		return description{}, fmt.Errorf("read the pod of container %s: %w", k.id, err)
	}
	of, err := describePod(answer.GetContainer())
	c.complain(err)
	p.put(sandbox, of)
	d.of(of)
	return d, nil
}

// complain counts what could not be read.
func (c *Client) complain(err error) {
	if err != nil {
		c.n.malformed.Add(1)
		c.log.Debug("part of what containerd says is not understood", "err", err)
	}
}
