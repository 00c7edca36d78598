//go:build root

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/test/dockertest"
	"github.com/stoker-profiler/stoker/test/workload"
)

// Containers of Docker have their own samples, and the names that Docker knows: with containerd's events beside, and with
// nothing but Docker and the cgroup tree.
func TestContainersOfDocker(t *testing.T) {
	d := dockertest.NewForTest(t, run.daemon.d)
	if err := d.Load(t.Context(), run.image); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, containerd string }{{"with containerd", ""}, {"without containerd", "off"}} {
		t.Run(c.name, func(t *testing.T) {
			a := startAgent(t, options{docker: d.Socket(), socket: c.containerd})
			started := time.Now()
			name := func(service string) string {
				return fmt.Sprintf("stoker-e2e-%d-%s-%s", os.Getpid(), strings.ReplaceAll(c.name, " ", "-"), service)
			}
			ids := map[string]string{}
			for n, service := range []string{"api", "db"} {
				id, err := d.Run(t.Context(), dockertest.Spec{
					Name: name(service), Image: imageRef, Args: []string{"/" + workload.Burn, "0", fmt.Sprint(n)},
					Labels: map[string]string{testLabel: t.Name(), "com.docker.compose.project": "shop", "com.docker.compose.service": service},
				})
				if err != nil {
					t.Fatal(err)
				}
				ids[service] = id
			}
			for _, id := range ids {
				eventually(t, time.Minute, "both have profiles of two windows", func() error {
					if n := len(a.profiles(t, id)); n < 2 {
						return fmt.Errorf("%d profiles of %s in the store", n, id)
					}
					return nil
				})
			}
			charged := map[string]time.Duration{}
			for service, id := range ids {
				charged[service] = cpuUsage(t, "/docker/"+id)
				if _, err := d.Docker(t.Context(), "rm", "--force", id); err != nil {
					t.Fatal(err)
				}
			}
			a.stop(t)
			for n, service := range []string{"api", "db"} {
				profiles := a.profiles(t, ids[service])
				for _, p := range profiles {
					for label, want := range map[string]string{
						"service_name": "shop/" + service, "container_name": name(service), "container_runtime": "docker", "container_image": imageRef,
						"compose_project": "shop", "compose_service": service,
					} {
						if p.Labels[label] != want {
							t.Errorf("label %s is %q, want %q; all: %v", label, p.Labels[label], want, p.Labels)
						}
					}
				}
				pic := look(t, profiles)
				own, other := fmt.Sprintf("unique_%d", n), fmt.Sprintf("unique_%d", 1-n)
				if pic.cum[other] != 0 || pic.share(pic.cum, own) < 90 {
					t.Errorf("%s has %.1f %% of %s and %s of %s\n%s", service, pic.share(pic.cum, own), own, time.Duration(pic.cum[other]), other, pic)
				}
				// The CPU time before the container was found is not in the profiles; it is little.
				if total := time.Duration(pic.total[""]); total > charged[service]+time.Second || total < charged[service]/2 {
					t.Errorf("%s has %s in profiles and was charged %s, %s after the agent came up", service, total, charged[service], time.Since(started))
				}
			}
		})
	}
}
