//go:build root

package e2e

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/test/containerdtest"
	"github.com/stoker-profiler/stoker/test/workload"
)

// slowness multiplies deadlines: here 1, in an emulated machine more.
const slowness = 1

// containerdSocket is that of the containerd that an agent follows unless its test says otherwise.
func containerdSocket() string { return run.daemon.socket() }

// run is what all tests of one `go test` share.
var run struct {
	dir      string
	stoker   string // the built program
	programs *workload.Builder
	image    containerdtest.Image
	daemon   *daemon
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(runAll(m))
}

func runAll(m *testing.M) (code int) {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	if os.Geteuid() != 0 {
		return fail(errors.New("these tests load BPF programs and start containers: run them as root"))
	}
	dir, err := os.MkdirTemp("", "stoker-e2e-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	run.dir, run.stoker = dir, filepath.Join(dir, "stoker")
	build := exec.Command("go", "build", "-o", run.stoker, "github.com/stoker-profiler/stoker/cmd/stoker")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fail(fmt.Errorf("build stoker: %w\n%s", err, out))
	}
	if run.programs, err = workload.New(dir); err != nil {
		return fail(err)
	}
	files, err := run.programs.Files(workload.SharesC, workload.SharesOmit, workload.Stripped, workload.Calls, workload.SharesPIE, workload.SharesCXX, workload.SharesGo, workload.Idle,
		workload.Burn, workload.Now, workload.Spawn, workload.Kernel, workload.As, workload.Attack, workload.Swap)
	if err != nil {
		return fail(err)
	}
	run.image = containerdtest.Image{Ref: imageRef, Files: map[string]containerdtest.File{}}
	for in, host := range files {
		run.image.Files[in] = containerdtest.Host(host)
	}
	d := filepath.Join(dir, "containerd")
	if err := os.Mkdir(d, 0o755); err != nil {
		return fail(err)
	}
	private, err := containerdtest.New(context.Background(), d)
	if err != nil {
		return fail(err)
	}
	defer func() {
		if err := private.Stop(); err != nil {
			code = fail(err)
		}
	}()
	if err := private.Image(run.image); err != nil {
		return fail(err)
	}
	run.daemon = &daemon{private}
	return m.Run()
}

// daemon is a private containerd that has the image of the workloads.
type daemon struct{ d *containerdtest.Daemon }

func (d *daemon) socket() string { return d.d.Socket() }

// startDaemon starts a containerd for one test that is going to hurt it.
func startDaemon(t *testing.T) *daemon {
	t.Helper()
	d := containerdtest.NewForTest(t)
	if err := d.Image(run.image); err != nil {
		t.Fatal(err)
	}
	return &daemon{d}
}

func (d *daemon) kill(t *testing.T) {
	t.Helper()
	if err := d.d.KillDaemon(); err != nil {
		t.Fatal(err)
	}
}

func (d *daemon) restart(t *testing.T) {
	t.Helper()
	if err := d.d.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// spec says what a test wants of a container.
type spec struct {
	image  string // default: that of the workloads
	args   []string
	labels map[string]string
	docker bool              // named and placed as Docker does it, so that the cgroup alone tells what it is
	mounts map[string]string // host path → absolute path in the container
}

// box is a running container.
type box struct {
	id     string
	labels map[string]string
	c      *containerdtest.Container
	docker bool
}

// start runs a container on the containerd that all tests share. It is removed at the end of the test.
func start(t *testing.T, s spec) *box {
	t.Helper()
	return run.daemon.start(t, s)
}

func (d *daemon) start(t *testing.T, s spec) *box {
	t.Helper()
	var random [32]byte
	rand.Read(random[:]) // never fails
	id := hex.EncodeToString(random[:])
	cs := containerdtest.Spec{ID: id, Image: cmp.Or(s.image, imageRef), Args: s.args, Labels: map[string]string{testLabel: t.Name()}, Mounts: s.mounts}
	if s.docker {
		cs.CgroupsPath = "/docker/" + id
	} else {
		cs.ID = strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name())) + "-" + id[:8]
	}
	for k, v := range s.labels {
		cs.Labels[k] = v
	}
	c, err := d.d.Run(t.Context(), cs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Delete(context.Background()); err != nil {
			t.Errorf("remove the container: %v", err)
		}
	})
	return &box{id: c.ID(), labels: cs.Labels, c: c, docker: s.docker}
}

// kill ends the container and returns the CPU time that its cgroup was charged until just before.
func (b *box) kill(t *testing.T) time.Duration {
	t.Helper()
	used := cpuUsage(t, b.c.CgroupPath())
	if err := b.c.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	return used
}

// used waits until the container's cgroup has been charged that much CPU time: on a busy machine that takes longer, and a
// test wants samples, not seconds.
func (b *box) used(t *testing.T, cpu time.Duration) {
	t.Helper()
	eventually(t, 2*time.Minute, fmt.Sprintf("container %s has used %s of CPU", b.id, cpu), func() error {
		if used := cpuUsage(t, b.c.CgroupPath()); used < cpu {
			return fmt.Errorf("it has used %s", used)
		}
		return nil
	})
}

// wait waits until the container's program has ended by itself.
func (b *box) wait(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if err := b.c.Wait(ctx); err != nil {
		t.Fatal(err)
	}
}

// remove deletes the container's record.
func (b *box) remove(t *testing.T) {
	t.Helper()
	if err := b.c.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// exec runs a program in the container and waits for its end.
func (b *box) exec(t *testing.T, args ...string) {
	t.Helper()
	if out, err := b.c.Exec(t.Context(), args...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// wantLabels checks that a profile is labelled as this container's.
func (b *box) wantLabels(t *testing.T, p sink.Profile) {
	t.Helper()
	if p.ContainerID != b.id {
		t.Errorf("a profile of %s where one of %s was expected", p.ContainerID, b.id)
	}
	want := map[string]string{"container_runtime": "containerd", "container_image": imageRef}
	if s := b.labels["stoker.service"]; s != "" {
		want["service_name"] = s
	}
	for name, v := range want {
		if p.Labels[name] != v {
			t.Errorf("label %s is %q, want %q; all: %v", name, p.Labels[name], v, p.Labels)
		}
	}
	for _, name := range []string{"service_name", "container_name", "node"} {
		if p.Labels[name] == "" {
			t.Errorf("label %s is missing; all: %v", name, p.Labels)
		}
	}
}

// bpfPrograms lists the BPF programs that are in the kernel now, by id.
func bpfPrograms(t *testing.T) map[ebpf.ProgramID]bool {
	t.Helper()
	found := map[ebpf.ProgramID]bool{}
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		id = next
		found[id] = true
	}
}
