package labeler

import (
	"cmp"
	"strconv"
	"strings"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// Bounds on what relabel rules see of one container, so that regular expressions do not run over megabytes.
const (
	maxMetaValue = 4096
	maxMetaEach  = 256 // labels (annotations, …) of one kind, the first by name
)

// offer calls set for every temporary label that relabel rules may use; docs/labels.md lists them. A name may be set twice
// where sanitising makes two equal: the last one in the order of the original names holds, as in Prometheus.
func (l *Labeler) offer(c *container.Container, service string, put func(name, value string)) {
	set := func(name, value string) {
		if value == "" {
			return
		}
		value, changed := text(value, maxMetaValue)
		if changed {
			l.cut.Add(1)
		}
		put(name, value)
	}
	each := func(prefix, present string, m map[string]string) {
		for i, k := range sortedKeys(m) {
			if i == maxMetaEach {
				l.dropped.Add(uint64(len(m) - i))
				return
			}
			clean := metaName(k)
			set(prefix+clean, m[k])
			if present != "" {
				set(present+clean, "true")
			}
		}
	}
	name := containerName(c)

	const own = "__meta_container_"
	set("__container_id__", c.ID)
	set(own+"id", c.ID)
	set(own+"name", name)
	set(own+"runtime", c.Runtime)
	set(own+"runtime_namespace", c.Namespace)
	set(own+"image", c.Image)
	set(own+"cgroup", c.CgroupPath)
	if c.PID > 0 {
		set(own+"pid", strconv.Itoa(c.PID))
	}
	set(own+"service", service)
	set(own+"systemd_unit", systemdUnit(c))
	set(own+"user", c.User)
	set(own+"compose_project", c.Labels[composeProject])
	set(own+"compose_service", c.Labels[composeService])
	set(own+"namespace", c.Pod.Namespace)
	set(own+"pod_name", c.Pod.Name)
	set(own+"pod_uid", c.Pod.UID)
	set(own+"container_name", c.KubernetesContainer)
	each(own+"label_", own+"labelpresent_", c.Labels)
	each(own+"annotation_", own+"annotationpresent_", c.Annotations)

	pod := c.Pod.Name != "" && c.Pod.Namespace != "" // Podman's pods have no namespace and are not Kubernetes'
	// Rules written for Docker also fit what nerdctl and ctr start. They are kept away from containers of a pod, which
	// Docker's discovery would not have shown, unless Docker runs them.
	switch c.Runtime {
	case "docker", "podman", "containerd":
		if pod && c.Runtime == "containerd" {
			break
		}
		const docker = "__meta_docker_container_"
		set(docker+"id", c.ID)
		if name != "" {
			set(docker+"name", "/"+name)
		}
		set(docker+"image", c.Image)
		each(docker+"label_", "", c.Labels)
	}
	if pod {
		const k = "__meta_kubernetes_"
		set(k+"namespace", c.Pod.Namespace)
		set(k+"pod_name", c.Pod.Name)
		set(k+"pod_uid", c.Pod.UID)
		set(k+"pod_node_name", l.cfg.Node)
		set(k+"pod_phase", "Running") // it has a running container; rules that keep running pods only are common
		set(k+"pod_container_name", c.KubernetesContainer)
		set(k+"pod_container_image", c.Image)
		if c.ID != "" {
			set(k+"pod_container_id", cmp.Or(c.Runtime, "unknown")+"://"+c.ID)
		}
		each(k+"pod_label_", k+"pod_labelpresent_", c.Pod.Labels)
		each(k+"pod_annotation_", k+"pod_annotationpresent_", c.Pod.Annotations)
	}
}

// metaName spells the name of a label or annotation as Prometheus' discoveries do behind their prefix.
func metaName(s string) string {
	clean := func(r rune) rune {
		if r == '_' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' {
			return r
		}
		return '_'
	}
	return strings.Map(clean, s)
}
