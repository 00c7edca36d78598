//go:build root

package podmantest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stoker-profiler/stoker/test/containerdtest"
)

func TestPodmanRunsAndLeavesNothing(t *testing.T) {
	dir, err := os.MkdirTemp("", "stoker-podman-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	e, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Stop() })
	ctx := t.Context()
	const image = "localhost/stoker-test:1"
	if err := e.Load(ctx, containerdtest.Image{Ref: image, Cmd: []string{"/bin/sleep", "1000"}}); err != nil {
		t.Fatal(err)
	}
	web, err := e.Run(ctx, Spec{Name: "web", Image: image, Labels: map[string]string{"a": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := CgroupID(web); err != nil {
		t.Error(err)
	}
	bare, err := e.Run(ctx, Spec{Name: "bare", Image: image, NoCgroup: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := CgroupID(bare); err == nil {
		t.Error("a container without a cgroup has one")
	}
	if err := e.StartService(ctx); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", e.Socket())
	}}}
	answer, err := client.Get("http://podman/libpod/_ping")
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Errorf("the service answers %v, %v", answer, err)
	}
	if err := e.Stop(); err != nil {
		t.Error(err)
	}
	if err := e.Stop(); err != nil {
		t.Errorf("again: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("a mount is left: %v", err)
	}
	for _, id := range []string{web, bare} {
		left, err := filepath.Glob(fmt.Sprintf("%s/*/%s/libpod-%s", trees, parent, id))
		if err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
}
