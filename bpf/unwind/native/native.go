// Package native is the unwinder of compiled code: C, C++, Rust, Go. Today it walks frame pointers. native.bpf.c is the
// kernel's half, native_symbolize.go names its frames. It is used by the list of unwinders in cmd/stoker/agent.go and by
// nobody else.
package native

import (
	"github.com/cilium/ebpf"

	"github.com/stoker-profiler/stoker/bpf/unwind"
)

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64,arm64 -no-global-types bpf native.bpf.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -I../../include

// Unwinder walks native stacks. The zero value is ready to use.
type Unwinder struct{}

var _ unwind.Unwinder = Unwinder{}

// Name implements [unwind.Unwinder].
func (Unwinder) Name() string { return "native" }

// Spec implements [unwind.Unwinder].
func (Unwinder) Spec() (*ebpf.CollectionSpec, error) { return loadBpf() }

// Bind implements [unwind.Unwinder]; native keeps no counters of its own: how a walk ended is the sample's outcome.
func (Unwinder) Bind(*ebpf.Collection) error { return nil }
