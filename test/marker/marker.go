// Package marker is an unwinder for tests: it pushes one frame and hands over to another slot. See marker.bpf.c.
package marker

import "github.com/cilium/ebpf"

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64,arm64 -no-global-types bpf marker.bpf.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -I../../bpf/include

// Kind and Value are the kind and the first word of its frames; the second word is the program counter it was called with.
const (
	Kind  = 7
	Value = 0x1234
)

// Unwinder pushes its frame and goes on with slot Next.
type Unwinder struct{ Next uint32 }

// Name implements unwind.Unwinder.
func (Unwinder) Name() string { return "marker" }

// Spec implements unwind.Unwinder.
func (u Unwinder) Spec() (*ebpf.CollectionSpec, error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, err
	}
	return spec, spec.Variables["next_slot"].Set(u.Next)
}

// Bind implements unwind.Unwinder.
func (Unwinder) Bind(*ebpf.Collection) error { return nil }
