//go:build guest && !root

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stoker-profiler/stoker/sink/web"
)

// A user's Podman: cgroups that the user's service manager makes, events in the journal, no service. Its containers are that
// user's, with names, labels and image; one that has no cgroup of its own is listed with the reason; and that user's socket is
// left alone, for connecting would start a service.
func TestRootlessPodman(t *testing.T) {
	const user, uid = "ada", "2001"
	image := archive(t)
	sh(t, "id -u "+user+" 2>/dev/null || useradd --create-home --uid "+uid+" --shell /bin/bash "+user)
	sh(t, "grep -q ^"+user+": /etc/subuid || echo "+user+":200000:65536 | tee -a /etc/subuid >>/etc/subgid")
	sh(t, "loginctl enable-linger "+user+"; cp "+image+" /tmp/ada.tar; chmod 644 /tmp/ada.tar")
	as := func(script string) string {
		t.Helper()
		// A session of the user's manager, as after logging in.
		return sh(t, fmt.Sprintf("cd /home/%s; systemd-run --quiet --wait --pipe --collect --uid=%s --setenv=HOME=/home/%s --setenv=XDG_RUNTIME_DIR=/run/user/%s "+
			"--setenv=DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/%s/bus -- bash -euc %q 2>&1", user, user, user, uid, uid, script))
	}
	sh(t, "for i in $(seq 300); do [ -S /run/user/"+uid+"/bus ] && exit; sleep .2; done; exit 1")
	as("podman load -q -i /tmp/ada.tar")
	as("systemctl --user enable --now podman.socket")

	a := startAgent(t, options{targets: "[]"})
	last := func(out string) string { return out[strings.LastIndexByte(out, '\n')+1:] }
	// Podman itself runs in a scope of the user's manager, as it does from a login.
	podman := "systemd-run --user --quiet --scope -- podman "
	web1 := last(as(podman + "run -d --name web --network none --label team=blue --runtime crun " + imageRef + " " + burner(1)))
	wantOwnWork(t, a, web1, 1, map[string]string{"container_runtime": "podman", "container_name": "web", "container_image": imageRef, "container_user": uid})
	found := a.becomes(t, web1, "it is described", func(c web.Container) bool { return c.Labels["team"] == "blue" })
	if found.User != uid || !strings.HasPrefix(found.CgroupPath, "/user.slice/user-"+uid+".slice/") || found.Sources["podman:"+uid].IsZero() {
		t.Errorf("got %+v", found)
	}
	bare := last(as(podman + "run -d --name bare --network none --cgroups=disabled --runtime crun " + imageRef + " " + burner(2)))
	found = a.becomes(t, bare, "it is listed with the reason", func(c web.Container) bool { return c.State == "excluded" })
	if found.Name != "bare" || found.User != uid || !strings.Contains(found.Reason, "--cgroups=disabled") {
		t.Errorf("got %+v", found)
	}
	if state := sh(t, "test ! -e /run/user/"+uid+"/systemd/units/invocation:podman.service && echo quiet"); state != "quiet" {
		t.Errorf("the user's service was started: %s", state)
	}
	as(podman + "rm -f -t 0 web bare")
	a.stop(t)
}
