// Package crio is a source of containers: it follows CRI-O over the Kubernetes container runtime interface (CRI) and tells of
// containers by their pods, names, labels, annotations and images.
//
// CRI-O does not say when something begins unless it is configured to. The cgroup scan sees that: every cgroup of CRI-O's has
// the container's id in its name, is made before the container's first process, and is in scope at once. The agent passes such
// finds on through Hint, and the Client lists what CRI-O has as soon as it may know of it; without a hint, every ten seconds, a
// tenth of what the kubelet asks. CRI-O lists containers that have ended too, until the kubelet removes them: short-lived
// ones get their names.
//
// A Client owns one connection. All it knows is owned by the goroutine in its Run; a few more read single containers. It only
// reads, and only what CRI-O answers from memory: it never asks about a container that is being created, for until CRI-O
// lists it, it is not asked about. It makes sure at each connection that it speaks to CRI-O: containerd answers the same
// calls, and is followed over its own API.
package crio

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
)

// DefaultAddress is where CRI-O listens when nobody says otherwise.
const DefaultAddress = "/var/run/crio/crio.sock"

// runtimeName is how CRI-O calls itself, and how its containers' Runtime is called.
const runtimeName = "cri-o"

// Config says which CRI-Os to follow.
type Config struct {
	// Addresses are paths of sockets, with or without "unix://" in front. Empty: DefaultAddress, also when it appears later.
	Addresses []string
	// Hierarchy is where containers' cgroups are looked up.
	Hierarchy cgroupfs.Hierarchy
	Log       *slog.Logger // nil discards
}

// Sources returns one source per address. They connect in Run; that no CRI-O is there is no error. The error is about an
// address that cannot be one.
func Sources(cfg Config) ([]container.Source, error) {
	if len(cfg.Addresses) == 0 {
		c := NewClient(runtimeName, DefaultAddress, cfg.Hierarchy, cfg.Log)
		c.loop.Optional = true
		return []container.Source{c}, nil
	}
	var sources []container.Source
	var errs []error
	for i, address := range cfg.Addresses {
		path := strings.TrimPrefix(address, "unix://")
		if !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("cri-o address %q: want the absolute path of a socket, as %s", address, DefaultAddress))
			continue
		}
		name := runtimeName
		if i > 0 {
			name += ":" + path
		}
		sources = append(sources, NewClient(name, path, cfg.Hierarchy, cfg.Log))
	}
	return sources, errors.Join(errs...)
}
