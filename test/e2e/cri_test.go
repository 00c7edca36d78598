//go:build root

package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/sink/web"
	"github.com/stoker-profiler/stoker/test/containerdtest"
	"github.com/stoker-profiler/stoker/test/critest"
	"github.com/stoker-profiler/stoker/test/workload"
)

// Pods of containerd 2, and what ctr runs beside them, have their own samples under their own labels; by containerd's events, by NRI,
// and by all that tells. Their pause containers, which burn CPU here, have none.
func TestPodsOfContainerd(t *testing.T) {
	pause := run.image
	pause.Cmd = []string{"/" + workload.Burn, "0", "9"}
	d := startPods(t, critest.Options{Pause: pause})
	nri := fmt.Sprintf(", nri: {enabled: true, socket: %s}", d.NRISocket())
	events := "containerd"
	for _, by := range []struct {
		name, socket, runtimes string
		sources                []string
		plain                  bool // what is in no pod is found too
	}{
		{"events", d.Socket(), "", []string{"cgroup", events}, true},
		{"NRI", "off", nri, []string{"cgroup", "nri"}, false},
		{"all", d.Socket(), nri, []string{"cgroup", events, "nri"}, true},
	} {
		t.Run(by.name, func(t *testing.T) {
			// By namespace, which pause containers have too: nothing but what they are keeps them out.
			a := startAgent(t, options{socket: by.socket, runtimes: by.runtimes, targets: fmt.Sprintf("[{namespace: stoker-e2e-*}, {label: {%s: %q}}, {exclude: true}]", testLabel, t.Name()),
				extra: `relabel_configs:
  - {regex: "__meta_kubernetes_pod_label_(.+)", action: labelmap, replacement: "pod_label_${1}"}
  - {source_labels: [__meta_kubernetes_namespace, __meta_kubernetes_pod_name, __meta_kubernetes_pod_container_name], separator: /, target_label: from}
`})
			type one struct {
				id     string
				n      int
				cgroup string
				labels map[string]string
			}
			var all []one
			var sandboxes []string
			var pods []*critest.Pod
			for n, app := range []string{"web", "db"} {
				ns := "stoker-e2e-" + app
				pod, err := d.RunPod(t.Context(), critest.PodSpec{Name: app + "-0", Namespace: ns, Labels: map[string]string{"app": app}})
				if err != nil {
					t.Fatal(err)
				}
				defer pod.Remove(t.Context()) //nolint:errcheck // the daemon ends what is left
				c, err := pod.Run(t.Context(), critest.ContainerSpec{Name: "main", Image: imageRef, Args: []string{"/" + workload.Burn, "0", fmt.Sprint(n)}})
				if err != nil {
					t.Fatal(err)
				}
				pods, sandboxes = append(pods, pod), append(sandboxes, pod.ID())
				all = append(all, one{c.ID(), n, c.CgroupPath(), map[string]string{
					"service_name": ns + "/main", "namespace": ns, "pod": app + "-0", "container": "main", "container_name": "main", "container_runtime": "containerd",
					"container_image": imageRef, "pod_label_app": app, "from": ns + "/" + app + "-0/main",
				}})
			}
			if by.plain {
				c, err := d.Run(t.Context(), containerdtest.Spec{ID: "plain-" + by.name, Image: imageRef, Args: []string{"/" + workload.Burn, "0", "2"}, Labels: map[string]string{testLabel: t.Name()}})
				if err != nil {
					t.Fatal(err)
				}
				defer c.Delete(t.Context()) //nolint:errcheck // the same
				all = append(all, one{c.ID(), 2, c.CgroupPath(), map[string]string{
					"service_name": c.ID(), "namespace": "", "pod": "", "container": "", "container_name": c.ID(), "container_runtime": "containerd", "container_image": imageRef}})
			}
			for _, c := range all {
				a.becomes(t, c.id, "all sources have told about it", func(w web.Container) bool {
					sources := slices.Sorted(maps.Keys(w.Sources))
					return w.State == "profiled" && (slices.Equal(sources, by.sources) || w.Pod == nil && slices.Contains(sources, events))
				})
				eventually(t, time.Minute, "two windows of it are in the store", func() error {
					if n := len(a.profiles(t, c.id)); n < 2 {
						return fmt.Errorf("%d profiles of %s", n, c.id)
					}
					return nil
				})
			}
			for _, c := range a.known(t) {
				if slices.Contains(sandboxes, c.ID) {
					t.Errorf("a pause container is listed: %+v", c)
				}
			}
			// They have a five-hundredth of a container's share of the CPU. All together that is some samples, if they were taken.
			eventually(t, 2*time.Minute, "pause containers have used 40 ms of CPU, so that their having no samples means something", func() error {
				var used time.Duration
				for _, p := range pods {
					used += cpuUsage(t, p.CgroupPath()+"/"+p.ID())
				}
				if used < 40*time.Millisecond {
					return fmt.Errorf("they have used %s", used)
				}
				return nil
			})
			charged := map[string]time.Duration{}
			for _, c := range all {
				charged[c.id] = cpuUsage(t, c.cgroup)
			}
			a.stop(t)

			for _, c := range all {
				profiles := a.profiles(t, c.id)
				for _, p := range profiles {
					for label, want := range c.labels {
						if p.Labels[label] != want {
							t.Errorf("label %s is %q, want %q; all: %v", label, p.Labels[label], want, p.Labels)
						}
					}
				}
				pic, own := look(t, profiles), fmt.Sprintf("unique_%d", c.n)
				for name := range pic.cum {
					if strings.HasPrefix(name, "unique_") && name != own {
						t.Errorf("%s has %s\n%s", c.id, name, pic)
					}
				}
				if pic.share(pic.cum, own) < 90 {
					t.Errorf("%s has %.1f %% of %s\n%s", c.id, pic.share(pic.cum, own), own, pic)
				}
				if total := time.Duration(pic.total[""]); total < charged[c.id]/2 {
					t.Errorf("%s has %s in profiles and was charged %s", c.id, total, charged[c.id])
				}
			}
			for _, p := range a.profiles(t, "") {
				if !slices.ContainsFunc(all, func(c one) bool { return c.id == p.ContainerID }) {
					t.Errorf("a profile of %s %v", p.ContainerID, p.Labels)
				}
			}
		})
	}
}
