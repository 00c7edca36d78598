package docker

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/internal/sourcetest"
	"github.com/stoker-profiler/stoker/runtime/registry"
	"github.com/stoker-profiler/stoker/test/hostile"
)

func TestServersThatAreNoDocker(t *testing.T) {
	for _, m := range hostile.Manners() {
		t.Run(m.Name, func(t *testing.T) {
			socket, served := hostile.Socket(t), atomic.Int32{}
			hostile.Listen(t, socket, func(c net.Conn) { served.Add(1); m.Serve(c) })
			c := quick(NewClient("docker", socket, nil))
			c.times.call, c.times.list, c.loop.Times.MaxBackoff = 300*time.Millisecond, time.Second, 50*time.Millisecond
			hostile.Run(t, c, func(e container.Event) {
				if e.Type == container.Upsert {
					t.Errorf("told: %.500q", fmt.Sprint(e))
				}
			}, 64<<20, func() bool { return served.Load() > 6 && c.Status().Err != "" })
			if st := c.Status(); st.Connected || st.Absent || !strings.Contains(st.Err, socket) || len(st.Err) > 1100 {
				t.Errorf("status %+v", st)
			}
		})
	}
}

// Events of ever new containers, the first with labels of 64 kB, take so much memory and no more, in the source and in the registry.
func TestEventsWithoutEnd(t *testing.T) {
	const told = 20_000
	f := newFake(t)
	f.handle = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/events") {
			return false
		}
		w.Header().Set("Content-Type", "application/json")
		label := strings.Repeat("x", 64<<10)
		for i := range told {
			if i == 2000 { // enough to fill what there is room for
				label = "x"
			}
			if _, err := fmt.Fprintf(w, `{"Type":"container","Action":"create","timeNano":%d,"Actor":{"ID":%q,"Attributes":{"name":"\u001b[2Jn","stoker.enable":"false","l":%q}}}`+"\n",
				time.Now().UnixNano(), idOf(i), label); err != nil {
				return true
			}
		}
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	}
	f.start()
	c := quick(NewClient("docker", f.socket(), nil))
	c.loop.Times.SecondList, c.loop.Queue = time.Hour, 2*told // no list forgets them
	r := registry.New(registry.Config{Scopes: sourcetest.NewScopes(), Frequency: 97})
	hostile.Run(t, c, r.Apply, 256<<20, func() bool {
		return c.Counts()["event"] == told && c.Counts()["too_many"] == told-container.MaxContainers && len(r.List()) == container.MaxContainers
	})
	if st := r.Stats(); st.Cut == 0 {
		t.Errorf("stats %+v", st)
	}
	for _, rec := range r.List() {
		if rec.Labels["stoker.enable"] != "false" || strings.ContainsRune(rec.Name, '\x1b') {
			t.Fatalf("record %.300q", fmt.Sprint(rec))
		}
	}
}
