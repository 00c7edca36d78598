package process

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// Memory reads the memory of a process, at its virtual addresses. It implements [io.ReaderAt]; any goroutine may use it. What is there is
// a stranger's, and may change while it is read: whoever needs the memory of a certain process checks that it is that process's after
// the read. A page that the process has made to fault in from itself (userfaultfd, FUSE) can hold a read up for as long as it likes.
//
// It needs PTRACE_MODE_ATTACH (CAP_SYS_PTRACE) and writes nothing.
type Memory struct{ PID uint32 }

var _ io.ReaderAt = Memory{}

// ReadAt implements [io.ReaderAt] by process_vm_readv(2). Errors are [ErrGone], [ErrDenied], or that there is nothing at the address.
func (m Memory) ReadAt(b []byte, at int64) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(len(b))
	n, err := unix.ProcessVMReadv(int(m.PID), local, []unix.RemoteIovec{{Base: uintptr(at), Len: len(b)}}, 0)
	switch {
	case errors.Is(err, unix.EPERM):
		return 0, fmt.Errorf("read memory of pid %d: %w", m.PID, ErrDenied)
	case err != nil:
		return 0, classify(fmt.Errorf("read memory of pid %d at %#x: %w", m.PID, at, err))
	case n < len(b):
		return n, fmt.Errorf("read memory of pid %d at %#x: %d of %d bytes: %w", m.PID, at, n, len(b), io.ErrUnexpectedEOF)
	}
	return n, nil
}
