//go:build root

package critest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stoker-profiler/stoker/test/containerdtest"
)

func TestPodsLiveThroughADaemonThatIsKilled(t *testing.T) {
	ctx := t.Context()
	d := NewForTest(t, Options{BaseSpec: func(s *specs.Spec) { s.Process.Env = append(s.Process.Env, "COLOUR=red") }})
	if err := d.Image(containerdtest.Image{Ref: "localhost/hello:1"}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	p, err := d.RunPod(ctx, PodSpec{Name: "web-0", Namespace: "shop", Labels: map[string]string{"app": "web"}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.Run(ctx, ContainerSpec{Name: "main", Image: "localhost/hello:1", Args: []string{"/bin/sh", "-c", "echo $COLOUR $SIZE; sleep 1000"},
		Env: map[string]string{"SIZE": "large"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("pod and container after %s", time.Since(begin))
	pid, err := c.PID(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cgroup, err := c.CgroupID()
	if err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)); err != nil || !strings.Contains(string(text), ":"+c.CgroupPath()+"\n") {
		t.Errorf("pid %d is not in %s but in\n%s%v", pid, c.CgroupPath(), text, err)
	}

	if err := d.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := d.StartDaemon(ctx); err != nil {
		t.Fatal(err)
	}
	if again, err := c.PID(ctx); err != nil || again != pid {
		t.Errorf("pid %d after a restart of the daemon, %v; before it was %d", again, err, pid)
	}
	if again, err := c.CgroupID(); err != nil || again != cgroup {
		t.Errorf("cgroup id %d after a restart of the daemon, %v; before it was %d", again, err, cgroup)
	}
	if got, want := c.Log(), "red large\n"; got != want {
		t.Errorf("the container wrote %q, want %q", got, want)
	}
	// Beside pods: what ctr runs.
	other, err := d.Run(ctx, containerdtest.Spec{ID: "plain", Image: "localhost/hello:1", Args: []string{"/bin/sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	// One container is removed in order, one left for Stop.
	second, err := p.Run(ctx, ContainerSpec{Name: "second", Image: "localhost/hello:1", Args: []string{"/bin/true"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Wait(ctx); err != nil {
		t.Error(err)
	}
	if err := second.Remove(ctx); err != nil {
		t.Error(err)
	}

	if err := d.Stop(); err != nil {
		t.Error(err)
	}
	for _, pid := range []int{pid, other.PID()} {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
			t.Errorf("process %d outlived Stop", pid)
		}
	}
	for _, path := range []string{p.CgroupPath(), d.CgroupParent()} {
		if left, err := filepath.Glob("/sys/fs/cgroup/*" + path); err != nil || len(left) > 0 {
			t.Errorf("cgroups are left: %v, %v", left, err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), d.Dir()) {
		t.Errorf("mounts are left below %s, %v", d.Dir(), err)
	}
}
