package crio

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/internal/sourcetest"
	"github.com/stoker-profiler/stoker/runtime/registry"
	"github.com/stoker-profiler/stoker/test/hostile"
)

// hostileClient is a client of a socket that means harm, with times that let it do its harm soon.
func hostileClient(socket string) *Client {
	c := quick(NewClient("cri-o", socket, cgroupfs.Hierarchy{Mount: "/nowhere", Proc: "/nowhere"}, nil))
	c.times.call, c.times.list, c.loop.Times.MaxBackoff = 300*time.Millisecond, 2*time.Second, 50*time.Millisecond
	return c
}

func TestServersThatAreNoCRIO(t *testing.T) {
	for _, m := range hostile.Manners() {
		t.Run(m.Name, func(t *testing.T) {
			socket, served := hostile.Socket(t), atomic.Int32{}
			hostile.Listen(t, socket, func(c net.Conn) { served.Add(1); m.Serve(c) })
			c := hostileClient(socket)
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

func TestACRIOThatMeansHarm(t *testing.T) {
	hello, _ := proto.Marshal(&cri.VersionResponse{RuntimeName: "cri-o", RuntimeVersion: version, RuntimeApiVersion: "v1"})
	long, _ := proto.Marshal(&cri.VersionResponse{RuntimeName: strings.Repeat("cri-o\x1b[2J", 100_000)})
	// As much as one answer may hold: containers with labels of 64 kB, and names that do things to a terminal.
	all := &cri.ListContainersResponse{}
	for i := range 230 {
		all.Containers = append(all.Containers, &cri.Container{Id: idOf(i), Metadata: &cri.ContainerMetadata{Name: "\x1b]0;owned\a"}, State: cri.ContainerState_CONTAINER_RUNNING,
			Labels: map[string]string{"a": strings.Repeat("x", 64<<10)}})
	}
	full, _ := proto.Marshal(all)
	many := &cri.ListContainersResponse{}
	for i := range 2 * container.MaxContainers {
		many.Containers = append(many.Containers, &cri.Container{Id: idOf(i), State: cri.ContainerState_CONTAINER_RUNNING})
	}
	crowd, _ := proto.Marshal(many)
	large := make([]byte, 100<<20)
	answers := func(method string, b []byte) func(context.Context, string, func([]byte) error) error {
		return func(_ context.Context, m string, send func([]byte) error) error {
			switch m {
			case method:
				return send(b)
			case "Version":
				return send(hello)
			}
			return send(nil)
		}
	}
	garbage := []byte(strings.Repeat("\xff\x07garbage", 1000))
	for name, c := range map[string]struct {
		answer func(context.Context, string, func([]byte) error) error
		said   string // part of the status; empty: it is connected
		listed int
	}{
		"a version of 100 MB":    {answers("Version", large), "this is not CRI-O", 0},
		"a long version":         {answers("Version", long), "this is not CRI-O", 0},
		"a version of garbage":   {answers("Version", garbage), "look into its log", 0},
		"a list of 100 MB":       {answers("ListContainers", large), "this is not CRI-O", 0},
		"a list of garbage":      {answers("ListContainers", garbage), "look into its log", 0},
		"pods of 100 MB":         {answers("ListPodSandbox", large), "this is not CRI-O", 0},
		"labels of 64 kB":        {answers("ListContainers", full), "", 230},
		"more than any node has": {answers("ListContainers", crowd), "", container.MaxContainers},
	} {
		t.Run(name, func(t *testing.T) {
			socket := hostile.Socket(t)
			hostile.GRPC(t, socket, c.answer)
			client := hostileClient(socket)
			client.loop.Times.SecondList, client.loop.Times.ListEvery = time.Hour, time.Hour
			if c.said != "" {
				client.loop.Times.SecondList = 20 * time.Millisecond
			}
			r := registry.New(registry.Config{Scopes: sourcetest.NewScopes(), Frequency: 97})
			hostile.Run(t, client, r.Apply, 128<<20, func() bool {
				st := client.Status()
				return c.said == "" && st.Connected || c.said != "" && strings.Contains(st.Err, c.said) && len(st.Err) < 1100
			})
			list := r.List()
			if len(list) != c.listed {
				t.Errorf("%d containers are listed", len(list))
			}
			for _, rec := range list {
				if strings.ContainsAny(rec.Name, "\x1b\a") || len(rec.Labels["a"]) > container.MaxValue {
					t.Fatalf("record %.500q", fmt.Sprint(rec))
				}
			}
			if c.listed == container.MaxContainers && client.Counts()["too_many"] == 0 {
				t.Error("what was left out was not counted")
			}
		})
	}
}
