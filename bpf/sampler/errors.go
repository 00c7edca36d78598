package sampler

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// MachineError says that this machine, or the rights we run with, cannot do what was attempted, and what would mend it.
type MachineError struct {
	What string // what was attempted
	Err  error  // what came back
	Fix  string // what to do
}

func (e *MachineError) Error() string { return fmt.Sprintf("%s: %v; %s", e.What, e.Err, e.Fix) }

// Unwrap returns the error that came back.
func (e *MachineError) Unwrap() error { return e.Err }

// Remedy returns what to do.
func (e *MachineError) Remedy() string { return e.Fix }

func loadError(what string, err error) error {
	var verifier *ebpf.VerifierError
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES) && !errors.As(err, &verifier):
		// The library's own text guesses at RLIMIT_MEMLOCK, which nothing is charged to since Linux 5.11.
		return &MachineError{what, unix.EPERM, "run as root, or with CAP_BPF and CAP_PERFMON (in a unit: CapabilityBoundingSet=)"}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, ebpf.ErrNotSupported):
		return &MachineError{what, err, "stoker needs a kernel of " + OldestKernel + " or newer with BTF (CONFIG_DEBUG_INFO_BTF)"}
	case errors.Is(err, unix.ENOMEM):
		return &MachineError{what, err, "raise the memory limit of stoker's cgroup: BPF maps are charged to it"}
	}
	return fmt.Errorf("%s: %w", what, err)
}

func perfError(cpu int, err error) error {
	what := fmt.Sprintf("open the CPU clock event on CPU %d", cpu)
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return &MachineError{what, err, "run as root, or with CAP_PERFMON; on Debian also set sysctl kernel.perf_event_paranoid=2"}
	case errors.Is(err, unix.EMFILE):
		return &MachineError{what, err, "raise the limit of open files (LimitNOFILE=): one file per CPU is needed"}
	case errors.Is(err, unix.EINVAL):
		return &MachineError{what, err, "ask for a lower frequency, or raise sysctl kernel.perf_event_max_sample_rate"}
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOSYS):
		return &MachineError{what, err, "the kernel was built without CONFIG_PERF_EVENTS"}
	}
	return fmt.Errorf("%s: %w", what, err)
}
