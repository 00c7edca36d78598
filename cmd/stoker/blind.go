package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/sampler"
	"github.com/stoker-profiler/stoker/internal/privilege"
	"github.com/stoker-profiler/stoker/runtime/registry"
	"github.com/stoker-profiler/stoker/sink/web"
)

// sampling is what takes the samples: the kernel side ([sampler.Sampler], which says what each of these does), or nothing ([blind]).
type sampling interface {
	Run(ctx context.Context, window time.Duration, h sampler.Handler) error
	Flush(ctx context.Context) error
	Stats() (sampler.Stats, error)
	Current(id process.ID) bool
	RaiseEpoch(id process.ID) error
	SetSpace(id process.ID, space uint64) error
	SetLanguage(id process.ID, slot uint8, number uint32) error
	Close() error
}

var (
	_ sampling        = (*sampler.Sampler)(nil)
	_ sampling        = (*blind)(nil)
	_ registry.Scopes = (*blind)(nil)
)

// blind stands where the sampler would, in an agent that has not the rights for one: it takes no sample and says why not, wherever
// somebody asks for samples. Everything else of the agent works: who lacks a capability still sees which containers there are, what
// was stored is served and delivered, and doctor has an agent to look at. Any goroutine may call; one calls Run.
type blind struct {
	lacks []privilege.Capability // essential ones
	err   error                  // what the kernel said to the attempt
}

// blinded makes of the error of [sampler.Open] what goes on without samples: nil, if missing capabilities are not why.
func blinded(missing []privilege.Capability, err error) *blind {
	b := &blind{err: err}
	for _, c := range missing {
		if c.Essential {
			b.lacks = append(b.lacks, c)
		}
	}
	if len(b.lacks) == 0 || !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return nil
	}
	return b
}

// Error is the whole of it: in logs, on the page, as the reason of each container in ps.
func (b *blind) Error() string {
	var names []string
	for _, c := range b.lacks {
		names = append(names, c.Name)
	}
	verb := "is"
	if len(names) > 1 {
		verb = "are"
	}
	return fmt.Sprintf("nothing is sampled: %s %s missing", strings.Join(names, " and "), verb)
}

// Unwrap returns what the kernel said.
func (b *blind) Unwrap() error { return b.err }

// Remedy returns what to do.
func (b *blind) Remedy() string { return b.lacks[0].Remedy() }

// refusal is the answer to who asks the agent for samples.
func (b *blind) refusal() *web.Error {
	return &web.Error{Status: http.StatusNotImplemented, Message: b.Error(), Remedy: b.Remedy()}
}

// Run ends windows as the sampler does, with nothing in them: who waits for one, or watches that they end, is not told otherwise.
func (b *blind) Run(ctx context.Context, window time.Duration, h sampler.Handler) error {
	tick := time.NewTicker(window)
	defer tick.Stop()
	for start := time.Now(); ; {
		select {
		case <-ctx.Done():
			return nil
		case end := <-tick.C:
			h.Window(sampler.Window{Start: start, End: end})
			start = end
		}
	}
}

func (b *blind) Flush(context.Context) error                 { return b.refusal() }
func (b *blind) Stats() (sampler.Stats, error)               { return sampler.Stats{}, nil }
func (b *blind) Current(process.ID) bool                     { return true }
func (b *blind) RaiseEpoch(process.ID) error                 { return os.ErrClosed }
func (b *blind) SetSpace(process.ID, uint64) error           { return os.ErrClosed }
func (b *blind) SetLanguage(process.ID, uint8, uint32) error { return os.ErrClosed }
func (b *blind) Close() error                                { return nil }
func (b *blind) Add(uint64, uint32) (uint32, error)          { return 0, b }
func (b *blind) Bar(uint64) error                            { return nil }
func (b *blind) Remove(uint64) error                         { return nil }
