// Package cgroupfs reads the tree of cgroups: which hierarchy a machine has, what the kernel calls a cgroup, where a process
// is, and which cgroup names are containers. Its Scanner is a source of containers that works without any runtime, from
// paths alone; it is the catch-all behind the sources that ask.
//
// Functions and Hierarchy may be used by any goroutine and keep nothing. A Scanner is owned by the goroutine in its Run.
// Nothing here ever writes below the cgroup mount, and no path of a container's own files is opened.
package cgroupfs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Hierarchy is the cgroup tree whose directories give containers their ids. It is comparable and never changes.
type Hierarchy struct {
	// Mount is where the tree is mounted: "/sys/fs/cgroup", "/sys/fs/cgroup/unified".
	Mount string
	// Controller is "" for cgroup v2, also for the v2 tree of a hybrid host, else the v1 controller whose tree it is.
	Controller string
	// Proc is where proc is mounted; empty means /proc.
	Proc string
}

// ErrOutside means that a process is in a cgroup above the root that this process can see.
var ErrOutside = errors.New("its cgroup is outside of our cgroup namespace")

// v1Controllers are those that runtimes put every container into, in the order in which we would rather use them. Their
// names are also those of the kernel's enum cgroup_subsys_id.
var v1Controllers = []string{"pids", "memory", "cpu", "freezer"}

// maxProcFile bounds what is read of a file of /proc: a process is in at most some dozen hierarchies with paths below 4 KiB.
const maxProcFile = 256 << 10

// Detect finds the hierarchy to use: cgroup v2 where there is one, also on hybrid hosts when containers are in its tree,
// else cgroup v1. The error says what to do about a machine that has neither.
func Detect() (Hierarchy, error) { return detect("/proc") }

func detect(proc string) (Hierarchy, error) {
	f, err := os.Open(filepath.Join(proc, "self/mountinfo"))
	if err != nil {
		return Hierarchy{}, fmt.Errorf("find the cgroup tree: %w; stoker needs /proc mounted", err)
	}
	defer f.Close()
	v2, v1, err := parseMountinfo(f)
	if err != nil {
		return Hierarchy{}, fmt.Errorf("find the cgroup tree in %s: %w", f.Name(), err)
	}
	if proc == "/proc" {
		proc = "" // the zero value says the same and keeps Hierarchies comparable
	}
	for _, controller := range v1Controllers {
		mount, ok := v1[controller]
		if !ok {
			continue
		}
		h := Hierarchy{Mount: mount, Controller: controller, Proc: proc}
		if v2 == "" || separatesOnlyV1(h, Hierarchy{Mount: v2, Proc: proc}) {
			return h, nil
		}
		break
	}
	if v2 == "" {
		return Hierarchy{}, errors.New("find the cgroup tree: no cgroup file system is mounted; mount cgroup2 on /sys/fs/cgroup, or give " +
			"stoker's container the host's /sys/fs/cgroup and its cgroup namespace")
	}
	return Hierarchy{Mount: v2, Proc: proc}, nil
}

// separatesOnlyV1 reports whether some process is in a container's cgroup in the v1 tree but not in the v2 tree. Runtimes
// of before 2021 do not know the v2 tree of a hybrid host and leave containers in its root.
func separatesOnlyV1(v1, v2 Hierarchy) bool {
	entries, err := os.ReadDir(v1.proc())
	if err != nil {
		return false
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		one, err := v1.OfPID(pid)
		if err != nil {
			continue // the process is gone, or is none of ours to see
		}
		if n, ok := ParsePath(one); !ok || n.Kind != KindContainer {
			continue
		}
		two, err := v2.OfPID(pid)
		if err != nil {
			continue
		}
		if n, ok := ParsePath(two); !ok || n.Kind != KindContainer {
			return true
		}
	}
	return false
}

// parseMountinfo finds the cgroup2 mount and the v1 mounts by controller. Mounts of a part of the tree (a container's own
// view, bind-mounted) are left out.
func parseMountinfo(r io.Reader) (v2 string, v1 map[string]string, err error) {
	v1 = map[string]string{}
	s := bufio.NewScanner(io.LimitReader(r, 16<<20))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		before, after, ok := strings.Cut(s.Text(), " - ")
		fields, special := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(special) < 3 || fields[3] != "/" {
			continue
		}
		mount := unescapeMount(fields[4])
		switch special[0] {
		case "cgroup2":
			if v2 == "" || strings.HasPrefix(mount, "/sys/fs/cgroup") && !strings.HasPrefix(v2, "/sys/fs/cgroup") {
				v2 = mount
			}
		case "cgroup":
			for option := range strings.SplitSeq(special[2], ",") {
				if slices.Contains(v1Controllers, option) && v1[option] == "" {
					v1[option] = mount
				}
			}
		}
	}
	return v2, v1, s.Err()
}

// unescapeMount undoes the octal escapes of mountinfo.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func (h Hierarchy) proc() string {
	if h.Proc == "" {
		return "/proc"
	}
	return h.Proc
}

// String names the hierarchy for people: "cgroup v2 at /sys/fs/cgroup".
func (h Hierarchy) String() string {
	if h.Controller == "" {
		return "cgroup v2 at " + h.Mount
	}
	return "cgroup v1 (" + h.Controller + ") at " + h.Mount
}

// Dir returns the directory of a cgroup path as OfPID gives it.
func (h Hierarchy) Dir(path string) string { return filepath.Join(h.Mount, filepath.Join("/", path)) }

// ID returns what the kernel calls the id of the cgroup: the inode of its directory. It fails with [fs.ErrNotExist] when the
// cgroup is gone. The root has an id like any other; whether it may stand for a container is the caller's to judge.
func (h Hierarchy) ID(path string) (uint64, error) {
	info, err := os.Lstat(h.Dir(path))
	if err != nil {
		return 0, fmt.Errorf("read the id of cgroup %s: %w", path, err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() {
		return 0, fmt.Errorf("read the id of cgroup %s: %s is not a directory", path, h.Dir(path))
	}
	return st.Ino, nil
}

// OfPID returns the path of the cgroup that a process is in, below the root of the hierarchy ("/default/c1"). It fails with
// [fs.ErrNotExist] when the process or its cgroup is gone, and with ErrOutside when we cannot name the cgroup.
func (h Hierarchy) OfPID(pid int) (path string, err error) {
	f, err := os.Open(filepath.Join(h.proc(), strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return "", fmt.Errorf("read the cgroup of pid %d: %w", pid, err)
	}
	defer f.Close()
	path, err = parseProcCgroup(f, h.Controller)
	if errors.Is(err, syscall.ESRCH) {
		err = fs.ErrNotExist // it ended between open and read
	}
	if err != nil {
		return "", fmt.Errorf("read the cgroup of pid %d from %s: %w", pid, f.Name(), err)
	}
	return path, nil
}

// OfContainer returns the path of a container's own cgroup, where its first process is in it or has moved to one below it. id is
// the container's, cgroupsPath what its OCI spec calls the cgroup, in whatever form, or empty. It fails as OfPID does.
func (h Hierarchy) OfContainer(pid int, id, cgroupsPath string) (path string, err error) {
	path, err = h.OfPID(pid)
	if err != nil {
		return "", err
	}
	if strings.HasPrefix(cgroupsPath, "/") && strings.HasPrefix(path, cgroupsPath+"/") {
		return cgroupsPath, nil
	}
	if n, ok := ParsePath(path); ok && n.Kind == KindContainer && n.ID == id {
		return n.Path, nil
	}
	return path, nil
}

// parseProcCgroup finds the path in the hierarchy of a controller ("" for v2) in a /proc/PID/cgroup. Hierarchies are told
// apart by name: their numbers differ between machines.
func parseProcCgroup(r io.Reader, controller string) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxProcFile))
	if err != nil {
		return "", err
	}
	offset := 0
	for line := range strings.SplitSeq(string(b), "\n") {
		at := offset
		offset += len(line) + 1
		if line == "" {
			continue
		}
		number, rest, ok := strings.Cut(line, ":")
		controllers, path, ok2 := strings.Cut(rest, ":")
		if !ok || !ok2 {
			return "", fmt.Errorf("offset %d: %q is not number:controllers:path", at, line[:min(len(line), 100)])
		}
		if controller == "" && (number != "0" || controllers != "") {
			continue
		}
		if controller != "" && !slices.Contains(strings.Split(controllers, ","), controller) {
			continue
		}
		switch {
		case strings.HasSuffix(path, " (deleted)"):
			return "", fmt.Errorf("cgroup %q: %w", path, fs.ErrNotExist)
		case path == "/.." || strings.HasPrefix(path, "/../"):
			return "", fmt.Errorf("cgroup %q: %w; run stoker in the host's cgroup namespace (docker run --cgroupns=host)", path, ErrOutside)
		case !strings.HasPrefix(path, "/") || filepath.Clean(path) != path:
			return "", fmt.Errorf("offset %d: cgroup path %q is not clean and absolute", at, path[:min(len(path), 100)])
		}
		return path, nil
	}
	if controller == "" {
		return "", fmt.Errorf("no line of cgroup v2: %w", fs.ErrNotExist)
	}
	return "", fmt.Errorf("no line of controller %s: %w", controller, fs.ErrNotExist)
}

// maxSubtree bounds the directories and processes that Processes looks at: a container that may make cgroups can make very many.
const maxSubtree = 1000

// Processes returns processes in a cgroup and below it: all of them, or about the first thousand of a very large tree. Those that
// come or go meanwhile may be missing. It fails with [fs.ErrNotExist] when the cgroup is gone.
func (h Hierarchy) Processes(path string) ([]int, error) {
	var pids []int
	root := h.Dir(path)
	directories := 0
	err := filepath.WalkDir(root, func(dir string, e fs.DirEntry, err error) error {
		if directories > maxSubtree || len(pids) > maxSubtree {
			return filepath.SkipAll
		}
		if err != nil {
			if dir != root && errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if !e.IsDir() {
			return nil
		}
		directories++
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
			return nil // removed while we looked
		}
		if errors.Is(err, syscall.EOPNOTSUPP) {
			return nil // a threaded cgroup: its processes are listed at the root of its threaded subtree
		}
		if err != nil {
			return err
		}
		for field := range strings.FieldsSeq(string(b)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return fmt.Errorf("%s/cgroup.procs: %q is no pid", dir, field[:min(len(field), 20)])
			}
			if pid > 0 { // 0: a process of a pid namespace that we cannot see
				pids = append(pids, pid)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the processes of cgroup %s: %w", path, err)
	}
	return pids, nil
}

// populated reports whether a cgroup or one below it has a process.
func (h Hierarchy) populated(path string) bool {
	if b, err := os.ReadFile(filepath.Join(h.Dir(path), "cgroup.events")); err == nil {
		return strings.Contains(string(b), "populated 1")
	}
	pids, err := h.Processes(path) // cgroup v1 has no such file
	return err == nil && len(pids) > 0
}
