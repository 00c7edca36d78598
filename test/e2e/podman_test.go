//go:build root

package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/sink/web"
	"github.com/stoker-profiler/stoker/test/podmantest"
	"github.com/stoker-profiler/stoker/test/workload"
)

// Containers of Podman have their own samples and the names that people gave them, with a service and without one. One without
// a cgroup of its own is listed with the reason.
func TestContainersOfPodman(t *testing.T) {
	for _, c := range []struct {
		name    string
		service bool
	}{{"without a service", false}, {"with a service", true}} {
		t.Run(c.name, func(t *testing.T) {
			e := podmantest.NewForTest(t)
			if err := e.Load(t.Context(), run.image); err != nil {
				t.Fatal(err)
			}
			if c.service {
				if err := e.StartService(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			a := startAgent(t, options{runtimes: fmt.Sprintf(", podman: {address: %s}", e.Socket())})
			name := func(n int) string { return fmt.Sprintf("stoker-e2e-%d-%d", os.Getpid(), n) }
			pod := fmt.Sprintf("stoker-e2e-%d-pod", os.Getpid())
			if _, err := e.Podman(t.Context(), "pod", "create", "--name", pod, "--infra=false", "--share", ""); err != nil {
				t.Fatal(err)
			}
			var ids []string
			var delays []time.Duration
			for n := range 2 {
				spec := podmantest.Spec{
					Name: name(n), Image: imageRef, Args: []string{"/" + workload.Burn, "0", fmt.Sprint(n)},
					Labels: map[string]string{testLabel: t.Name(), "PODMAN_SYSTEMD_UNIT": fmt.Sprintf("web-%d.service", n)},
				}
				if n == 1 {
					spec.Options = []string{"--pod", pod}
				}
				id, err := e.Run(t.Context(), spec)
				if err != nil {
					t.Fatal(err)
				}
				ids = append(ids, id)
				found := a.becomes(t, id, "it is profiled", func(c web.Container) bool { return c.State == "profiled" && c.Labels[testLabel] != "" })
				out, err := e.Podman(t.Context(), "inspect", "--format", `{{.State.StartedAt.Format "2006-01-02T15:04:05.999999999Z07:00"}}`, id)
				if err != nil {
					t.Fatal(err)
				}
				started, err := time.Parse(time.RFC3339Nano, strings.TrimSpace(out))
				if err != nil {
					t.Fatal(err)
				}
				delays = append(delays, found.InScopeAt.Sub(started))
			}
			t.Logf("from the start, as Podman tells it, to in scope: %v", delays)
			bare, err := e.Run(t.Context(), podmantest.Spec{
				Name: name(2), Image: imageRef, Args: []string{"/" + workload.Burn, "0", "2"}, Labels: map[string]string{testLabel: t.Name()}, NoCgroup: true,
			})
			if err != nil {
				t.Fatal(err)
			}
			found := a.becomes(t, bare, "it is listed", func(c web.Container) bool { return c.State == "excluded" })
			if found.Name != name(2) || !strings.Contains(found.Reason, "no cgroup of its own") || !strings.Contains(found.Reason, "--cgroups=disabled") {
				t.Errorf("it is not profiled for %q: %+v", found.Reason, found)
			}
			for _, id := range ids {
				eventually(t, time.Minute, "both have profiles of two windows", func() error {
					if n := len(a.profiles(t, id)); n < 2 {
						return fmt.Errorf("%d profiles of %s in the store", n, id)
					}
					return nil
				})
			}
			if _, err := e.Podman(t.Context(), append([]string{"rm", "--force", "--time", "0", bare}, ids...)...); err != nil {
				t.Fatal(err)
			}
			a.stop(t)
			if n := len(a.profiles(t, bare)); n > 0 {
				t.Errorf("%d profiles of a container that shares its cgroup with others", n)
			}
			for n, id := range ids {
				want := map[string]string{
					"service_name": name(n), "container_name": name(n), "container_runtime": "podman", "container_image": imageRef,
					"systemd_unit": fmt.Sprintf("web-%d.service", n), "pod": []string{"", pod}[n],
				}
				profiles := a.profiles(t, id)
				for _, p := range profiles {
					for label, value := range want {
						if p.Labels[label] != value {
							t.Errorf("label %s is %q, want %q; all: %v", label, p.Labels[label], value, p.Labels)
						}
					}
				}
				pic := look(t, profiles)
				own := fmt.Sprintf("unique_%d", n)
				others := slices.DeleteFunc([]string{"unique_0", "unique_1", "unique_2"}, func(f string) bool { return f == own })
				if pic.cum[others[0]] != 0 || pic.cum[others[1]] != 0 || pic.share(pic.cum, own) < 90 {
					t.Errorf("%s has %.1f %% of %s\n%s", name(n), pic.share(pic.cum, own), own, pic)
				}
			}
		})
	}
}
