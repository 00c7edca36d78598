package docker

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/internal/sourcetest"
	"github.com/stoker-profiler/stoker/runtime/registry"
)

// summary is one container as Docker lists it, written down from the API's reference.
type summary struct {
	ID      string            `json:"Id"`
	Names   []string          `json:"Names"`
	Image   string            `json:"Image"`
	Created int64             `json:"Created"`
	Labels  map[string]string `json:"Labels"`
	State   string            `json:"State"`
	Ports   []map[string]any  `json:"Ports"`
}

// fake is a Docker engine made of a map, on a real unix socket.
type fake struct {
	t      *testing.T
	dir    string
	server *http.Server

	mu          sync.Mutex
	minimum     string // oldest version of the API that it takes
	version     string // and newest
	containers  map[string]*summary
	subscribers map[chan string]bool
	handle      func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
	paths       []string
}

func newFake(t *testing.T) *fake {
	dir, err := os.MkdirTemp("", "stoker-fake-") // short: it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{t: t, dir: dir, minimum: "1.24", version: "1.41", containers: map[string]*summary{}, subscribers: map[chan string]bool{}}
	t.Cleanup(func() {
		f.stop()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *fake) socket() string { return filepath.Join(f.dir, "docker.sock") }

func (f *fake) start() {
	f.t.Helper()
	if err := os.RemoveAll(f.socket()); err != nil {
		f.t.Fatal(err)
	}
	l, err := net.Listen("unix", f.socket())
	if err != nil {
		f.t.Fatal(err)
	}
	f.server = &http.Server{Handler: f}
	go f.server.Serve(l)
}

func (f *fake) stop() {
	if f.server != nil {
		f.server.Close()
		f.server = nil
	}
}

// with changes the engine while nobody asks.
func (f *fake) with(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	handle, minimum, version := f.handle, f.minimum, f.version
	f.paths = append(f.paths, r.URL.Path)
	f.mu.Unlock()
	w.Header().Set("Api-Version", version)
	if handle != nil && handle(w, r) {
		return
	}
	path := r.URL.Path
	if rest, ok := strings.CutPrefix(path, "/v"); ok {
		asked, rest, _ := strings.Cut(rest, "/")
		if less(asked, minimum) || less(version, asked) {
			refuse(w, http.StatusBadRequest, fmt.Sprintf("client version %s is not supported: minimum %s, maximum %s", asked, minimum, version))
			return
		}
		path = "/" + rest
	}
	switch path {
	case "/_ping":
		fmt.Fprint(w, "OK")
	case "/containers/json":
		f.list(w, r)
	case "/events":
		f.events(w, r)
	default:
		f.t.Errorf("asked for %s, which may block or change something", r.URL)
		refuse(w, http.StatusNotFound, "page not found")
	}
}

func less(a, b string) bool {
	var x, y int
	fmt.Sscanf(a, "1.%d", &x)
	fmt.Sscanf(b, "1.%d", &y)
	return x < y
}

func refuse(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"message": message})
}

func (f *fake) list(w http.ResponseWriter, r *http.Request) {
	var filters map[string]map[string]bool
	if err := json.Unmarshal([]byte(r.URL.Query().Get("filters")), &filters); err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	f.mu.Lock()
	found := []*summary{}
	for id, s := range f.containers {
		if (filters["id"] == nil || filters["id"][id]) && (filters["status"] == nil || filters["status"][s.State]) {
			c := *s
			found = append(found, &c)
		}
	}
	f.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(found)
}

func (f *fake) events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	f.follow(w, r)
}

// follow sends lines as they come.
func (f *fake) follow(w http.ResponseWriter, r *http.Request) {
	w.(http.Flusher).Flush()
	ch := make(chan string, 10000)
	f.mu.Lock()
	f.subscribers[ch] = true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.subscribers, ch)
		f.mu.Unlock()
	}()
	for {
		select {
		case line := <-ch:
			if _, err := fmt.Fprint(w, line); err != nil {
				return
			}
			w.(http.Flusher).Flush()
		case <-r.Context().Done():
			return
		}
	}
}

// subscribed waits until events reach somebody.
func (f *fake) subscribed() {
	f.t.Helper()
	sourcetest.Eventually(f.t, "somebody has subscribed", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.subscribers) > 0
	})
}

func (f *fake) line(line string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for ch := range f.subscribers {
		ch <- line
	}
}

func (f *fake) publish(action, id string, more map[string]string) {
	f.mu.Lock()
	attributes := map[string]string{}
	if s := f.containers[id]; s != nil {
		for k, v := range s.Labels {
			attributes[k] = v
		}
		attributes["name"], attributes["image"] = strings.TrimPrefix(s.Names[0], "/"), s.Image
	}
	f.mu.Unlock()
	for k, v := range more {
		attributes[k] = v
	}
	now := time.Now()
	b, err := json.Marshal(map[string]any{"status": action, "id": id, "from": attributes["image"], "Type": "container", "Action": action,
		"Actor": map[string]any{"ID": id, "Attributes": attributes}, "scope": "local", "time": now.Unix(), "timeNano": now.UnixNano()})
	if err != nil {
		f.t.Fatal(err)
	}
	f.line(string(b) + "\n")
}

// has puts a container there and tells nobody.
func (f *fake) has(id, name, state string, labels map[string]string) {
	f.with(func() {
		f.containers[id] = &summary{ID: id, Names: []string{"/other/" + name, "/" + name}, Image: "img:" + name, Created: time.Now().Unix(), Labels: labels, State: state}
		f.containers[id].Names = f.containers[id].Names[1:]
	})
}

func (f *fake) create(id, name string, labels map[string]string) {
	f.has(id, name, "created", labels)
	f.publish("create", id, nil)
}

func (f *fake) startContainer(id string) {
	f.with(func() { f.containers[id].State = "running" })
	f.publish("start", id, nil)
}

func (f *fake) die(id string) {
	f.with(func() { f.containers[id].State = "exited" })
	f.publish("die", id, map[string]string{"exitCode": "0"})
}

func (f *fake) destroy(id string) {
	f.publish("destroy", id, nil)
	f.with(func() { delete(f.containers, id) })
}

// idOf makes an id as Docker's.
func idOf(n int) string { return fmt.Sprintf("%064x", n) }

// bench is a client that feeds a registry.
type bench struct {
	t      *testing.T
	client *Client
	fake   *fake // nil: a real Docker
	*sourcetest.Bench
	hold  sync.Mutex // held: emit waits; protects what follows
	check func(container.Event)
	held  bool // an event had the label answer=held
}

func newBench(t *testing.T, c *Client) *bench {
	b := &bench{t: t, client: c, Bench: sourcetest.New(t)}
	return b
}

func (b *bench) emit(e container.Event) {
	b.hold.Lock()
	defer b.hold.Unlock()
	if b.check != nil {
		b.check(e)
	}
	b.held = b.held || e.Container.Labels["answer"] == "held"
	b.Apply(e)
}

func (b *bench) run() {
	b.t.Helper()
	sourcetest.Run(b.t, b.client, b.emit)
}

func (b *bench) synced() {
	b.t.Helper()
	sourcetest.Synced(b.t, b.client)
	if b.fake != nil {
		b.fake.subscribed()
	}
}

// heard waits until Docker has said something about a container since a record was read.
func (b *bench) heard(id string, since registry.Record) registry.Record {
	b.t.Helper()
	return b.Until(id, "something is said about it", func(rec registry.Record) bool {
		return rec.Sources["docker"].After(since.Sources["docker"])
	})
}

// containerd tells what containerd's events in the namespace moby tell.
func (b *bench) containerd(typ container.EventType, id string, pid int, cgroup uint64) {
	b.emit(container.Event{Type: typ, Source: "containerd", At: time.Now(), Container: container.Container{
		ID: id, Runtime: "docker", Namespace: "moby", PID: pid, CgroupID: cgroup, CgroupPath: "/docker/" + id, TaskCreatedAt: time.Now(),
		Labels: map[string]string{"com.docker/engine.bundle.path": "/run/x"}, Env: map[string]string{"OTEL_SERVICE_NAME": "svc"}}})
}

// scan tells what the scan of the cgroup tree tells.
func (b *bench) scan(typ container.EventType, id string, cgroup uint64) {
	b.emit(container.Event{Type: typ, Source: "cgroup", Inferred: true, At: time.Now(), Container: container.Container{
		ID: id, Runtime: "docker", CgroupID: cgroup, CgroupPath: "/docker/" + id}})
}
