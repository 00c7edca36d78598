// Package native is the unwinder of compiled code: C, C++, Rust, Go. It walks by unwind rows, which cfi makes of what a file
// says about its code, and by frame pointers where there are none.
//
// native.bpf.c is the kernel's half of the walk. tables.go decides what is in the maps that it walks by, manager.go reads the
// files for it, native_symbolize.go names the frames. It is used by the list of unwinders in cmd/stoker/agent.go and by
// nobody else.
//
// Two goroutines work here. The [unwind.Symbolizer]'s tells which process has which mappings, and reads symbols. That of
// [Unwinder.Run] answers what the kernel side asks for: it reads tables, so that neither the ring of stacks nor a stack waits
// for a large file. What both change is in tables, behind its lock.
package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/unwind"
)

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64,arm64 -no-global-types -type mapping -type space_head -type page -type miss -type mapping_kind -type page_state bpf native.bpf.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -I../../include

// Unwinder walks native stacks. Make one for each sampler: it keeps what it was bound to.
type Unwinder struct {
	sizes sizes

	fetch func(buildID string) (*os.File, error)

	mu     sync.Mutex // guards what Bind and Symbolizer leave for Run
	tables *tables    // nil until Bind
	misses *ebpf.Map
	reader process.Reader
}

var (
	_ unwind.Unwinder    = (*Unwinder)(nil)
	_ unwind.Symbolizing = (*Unwinder)(nil)
	_ unwind.Runner      = (*Unwinder)(nil)
)

// New makes an unwinder whose tables have the size for this machine.
func New() *Unwinder { return &Unwinder{sizes: sizesFor(runtime.NumCPU())} }

// FetchDebugFiles sets who is asked for debug files that are nowhere on the node, as [symbol.DebugFinder].Fetch. Call it before
// Symbolizer.
func (u *Unwinder) FetchDebugFiles(fetch func(buildID string) (*os.File, error)) { u.fetch = fetch }

// Name implements [unwind.Unwinder].
func (*Unwinder) Name() string { return "native" }

// Spec implements [unwind.Unwinder].
func (u *Unwinder) Spec() (*ebpf.CollectionSpec, error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, err
	}
	return spec, u.sizes.set(spec)
}

// Bind implements [unwind.Unwinder]: it maps the tables into our memory. Nothing is in them until the Symbolizer tells of
// processes and Run reads their files; until then stacks are walked by frame pointer.
func (u *Unwinder) Bind(c *ebpf.Collection) error {
	memory, release, err := mapMemory(c)
	if err != nil {
		return err
	}
	grace, closer, err := newGrace()
	if err != nil {
		release()
		return err
	}
	generation := c.Variables["generation"]
	t := newTables(memory, u.sizes, func(n uint32) error {
		if err := generation.Set(n); err != nil {
			return fmt.Errorf("tell the kernel side which generation of tables it is: %w", err)
		}
		return nil
	}, grace)
	// Whoever holds the tables may write there after the sampler is closed; the maps' memory goes with the last of them.
	runtime.AddCleanup(t, func(release func()) {
		release()
		_ = closer.Close() // of two descriptors: nothing can be done
	}, release)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.tables, u.misses = t, c.Maps["misses"]
	return nil
}

// Run implements [unwind.Runner]: it reads tables for the kernel side until ctx ends. Call it after Bind and Symbolizer.
func (u *Unwinder) Run(ctx context.Context) error {
	u.mu.Lock()
	t, misses, reader := u.tables, u.misses, u.reader
	u.mu.Unlock()
	if t == nil {
		return errors.New("run the native unwinder: it was not bound to a sampler")
	}
	ring, err := ringbuf.NewReader(misses)
	if err != nil {
		return fmt.Errorf("map the ring buffer of what the native unwinder asks for: %w", err)
	}
	return newManager(t, reader).run(ctx, ring)
}
