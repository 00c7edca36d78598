//go:build guest && !root

package e2e

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/test/containerdtest"
	"github.com/stoker-profiler/stoker/test/workload"
)

// The tests of the files guest*_test.go run in a virtual machine with systemd (test/vm, lane vm): what the agent does on a pure
// cgroup v2 tree with services, user managers, machines, and engines that let systemd make their cgroups. They are root, may start
// and stop whatever they like and need not clean up: the machine is thrown away. The agent and the workloads are in /host.

// slowness multiplies deadlines: an emulated machine is slow, more so beside others.
const slowness = 6

// run is what all tests share.
var run = struct{ stoker string }{"/host/stoker"}

// containerdSocket is that of the containerd that an agent follows unless its test says otherwise.
func containerdSocket() string { return "/run/containerd/containerd.sock" }

func TestMain(m *testing.M) {
	flag.Parse()
	if _, err := os.Stat(run.stoker); err != nil || os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "e2e: these tests run in a virtual machine that is thrown away: go test -tags vm ./test/vm")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// sh runs a script and returns what it printed, without the last newline.
func sh(t *testing.T, script string) string {
	t.Helper()
	cmd := exec.Command("bash", "-euc", script)
	cmd.WaitDelay = 1 // nanosecond: a daemon that the script leaves has its output too, and does not end
	out, err := cmd.CombinedOutput()
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimRight(string(out), "\n")
}

// write makes a file.
func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// archive makes an image with the workloads, as every engine loads it.
func archive(t *testing.T) string {
	t.Helper()
	path := t.TempDir() + "/image.tar"
	image := containerdtest.Image{Ref: imageRef, Files: map[string]containerdtest.File{"/" + workload.Burn: containerdtest.Host("/host/" + workload.Burn)}}
	if err := image.Write(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// burner is the command line of a workload whose samples are all in the function unique_N.
func burner(n int) string { return fmt.Sprintf("/%s 0 %d", workload.Burn, n) }

// wantOwnWork waits for profiles of a container that runs burner(n), and checks that all of them have its labels and nobody
// else's work.
func wantOwnWork(t *testing.T, a *agent, id string, n int, labels map[string]string) {
	t.Helper()
	own := fmt.Sprintf("unique_%d", n)
	profiles := a.stored(t, id, "profiles of "+id, func(p sink.Profile) bool { return look(t, []sink.Profile{p}).cum[own] > 0 })
	for _, p := range profiles {
		for name, want := range labels {
			if p.Labels[name] != want {
				t.Errorf("%s: label %s is %q, want %q; all: %v", id, name, p.Labels[name], want, p.Labels)
			}
		}
	}
	pic := look(t, profiles)
	for f, v := range pic.cum {
		if strings.HasPrefix(f, "unique_") && f != own && v > 0 {
			t.Errorf("%s runs %s and has samples of %s\n%s", id, own, f, pic)
		}
	}
}
