package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// runs is what the kernel counted for one BPF program.
type runs struct {
	n  uint64
	ns time.Duration
}

func (r runs) sub(o runs) runs { return runs{r.n - o.n, r.ns - o.ns} }

// in returns the runs of stoker's program that took a sample: it also runs when something else has the CPU, and those runs take
// as long as out's.
func (r runs) in(taken uint64, out runs) runs {
	if taken == 0 || taken >= r.n {
		return r
	}
	return runs{taken, r.ns - time.Duration(float64(r.n-taken)*out.each())}
}

// each is the time of one run, in nanoseconds.
func (r runs) each() float64 {
	if r.n == 0 {
		return 0
	}
	return float64(r.ns) / float64(r.n)
}

func runsOf(p *ebpf.Program) (runs, error) {
	s, err := p.Stats()
	if err != nil {
		return runs{}, fmt.Errorf("read the run time of a BPF program: %w", err)
	}
	return runs{s.RunCount, s.Runtime}, nil
}

// enableStats makes the kernel time every run of every BPF program, which slows all of them a little, until the returned
// function puts things back.
func enableStats() (restore func(), err error) {
	const path = "/proc/sys/kernel/bpf_stats_enabled"
	before, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the switch of BPF statistics: %w", err)
	}
	if err := os.WriteFile(path, []byte("1"), 0); err != nil {
		return nil, fmt.Errorf("switch BPF statistics on: %w; run as root", err)
	}
	return func() {
		if err := os.WriteFile(path, bytes.TrimSpace(before), 0); err != nil {
			fmt.Fprintln(os.Stderr, "bench: put kernel.bpf_stats_enabled back:", err)
		}
	}, nil
}

// perfPrograms returns the ids of all perf_event programs in the kernel by name. The caller compares two answers to find
// those that somebody loaded in between.
func perfPrograms() (map[ebpf.ProgramID]string, error) {
	found := map[ebpf.ProgramID]string{}
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return found, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list BPF programs: %w", err)
		}
		id = next
		p, err := ebpf.NewProgramFromID(id)
		if errors.Is(err, os.ErrNotExist) {
			continue // unloaded meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("open BPF program %d: %w", id, err)
		}
		info, err := p.Info()
		p.Close()
		if err != nil {
			return nil, fmt.Errorf("read BPF program %d: %w", id, err)
		}
		if info.Type == ebpf.PerfEvent {
			found[id] = info.Name
		}
	}
}

// attach runs a program at each tick of the CPU clock while one of some processes runs, until the returned function is called.
// What else runs on the machine does not count.
func attach(p *ebpf.Program, frequency int, pids []int) (detach func(), err error) {
	var fds []int
	detach = func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
	for _, pid := range pids {
		attr := unix.PerfEventAttr{
			Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CPU_CLOCK,
			Size: unix.PERF_ATTR_SIZE_VER1, Sample: uint64(frequency), Bits: unix.PerfBitFreq,
		}
		fd, err := unix.PerfEventOpen(&attr, pid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
		if err != nil {
			detach()
			return nil, fmt.Errorf("open the CPU clock of process %d: %w", pid, err)
		}
		fds = append(fds, fd)
		if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_SET_BPF, p.FD()); err != nil {
			detach()
			return nil, fmt.Errorf("attach to the CPU clock of process %d: %w", pid, err)
		}
	}
	return detach, nil
}

// takenBy is how many samples stoker's program has taken: its runs in scope. They are in the third word of struct counters
// (bpf/include/unwind.h), per CPU.
func takenBy(p *ebpf.Program) (sum uint64, err error) {
	info, err := p.Info()
	if err != nil {
		return 0, fmt.Errorf("read stoker's program: %w", err)
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return 0, fmt.Errorf("open map %d of stoker's program: %w", id, err)
		}
		defer m.Close()
		if about, err := m.Info(); err != nil || about.Name != "counters" {
			continue // which one it is is all we ask
		}
		var values [][]byte
		if err := m.Lookup(uint32(0), &values); err != nil {
			return 0, fmt.Errorf("read the counters of stoker's program: %w", err)
		}
		for _, v := range values {
			sum += binary.NativeEndian.Uint64(v[16:])
		}
		return sum, nil
	}
	return 0, errors.New("stoker's program has no map of counters")
}

// cpus is how many CPUs this process may run on, which on the machines of this benchmark are all; they count from 0.
func cpus() int {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return 1
	}
	return set.Count()
}

// cpuTime is the time that all threads of a process have run, in the kernel's nanoseconds. Threads that ended are missing.
func cpuTime(pid int) (time.Duration, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("no threads of process %d: it has ended", pid)
	}
	var sum time.Duration
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // a thread that ended meanwhile
		}
		first, _, _ := strings.Cut(string(text), " ")
		ns, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", f, err)
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

// rss is the resident memory of a process and the most it ever was, in bytes.
func rss(pid int) (now, peak int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		name, rest, _ := strings.Cut(line, ":")
		if name != "VmRSS" && name != "VmHWM" {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("%s of process %d: %w", name, pid, err)
		}
		if name == "VmRSS" {
			now = kib << 10
		} else {
			peak = kib << 10
		}
	}
	return now, peak, nil
}

// mapBytes sums the kernel memory of the BPF maps that a process holds open.
func mapBytes(pid int) (sum int64, maps int, err error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		return 0, 0, err
	}
	seen := map[string]bool{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // closed meanwhile
		}
		fields := map[string]string{}
		for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
			name, value, _ := strings.Cut(s.Text(), ":")
			fields[name] = strings.TrimSpace(value)
		}
		id := fields["map_id"]
		if id == "" || seen[id] {
			continue
		}
		seen[id] = true
		n, err := strconv.ParseInt(fields["memlock"], 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("memlock of BPF map %s: %w", id, err)
		}
		sum += n
	}
	return sum, len(seen), nil
}
