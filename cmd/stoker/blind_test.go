package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/bpf/sampler"
	"github.com/stoker-profiler/stoker/internal/privilege"
	"github.com/stoker-profiler/stoker/sink/web"
)

// Only missing rights to sample make an agent that goes on without samples; any other trouble of the sampler ends it.
func TestOnlyMissingRightsMakeAnAgentThatWatches(t *testing.T) {
	refused := &sampler.MachineError{What: "load the sampler into the kernel", Err: unix.EPERM, Fix: "run as root"}
	essential, other := privilege.Table[:2], privilege.Table[2:]
	for _, c := range []struct {
		missing []privilege.Capability
		err     error
		want    string // "": the agent ends
	}{
		{essential, refused, "nothing is sampled: CAP_BPF and CAP_PERFMON are missing"},
		{essential[1:], refused, "nothing is sampled: CAP_PERFMON is missing"},
		{append(essential[:1:1], other...), refused, "nothing is sampled: CAP_BPF is missing"},
		{other, refused, ""},
		{nil, refused, ""},
		{essential, &sampler.MachineError{What: "x", Err: errors.New("the kernel is too old"), Fix: "y"}, ""},
	} {
		b := blinded(c.missing, c.err)
		if c.want == "" {
			if b != nil {
				t.Errorf("%v, %v: goes on: %v", c.missing, c.err, b)
			}
			continue
		}
		if b == nil || b.Error() != c.want || !errors.Is(b, unix.EPERM) || !strings.Contains(b.Remedy(), b.lacks[0].Name) {
			t.Errorf("%v, %v: %v", c.missing, c.err, b)
			continue
		}
		if code := exitCode(fmt.Errorf("start a sampler: %w", b)); code != exitMachine {
			t.Errorf("exit code %d", code)
		}
		var refusal *web.Error
		if err := b.Flush(t.Context()); !errors.As(err, &refusal) || refusal.Status != http.StatusNotImplemented || exitCode(err) != exitMachine {
			t.Errorf("flush: %v", err)
		}
		if _, err := b.Add(1, 1); err == nil {
			t.Error("a container is in scope of nothing")
		}
	}
}
