// Package podmantest runs containers with a private Podman, for tests: its configuration, storage, locks and state are in one
// directory, its networks are off, its images come from files. It drives Podman's own command line. Everything needs root
// and Debian's packages podman, conmon, runc and busybox-static; a Spec with NoCgroup needs crun, too.
//
// There is no daemon: containers run below their conmon. StartService runs `podman system service`, so that the API is there.
// Containers have the cgroups that Podman's cgroupfs driver gives them: /libpod_parent/libpod-ID. An Engine is safe for
// concurrent use. Stop ends everything that was started.
package podmantest

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
	"syscall"
	"time"

	"github.com/stoker-profiler/stoker/test/containerdtest"
	"github.com/stoker-profiler/stoker/test/internal/daemon"
)

const (
	// trees are where cgroup hierarchies are mounted: v1 and hybrid, or v2.
	trees = "/sys/fs/cgroup"
	// unified is the v2 tree of a hybrid host.
	unified = trees + "/unified"
	// parent is where Podman's cgroupfs driver puts containers.
	parent = "libpod_parent"
)

// Engine is one private Podman.
type Engine struct {
	daemon.Server // its service
	dir           string
	options       []string

	mu  sync.Mutex // protects what follows
	ids []string   // all containers that were made
}

// New prepares a Podman whose files are below dir. Options are passed to every `podman` before its command, as
// "--hooks-dir", "/some/where". The caller calls Stop, also when ctx has ended.
func New(dir string, options ...string) (*Engine, error) {
	for program, pkg := range map[string]string{"podman": "podman", "conmon": "conmon", "runc": "runc"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("prepare a private podman: %w; install the package %s", err, pkg)
		}
	}
	e := &Engine{
		Server:  daemon.Server{Name: "podman's service", LogPath: filepath.Join(dir, "log"), Listens: filepath.Join(dir, "podman.sock")},
		dir:     dir,
		options: options,
	}
	// Limits that the machine's root may not raise are not asked for. Locks are files: the default is one piece of shared memory
	// for all Podmans of the machine, which a new one would reset.
	conf := fmt.Sprintf(`[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
netns = "host"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
runtime_supports_nocgroups = ["crun"]
tmp_dir = %q
static_dir = %q
volume_path = %q
[network]
network_config_dir = %q
`, e.path("tmp"), e.path("lib/libpod"), e.path("lib/volumes"), e.path("net"))
	storage := fmt.Sprintf("[storage]\ndriver = \"overlay\"\ngraphroot = %q\nrunroot = %q\n", e.Root(), e.RunRoot())
	if err := os.MkdirAll(e.path("net"), 0o755); err != nil {
		return nil, fmt.Errorf("prepare a private podman: %w", err)
	}
	for name, text := range map[string]string{"containers.conf": conf, "storage.conf": storage} {
		if err := os.WriteFile(e.path(name), []byte(text), 0o644); err != nil {
			return nil, fmt.Errorf("prepare a private podman: %w", err)
		}
	}
	return e, nil
}

// NewForTest is New in a directory of its own, stopped and removed when the test ends.
func NewForTest(t containerdtest.TB, options ...string) *Engine {
	t.Helper()
	dir, err := os.MkdirTemp("", "stoker-podman-") // not the test's own: its long name does not fit a socket's path
	if err != nil {
		t.Fatalf("prepare a private podman: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the private podman: %v", err)
		}
	})
	e, err := New(dir, options...)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if err := e.Stop(); err != nil {
			t.Errorf("stop the private podman: %v", err)
		}
		if t.Failed() {
			t.Logf("podman's service wrote:\n%s", e.Log())
		}
	})
	return e
}

func (e *Engine) path(name string) string { return filepath.Join(e.dir, name) }

// Socket is the path of the API's socket, while a service runs.
func (e *Engine) Socket() string { return e.Listens }

// Root is the directory of images and containers, RunRoot that of what does not outlive a boot, TmpDir that of events.
func (e *Engine) Root() string { return e.path("lib") }

// RunRoot is the directory of what does not outlive a boot.
func (e *Engine) RunRoot() string { return e.path("run") }

// TmpDir is the directory of events and exit codes.
func (e *Engine) TmpDir() string { return e.path("tmp") }

// environment is what makes a podman ours.
func (e *Engine) environment() []string {
	foreign := func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return strings.HasPrefix(name, "CONTAINER") || name == "XDG_RUNTIME_DIR" || name == "DBUS_SESSION_BUS_ADDRESS"
	}
	return append(slices.DeleteFunc(os.Environ(), foreign),
		"CONTAINERS_CONF="+e.path("containers.conf"), "CONTAINERS_STORAGE_CONF="+e.path("storage.conf"), "HOME="+e.dir)
}

// Podman runs podman's own command line and returns what it printed on stdout.
func (e *Engine) Podman(ctx context.Context, args ...string) (string, error) {
	return e.run(ctx, exec.CommandContext(ctx, "podman", append(append([]string{}, e.options...), args...)...))
}

// inV2 is Podman, where podman sees a pure v2 machine and is in a cgroup of its own: what crun insists on.
func (e *Engine) inV2(ctx context.Context, args ...string) (string, error) {
	const script = `set -e
mkdir -p "$1"; echo $$ >"$1/cgroup.procs"; shift
if [ -d ` + unified + ` ]; then mount --bind ` + unified + ` ` + trees + `; fi
exec podman "$@"`
	tree := trees
	if _, err := os.Stat(unified); err == nil {
		tree = unified
	}
	own := filepath.Join(tree, filepath.Base(e.dir))
	args = append([]string{"--mount", "--propagation", "private", "sh", "-c", script, "sh", own}, append(append([]string{}, e.options...), args...)...)
	return e.run(ctx, exec.CommandContext(ctx, "unshare", args...))
}

func (e *Engine) run(ctx context.Context, cmd *exec.Cmd) (string, error) {
	cmd.Env = e.environment()
	cmd.WaitDelay = 5 * time.Second // a child that inherited the pipes must not hold us
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), ctx.Err()
}

// Load gives the engine an image.
func (e *Engine) Load(ctx context.Context, image containerdtest.Image) error {
	archive := e.path("image.tar")
	if err := image.Write(archive); err != nil {
		return err
	}
	if _, err := e.Podman(ctx, "load", "--quiet", "--input", archive); err != nil {
		return err
	}
	return os.Remove(archive)
}

// Spec says what to run.
type Spec struct {
	Name   string
	Image  string // a reference that was loaded
	Args   []string
	Env    []string // "NAME=value"
	Labels map[string]string
	// NoCgroup has the container run in the cgroup of the podman that made it (--cgroups=disabled), by crun: runc cannot.
	NoCgroup bool
	// Options are passed to `podman run` as they are.
	Options []string
}

// Run makes a container and starts it, in the network of the host, and returns its id. It returns when Podman says that it
// runs.
func (e *Engine) Run(ctx context.Context, spec Spec) (id string, err error) {
	return e.make(ctx, []string{"run", "--detach"}, spec)
}

// Create makes a container and does not start it, and returns its id.
func (e *Engine) Create(ctx context.Context, spec Spec) (id string, err error) {
	return e.make(ctx, []string{"create"}, spec)
}

func (e *Engine) make(ctx context.Context, args []string, spec Spec) (string, error) {
	args = append(args, "--name", spec.Name)
	for k, v := range spec.Labels {
		args = append(args, "--label", k+"="+v)
	}
	for _, v := range spec.Env {
		args = append(args, "--env", v)
	}
	podman := e.Podman
	if spec.NoCgroup {
		if _, err := exec.LookPath("crun"); err != nil {
			return "", fmt.Errorf("make container %s: %w; install the package crun", spec.Name, err)
		}
		podman = e.inV2
		args = append([]string{"--runtime", "crun"}, append(args, "--cgroups=disabled")...)
	}
	args = append(append(append(args, spec.Options...), spec.Image), spec.Args...)
	out, err := podman(ctx, args...)
	if err != nil {
		return "", fmt.Errorf("make container %s: %w", spec.Name, err)
	}
	id := strings.TrimSpace(out)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ids = append(e.ids, id)
	return id, nil
}

// CgroupID is the inode of a running container's cgroup in the v2 hierarchy (also the v2 tree of a hybrid host): what the
// kernel calls the cgroup id.
func CgroupID(id string) (uint64, error) {
	for _, tree := range []string{unified, trees} {
		if dirs, globErr := filepath.Glob(filepath.Join(tree, parent, "*", "libpod-"+id)); globErr == nil && len(dirs) == 1 { // in a pod
			return containerdtest.CgroupID("/" + parent + "/" + filepath.Base(filepath.Dir(dirs[0])) + "/libpod-" + id)
		}
	}
	return containerdtest.CgroupID("/" + parent + "/libpod-" + id)
}

// StartService starts `podman system service` and waits until it answers.
func (e *Engine) StartService(ctx context.Context) error {
	return e.Start(ctx, func() (*exec.Cmd, error) {
		cmd := exec.Command("podman", append(append([]string{}, e.options...), "system", "service", "--time", "0", "unix://"+e.Socket())...)
		cmd.Env = e.environment()
		return cmd, e.removeSocket()
	}, nil)
}

// StopService kills the service, which on SIGTERM waits for whoever follows its events. Containers live on.
func (e *Engine) StopService() error { return errors.Join(e.KillDaemon(), e.removeSocket()) }

func (e *Engine) removeSocket() error {
	if err := os.Remove(e.Socket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the socket of podman's service: %w", err)
	}
	return nil
}

// Stop removes all containers and pods and ends the service. Calling it again does nothing.
func (e *Engine) Stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	var errs []error
	errs = append(errs, e.StopService())
	if _, err := os.Stat(e.Root()); errors.Is(err, fs.ErrNotExist) {
		return errors.Join(errs...) // nothing was run, or this was called before
	}
	plain := &Engine{dir: e.dir} // without hooks, which may be what a test broke
	pods, err := plain.Podman(ctx, "pod", "ps", "--quiet", "--no-trunc")
	errs = append(errs, err)
	_, err = plain.Podman(ctx, "rm", "--all", "--force", "--time", "0")
	errs = append(errs, err)
	_, err = plain.Podman(ctx, "pod", "rm", "--all", "--force")
	errs = append(errs, err)
	errs = append(errs, e.wait(ctx))
	// Podman mounts it upon itself; a service that was killed does not take that back.
	for syscall.Unmount(filepath.Join(e.Root(), "overlay"), syscall.MNT_DETACH) == nil {
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	dirs, err := filepath.Glob(trees + "/*/" + parent)
	errs = append(errs, err)
	for _, dir := range append(dirs, filepath.Join(trees, parent)) {
		for _, pod := range strings.Fields(pods) {
			_ = syscall.Rmdir(filepath.Join(dir, pod, "conmon"))
			_ = syscall.Rmdir(filepath.Join(dir, pod))
		}
		for _, id := range e.ids {
			_ = syscall.Rmdir(filepath.Join(dir, "libpod-"+id)) // what a runtime that failed left; mostly gone already
		}
		_ = syscall.Rmdir(filepath.Join(dir, "conmon"))
		_ = syscall.Rmdir(dir) // the common parent goes when nobody else is in it
	}
	for _, tree := range []string{trees, unified} {
		_ = syscall.Rmdir(filepath.Join(tree, filepath.Base(e.dir)))
	}
	return errors.Join(errs...)
}

// wait waits until no process of this engine is left: conmon has Podman clean up after a container, in the background.
func (e *Engine) wait(ctx context.Context) error {
	for {
		pids, err := e.processes()
		if err != nil || len(pids) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes of the private podman do not end: %v", pids)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// processes are those that name this engine's directory on their command line, but for us and our kin.
func (e *Engine) processes() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err != nil {
			continue // it has ended
		}
		name, _, _ := bytes.Cut(cmdline, []byte{0})
		if base := filepath.Base(string(name)); (base == "conmon" || base == "podman") && bytes.Contains(cmdline, []byte(e.dir+"/")) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
