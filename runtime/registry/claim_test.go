package registry

import (
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// Other ids of 64 digits, as engines make them.
var idA, idB = strings.Repeat("a", 63) + "1", strings.Repeat("b", 63) + "2"

func TestAContainerWithoutACgroupOfItsOwnIsListedWithTheReason(t *testing.T) {
	b := newBench(t, Config{})
	why := "Podman of user 1000 may not make cgroups; delegate them to the user"
	b.say("podman", container.Upsert, container.Container{ID: idA, Name: "web", Runtime: "podman", User: "1000", PID: 70, NoCgroup: why})
	rec := b.want(Excluded)
	if rec.Reason != "it has no cgroup of its own: "+why || rec.Profiled() || rec.ScopeID != 0 || rec.User != "1000" || rec.NoCgroup != why {
		t.Errorf("record %+v", rec)
	}
	b.WindowEnd()
	b.SetTargets([]Rule{{Name: "web"}}, allowAll)
	b.want(Excluded)

	// A later word gives it one; who does not know of it does not take it away.
	path := "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + idA + ".scope"
	b.say("cgroup", container.Upsert, container.Container{ID: idA, Runtime: "podman", CgroupPath: path, CgroupID: 5}, inferred)
	b.want(Profiled, 5)
	b.say("podman", container.Upsert, container.Container{ID: idA, User: "1000", PID: 70, NoCgroup: why})
	if rec := b.want(Profiled, 5); rec.Reason != "" || rec.NoCgroup != "" {
		t.Errorf("record %+v", rec)
	}
	// The next run has none again.
	b.say("podman", container.Gone, container.Container{ID: idA, User: "1000"})
	b.say("podman", container.Upsert, container.Container{ID: idA, User: "1000", PID: 71, NoCgroup: why})
	b.wantScopes()
	if l := b.List(); len(l) != 2 || l[1].State != Excluded || l[1].Name != "web" {
		t.Errorf("list %+v", l)
	}
}

func TestTwoUsersContainersOfOneIDAreTwo(t *testing.T) {
	b := newBench(t, Config{})
	path := func(user string) string {
		return "/user.slice/user-" + user + ".slice/user@" + user + ".service/app.slice/web.service"
	}
	for n, user := range []string{"1000", "1001"} {
		b.say("systemd", container.Upsert, container.Container{ID: "web.service", Name: "web", Runtime: "systemd", User: user, CgroupPath: path(user), CgroupID: uint64(n + 1)})
	}
	b.say("systemd", container.Upsert, container.Container{ID: "web.service", Name: "web", Runtime: "systemd", CgroupPath: "/system.slice/web.service", CgroupID: 3})
	b.wantScopes(1, 2, 3)
	b.say("systemd", container.Gone, container.Container{ID: "web.service", Runtime: "systemd", User: "1001"})
	b.wantScopes(1, 3)
	if l := b.List(); len(l) != 3 {
		t.Errorf("%d records, want 3: %+v", len(l), l)
	}
	// A rule can tell them apart.
	b.SetTargets([]Rule{{Exclude: true, User: "[1-9]*"}}, LabelPolicy{})
	b.wantScopes(3)
	b.SetTargets([]Rule{{Exclude: true, User: "0"}}, LabelPolicy{})
	b.wantScopes(1)
}

// Whatever a user's engine says, and whoever speaks first, root's containers keep their names, their cgroups and their lives.
func TestAUsersEngineHasNoSayAboutRootsContainers(t *testing.T) {
	real := container.Container{ID: idA, Name: "bank", Runtime: "docker", CgroupPath: "/docker/" + idA, CgroupID: 1, PID: 10}
	root := func(b *bench) { b.say("containerd", container.Upsert, real) }
	for _, c := range []struct {
		name string
		lie  container.Container
		typ  container.EventType
		opts []func(*container.Event)
		list int // what is listed of the lie beside the real one
	}{
		{"its id", container.Container{ID: idA, Name: "mine", User: "1000", Labels: map[string]string{LabelEnable: "false"}}, container.Upsert, nil, 1},
		{"its cgroup", container.Container{ID: idB, Name: "mine", User: "1000", CgroupPath: real.CgroupPath, CgroupID: 1}, container.Upsert, nil, 1},
		{"its id and its cgroup", container.Container{ID: idA, Name: "mine", User: "1000", CgroupPath: real.CgroupPath, CgroupID: 1}, container.Upsert, nil, 1},
		{"its id in a cgroup of the user", container.Container{ID: idA, User: "1000", CgroupID: 9,
			CgroupPath: "/user.slice/user-1000.slice/user@1000.service/docker-" + idA + ".scope"}, container.Upsert, nil, 1},
		{"a cgroup called so", container.Container{ID: idA, Runtime: "docker", CgroupID: 9,
			CgroupPath: "/user.slice/user-1000.slice/user@1000.service/docker-" + idA + ".scope"}, container.Upsert, []func(*container.Event){inferred}, 1},
		{"its end", container.Container{ID: idA, User: "1000"}, container.Gone, nil, 0},
		{"the end of its cgroup", container.Container{ID: idA, User: "1000", CgroupID: 1}, container.Gone, nil, 0},
	} {
		for _, first := range []bool{true, false} {
			t.Run(c.name, func(t *testing.T) {
				b := newBench(t, Config{ContainerLabels: allowAll})
				if !first {
					root(b)
				}
				b.say("podman", c.typ, c.lie, c.opts...)
				if first {
					root(b)
				}
				b.say("podman", c.typ, c.lie, c.opts...)
				found := false
				for _, rec := range b.List() {
					if rec.Name == "bank" {
						found = true
						if rec.State != Profiled || rec.CgroupID != 1 || rec.User != "" || rec.ScopeID != b.k.id(1) || rec.Labels[LabelEnable] != "" {
							t.Errorf("root's container became %+v", rec)
						}
					} else if rec.CgroupID == 1 {
						t.Errorf("the lie has root's cgroup: %+v", rec)
					}
				}
				if l := b.List(); !found || len(l) != 1+c.list {
					t.Errorf("list %+v, want root's container and %d more", l, c.list)
				}
			})
		}
	}
}

// A pid that is not, or no longer, the container's leads to another cgroup. Nobody is sampled under another's name for that.
func TestAWrongPidMovesNobodyToAForeignCgroup(t *testing.T) {
	a := container.Container{ID: idA, Name: "a", Runtime: "docker", CgroupPath: "/docker/" + idA, CgroupID: 1, PID: 10}
	web := container.Container{ID: "web", Name: "web", Runtime: "containerd", Namespace: "default", CgroupPath: "/default/web", CgroupID: 2, PID: 20}
	b := container.Container{ID: idB, Name: "b", Runtime: "podman", CgroupPath: "/libpod_parent/libpod-" + idB, CgroupID: 3, PID: 30}
	wrong := func(c container.Container, path string, cgroup uint64) container.Container {
		c.CgroupPath, c.CgroupID, c.PID = path, cgroup, 99
		return c
	}
	for _, c := range []struct {
		name  string
		event container.Container
		own   container.Container // the true one of the same container
	}{
		{"another's, by its random id", wrong(b, a.CgroupPath, a.CgroupID), b},
		{"another's, by its name", wrong(b, web.CgroupPath, web.CgroupID), b},
		{"another's, of one with a name", wrong(web, b.CgroupPath, b.CgroupID), web},
		{"a child of another's", wrong(b, a.CgroupPath+"/init.scope", 11), b},
		{"a service's", wrong(b, "/system.slice/ssh.service", 12), b},
		{"a session's", wrong(web, "/user.slice/user-1000.slice/session-3.scope", 13), web},
		{"the root", wrong(b, "/", 14), b},
		{"one of no name", wrong(b, "/jobs", 15), b},
	} {
		for order := range 3 {
			t.Run(c.name, func(t *testing.T) {
				x := newBench(t, Config{})
				lie := func() { x.say("liar", container.Upsert, c.event, partial) }
				if order == 0 && c.name != "one of no name" { // there it would be the only word about where it is
					lie()
				}
				for _, true_ := range []container.Container{a, web, b} {
					x.say("truth", container.Upsert, true_)
					if order == 1 {
						lie()
					}
				}
				lie()
				x.say("truth", container.Upsert, c.own)
				x.wantScopes(1, 2, 3)
				for _, rec := range x.List() {
					if rec.State == Gone && rec.CgroupID == c.event.CgroupID {
						continue // what the lie made, before the truth was known
					}
					want := map[string]uint64{"a": 1, "web": 2, "b": 3}[rec.Name]
					if rec.State != Profiled || rec.CgroupID != want || rec.ScopeID != x.k.id(want) {
						t.Errorf("%s: %v (%s) in cgroup %d, want profiled in %d", rec.Name, rec.State, rec.Reason, rec.CgroupID, want)
					}
				}
			})
		}
	}
}

func TestAServiceIsOnlyWhereNoContainerIs(t *testing.T) {
	path := "/system.slice/docker-" + idA + ".scope"
	unit := container.Container{ID: "docker-" + idA + ".scope", Runtime: "systemd", CgroupPath: path, CgroupID: 1}
	docker := container.Container{ID: idA, Name: "web", Runtime: "docker", CgroupPath: path, CgroupID: 1}
	for _, order := range [][]container.Container{{unit, docker, unit}, {docker, unit, docker}} {
		b := newBench(t, Config{})
		for _, c := range order {
			b.say(c.Runtime, container.Upsert, c)
		}
		b.wantScopes(1)
		if rec, ok := b.Lookup(b.k.id(1)); !ok || rec.Name != "web" || rec.State != Profiled {
			t.Errorf("the scope is of %+v", rec)
		}
	}
}

func TestCgroupsAndWhomTheyName(t *testing.T) {
	for _, c := range []struct {
		path, id string
		named    bool
		foreign  string
		user     string
	}{
		{"/docker/" + idA, idA, true, "", ""},
		{"/docker/" + idA, idB, false, idA, ""},
		{"/docker/" + idA, "web", false, idA, ""},
		{"/docker/" + idA + "/docker/" + idB, idB, true, "", ""},
		{"/docker/" + idA + "/docker/" + idB, idA, true, "", ""},
		{"/docker/" + idA + "/init.scope", idB, false, "init.scope", ""},
		{"/default/web", "web", true, "", ""},
		{"/default/website", "web", false, "", ""},
		{"/default/webweb", "web", false, "", ""},
		{"/default/web-web", "web", true, "", ""},
		{"/system.slice/cri-containerd-" + idA + ".scope", idA, true, "", ""},
		{"/kubepods-pod1.slice:cri-containerd:" + idA, idA, true, "", ""},
		{"/machine.slice/libpod-" + idA + ".scope/container", idA, true, "", ""},
		{"/machine.slice/systemd-nspawn@box.service/payload", "box", true, "", ""},
		{"/system.slice/ssh.service", "ssh.service", true, "", ""},
		{"/system.slice/ssh.service", idA, false, "ssh.service", ""},
		{"/system.slice/quadlet.service/libpod-payload-" + idA, idA, true, "", ""},
		{"/user.slice/user-1000.slice/session-2.scope", idA, false, "session-2.scope", "1000"},
		{"/user.slice/user-0.slice/session-2.scope", "x", false, "session-2.scope", ""},
		{"/user.slice/user-.slice/x", "y", false, "", ""},
		{"/user.slice/user-12x.slice/x", "y", false, "", ""},
		{"/x", "", false, "", ""},
	} {
		if got := named(c.path, c.id); got != c.named {
			t.Errorf("named(%s, %s) = %t", c.path, c.id, got)
		}
		if got := foreign(c.path, c.id); got != c.foreign {
			t.Errorf("foreign(%s, %s) = %q, want %q", c.path, c.id, got, c.foreign)
		}
		if got := slice(c.path); got != c.user {
			t.Errorf("slice(%s) = %q, want %q", c.path, got, c.user)
		}
	}
}

// What TestModel found once, in the order in which it was seen.
func TestWordsThatComeLate(t *testing.T) {
	path := func(id string) string { return "/default/" + id }
	job := func(id string, cgroup uint64) container.Container {
		return container.Container{ID: id, Name: id, Runtime: "containerd", Namespace: "default", CgroupPath: path(id), CgroupID: cgroup}
	}
	at := func(ago time.Duration, b *bench) func(*container.Event) {
		return func(e *container.Event) { e.At = b.now.Add(-ago) }
	}
	made := func(c container.Container, at time.Time) container.Container { c.TaskCreatedAt = at; return c }
	in := func(c container.Container, other container.Container) container.Container {
		c.CgroupPath, c.CgroupID, c.PID = other.CgroupPath, other.CgroupID, other.PID
		return c
	}

	t.Run("a cgroup that is gone has nobody", func(t *testing.T) {
		b := newBench(t, Config{})
		a, other := job("a", 1), job("b", 2)
		b.say("cgroup", container.Upsert, a, inferred)
		b.say("cgroup", container.Upsert, other, inferred)
		b.say("cgroup", container.Gone, a, inferred)
		b.say("cgroup", container.Gone, other, inferred)
		b.say("containerd", container.Upsert, in(other, a))
		b.wantScopes()
		// Also one that is named after nobody.
		b.say("containerd", container.Upsert, container.Container{ID: "x", CgroupPath: "/jobs", CgroupID: 3})
		b.wantScopes(3)
		b.say("cgroup", container.Gone, container.Container{CgroupID: 3}, inferred)
		b.say("containerd", container.Upsert, container.Container{ID: "y", CgroupPath: "/jobs", CgroupID: 3})
		b.wantScopes()
	})
	t.Run("a cgroup named after one that has ended is not another's", func(t *testing.T) {
		b := newBench(t, Config{})
		a, other := job("a", 1), job("b", 2)
		b.say("containerd", container.Upsert, a)
		b.say("containerd", container.Upsert, in(other, a))
		b.wantScopes(1)
		b.say("containerd", container.Gone, a)
		b.wantScopes()
		b.say("containerd", container.Upsert, other)
		b.wantScopes(2)
	})
	t.Run("what a cgroup's name means is not what an engine says that it does not mean", func(t *testing.T) {
		b := newBench(t, Config{})
		a, other := job("a", 1), job("b", 2)
		b.say("cgroup", container.Upsert, a, inferred)
		b.say("containerd", container.Upsert, in(other, a))
		if rec, ok := b.Lookup(b.k.id(1)); !ok || rec.ID != "a" {
			t.Errorf("cgroup 1 is %q's", rec.ID)
		}
		// But where the name means nothing in particular, the engine knows.
		odd := container.Container{ID: "x", CgroupPath: "/lxc/default", CgroupID: 3}
		b.say("cgroup", container.Upsert, container.Container{ID: "y", CgroupPath: "/lxc/default", CgroupID: 3}, inferred)
		b.say("containerd", container.Upsert, odd)
		if rec, ok := b.Lookup(b.k.id(3)); !ok || rec.ID != "x" {
			t.Errorf("cgroup 3 is %q's", rec.ID)
		}
	})
	t.Run("a list says nothing about runs that began after it", func(t *testing.T) {
		b := newBench(t, Config{})
		b.say("hook", container.Upsert, made(job("a", 1), b.now.Add(time.Second)))
		b.now = b.now.Add(2 * time.Second)
		b.say("nri", container.Upsert, container.Container{ID: "a"}) // of an earlier run
		b.say("nri", container.Syncing, container.Container{}, at(90*time.Minute, b))
		b.say("nri", container.Synced, container.Container{}, at(90*time.Minute, b))
		b.wantScopes(1)
		b.say("nri", container.Syncing, container.Container{})
		b.say("nri", container.Synced, container.Container{})
		b.wantScopes() // a newer one does
	})
	t.Run("who never lists keeps nothing alive", func(t *testing.T) {
		b := newBench(t, Config{})
		b.say("hook", container.Synced, container.Container{})
		b.say("containerd", container.Upsert, job("a", 1))
		b.say("hook", container.Upsert, job("a", 1), partial)
		b.say("containerd", container.Syncing, container.Container{})
		b.say("containerd", container.Synced, container.Container{})
		b.wantScopes()
	})
	t.Run("the truth is not stale because a lie was told later", func(t *testing.T) {
		b := newBench(t, Config{})
		a, other := job("a", 1), container.Container{ID: "b", Runtime: "containerd", Namespace: "default", CgroupPath: "/jobs", CgroupID: 2}
		start := b.now
		b.say("containerd", container.Upsert, a)
		b.now = b.now.Add(time.Minute)
		b.say("containerd", container.Upsert, in(other, a))
		b.say("hook", container.Upsert, made(other, start), partial)
		b.wantScopes(1, 2)
	})
	t.Run("who took its word back does not stand for the next run", func(t *testing.T) {
		b := newBench(t, Config{})
		for _, source := range []string{"docker", "containerd"} { // they list
			b.say(source, container.Syncing, container.Container{})
			b.say(source, container.Synced, container.Container{})
		}
		b.say("docker", container.Upsert, container.Container{ID: idA})
		b.say("docker", container.Gone, container.Container{ID: idA})
		start := b.now
		b.say("docker", container.Upsert, container.Container{ID: idA})
		b.say("docker", container.Gone, container.Container{ID: idA})
		run := container.Container{ID: idA, CgroupID: 1, CgroupPath: "/docker/" + idA}
		b.say("containerd", container.Upsert, made(run, start.Add(time.Microsecond)))
		b.say("containerd", container.Upsert, run)
		b.say("containerd", container.Syncing, container.Container{})
		b.say("containerd", container.Synced, container.Container{})
		b.wantScopes()
	})
}
