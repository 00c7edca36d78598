//go:build guest && !root

package e2e

import (
	"flag"
	"testing"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
)

// cgroups says how the machine was booted: the test below runs in each of three.
var cgroups = flag.String("cgroups", "cgroup v2 at /sys/fs/cgroup", "the hierarchy that has to be found")

// A service of systemd and a container, whatever cgroups the machine has: v2, v1 with systemd's own tree in v2 (hybrid), v1 alone.
func TestServiceAndContainerOnTheseCgroups(t *testing.T) {
	h, err := cgroupfs.Detect()
	if err != nil {
		t.Fatal(err)
	}
	if h.String() != *cgroups {
		t.Fatalf("found %s, want %s", h, *cgroups)
	}
	image := archive(t)
	sh(t, "systemctl start containerd; ctr images import "+image)
	write(t, "/etc/systemd/system/cg-web.service", "[Unit]\nDescription=burns in unique_11\n[Service]\nExecStart=/host"+burner(11)+"\n")
	write(t, "/etc/systemd/system/cg-other.service", "[Unit]\nDescription=burns in unique_12\n[Service]\nExecStart=/host"+burner(12)+"\n")
	sh(t, "systemctl daemon-reload; systemctl start cg-web cg-other")
	a := startAgent(t, options{targets: "[]", extra: "systemd: [\"cg-web.service\"]\n"})
	sh(t, "ctr run -d "+imageRef+" cg-box "+burner(13))
	wantOwnWork(t, a, "cg-web.service", 11, map[string]string{"container_runtime": "systemd", "systemd_unit": "cg-web.service"})
	wantOwnWork(t, a, "cg-box", 13, map[string]string{"container_runtime": "containerd", "container_image": imageRef})
	if t.Failed() {
		out, errs, _ := a.command(t, "ps")
		t.Logf("ps:\n%s%s", out, errs)
	}
	a.stop(t)
	sh(t, "ctr task kill -s KILL cg-box; systemctl stop cg-web cg-other")
}
