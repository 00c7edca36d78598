package store

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/sink"
)

// node is twenty containers as they are found on real nodes: a few busy, most of them not, all with the same shape every day.
type node struct {
	containers [20]struct {
		labels  sink.Labels
		id      string
		windows []sink.Profile // to be used in turn, as a program's windows resemble each other
	}
	rawBytes int64
}

func newNode(t testing.TB, clock *fakeClock, windows int) *node {
	n := &node{}
	for i := range n.containers {
		c := &n.containers[i]
		name := fmt.Sprintf("service-%d", i)
		c.labels = sink.Labels{"service_name": "shop/" + name, "node": "edge-1", "container_name": name, "container_runtime": "containerd", "container_image": "registry.example.net/shop/" + name + ":1.2.3"}
		c.id = strings.Repeat(fmt.Sprintf("%x", i%16), 64)
		w := newWorkload(uint64(i+1), 200+i*30, 300+i*100, 10)
		for range windows {
			samples := 25 + i*i*2 + w.rnd.IntN(30) // 25 to 780 of at most 970 at 97 Hz
			p := w.window(t, clock, name, samples)
			c.windows = append(c.windows, p)
			n.rawBytes += int64(len(p.Pprof))
		}
	}
	n.rawBytes /= int64(len(n.containers) * windows)
	return n
}

// window returns the i-th window of all containers, ending now.
func (n *node) window(clock *fakeClock, i int) []sink.Profile {
	var out []sink.Profile
	end := clock.Now()
	for j := range n.containers {
		c := &n.containers[j]
		p := c.windows[i%len(c.windows)]
		p.Labels, p.ContainerID = c.labels, c.id
		p.Start, p.End, p.BootStart = end.Add(-10*time.Second), end, clock.Boottime()-10*time.Second
		out = append(out, p)
	}
	return out
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkOutageOfADay keeps 24 h of 20 containers (172,800 profiles) while the endpoint is down, and then delivers what is
// left: run it with -benchtime 1x. It reports how large the store gets and what its upkeep costs.
func BenchmarkOutageOfADay(b *testing.B) {
	for b.Loop() {
		clock := newClock()
		n := newNode(b, clock, 90)
		s := open(b, clock, withSinks("a"))
		var top, written int64
		start := cpuTime()
		const windows = 24 * 360
		for i := range windows {
			clock.pass(10 * time.Second)
			ps := n.window(clock, i)
			written += sum(ps)
			write(b, s, ps...)
			if i%3 == 2 {
				maintain(b, s)
			}
			if i%100 == 0 {
				size, _ := s.bytesOnDisk()
				top = max(top, size)
			}
		}
		spent := cpuTime() - start
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		st := s.Stats()
		b.ReportMetric(float64(n.rawBytes), "B/profile")
		b.ReportMetric(float64(max(top, st.Bytes))/(1<<20), "MiB-top")
		b.ReportMetric(float64(st.UsedBytes)/(1<<20), "MiB-used")
		b.ReportMetric(float64(st.Profiles), "rows")
		b.ReportMetric(spent.Seconds()/(24*3600)*100, "%core")
		b.ReportMetric(float64(mem.Sys)/(1<<20), "MiB-sys")
		for _, e := range st.Evictions {
			b.Errorf("evicted %+v", e)
		}
		up := &server{name: "a"}
		deliver(b, s, up, DeliverConfig{BytesPerSecond: 1 << 40, Burst: 1 << 40})
		eventually(b, "all are delivered", func() bool { return states(b, s, "a")[Pending]+states(b, s, "a")[Sending] == 0 })
		b.ReportMetric(float64(up.sent()), "requests")
		if got := sum(up.got()); got != written {
			b.Errorf("the server has %d, %d was sampled", got, written)
		}
	}
}

// BenchmarkWrite is one window of 20 containers.
func BenchmarkWrite(b *testing.B) {
	clock := newClock()
	n := newNode(b, clock, 3)
	s := open(b, clock, withSinks("a"))
	i := 0
	for b.Loop() {
		clock.pass(10 * time.Second)
		if err := s.Write(context.Background(), n.window(clock, i)); err != nil {
			b.Fatal(err)
		}
		i++
	}
}
