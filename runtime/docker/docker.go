// Package docker is a source of containers: it follows one Docker engine, or several, over its API and tells of containers
// by the names that people gave them, with their labels and images. Where a container's processes are, and when the first of
// them is made, is not what it tells: Docker says that too late. containerd's events (namespace moby) and the cgroup scan say
// it, and the registry joins both by the container's id.
//
// A Client owns one engine. All it knows is owned by the goroutine in its Run; a second one receives events into a bounded
// queue, for Docker silently skips events for whoever reads slowly, and a few more ask about single containers. Where the
// engine refuses to answer, the Client reads the engine's own files instead.
//
// It only reads: it pings, subscribes and lists. It never inspects a container, which blocks while that container starts,
// and never connects to a socket behind which systemd would start Docker.
package docker

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// DefaultAddress is where Docker listens when nobody says otherwise.
const DefaultAddress = "/var/run/docker.sock"

// Config says which Docker engines to follow.
type Config struct {
	// Addresses are paths of sockets, with or without "unix://" in front. Empty: DefaultAddress, also when it appears later.
	Addresses []string
	Log       *slog.Logger // nil discards
}

// Sources returns one source per address. They connect in Run; that no Docker is there is no error. The error is about an
// address that cannot be one.
func Sources(cfg Config) ([]container.Source, error) {
	if len(cfg.Addresses) == 0 {
		c := NewClient("docker", DefaultAddress, cfg.Log)
		c.loop.Optional = true
		return []container.Source{c}, nil
	}
	var sources []container.Source
	var errs []error
	for i, address := range cfg.Addresses {
		path := strings.TrimPrefix(address, "unix://")
		if !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("docker address %q: want the absolute path of a socket, as %s", address, DefaultAddress))
			continue
		}
		name := "docker"
		if i > 0 {
			name += ":" + path
		}
		sources = append(sources, NewClient(name, path, cfg.Log))
	}
	return sources, errors.Join(errs...)
}
