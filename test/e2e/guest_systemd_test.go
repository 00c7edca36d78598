//go:build guest && !root

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stoker-profiler/stoker/sink/web"
)

// Services that are asked for, a template's instance and a user's unit among them, are profiled like containers, each with its own
// samples and its unit as label; a restart is another run; a pattern that is added counts at once. A machine of systemd-nspawn need not
// be asked for.
func TestUnitsOfSystemd(t *testing.T) {
	service := func(name string, n int) {
		write(t, "/etc/systemd/system/"+name, fmt.Sprintf("[Unit]\nDescription=burns in unique_%d\n[Service]\nExecStart=/host%s\n", n, burner(n)))
	}
	service("app-web.service", 4)
	service("app-job@.service", 5)
	service("other.service", 6)
	sh(t, "systemctl daemon-reload; systemctl start app-web app-job@blue other")
	const user, uid = "grace", "2002"
	sh(t, "id -u "+user+" 2>/dev/null || useradd --create-home --uid "+uid+" --shell /bin/bash "+user)
	sh(t, "loginctl enable-linger "+user+"; for i in $(seq 300); do [ -S /run/user/"+uid+"/bus ] && exit; sleep .2; done; exit 1")
	sh(t, "systemd-run --quiet --user --machine="+user+"@ --unit=app-mine "+"/host"+burner(7))

	a := startAgent(t, options{targets: "[]", extra: "systemd: [\"app-*.service\"]\n"})
	unit := func(name string) map[string]string {
		return map[string]string{"container_runtime": "systemd", "systemd_unit": name, "service_name": name, "container_user": ""}
	}
	wantOwnWork(t, a, "app-web.service", 4, unit("app-web.service"))
	wantOwnWork(t, a, "app-job@blue.service", 5, unit("app-job@blue.service"))
	mine := unit("app-mine.service")
	mine["container_user"] = uid
	wantOwnWork(t, a, "app-mine.service", 7, mine)
	first := a.becomes(t, "app-web.service", "systemd has told of it", func(c web.Container) bool { return c.PID != 0 })
	if pid := sh(t, "systemctl show --value --property=MainPID app-web"); fmt.Sprint(first.PID) != pid {
		t.Errorf("its process is %d, systemd says %s", first.PID, pid)
	}
	if mine := a.becomes(t, "app-mine.service", "it is there", func(web.Container) bool { return true }); mine.User != uid {
		t.Errorf("a user's unit: %+v", mine)
	}
	for _, c := range a.known(t) {
		if c.ID == "other.service" {
			t.Errorf("nobody asked for %+v", c)
		}
	}

	// Another run.
	sh(t, "systemctl restart app-web")
	a.becomes(t, "app-web.service", "it runs in another cgroup", func(c web.Container) bool { return c.State == "profiled" && c.CgroupID != first.CgroupID })

	// A pattern more.
	a.opts.extra = "systemd: [\"app-*.service\", \"oth?r.service\"]\n"
	a.configure(t)
	a.reload(t)
	wantOwnWork(t, a, "other.service", 6, unit("other.service"))

	// Machines.
	if err := os.MkdirAll("/var/lib/machines/box/usr", 0o755); err != nil {
		t.Fatal(err)
	}
	sh(t, "mkdir -p /var/lib/machines/box/{etc,proc,sys,dev,tmp,run,var} && touch /var/lib/machines/box/etc/os-release && cp /host"+strings.Fields(burner(8))[0]+" /var/lib/machines/box/burn")
	sh(t, "systemd-run --quiet --unit=box systemd-nspawn --quiet --directory=/var/lib/machines/box --machine=box --private-network /burn 0 8")
	wantOwnWork(t, a, "box", 8, map[string]string{"container_runtime": "nspawn", "service_name": "box"})
	if t.Failed() {
		out, errs, _ := a.command(t, "ps")
		t.Logf("ps:\n%s%s", out, errs)
	}
	a.stop(t)
}
