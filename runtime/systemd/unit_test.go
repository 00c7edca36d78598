package systemd

import (
	"strings"
	"testing"
)

func TestWhoseCgroupItIs(t *testing.T) {
	for _, c := range []struct {
		path, unit string
		below      bool
	}{
		{"/", "", true},
		{"/system.slice", "", true},
		{"/system.slice/nginx.service", "nginx.service", false},
		{"/system.slice/nginx.service/worker", "", false},
		{"/system.slice/nginx.service/app-x.service", "", false}, // made by nginx, whatever it is called
		{"/system.slice/system-getty.slice", "", true},
		{"/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service", false},
		{`/system.slice/system-serial\x2dgetty.slice/serial-getty@ttyS0.service`, "serial-getty@ttyS0.service", false},
		{`/system.slice/my\x2dapp.service`, `my\x2dapp.service`, false},
		{"/init.scope", "init.scope", false},
		{"/user.slice/user-1000.slice/session-3.scope", "session-3.scope", false},
		{"/user.slice/user-1000.slice/user@1000.service", "user@1000.service", true},
		{"/user.slice/user-1000.slice/user@1000.service/app.slice", "", true},
		{"/user.slice/user-1000.slice/user@1000.service/app.slice/job.service", "job.service", false},
		{"/user.slice/user-1000.slice/user@1000.service/init.scope", "init.scope", false},
		{"/user.slice/user-1000.slice/user@1000.service/app.slice/job.service/x.service", "", false},
		{"/user.slice/user-1000.slice/user@1001.service/x.service", "", false},    // not that user's manager
		{"/system.slice/user@1000.service/x.service", "", false},                  // nor that
		{"/machine.slice/machine-box.scope/system.slice/cron.service", "", false}, // a machine's own
		{"/docker/0123/system.slice/cron.service", "", false},
		{"/system.slice/_cpu.service", "cpu.service", false}, // systemd keeps clear of the kernel's files
		{"/system.slice/a b.service", "", false},
		{"/system.slice/a\x1b.service", "", false},
		{"/system.slice/.service", "", false},
		{"/system.slice/" + strings.Repeat("a", 250) + ".service", "", false},
		{"/lxc.payload.x", "", false},
	} {
		n, below := parse(c.path)
		if n.ID != c.unit || below != c.below || n.ID != "" && (n.Path != c.path || n.Runtime != "systemd" || n.Unit != c.unit) {
			t.Errorf("%s: %+v, below %v", c.path, n, below)
		}
	}
}

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		patterns  Patterns
		unit      string
		own, want bool
	}{
		{Patterns{"nginx.service"}, "nginx.service", false, true},
		{Patterns{"nginx.service"}, "nginx2.service", false, false},
		{Patterns{"app-*.service", "b.scope"}, "app-x.service", false, true},
		{Patterns{"app-*.service", "b.scope"}, "b.scope", false, true},
		{Patterns{"*"}, "anything.scope", false, true},
		{Patterns{"web@[0-9].service"}, "web@3.service", false, true},
		{Patterns{`my\x2dapp.service`}, `my\x2dapp.service`, false, true},
		{Patterns{`my\x2d*.service`}, `my\x2dapp.service`, false, true},
		{Patterns{"*"}, "stoker.service", true, false}, // nobody who asks for everything means the profiler
		{Patterns{"stoker.service"}, "stoker.service", true, true},
		{nil, "nginx.service", false, false},
	} {
		if got := c.patterns.match(c.unit, c.own); got != c.want {
			t.Errorf("%q, %s, own %v: %v", c.patterns, c.unit, c.own, got)
		}
	}
	for p, want := range map[string]string{
		"nginx.service": "", "app-*.service": "", "*": "", "a?.scope": "", "web@[0-9]": "", `a\x2db.service`: "",
		"": "empty", "a/b.service": "slash", "nginx": "nginx.service", "app.socket": "no service", "[a.service": "pattern", strings.Repeat("a", 256): "too long",
	} {
		err := CheckPattern(p)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v", p, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("/user.slice/user-1000.slice/user@1000.service/app.slice/job.service")
	f.Add("/system.slice/_cpu.service")
	f.Fuzz(func(t *testing.T, p string) {
		n, _ := parse(p)
		if n.ID != "" && (n.Path != p || len(n.ID) > maxUnit || strings.ContainsAny(n.ID, "/\x00\x1b\n ")) {
			t.Errorf("%q: %+v", p, n)
		}
	})
}
