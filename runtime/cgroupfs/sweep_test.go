package cgroupfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stoker-profiler/stoker/runtime/container"
)

func TestASweepEndsWhatHasNoCgroupAnyMore(t *testing.T) {
	h := Hierarchy{Mount: t.TempDir()}
	var live []container.Container
	for _, id := range []string{"stays", "removed", "made anew"} {
		if err := os.Mkdir(filepath.Join(h.Mount, id), 0o755); err != nil {
			t.Fatal(err)
		}
		inode, err := h.ID("/" + id)
		if err != nil {
			t.Fatal(err)
		}
		live = append(live, container.Container{ID: id, CgroupPath: "/" + id, CgroupID: inode})
	}
	live[2].CgroupID++ // of the one before
	live = append(live, container.Container{ID: "waits"}, container.Container{ID: "root", CgroupPath: "/"})
	if err := os.Remove(filepath.Join(h.Mount, "removed")); err != nil {
		t.Fatal(err)
	}
	var l events
	h.Sweep(live, l.emit)
	if got := l.text(); len(got) != 2 || got[0] != "gone removed" || got[1] != "gone made anew" {
		t.Errorf("told %q, want the end of what was removed and of what was made anew", got)
	}
	for _, e := range l.all {
		if !e.Inferred || e.Source != "cgroup" || e.Container.CgroupID == 0 {
			t.Errorf("event %+v, want the kernel's word about a cgroup", e)
		}
	}
}
