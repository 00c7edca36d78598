package oci

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/hook/oci/wire"
	"github.com/stoker-profiler/stoker/internal/unixsocket"
	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
)

// fake is a source on a /proc and a cgroup tree of the test's own, in which this process is in a cgroup and its parent, which plays
// the container's first process, in another.
func fake(t *testing.T, ours, theirs string) *Source {
	t.Helper()
	dir := t.TempDir()
	for pid, path := range map[int]string{os.Getpid(): ours, os.Getppid(): theirs} {
		proc := filepath.Join(dir, "proc", fmt.Sprint(pid))
		if err := os.MkdirAll(proc, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(proc, "cgroup"), []byte("0::"+path+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, "cgroup", path), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return New(Config{Socket: filepath.Join(dir, "hook.sock"), Hierarchy: cgroupfs.Hierarchy{Mount: filepath.Join(dir, "cgroup"), Proc: filepath.Join(dir, "proc")}})
}

func TestACgroupHasToBeTheContainersOwn(t *testing.T) {
	id := strings.Repeat("3f", 32)
	for _, c := range []struct{ name, ours, theirs, id, want, reason string }{
		{"docker", "/system.slice/stoker.service", "/docker/" + id, id, "/docker/" + id, ""},
		{"a free name", "/", "/default/web", "web", "/default/web", ""},
		{"systemd driver", "/", "/system.slice/docker-" + id + ".scope", id, "/system.slice/docker-" + id + ".scope", ""},
		{"crun's child", "/", "/machine.slice/libpod-" + id + ".scope/container", id, "/machine.slice/libpod-" + id + ".scope", ""},
		{"kubelet's slice, cgroupfs driver", "/", "/kubepods-pod1.slice:cri-containerd:" + id, id, "/kubepods-pod1.slice:cri-containerd:" + id, ""},
		{"an engine in a container", "/", "/docker/outer/docker/" + id, id, "/docker/outer/docker/" + id, ""},
		{"the root", "/", "/", id, "", "cgroup"},
		{"a session", "/", "/user.slice/user-1000.slice/session-2.scope", id, "", "cgroup"},
		{"a slice", "/", "/system.slice", "web", "", "cgroup"},
		{"another's", "/", "/docker/" + strings.Repeat("4e", 32), id, "", "cgroup"},
		{"one that only begins so", "/", "/default/webserver", "web", "", "cgroup"},
		{"the same as ours", "/default/web", "/default/web", "web", "", "shared"},
		{"one that we are below", "/default/web/init.scope", "/default/web", "web", "", "shared"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := fake(t, c.ours, c.theirs)
			got, err := s.ownCgroup(c.theirs, c.id, unixsocket.Peer{PID: int32(os.Getpid())})
			r := (*refused)(nil)
			if got != c.want || c.reason == "" && err != nil || c.reason != "" && (!errors.As(err, &r) || string(r.reason) != c.reason) {
				t.Errorf("got %q, %v, want %q, %s", got, err, c.want, c.reason)
			}
		})
	}
}

func TestIDsThatNoEngineMakes(t *testing.T) {
	for id, want := range map[string]bool{
		"web": true, strings.Repeat("3f", 32): true, "a.b_c-d+e": true, "1": true,
		"": false, ".": false, "..": false, "a/b": false, "-a": false, "a b": false, "é": false, strings.Repeat("a", wire.MaxID+1): false,
	} {
		if got := validID(id); got != want {
			t.Errorf("validID(%q) = %t", id, got)
		}
	}
}

func TestWhoseProcessItIs(t *testing.T) {
	for status, want := range map[string]int64{
		"Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t1\t1\t1\t1\n": 1000,
		"Uid:\t0\t0\t0\t0\n": 0, "Uid:\n": -1, "Uid:\t-5\n": -1, "": -1, "Name:\tUid: 7\n": -1,
	} {
		if got := realUID(status); got != want {
			t.Errorf("realUID(%q) = %d, want %d", status, got, want)
		}
	}
	s := &Source{}
	if mine, err := s.belongs(os.Getpid(), uint32(os.Getuid())); err != nil || !mine {
		t.Errorf("our own process: %t, %v", mine, err)
	}
	if mine, err := s.belongs(os.Getpid(), 4_000_000); err != nil || mine {
		t.Errorf("our own process, another user: %t, %v", mine, err)
	}
}

func TestUsersCannotTakeRootsPlaces(t *testing.T) {
	s := New(Config{})
	taken := 0
	for uid := uint32(1); uid <= 100; uid++ {
		for range 100 {
			if s.enter(uid) {
				taken++
			}
		}
		if n := s.conns[uid]; n > maxConnsPerUser {
			t.Fatalf("user %d has %d places", uid, n)
		}
	}
	if taken != maxUserConns {
		t.Errorf("users have %d places, want %d", taken, maxUserConns)
	}
	for n := range maxConns - maxUserConns {
		if !s.enter(0) {
			t.Fatalf("root has %d places beside the users'", n)
		}
	}
	if s.enter(0) {
		t.Error("one too many")
	}
	s.leave(1)
	if !s.enter(2_000_000) {
		t.Error("a free place is not given away")
	}
	for uid, n := range s.conns {
		for range n {
			s.leave(uid)
		}
	}
	if len(s.conns) != 0 {
		t.Errorf("left: %v", s.conns)
	}
}

func start(t *testing.T, s *Source) (events chan container.Event, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	events, done := make(chan container.Event, 100), make(chan error, 1)
	go func() { done <- s.Run(ctx, func(e container.Event) { events <- e }) }()
	stop = func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	}
	for _, want := range []container.EventType{container.Synced} {
		if e := <-events; e.Type != want {
			t.Errorf("it begins with %v, want %v", e.Type, want)
		}
	}
	return events, stop
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// The whole conversation, with this process as the hook. It has the rights that the test has.
func TestAnAnnouncementIsAnsweredWhenItIsDone(t *testing.T) {
	s := fake(t, "/system.slice/stoker.service", "/default/web")
	events, stop := start(t, s)
	defer stop()
	waitFor(t, "the socket is there", func() bool { return s.Status().Connected })
	if info, err := os.Stat(s.socket); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("the socket is %v, %v: rootless engines must reach it", info, err)
	}
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: s.socket, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m, ok := wire.State{ID: []byte("web"), PID: os.Getppid(), Annotations: []wire.Annotation{{Key: []byte("stoker.service"), Value: []byte("shop")}}}.Append(nil)
	if !ok {
		t.Fatal("it cannot be said")
	}
	if _, err := c.Write(m); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 2)
	n, err := c.Read(answer)
	if os.Geteuid() != 0 { // a user's process is not in a cgroup of that user's here
		if n := s.Counts()["announced"]; n != 0 {
			t.Errorf("a user is believed")
		}
		return
	}
	if err != nil || n != 1 || answer[0] != wire.InScope {
		t.Fatalf("answered %q, %v; counts %v", answer[:n], err, s.Counts())
	}
	select {
	case e := <-events: // before the answer, or it would promise nothing
		if e.Type != container.Upsert || e.Container.ID != "web" || e.Container.PID != os.Getppid() || e.Container.CgroupPath != "/default/web" || e.Container.CgroupID == 0 {
			t.Errorf("got %+v", e)
		}
	default:
		t.Error("answered before it was told")
	}
}

func TestASecondAgentWaitsForTheSocketAndSaysSo(t *testing.T) {
	s := fake(t, "/a", "/b")
	_, stop := start(t, s)
	waitFor(t, "the socket is there", func() bool { return s.Status().Connected })
	second := New(Config{Socket: s.socket, Hierarchy: s.h})
	_, stopSecond := start(t, second)
	defer stopSecond()
	waitFor(t, "the second says what is in its way", func() bool {
		return strings.Contains(second.Status().Err, "another stoker is listening") && strings.Contains(second.Status().Err, "runtimes.hook.socket")
	})
	waitFor(t, "whoever looks whether somebody listens is no hook", func() bool { return s.Counts()["silent"] == 1 })
	stop()
	if _, err := os.Lstat(s.socket); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
	waitFor(t, "the second has it", func() bool { return second.Status().Connected })
}

func TestWhoConnectsAndSaysNothingIsShownOut(t *testing.T) {
	s := fake(t, "/a", "/b")
	_, stop := start(t, s)
	defer stop()
	waitFor(t, "the socket is there", func() bool { return s.Status().Connected })
	for range 3 {
		c, err := net.Dial("unixpacket", s.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	waitFor(t, "all are shown out", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.counts["silent"] == 3 && len(s.conns) == 0
	})
}
