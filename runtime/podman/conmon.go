package podman

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
)

// This file finds containers by their conmon: Podman has no daemon, every container that runs has one of these above its first
// process, as long as it runs. The kernel says whose it is and which processes are its children. Its command line, which
// whoever starts a process can choose, says the rest (conmon(8); libpod/oci_conmon_common.go writes it).

const (
	// maxCmdline bounds a command line in bytes. Podman's are about 3 kB.
	maxCmdline = 128 << 10
	// maxProcFile bounds other files of a process in bytes.
	maxProcFile = 64 << 10
	// freshFor is how long what a scan found is good for whoever asks at the same time.
	freshFor = 20 * time.Millisecond
	// youngFor is how long after it was seen first a process may still become a conmon: Podman forks, then executes.
	youngFor = 2 * time.Second
	// fullEvery is how often to look at every process again: a number may be another process's by now.
	fullEvery = time.Minute
)

// conmon is one running conmon.
type conmon struct {
	pid   int
	start uint64 // of the process, in clock ticks since boot
	uid   uint32 // whose it is: the engine's user

	id, name, bundle string
	runtime          string // base name of the OCI runtime's program
	runRoot, tmpDir  string
}

// user is the container model's word for whose it is.
func (c *conmon) user() string { return user(c.uid) }

func user(uid uint32) string {
	if uid == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(uid), 10)
}

// validID reports whether an id is one of Podman's.
func validID(id string) bool {
	if len(id) != 64 {
		return false
	}
	for i := range len(id) {
		if c := id[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// parseConmon understands a conmon's command line. ok is false for one that watches a `podman exec`, or another engine's
// container: CRI-O uses conmon, too.
func parseConmon(cmdline []byte) (c conmon, ok bool) {
	if len(cmdline) >= maxCmdline {
		return conmon{}, false
	}
	args := strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
	var cleanup []string // the command that conmon runs when the container has ended
	session := ""
	for i := 1; i < len(args); i++ {
		name, value, joined := strings.Cut(args[i], "=")
		next := func() string {
			if !joined && i+1 < len(args) {
				i++
				value = args[i]
			}
			return value
		}
		switch name {
		case "-c", "--cid":
			c.id = next()
		case "-u", "--cuuid":
			session = next()
		case "-n", "--name":
			c.name = next()
		case "-b", "--bundle":
			c.bundle = next()
		case "-r", "--runtime":
			c.runtime = filepath.Base(next())
		case "-e", "--exec":
			return conmon{}, false
		case "--exit-command-arg":
			cleanup = append(cleanup, next())
		case "-p", "--container-pidfile", "-l", "--log-path", "--log-level", "--runtime-arg", "--exit-dir", "--exit-command", "-P", "--conmon-pidfile",
			"--api-version", "--persist-dir", "--socket-dir-path", "--log-size-max", "--log-tag", "--exit-delay":
			next()
		}
	}
	if !validID(c.id) || session != "" && session != c.id || !slices.Contains(cleanup, "cleanup") || !slices.Contains(cleanup, c.id) {
		return conmon{}, false
	}
	for i := 0; i+1 < len(cleanup); i++ {
		switch cleanup[i] {
		case "--runroot":
			c.runRoot = cleanup[i+1]
		case "--tmpdir":
			c.tmpDir = cleanup[i+1]
		}
	}
	for _, path := range []*string{&c.bundle, &c.runRoot, &c.tmpDir} {
		if *path != "" && (!filepath.IsAbs(*path) || len(*path) > unix.PathMax) {
			*path = ""
		}
	}
	if len(c.name) > maxName {
		c.name = ""
	}
	return c, true
}

// processes reads /proc. It may be used by any goroutine.
type processes struct {
	h          cgroupfs.Hierarchy
	boot       func() time.Time // when the machine started
	unreadable atomic.Uint64    // conmons that we may not look at: CAP_SYS_PTRACE is missing

	mu    sync.Mutex // protects what follows
	at    time.Time
	found []conmon
	full  time.Time         // when every process was looked at
	other map[int]time.Time // processes that are no conmon, and when each was seen first
}

func newProcesses(h cgroupfs.Hierarchy) *processes {
	return &processes{h: h, boot: func() time.Time {
		var ts unix.Timespec
		now := time.Now()
		if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
			return time.Time{}
		}
		return now.Add(-time.Duration(ts.Nano()))
	}}
}

func (p *processes) path(pid int, name string) string {
	return filepath.Join(cmp.Or(p.h.Proc, "/proc"), strconv.Itoa(pid), name)
}

func (p *processes) read(pid int, name string, limit int64) ([]byte, error) {
	f, err := os.Open(p.path(pid, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// stat returns the parent and the start time of a process: fields 4 and 22 of /proc/PID/stat (proc(5)).
func (p *processes) stat(pid int) (parent int, start uint64, comm string, err error) {
	b, err := p.read(pid, "stat", maxProcFile)
	if err != nil {
		return 0, 0, "", err
	}
	return parseStat(b)
}

func parseStat(b []byte) (parent int, start uint64, comm string, err error) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')') // the name may have brackets itself
	if open < 0 || end < open {
		return 0, 0, "", fmt.Errorf("/proc/PID/stat: %.80q has no name", b)
	}
	fields := strings.Fields(string(b[end+1:]))
	if len(fields) < 20 {
		return 0, 0, "", fmt.Errorf("/proc/PID/stat: %d fields after the name, want 20 or more", len(fields))
	}
	parent, err = strconv.Atoi(fields[1])
	if err != nil {
		return 0, 0, "", fmt.Errorf("/proc/PID/stat: %w", err)
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, 0, "", fmt.Errorf("/proc/PID/stat: %w", err)
	}
	return parent, start, string(b[open+1 : end]), nil
}

// clockTicks is USER_HZ, in which the kernel tells start times to user space on every architecture that we run on.
const clockTicks = 100

// startedAt is a start time of a process as a time.
func (p *processes) startedAt(start uint64) time.Time {
	boot := p.boot()
	if boot.IsZero() {
		return boot
	}
	return boot.Add(time.Duration(start) * (time.Second / clockTicks))
}

// conmons returns all that run now.
func (p *processes) conmons() ([]conmon, error) {
	asked := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at.After(asked) || time.Since(p.at) < freshFor {
		return p.found, nil // somebody looked while we waited
	}
	at := time.Now()
	pids, err := p.pids()
	if err != nil {
		return nil, err
	}
	if at.Sub(p.full) > fullEvery {
		p.full, p.other = at, nil
	}
	other := make(map[int]time.Time, len(pids))
	var found []conmon
	for _, pid := range pids {
		first, seen := p.other[pid]
		if seen && at.Sub(first) > youngFor {
			other[pid] = first
			continue
		}
		if c, ok := p.conmon(pid); ok {
			found = append(found, c)
			continue
		}
		if !seen {
			first = at
		}
		other[pid] = first
	}
	p.at, p.found, p.other = at, found, other
	return found, nil
}

func (p *processes) pids() ([]int, error) {
	d, err := os.Open(cmp.Or(p.h.Proc, "/proc"))
	if err != nil {
		return nil, fmt.Errorf("look for Podman's containers: %w", err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("look for Podman's containers: %w", err)
	}
	pids := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// conmon reads one process. ok is false for anything that is not a conmon of Podman's on this host: whoever may start
// processes in a container can call them so, but they are in the container's cgroup and mostly in a pid namespace of its own.
func (p *processes) conmon(pid int) (c conmon, ok bool) {
	comm, err := p.read(pid, "comm", 32)
	if err != nil || strings.TrimSpace(string(comm)) != "conmon" {
		return conmon{}, false
	}
	_, start, _, err := p.stat(pid)
	if err != nil {
		return conmon{}, false
	}
	cmdline, err := p.read(pid, "cmdline", maxCmdline)
	if err != nil {
		return conmon{}, false
	}
	if c, ok = parseConmon(cmdline); !ok {
		return conmon{}, false
	}
	status, err := p.read(pid, "status", maxProcFile)
	if err != nil {
		return conmon{}, false
	}
	if c.uid, ok = parseUID(status); !ok || !p.here(pid) {
		return conmon{}, false
	}
	path, err := p.h.OfPID(pid)
	if err != nil {
		return conmon{}, false
	}
	if n, ok := cgroupfs.ParsePath(path); ok && n.Kind == cgroupfs.KindContainer {
		return conmon{}, false
	}
	if _, again, _, err := p.stat(pid); err != nil || again != start {
		return conmon{}, false // another process by now
	}
	c.pid, c.start = pid, start
	return c, true
}

// here reports whether a process is in our pid namespace, which is the host's: an agent in another one sees no pids of use.
func (p *processes) here(pid int) bool {
	theirs, err := os.Readlink(p.path(pid, "ns/pid"))
	if errors.Is(err, os.ErrPermission) {
		p.unreadable.Add(1)
	}
	if err != nil {
		return false
	}
	ours, err := os.Readlink(filepath.Join(cmp.Or(p.h.Proc, "/proc"), "self/ns/pid"))
	return err == nil && ours == theirs
}

// parseUID returns the user of a process from /proc/PID/status. ok is false when it is about to become another's.
func parseUID(status []byte) (uid uint32, ok bool) {
	for line := range bytes.Lines(status) {
		rest, found := bytes.CutPrefix(line, []byte("Uid:"))
		if !found {
			continue
		}
		fields := bytes.Fields(rest) // real, effective, saved, file system
		if len(fields) != 4 {
			return 0, false
		}
		for _, f := range fields[1:] {
			if !bytes.Equal(f, fields[0]) {
				return 0, false
			}
		}
		n, err := strconv.ParseUint(string(fields[0]), 10, 32)
		return uint32(n), err == nil
	}
	return 0, false
}

// children returns the children of a process: what its threads have made, and orphans below it.
func (p *processes) children(pid int) ([]int, error) {
	threads, err := os.ReadDir(p.path(pid, "task"))
	if err != nil {
		return nil, err
	}
	var children []int
	for _, t := range threads {
		b, err := p.read(pid, filepath.Join("task", t.Name(), "children"), maxProcFile)
		if errors.Is(err, os.ErrNotExist) {
			return p.childrenByParent(pid) // a kernel without CONFIG_PROC_CHILDREN, or the thread has ended
		}
		if err != nil {
			return nil, err
		}
		for _, f := range strings.Fields(string(b)) {
			if child, err := strconv.Atoi(f); err == nil {
				children = append(children, child)
			}
		}
	}
	return children, nil
}

func (p *processes) childrenByParent(pid int) (children []int, err error) {
	all, err := p.pids()
	for _, child := range all {
		if parent, _, _, err := p.stat(child); err == nil && parent == pid {
			children = append(children, child)
		}
	}
	return children, err
}

// place is where a container runs.
type place struct {
	pid      int
	start    uint64
	path     string // its own cgroup
	cgroupID uint64
	shared   string // or the cgroup that it shares with strangers
}

// errNotYet: the runtime still works on it, or it has ended.
var errNotYet = errors.New("it has no process yet, or no more")

// place finds a container's first process below its conmon, and the cgroup from there. A cgroup whose name has the
// container's id is the container's; in any other it is not alone.
func (p *processes) place(c *conmon) (place, error) {
	children, err := p.children(c.pid)
	if err != nil {
		return place{}, err
	}
	shared := errNotYet
	var found place
	for _, pid := range children {
		parent, start, comm, err := p.stat(pid)
		if err != nil || parent != c.pid {
			continue
		}
		path, err := p.h.OfPID(pid)
		if err != nil {
			continue
		}
		if _, again, _, err := p.stat(pid); err != nil || again != start {
			continue
		}
		if n, ok := cgroupfs.ParsePath(path); ok && n.Kind == cgroupfs.KindContainer && n.ID == c.id {
			id, err := p.h.ID(n.Path)
			if err != nil {
				continue // it has ended
			}
			return place{pid: pid, start: start, path: n.Path, cgroupID: id}, nil
		}
		// The runtime, which makes or ends the container; or conmon and Podman themselves, before and after it.
		if comm == "conmon" || comm == "podman" || strings.HasPrefix(comm, "runc") || strings.HasPrefix(comm, "crun") || comm == c.runtime {
			continue
		}
		found, shared = place{pid: pid, start: start, shared: path}, nil
	}
	return found, shared
}
