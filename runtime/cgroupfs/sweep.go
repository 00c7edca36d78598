package cgroupfs

import (
	"errors"
	"io/fs"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// Sweep looks whether the cgroups of containers are still there, and tells of each whose cgroup is not that it is gone. That is the
// kernel's word, for what nobody else tells: the scan does not know cgroups of a person's own choice, an engine may have been away
// when the container ended, and a hook tells beginnings only. It costs a system call per container.
func (h Hierarchy) Sweep(containers []container.Container, emit func(container.Event)) {
	for _, c := range containers {
		if c.CgroupID == 0 || c.CgroupPath == "" {
			continue
		}
		id, err := h.ID(c.CgroupPath)
		gone := slices.ContainsFunc([]error{fs.ErrNotExist, unix.ENODEV}, func(e error) bool { return errors.Is(err, e) })
		if gone || err == nil && id != c.CgroupID {
			emit(container.Event{Type: container.Gone, Source: sourceName, Inferred: true, At: time.Now(),
				Container: container.Container{ID: c.ID, Runtime: c.Runtime, Namespace: c.Namespace, User: c.User, CgroupPath: c.CgroupPath, CgroupID: c.CgroupID}})
		}
	}
}
