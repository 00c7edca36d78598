// Stoker-hook is the OCI hook: a runtime runs it while it creates a container (createRuntime), and it tells the agent which
// process that is, so that the container is in scope before its first instruction. `stoker hook install` puts it in place.
//
// It delays a container by wire.WaitMillis at most, and stops none: whatever happens, it ends with exit code 0 and says nothing.
// It is one goroutine of system calls; package os and what belongs to it are left out because every container would wait for
// their initialisation.
package main

import (
	"syscall"
	"unsafe"

	"github.com/stoker-profiler/stoker/hook/oci/wire"
)

const stdin = 0

// Where the two are put together: memory that the kernel gives as it is touched.
var (
	state   [wire.MaxState]byte
	message [wire.MaxMessage]byte
)

func main() {
	defer syscall.Exit(0) // also when something below panics
	s := wire.ParseState(state[:readState(state[:])], wire.Wanted)
	if m, ok := s.Append(message[:0]); ok {
		announce(m, s.PID)
	}
}

// readState reads what the runtime writes until it closes the pipe. What is too much is thrown away, but read: crun fails the
// container when it cannot write its state (src/libcrun/utils.c, run_process_with_stdin_timeout_envp).
func readState(b []byte) int {
	end := now() + wire.StateMillis*1e6
	var rest [4096]byte
	n := 0
	for wait(stdin, end) {
		to := b[n:]
		if len(to) == 0 {
			to = rest[:]
		}
		got, err := syscall.Read(stdin, to)
		switch {
		case err == syscall.EINTR || err == syscall.EAGAIN:
			continue
		case err != nil || got <= 0:
			return n
		}
		n = min(n+got, len(b))
	}
	return n
}

// announce sends the message and waits for the answer, which tells nothing but that the time has come to go on. No agent, one that
// has more to do than it can, one that hangs: the container starts without it.
func announce(message []byte, pid int) {
	end := now() + wire.WaitMillis*1e6
	path, ok := syscall.Getenv(wire.SocketVariable)
	if !ok {
		path = wire.Socket
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	// Not blocking: a socket whose queue is full says EAGAIN.
	if syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}) != nil {
		return
	}
	// Only who rules this pid namespace may name another process to the kernel. Users' engines do not; they just say it.
	vouched := syscall.UnixCredentials(&syscall.Ucred{Pid: int32(pid), Uid: uint32(syscall.Getuid()), Gid: uint32(syscall.Getgid())})
	const flags = syscall.MSG_NOSIGNAL | syscall.MSG_DONTWAIT
	if _, err := syscall.SendmsgN(fd, message, vouched, nil, flags); err != nil {
		if _, err := syscall.SendmsgN(fd, message, nil, nil, flags); err != nil {
			return
		}
	}
	wait(fd, end)
}

// wait waits until there is something to read, an end included, or the time has come. It reports whether there is.
func wait(fd int, end int64) bool {
	const pollin = 1
	p := struct {
		fd      int32
		events  int16
		revents int16
	}{fd: int32(fd), events: pollin}
	for {
		left := syscall.NsecToTimespec(max(0, end-now()))
		n, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&left)), 0, 0, 0)
		if errno != syscall.EINTR {
			return errno == 0 && n == 1
		}
	}
}

// now is a time in nanoseconds that no clock setting moves.
func now() int64 {
	const monotonic = 1
	var t syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, monotonic, uintptr(unsafe.Pointer(&t)), 0) // cannot fail
	return t.Nano()
}
