// Package dockertest starts a private dockerd on a private containerd (package containerdtest) and runs containers in it, for
// tests. Its files are below the containerd's directory, its network is off, its images come from files. It drives the daemon
// with Docker's own command line, so that what is tested is never the client that tests it. Everything needs root and
// Debian's package docker.io besides what containerdtest needs.
//
// Containers have the cgroups that Docker gives them: /docker/ID. They outlive the daemon (live-restore), so stopping it does
// not wait for them. A Daemon is safe for concurrent use. Stop ends everything that was started; it has to be called before
// the containerd's.
package dockertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/stoker-profiler/stoker/test/containerdtest"
	"github.com/stoker-profiler/stoker/test/internal/daemon"
)

// trees are where cgroup hierarchies are mounted: v1 and hybrid, or v2.
const trees = "/sys/fs/cgroup"

// Daemon is one private dockerd.
type Daemon struct {
	daemon.Server
	dir        string
	containerd *containerdtest.Daemon
}

// New starts a dockerd on a containerd and waits until it answers. The caller calls Stop, also when ctx has ended.
func New(ctx context.Context, containerd *containerdtest.Daemon) (*Daemon, error) {
	for _, program := range []string{"dockerd", "docker"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("start a private dockerd: %w; install the package docker.io", err)
		}
	}
	dir := filepath.Join(containerd.Dir(), "docker")
	d := &Daemon{
		Server:     daemon.Server{Name: "dockerd", LogPath: filepath.Join(dir, "log"), Listens: filepath.Join(dir, "docker.sock")},
		dir:        dir,
		containerd: containerd,
	}
	if err := os.MkdirAll(d.path("client"), 0o755); err != nil {
		return nil, fmt.Errorf("start a private dockerd: %w", err)
	}
	if err := os.WriteFile(d.path("daemon.json"), []byte(`{"live-restore": true}`), 0o644); err != nil {
		return nil, fmt.Errorf("start a private dockerd: %w", err)
	}
	if err := d.StartDaemon(ctx); err != nil {
		return nil, errors.Join(err, d.Stop())
	}
	return d, nil
}

// NewForTest is New, stopped when the test ends. A failed test shows the daemon's log.
func NewForTest(t containerdtest.TB, containerd *containerdtest.Daemon) *Daemon {
	t.Helper()
	d, err := New(t.Context(), containerd)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Errorf("stop the private dockerd: %v", err)
		}
		if t.Failed() {
			t.Logf("dockerd wrote:\n%s", d.Log())
		}
	})
	return d
}

func (d *Daemon) path(name string) string { return filepath.Join(d.dir, name) }

// Socket is the path of the API's socket.
func (d *Daemon) Socket() string { return d.Listens }

// Root is the directory of the engine's own files.
func (d *Daemon) Root() string { return d.path("data") }

// StartDaemon starts dockerd again after StopDaemon or KillDaemon and waits until it answers.
func (d *Daemon) StartDaemon(ctx context.Context) error { return d.Start(ctx, d.command, d.answers) }

func (d *Daemon) command() (*exec.Cmd, error) {
	// A killed dockerd leaves them; the new one would take the pid of some other process for its own.
	for _, name := range []string{"pid", "docker.sock"} {
		if err := os.Remove(d.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return exec.Command("dockerd", "--config-file", d.path("daemon.json"), "--iptables=false", "--ip6tables=false", "--bridge=none",
		"--data-root", d.Root(), "--exec-root", d.path("exec"), "--host", "unix://"+d.Socket(), "--pidfile", d.path("pid"),
		"--containerd", d.containerd.Socket(), "--exec-opt", "native.cgroupdriver=cgroupfs"), nil
}

func (d *Daemon) answers(ctx context.Context) error {
	_, err := d.Docker(ctx, "version")
	return err
}

// Docker runs Docker's own command line on this daemon and returns what it printed on stdout.
func (d *Daemon) Docker(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "docker", append([]string{"--host", "unix://" + d.Socket()}, args...)...)
	cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+d.path("client"), "DOCKER_API_VERSION=", "DOCKER_CONTEXT=")
	cmd.WaitDelay = 5 * time.Second // a child that inherited the pipes must not hold us
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Load gives the daemon an image.
func (d *Daemon) Load(ctx context.Context, image containerdtest.Image) error {
	archive := d.path("image.tar")
	if err := image.Write(archive); err != nil {
		return err
	}
	if _, err := d.Docker(ctx, "load", "--quiet", "--input", archive); err != nil {
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
	// Options are passed to `docker run` as they are.
	Options []string
}

// Run makes a container and starts it, without a network, and returns its id. It returns when Docker says that it runs.
func (d *Daemon) Run(ctx context.Context, spec Spec) (id string, err error) {
	return d.make(ctx, []string{"run", "--detach"}, spec)
}

// Create makes a container and does not start it, and returns its id.
func (d *Daemon) Create(ctx context.Context, spec Spec) (id string, err error) {
	return d.make(ctx, []string{"create"}, spec)
}

func (d *Daemon) make(ctx context.Context, args []string, spec Spec) (string, error) {
	args = append(args, "--network", "none", "--name", spec.Name)
	for k, v := range spec.Labels {
		args = append(args, "--label", k+"="+v)
	}
	for _, e := range spec.Env {
		args = append(args, "--env", e)
	}
	args = append(append(append(args, spec.Options...), spec.Image), spec.Args...)
	out, err := d.Docker(ctx, args...)
	if err != nil {
		return "", fmt.Errorf("make container %s: %w", spec.Name, err)
	}
	return strings.TrimSpace(out), nil
}

// CgroupID is the inode of a running container's cgroup in the v2 hierarchy (also the v2 tree of a hybrid host): what the
// kernel calls the cgroup id.
func CgroupID(id string) (uint64, error) { return containerdtest.CgroupID("/docker/" + id) }

// Stop removes all containers and ends the daemon. Calling it again does nothing.
func (d *Daemon) Stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if d.PID() != 0 {
		_ = d.ResumeDaemon() // it may have been paused; if it has ended, the next step says so
	} else if err := d.StartDaemon(ctx); err != nil { // whoever killed it leaves containers that it has to remove
		return err
	}
	var errs []error
	ids, err := d.Docker(ctx, "ps", "--all", "--quiet", "--no-trunc")
	errs = append(errs, err)
	if all := strings.Fields(ids); len(all) > 0 {
		// Removing by force kills: nobody is asked to end first.
		_, err := d.Docker(ctx, append([]string{"rm", "--force", "--volumes"}, all...)...)
		errs = append(errs, err)
	}
	errs = append(errs, d.StopDaemon())
	// The common parent goes when nobody else is in it.
	parents, err := filepath.Glob(trees + "/*/docker")
	errs = append(errs, err)
	for _, p := range append(parents, trees+"/docker") {
		_ = syscall.Rmdir(p) // in use, or gone already
	}
	return errors.Join(errs...)
}
