package podman

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/internal/sourcetest"
	"github.com/stoker-profiler/stoker/runtime/registry"
)

// machine is a made-up /proc, cgroup tree and /run.
type machine struct {
	t   *testing.T
	dir string
}

func newMachine(t *testing.T) *machine {
	m := &machine{t, t.TempDir()}
	m.link("proc/self/ns/pid", "pid:[1]")
	for _, dir := range []string{"cgroup", "run/user"} {
		if err := os.MkdirAll(m.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) write(name, text string) {
	m.t.Helper()
	if err := os.MkdirAll(filepath.Dir(m.path(name)), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(m.path(name), []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) link(name, target string) {
	m.t.Helper()
	if err := os.MkdirAll(filepath.Dir(m.path(name)), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Symlink(target, m.path(name)); err != nil {
		m.t.Fatal(err)
	}
}

// process makes one.
func (m *machine) process(pid, parent int, uid uint32, comm, cgroup string, line []byte, children ...int) {
	m.t.Helper()
	at := func(name string) string { return fmt.Sprintf("proc/%d/%s", pid, name) }
	m.write(at("comm"), comm+"\n")
	m.write(at("stat"), fmt.Sprintf("%d (%s) S %d 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 %d 999 1\n", pid, comm, parent, 1000+pid))
	m.write(at("status"), fmt.Sprintf("Name:\t%s\nUid:\t%d\t%[2]d\t%[2]d\t%[2]d\n", comm, uid))
	m.write(at("cmdline"), string(line))
	m.write(at("cgroup"), "0::"+cgroup+"\n")
	m.write(at(fmt.Sprintf("task/%d/children", pid)), strings.Trim(fmt.Sprint(children), "[]"))
	m.link(at("ns/pid"), "pid:[1]")
	if err := os.MkdirAll(m.path("cgroup"+cgroup), 0o755); err != nil {
		m.t.Fatal(err)
	}
}

// container makes a conmon of a user with a process in a cgroup.
func (m *machine) container(pid int, uid uint32, id, name, cgroup string) {
	m.process(pid, 1, uid, "conmon", "/engines", cmdline(id, name), pid+1)
	m.process(pid+1, pid, uid, "sleep", cgroup, nil)
}

func (m *machine) end(pid int) {
	m.t.Helper()
	for _, p := range []int{pid, pid + 1} {
		if err := os.RemoveAll(m.path(fmt.Sprint("proc/", p))); err != nil {
			m.t.Fatal(err)
		}
	}
}

func (m *machine) hierarchy() cgroupfs.Hierarchy {
	return cgroupfs.Hierarchy{Mount: m.path("cgroup"), Proc: m.path("proc")}
}

// source follows the users of the machine, and looks often.
func (m *machine) source(addresses ...string) *Podman {
	p := New(Config{Addresses: addresses, Hierarchy: m.hierarchy(), run: m.path("run")})
	p.tune = func(c *client) {
		c.places = c.places[:1] // not those of the machine that tests run on
		c.notes.journalctl = "" // nor its journal
		c.loop.Times.AbsentEvery = time.Millisecond
		c.loop.Times.MinBackoff = time.Millisecond
		c.times.look, c.times.service = 5*time.Millisecond, 5*time.Millisecond
	}
	return p
}

const userSlice = "/user.slice/user-1000.slice/user@1000.service/user.slice"

func TestContainersOfUsersComeAndGo(t *testing.T) {
	m := newMachine(t)
	b := newBench(t, m.source())
	b.run()
	if !b.WaitSynced(t.Context(), 1, 20*time.Second) {
		t.Fatal("who waits for the first list waits for ever")
	}
	if st := b.source.Status(); !st.Absent {
		t.Errorf("status %+v", st)
	}
	m.write("run/libpod/alive", "") // root's Podman appears
	m.container(100, 0, idA, "web", "/machine.slice/libpod-"+idA+".scope/container")
	rec := b.State(idA, registry.Profiled)
	if rec.Name != "web" || rec.CgroupPath != "/machine.slice/libpod-"+idA+".scope" || rec.PID != 101 || rec.User != "" || rec.Runtime != "podman" {
		t.Errorf("record %+v", rec)
	}
	m.container(200, 1000, idB, "db", userSlice+"/libpod-"+idB+".scope")
	m.write("run/user/1000/libpod/tmp/alive", "") // a user logs in
	rec = b.State(idB, registry.Profiled)
	if rec.Name != "db" || rec.User != "1000" || rec.Sources["podman:1000"].IsZero() {
		t.Errorf("record %+v", rec)
	}
	sourcetest.Eventually(t, "it is connected", func() bool { return b.source.Status().Connected })
	m.end(200)
	b.State(idB, registry.Gone)
	b.State(idA, registry.Profiled)
	m.end(100)
	b.State(idA, registry.Gone)
}

// A hint is enough, also about a user who was not known.
func TestAHintIsFollowed(t *testing.T) {
	m := newMachine(t)
	p := m.source()
	b := newBench(t, p)
	b.run()
	b.WaitSynced(t.Context(), 1, 20*time.Second)
	m.container(200, 1000, idB, "db", userSlice+"/libpod-"+idB+".scope")
	p.Hint(container.Container{ID: idB, Runtime: "docker"}) // not ours
	p.Hint(container.Container{ID: idB, Runtime: "podman"})
	b.State(idB, registry.Profiled)
}

// What a user says is about that user's containers.
func TestAUserCannotSpeakForOthers(t *testing.T) {
	m := newMachine(t)
	p := m.source()
	b := newBench(t, p)
	// Root's container of Docker, which the user would like to be called otherwise, or to be taken out of scope.
	docker := "/system.slice/docker-" + idA + ".scope"
	if err := os.MkdirAll(m.path("cgroup"+docker), 0o755); err != nil {
		t.Fatal(err)
	}
	cgroup, err := m.hierarchy().ID(docker)
	if err != nil {
		t.Fatal(err)
	}
	b.Apply(container.Event{Type: container.Upsert, Source: "docker", Complete: true, At: time.Now(),
		Container: container.Container{ID: idA, Runtime: "docker", Name: "right", CgroupPath: docker, CgroupID: cgroup}})
	m.write("run/user/1000/libpod/tmp/alive", "")
	m.container(200, 1000, idA, "wrong", docker)                            // in its cgroup, which no kernel would allow
	m.container(300, 1000, idA, "wrong", userSlice+"/libpod-"+idA+".scope") // under its id, in a cgroup of the user's own
	m.container(400, 1000, idA, "wrong", userSlice+"/session.scope")        // under its id, without a cgroup
	m.container(500, 1000, idB, "own", userSlice+"/libpod-"+idB+".scope")
	// Whoever is root in a container may call a process conmon.
	inside := strings.Repeat("c3", 32)
	m.process(600, 1, 0, "conmon", docker+"/sub", cmdline(inside, "inside"), 601)
	m.process(601, 600, 0, "sleep", "/machine.slice/libpod-"+inside+".scope", nil)
	// Or in another pid namespace.
	foreign := strings.Repeat("d4", 32)
	m.container(700, 0, foreign, "foreign", "/machine.slice/libpod-"+foreign+".scope")
	if err := os.Remove(m.path("proc/700/ns/pid")); err != nil {
		t.Fatal(err)
	}
	m.link("proc/700/ns/pid", "pid:[2]")
	b.run()
	b.State(idB, registry.Profiled)
	p.Hint(container.Container{ID: inside, Runtime: "podman"})
	p.Hint(container.Container{ID: foreign, Runtime: "podman"})
	time.Sleep(100 * time.Millisecond) // some looks; what must not happen has no end to wait for
	seen := false
	for _, rec := range b.List() {
		switch {
		case rec.ID == inside || rec.ID == foreign:
			t.Errorf("record %+v", rec)
		case rec.ID == idA && rec.User == "":
			seen = true
			if rec.Name != "right" || rec.Runtime != "docker" || rec.CgroupID != cgroup || rec.State != registry.Profiled || !b.Scopes.Has(cgroup) {
				t.Errorf("record %+v", rec)
			}
		case rec.ID == idA && rec.CgroupID == cgroup:
			t.Errorf("a user has another's cgroup: %+v", rec)
		}
	}
	if !seen {
		t.Error("the container of Docker is gone")
	}
}

// systemd would start a service for whoever connects.
func TestASocketThatWouldStartPodman(t *testing.T) {
	m := newMachine(t)
	for _, uid := range []uint32{0, 1000} {
		c := newClient(Config{Hierarchy: m.hierarchy(), Log: m.source().cfg.Log, run: m.path("run")}, uid, "", newProcesses(m.hierarchy()), &counts{})
		if c.serving() {
			t.Error("there is no socket")
		}
		if err := os.MkdirAll(filepath.Dir(c.address), 0o755); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", short(t, c.address))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if !c.serving() {
			t.Errorf("a service that somebody started is there: %s", c.address)
		}
		if uid != 0 { // a service manager of the user runs and shows no units
			m.write("run/user/1000/systemd/private", "")
			if c.serving() {
				t.Error("who listens is not known")
			}
		}
		units := strings.TrimPrefix(c.units, m.dir+"/")
		m.link(units+"/invocation:podman.socket", "0123")
		if c.serving() {
			t.Error("systemd listens")
		}
	}
}

// short gives a path that is short enough for a socket by going through the working directory.
func short(t *testing.T, path string) string {
	t.Helper()
	if len(path) < 100 {
		return path
	}
	t.Chdir(filepath.Dir(path))
	return filepath.Base(path)
}

// service is one that answers as told.
type service struct {
	mu     sync.Mutex // protects handle
	handle func(http.ResponseWriter, *http.Request) bool
}

func (s *service) set(handle func(http.ResponseWriter, *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handle = handle
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	handle := s.handle
	s.mu.Unlock()
	w.Header().Set("Libpod-Api-Version", "5.2.1")
	if handle != nil && handle(w, r) {
		return
	}
	switch r.URL.Path {
	case "/libpod/_ping":
		fmt.Fprint(w, "OK")
	case "/v5.2.1/libpod/events":
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	case "/v5.2.1/libpod/containers/json":
		fmt.Fprintf(w, `[{"Id":%q,"Names":["web"],"Image":"img:1","Labels":{"team":"blue"},"Created":"2026-11-25T04:41:24Z"}]`, idA)
	default:
		http.Error(w, "asked for what may block or change something: "+r.URL.Path, http.StatusNotFound)
	}
}

// Whatever listens, containers are found and have their names; when a real service answers, labels come from it.
func TestAServiceThatIsNotOne(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	for name, handle := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"garbage": func(w http.ResponseWriter, r *http.Request) bool {
			fmt.Fprint(w, "\x00\xff garbage\n{]")
			return true
		},
		"another version": func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Libpod-Api-Version", "../../x")
			fmt.Fprint(w, "OK")
			return true
		},
		"100 MB of a list": func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/json") {
				return false
			}
			fmt.Fprint(w, "[")
			for range 100 {
				if _, err := w.Write([]byte(strings.Repeat(" ", 1<<20))); err != nil {
					break
				}
			}
			return true
		},
		"100 MB of an event": func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/events") {
				return false
			}
			for range 100 {
				if _, err := w.Write([]byte(strings.Repeat("x", 1<<20))); err != nil {
					break
				}
			}
			return true
		},
		"refuses": func(w http.ResponseWriter, r *http.Request) bool {
			http.Error(w, "no", http.StatusForbidden)
			return true
		},
		"sends us elsewhere": func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
			return true
		},
		"hangs": func(w http.ResponseWriter, r *http.Request) bool {
			select {
			case <-hang:
			case <-r.Context().Done():
			}
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			sockets, err := os.MkdirTemp("", "podman-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(sockets) })
			address := filepath.Join(sockets, "s")
			l, err := net.Listen("unix", address)
			if err != nil {
				t.Fatal(err)
			}
			s := &service{handle: handle}
			server := &http.Server{Handler: s}
			go server.Serve(l)
			t.Cleanup(func() { server.Close() })
			uid := owner(address)
			p := m.source(address)
			tune := p.tune
			p.tune = func(c *client) {
				tune(c)
				c.times.call, c.times.list, c.times.again, c.times.answer, c.times.event = 300*time.Millisecond, 300*time.Millisecond, 50*time.Millisecond, 1<<20, 1<<16
				c.loop.Times.MaxBackoff = 20 * time.Millisecond
			}
			b := newBench(t, p)
			cgroup := "/machine.slice/libpod-" + idA + ".scope"
			if uid != 0 {
				cgroup = fmt.Sprintf("/user.slice/user-%d.slice/libpod-%s.scope", uid, idA)
			}
			m.container(100, uid, idA, "web", cgroup)
			b.run()
			rec := b.Until(idA, "it is named", func(rec registry.Record) bool { return rec.Name == "web" && rec.CgroupID != 0 })
			if len(rec.Labels) > 0 && name != "100 MB of an event" { // its list is good
				t.Errorf("record %+v", rec)
			}
			s.set(nil)
			b.Until(idA, "it has its labels", func(rec registry.Record) bool { return rec.Labels["team"] == "blue" && rec.Image == "img:1" })
		})
	}
}

func TestAddresses(t *testing.T) {
	if _, err := Sources(Config{Addresses: []string{"tcp://1.2.3.4:1", "relative.sock"}}); err == nil || strings.Count(err.Error(), "absolute path") != 2 {
		t.Errorf("error %v", err)
	}
	sources, err := Sources(Config{Addresses: []string{"unix:///run/podman/podman.sock"}})
	if err != nil || len(sources) != 1 || sources[0].Name() != "podman" {
		t.Errorf("%v, %v", sources, err)
	}
	if uid := owner("/run/user/4294967294/nowhere/podman.sock"); uid != 4294967294 {
		t.Errorf("a user's socket is user %d's", uid)
	}
}

// What hangs does not hold up the loop or the end.
func TestReadingThatHangs(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	gate := make(chan struct{})
	defer close(gate)
	if _, ok := within(ctx, time.Minute, func(context.Context) (int, bool) { <-gate; return 1, true }); ok {
		t.Error("it has an answer")
	}
	if v, ok := within(t.Context(), time.Minute, func(context.Context) (int, bool) { return 1, true }); !ok || v != 1 {
		t.Error("it has none")
	}
}
