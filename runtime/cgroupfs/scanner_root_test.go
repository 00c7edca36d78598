//go:build root

package cgroupfs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// The real trees: a cgroup is told before it has a process, its id is the inode, and rmdir is noticed. On a hybrid machine
// the v1 tree is tried too.
func TestScannerOnTheRealTree(t *testing.T) {
	h, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	v2, v1, err := parseMountinfo(f)
	if err != nil {
		t.Fatal(err)
	}
	trees := []Hierarchy{h}
	if v2 != "" && v2 != h.Mount {
		trees = append(trees, Hierarchy{Mount: v2})
	}
	for controller, mount := range v1 {
		if mount != h.Mount {
			trees = append(trees, Hierarchy{Mount: mount, Controller: controller})
			break
		}
	}
	for _, tree := range trees {
		t.Run(tree.String(), func(t *testing.T) { realTree(t, tree) })
	}
}

func realTree(t *testing.T, h Hierarchy) {
	parent := filepath.Join(h.Mount, fmt.Sprintf("stoker-test-scanner-%d", os.Getpid()))
	dir := filepath.Join(parent, "docker", id64)
	t.Cleanup(func() {
		for _, d := range []string{filepath.Join(dir, "nested"), dir, filepath.Dir(dir), parent} {
			if err := os.Remove(d); err != nil && !os.IsNotExist(err) {
				t.Errorf("remove the test's cgroup: %v", err)
			}
		}
	})
	l := start(t, NewScanner(h, nil))
	l.wait(t, "synced")
	mkdir(t, filepath.Join(dir, "nested"))
	l.wait(t, "upsert "+id64)

	// A process in a nested cgroup is a process of the container.
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if err := os.WriteFile(filepath.Join(dir, "nested/cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644); err != nil {
		t.Fatal(err)
	}
	path, err := h.OfPID(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	n, ok := ParsePath(path)
	if want := dir[len(h.Mount):]; !ok || n.ID != id64 || n.Path != want {
		t.Errorf("ParsePath(%q) = %+v, want the container at %s", path, n, want)
	}
	if !h.populated(n.Path) {
		t.Error("the container counts as empty")
	}
	if pids, err := h.Processes(n.Path); err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Errorf("processes %v, %v, want %d", pids, err, cmd.Process.Pid)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	for _, d := range []string{filepath.Join(dir, "nested"), dir} {
		if err := os.Remove(d); err != nil {
			t.Fatal(err)
		}
	}
	l.wait(t, "gone "+id64)
}
