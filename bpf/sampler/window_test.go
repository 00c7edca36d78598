//go:build root

package sampler

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/unwind"
	"github.com/stoker-profiler/stoker/bpf/unwind/native"
)

type windowCounter struct{ n int }

func (*windowCounter) Exec(process.ID, uint32) {}
func (*windowCounter) Exit(process.ID)         {}
func (*windowCounter) MapsChanged(process.ID)  {}
func (*windowCounter) Stack(unwind.Stack)      {}
func (*windowCounter) ProcessesLost()          {}
func (c *windowCounter) Window(Window)         { c.n++ }
func (*windowCounter) Forget(unwind.Key)       {}

// When the kernel has no map for the next window, the open one goes on.
func TestWindowGoesOnWithoutANextOne(t *testing.T) {
	s, err := Open(Config{FrequencyHz: 97, Unwinders: []unwind.Unwinder{native.New()}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	good, bad, h := s.win.spec, s.win.spec.Copy(), &windowCounter{}
	bad.Type = ebpf.StructOpsMap // which nobody makes like this
	start := s.win.start
	s.win.spec = bad
	for range maxLate {
		if err := s.endWindow(h); !errors.Is(err, errLate) {
			t.Fatalf("error %v, want one that says that the window goes on", err)
		}
	}
	s.win.spec = good
	if err := s.endWindow(h); err != nil || h.n != 1 {
		t.Fatalf("%d windows, %v", h.n, err)
	}
	if !s.win.start.After(start) {
		t.Error("the next window began before the last")
	}
	s.win.spec = bad
	for range maxLate {
		_ = s.endWindow(h)
	}
	if err := s.endWindow(h); err == nil || errors.Is(err, errLate) {
		t.Errorf("error %v, want one that ends Run", err)
	}
}
