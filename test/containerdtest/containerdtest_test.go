//go:build root

package containerdtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestContainersLiveThroughADaemonThatIsKilled(t *testing.T) {
	ctx := t.Context()
	d := NewForTest(t)
	err := d.Image(Image{
		Ref: "localhost/hello:1", Cmd: []string{"/bin/sleep", "1000"}, Env: []string{"COLOUR=red"},
		Labels: map[string]string{"org.example.image": "1"},
		Files:  map[string]File{"/etc/greeting": {Content: []byte("hello from the image\n"), Mode: 0o644}},
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := d.Run(ctx, Spec{ID: "one", Image: "localhost/hello:1", Labels: map[string]string{"app": "x"},
		Args: []string{"/bin/sh", "-c", "cat /etc/greeting; echo $COLOUR; sleep 1000"}})
	if err != nil {
		t.Fatal(err)
	}
	if c.PID() == 0 {
		t.Fatal("no pid")
	}
	if out, err := c.Exec(ctx, "/bin/cat", "/etc/greeting"); err != nil || out != "hello from the image\n" {
		t.Errorf("exec printed %q, %v", out, err)
	}
	if got, want := c.Log(), "hello from the image\nred\n"; got != want {
		t.Errorf("the container wrote %q, want %q", got, want)
	}
	first, err := c.CgroupID()
	if err != nil {
		t.Fatal(err)
	}
	out, err := d.Ctr(ctx, "", "containers", "info", "one")
	if err != nil || !strings.Contains(out, `"app": "x"`) || !strings.Contains(out, `"org.example.image": "1"`) {
		t.Errorf("info: %s, %v", out, err)
	}

	if err := d.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", c.PID())); err != nil {
		t.Errorf("the container did not outlive its daemon: %v", err)
	}
	if err := d.StartDaemon(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(ctx, "/bin/true"); err != nil {
		t.Error(err)
	}
	if err := c.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if again, err := c.CgroupID(); err != nil || again == first {
		t.Errorf("cgroup id after a restart is %d (before: %d), %v", again, first, err)
	}
	// Two more of the same id in another namespace, one of them left running for Stop.
	other, err := d.Run(ctx, Spec{Namespace: "other", ID: "one", Image: "localhost/hello:1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Delete(ctx); err != nil {
		t.Error(err)
	}
	if other, err = d.Run(ctx, Spec{Namespace: "other", ID: "one", Image: "localhost/hello:1"}); err != nil {
		t.Fatal(err)
	}

	if err := d.Stop(); err != nil {
		t.Error(err)
	}
	for _, pid := range []int{c.PID(), other.PID()} {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
			t.Errorf("process %d outlived Stop", pid)
		}
	}
	if left, err := filepath.Glob("/sys/fs/cgroup/*" + d.CgroupParent()); err != nil || len(left) > 0 {
		t.Errorf("cgroups are left: %v, %v", left, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), d.Dir()) {
		t.Errorf("mounts are left below %s, %v", d.Dir(), err)
	}
}

func TestStopEndsContainersOfADaemonThatIsDead(t *testing.T) {
	ctx := t.Context()
	d := NewForTest(t)
	if err := d.Image(Image{Ref: "localhost/hello:1"}); err != nil {
		t.Fatal(err)
	}
	c, err := d.Run(ctx, Spec{ID: "one", Image: "localhost/hello:1", Args: []string{"/bin/sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.KillDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := d.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", c.PID())); err == nil {
		t.Errorf("process %d outlived Stop", c.PID())
	}
	if pids, err := d.shims(); err != nil || len(pids) > 0 {
		t.Errorf("shims are left: %v, %v", pids, err)
	}
}

func TestAnImageThatWasNotMadeIsNamed(t *testing.T) {
	d := NewForTest(t)
	if err := d.Image(Image{Ref: "localhost/hello:1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Run(t.Context(), Spec{ID: "one", Image: "localhost/nothing:1"}); err == nil || !strings.Contains(err.Error(), "localhost/hello:1") {
		t.Errorf("got %v, want an error that names the images that exist", err)
	}
}
