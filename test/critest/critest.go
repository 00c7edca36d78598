// Package critest starts a private containerd 2.4 with its CRI and NRI plugins and runs pods in it, for tests and benchmarks: as a
// kubelet does, through the CRI API, but without Kubernetes. Pods have the host's network, so that no network plugin is
// needed; images come from files. The containerd is built from its own module (containerd.mod), whose version is pinned there;
// see package containerdtest for how it is kept apart from the machine's own. A Daemon is one of its Daemons too: Image makes
// images, Run runs containers that are no pods, as ctr does. Everything needs root, Go, and Debian's packages runc and
// busybox-static.
//
// A Daemon, its Pods and their Containers are safe for concurrent use. Stop ends everything that was started and removes it.
package critest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/stoker-profiler/stoker/test/containerdtest"
)

// Namespace is containerd's namespace in which the CRI plugin keeps pods and images.
const Namespace = "k8s.io"

// pauseImage is what holds a pod's namespaces.
const pauseImage = "localhost/pause:1"

const (
	// startTimeout is how long the CRI plugin may take until it answers, and an image until it is known to it.
	startTimeout = 60 * time.Second
	// callTimeout bounds each CRI call; what waits for it is a test.
	callTimeout = 60 * time.Second
)

// Options say how a Daemon is set up. The zero value is a containerd with CRI and NRI.
type Options struct {
	// BaseSpec changes the OCI spec that all containers of pods start from (base_runtime_spec): that is how hooks get into
	// them. Pause containers and those of Run do not have it.
	BaseSpec func(*specs.Spec)
	// Pause is the image of pause containers, whatever its Ref; for one that does more than to wait. No Cmd: one that waits.
	Pause containerdtest.Image
}

// Daemon is one private containerd with CRI and NRI.
type Daemon struct {
	*containerdtest.Daemon

	mu   sync.Mutex // protects what follows
	conn *grpc.ClientConn
	uids int
}

// New builds containerd where that has not been done, starts one whose files are below dir, which must exist and should be empty,
// and waits until it serves the CRI API and listens for NRI plugins. The caller calls Stop, also when ctx has ended; removing
// dir is the caller's. dir's path is short: sockets are in it.
func New(ctx context.Context, dir string, o Options) (*Daemon, error) {
	fail := func(err error) (*Daemon, error) {
		return nil, fmt.Errorf("start a private containerd with CRI: %w", err)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fail(err)
	}
	bin := filepath.Join(dir, "bin")
	if err := build(ctx, bin); err != nil {
		return fail(err)
	}
	for _, sub := range []string{"nri-plugins", "nri-conf", "cni-bin", "cni-conf", "pods"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return fail(err)
		}
	}
	if err := writeBaseSpec(ctx, bin, filepath.Join(dir, baseSpec), o.BaseSpec); err != nil {
		return fail(err)
	}
	d := &Daemon{}
	if d.Daemon, err = containerdtest.NewWith(ctx, dir, containerdtest.Options{Programs: bin, Config: config}); err != nil {
		return nil, err
	}
	if o.Pause.Ref = pauseImage; o.Pause.Cmd == nil {
		o.Pause.Cmd = []string{"/bin/sleep", "1000000"}
	}
	if err := d.Image(o.Pause); err != nil {
		return nil, errors.Join(err, d.Stop())
	}
	if err := d.ready(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%w; it wrote:\n%s", err, d.Log()), d.Stop())
	}
	return d, nil
}

// NewForTest is New in a directory of its own, stopped and removed when the test ends. A failed test shows the daemon's log.
func NewForTest(t containerdtest.TB, o Options) *Daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "stoker-cri-") // not the test's own: its long name does not fit a socket's path
	if err != nil {
		t.Fatalf("start a private containerd with CRI: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the private containerd: %v", err)
		}
	})
	d, err := New(t.Context(), dir, o)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Errorf("stop the private containerd: %v", err)
		}
		if t.Failed() {
			t.Logf("containerd wrote:\n%s", d.Log())
		}
	})
	return d
}

// baseSpec is the name of the file with the spec that containers of pods start from.
const baseSpec = "base.json"

func writeBaseSpec(ctx context.Context, bin, path string, change func(*specs.Spec)) error {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "ctr"), "oci", "spec") // asks no daemon
	cmd.Stderr = &stderr
	text, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("ctr oci spec: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	if change != nil {
		var spec specs.Spec
		if err := json.Unmarshal(text, &spec); err != nil {
			return fmt.Errorf("ctr oci spec: %w", err)
		}
		change(&spec)
		if text, err = json.Marshal(spec); err != nil {
			return err
		}
	}
	return os.WriteFile(path, text, 0o644)
}

// config is the daemon's config.toml. All that it would share with another containerd is below its own directory.
func config(d *containerdtest.Daemon) string {
	return strings.NewReplacer("ROOT", d.Root(), "STATE", d.State(), "SOCKET", d.Socket(), "RUNC", filepath.Join(d.Dir(), "runc-cri"),
		"DIR", d.Dir(), "PAUSE", pauseImage, "BASE", filepath.Join(d.Dir(), baseSpec), "NRI", nriSocket(d)).Replace(`version = 3
root = 'ROOT'
state = 'STATE'
grpc.address = 'SOCKET'
[plugins]
'io.containerd.internal.v1.opt'.path = 'DIR/opt'
'io.containerd.cri.v1.images'.pinned_images.sandbox = 'PAUSE'
# Root without CAP_SYS_RESOURCE, as in many a container that runs tests, may not lower its score.
'io.containerd.cri.v1.runtime'.restrict_oom_score_adj = true
'io.containerd.cri.v1.runtime'.cni = { bin_dirs = ['DIR/cni-bin'], conf_dir = 'DIR/cni-conf' }
'io.containerd.cri.v1.runtime'.containerd.runtimes.runc = { runtime_type = 'io.containerd.runc.v2', base_runtime_spec = 'BASE', options = { SystemdCgroup = false, Root = 'RUNC' } }
'io.containerd.nri.v1.nri' = { disable = false, disable_connections = false, plugin_path = 'DIR/nri-plugins', plugin_config_path = 'DIR/nri-conf', socket_path = 'NRI' }
`)
}

func nriSocket(d *containerdtest.Daemon) string { return filepath.Join(d.Dir(), "nri.sock") }

// NRISocket is the path of the socket that the daemon has for NRI plugins.
func (d *Daemon) NRISocket() string { return nriSocket(d.Daemon) }

// StartDaemon starts containerd again after KillDaemon or StopDaemon and waits until it serves the CRI API. Pods live on meanwhile.
func (d *Daemon) StartDaemon(ctx context.Context) error {
	if err := d.Daemon.StartDaemon(ctx); err != nil {
		return err
	}
	return d.ready(ctx)
}

// ready connects to the CRI API and waits until it answers and the NRI socket takes connections.
func (d *Daemon) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	// A new connection each time: one that has seen its server go waits before it looks again.
	conn, err := grpc.NewClient("unix://"+d.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("connect to the CRI API: %w", err)
	}
	d.mu.Lock()
	old := d.conn
	d.conn = conn
	d.mu.Unlock()
	if old != nil {
		old.Close()
	}
	return poll(ctx, "the CRI API and the NRI socket", func() error {
		if _, err := cri.NewRuntimeServiceClient(conn).Version(ctx, &cri.VersionRequest{}); err != nil {
			return err
		}
		nri, err := net.Dial("unix", d.NRISocket())
		if err != nil {
			return err
		}
		return nri.Close()
	})
}

// poll calls f until it returns nil or ctx ends.
func poll(ctx context.Context, what string, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w: %w", what, ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (d *Daemon) runtime() cri.RuntimeServiceClient {
	d.mu.Lock()
	defer d.mu.Unlock()
	return cri.NewRuntimeServiceClient(d.conn)
}

// Runtime is the daemon's CRI runtime service, for what this package has no method for. It is good until the daemon is started
// again.
func (d *Daemon) Runtime() cri.RuntimeServiceClient { return d.runtime() }

// importImage makes an image that Image made known to the CRI plugin, which learns of it a moment after containerd.
func (d *Daemon) importImage(ctx context.Context, ref string) error {
	if err := d.Import(ctx, Namespace, ref); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	d.mu.Lock()
	images := cri.NewImageServiceClient(d.conn)
	d.mu.Unlock()
	return poll(ctx, "image "+ref+" to be known to the CRI plugin", func() error {
		r, err := images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
		if err == nil && r.GetImage() == nil {
			err = errors.New("it is not")
		}
		return err
	})
}

// Stop ends all pods, the daemon and its shims, unmounts what is mounted below its directory and removes the cgroups, in whatever
// state the daemon is. It does as much as it can and returns all that failed. Calling it again does nothing.
func (d *Daemon) Stop() error {
	err := d.Daemon.Stop()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conn != nil {
		err = errors.Join(err, d.conn.Close())
		d.conn = nil
	}
	return err
}
