package containerdtest

import (
	"context"
	"os"
)

// TB is what NewForTest needs of testing.TB; named here so that the demo does not link package testing.
type TB interface {
	Helper()
	Context() context.Context
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
	Cleanup(f func())
	Failed() bool
}

// NewForTest is New in a directory of its own, stopped and removed when the test ends. A failed test shows the daemon's log.
func NewForTest(t TB) *Daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "stoker-containerd-") // not the test's own: its long name does not fit a socket's path
	if err != nil {
		t.Fatalf("start a private containerd: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the private containerd: %v", err)
		}
	})
	d, err := New(t.Context(), dir)
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
