// Package containerdtest starts a private containerd and runs containers in it, for tests and for the demo. A Daemon has
// its own root, state, socket and shims' roots below one directory, beside any containerd that the machine runs already;
// images are made here from files, without a registry. It drives the daemon with containerd's own ctr, so that what is
// tested is never the client that tests it. Everything needs root and Debian's packages containerd, runc and busybox-static.
//
// A Daemon and its Containers are safe for concurrent use. Stop ends every process that was started, unmounts what was
// mounted and removes the cgroups; it is enough to call it, also when the containerd itself was killed before. What stays on
// the machine are containerd's own empty directories below /run/containerd, which it shares among all its instances.
package containerdtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/stoker-profiler/stoker/test/internal/daemon"
)

// instances makes cgroup parents unique within this process.
var instances atomic.Uint32

// Options are for a containerd that is not the machine's own without its CRI plugin. The zero value is that one.
type Options struct {
	// Programs is a directory with containerd, ctr and containerd-shim-runc-v2 of another version. Empty: Debian's.
	Programs string
	// Config is the whole of config.toml. It has to give containerd the root, state and socket that the Daemon's methods of
	// these names tell. Empty: one without the CRI plugin, in the words of containerd 1.6.
	Config func(*Daemon) string
}

// Daemon is one private containerd.
type Daemon struct {
	daemon.Server
	dir      string
	programs string // where Options.Programs says, or empty
	parent   string // the cgroup below which its containers are, unless their Spec says otherwise

	mu       sync.Mutex          // protects what follows
	images   map[string]string   // reference → archive
	imported map[string]struct{} // namespace + " " + reference
	cgroups  map[string]struct{} // paths below the root of each hierarchy that containers were put into
	stopped  bool

	importing sync.Mutex // one import at a time: two of the same layer would only wait for each other in the content store
}

// New starts a containerd whose files are below dir, which must exist and should be empty, and waits until it answers.
// The caller calls Stop, also when ctx has ended; removing dir is the caller's.
func New(ctx context.Context, dir string) (*Daemon, error) { return NewWith(ctx, dir, Options{}) }

// NewWith is New with another containerd.
func NewWith(ctx context.Context, dir string, o Options) (*Daemon, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("start a private containerd: %w", err)
	}
	d := &Daemon{
		Server:   daemon.Server{Name: "containerd", LogPath: filepath.Join(dir, "log"), Listens: filepath.Join(dir, "containerd.sock")},
		dir:      dir,
		programs: o.Programs,
		parent:   fmt.Sprintf("/stoker-test-%d-%d", os.Getpid(), instances.Add(1)),
		images:   map[string]string{},
		imported: map[string]struct{}{},
		cgroups:  map[string]struct{}{},
	}
	d.cgroups[d.parent] = struct{}{}
	for _, program := range []string{d.program("containerd"), d.program("ctr"), "runc", d.program("containerd-shim-runc-v2")} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("start a private containerd: %w; install the packages containerd and runc", err)
		}
	}
	config := fmt.Sprintf(`version = 2
root = %[1]q
state = %[2]q
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = %[3]q
[plugins."io.containerd.internal.v1.opt"]
  path = %[4]q
`, d.Root(), d.State(), d.Socket(), d.path("opt"))
	if o.Config != nil {
		config = o.Config(d)
	}
	for _, sub := range []string{"root", "state", "opt", "runc", "logs", "images"} {
		if err := os.MkdirAll(d.path(sub), 0o755); err != nil {
			return nil, fmt.Errorf("start a private containerd: %w", err)
		}
	}
	if err := os.WriteFile(d.path("config.toml"), []byte(config), 0o644); err != nil {
		return nil, fmt.Errorf("start a private containerd: %w", err)
	}
	if err := d.StartDaemon(ctx); err != nil {
		return nil, errors.Join(err, d.Stop())
	}
	return d, nil
}

func (d *Daemon) path(name string) string { return filepath.Join(d.dir, name) }

// program is the path of one of containerd's programs, or its name where it is to be looked for.
func (d *Daemon) program(name string) string { return filepath.Join(d.programs, name) }

// Root and State are where the daemon keeps its files, for good and for as long as the machine is up.
func (d *Daemon) Root() string { return d.path("root") }

// State: see Root.
func (d *Daemon) State() string { return d.path("state") }

// RuncRoot is where runc keeps what it knows of containers that Run makes.
func (d *Daemon) RuncRoot() string { return d.path("runc") }

// Socket is the path of the daemon's gRPC socket.
func (d *Daemon) Socket() string { return d.Listens }

// Dir is the directory that New was given, as an absolute path.
func (d *Daemon) Dir() string { return d.dir }

// CgroupParent is the cgroup below which containers are that name none themselves, as a path below the root of each
// hierarchy: "/stoker-test-12-1". It is made with the first container.
func (d *Daemon) CgroupParent() string { return d.parent }

// StartDaemon starts containerd again after KillDaemon or StopDaemon and waits until it answers. Containers live on
// meanwhile. Starting what runs is an error.
func (d *Daemon) StartDaemon(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopped {
		return errors.New("start containerd: it was stopped for good")
	}
	if err := d.Start(ctx, d.command, d.answers); err != nil {
		return err
	}
	if err := os.WriteFile(d.path("pid"), []byte(strconv.Itoa(d.PID())+"\n"), 0o644); err != nil {
		return errors.Join(fmt.Errorf("start containerd: %w", err), d.KillDaemon())
	}
	return nil
}

func (d *Daemon) command() (*exec.Cmd, error) {
	// Where it mounts an image for a moment must be below our directory: a daemon that is killed then leaves the mount to us.
	if err := os.MkdirAll(d.path("tmp"), 0o700); err != nil {
		return nil, err
	}
	cmd := exec.Command(d.program("containerd"), "-c", d.path("config.toml"))
	cmd.Env = append(os.Environ(), "TMPDIR="+d.path("tmp"))
	if d.programs != "" { // the daemon looks for its shim there first
		cmd.Env = append(cmd.Env, "PATH="+d.programs+string(os.PathListSeparator)+os.Getenv("PATH"))
	}
	return cmd, nil
}

// answers asks one service: the socket exists a little before them.
func (d *Daemon) answers(ctx context.Context) error {
	_, err := d.ctr(ctx, "", "namespaces", "ls", "-q")
	return err
}

// ctr runs containerd's command line in a namespace and returns what it printed.
func (d *Daemon) ctr(ctx context.Context, namespace string, args ...string) (string, error) {
	all := []string{"-a", d.Socket()}
	if namespace != "" {
		all = append(all, "-n", namespace)
	}
	cmd := exec.CommandContext(ctx, d.program("ctr"), append(all, args...)...)
	cmd.WaitDelay = 5 * time.Second // a child that inherited the pipes must not hold us
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()+stdout.String()))
	}
	return stdout.String(), nil
}

// ClaimCgroup makes Stop end all that is in a cgroup and remove it, with parents that are then empty. For containers that were
// not made by Run; path is below the root of each hierarchy.
func (d *Daemon) ClaimCgroup(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cgroups[path] = struct{}{}
}

// Ctr runs containerd's own command line on this daemon in a namespace ("" is "default") and returns what it printed; for
// what this package has no method for.
func (d *Daemon) Ctr(ctx context.Context, namespace string, args ...string) (string, error) {
	if namespace == "" {
		namespace = DefaultNamespace
	}
	return d.ctr(ctx, namespace, args...)
}

// Stop ends all containers, the daemon and its shims, unmounts what is mounted below its directory and removes the cgroups.
// It does as much as it can and returns all that failed. Calling it again does nothing.
func (d *Daemon) Stop() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopped {
		return nil
	}
	d.stopped = true
	var errs []error
	// Processes first and by cgroup: that works in whatever state the daemon is, and finds what containers forked.
	errs = append(errs, d.killContainersLocked())
	if d.PID() != 0 {
		_ = d.ResumeDaemon() // it may have been paused; if it has ended, the next step says so
		errs = append(errs, d.deleteTasksLocked())
	}
	errs = append(errs, d.StopDaemon(), d.killShims(), d.unmount(), d.removeCgroupsLocked())
	return errors.Join(errs...)
}

// deleteTasksLocked lets the daemon itself take its tasks down, so that shims end and remove their sockets.
func (d *Daemon) deleteTasksLocked() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := d.ctr(ctx, "", "namespaces", "ls", "-q")
	if err != nil {
		return err
	}
	var errs []error
	for _, ns := range strings.Fields(out) {
		tasks, err := d.ctr(ctx, ns, "tasks", "ls", "-q")
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, id := range strings.Fields(tasks) {
			errs = append(errs, d.deleteTask(ctx, ns, id))
		}
	}
	return errors.Join(errs...)
}

// deleteTask deletes a task that is about to end. That the daemon does not know it (any more) is success.
func (d *Daemon) deleteTask(ctx context.Context, namespace, id string) error {
	for {
		_, err := d.ctr(ctx, namespace, "tasks", "rm", "-f", id)
		if err == nil || strings.Contains(err.Error(), "not found") {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// killShims ends what is left of this daemon's shims. They carry the daemon's socket in their arguments.
func (d *Daemon) killShims() error {
	deadline := time.Now().Add(20 * time.Second)
	for graceful := time.Now().Add(2 * time.Second); ; {
		pids, err := d.shims()
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("end the shims of %s: pids %v are still there", d.Socket(), pids)
		}
		if time.Now().After(graceful) {
			for _, pid := range pids {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
					return fmt.Errorf("end shim %d: %w", pid, err)
				}
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (d *Daemon) shims() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for shims: %w", err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue // the process is gone
		}
		args := strings.Split(string(cmdline), "\x00")
		if filepath.Base(args[0]) == "containerd-shim-runc-v2" && slices.Contains(args, d.Socket()) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// unmount takes away what runc and the shims mounted below our directory, innermost first.
func (d *Daemon) unmount() error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("look for mounts: %w", err)
	}
	var errs []error
	lines := strings.Split(string(b), "\n")
	slices.Reverse(lines)
	for _, line := range lines {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := unescape(fields[4])
		if !strings.HasPrefix(point, d.dir+"/") {
			continue
		}
		// Lazily: a process that we do not know may still look at it, and it must not outlive us for that.
		if err := syscall.Unmount(point, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	return errors.Join(errs...)
}

// unescape undoes the octal escapes of /proc/self/mountinfo.
func unescape(s string) string {
	for _, c := range []struct{ from, to string }{{`\040`, " "}, {`\011`, "\t"}, {`\012`, "\n"}, {`\134`, `\`}} {
		s = strings.ReplaceAll(s, c.from, c.to)
	}
	return s
}

// hierarchies are the mounted cgroup trees, v1 and v2.
func hierarchies() ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("look for cgroup trees: %w", err)
	}
	var mounts []string
	for line := range strings.SplitSeq(string(b), "\n") {
		before, after, ok := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if ok && len(fields) >= 5 && (strings.HasPrefix(after, "cgroup ") || strings.HasPrefix(after, "cgroup2 ")) {
			mounts = append(mounts, unescape(fields[4]))
		}
	}
	return mounts, nil
}

// killContainersLocked sends SIGKILL to all processes in the containers' cgroups until none is left.
func (d *Daemon) killContainersLocked() error {
	trees, err := hierarchies()
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		left := 0
		for _, tree := range trees {
			for cgroup := range d.cgroups {
				err := filepath.WalkDir(filepath.Join(tree, cgroup), func(path string, e fs.DirEntry, err error) error {
					if err != nil || !e.IsDir() {
						return nil // a cgroup that is gone meanwhile
					}
					procs, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
					if err != nil {
						return nil // the same
					}
					for field := range strings.FieldsSeq(string(procs)) {
						pid, err := strconv.Atoi(field)
						if err != nil || pid <= 0 {
							continue // 0 is a process of another pid namespace, which none of ours is
						}
						left++
						if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
							return fmt.Errorf("end process %d of %s: %w", pid, path, err)
						}
					}
					return nil
				})
				if err != nil {
					return err
				}
			}
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("end the containers of %s: %d processes are still there", d.Socket(), left)
		}
	}
}

func (d *Daemon) removeCgroupsLocked() error {
	trees, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, tree := range trees {
		for cgroup := range d.cgroups {
			errs = append(errs, removeCgroup(filepath.Join(tree, cgroup)))
			// A path of several parts made its parents; they go when nobody else is in them.
			for parent := filepath.Dir(cgroup); parent != "/"; parent = filepath.Dir(parent) {
				if os.Remove(filepath.Join(tree, parent)) != nil {
					break // in use, or gone already
				}
			}
		}
	}
	return errors.Join(errs...)
}

// removeCgroup removes a cgroup with those below it. rmdir says EBUSY for a moment after the last process has ended.
func removeCgroup(path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := syscall.Rmdir(path)
		if err == nil || errors.Is(err, syscall.ENOENT) {
			return nil
		}
		if !errors.Is(err, syscall.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup %s: %w", path, err)
		}
	}
}
