//go:build root

package sampler

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/bpf/unwind"
	"github.com/stoker-profiler/stoker/bpf/unwind/native"
)

// The kernel leaves the event of a CPU that went offline open, and does not revive it when the CPU comes back. Here an event is
// switched off behind the clock's back instead.
func TestDeadEventsAreOpenedAgain(t *testing.T) {
	s, err := Open(Config{FrequencyHz: 97, Unwinders: []unwind.Unwinder{native.New()}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := s.clock
	if err := c.enable(true); err != nil {
		t.Fatal(err)
	}
	refresh := func() {
		t.Helper()
		if err := c.refresh(); err != nil {
			t.Fatal(err)
		}
	}
	refresh()
	before, err := c.ticks()
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range c.fds {
		if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_DISABLE, 0); err != nil {
			t.Fatal(err)
		}
	}
	events := len(c.fds)
	refresh() // time has passed since the last look, until the event was switched off
	refresh()
	if len(c.fds) != events {
		t.Fatalf("%d events, want %d", len(c.fds), events)
	}
	for cpu, fd := range c.fds {
		first := timeEnabled(fd)
		for deadline := time.Now().Add(10 * time.Second); timeEnabled(fd) == first; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the event of CPU %d stands still", cpu)
			}
		}
	}
	if after, err := c.ticks(); err != nil || after < 0 || before < 0 {
		t.Errorf("%v ticks, then %v, %v", before, after, err)
	}
}
