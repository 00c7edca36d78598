// Package process knows the processes in scope and their mappings: who an address belongs to.
//
// [Reader] reads /proc and opens the files that processes have mapped; any goroutine may use it. [Table] remembers processes,
// keeps their mappings true to what the kernel says of their execs, and forgets them after they have ended; one goroutine owns
// it. [ParseMaps] reads the text of a maps file. What processes show of themselves is hostile: it is bounded everywhere. The
// package looks at no process that it was not told of, writes to none, and keeps no file open.
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
