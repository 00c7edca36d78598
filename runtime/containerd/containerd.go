// Package containerd is a source of containers: it follows one containerd, or several, over its gRPC API and tells of every
// container in every namespace when its first process is made, which is before that process runs the user's code.
//
// A Client owns one connection. All it knows is owned by the goroutine in its Run; a second one receives events into a
// bounded queue, so that containerd never has to keep them for us, and a few more read records. None of them makes another
// wait: a container is told with its cgroup before anything is asked about it, and asked again if the answer fails.
//
// It only reads: it subscribes, lists and gets. It never asks about a task that is being created, which may block.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
)

// place is a socket that distributions use, and how a source there is called.
type place struct{ name, address string }

// places are where to look when nobody says where containerd listens.
var places = []place{
	{"containerd", "/run/containerd/containerd.sock"},
	{"containerd-k3s", "/run/k3s/containerd/containerd.sock"},
	{"containerd-k0s", "/run/k0s/containerd.sock"},
	{"containerd-microk8s", "/var/snap/microk8s/common/run/containerd.sock"},
	{"containerd-docker", "/run/docker/containerd/containerd.sock"}, // started by dockerd where there is no other
}

// UsualAddresses are the sockets where containerd is looked for when nobody says where it listens.
func UsualAddresses() []string {
	var all []string
	for _, p := range places {
		all = append(all, p.address)
	}
	return all
}

// Config says which containerds to follow.
type Config struct {
	// Addresses are paths of sockets, with or without "unix://" in front. Empty: all the usual places, also those where a
	// containerd appears later.
	Addresses []string
	// Hierarchy is where container's cgroups are looked up.
	Hierarchy cgroupfs.Hierarchy
	Log       *slog.Logger // nil discards
}

// Sources returns one source per configured address, or one that follows all the usual places. They connect in Run; that no
// containerd is there is no error. The error is about an address that cannot be one.
func Sources(cfg Config) ([]container.Source, error) {
	if len(cfg.Addresses) == 0 {
		return []container.Source{newUsual(places, cfg)}, nil
	}
	var sources []container.Source
	var errs []error
	for i, address := range cfg.Addresses {
		path := strings.TrimPrefix(address, "unix://")
		if !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("containerd address %q: want the absolute path of a socket, as /run/containerd/containerd.sock", address))
			continue
		}
		name := "containerd"
		if i > 0 {
			name += ":" + path
		}
		sources = append(sources, NewClient(name, path, cfg.Hierarchy, cfg.Log))
	}
	return sources, errors.Join(errs...)
}

// Usual follows containerd at all the usual places at once. Its events carry the names of the places' own sources, so that
// what one containerd no longer has is not mistaken for what another one has.
type Usual struct {
	clients []*Client
	log     *slog.Logger // nil discards
}

var (
	_ container.Source         = (*Usual)(nil)
	_ container.StatusReporter = (*Usual)(nil)
	_ container.CountReporter  = (*Usual)(nil)
)

func newUsual(places []place, cfg Config) *Usual {
	u := &Usual{log: cfg.Log}
	for _, p := range places {
		c := NewClient(p.name, p.address, cfg.Hierarchy, cfg.Log)
		c.loop.Optional = true
		u.clients = append(u.clients, c)
	}
	return u
}

// Name implements [container.Source].
func (u *Usual) Name() string { return "containerd" }

// Run implements [container.Source].
func (u *Usual) Run(ctx context.Context, emit func(container.Event)) error {
	there := func(c *Client) bool { _, err := os.Stat(c.address); return err == nil }
	if u.log != nil && !slices.ContainsFunc(u.clients, there) {
		u.log.Info("no containerd at any of the usual places; if there is one, set runtimes.containerd.address to its socket", "source", u.Name())
	}
	// The first Synced under our own name comes when every place has told what it has, or has nothing.
	var mu sync.Mutex
	waiting, own := len(u.clients), false
	for i, c := range u.clients {
		c.loop.Settled = func(told bool) {
			mu.Lock()
			defer mu.Unlock()
			waiting--
			own = own || i == 0 && told // then it has said so
			if waiting == 0 && !own {
				emit(container.Event{Type: container.Synced, Source: u.Name(), At: time.Now()})
			}
		}
	}
	var clients sync.WaitGroup
	for _, c := range u.clients {
		clients.Go(func() { _ = c.Run(ctx, emit) }) // a Client's Run ends with ctx only
	}
	clients.Wait()
	return ctx.Err()
}

// Status implements [container.StatusReporter]: connected means that each containerd that is there is.
func (u *Usual) Status() container.Status {
	var connected []container.Status
	var newest time.Time
	for _, c := range u.clients {
		st := c.Status()
		switch {
		case st.Connected:
			connected = append(connected, st)
		case st.Absent:
			if st.Since.After(newest) {
				newest = st.Since
			}
		case st.Err != "":
			return st // one is there and does not work: that is what people have to know
		}
	}
	if len(connected) > 0 {
		return connected[0]
	}
	var looked []string
	for _, c := range u.clients {
		looked = append(looked, c.address)
	}
	return container.Status{Since: newest, Absent: !newest.IsZero(), Err: "no containerd is at any of the usual places (" + strings.Join(looked, ", ") +
		"); if there is one, set runtimes.containerd.address to its socket"}
}

// Counts implements [container.CountReporter]: the sums over all places.
func (u *Usual) Counts() map[string]uint64 {
	sum := map[string]uint64{}
	for _, c := range u.clients {
		for name, n := range c.Counts() {
			sum[name] += n
		}
	}
	return sum
}

// Clients returns the clients of all places, for their statistics.
func (u *Usual) Clients() []*Client { return u.clients }
