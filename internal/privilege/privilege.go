// Package privilege is the one table of what stoker needs of the kernel's capabilities, and why: the agent says at its start what is
// lost, doctor what to do, the manual has the table. Anybody may call; it keeps no state.
package privilege

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Capability is one of the kernel's, capabilities(7).
type Capability struct {
	Name string // CAP_BPF
	Bit  int    // its number
	// Essential: without it nothing is sampled. Without the others something is lost, which Lost says.
	Essential bool
	Why, Lost string
}

// Table is all that stoker ever uses, the essential ones first.
var Table = []Capability{
	{"CAP_BPF", unix.CAP_BPF, true, "loads the BPF programs and their maps", "nothing is sampled"},
	{"CAP_PERFMON", unix.CAP_PERFMON, true, "opens the CPU clock's events and lets BPF programs read stacks", "nothing is sampled"},
	{"CAP_SYS_PTRACE", unix.CAP_SYS_PTRACE, false, "reads mappings, memory and files of other users' processes through /proc",
		"functions of processes of other users have no names, and their code without frame pointers short stacks"},
	{"CAP_DAC_READ_SEARCH", unix.CAP_DAC_READ_SEARCH, false, "reads files of containers that only their owner may read, and with CAP_CHECKPOINT_RESTORE deleted ones",
		"functions of programs that not everybody may read, or that were deleted or replaced while they run, have no names"},
	{"CAP_CHECKPOINT_RESTORE", unix.CAP_CHECKPOINT_RESTORE, false, "opens deleted and replaced files through /proc/PID/map_files",
		"functions of programs that were deleted or replaced while they run have no names"},
	{"CAP_SYSLOG", unix.CAP_SYSLOG, false, "reads the addresses of kernel functions", "kernel functions have no names"},
}

// Remedy is what to do about a capability that is missing.
func (c Capability) Remedy() string {
	return fmt.Sprintf("run as root, or give it %s (in a unit: CapabilityBoundingSet= and AmbientCapabilities=; in a container: --cap-add %s)",
		c.Name, strings.TrimPrefix(c.Name, "CAP_"))
}

// Set is a set of capabilities, bit by number.
type Set uint64

// Has reports whether the set has a capability. CAP_SYS_ADMIN has been all of CAP_BPF, CAP_PERFMON and CAP_CHECKPOINT_RESTORE, and still
// is; it has never shown addresses in /proc/kallsyms, and CAP_DAC_OVERRIDE reads what CAP_DAC_READ_SEARCH does.
func (s Set) Has(c Capability) bool {
	if s&(1<<c.Bit) != 0 {
		return true
	}
	switch c.Bit {
	case unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_CHECKPOINT_RESTORE:
		return s&(1<<unix.CAP_SYS_ADMIN) != 0
	case unix.CAP_DAC_READ_SEARCH:
		return s&(1<<unix.CAP_DAC_OVERRIDE) != 0
	}
	return false
}

// Missing returns what the table has and the set has not.
func (s Set) Missing() (missing []Capability) {
	for _, c := range Table {
		if !s.Has(c) {
			missing = append(missing, c)
		}
	}
	return missing
}

// Of is the effective set of a process: "self" or its pid. In a user namespace it is empty: capabilities there are none over the kernel.
func Of(process string) (Set, error) {
	// The first namespace maps all ids to themselves, user_namespaces(7). Where that file is not to be read, the process is not ours to judge.
	ids, err := os.ReadFile("/proc/" + process + "/uid_map")
	if err == nil && !whole(string(ids)) {
		return 0, nil
	}
	text, err := os.ReadFile("/proc/" + process + "/status")
	if err != nil {
		return 0, fmt.Errorf("read the capabilities of process %s: %w", process, err)
	}
	return parse(string(text))
}

// whole reports whether a uid_map is that of the first user namespace.
func whole(ids string) bool {
	return slices.Equal(strings.Fields(ids), []string{"0", "0", "4294967295"})
}

func parse(status string) (Set, error) {
	_, rest, found := strings.Cut(status, "\nCapEff:")
	if !found {
		return 0, fmt.Errorf("read capabilities: the kernel tells none")
	}
	line, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	if err != nil {
		return 0, fmt.Errorf("read capabilities: %w", err)
	}
	return Set(n), nil
}
