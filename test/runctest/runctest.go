// Package runctest runs containers with runc and nothing above it, for tests and the benchmark: no image, no daemon, no network,
// a root file system with busybox, whatever hooks and annotations a test wants. A container takes some 50 ms.
//
// A Runner may be used by several goroutines. It leaves nothing behind once Close has returned; cgroups are below /stoker-runc-PID.
package runctest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Hook is an entry of an OCI configuration's hooks.
type Hook struct {
	Path    string   `json:"path"`
	Args    []string `json:"args,omitempty"`
	Env     []string `json:"env,omitempty"`
	Timeout int      `json:"timeout,omitempty"`
}

// Spec says what to run.
type Spec struct {
	ID          string
	Args        []string
	Annotations map[string]string
	// CreateRuntime are the hooks of that stage.
	CreateRuntime []Hook
	// CgroupsPath is the container's cgroup; empty: /stoker-runc-PID/ID.
	CgroupsPath string
}

// Runner has the root file system that all its containers share, read-only.
type Runner struct {
	dir, parent string
	base        []byte // runc's own example of a configuration

	mu      sync.Mutex      // protects cgroups
	cgroups map[string]bool // to be removed
}

// New makes a Runner that keeps everything in dir. Its error names what is missing.
func New(dir string) (*Runner, error) {
	r := &Runner{dir: dir, parent: fmt.Sprintf("/stoker-runc-%d", os.Getpid()), cgroups: map[string]bool{}}
	if _, err := exec.LookPath("runc"); err != nil {
		return nil, fmt.Errorf("run containers: %w; install runc", err)
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, fmt.Errorf("make a root file system: %w; install busybox-static", err)
	}
	for _, d := range []string{"bin", "proc", "dev", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(r.rootfs(), d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(r.rootfs(), "bin/busybox"), busybox, 0o755); err != nil {
		return nil, err
	}
	for _, name := range []string{"sh", "true", "sleep", "cat", "echo"} {
		if err := os.Symlink("busybox", filepath.Join(r.rootfs(), "bin", name)); err != nil {
			return nil, err
		}
	}
	if out, err := exec.Command("runc", "spec", "--bundle", dir).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("runc spec: %w: %s", err, out)
	}
	if r.base, err = os.ReadFile(filepath.Join(dir, "config.json")); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Runner) rootfs() string { return filepath.Join(r.dir, "rootfs") }

// Cgroup returns the cgroup of a container.
func (r *Runner) Cgroup(s Spec) string {
	if s.CgroupsPath != "" {
		return s.CgroupsPath
	}
	return r.parent + "/" + s.ID
}

func (r *Runner) bundle(s Spec) (string, error) {
	dir := filepath.Join(r.dir, "bundles", s.ID)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	var config map[string]any
	if err := json.Unmarshal(r.base, &config); err != nil {
		return "", fmt.Errorf("runc spec: %w", err)
	}
	process := config["process"].(map[string]any)
	process["terminal"], process["args"] = false, s.Args
	config["root"] = map[string]any{"path": r.rootfs(), "readonly": true}
	config["linux"].(map[string]any)["cgroupsPath"] = r.Cgroup(s)
	if s.Annotations != nil {
		config["annotations"] = s.Annotations
	}
	if s.CreateRuntime != nil {
		config["hooks"] = map[string]any{"createRuntime": s.CreateRuntime}
	}
	b, err := json.Marshal(config)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o644); err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cgroups[r.Cgroup(s)] = true
	return dir, nil
}

func (r *Runner) runc(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "runc", append([]string{"--root", filepath.Join(r.dir, "runc")}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("runc %s: %w: %s", args[0], err, out.Bytes())
	}
	return out.Bytes(), nil
}

// Run runs a container to its end and returns what it wrote and how long that took.
func (r *Runner) Run(ctx context.Context, s Spec) (out []byte, took time.Duration, err error) {
	dir, err := r.bundle(s)
	if err != nil {
		return nil, 0, err
	}
	defer os.RemoveAll(dir)
	began := time.Now()
	out, err = r.runc(ctx, "run", "--bundle", dir, s.ID)
	return out, time.Since(began), err
}

// Start creates and starts a container; the returned function ends and deletes it.
func (r *Runner) Start(ctx context.Context, s Spec) (pid int, end func() error, err error) {
	dir, err := r.bundle(s)
	if err != nil {
		return 0, nil, err
	}
	pidFile := filepath.Join(dir, "pid")
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, nil, err
	}
	defer null.Close()
	cmd := exec.CommandContext(ctx, "runc", "--root", filepath.Join(r.dir, "runc"), "--log", filepath.Join(dir, "log"), "run", "--detach",
		"--bundle", dir, "--pid-file", pidFile, s.ID)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = null, null, null
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(filepath.Join(dir, "log"))
		return 0, nil, fmt.Errorf("runc run: %w: %s", err, text)
	}
	end = sync.OnceValue(func() error {
		_, err := r.runc(context.WithoutCancel(ctx), "delete", "--force", s.ID)
		return err
	})
	b, err := os.ReadFile(pidFile)
	if err == nil {
		pid, err = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	if err != nil {
		return 0, nil, errors.Join(fmt.Errorf("read the pid of container %s: %w", s.ID, err), end())
	}
	return pid, end, nil
}

// Close removes what runc leaves of cgroups. Containers must have ended.
func (r *Runner) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	var trees []string
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		found, _ := filepath.Glob(pattern) // the pattern is well-formed
		trees = append(trees, found...)
	}
	for cgroup := range r.cgroups {
		for _, tree := range trees {
			for path := filepath.Join(tree, cgroup); path != tree; path = filepath.Dir(path) {
				err := syscall.Rmdir(path)
				if errors.Is(err, syscall.EBUSY) && path == filepath.Join(tree, cgroup) {
					errs = append(errs, fmt.Errorf("remove cgroup %s: %w", path, err))
				}
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					break
				}
			}
		}
	}
	return errors.Join(errs...)
}

// TB is what NewForTest needs of testing.TB; named here so that the benchmark does not link package testing.
type TB interface {
	Helper()
	TempDir() string
	Fatal(args ...any)
	Errorf(format string, args ...any)
	Cleanup(f func())
}

// NewForTest is New in a directory of its own; Close is called when the test ends.
func NewForTest(t TB) *Runner {
	t.Helper()
	r, err := New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("%v", err)
		}
	})
	return r
}
