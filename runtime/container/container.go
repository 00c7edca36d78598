// Package container is the model that every source of containers speaks: what a container is, what can happen to it, and
// what a source has to do. It imports nothing of ours; sources (runtime/containerd, runtime/cgroupfs, …), the registry and
// the labeler meet here. Values are plain data: whoever receives one may keep it, nobody writes to its maps afterwards.
package container

import (
	"context"
	"maps"
	"strings"
	"time"
)

// Container is what is known about one run of one OCI container (or of a systemd service, or of a bare cgroup that looks
// like a container). A restart of the same ID is another Container: its cgroup and its PID differ.
type Container struct {
	// ID is the runtime's own id, unique within Runtime and Namespace. Docker and CRI use 64 hex digits, ctr any string.
	ID string
	// Runtime is "containerd", "docker", "podman", "cri-o", "lxc", "nspawn", "systemd", … : who created the container.
	Runtime string
	// Namespace is the containerd namespace ("k8s.io", "moby", "default"), empty elsewhere. Not the Kubernetes namespace.
	Namespace string
	// Name is the name that people gave the container, without Docker's leading slash. Empty: nobody gave one.
	Name string
	// Image is the reference as the runtime spells it.
	Image string
	// Pod is set where CRI told us, and for pods of Podman's, which have a name and a UID and no namespace; the zero Pod means "not part of a pod".
	Pod Pod
	// KubernetesContainer is the container's name inside its pod spec.
	KubernetesContainer string
	// Sandbox marks a pod's pause container: told only so that nobody takes it for a container. It is never profiled.
	Sandbox bool
	// Labels are the container's own labels with those of its image, Annotations those of its OCI spec.
	Labels, Annotations map[string]string
	// Env holds only the variables that may name a service, as ServiceEnv picks them.
	Env map[string]string
	// CgroupPath is the path below the root of the cgroup hierarchy that sampling uses ("/default/c1"), CgroupID the inode
	// of that directory: what the kernel calls the cgroup id. 0 means not known yet.
	CgroupPath string
	CgroupID   uint64
	// NoCgroup says why the container has no cgroup of its own that could be sampled (a rootless engine without delegation,
	// --cgroups=disabled). Its processes share one with strangers, so CgroupPath and CgroupID are empty. Empty: it has one, or
	// that is not known.
	NoCgroup string
	// PID is the container's first process as the host numbers it, 0 when not known.
	PID int
	// User is the user id, in decimal, of the one whose engine or service manager runs the container. Empty: root's.
	User string
	// SystemdUnit is the unit's name where the container is a service or belongs to one.
	SystemdUnit string
	// CreatedAt is when the runtime made the record, TaskCreatedAt when the first process was made (it has not run any
	// code of the user yet), StartedAt when that code began. The zero time means not known.
	CreatedAt, TaskCreatedAt, StartedAt time.Time
}

// Pod is the Kubernetes pod of a container, as the runtime knows it; stoker never asks a Kubernetes API.
type Pod struct {
	Name, Namespace, UID string
	Labels, Annotations  map[string]string
}

// ServiceEnv returns those variables of a process's environment, each "NAME=value", that may name a service: the only ones that
// are kept, for others may be secrets. It is never nil.
func ServiceEnv(env []string) map[string]string {
	kept := map[string]string{}
	for _, e := range env {
		if name, value, ok := strings.Cut(e, "="); ok && (name == "OTEL_SERVICE_NAME" || name == "OTEL_RESOURCE_ATTRIBUTES") {
			kept[name] = value
		}
	}
	return kept
}

// Key names a container among all runtimes; a restart keeps it.
type Key struct{ Runtime, Namespace, ID string }

// Key returns the container's key.
func (c *Container) Key() Key { return Key{c.Runtime, c.Namespace, c.ID} }

// Clone returns a copy that shares nothing with c.
func (c Container) Clone() Container {
	c.Labels, c.Annotations, c.Env = maps.Clone(c.Labels), maps.Clone(c.Annotations), maps.Clone(c.Env)
	c.Pod.Labels, c.Pod.Annotations = maps.Clone(c.Pod.Labels), maps.Clone(c.Pod.Annotations)
	return c
}

// EventType says what happened.
type EventType uint8

const (
	// Upsert: the container exists and its fields are as given; empty fields are "this source does not know" and never
	// erase what another source said. Idempotent. A known CgroupID that differs from the recorded one is a new generation.
	Upsert EventType = iota + 1
	// Gone: the container's last process has ended or its record was deleted. CgroupID 0 means "whichever generation
	// is current".
	Gone
	// Synced: this source has told everything that existed since its last Syncing. What it told before that and not again
	// since is gone (a runtime's restart swallows exit events), unless another source told it. Container is empty.
	Synced
	// Syncing: this source begins to tell everything that exists, because it has connected (again) or reconciles. Upserts
	// and Gones of its event stream may come in between. Without a Syncing, Synced makes nothing gone: a source that cannot list
	// (a hook) sends Synced alone, and does not keep alive what the others no longer have. Container is empty.
	Syncing
)

func (t EventType) String() string {
	switch t {
	case Upsert:
		return "upsert"
	case Gone:
		return "gone"
	case Synced:
		return "synced"
	case Syncing:
		return "syncing"
	}
	return "unknown"
}

// Event is one thing that a source has to say.
type Event struct {
	Type   EventType
	Source string // the Name of the source that speaks
	// Complete means the source has nothing more to add to this container: its names and labels are final for now. A
	// container without it is in scope provisionally.
	Complete bool
	// Inferred means the source concluded this from a cgroup's name alone, which whoever may make cgroups can choose. What a
	// runtime said outranks it: an inferred Upsert never moves a known container to another cgroup. An inferred Gone is the
	// kernel's word: that cgroup no longer exists.
	Inferred  bool
	Container Container
	At        time.Time // when the source learned it
}

// Source tells about containers.
type Source interface {
	// Name is short and stable: it is the value of the metric's label "source" and of the log key "source".
	Name() string
	// Run blocks until ctx ends. It first emits Syncing, what already exists, and Synced, then changes as they come; after a
	// lost connection it reconnects with back-off and does the same again. emit is registry.Apply: it returns when the scope is
	// in the kernel, within about a millisecond, and may be called from any goroutine. Run returns ctx.Err(), or an error
	// that no retry can mend.
	Run(ctx context.Context, emit func(Event)) error
}

// Hinted is implemented by sources whose runtime does not say when something begins. Hint tells them of a container that another
// source has found and cannot describe. It returns at once and may be called from any goroutine.
type Hinted interface{ Hint(found Container) }

// Status is what a source says about itself, for `stoker ps` and /healthz.
type Status struct {
	Connected bool
	Err       string // the last error with its remedy; while connected: what does not work all the same
	Since     time.Time
	// Absent means that there is nothing to follow and nobody said that there would be: no trouble. Err says what was looked for.
	Absent bool
}

// StatusReporter is implemented by sources that can lose a connection.
type StatusReporter interface{ Status() Status }

// CountReporter is implemented by sources that count what they had to decide or could not do. Names are those of the metric's
// label "case"; counts only grow.
type CountReporter interface{ Counts() map[string]uint64 }
