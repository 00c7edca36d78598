package containerdtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// DefaultNamespace is where containers are whose Spec names no namespace.
const DefaultNamespace = "default"

// Spec says what to run.
type Spec struct {
	Namespace   string // "" is DefaultNamespace
	ID          string // unique within the namespace
	Image       string // a reference that Daemon.Image made
	Args        []string
	Env         []string // "NAME=value", added to the image's
	Labels      map[string]string
	Annotations map[string]string
	// CgroupsPath is the container's cgroup as a path below the root of each hierarchy. Empty puts it at
	// CgroupParent()/NAMESPACE/ID. "/NAMESPACE/ID" is what ctr itself does; then the ID has to be unique on the machine.
	CgroupsPath string
	// Mounts are bind mounts, host path → absolute path in the container, read-write.
	Mounts map[string]string
	// Options are passed to `ctr run` as they are: "--memory-limit", "16777216".
	Options []string
}

// Container is one container of a Daemon.
type Container struct {
	d    *Daemon
	spec Spec

	mu    sync.Mutex // protects what follows
	pid   int
	execs int
}

// Run makes a container and starts it. It returns when the first process runs the user's code.
func (d *Daemon) Run(ctx context.Context, spec Spec) (*Container, error) {
	if spec.Namespace == "" {
		spec.Namespace = DefaultNamespace
	}
	if spec.CgroupsPath == "" {
		spec.CgroupsPath = fmt.Sprintf("%s/%s/%s", d.parent, spec.Namespace, spec.ID)
	}
	if err := d.Import(ctx, spec.Namespace, spec.Image); err != nil {
		return nil, fmt.Errorf("run container %s: %w", spec.ID, err)
	}
	c := &Container{d: d, spec: spec}
	d.mu.Lock()
	if d.stopped {
		d.mu.Unlock()
		return nil, fmt.Errorf("run container %s: the daemon was stopped", spec.ID)
	}
	d.cgroups[spec.CgroupsPath] = struct{}{} // before the first process: Stop must find it whatever happens
	d.mu.Unlock()
	args := []string{"run", "-d", "--runc-root", d.RuncRoot(), "--cgroup", spec.CgroupsPath}
	for k, v := range spec.Labels {
		args = append(args, "--label", k+"="+v)
	}
	for k, v := range spec.Annotations {
		args = append(args, "--annotation", k+"="+v)
	}
	for _, e := range spec.Env {
		args = append(args, "--env", e)
	}
	for from, to := range spec.Mounts {
		args = append(args, "--mount", "type=bind,src="+from+",dst="+to+",options=rbind:rw")
	}
	args = append(args, spec.Options...)
	args = append(args, c.taskOptions()...)
	args = append(append(args, spec.Image, spec.ID), spec.Args...)
	if _, err := d.ctr(ctx, spec.Namespace, args...); err != nil {
		return nil, fmt.Errorf("run container %s: %w", spec.ID, err)
	}
	if err := c.readPID(); err != nil {
		return nil, fmt.Errorf("run container %s: %w", spec.ID, err)
	}
	return c, nil
}

func (c *Container) file(kind string) string {
	return filepath.Join(c.d.path("logs"), fmt.Sprintf("%s.%s.%s", c.spec.Namespace, c.spec.ID, kind))
}

func (c *Container) taskOptions() []string {
	return []string{"--log-uri", "file://" + c.file("log"), "--pid-file", c.file("pid")}
}

func (c *Container) readPID() error {
	b, err := os.ReadFile(c.file("pid"))
	if err != nil {
		return fmt.Errorf("read its pid: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return fmt.Errorf("read its pid: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pid = pid
	return nil
}

// ID is the container's id.
func (c *Container) ID() string { return c.spec.ID }

// Namespace is containerd's namespace that the container is in.
func (c *Container) Namespace() string { return c.spec.Namespace }

// CgroupPath is the container's cgroup as a path below the root of each hierarchy.
func (c *Container) CgroupPath() string { return c.spec.CgroupsPath }

// PID is the first process of the container's current run, as the host numbers it.
func (c *Container) PID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pid
}

// CgroupID is the inode of the container's cgroup in the v2 hierarchy (also the v2 tree of a hybrid host): what the kernel
// calls the cgroup id.
func (c *Container) CgroupID() (uint64, error) { return CgroupID(c.spec.CgroupsPath) }

// CgroupID is the inode of a cgroup in the v2 hierarchy (also the v2 tree of a hybrid host): what the kernel calls its id.
func CgroupID(path string) (uint64, error) {
	for _, mount := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		var st syscall.Stat_t
		if err := syscall.Stat(filepath.Join(mount, path), &st); err == nil {
			return st.Ino, nil
		}
	}
	return 0, fmt.Errorf("no v2 cgroup %s", path)
}

// Log returns what the container's processes wrote to stdout and stderr so far, over all its runs. Processes of Exec are not
// in it.
func (c *Container) Log() string {
	b, err := os.ReadFile(c.file("log"))
	if errors.Is(err, fs.ErrNotExist) {
		return "" // it has not written anything yet
	}
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Exec runs a process in the container, waits for its end and returns what it wrote.
func (c *Container) Exec(ctx context.Context, args ...string) (string, error) {
	out, err := c.d.ctr(ctx, c.spec.Namespace, append([]string{"tasks", "exec", "--exec-id", c.execID(), c.spec.ID}, args...)...)
	if err != nil {
		return out, fmt.Errorf("exec in container %s: %w", c.spec.ID, err)
	}
	return out, nil
}

// ExecDetached starts a process in the container and does not wait for it. What it writes goes to the container's log.
func (c *Container) ExecDetached(ctx context.Context, args ...string) error {
	_, err := c.d.ctr(ctx, c.spec.Namespace, append([]string{"tasks", "exec", "-d", "--log-uri", "file://" + c.file("log"),
		"--exec-id", c.execID(), c.spec.ID}, args...)...)
	if err != nil {
		return fmt.Errorf("exec in container %s: %w", c.spec.ID, err)
	}
	return nil
}

func (c *Container) execID() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.execs++
	return fmt.Sprintf("exec-%d-%d", os.Getpid(), c.execs)
}

// Kill sends SIGKILL to the first process, through containerd, and waits until it is gone. A container that has ended
// already is no error.
func (c *Container) Kill(ctx context.Context) error {
	if err := c.Signal(ctx, "SIGKILL"); err != nil && !strings.Contains(err.Error(), "not found") && !strings.Contains(err.Error(), "already finished") {
		return err
	}
	return c.Wait(ctx)
}

// Signal sends a signal ("SIGTERM") to the first process, through containerd.
func (c *Container) Signal(ctx context.Context, signal string) error {
	if _, err := c.d.ctr(ctx, c.spec.Namespace, "tasks", "kill", "-s", signal, c.spec.ID); err != nil {
		return fmt.Errorf("send %s to container %s: %w", signal, c.spec.ID, err)
	}
	return nil
}

// Wait blocks until the first process is gone. It asks the kernel, so it works while containerd is down; the process must
// be reaped by its shim.
func (c *Container) Wait(ctx context.Context) error {
	pid := c.PID()
	for {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of container %s: %w", c.spec.ID, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Restart ends the container's processes and starts it again: the same id, the same path, another cgroup, another pid.
func (c *Container) Restart(ctx context.Context) error {
	if err := c.deleteTask(ctx); err != nil {
		return fmt.Errorf("restart container %s: %w", c.spec.ID, err)
	}
	return c.Start(ctx)
}

// Start starts a container whose processes have ended.
func (c *Container) Start(ctx context.Context) error {
	args := append([]string{"tasks", "start", "-d"}, c.taskOptions()...)
	if _, err := c.d.ctr(ctx, c.spec.Namespace, append(args, c.spec.ID)...); err != nil {
		return fmt.Errorf("start container %s: %w", c.spec.ID, err)
	}
	if err := c.readPID(); err != nil {
		return fmt.Errorf("start container %s: %w", c.spec.ID, err)
	}
	return nil
}

// End ends the container's processes and keeps its record, as a stopped container.
func (c *Container) End(ctx context.Context) error { return c.deleteTask(ctx) }

func (c *Container) deleteTask(ctx context.Context) error {
	if err := c.Kill(ctx); err != nil {
		return err
	}
	return c.d.deleteTask(ctx, c.spec.Namespace, c.spec.ID)
}

// Delete ends the container and removes its record and its file system.
func (c *Container) Delete(ctx context.Context) error {
	if err := c.deleteTask(ctx); err != nil {
		return fmt.Errorf("delete container %s: %w", c.spec.ID, err)
	}
	if _, err := c.d.ctr(ctx, c.spec.Namespace, "containers", "rm", c.spec.ID); err != nil && !strings.Contains(err.Error(), "not found") {
		return fmt.Errorf("delete container %s: %w", c.spec.ID, err)
	}
	return nil
}
