package ruby

import (
	"errors"
	"log/slog"
	"os"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/stoker-profiler/stoker/bpf/unwind"
)

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64,arm64 -no-global-types -type interpreter -type ruby_event bpf ruby.bpf.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -I../../include

// Unwinder is CRuby as a language of the list of unwinders. Make one for each sampler: it keeps what it was bound to.
type Unwinder struct {
	log  *slog.Logger
	load func() error // loads the programs, once; nil until the sampler says how

	loading sync.Once

	mu       sync.Mutex // guards what loading leaves
	loaded   bool
	loadErr  error
	rubies   *ebpf.Map
	counters *ebpf.Map
}

var (
	_ unwind.Unwinder    = (*Unwinder)(nil)
	_ unwind.Late        = (*Unwinder)(nil)
	_ unwind.Symbolizing = (*Unwinder)(nil)
)

// New makes an unwinder that says to log what it cannot unwind; nil: nowhere.
func New(log *slog.Logger) *Unwinder {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Unwinder{log: log}
}

// Name implements [unwind.Unwinder].
func (*Unwinder) Name() string { return "ruby" }

// Spec implements [unwind.Unwinder].
func (*Unwinder) Spec() (*ebpf.CollectionSpec, error) { return loadBpf() }

// Bind implements [unwind.Unwinder].
func (u *Unwinder) Bind(c *ebpf.Collection) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.rubies, u.counters = c.Maps["rubies"], c.Maps["ruby_counters"]
	return nil
}

// LoadBy implements [unwind.Late].
func (u *Unwinder) LoadBy(load func() error) { u.load = load }

// interpreters returns the map of interpreters; nil while the programs are being loaded, which the first call begins. That takes the
// verifier some 50 ms, or seconds on a slow machine: nobody waits.
func (u *Unwinder) interpreters() (*ebpf.Map, error) {
	if u.load == nil {
		return nil, errors.New("load the unwinder of Ruby: there is no sampler")
	}
	u.loading.Do(func() {
		go func() {
			err := u.load()
			if err != nil && !errors.Is(err, os.ErrClosed) {
				u.log.Error("functions of Ruby are not shown", "err", err)
			}
			u.mu.Lock()
			defer u.mu.Unlock()
			u.loaded, u.loadErr = true, err
		}()
	})
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.rubies, u.loadErr
}

// ready reports whether loading has ended, one way or the other.
func (u *Unwinder) ready() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.loaded
}

// eventNames are the counters of the kernel side, by enum ruby_event.
var eventNames = [bpfRubyEventRUBY_EVENTS]string{
	bpfRubyEventRUBY_STACKS:     "stacks",            // that had frames of Ruby appended
	bpfRubyEventRUBY_FRAMES:     "frames",            // appended
	bpfRubyEventRUBY_NO_CONTEXT: "contexts_unknown",  // stacks in the interpreter's loop whose execution context was not found
	bpfRubyEventRUBY_UNREADABLE: "stacks_unreadable", // whose frames could not be read to their end
	bpfRubyEventRUBY_TOO_DEEP:   "stacks_too_deep",   // that had more frames than are kept
}

// kernelCounters adds what the kernel side has counted.
func (u *Unwinder) kernelCounters(out map[string]uint64) {
	u.mu.Lock()
	m := u.counters
	u.mu.Unlock()
	for i, name := range eventNames {
		out[name] = 0
		if m == nil {
			continue
		}
		var perCPU []uint64
		if err := m.Lookup(uint32(i), &perCPU); err != nil {
			continue // the sampler has been closed
		}
		for _, n := range perCPU {
			out[name] += n
		}
	}
}
