package node

import (
	"errors"
	"log/slog"
	"os"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/stoker-profiler/stoker/bpf/unwind"
)

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64,arm64 -no-global-types -type v8 -type node_kind -type node_event bpf node.bpf.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -I../../include

// Unwinder is V8 as a language of the list of unwinders. Make one for each sampler: it keeps what it was bound to.
type Unwinder struct {
	log  *slog.Logger
	load func() error // loads the programs, once; nil until the sampler says how

	loading sync.Once

	mu       sync.Mutex // guards what loading leaves
	loaded   bool
	loadErr  error
	nodes    *ebpf.Map
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
func (*Unwinder) Name() string { return "node" }

// Spec implements [unwind.Unwinder].
func (*Unwinder) Spec() (*ebpf.CollectionSpec, error) { return loadBpf() }

// Bind implements [unwind.Unwinder].
func (u *Unwinder) Bind(c *ebpf.Collection) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.nodes, u.counters = c.Maps["nodes"], c.Maps["node_counters"]
	return nil
}

// LoadBy implements [unwind.Late].
func (u *Unwinder) LoadBy(load func() error) { u.load = load }

// processes returns the map of processes; nil while the programs are being loaded, which the first call begins. The verifier takes its
// time: nobody waits.
func (u *Unwinder) processes() (*ebpf.Map, error) {
	if u.load == nil {
		return nil, errors.New("load the unwinder of Node.js: there is no sampler")
	}
	u.loading.Do(func() {
		go func() {
			err := u.load()
			if err != nil && !errors.Is(err, os.ErrClosed) {
				u.log.Error("functions of JavaScript are not shown", "err", err)
			}
			u.mu.Lock()
			defer u.mu.Unlock()
			u.loaded, u.loadErr = true, err
		}()
	})
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.nodes, u.loadErr
}

// ready reports whether loading has ended, one way or the other.
func (u *Unwinder) ready() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.loaded
}

// eventNames are the counters of the kernel side, by enum node_event.
var eventNames = [bpfNodeEventNODE_EVENTS]string{
	bpfNodeEventNODE_STACKS:     "stacks",            // of processes that run V8
	bpfNodeEventNODE_FRAMES:     "frames",            // of JavaScript
	bpfNodeEventNODE_UNREADABLE: "frames_unreadable", // whose stack could not be read: they stay native ones
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

// kernelLayout is what the kernel side needs of a layout.
func kernelLayout(l *Layout) *bpfV8 {
	return &bpfV8{
		FunctionLow: l.types.functionLow, FunctionHigh: l.types.functionHigh,
		SharedType: l.types.sharedFunction, BytecodeType: l.types.bytecodeArray, CodeType: l.types.code,
		Shared: uint16(l.function.shared), Length: uint16(l.shared.length), Literal: uint16(l.shared.flags + 4),
	}
}

// kernelLayoutFits says whether the kernel side, which has these offsets as constants, would read the layout rightly.
func kernelLayoutFits(l *Layout) bool {
	return l.frame.marker == -8 && l.frame.function == -16 && l.frame.bytecodeArray == -32 && l.frame.bytecodeOffset == -40 && l.mapInstanceType == 12
}
