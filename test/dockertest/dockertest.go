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
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/stoker-profiler/stoker/test/containerdtest"
)

// startTimeout is how long dockerd may take until it answers; a loaded two-core machine needs a few seconds.
const startTimeout = 60 * time.Second

// trees are where cgroup hierarchies are mounted: v1 and hybrid, or v2.
const trees = "/sys/fs/cgroup"

// Daemon is one private dockerd.
type Daemon struct {
	dir        string
	containerd *containerdtest.Daemon

	mu    sync.Mutex // protects what follows
	cmd   *exec.Cmd  // nil while the daemon is down
	ended chan struct{}
}

// New starts a dockerd on a containerd and waits until it answers. The caller calls Stop, also when ctx has ended.
func New(ctx context.Context, containerd *containerdtest.Daemon) (*Daemon, error) {
	for _, program := range []string{"dockerd", "docker"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("start a private dockerd: %w; install the package docker.io", err)
		}
	}
	d := &Daemon{dir: filepath.Join(containerd.Dir(), "docker"), containerd: containerd}
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
func (d *Daemon) Socket() string { return d.path("docker.sock") }

// Root is the directory of the engine's own files.
func (d *Daemon) Root() string { return d.path("data") }

// Log returns what the daemon wrote so far, over all its starts.
func (d *Daemon) Log() string {
	b, err := os.ReadFile(d.path("log"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// StartDaemon starts dockerd again after StopDaemon or KillDaemon and waits until it answers.
func (d *Daemon) StartDaemon(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd != nil {
		return errors.New("start dockerd: it runs already")
	}
	log, err := os.OpenFile(d.path("log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("start dockerd: %w", err)
	}
	defer log.Close() // the child has its own
	// A killed dockerd leaves them; the new one would take the pid of some other process for its own.
	for _, name := range []string{"pid", "docker.sock"} {
		if err := os.Remove(d.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("start dockerd: %w", err)
		}
	}
	cmd := exec.Command("dockerd", "--config-file", d.path("daemon.json"), "--iptables=false", "--ip6tables=false", "--bridge=none",
		"--data-root", d.Root(), "--exec-root", d.path("exec"), "--host", "unix://"+d.Socket(), "--pidfile", d.path("pid"),
		"--containerd", d.containerd.Socket(), "--exec-opt", "native.cgroupdriver=cgroupfs")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start dockerd: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in the log; that it ended is what counts
		close(ended)
	}()
	d.cmd, d.ended = cmd, ended
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if conn, err := net.Dial("unix", d.Socket()); err == nil {
			conn.Close()
			if _, err := d.Docker(ctx, "version"); err == nil {
				return nil
			}
		}
		select {
		case <-ended:
			d.cmd = nil
			return fmt.Errorf("start dockerd: it ended at once; it wrote:\n%s", d.Log())
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("start dockerd: no answer on %s: %w; it wrote:\n%s", d.Socket(), ctx.Err(), d.Log()), d.endLocked(syscall.SIGKILL))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// StopDaemon ends dockerd with SIGTERM and waits for its end. Containers live on.
func (d *Daemon) StopDaemon() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.endLocked(syscall.SIGTERM)
}

// KillDaemon ends dockerd with SIGKILL and waits for its end. Containers live on.
func (d *Daemon) KillDaemon() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.endLocked(syscall.SIGKILL)
}

// PauseDaemon stops dockerd with SIGSTOP: its socket takes connections and never answers. ResumeDaemon lets it go on.
func (d *Daemon) PauseDaemon() error { return d.signal(syscall.SIGSTOP) }

// ResumeDaemon lets a paused dockerd go on.
func (d *Daemon) ResumeDaemon() error { return d.signal(syscall.SIGCONT) }

func (d *Daemon) signal(s syscall.Signal) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd == nil {
		return fmt.Errorf("send %v to dockerd: it is down", s)
	}
	if err := d.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("send %v to dockerd: %w", s, err)
	}
	return nil
}

func (d *Daemon) endLocked(s syscall.Signal) error {
	if d.cmd == nil {
		return nil
	}
	cmd := d.cmd
	d.cmd = nil
	if err := cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end dockerd with %v: %w", s, err)
	}
	if s != syscall.SIGKILL {
		_ = cmd.Process.Signal(syscall.SIGCONT) // a paused one would never read its signal
	}
	select {
	case <-d.ended:
	case <-time.After(20 * time.Second):
		_ = cmd.Process.Kill()
		<-d.ended
	}
	return nil
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
	if d.running() {
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

func (d *Daemon) running() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cmd != nil
}
