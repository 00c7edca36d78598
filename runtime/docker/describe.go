package docker

import (
	"cmp"
	"maps"
	"strings"
	"time"

	api "github.com/moby/moby/api/types/container"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// Labels that cri-dockerd puts on the containers of pods.
const (
	labelPodName       = "io.kubernetes.pod.name"
	labelPodNamespace  = "io.kubernetes.pod.namespace"
	labelPodUID        = "io.kubernetes.pod.uid"
	labelContainerName = "io.kubernetes.container.name"
	labelType          = "io.kubernetes.docker.type"
)

// validID reports whether an id is one of Docker's. Anything else is not: ids go into patterns that Docker matches.
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

// nameOf is a name without the slash that Docker puts before it.
func nameOf(name string) string { return strings.TrimPrefix(name, "/") }

// fromEvent takes what the attributes of a create or start say: the labels, and two of the event's own. A label that is called
// as one of these is lost in it.
func fromEvent(c *container.Container, attributes map[string]string) {
	c.Name = cmp.Or(nameOf(attributes["name"]), c.Name)
	c.Image = cmp.Or(attributes["image"], c.Image)
	labels := make(map[string]string, len(attributes))
	maps.Copy(labels, attributes)
	delete(labels, "name")
	delete(labels, "image")
	describe(c, labels)
}

// fromList takes what a list says.
func fromList(c *container.Container, s *api.Summary) {
	for _, name := range s.Names {
		// Links make further names, "/other/alias".
		if name = nameOf(name); name != "" && !strings.Contains(name, "/") {
			c.Name = name
			break
		}
	}
	// A reference that means another image by now is listed as the image's hash.
	if c.Image == "" || !strings.HasPrefix(s.Image, "sha256:") {
		c.Image = cmp.Or(s.Image, c.Image)
	}
	if s.Created > 0 && c.CreatedAt.IsZero() {
		c.CreatedAt = time.Unix(s.Created, 0)
	}
	labels := s.Labels
	if labels == nil {
		labels = map[string]string{} // known to be none
	}
	describe(c, labels)
}

// describe takes the labels and what follows from them.
func describe(c *container.Container, labels map[string]string) {
	c.Labels = labels
	c.Pod = container.Pod{Name: labels[labelPodName], Namespace: labels[labelPodNamespace], UID: labels[labelPodUID]}
	c.KubernetesContainer = labels[labelContainerName]
	c.Sandbox = labels[labelType] == "podsandbox"
}
