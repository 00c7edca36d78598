//go:build guest && !root

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// Engines whose containers' cgroups are made by systemd: each container is one record with its own names, and has its own
// samples, all of them profiled at the same time.
func TestEnginesThatLetSystemdMakeCgroups(t *testing.T) {
	image := archive(t)
	if err := os.MkdirAll("/etc/docker", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, "/etc/docker/daemon.json", `{"bridge": "none", "iptables": false, "ip6tables": false, "exec-opts": ["native.cgroupdriver=systemd"]}`)
	sh(t, "systemctl start containerd docker")
	sh(t, "docker load -q -i "+image+"; ctr images import "+image+"; podman load -q -i "+image)

	a := startAgent(t, options{docker: "/run/docker.sock", targets: "[]"})
	type box struct {
		id, cgroup string
		labels     map[string]string
	}
	var boxes []box
	docker := sh(t, "docker run -d --name web --network none --label com.docker.compose.project=shop --label com.docker.compose.service=web "+imageRef+" "+burner(1))
	boxes = append(boxes, box{docker, "/system.slice/docker-" + docker + ".scope",
		map[string]string{"container_runtime": "docker", "container_name": "web", "service_name": "shop/web", "container_image": imageRef}})
	podman := sh(t, "podman run -d --name db --network none --runtime crun --cgroup-manager systemd "+imageRef+" "+burner(2))
	boxes = append(boxes, box{podman, "/machine.slice/libpod-" + podman + ".scope",
		map[string]string{"container_runtime": "podman", "container_name": "db", "container_image": imageRef}})
	id := strings.Repeat("c0ffee12", 8)
	sh(t, "ctr run -d --runc-systemd-cgroup --cgroup system.slice:nerdctl:"+id+" --label nerdctl/name=job "+imageRef+" "+id+" "+burner(3))
	boxes = append(boxes, box{id, "/system.slice/nerdctl-" + id + ".scope",
		map[string]string{"container_runtime": "containerd", "container_name": "job", "container_image": imageRef}})

	for n, b := range boxes {
		if _, err := os.Stat("/sys/fs/cgroup" + b.cgroup); err != nil {
			t.Errorf("the engine did not let systemd make the cgroup: %v", err)
		}
		wantOwnWork(t, a, b.id, n+1, b.labels)
		out, errs, code := a.command(t, "ps", "--output", "json")
		if code != 0 {
			t.Fatalf("stoker ps: exit code %d: %s", code, errs)
		}
		if n := strings.Count(out, fmt.Sprintf("%q: %q", "id", b.id)); n != 1 {
			t.Errorf("stoker ps has %d records of %s, want 1:\n%s", n, b.id, out)
		}
	}
	a.stop(t)
}
