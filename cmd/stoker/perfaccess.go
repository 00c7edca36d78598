package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// This file deals with kernels whose kernel.perf_event_paranoid knows a level above 2, Debian's own patch: at 3, its default, only
// CAP_SYS_ADMIN opens perf events, and CAP_PERFMON, which exists for nothing else, does not. The agent's unit does not give it
// CAP_SYS_ADMIN, which is nearly everything root has. Instead the unit lowers the level to 2, the kernel's own default, before the agent
// starts, and puts the old value back when it has ended. For as long as it runs, because the agent opens events anew when a CPU
// comes back from suspend and when a container asks for another frequency.

const (
	paranoidFile = "/proc/sys/kernel/perf_event_paranoid"
	// paranoidEnough is the level at which CAP_PERFMON counts on every kernel.
	paranoidEnough = 2
)

// perfAccess lowers and restores the level. The paths are those of the files that hold the level and the value to put back.
type perfAccess struct {
	level, state string
	// denied reports whether a process with CAP_PERFMON and no other capability is refused a perf event now.
	denied func() (bool, error)
}

func (a *app) perfAccessCommand() *cobra.Command {
	p := perfAccess{level: paranoidFile, denied: perfmonDenied}
	lower := &cobra.Command{
		Use:     "lower",
		Example: "  stoker perf-access lower",
		Short:   "Make CAP_PERFMON count, where kernel.perf_event_paranoid is above 2 and the kernel then ignores it",
		Args:    noArguments,
		RunE: func(*cobra.Command, []string) error {
			from, err := p.lower()
			if err != nil {
				return machine(err, "set it by hand: sysctl kernel.perf_event_paranoid=2")
			}
			if from > paranoidEnough {
				_, err = fmt.Fprintf(a.stderr, "stoker: kernel.perf_event_paranoid was %d, where this kernel opens perf events only for CAP_SYS_ADMIN; "+
					"it is %d while the agent runs\n", from, paranoidEnough)
			}
			return err
		},
	}
	restore := &cobra.Command{
		Use:     "restore",
		Example: "  stoker perf-access restore",
		Short:   "Put back what lower has changed",
		Args:    noArguments,
		RunE: func(*cobra.Command, []string) error {
			to, err := p.restore()
			if err == nil && to > paranoidEnough {
				_, err = fmt.Fprintf(a.stderr, "stoker: kernel.perf_event_paranoid is %d again\n", to)
			}
			return err
		},
	}
	c := group("perf-access", "Lower kernel.perf_event_paranoid for as long as the agent runs, and put it back", "What the systemd unit calls before and after the agent, as root.",
		lower, restore)
	c.Hidden = true // it is the unit's
	c.PersistentFlags().StringVar(&p.state, "state", "/run/stoker/perf_event_paranoid", "`FILE` that keeps the value to put back")
	return c
}

// lower returns the level it found where it changed it, and 0 where nothing was to be done.
func (p perfAccess) lower() (from int, err error) {
	now, err := readLevel(p.level)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // no perf events at all: the agent says so
	}
	if err != nil || now <= paranoidEnough {
		return 0, err
	}
	denied, err := p.denied()
	if err != nil || !denied {
		return 0, err // other distributions have levels above 2 that CAP_PERFMON passes
	}
	// The value to put back is written first: a change that nobody undoes is worse than none.
	if err := os.WriteFile(p.state, fmt.Append(nil, now, "\n"), 0o644); err != nil {
		return 0, fmt.Errorf("remember kernel.perf_event_paranoid: %w", err)
	}
	if err := writeLevel(p.level, paranoidEnough); err != nil {
		return 0, errors.Join(err, os.Remove(p.state))
	}
	if denied, err = p.denied(); err != nil || denied { // it was not the level
		_, undo := p.restore()
		return 0, errors.Join(err, undo)
	}
	return now, nil
}

// restore returns the level it set, and 0 where nothing was to be done: lower had changed nothing, or somebody has since.
func (p perfAccess) restore() (to int, err error) {
	before, err := readLevel(p.state)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	now, err := readLevel(p.level)
	if err != nil {
		return 0, err
	}
	if now == paranoidEnough {
		if err := writeLevel(p.level, before); err != nil {
			return 0, err
		}
		to = before
	}
	return to, os.Remove(p.state)
}

func readLevel(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read a level of kernel.perf_event_paranoid: %w", err)
	}
	level, err := strconv.Atoi(string(bytes.TrimSpace(text)))
	if err != nil {
		return 0, fmt.Errorf("%s holds no level of kernel.perf_event_paranoid: %w", path, err)
	}
	return level, nil
}

func writeLevel(path string, level int) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0) // not created: /proc has it, or the kernel has not
	if err == nil {
		_, err = f.WriteString(strconv.Itoa(level) + "\n")
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("set kernel.perf_event_paranoid to %d: %w", level, err)
	}
	return nil
}

// perfmonDenied opens an event as the sampler does, on a thread that has no capability in force but CAP_PERFMON.
func perfmonDenied() (denied bool, err error) {
	runtime.LockOSThread() // capabilities belong to a thread
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var all [2]unix.CapUserData
	if err := unix.Capget(&header, &all[0]); err != nil {
		return false, fmt.Errorf("read this thread's capabilities: %w", err)
	}
	only := all
	only[0].Effective, only[1].Effective = 0, 1<<(unix.CAP_PERFMON-32)
	if err := unix.Capset(&header, &only[0]); err != nil {
		return false, fmt.Errorf("keep only CAP_PERFMON for a moment: %w", err)
	}
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CPU_CLOCK, Bits: unix.PerfBitDisabled}
	fd, openErr := unix.PerfEventOpen(&attr, -1, 0, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err := unix.Capset(&header, &all[0]); err != nil {
		return false, fmt.Errorf("take back all capabilities: %w", err) // the thread stays locked, and ends with its goroutine
	}
	runtime.UnlockOSThread()
	if openErr == nil {
		return false, unix.Close(fd)
	}
	return errors.Is(openErr, unix.EACCES) || errors.Is(openErr, unix.EPERM), nil
}
