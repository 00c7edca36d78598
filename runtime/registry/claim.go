package registry

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// runtimeSystemd is the runtime of services: a service is only where no container is.
const runtimeSystemd = "systemd"

// This file decides whom to believe when sources contradict each other about a cgroup. In this order:
//
//  1. The kernel. A cgroup's path is its word: a path that names one container, or a systemd unit, is not another container's, and
//     below user-N.slice is what user N may make. That a cgroup is gone is its word too.
//  2. What root's engines say, and root's service manager.
//  3. What a user's rootless engine says. It is believed about what is below that user's slice only.
//  4. What was inferred from a cgroup's name.
//
// A source finds a cgroup through a pid, and a pid may be a lie: the engine lies, or the process has ended and another one has
// its number. So what a source says about a cgroup is checked here, whoever it is, and what fails is counted as a conflict and
// not believed; the rest of what it says is.

// claim checks what an event says about its container's cgroup, and takes away what cannot be. It also settles whose engine
// speaks, where the source did not say and the path does.
func (r *Registry) claim(c *container.Container, inferred bool) {
	switch {
	case c.CgroupPath == rootCgroup:
		c.CgroupID = 0 // no scope: it would be the whole machine
		return
	case c.CgroupPath == "":
		return
	}
	owner, other := slice(c.CgroupPath), foreign(c.CgroupPath, c.ID)
	switch {
	case inferred:
		c.User = cmp.Or(c.User, owner)
	case other != "":
		r.refuse(c, "its processes are in the cgroup of "+other)
	case c.User != "" && c.User != owner:
		r.refuse(c, fmt.Sprintf("the engine of user %s says that it is in %s, which is not below that user's slice", c.User, c.CgroupPath))
	default:
		c.User = owner
	}
}

// stays reports whether what an event says about a cgroup is no reason to move a run there: it lives in the cgroup that is named
// after it, and the other one is not, or is another's. If it was started again, the end of this run is told first.
func stays(live *record, c *container.Container, holder *record) bool {
	if live == nil || live.c.CgroupID == 0 || c.CgroupID == 0 || c.CgroupID == live.c.CgroupID {
		return false
	}
	another := holder != nil && !holder.gone && holder.c.ID != c.ID && !holder.supposed(c) && !outranks(c, holder)
	return another || named(live.c.CgroupPath, live.c.ID) && !named(c.CgroupPath, c.ID)
}

// over reports whether a cgroup was another container's, and is gone or of no use to this one.
func over(holder *record, c *container.Container) bool {
	return holder != nil && holder.gone && holder.c.ID != c.ID &&
		(holder.removed || named(holder.c.CgroupPath, holder.c.ID) && !named(c.CgroupPath, c.ID))
}

// supposed reports whether nothing but a cgroup's name says that a record's container is in it, and the container that is told to be
// there may well be what the name means.
func (rec *record) supposed(c *container.Container) bool {
	return rec.onlyInferred() && (named(c.CgroupPath, c.ID) || !named(rec.c.CgroupPath, rec.c.ID))
}

// outranks reports whether a container has a better claim to a cgroup than the one that is known to be in it.
func outranks(c *container.Container, holder *record) bool {
	h := &holder.c
	if h.ID == c.ID {
		return false
	}
	if (h.User == "") != (c.User == "") {
		return c.User == ""
	}
	if a, b := named(h.CgroupPath, h.ID), named(c.CgroupPath, c.ID); a != b {
		return b
	}
	// Both may be named: docker-ID.scope is a unit too.
	return h.Runtime == runtimeSystemd && c.Runtime != runtimeSystemd
}

// yield gives a record's cgroup to another container, which has the better claim.
func (r *Registry) yield(rec, to *record) {
	for other := range r.records {
		if other.shares == rec {
			other.shares = to
		}
	}
	rec.shares, to.shares = to, nil
	delete(r.byCgroup, rec.c.CgroupID)
	for name, w := range rec.told { // what was inferred was about the cgroup
		if w.inferred && rec.c.ID != w.c.ID {
			delete(rec.told, name)
			if to.told[name] == nil {
				to.told[name] = w
			}
		}
	}
	r.stats.shared++
	r.decide(rec)
}

// refuse takes away what an event says about where its container is.
func (r *Registry) refuse(c *container.Container, why string) {
	r.stats.conflicts++
	c.CgroupID, c.CgroupPath, c.PID = 0, "", 0
	if c.NoCgroup == "" {
		c.NoCgroup = why
	}
}

// slice returns the user in whose slice a cgroup is: systemd gives each user user-N.slice and lets that user's service manager
// make cgroups below it. Root's is root's.
func slice(path string) string {
	for part := range strings.SplitSeq(path, "/") {
		if user, ok := strings.CutPrefix(part, "user-"); ok {
			if user, ok = strings.CutSuffix(user, ".slice"); ok && user != "" && strings.Trim(user, "0123456789") == "" && user != "0" {
				return user
			}
		}
	}
	return ""
}

// named reports whether a cgroup's path has an id in it as runtimes write it there: alone, or between a prefix and a suffix.
func named(path, id string) bool {
	if id == "" {
		return false
	}
	for part := range strings.SplitSeq(path, "/") {
		for rest, from := part, 0; ; {
			i := strings.Index(rest, id)
			if i < 0 {
				break
			}
			begin, end := from+i, from+i+len(id)
			if (begin == 0 || strings.IndexByte("-:@", part[begin-1]) >= 0) && (end == len(part) || part[end] == '.') {
				return true
			}
			from = end
			rest = part[end:]
		}
	}
	return false
}

// foreign returns whom a path names that is not the container of an id: another container by its random id, or a unit of systemd. Who
// gives random ids to containers writes them into the path, so one that does not have the id is not that container's.
func foreign(path, id string) string {
	if id == "" || named(path, id) {
		return ""
	}
	last := path[strings.LastIndexByte(path, '/')+1:]
	for _, unit := range []string{".service", ".slice"} {
		if strings.HasSuffix(last, unit) {
			return last
		}
	}
	if last == "init.scope" || strings.HasPrefix(last, "session-") && strings.HasSuffix(last, ".scope") {
		return last
	}
	other := ""
	for part := range strings.SplitSeq(path, "/") {
		if hex := lastHex64(part); hex != "" {
			other = hex
		}
	}
	if other == "" && lastHex64(id) == id {
		return path
	}
	return other
}

// lastHex64 returns the last run of exactly 64 hex digits.
func lastHex64(s string) (found string) {
	for n := 0; len(s) > 0; s = s[n:] {
		for n = 0; n < len(s) && strings.IndexByte("0123456789abcdef", s[n]) >= 0; n++ {
		}
		if n == 64 {
			found = s[:n]
		}
		n = max(n, 1)
	}
	return found
}
