// Package unwind is what all unwinders and the symbolizer share in user space: the frames that cross from the kernel, the
// contract of an unwinder, and the symbolizer that turns a stack into pprof locations. One folder below this one is one
// unwinder (native, later python, ruby, …): its BPF C, its Go loader, its symbolizer. The kernel's half of the contract is
// bpf/include/unwind.h. An unwinder never imports another.
//
// An interpreted language is an unwinder behind the native one in the list. To add one:
//   - Its BPF program, "unwind", is called once when the native walk of a sample has ended, and appends its frames, leaf first, as
//     bpf/include/unwind.h says. What it knows of a process it has in a map of its own, under a number that it chooses.
//   - Its [FrameSymbolizer]'s Attachment implements [Interpreter]. In Mapped it looks, by content, whether an interpreter is among the
//     mappings; if so it has the programs loaded ([Late]: once, when the first process needs them), puts what it knows into its map,
//     and tells the kernel side the number with [Env.SetLanguage]. In Detach it takes both back. A forked child has its parent's number
//     until it is seen itself: its memory is laid out the same.
//   - merge.go puts the frames in their places: each run of them, up to a [LanguageEntry], where a native frame is in the loop. A runtime
//     whose own code lies on the native stack, as that of a just-in-time compiler, makes each such frame a run of one.
//
// Outcome and length of a sample are those of the native walk. A process without languages costs four comparisons.
package unwind

import (
	"context"

	"github.com/cilium/ebpf"

	"github.com/stoker-profiler/stoker/bpf/process"
)

// KernelSlot is RawFrame.Unwinder of frames that no unwinder made: kernel addresses and marks.
const KernelSlot = 0

// Kinds of frames with Unwinder == KernelSlot; they mirror enum frame_kind in bpf/include/unwind.h, which a test compares.
const (
	KindKernel    = 1 // A is a kernel address
	KindTruncated = 2 // the walk stopped before the outermost frame; A is the outcome that says why
)

// Kinds of frames of interpreted languages; they mirror enum language_kind in bpf/include/unwind.h, which says what A and B are.
const (
	LanguageFrame = 1 // its caller runs in the same loop
	LanguageEntry = 2 // native code has called it
	LanguageEmpty = 3 // a loop that has no frame
	LanguageLost  = 4 // callers are missing

	// LanguagePlaced and above are frames that have taken the places of native ones in the kernel.
	LanguagePlaced = 16
)

// FirstLanguageSlot is the slot of the first language in the list of unwinders: the native walk, which ends in them, is the one before.
const FirstLanguageSlot = 2

// RawFrame is one frame as the kernel sends it. What Kind, A and B mean is the business of the unwinder in slot Unwinder.
type RawFrame struct {
	Unwinder, Kind uint8
	// ReturnAddress is true when A is where a callee will return to: the call itself is at A-1.
	ReturnAddress bool
	A, B          uint64
}

// Hint is what the kernel knew about a user address when it sampled it: the GNU build id of the file mapped there and the
// offset in that file. It comes with the first stack of a process, for processes that are gone before anybody looks.
type Hint struct {
	Address uint64
	BuildID [20]byte
	Offset  uint64
}

// Origin says what made a sample.
type Origin uint8

// OriginCPU is the CPU clock.
const OriginCPU Origin = 0

// Context says what the sample interrupted.
type Context uint8

// Contexts; they mirror enum sample_context in bpf/include/unwind.h.
const (
	ContextUser   Context = 1
	ContextKernel Context = 2
)

// Key identifies equal samples: same stack, same process, same scope. It is comparable.
type Key struct {
	// Hash is seeded and taken over frames and cut marks. 0 stands for "[stack not delivered]".
	Hash    uint64
	Process process.ID
	Scope   uint32
	Origin  Origin
	Context Context
}

// Stack is one new stack, sent once.
type Stack struct {
	Key    Key
	Frames []RawFrame // leaf first: kernel frames, then user frames
	Hints  []Hint
}

// Unwinder is one way of walking user stacks. It is loaded onto the sampler's maps and reached by tail call. Methods are
// called by the goroutine that opens the sampler.
type Unwinder interface {
	// Name is the folder's name: it is the value of metric labels and shown by doctor.
	Name() string
	// Spec returns the unwinder's generated BPF object. Its program must be called "unwind" and its shared maps must have
	// the names of bpf/include/unwind.h.
	Spec() (*ebpf.CollectionSpec, error)
	// Bind hands over the loaded collection; the unwinder keeps what it needs of its own (counters). The sampler closes it.
	Bind(*ebpf.Collection) error
}

// Late is implemented by unwinders that are loaded when they are needed: languages, of which most nodes run few.
type Late interface {
	// LoadBy is called once, when the sampler is opened, with what loads the unwinder's programs and calls Bind. It is for any
	// goroutine, and loads once however often it is called; the error stays.
	LoadBy(load func() error)
}

// Runner is implemented by unwinders that have work to do beside the sampler: reading tables for their walk. Run blocks until
// ctx ends, which it then returns nil for. It is called once, after Bind and NewSymbolizer.
type Runner interface {
	Run(ctx context.Context) error
}
