//go:build root

package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/hook/oci/wire"
	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/test/runctest"
)

// heard collects what a source says.
type heard struct {
	mu     sync.Mutex // protects events
	events []container.Event
	delay  time.Duration // how long the registry takes
}

func (h *heard) emit(e container.Event) {
	time.Sleep(h.delay)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e)
}

func (h *heard) of(id string, typ container.EventType) (container.Event, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		if e.Type == typ && e.Container.ID == id {
			return e, true
		}
	}
	return container.Event{}, false
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// listen runs a source on the machine's own cgroup tree.
func listen(t *testing.T) (*Source, *heard) {
	t.Helper()
	h, err := cgroupfs.Detect()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "stoker-hook-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s, got := New(Config{Socket: filepath.Join(dir, "hook.sock"), Hierarchy: h}), &heard{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, got.emit) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != context.Canceled {
			t.Errorf("Run ended with %v", err)
		}
		if _, err := os.Lstat(s.socket); !os.IsNotExist(err) {
			t.Errorf("the socket is still there: %v", err)
		}
	})
	eventually(t, "the socket is there", func() bool { return s.Status().Connected })
	return s, got
}

// build makes the hook as it is shipped, where every user may run it.
func build(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "stoker-hook-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "stoker-hook")
	cmd := exec.Command("go", "build", "-o", path, "github.com/stoker-profiler/stoker/cmd/stoker-hook")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the hook: %v\n%s", err, out)
	}
	return path
}

func (s *Source) hook(path string) []runctest.Hook {
	return []runctest.Hook{{Path: path, Env: []string{wire.SocketVariable + "=" + s.socket}, Timeout: 2}}
}

func TestAContainerIsAnnouncedBeforeItsFirstInstructionAndItsEndIsSeen(t *testing.T) {
	s, got := listen(t)
	got.delay = 5 * time.Millisecond // a container that does not wait would be found out
	r, hook := runctest.NewForTest(t), build(t)
	spec := runctest.Spec{ID: fmt.Sprintf("stoker-hook-%d", os.Getpid()), Args: []string{"/bin/sleep", "1000"}, CreateRuntime: s.hook(hook),
		Annotations: map[string]string{"stoker.service": "web", "secret": "x", "io.kubernetes.cri.container-type": "container",
			"io.kubernetes.cri.container-name": "main", "io.kubernetes.cri.sandbox-name": "web-0", "io.kubernetes.cri.sandbox-namespace": "shop",
			"io.kubernetes.cri.sandbox-uid": "u-1", "io.kubernetes.cri.image-name": "localhost/web:1"}}
	pid, end, err := r.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	// runc has returned: the container runs since some time, and the word about it was there before.
	e, ok := got.of(spec.ID, container.Upsert)
	if !ok {
		t.Fatalf("nothing was said about the container: %v", s.Counts())
	}
	id, err := s.h.ID(r.Cgroup(spec))
	if err != nil {
		t.Fatal(err)
	}
	c := e.Container
	if c.CgroupID != id || c.CgroupPath != r.Cgroup(spec) || c.PID != pid || e.Inferred || e.Complete || c.User != "" || c.Sandbox {
		t.Errorf("got %+v, want cgroup %d and pid %d", e, id, pid)
	}
	if c.Pod.Name != "web-0" || c.Pod.Namespace != "shop" || c.Pod.UID != "u-1" || c.KubernetesContainer != "main" ||
		c.Image != "localhost/web:1" || c.Runtime != "containerd" || c.Namespace != "k8s.io" || c.Annotations["stoker.service"] != "web" || c.Annotations["secret"] != "" {
		t.Errorf("described as %+v", c)
	}
	if n := s.Counts(); n["announced"] != 1 || n["late"] != 0 {
		t.Errorf("counts %v", n)
	}
	if _, ok := got.of(spec.ID, container.Gone); ok {
		t.Error("it is said to be gone")
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end is told", func() bool { _, ok := got.of(spec.ID, container.Gone); return ok })
	if e, _ := got.of(spec.ID, container.Gone); e.Container.CgroupID != id || !e.Inferred {
		t.Errorf("the end is told as %+v", e)
	}
}

// An engine in a pid namespace of its own: the kernel knows which process it means.
func TestPidsOfAnotherPidNamespaceAreTranslated(t *testing.T) {
	s, got := listen(t)
	r, hook := runctest.NewForTest(t), build(t)
	id := fmt.Sprintf("stoker-hook-ns-%d", os.Getpid())
	pid, end, err := r.Start(t.Context(), runctest.Spec{ID: id, Args: []string{"/bin/sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	// The hook is where the container's first process is pid 1.
	run := func(wrap ...string) {
		cmd := exec.Command(wrap[0], append(wrap[1:], hook)...)
		cmd.Env = []string{wire.SocketVariable + "=" + s.socket}
		cmd.Stdin = strings.NewReader(fmt.Sprintf(`{"id":%q,"pid":1}`, id))
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Fatalf("%v: %v, %q", wrap, err, out)
		}
	}
	run("nsenter", "-t", fmt.Sprint(pid), "-p", "--")
	e, ok := got.of(id, container.Upsert)
	if !ok || e.Container.PID != pid {
		t.Errorf("got %+v, want pid %d; counts %v", e, pid, s.Counts())
	}
	// Who does not rule the namespace cannot have it translated, and is not believed that its numbers are ours.
	run("nsenter", "-t", fmt.Sprint(pid), "-p", "--", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
	if n := s.Counts(); n["announced"] != 1 || n["refused_pid_namespace"] != 1 {
		t.Errorf("counts %v", n)
	}
}

// Whatever a user says, it is about what that user owns, or it is nothing.
func TestMessagesForgedByAUserAreRefused(t *testing.T) {
	s, got := listen(t)
	r, hook := runctest.NewForTest(t), build(t)
	const uid = 54321
	victim := fmt.Sprintf("stoker-hook-victim-%d", os.Getpid())
	pid, end, err := r.Start(t.Context(), runctest.Spec{ID: victim, Args: []string{"/bin/sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	as := func(uid uint32, state any) {
		t.Helper()
		b, err := json.Marshal(state)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(hook)
		cmd.Env = []string{wire.SocketVariable + "=" + s.socket}
		cmd.Stdin = strings.NewReader(string(b))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Fatalf("the hook of user %d: %v, %q", uid, err, out)
		}
	}
	// sleeper starts a process of the user in a cgroup and returns its pid.
	sleeper := func(cgroup string, owner int) int {
		t.Helper()
		dir := s.h.Dir(cgroup)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			for ; dir != s.h.Mount && os.Remove(dir) == nil; dir = filepath.Dir(dir) {
			}
		})
		if err := os.Chown(dir, owner, owner); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/bin/sleep", "1000")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait() // killed: its error says so
		})
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(fmt.Sprint(cmd.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
		return cmd.Process.Pid
	}
	type state struct {
		ID          string            `json:"id"`
		PID         int               `json:"pid"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	id := strings.Repeat("5e", 32)
	base := fmt.Sprintf("/stoker-hook-%d", os.Getpid())
	own := sleeper(base+"/user-54321.slice/user@54321.service/libpod-"+id+".scope", uid)
	roots := sleeper(base+"/libpod-"+strings.Repeat("6f", 32)+".scope", 0)
	named := sleeper(base+"/user-54321.slice/user@54321.service/app", uid)
	for _, c := range []struct {
		what   string
		state  state
		reason string
	}{
		{"root's container", state{victim, pid, nil}, "stranger"},
		{"init", state{victim, 1, nil}, "stranger"},
		{"a process that is not", state{victim, 1<<22 + 1, nil}, "gone"},
		{"a process of the user's in a cgroup of root's", state{strings.Repeat("6f", 32), roots, nil}, "cgroup"},
		{"a cgroup that is called otherwise", state{strings.Repeat("6f", 32), own, nil}, "cgroup"},
		{"a cgroup that is not called as an engine does", state{"app", named, nil}, "cgroup"},
		{"an id that is a path", state{"../../etc", own, nil}, "id"},
	} {
		before := s.Counts()
		as(uid, c.state)
		eventually(t, c.what+" is refused", func() bool { return s.Counts()["refused_"+c.reason] == before["refused_"+c.reason]+1 })
		if n := s.Counts()["announced"]; n != 0 {
			t.Fatalf("%s was believed", c.what)
		}
	}
	// Root may say so; the user about the user's own, and then no more than the cgroup's name says.
	as(0, state{victim, pid, nil})
	if _, ok := got.of(victim, container.Upsert); !ok {
		t.Errorf("root is not believed: %v", s.Counts())
	}
	as(uid, state{id, own, map[string]string{"stoker.service": "bank", "io.kubernetes.pod.name": "bank"}})
	e, ok := got.of(id, container.Upsert)
	if !ok || !e.Inferred || e.Container.User != "54321" || e.Container.Annotations != nil || e.Container.Pod.Name != "" || e.Container.Runtime != "podman" {
		t.Errorf("got %+v; counts %v", e, s.Counts())
	}
	// Bytes that are no message, and none at all.
	for _, b := range [][]byte{[]byte("GET / HTTP/1.1\r\n\r\n"), make([]byte, wire.MaxMessage+1)} {
		c, err := dial(s.socket)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Sendto(c, b, syscall.MSG_NOSIGNAL, nil); err != nil {
			t.Fatal(err)
		}
		syscall.Close(c)
	}
	eventually(t, "both are refused", func() bool { return s.Counts()["refused_malformed"] == 2 })
}

func dial(path string) (int, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	return fd, syscall.Connect(fd, &syscall.SockaddrUnix{Name: path})
}
