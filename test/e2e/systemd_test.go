//go:build root

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/test/workload"
)

// inCgroup runs a program in a cgroup as service managers and LXC make them, and removes it at the end with those above it that were
// not there before.
func inCgroup(t *testing.T, path string, args ...string) {
	t.Helper()
	h, err := cgroupfs.Detect()
	if err != nil {
		t.Fatal(err)
	}
	dir := h.Dir(path)
	var made []string
	for d := dir; d != h.Mount; d = filepath.Dir(d) {
		if _, err := os.Stat(d); errors.Is(err, os.ErrNotExist) {
			made = append(made, d)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, d := range made { // innermost first
			if err := os.Remove(d); err != nil {
				t.Error(err)
			}
		}
	})
	cmd := exec.Command(args[0], args[1:]...)
	fd, err := syscall.Open(dir, syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}
	if err := cmd.Start(); err != nil {
		// On a hybrid host the kernel puts a new process into a v2 cgroup all the same; where it does not, this test cannot run.
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		eventually(t, 30*time.Second, "its cgroup is empty", func() error {
			procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			if err == nil && len(procs) > 0 {
				err = fmt.Errorf("it has %q", procs)
			}
			return err
		})
	})
}

// Services are profiled when they are asked for, LXC's containers and machines always, all by the names of their cgroups: this machine
// has no systemd (test/vm has).
func TestUnitsAndMachinesByCgroup(t *testing.T) {
	mark := fmt.Sprintf("e2e%d", os.Getpid())
	unit := func(name string) string { return "stoker-" + mark + "-" + name + ".service" }
	a := startAgent(t, options{targets: "[]", extra: fmt.Sprintf("systemd: [%q]\n", "stoker-"+mark+"-a*.service")})
	files, err := run.programs.Files(workload.Burn)
	if err != nil {
		t.Fatal(err)
	}
	burn := files["/"+workload.Burn]
	if burn == "" {
		burn = files[workload.Burn]
	}
	for n, c := range []struct {
		path, id, runtime, unit, user string
	}{
		{"/stoker.slice/stoker-" + mark + ".slice/" + unit("api"), unit("api"), "systemd", unit("api"), ""},
		{"/stoker.slice/stoker-" + mark + ".slice/" + unit("other"), "", "", "", ""},
		{"/lxc.payload." + mark, mark, "lxc", "", ""},
		{"/lxc.monitor." + mark, "", "", "", ""},
		{"/stoker.slice/systemd-nspawn@m" + mark + ".service/payload", "m" + mark, "nspawn", "", ""},
		{"/user.slice/user-4711.slice/user@4711.service/app.slice/" + unit("auser"), unit("auser"), "systemd", unit("auser"), "4711"},
	} {
		inCgroup(t, c.path, burn, "0", strconv.Itoa(n))
		if c.id == "" {
			continue
		}
		profiles := a.stored(t, c.id, "profile of "+c.path, func(p sink.Profile) bool { return p.Total > 0 })
		for _, p := range profiles {
			for label, want := range map[string]string{"container_runtime": c.runtime, "service_name": c.id, "systemd_unit": c.unit, "container_user": c.user} {
				if p.Labels[label] != want {
					t.Errorf("%s: label %s is %q, want %q; all: %v", c.path, label, p.Labels[label], want, p.Labels)
				}
			}
		}
		pic := look(t, profiles)
		if own := fmt.Sprintf("unique_%d", n); pic.share(pic.cum, own) < 90 {
			t.Errorf("%s has %.1f %% of %s\n%s", c.path, pic.share(pic.cum, own), own, pic)
		}
	}
	out, errs, code := a.command(t, "ps", "--output", "json")
	if code != 0 {
		t.Fatalf("ps: exit code %d: %s", code, errs)
	}
	for _, wrong := range []string{unit("other"), "lxc.monitor"} {
		if strings.Contains(out, wrong) {
			t.Errorf("ps lists %s, which nobody asked for:\n%s", wrong, out)
		}
	}
	a.stop(t)
}
