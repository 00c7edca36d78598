//go:build root

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/api/events"
	eventsservice "github.com/containerd/containerd/api/services/events/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/stoker-profiler/stoker/sink/web"
	"github.com/stoker-profiler/stoker/test/critest"
	"github.com/stoker-profiler/stoker/test/workload"
)

// startPods starts a containerd with CRI and NRI that has the image of the workloads.
func startPods(t *testing.T, o critest.Options) *critest.Daemon {
	t.Helper()
	d := critest.NewForTest(t, o)
	if err := d.Image(run.image); err != nil {
		t.Fatal(err)
	}
	return d
}

// starts are when containerd says that containers were started, by id: what it does right after their programs began.
type starts struct {
	mu sync.Mutex // protects at
	at map[string]time.Time
}

// watchStarts subscribes to a containerd's events until the test ends.
func watchStarts(t *testing.T, socket string) *starts {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := eventsservice.NewEventsClient(conn).Subscribe(ctx, &eventsservice.SubscribeRequest{Filters: []string{`topic=="/tasks/start"`}})
	if err != nil {
		t.Fatal(err)
	}
	s := &starts{at: map[string]time.Time{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			env, err := stream.Recv()
			if err != nil {
				return // the test is over; if it is not, it misses starts and says so
			}
			var e events.TaskStart
			if err := env.GetEvent().UnmarshalTo(&e); err != nil {
				t.Errorf("an event of containerd: %v", err)
				return
			}
			s.mu.Lock()
			s.at[e.GetContainerID()] = env.GetTimestamp().AsTime()
			s.mu.Unlock()
		}
	}()
	t.Cleanup(func() { cancel(); <-done; conn.Close() })
	return s
}

func (s *starts) of(id string) (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.at[id]
	return at, ok
}

// quantile of sorted durations; p in percent.
func quantile(sorted []time.Duration, p int) time.Duration {
	return sorted[min(len(sorted)-1, len(sorted)*p/100)]
}

// By NRI, with nobody else who tells but the cgroup tree: each of thirty containers is in scope before containerd starts it, and has
// labelled samples of its 100 ms of CPU.
func TestPodsAreInScopeBeforeTheirFirstInstructionByNRI(t *testing.T) {
	const runs = 30
	d := startPods(t, critest.Options{})
	started := watchStarts(t, d.Socket())
	a := startAgent(t, options{socket: "off", runtimes: fmt.Sprintf(", nri: {enabled: true, socket: %s}", d.NRISocket())})
	eventually(t, time.Minute, "the agent is a plugin of containerd", func() error {
		out, errs, code := a.command(t, "ps", "--sources", "--output", "json")
		var told []web.Source
		if err := json.Unmarshal([]byte(out), &told); err != nil || code != 0 {
			return fmt.Errorf("stoker ps: exit code %d: %w: %s", code, err, errs)
		}
		if !slices.ContainsFunc(told, func(s web.Source) bool { return s.Name == "nri" && s.State == web.SourceConnected }) {
			return fmt.Errorf("sources: %+v", told)
		}
		return nil
	})
	pod, err := d.RunPod(t.Context(), critest.PodSpec{Name: "jobs-0", Namespace: "batch"})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	found := map[string]web.Container{}
	for n := range runs {
		c, err := pod.Run(t.Context(), critest.ContainerSpec{Name: fmt.Sprintf("job-%d", n), Image: imageRef, Args: []string{"/" + workload.Burn, "100"},
			Labels: map[string]string{testLabel: t.Name()}})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, c.ID())
		if err := c.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, c := range a.known(t) { // those that ended are listed for two windows
			found[c.ID] = c
		}
		if err := c.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	a.stop(t)

	var lead, told []time.Duration // before the start
	sampled := 0
	for n, id := range ids {
		at, ok := started.of(id)
		if !ok {
			t.Errorf("containerd does not say when it started container %d", n)
			continue
		}
		c := found[id]
		byNRI, ok := c.Sources["nri"]
		switch {
		case c.InScopeAt.IsZero() || !ok:
			t.Errorf("container %d: in scope at %v, found by %v", n, c.InScopeAt, c.Sources)
			continue
		case !c.InScopeAt.Before(at) || !byNRI.Before(at):
			t.Errorf("container %d: in scope %s and told by NRI %s after its start", n, c.InScopeAt.Sub(at), byNRI.Sub(at))
		}
		lead, told = append(lead, at.Sub(c.InScopeAt)), append(told, at.Sub(byNRI))
		total := int64(0)
		for _, p := range a.profiles(t, id) {
			total += p.Total
			for label, want := range map[string]string{
				"service_name": fmt.Sprintf("batch/job-%d", n), "namespace": "batch", "pod": "jobs-0", "container": fmt.Sprintf("job-%d", n),
				"container_name": fmt.Sprintf("job-%d", n), "container_runtime": "containerd", "container_image": imageRef,
			} {
				if p.Labels[label] != want {
					t.Errorf("label %s of container %d is %q, want %q; all: %v", label, n, p.Labels[label], want, p.Labels)
				}
			}
		}
		if total > 0 {
			sampled++
		} else {
			t.Errorf("container %d has no samples: %+v", n, c)
		}
		if total > int64(400*time.Millisecond) {
			t.Errorf("container %d has %s of CPU in profiles, and asked for 100 ms", n, time.Duration(total))
		}
	}
	slices.Sort(lead)
	slices.Sort(told)
	if len(lead) > 0 {
		t.Logf("start − scope over %d containers: least %s, p50 %s, p99 %s; start − NRI's event: least %s, p50 %s, p99 %s; %d of %d have samples", len(lead),
			lead[0], quantile(lead, 50), quantile(lead, 99), told[0], quantile(told, 50), quantile(told, 99), sampled, runs)
	}
	for _, p := range a.profiles(t, "") {
		if !slices.Contains(ids, p.ContainerID) {
			t.Errorf("a profile of %s %v", p.ContainerID, p.Labels)
		}
	}
}
