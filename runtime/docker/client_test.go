package docker

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/internal/sourcetest"
	"github.com/stoker-profiler/stoker/runtime/registry"
)

// quick shortens a client's times.
func quick(c *Client) *Client {
	c.loop.Times.MinBackoff, c.loop.Times.AbsentEvery, c.loop.Times.SecondList = 5*time.Millisecond, 5*time.Millisecond, 20*time.Millisecond
	c.user = func(net.Conn) (string, error) { return "", nil } // these tests run as anybody
	return c
}

// Whose the engine is, is what the kernel says about the other end of its socket.
func TestARootlessEnginesContainersAreItsUsers(t *testing.T) {
	f := newFake(t)
	f.start()
	c := quick(NewClient("docker", f.socket(), nil))
	conn, err := net.Dial("unix", f.socket())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	want := ""
	if uid := os.Getuid(); uid != 0 {
		want = strconv.Itoa(uid)
	}
	if got, err := userOf(conn); err != nil || got != want {
		t.Errorf("the fake engine belongs to %q (%v), want %q", got, err, want)
	}
	c.user = func(net.Conn) (string, error) { return "1000", nil }
	b := newBench(t, c)
	b.fake = f
	id := idOf(5)
	f.has(id, "rootless", "running", nil)
	b.run()
	b.synced()
	b.emit(container.Event{Type: container.Upsert, Source: "cgroup", Inferred: true, Container: container.Container{ID: id, Runtime: "docker", CgroupID: 5,
		CgroupPath: "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-" + id + ".scope"}})
	if rec := b.State(id, registry.Profiled); rec.User != "1000" || rec.Name != "rootless" || len(b.All(id)) != 1 {
		t.Errorf("record %+v", rec)
	}
}

func started(t *testing.T) (*fake, *bench) {
	t.Helper()
	f := newFake(t)
	f.start()
	b := newBench(t, quick(NewClient("docker", f.socket(), nil)))
	b.fake = f
	return f, b
}

func TestWhatDockerHasIsTold(t *testing.T) {
	f, b := started(t)
	f.has(idOf(1), "web", "running", map[string]string{"team": "blue", "com.docker.compose.project": "shop", "com.docker.compose.service": "api"})
	f.has(idOf(2), "old", "exited", nil)
	f.has(idOf(3), "new", "created", nil)
	b.run()
	b.synced()
	rec := b.State(idOf(1), registry.Waiting) // it has no cgroup: that is for others to say
	if rec.Name != "web" || rec.Image != "img:web" || rec.Runtime != "docker" || !rec.Described || rec.CreatedAt.IsZero() || rec.Labels["team"] != "blue" ||
		rec.Labels["com.docker.compose.project"] != "shop" || rec.Labels["com.docker.compose.service"] != "api" || len(rec.Labels) != 3 {
		t.Errorf("record %+v", rec)
	}
	if rec := b.State(idOf(3), registry.Waiting); rec.Labels == nil {
		t.Errorf("that it has no labels is known: %+v", rec)
	}
	if _, ok := b.Find(idOf(2)); ok {
		t.Error("a container that has ended is listed")
	}

	// Then what changes.
	f.create(idOf(4), "later", map[string]string{"a": "b"})
	rec = b.State(idOf(4), registry.Waiting)
	f.startContainer(idOf(4))
	rec = b.heard(idOf(4), rec)
	if !rec.StartedAt.IsZero() {
		t.Errorf("Docker's start is later than the real one: %v", rec.StartedAt)
	}
	if rec.Name != "later" || rec.Labels["a"] != "b" || len(rec.Labels) != 1 || rec.Image != "img:later" {
		t.Errorf("record %+v", rec)
	}
	f.die(idOf(4))
	b.State(idOf(4), registry.Gone)
	f.destroy(idOf(3)) // never started
	b.State(idOf(3), registry.Gone)
	f.with(func() {
		for _, p := range f.paths {
			if p != "/_ping" && p != "/v1.41/events" && p != "/v1.41/containers/json" {
				t.Errorf("asked for %s", p)
			}
		}
	})
}

// The version is what both sides know, whatever the engine's oldest and newest are.
func TestTheVersionOfTheAPIIsNegotiated(t *testing.T) {
	for _, engine := range []struct{ minimum, version string }{{"1.12", "1.40"}, {"1.12", "1.41"}, {"1.44", "1.52"}, {"1.40", "1.55"}, {"1.44", "1.99"}} {
		t.Run(engine.version, func(t *testing.T) {
			f, b := started(t)
			f.minimum, f.version = engine.minimum, engine.version
			f.has(idOf(1), "web", "running", nil)
			b.run()
			b.synced()
			b.State(idOf(1), registry.Waiting)
			// Another engine takes its place: a restart after an upgrade.
			f.stop()
			f.with(func() { f.minimum, f.version = "1.44", "1.50" })
			f.start()
			f.has(idOf(2), "db", "running", nil)
			b.State(idOf(2), registry.Waiting)
			f.with(func() {
				if !strings.HasPrefix(f.paths[len(f.paths)-1], "/v1.50/") && f.paths[len(f.paths)-1] != "/_ping" {
					t.Errorf("the last question was %s", f.paths[len(f.paths)-1])
				}
			})
		})
	}
}

func TestARenameIsTold(t *testing.T) {
	f, b := started(t)
	labels := map[string]string{"oldName": "kept", "name": "of the image", "image": "too", "x": "y"}
	f.create(idOf(1), "one", labels)
	b.run()
	b.synced()
	f.startContainer(idOf(1))
	full := func(rec registry.Record) bool { return maps.Equal(rec.Labels, labels) }
	b.Until(idOf(1), "it is known with the labels that events lose", full)
	b.containerd(container.Upsert, idOf(1), 100, 1000)
	f.with(func() { f.containers[idOf(1)].Names = []string{"/two"} })
	f.publish("rename", idOf(1), map[string]string{"oldName": "/one"})
	rec := b.Until(idOf(1), "the new name is known", func(rec registry.Record) bool { return rec.Name == "two" })
	if rec.State != registry.Profiled || rec.Labels["oldName"] != "kept" || rec.Labels["name"] != "of the image" {
		t.Errorf("record %+v", rec)
	}
}

// Whoever speaks first, one run is one record, in scope, with the names; and a restart is another.
func TestThreeSourcesMakeOneRecord(t *testing.T) {
	for name, order := range map[string][]string{
		"containerd first": {"containerd", "create", "start", "scan"},
		"docker first":     {"create", "containerd", "scan", "start"},
		"scan first":       {"scan", "containerd", "create", "start"},
		"start late":       {"create", "scan", "containerd", "start"},
		"no containerd":    {"create", "start", "scan"},
		"no scan":          {"create", "containerd", "start"},
	} {
		t.Run(name, func(t *testing.T) {
			f, b := started(t)
			b.run()
			b.synced()
			id := idOf(7)
			said := map[string]func(cgroup uint64){
				"containerd": func(cgroup uint64) { b.containerd(container.Upsert, id, int(cgroup)+5, cgroup) },
				"scan":       func(cgroup uint64) { b.scan(container.Upsert, id, cgroup) },
				"create": func(uint64) {
					f.create(id, "web", map[string]string{"team": "blue"})
					b.Until(id, "its name is known", func(rec registry.Record) bool { return rec.Name == "web" })
				},
				"start": func(uint64) {
					rec, _ := b.Find(id)
					f.startContainer(id)
					b.heard(id, rec)
				},
			}
			for _, who := range order {
				said[who](1000)
			}
			rec := b.State(id, registry.Profiled)
			if len(b.All(id)) != 1 || !b.Scopes.Has(1000) || rec.CgroupID != 1000 || rec.Labels["team"] != "blue" || rec.Image != "img:web" || rec.Runtime != "docker" {
				t.Errorf("%d records; %+v", len(b.All(id)), rec)
			}
			ended := map[string]func(){
				"containerd": func() { b.containerd(container.Gone, id, 1005, 1000) },
				"scan":       func() { b.scan(container.Gone, id, 1000) },
				"create":     func() { f.die(id) },
			}
			for _, who := range order {
				if end := ended[who]; end != nil {
					end()
				}
			}
			b.State(id, registry.Gone)
			sourcetest.Eventually(t, "it is out of scope", func() bool { return !b.Scopes.Has(1000) })
			for _, who := range order {
				if who != "create" {
					said[who](2000)
				}
			}
			rec = b.State(id, registry.Profiled)
			if len(b.All(id)) != 2 || rec.CgroupID != 2000 || rec.Name != "web" || rec.Labels["team"] != "blue" {
				t.Errorf("after a restart: %d records; %+v", len(b.All(id)), rec)
			}
		})
	}
}

// What an engine that was away has missed to tell is found by comparing.
func TestAnEngineThatRestarts(t *testing.T) {
	f, b := started(t)
	f.has(idOf(1), "stays", "running", nil)
	f.has(idOf(2), "dies", "running", nil)
	b.run()
	b.synced()
	b.State(idOf(2), registry.Waiting)
	f.stop()
	sourcetest.Eventually(t, "the loss is noticed", func() bool { return !b.client.Status().Connected })
	if st := b.client.Status(); st.Absent || !strings.Contains(st.Err, f.socket()) {
		t.Errorf("status %+v", st)
	}
	f.has(idOf(2), "dies", "exited", nil)
	f.has(idOf(3), "new", "running", nil)
	f.start()
	b.synced()
	b.State(idOf(1), registry.Waiting)
	b.State(idOf(2), registry.Gone)
	b.State(idOf(3), registry.Waiting)
}

// Events that were skipped, or thrown away because we were busy, are made good.
func TestTooManyEventsAtOnce(t *testing.T) {
	f, b := started(t)
	b.client.loop.Queue = 4
	b.run()
	b.synced()
	b.hold.Lock()
	const n = 200
	for i := range n {
		f.create(idOf(i+1), fmt.Sprint("c", i), nil)
		f.startContainer(idOf(i + 1))
	}
	for i := range n / 2 {
		f.die(idOf(i + 1))
	}
	sourcetest.Eventually(t, "events are thrown away", func() bool { return b.client.Stats().Overflows > 0 })
	b.hold.Unlock()
	for i := n / 2; i < n; i++ {
		b.State(idOf(i+1), registry.Waiting)
	}
	sourcetest.Eventually(t, "those that have ended are gone", func() bool {
		for i := range n / 2 {
			if rec, ok := b.Find(idOf(i + 1)); ok && rec.State != registry.Gone {
				return false
			}
		}
		return true
	})
}

func TestNoDocker(t *testing.T) {
	f := newFake(t)
	c := quick(NewClient("docker", f.socket(), nil))
	c.loop.Optional = true
	b := newBench(t, c)
	b.fake = f
	b.run()
	if !b.WaitSynced(t.Context(), 1, 20*time.Second) {
		t.Fatal("who waits for the first list waits for ever")
	}
	sourcetest.Eventually(t, "the status says so", func() bool { return b.client.Status().Absent })
	if st := b.client.Status(); st.Connected || !strings.Contains(st.Err, "runtimes.docker.address") {
		t.Errorf("status %+v", st)
	}
	f.has(idOf(1), "web", "running", nil)
	f.start() // it appears
	b.synced()
	b.State(idOf(1), registry.Waiting)
}

// A socket that a person named and that is not there is trouble.
func TestNoDockerWhereThereShouldBeOne(t *testing.T) {
	f := newFake(t)
	sources, err := Sources(Config{Addresses: []string{"unix://" + f.socket(), "/run/two.sock"}})
	if err != nil || len(sources) != 2 || sources[0].Name() != "docker" || sources[1].Name() != "docker:/run/two.sock" {
		t.Fatalf("sources %v, error %v", sources, err)
	}
	b := newBench(t, quick(sources[0].(*Client)))
	b.run()
	sourcetest.Eventually(t, "the status says so", func() bool { return b.client.Status().Err != "" })
	if st := b.client.Status(); st.Absent || !strings.Contains(st.Err, "no Docker at "+f.socket()) {
		t.Errorf("status %+v", st)
	}
	if _, err := Sources(Config{Addresses: []string{"tcp://1.2.3.4:2375", "relative.sock"}}); err == nil || strings.Count(err.Error(), "absolute path") != 2 {
		t.Errorf("error %v", err)
	}
}

// Where systemd listens and Docker does not run, connecting would start it.
func TestASocketThatWouldStartDocker(t *testing.T) {
	units := t.TempDir()
	c := NewClient("docker", DefaultAddress, nil)
	c.units = units
	link := func(unit string) {
		if err := os.Symlink("0123", filepath.Join(units, "invocation:"+unit)); err != nil {
			t.Fatal(err)
		}
	}
	if c.dormant() {
		t.Error("without systemd nothing is dormant")
	}
	link("docker.socket")
	if !c.dormant() {
		t.Error("the socket's unit alone is active")
	}
	if other := NewClient("docker", "/run/other.sock", nil); other.usual() || other.root != "" {
		t.Error("another socket is not systemd's, and its files are not the usual ones")
	}
	c.loop.Optional = true
	b := newBench(t, quick(c))
	b.run()
	sourcetest.Eventually(t, "the status says so", func() bool { return strings.Contains(b.client.Status().Err, "would start Docker") })
	if !b.client.Status().Absent || b.client.Stats().Connects != 0 {
		t.Errorf("status %+v", b.client.Status())
	}
	link("docker.service")
	if c.dormant() {
		t.Error("Docker runs")
	}
}

// hang answers nothing until the test ends.
func hang(t *testing.T, which string) func(http.ResponseWriter, *http.Request) bool {
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	return func(_ http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, which) {
			return false
		}
		select {
		case <-done:
		case <-r.Context().Done():
		}
		return true
	}
}

func TestAnEngineThatHangs(t *testing.T) {
	for _, which := range []string{"/_ping", "/events", "/json"} {
		t.Run(which[1:], func(t *testing.T) {
			f, b := started(t)
			b.client.times.call, b.client.times.list = 300*time.Millisecond, 300*time.Millisecond
			f.has(idOf(1), "web", "running", nil)
			f.handle = hang(t, which)
			b.run()
			sourcetest.Eventually(t, "the hang is said", func() bool { return strings.Contains(b.client.Status().Err, "does not answer") })
			f.with(func() { f.handle = nil })
			b.synced()
			b.State(idOf(1), registry.Waiting)
		})
	}
}

func TestAnEngineThatLies(t *testing.T) {
	endless := func(w http.ResponseWriter, start, part string) {
		fmt.Fprint(w, start)
		for {
			if _, err := fmt.Fprint(w, part); err != nil {
				return
			}
		}
	}
	long := strings.Repeat("x", 1000)
	for name, c := range map[string]struct {
		path   string
		answer func(w http.ResponseWriter)
		want   string
	}{
		"endless list":      {"/containers/json", func(w http.ResponseWriter) { endless(w, `[{"Id":"`, long) }, "longer than any"},
		"endless objects":   {"/containers/json", func(w http.ResponseWriter) { endless(w, `[{}`, `,{"Id":"`+long+`"}`) }, "longer than any"},
		"endless event":     {"/events", func(w http.ResponseWriter) { endless(w, `{"Type":"`, long) }, "longer than any"},
		"endless header":    {"/_ping", func(w http.ResponseWriter) { w.Header().Set("X", strings.Repeat(long, 200)) }, "look into its log"},
		"garbage list":      {"/containers/json", func(w http.ResponseWriter) { fmt.Fprint(w, "\x00\xff<html>") }, "look into its log"},
		"another type":      {"/containers/json", func(w http.ResponseWriter) { fmt.Fprint(w, `{"Id":3}`) }, "look into its log"},
		"garbage events":    {"/events", func(w http.ResponseWriter) { fmt.Fprint(w, "\x00\xff<html>\n") }, "look into its log"},
		"deep events":       {"/events", func(w http.ResponseWriter) { fmt.Fprint(w, strings.Repeat("[", 100_000)) }, "look into its log"},
		"an error":          {"/containers/json", func(w http.ResponseWriter) { refuse(w, 500, "broken") }, "broken"},
		"an error, unnamed": {"/events", func(w http.ResponseWriter) { w.WriteHeader(503) }, "503"},
		"an ancient engine": {"/_ping", func(w http.ResponseWriter) { w.Header().Set("Api-Version", "1.12"); fmt.Fprint(w, "OK") }, "1.12"},
		"no version":        {"/_ping", func(w http.ResponseWriter) { w.Header().Set("Api-Version", "x.y"); fmt.Fprint(w, "OK") }, "look into its log"},
	} {
		t.Run(name, func(t *testing.T) {
			f, b := started(t)
			b.client.times.answer, b.client.times.event = 1<<20, 1<<16
			f.has(idOf(1), "web", "running", nil)
			f.handle = func(w http.ResponseWriter, r *http.Request) bool {
				if strings.HasSuffix(r.URL.Path, c.path) {
					c.answer(w)
					return true
				}
				return false
			}
			b.run()
			sourcetest.Eventually(t, "the status says so", func() bool { return strings.Contains(b.client.Status().Err, c.want) })
			f.with(func() { f.handle = nil })
			b.synced() // it recovers
			b.State(idOf(1), registry.Waiting)
		})
	}
}

// Events and containers that cannot be are counted and do not get in the way of others.
func TestNonsenseAmongEvents(t *testing.T) {
	f, b := started(t)
	b.client.loop.Times.SecondList = time.Hour // which does not have what only events tell
	f.has(idOf(1), "web", "running", nil)
	f.has("not-an-id", "odd", "running", nil)
	b.run()
	b.synced()
	f.line(`{"Type":"container","Action":"start","Actor":{"ID":".*"}}` + "\n")
	f.line(`{"Type":"network","Action":"create","Actor":{"ID":"` + idOf(9) + `"}}` + "\n")
	f.line(`{"Type":"container","Action":"exec_die","Actor":{"ID":"` + idOf(1) + `"}}` + "\n")
	f.line(`{"Type":"container","Action":"start","timeNano":-5,"Actor":{"ID":"` + idOf(2) + `","Attributes":{"name":"bare","l":"\ud800` + strings.Repeat("y", 64<<10) + `"}}}` + "\n")
	// From before, and from far in the future.
	f.line(`{"Type":"container","Action":"die","timeNano":9000000000000000000,"Actor":{"ID":"` + idOf(3) + `"}}` + "\n")
	f.create(idOf(4), "last", nil)
	b.State(idOf(4), registry.Waiting)
	if rec := b.State(idOf(2), registry.Waiting); rec.Name != "bare" {
		t.Errorf("record %+v", rec)
	}
	if n := b.client.Stats().Malformed; n < 3 {
		t.Errorf("%d were counted, want the id in the list and two events", n)
	}
	if _, ok := b.Find("not-an-id"); ok {
		t.Error("a container with an id that cannot be is listed")
	}
	b.State(idOf(1), registry.Waiting)
	if b.client.Counts()["malformed"] != b.client.Stats().Malformed {
		t.Error("Counts and Stats differ")
	}
}

// An answer that was asked for before a container's end does not bring it back.
func TestAnAnswerThatIsOvertaken(t *testing.T) {
	f, b := started(t)
	b.run()
	b.synced()
	release := make(chan struct{})
	asked := make(chan struct{}, 100)
	f.with(func() {
		f.handle = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/json") || !strings.Contains(r.URL.RawQuery, idOf(1)) {
				return false
			}
			asked <- struct{}{}
			<-release
			json.NewEncoder(w).Encode([]summary{{ID: idOf(1), Names: []string{"/web"}, State: "running", Image: "img:web"}})
			return true
		}
	})
	f.create(idOf(1), "web", nil)
	<-asked
	f.destroy(idOf(1))
	b.State(idOf(1), registry.Gone)
	close(release)
	f.create(idOf(2), "after", nil)
	b.State(idOf(2), registry.Waiting)
	b.State(idOf(1), registry.Gone)
}

// A rename that overtakes an answer stays, whichever answer it is; one of a container that does not run brings nothing to life.
func TestARenameThatOvertakesAnAnswer(t *testing.T) {
	for _, which := range []string{"status", "id"} { // the list of all, and the question about one
		t.Run(which, func(t *testing.T) {
			f, b := started(t)
			f.has(idOf(1), "one", "running", nil)
			f.has(idOf(2), "stopped", "exited", nil)
			if which == "status" {
				b.client.loop.Times.ListEvery = 20 * time.Millisecond
			}
			b.run()
			b.synced()
			b.State(idOf(1), registry.Waiting)
			sourcetest.Eventually(t, "the second list was made", func() bool { return b.client.Stats().Lists > 1 })
			id := idOf(1)
			if which == "id" {
				id = idOf(3)
			}
			release, asked := make(chan struct{}), make(chan struct{})
			f.with(func() {
				f.handle = func(w http.ResponseWriter, r *http.Request) bool {
					if !strings.Contains(r.URL.Query().Get("filters"), `"`+which+`"`) {
						return false
					}
					f.with(func() { f.handle = nil })
					close(asked)
					<-release
					json.NewEncoder(w).Encode([]summary{{ID: id, Names: []string{"/one"}, Labels: map[string]string{"answer": "held"}, State: "running"}})
					return true
				}
			})
			if which == "id" {
				f.create(id, "one", nil)
			}
			<-asked
			f.with(func() { f.containers[id].Names = []string{"/two"} })
			f.publish("rename", id, map[string]string{"oldName": "/one"})
			f.publish("rename", idOf(2), map[string]string{"oldName": "/x"})
			b.Until(id, "it has its new name", func(rec registry.Record) bool { return rec.Name == "two" })
			// What the answer brings is seen one moment or for good; the name of before is not.
			b.hold.Lock()
			b.check = func(e container.Event) {
				if e.Container.ID == id && e.Container.Name == "one" {
					t.Error("the old name came back")
				}
			}
			b.hold.Unlock()
			close(release)
			f.create(idOf(5), "after", nil)
			b.State(idOf(5), registry.Waiting)
			sourcetest.Eventually(t, "the answer was taken", func() bool { b.hold.Lock(); defer b.hold.Unlock(); return b.held })
			if _, ok := b.Find(idOf(2)); ok {
				t.Error("a container that does not run is listed")
			}
		})
	}
}

// notes writes what an engine notes about a container.
func notes(t *testing.T, root, id, name string, state map[string]any, labels map[string]string) {
	t.Helper()
	dir := filepath.Join(root, "containers", id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(map[string]any{"ID": id, "Name": "/" + name, "Created": time.Now(), "State": state,
		"Config": map[string]any{"Image": "img:" + name, "Labels": labels, "Env": []string{"OTEL_SERVICE_NAME=svc", "PASSWORD=x"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.v2.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// An authorization plugin forbids the API: names come from the engine's files, until it answers.
func TestARefusalIsMadeGoodFromFiles(t *testing.T) {
	for _, which := range []string{"/_ping", "/events", "/json"} {
		t.Run(which[1:], func(t *testing.T) {
			f, b := started(t)
			root := t.TempDir()
			b.client.root, b.client.loop.Times.IdleEvery = root, 5*time.Millisecond
			running := map[string]any{"Running": true, "Pid": 1, "StartedAt": time.Now()}
			notes(t, root, idOf(1), "web", running, map[string]string{"com.docker.compose.service": "api"})
			notes(t, root, idOf(2), "starting", map[string]any{"Pid": 0}, nil)
			notes(t, root, idOf(3), "ended", map[string]any{"StartedAt": time.Now(), "FinishedAt": time.Now()}, nil)
			notes(t, root, "short", "odd", running, nil)
			if err := os.MkdirAll(filepath.Join(root, "containers", idOf(4)), 0o700); err != nil {
				t.Fatal(err)
			}
			notes(t, root, idOf(5), "torn", running, nil)
			if err := os.WriteFile(filepath.Join(root, "containers", idOf(5), "config.v2.json"), []byte(`{"ID":`), 0o600); err != nil {
				t.Fatal(err)
			}
			f.handle = func(w http.ResponseWriter, r *http.Request) bool {
				if strings.HasSuffix(r.URL.Path, which) {
					refuse(w, http.StatusForbidden, "authorization denied by plugin x: no")
					return true
				}
				return false
			}
			b.run()
			rec := b.Until(idOf(1), "it is known", func(rec registry.Record) bool { return rec.Env != nil })
			if rec.Name != "web" || rec.Image != "img:web" || rec.Labels["com.docker.compose.service"] != "api" || len(rec.Env) != 1 || rec.Env["OTEL_SERVICE_NAME"] != "svc" || !rec.Described {
				t.Errorf("record %+v", rec)
			}
			b.State(idOf(2), registry.Waiting)
			sourcetest.Eventually(t, "the refusal is said", func() bool {
				st := b.client.Status()
				return !st.Connected && strings.Contains(st.Err, "authorization plugin") && strings.Contains(st.Err, root)
			})
			if len(b.All(idOf(3)))+len(b.All("short"))+len(b.All(idOf(4)))+len(b.All(idOf(5))) != 0 {
				t.Error("a container that does not run, or is not one, is listed")
			}
			if b.client.Stats().FileErrors == 0 {
				t.Error("a torn file is not counted")
			}
			// Files change.
			notes(t, root, idOf(6), "later", running, nil)
			b.State(idOf(6), registry.Waiting)
			if err := os.RemoveAll(filepath.Join(root, "containers", idOf(6))); err != nil {
				t.Fatal(err)
			}
			b.State(idOf(6), registry.Gone)
			// It answers after all, and knows better.
			f.has(idOf(7), "listed", "running", nil)
			f.with(func() { f.handle = nil })
			b.synced()
			b.State(idOf(7), registry.Waiting)
			b.State(idOf(1), registry.Gone)
		})
	}
}

func TestTheRootOfTheEnginesFiles(t *testing.T) {
	c := NewClient("docker", DefaultAddress, nil)
	c.config = filepath.Join(t.TempDir(), "daemon.json")
	if c.dataRoot() != DefaultRoot {
		t.Error("without a configuration it is the usual one")
	}
	for text, want := range map[string]string{`{"data-root":"/srv/docker"}`: "/srv/docker", `{"graph":"/old"}`: "/old", `{}`: DefaultRoot, `{`: DefaultRoot} {
		if err := os.WriteFile(c.config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := c.dataRoot(); got != want {
			t.Errorf("%s gives %s, want %s", text, got, want)
		}
	}
}

func TestARefusalWithoutFiles(t *testing.T) {
	f, b := started(t)
	b.client.root = filepath.Join(t.TempDir(), "none")
	f.handle = func(w http.ResponseWriter, _ *http.Request) bool { refuse(w, 403, "no"); return true }
	b.run()
	sourcetest.Eventually(t, "both are said", func() bool {
		st := b.client.Status()
		return strings.Contains(st.Err, "authorization plugin") && strings.Contains(st.Err, "its files cannot be read")
	})
	if !b.WaitSynced(t.Context(), 1, 20*time.Second) {
		t.Error("who waits for the first list waits for ever")
	}
}

// cri-dockerd's containers are known as their pod's.
func TestPodsOfCRIDockerd(t *testing.T) {
	f, b := started(t)
	pod := map[string]string{labelPodName: "web-0", labelPodNamespace: "shop", labelPodUID: "u", labelContainerName: "main", labelType: "container"}
	f.has(idOf(1), "k8s_main_web-0", "running", pod)
	f.has(idOf(2), "k8s_POD_web-0", "running", map[string]string{labelPodName: "web-0", labelType: "podsandbox"})
	b.run()
	b.synced()
	rec := b.State(idOf(1), registry.Waiting)
	if rec.Pod.Name != "web-0" || rec.Pod.Namespace != "shop" || rec.Pod.UID != "u" || rec.KubernetesContainer != "main" {
		t.Errorf("record %+v", rec)
	}
	if _, ok := b.Find(idOf(2)); ok {
		t.Error("the pause container is listed")
	}
}

func FuzzParseFile(f *testing.F) {
	f.Add([]byte(`{"ID":"` + idOf(1) + `","Name":"/web","State":{"Running":true},"Config":{"Image":"i","Labels":{"a":"b"},"Env":["A=b","OTEL_SERVICE_NAME=x"]}}`))
	f.Add([]byte(`{"ID":"` + idOf(1) + `","Config":{}}`))
	f.Add([]byte(`{"ID":"` + idOf(1) + `","Created":"x"}`))
	f.Add([]byte("[" + strings.Repeat("[", 1000)))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseFile(b, idOf(1))
		if err != nil {
			return
		}
		if got.c.ID != idOf(1) || got.c.Labels == nil || len(got.c.Env) > 2 {
			t.Errorf("%q gives %+v", b, got.c)
		}
	})
}
