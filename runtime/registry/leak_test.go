package registry

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// 10,000 containers that three sources tell about, some of which start again, are excluded, share a cgroup or claim another's.
func TestNothingIsLeftOfTenThousandContainers(t *testing.T) {
	b := newBench(t, Config{Targets: []Rule{{Exclude: true, Name: "*7"}}, ContainerLabels: allowAll})
	made := 0
	round := func(n int) {
		for range n {
			made++
			c := container.Container{ID: fmt.Sprintf("%064x", made), Name: fmt.Sprint("job-", made), Runtime: "docker", PID: made, Labels: map[string]string{"n": fmt.Sprint(made)}}
			cgroup := func(run int) container.Container {
				c.CgroupID, c.CgroupPath = uint64(4*made+run), "/docker/"+c.ID
				return c
			}
			first := cgroup(0)
			b.say("cgroup", container.Upsert, first, inferred)
			b.say("containerd", container.Upsert, first, partial)
			b.say("docker", container.Upsert, container.Container{ID: c.ID, Runtime: "docker", Name: c.Name})
			switch made % 4 {
			case 0: // it starts again
				b.say("containerd", container.Gone, first)
				b.say("containerd", container.Upsert, cgroup(1), partial)
			case 1: // a user claims it, another one is said to be in its cgroup
				b.say("podman", container.Upsert, container.Container{ID: c.ID, User: "1000"})
				b.say("podman", container.Upsert, container.Container{ID: fmt.Sprint("other-", made), CgroupID: first.CgroupID, CgroupPath: first.CgroupPath, Runtime: "podman"})
				b.say("podman", container.Gone, container.Container{ID: c.ID, User: "1000"})
				b.say("podman", container.Gone, container.Container{ID: fmt.Sprint("other-", made), Runtime: "podman"})
			case 2: // its frequency changes
				c.Labels = map[string]string{LabelFrequency: "19"}
				b.say("containerd", container.Upsert, cgroup(0), partial)
			}
			b.say("docker", container.Gone, container.Container{ID: c.ID, Runtime: "docker"})
			b.say("cgroup", container.Gone, container.Container{CgroupID: c.CgroupID}, inferred)
			if made%50 == 0 {
				b.WindowEnd()
			}
		}
	}
	heap := func() uint64 {
		for range keptWindows + 1 {
			b.WindowEnd()
		}
		clear(b.k.thin) // the fake kernel's own memory
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	round(500)
	before := heap()
	round(10_000)
	after := heap()
	if n := len(b.records) + len(b.byCgroup) + len(b.byID) + len(b.byScope) + len(b.k.scopes); n != 0 {
		t.Errorf("left: %d records, %d cgroups, %d ids, %d scopes, %d in the kernel: %+v", len(b.records), len(b.byCgroup), len(b.byID), len(b.byScope), len(b.k.scopes), b.List())
	}
	t.Logf("heap %d KiB before, %d KiB after", before>>10, after>>10)
	if after > before+1<<20 {
		t.Errorf("the heap grew from %d to %d bytes", before, after)
	}
}
