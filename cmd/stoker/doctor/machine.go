package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/internal/privilege"
	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
)

// Machine are the checks of the kernel and of rights. process is whose rights count: "self", or the pid of the agent that runs. proc and
// sys are /proc and /sys; freezes tells of a kernel release whether it has the bug that can freeze a machine; untested: the
// configuration lets the agent try a kernel that is too old.
func Machine(process, proc, sys string, freezes func(release string) bool, untested bool) []Check {
	return []Check{
		{"kernel", "release", func(context.Context) []Finding { return kernel(proc, freezes, untested) }},
		{"kernel", "BTF", func(context.Context) []Finding { return btf(sys) }},
		{"kernel", "cgroups", func(context.Context) []Finding { return cgroups() }},
		{"kernel", "CPU clock event", func(context.Context) []Finding { return clockEvent(process, proc) }},
		{"kernel", "hardware events", func(context.Context) []Finding { return hardware() }},
		{"kernel", "lockdown", func(context.Context) []Finding { return lockdown(sys) }},
		{"kernel", "symbols", func(context.Context) []Finding { return kernelSymbols(proc) }},
		{"rights", "capabilities", func(context.Context) []Finding { return capabilities(process) }},
		{"time", "clock", func(context.Context) []Finding { return clock() }},
	}
}

func word(path string) (string, error) {
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), err
}

// oldest is the oldest kernel that stoker is tested on.
const oldestMajor, oldestMinor = 6, 1

func kernel(proc string, freezes func(string) bool, untested bool) []Finding {
	release, err := word(filepath.Join(proc, "sys/kernel/osrelease"))
	if err != nil {
		return one(Degraded, err.Error(), "mount /proc")
	}
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n == 2 && (major < oldestMajor || major == oldestMajor && minor < oldestMinor) {
		what := fmt.Sprintf("Linux %s; tested from %d.%d on", release, oldestMajor, oldestMinor)
		if untested {
			return one(Degraded, what, "install a newer kernel")
		}
		return one(Broken, what, "install a newer kernel; to try this one: set sampling.untested_kernel to true")
	}
	if freezes(release) {
		return one(Degraded, "Linux "+release+" may freeze when a profiler reads user memory (copy_from_user_nofault, mended in 6.4 and 6.1.40)", "apt-get upgrade, and boot the new kernel")
	}
	return one(OK, "Linux "+release, "")
}

func btf(sys string) []Finding {
	f, err := os.Open(filepath.Join(sys, "kernel/btf/vmlinux"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return one(Broken, "the kernel does not describe its types", "use a kernel with CONFIG_DEBUG_INFO_BTF=y: your distribution's, not a vendor's")
	case err != nil:
		return one(Broken, err.Error(), "run as root")
	}
	f.Close()
	return one(OK, "there", "")
}

func cgroups() []Finding {
	h, err := cgroupfs.Detect()
	switch {
	case err != nil:
		return one(Broken, err.Error(), "mount -t cgroup2 none /sys/fs/cgroup")
	case h.Controller != "":
		return one(OK, fmt.Sprintf("version 1, by the controller %s at %s", h.Controller, h.Mount), "")
	}
	return one(OK, "version 2 at "+h.Mount, "")
}

func open(kind uint32, config uint64) error {
	attr := unix.PerfEventAttr{Type: kind, Config: config, Sample: 97, Bits: unix.PerfBitDisabled | unix.PerfBitFreq}
	attr.Size = uint32(unix.PERF_ATTR_SIZE_VER5)
	fd, err := unix.PerfEventOpen(&attr, -1, 0, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// clockEvent tries one. An agent that runs has its own, whatever the rights of who asks, unless it has no rights to it: then these are
// what is said.
func clockEvent(process, proc string) []Finding {
	if process != "self" {
		rights, err := privilege.Of(process)
		if err != nil || len(rights.Missing()) > 0 && rights.Missing()[0].Essential {
			return nil
		}
		return one(OK, "opened by the agent", "")
	}
	err := open(unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_CPU_CLOCK)
	level, levelErr := word(filepath.Join(proc, "sys/kernel/perf_event_paranoid"))
	switch {
	case err == nil:
		return one(OK, "opens", "")
	case errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM):
		if n, e := strconv.Atoi(level); levelErr == nil && e == nil && n > 2 && os.Geteuid() == 0 {
			return one(Broken, fmt.Sprintf("%v: kernel.perf_event_paranoid is %d, where CAP_PERFMON does not count", err, n), "sysctl kernel.perf_event_paranoid=2")
		}
		return one(Broken, fmt.Sprintf("%v; kernel.perf_event_paranoid is %s", err, level), "run as root: sudo stoker doctor")
	}
	return one(Broken, err.Error(), "use a kernel with CONFIG_PERF_EVENTS=y")
}

func hardware() []Finding {
	if err := open(unix.PERF_TYPE_HARDWARE, unix.PERF_COUNT_HW_CPU_CYCLES); err != nil {
		return one(OK, "none, and none are needed", "")
	}
	return one(OK, "there, and not used", "")
}

func lockdown(sys string) []Finding {
	text, err := word(filepath.Join(sys, "kernel/security/lockdown"))
	if err != nil { // securityfs is not mounted, or the kernel has no lockdown
		return nil
	}
	if strings.Contains(text, "[confidentiality]") {
		return one(Broken, "confidentiality: the kernel lets no BPF program read memory", "boot with lockdown=integrity or lockdown=none")
	}
	return one(OK, text, "")
}

// kernelSymbols is about what no capability helps against.
func kernelSymbols(proc string) []Finding {
	if level, err := word(filepath.Join(proc, "sys/kernel/kptr_restrict")); err == nil && level == "2" {
		return one(Degraded, "kernel functions have no names: kernel.kptr_restrict is 2", "sysctl kernel.kptr_restrict=1")
	}
	return nil
}

func capabilities(process string) []Finding {
	set, err := privilege.Of(process)
	if err != nil {
		return one(Degraded, err.Error(), "run as root: sudo stoker doctor")
	}
	var out []Finding
	for _, c := range set.Missing() {
		state := Degraded
		if c.Essential {
			state = Broken
		}
		out = append(out, Finding{c.Name, state, "missing: " + c.Lost, c.Remedy()})
	}
	if out == nil {
		return one(OK, "all that are needed", "")
	}
	return out
}

// built is before any time at which this program can run.
var built = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func clock() []Finding {
	if now := time.Now(); now.Before(built) {
		return one(Degraded, "it is "+now.UTC().Format(time.RFC3339)+": servers refuse profiles of that time", "set the clock: timedatectl set-ntp true")
	}
	var t unix.Timex
	state, err := unix.Adjtimex(&t) // with no mode set it reads
	switch {
	case err != nil:
		return one(OK, "it is not known whether it is synchronised: "+err.Error(), "")
	case state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0:
		return one(OK, "not synchronised by this kernel's count; containers and virtual machines often are all the same", "")
	}
	return one(OK, "synchronised", "")
}
