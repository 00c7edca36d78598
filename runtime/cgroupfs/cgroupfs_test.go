package cgroupfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

const (
	mountV2     = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
	mountTmpfs  = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
	mountHybrid = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
	mountCPU    = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
	mountPids   = "39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n"
	mountName   = "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n"
	mountBind   = "77 31 0:38 /docker/x /var/lib/x/rootfs/sys/fs/cgroup ro - cgroup2 cgroup2 rw\n"
)

func TestDetect(t *testing.T) {
	for _, c := range []struct {
		name, mounts string
		processes    map[string]string // pid → cgroup file
		want         Hierarchy         // without Proc
		err          string
	}{
		{name: "v2", mounts: mountBind + mountV2, want: Hierarchy{Mount: "/sys/fs/cgroup"}},
		{name: "v2 elsewhere", mounts: "1 2 0:3 / /mnt/my\\040cg rw - cgroup2 c rw\n", want: Hierarchy{Mount: "/mnt/my cg"}},
		{name: "hybrid", mounts: mountTmpfs + mountCPU + mountPids + mountName + mountHybrid,
			processes: map[string]string{"7": "3:pids:/docker/" + id64 + "\n0::/docker/" + id64 + "\n"}, want: Hierarchy{Mount: "/sys/fs/cgroup/unified"}},
		{name: "hybrid with an old runtime", mounts: mountTmpfs + mountCPU + mountPids + mountName + mountHybrid,
			processes: map[string]string{"1": "3:pids:/\n0::/\n", "7": "3:pids:/docker/" + id64 + "\n0::/\n"},
			want:      Hierarchy{Mount: "/sys/fs/cgroup/pids", Controller: "pids"}},
		{name: "v1", mounts: mountTmpfs + mountName + mountCPU + mountPids, want: Hierarchy{Mount: "/sys/fs/cgroup/pids", Controller: "pids"}},
		{name: "v1 without pids", mounts: mountTmpfs + mountName + mountCPU, want: Hierarchy{Mount: "/sys/fs/cgroup/cpu,cpuacct", Controller: "cpu"}},
		{name: "none", mounts: mountTmpfs + mountBind, err: "mount cgroup2 on /sys/fs/cgroup"},
	} {
		t.Run(c.name, func(t *testing.T) {
			proc := t.TempDir()
			write(t, proc, "self/mountinfo", c.mounts)
			for pid, file := range c.processes {
				write(t, proc, pid+"/cgroup", file)
			}
			got, err := detect(proc)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %v, %v, want an error with %q", got, err, c.err)
				}
				return
			}
			c.want.Proc = proc
			if err != nil || got != c.want {
				t.Errorf("got %+v, %v, want %+v", got, err, c.want)
			}
		})
	}
}

func TestDetectThisMachine(t *testing.T) {
	h, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	if h.Proc != "" {
		t.Errorf("Proc is %q, want the zero value", h.Proc)
	}
	path, err := h.OfPID(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if id, err := h.ID(path); err != nil || id == 0 {
		t.Errorf("ID(%q) = %d, %v", path, id, err)
	}
	pids, err := h.Processes(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(h.String(), h.Mount) || len(pids) == 0 {
		t.Errorf("%v has processes %v, want at least this one", h, pids)
	}
}

func TestOfPIDReadsTheHierarchyByName(t *testing.T) {
	proc := t.TempDir()
	write(t, proc, "7/cgroup", "12:pids:/one\n9:name=systemd:/two\n2:cpu,cpuacct:/three:3\n0::/four\n")
	write(t, proc, "8/cgroup", "0::/../../outer\n")
	write(t, proc, "9/cgroup", "0::/docker/x (deleted)\n")
	write(t, proc, "10/cgroup", "garbage\n")
	write(t, proc, "11/cgroup", "0::/a/../b\n")
	for controller, want := range map[string]string{"pids": "/one", "cpuacct": "/three:3", "": "/four"} {
		if got, err := (Hierarchy{Proc: proc, Controller: controller}).OfPID(7); err != nil || got != want {
			t.Errorf("controller %q: got %q, %v, want %q", controller, got, err, want)
		}
	}
	h := Hierarchy{Proc: proc}
	if _, err := h.OfPID(8); !errors.Is(err, ErrOutside) || !strings.Contains(err.Error(), "--cgroupns=host") {
		t.Errorf("outside: got %v, want ErrOutside with a remedy", err)
	}
	for _, pid := range []int{9, 404} {
		if _, err := h.OfPID(pid); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("pid %d: got %v, want fs.ErrNotExist", pid, err)
		}
	}
	if _, err := (Hierarchy{Proc: proc, Controller: "memory"}).OfPID(7); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such controller: got %v, want fs.ErrNotExist", err)
	}
	for _, pid := range []int{10, 11} {
		if path, err := h.OfPID(pid); err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "offset 0") {
			t.Errorf("pid %d: got %q, %v, want an error with the offset", pid, path, err)
		}
	}
}

func TestOfContainerIsTheContainersOwnCgroup(t *testing.T) {
	proc, id := t.TempDir(), strings.Repeat("3f", 32)
	write(t, proc, "1/cgroup", "0::/mine/c1\n")
	write(t, proc, "2/cgroup", "0::/mine/c1/init.scope\n")
	write(t, proc, "3/cgroup", "0::/docker/"+id+"/sub/x\n")
	write(t, proc, "4/cgroup", "0::/mine/c10\n")
	for _, c := range []struct {
		pid                   int
		id, cgroupsPath, want string
	}{
		{1, "c1", "/mine/c1", "/mine/c1"},
		{1, "c1", "", "/mine/c1"},
		{2, "c1", "/mine/c1", "/mine/c1"},
		{2, "c1", "", "/mine/c1/init.scope"}, // nothing says that it is not the container's
		{3, id, "system.slice:docker:" + id, "/docker/" + id},
		{3, strings.Repeat("4e", 32), "", "/docker/" + id + "/sub/x"},
		{4, "c1", "/mine/c1", "/mine/c10"},
	} {
		if got, err := (Hierarchy{Proc: proc}).OfContainer(c.pid, c.id, c.cgroupsPath); err != nil || got != c.want {
			t.Errorf("pid %d of container %s at %q: got %q, %v, want %q", c.pid, c.id, c.cgroupsPath, got, err, c.want)
		}
	}
	if _, err := (Hierarchy{Proc: proc}).OfContainer(404, "c1", "/mine/c1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}

func TestIDDoesNotLeaveTheMount(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "outside/x", "")
	write(t, dir, "mount/inside/x", "")
	h := Hierarchy{Mount: filepath.Join(dir, "mount")}
	if _, err := h.ID("/inside"); err != nil {
		t.Error(err)
	}
	if id, err := h.ID("/../outside"); err == nil {
		t.Errorf("the id of a directory outside of the mount was given: %d", id)
	}
	if id, err := h.ID("/inside/x"); err == nil {
		t.Errorf("the id of a file was given: %d", id)
	}
	if _, err := h.ID("/nothing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}

func TestProcesses(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "c/cgroup.procs", "10\n0\n11\n")
	write(t, dir, "c/init.scope/cgroup.procs", "12\n")
	write(t, dir, "bad/cgroup.procs", "x\n")
	h := Hierarchy{Mount: dir}
	got, err := h.Processes("/c")
	if err != nil || len(got) != 3 || got[0]+got[1]+got[2] != 33 {
		t.Errorf("got %v, %v, want 10, 11, 12", got, err)
	}
	if _, err := h.Processes("/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
	if _, err := h.Processes("/bad"); err == nil {
		t.Error("a cgroup.procs that is not numbers was taken")
	}
}

func TestProcessesOfAVeryLargeTreeAreBounded(t *testing.T) {
	dir := t.TempDir()
	for i := range maxSubtree + 200 {
		write(t, dir, fmt.Sprintf("c/%d/cgroup.procs", i), fmt.Sprintln(i+1))
	}
	got, err := Hierarchy{Mount: dir}.Processes("/c")
	if err != nil || len(got) < maxSubtree-10 || len(got) > maxSubtree+10 {
		t.Errorf("got %d processes, %v, want about %d", len(got), err, maxSubtree)
	}
}

func FuzzParseProcCgroup(f *testing.F) {
	for _, s := range []string{"0::/\n", "9:name=systemd:/\n8:pids:/x\n0::/x:y\n", "", "\n\n", "0::/../x\n", "0::/x (deleted)\n", "a:b", "0::"} {
		f.Add(s, "")
		f.Add(s, "pids")
	}
	f.Fuzz(func(t *testing.T, file, controller string) {
		path, err := parseProcCgroup(strings.NewReader(file), controller)
		if err == nil && (!strings.HasPrefix(path, "/") || filepath.Clean(path) != path || strings.HasPrefix(path, "/..") && (len(path) == 3 || path[3] == '/')) {
			t.Errorf("parseProcCgroup(%q, %q) = %q", file, controller, path)
		}
	})
}

func FuzzParseMountinfo(f *testing.F) {
	f.Add(mountTmpfs + mountCPU + mountPids + mountName + mountHybrid)
	f.Add(" - cgroup2")
	f.Fuzz(func(t *testing.T, file string) {
		if _, _, err := parseMountinfo(strings.NewReader(file)); err != nil && len(file) < 1<<20 {
			t.Errorf("parseMountinfo(%q): %v", file, err)
		}
	})
}
