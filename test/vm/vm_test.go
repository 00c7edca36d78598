//go:build vm

package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/test/workload"
)

// The tests of test/e2e/guest*_test.go, all in one boot: a pure cgroup v2 tree under systemd. They print as they go; a test that fails
// in the guest fails this one. Then one of them on machines that have cgroup v1.
func TestGuest(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("making a guest's root needs root: run as root")
	}
	ctx := t.Context()
	if deadline, ok := t.Deadline(); ok { // earlier than the test's own, so that the guest's console is shown
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-15*time.Second))
		defer cancel()
	}
	say := func(format string, args ...any) { fmt.Printf("vm: "+format+"\n", args...) } // t.Logf is silent until the end without -v
	dir := t.TempDir()
	build := func(args ...string) {
		t.Helper()
		cmd := exec.Command("go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	say("build the agent and the guest's tests")
	files := map[string]string{"stoker": filepath.Join(dir, "stoker"), "guest.test": filepath.Join(dir, "guest.test"), "sampler.test": filepath.Join(dir, "sampler.test")}
	build("build", "-o", files["stoker"], "github.com/stoker-profiler/stoker/cmd/stoker")
	build("test", "-c", "-tags", "guest", "-o", files["guest.test"], "github.com/stoker-profiler/stoker/test/e2e")
	build("test", "-c", "-tags", "root", "-o", files["sampler.test"], "github.com/stoker-profiler/stoker/bpf/sampler")
	programs, err := workload.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	workloads, err := programs.Files(workload.SharesC, workload.Burn)
	if err != nil {
		t.Fatal(err)
	}
	for in, here := range workloads {
		files[in] = here
	}
	g, err := Build(ctx, Config{Kernel: Kernel6_1, Packages: Engines, Modules: EngineModules, Log: say})
	if err != nil {
		t.Fatal(err)
	}
	tests := "/host/guest.test -test.v -test.timeout=20m"
	const v1 = "/host/sampler.test -test.v -test.timeout=5m -test.run='^TestCgroupV1$'"
	for _, boot := range []struct{ name, cmdline, command string }{
		{"v2", "", tests},
		{"hybrid", "systemd.unified_cgroup_hierarchy=0", tests + " -test.run=OnTheseCgroups -cgroups='cgroup v2 at /sys/fs/cgroup/unified' && " + v1},
		{"v1", "systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1",
			tests + " -test.run=OnTheseCgroups -cgroups='cgroup v1 (pids) at /sys/fs/cgroup/pids' && " + v1},
	} {
		t.Run(boot.name, func(t *testing.T) {
			command := boot.command
			if only := os.Getenv("STOKER_VM_RUN"); only != "" && boot.name == "v2" {
				command += " -test.run='" + only + "'"
			}
			if err := g.Run(ctx, Job{Command: []string{"bash", "-c", command}, Cmdline: boot.cmdline, Files: files, Output: os.Stdout}); err != nil {
				t.Error(err)
			}
		})
	}
}
