//go:build root

package sampler_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/stoker-profiler/stoker/bpf/sampler"
	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/registry"
)

// 10,000 containers that come and go, fifty at a time, through the registry into the kernel's maps: neither keeps anything.
func TestTenThousandContainersLeaveNothing(t *testing.T) {
	s, c, stop := open(t, sampler.Config{FrequencyHz: 1}, 50*time.Millisecond)
	defer stop()
	r := registry.New(registry.Config{Scopes: s.Scopes(), Frequency: 1})
	windows := func() int {
		n := 0
		c.locked(func() { n = c.windows })
		return n
	}
	// windowEnd waits until the sampler has ended a window more, and tells the registry, as the agent does.
	windowEnd := func() {
		for n := windows(); windows() == n; {
			time.Sleep(5 * time.Millisecond)
		}
		r.WindowEnd()
	}
	made := 0
	round := func() {
		var batch []container.Container
		for range 50 {
			made++
			// Cgroups that do not exist: the kernel's map does not mind, and nothing is sampled in them.
			c := container.Container{ID: fmt.Sprintf("%064x", made), Name: fmt.Sprint("job-", made), Runtime: "docker", Image: "image",
				CgroupID: 1<<40 + uint64(made), PID: made, Labels: map[string]string{"n": fmt.Sprint(made)}}
			batch = append(batch, c)
			for _, source := range []string{"containerd", "docker", "cgroup"} {
				r.Apply(container.Event{Type: container.Upsert, Source: source, Inferred: source == "cgroup", Complete: source == "docker", Container: c})
			}
		}
		for _, c := range batch {
			r.Apply(container.Event{Type: container.Gone, Source: "containerd", Container: c})
		}
	}
	settle := func() (entries map[string]int, heap uint64) {
		for range 5 {
			windowEnd()
		}
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return mapEntries(t), m.HeapAlloc
	}
	for range 4 {
		round() // what is allocated once
	}
	before, heapBefore := settle()
	for made < 10_000 {
		round()
		if made%500 == 0 { // the maps have room for 2048 scopes; those that ended are kept for two windows
			windowEnd()
		}
	}
	after, heapAfter := settle()
	for name, n := range after {
		if n != before[name] {
			t.Errorf("map %s has %d entries, before there were %d", name, n, before[name])
		}
	}
	for _, name := range []string{"scopes", "scope_states", "rest"} {
		if n, ok := after[name]; !ok || n != 0 {
			t.Errorf("map %s has %d entries (found: %t), want none", name, n, ok)
		}
	}
	if n := r.Stats(); n.Scopes != 0 || len(r.List()) != 0 || n.ScopeErrors != 0 || s.Scopes().Len() != 0 {
		t.Errorf("left in the registry: %d scopes, %d containers; %d refusals; %d scopes in the sampler", n.Scopes, len(r.List()), n.ScopeErrors, s.Scopes().Len())
	}
	t.Logf("heap %d KiB before, %d KiB after %d containers", heapBefore>>10, heapAfter>>10, made)
	if heapAfter > heapBefore+1<<20 {
		t.Errorf("the heap grew from %d to %d bytes over %d containers", heapBefore, heapAfter, made)
	}
}

// mapEntries counts the entries of the hash maps that this process holds, by name. Caches (LRU) keep what they have.
func mapEntries(t *testing.T) map[string]int {
	t.Helper()
	infos, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil {
		t.Fatal(err)
	}
	entries := map[string]int{}
	for _, path := range infos {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // closed meanwhile
		}
		var id ebpf.MapID
		if i := strings.Index(string(text), "map_id:"); i < 0 {
			continue
		} else if _, err := fmt.Sscanf(string(text)[i:], "map_id:\t%d", &id); err != nil {
			continue
		}
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			continue // the map of a window that ended
		}
		info, err := m.Info()
		if err == nil && (m.Type() == ebpf.Hash || m.Type() == ebpf.PerCPUHash) {
			key, n := make([]byte, m.KeySize()), 0
			var last any
			for m.NextKey(last, &key) == nil {
				n++
				last = append([]byte(nil), key...)
			}
			entries[info.Name] = n
		}
		m.Close()
	}
	return entries
}
