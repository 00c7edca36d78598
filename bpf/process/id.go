// Package process knows the processes in scope and their mappings: who an address belongs to. It reads /proc and nothing
// else, writes to no process, and keeps no file open.
package process

// ID is what an address may be resolved against. It is comparable.
type ID struct {
	// PID is the process as the host numbers it (the kernel's tgid).
	PID uint32
	// StartBoottime is the start of the thread group's leader in nanoseconds of CLOCK_BOOTTIME; ExecID counts its execs.
	// Together they tell a reused PID and an exec.
	StartBoottime, ExecID uint64
	// Epoch changes when the executable mappings were seen to have changed. The values only grow, over all processes.
	Epoch uint32
}
