package containerd

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/runtime/registry"
	"github.com/stoker-profiler/stoker/test/hostile"
)

// hostileClient is a client of a socket that means harm, with times that let it do its harm soon.
func hostileClient(socket string) *Client {
	c := NewClient("containerd", socket, cgroupfs.Hierarchy{Mount: "/nowhere", Proc: "/nowhere"}, nil)
	c.times.call, c.times.list = 300*time.Millisecond, 2*time.Second
	c.loop.Times.MinBackoff, c.loop.Times.MaxBackoff, c.loop.Times.SecondList = 5*time.Millisecond, 50*time.Millisecond, 20*time.Millisecond
	return c
}

// nothing is what may be told of a server that has no containers.
func nothing(t *testing.T) func(container.Event) {
	return func(e container.Event) {
		if e.Type == container.Upsert {
			t.Errorf("told: %.500q", fmt.Sprint(e))
		}
	}
}

func TestServersThatAreNoContainerd(t *testing.T) {
	for _, m := range hostile.Manners() {
		t.Run(m.Name, func(t *testing.T) {
			socket, served := hostile.Socket(t), atomic.Int32{}
			hostile.Listen(t, socket, func(c net.Conn) { served.Add(1); m.Serve(c) })
			c := hostileClient(socket)
			hostile.Run(t, c, nothing(t), 64<<20, func() bool { return served.Load() > 6 && c.Status().Err != "" })
			if st := c.Status(); st.Connected || st.Absent || !strings.Contains(st.Err, socket) || len(st.Err) > 1100 {
				t.Errorf("status %+v", st)
			}
		})
	}
}

// honest answers a call as a containerd without containers, in one namespace.
func honest(method string) []byte {
	if method == "List" { // of namespaces; the answer of tasks has no such field
		b, _ := proto.Marshal(&namespaces.ListNamespacesResponse{Namespaces: []*namespaces.Namespace{{Name: "default"}}})
		return b
	}
	return nil
}

func TestAContainerdThatMeansHarm(t *testing.T) {
	event := func(url string, m proto.Message) []byte {
		v, _ := proto.Marshal(m)
		b, _ := proto.Marshal(&types.Envelope{Namespace: "default", Topic: "/t", Event: &anypb.Any{TypeUrl: url, Value: v}})
		return b
	}
	wait := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	large := make([]byte, 100<<20)
	labels := map[string]string{}
	for i := range 100 {
		labels[fmt.Sprint(i)] = strings.Repeat("x", 10_000)
	}
	got, _ := proto.Marshal(&containers.GetContainerResponse{Container: &containers.Container{ID: "c", Image: "i", Labels: labels}})
	record := func(i int) *containers.Container {
		return &containers.Container{ID: fmt.Sprint("c", i), Image: "i", Labels: labels}
	}
	for name, c := range map[string]struct {
		answer func(ctx context.Context, method string, send func([]byte) error) error
		said   string // part of the status; empty: it is connected
		count  string // what is counted, and that often at least
		n      uint64
	}{
		"answers of 100 MB": {func(_ context.Context, _ string, send func([]byte) error) error { return send(large) }, "this is not containerd", "", 0},
		"answers of garbage": {func(_ context.Context, _ string, send func([]byte) error) error {
			return send([]byte(strings.Repeat("\xff\x07garbage", 1000)))
		}, "look into its log", "", 0},
		"records without end": {func(ctx context.Context, method string, send func([]byte) error) error {
			switch method {
			case "Subscribe":
				return wait(ctx)
			case "ListStream":
				for i := 0; ; i++ {
					b, _ := proto.Marshal(&containers.ListContainerMessage{Container: record(i)})
					if err := send(b); err != nil {
						return err
					}
				}
			}
			return send(honest(method))
		}, "this is not containerd", "list_failed", 1},
		"namespaces without end": {func(ctx context.Context, method string, send func([]byte) error) error {
			all := &namespaces.ListNamespacesResponse{}
			for i := range 100_000 {
				all.Namespaces = append(all.Namespaces, &namespaces.Namespace{Name: fmt.Sprint(i)})
			}
			if method == "Subscribe" {
				return wait(ctx)
			}
			b, _ := proto.Marshal(all)
			return send(b)
		}, "this is not containerd", "list_failed", 1},
		"events of 1 MB": {func(ctx context.Context, method string, send func([]byte) error) error {
			if method == "ListStream" {
				return nil
			}
			if method != "Subscribe" {
				return send(honest(method))
			}
			b := event("containerd.events.ContainerCreate", &events.ContainerCreate{ID: "x", Image: strings.Repeat("i", 1<<20)})
			for range 100 {
				if err := send(b); err != nil {
					return err
				}
			}
			return wait(ctx)
		}, "", "malformed", 100},
		"containers without end": {func(ctx context.Context, method string, send func([]byte) error) error {
			switch method {
			case "ListStream":
				return nil
			case "Get":
				return send(got)
			case "Subscribe":
				for i := range 100_000 {
					if err := send(event("containerd.events.TaskCreate", &events.TaskCreate{ContainerID: fmt.Sprint("c", i), Pid: uint32(i + 1)})); err != nil {
						return err
					}
				}
				return wait(ctx)
			}
			return send(honest(method))
		}, "", "event", 100_000},
	} {
		t.Run(name, func(t *testing.T) {
			socket := hostile.Socket(t)
			hostile.GRPC(t, socket, c.answer)
			client := hostileClient(socket)
			if c.count == "event" {
				client.loop.Times.SecondList, client.loop.Queue = time.Hour, 200_000 // no list forgets them
			}
			k := &kernel{}
			r := registry.New(registry.Config{Scopes: k, Frequency: 97})
			hostile.Run(t, client, r.Apply, 256<<20, func() bool {
				st := client.Status()
				return (c.said == "" && st.Connected || c.said != "" && strings.Contains(st.Err, c.said)) && client.Counts()[c.count] >= c.n
			})
			if c.count == "event" && client.Stats().TooMany == 0 {
				t.Errorf("all were taken: %+v", client.Stats())
			}
			if k.n.Load() != 0 {
				t.Errorf("%d scopes were made", k.n.Load())
			}
		})
	}
}

// kernel counts what would be sampled.
type kernel struct{ n atomic.Int32 }

func (k *kernel) Add(uint64, uint32) (uint32, error) { return uint32(k.n.Add(1)), nil }
func (k *kernel) Bar(uint64) error                   { return nil }
func (k *kernel) Remove(uint64) error                { return nil }

// The same id in two namespaces is two containers, whatever the order in which their events come.
func TestEventsOutOfOrderOfEqualIDs(t *testing.T) {
	f, b := started(t)
	b.run()
	b.synced()
	f.publish("a", "/tasks/exit", &events.TaskExit{ContainerID: "same", ID: "same", Pid: 10})
	f.publish("a", "/containers/delete", &events.ContainerDelete{ID: "same"})
	f.process(12, "/b/same")
	f.publish("b", "/tasks/start", &events.TaskStart{ContainerID: "same", Pid: 12}) // before its create
	f.run("a", "same", 11)
	f.run("b", "same", 12)
	f.publish("a", "/tasks/create", &events.TaskCreate{ContainerID: "same", Pid: 11}) // again
	f.publish("b", "/tasks/exit", &events.TaskExit{ContainerID: "same", ID: "same", Pid: 404})
	b.StateIn("a", "same", registry.Profiled)
	b.StateIn("b", "same", registry.Profiled)
	f.publish("a", "/tasks/exit", &events.TaskExit{ContainerID: "same", ID: "same", Pid: 11})
	b.StateIn("a", "same", registry.Gone)
	if rec := b.StateIn("b", "same", registry.Profiled); rec.PID != 12 {
		t.Errorf("record %+v", rec)
	}
}
