package sampler

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/bpf/internal/cpulist"
)

// clock is the CPU clock event of every online CPU, with the sampler's program on it. It follows CPU hotplug when asked to
// refresh.
type clock struct {
	prog *ebpf.Program

	mu          sync.Mutex // protects what follows
	frequencyHz int
	enabled     bool
	retuning    bool                  // the events stand still for a moment; the next ones are ready
	fds         map[int]int           // CPU → perf event
	ran         map[int]time.Duration // CPU → its event's time enabled at the last refresh, if it was enabled then and since
	past        time.Duration         // time enabled of events that are closed
	ticked      float64               // ticks at earlier frequencies; past and idle began anew after them

	idle      time.Duration         // time that CPUs idled while the clock was on, up to the last change
	idleSince map[int]time.Duration // while it is on: each CPU's idle time at the last change
}

func newClock(prog *ebpf.Program, frequencyHz int) *clock {
	return &clock{prog: prog, frequencyHz: frequencyHz, fds: map[int]int{}, ran: map[int]time.Duration{}}
}

// open opens the event of each online CPU, disabled.
func (c *clock) open() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refreshLocked()
}

// frequency is how often each CPU is sampled now, per second.
func (c *clock) frequency() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.frequencyHz
}

// refresh opens events of CPUs that came online and closes those of CPUs that left.
func (c *clock) refresh() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refreshLocked()
}

func onlineCPUs() (map[int]bool, error) {
	const path = "/sys/devices/system/cpu/online"
	list, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the list of online CPUs: %w", err)
	}
	online, err := cpulist.Parse(string(list))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return online, nil
}

func (c *clock) refreshLocked() error {
	if c.retuning {
		return nil // with the next window
	}
	online, err := onlineCPUs()
	if err != nil {
		return err
	}
	var errs []error
	for cpu, fd := range c.fds {
		t := timeEnabled(fd)
		// A CPU that went offline and came back between two looks (suspend does that to all but one) has an event that is
		// open and dead: its time stands still.
		ran, known := c.ran[cpu]
		if !online[cpu] || known && t <= ran {
			c.past += max(t, ran)
			errs = append(errs, unix.Close(fd))
			delete(c.fds, cpu)
			delete(c.ran, cpu)
		} else if c.enabled {
			c.ran[cpu] = t
		}
	}
	for cpu := range online {
		if _, ok := c.fds[cpu]; ok {
			continue
		}
		fd, err := c.openCPU(cpu, c.frequencyHz)
		if errors.Is(err, unix.ENODEV) { // went offline since we read the list
			continue
		}
		if err == nil && c.enabled {
			if err = enable(fd, true); err != nil {
				err = errors.Join(perfError(cpu, fmt.Errorf("enable: %w", err)), unix.Close(fd))
			}
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.fds[cpu] = fd
	}
	return errors.Join(errs...)
}

// openCPU opens an event, disabled.
func (c *clock) openCPU(cpu, frequencyHz int) (int, error) {
	attr := unix.PerfEventAttr{
		Type:        unix.PERF_TYPE_SOFTWARE,
		Config:      unix.PERF_COUNT_SW_CPU_CLOCK,
		Size:        uint32(unsafe.Sizeof(unix.PerfEventAttr{})),
		Sample:      uint64(frequencyHz),
		Bits:        unix.PerfBitFreq | unix.PerfBitDisabled,
		Read_format: unix.PERF_FORMAT_TOTAL_TIME_ENABLED,
	}
	fd, err := unix.PerfEventOpen(&attr, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return 0, perfError(cpu, err)
	}
	// An ioctl rather than a BPF link: it is there on every kernel and ends with the file just the same.
	if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_SET_BPF, c.prog.FD()); err != nil {
		unix.Close(fd)
		return 0, perfError(cpu, fmt.Errorf("attach the program: %w", err))
	}
	return fd, nil
}

// enable starts or stops an event. When it returns, the program is not running on that CPU for a stopped event: the kernel stops it
// by an interrupt there.
func enable(fd int, on bool) error {
	op := uint(unix.PERF_EVENT_IOC_DISABLE)
	if on {
		op = unix.PERF_EVENT_IOC_ENABLE
	}
	return unix.IoctlSetInt(fd, op, 0)
}

// retune makes the events of another frequency ready, and returns what switches to them: it stops the old ones, calls between while
// nothing ticks, and starts the new ones. So whatever between changes holds for all samples of the one frequency and for none of
// the other. Some microseconds per CPU are not sampled. It must be called once; one retune at a time.
func (c *clock) retune(frequencyHz int) (swap func(between func()) error, err error) {
	online, err := onlineCPUs()
	if err != nil {
		return nil, err
	}
	fresh := make(map[int]int, len(online))
	for cpu := range online {
		fd, err := c.openCPU(cpu, frequencyHz)
		if errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			for _, fd := range fresh {
				err = errors.Join(err, unix.Close(fd))
			}
			return nil, err
		}
		fresh[cpu] = fd
	}
	return func(between func()) error {
		c.mu.Lock()
		var errs []error
		// Idle times are for a metric only.
		_ = c.countIdleLocked()
		if c.enabled {
			for cpu, fd := range c.fds {
				if err := enable(fd, false); err != nil {
					errs = append(errs, perfError(cpu, err))
				}
			}
		}
		c.retuning = true
		c.mu.Unlock()

		between() // may enable and disable the clock

		c.mu.Lock()
		defer c.mu.Unlock()
		c.retuning = false
		c.ticked += c.busyLocked().Seconds() * float64(c.frequencyHz)
		c.past, c.idle = 0, 0
		old := c.fds
		c.fds, c.frequencyHz = fresh, frequencyHz
		clear(c.ran)
		if c.enabled {
			for cpu, fd := range c.fds {
				if err := enable(fd, true); err != nil {
					errs = append(errs, perfError(cpu, fmt.Errorf("enable: %w", err)))
				}
			}
		}
		for _, fd := range old {
			errs = append(errs, unix.Close(fd))
		}
		return errors.Join(errs...)
	}, nil
}

// enable starts or stops the ticking on all CPUs.
func (c *clock) enable(on bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.enabled == on {
		return nil
	}
	// Idle times are for a metric only, whose reader is told when they cannot be had: they keep nobody from sampling.
	if on {
		c.idleSince, _ = idleTimes()
	} else {
		_ = c.countIdleLocked()
	}
	c.enabled = on
	clear(c.ran)
	if c.retuning {
		return nil // the next events will
	}
	var errs []error
	for cpu, fd := range c.fds {
		if err := enable(fd, on); err != nil {
			errs = append(errs, perfError(cpu, err))
		}
	}
	return errors.Join(errs...)
}

// busyLocked is how long CPUs ran something while the clock was on, since the frequency changed last.
func (c *clock) busyLocked() time.Duration {
	busy := c.past - c.idle
	for _, fd := range c.fds {
		busy += timeEnabled(fd)
	}
	return max(0, busy)
}

// ticks is how often the clock should have run the program on a busy CPU so far: time enabled and not idle × frequency.
func (c *clock) ticks() (float64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.countIdleLocked(); err != nil {
		return 0, err
	}
	return c.ticked + c.busyLocked().Seconds()*float64(c.frequencyHz), nil
}

// countIdleLocked brings c.idle up to date.
func (c *clock) countIdleLocked() error {
	if !c.enabled {
		return nil
	}
	now, err := idleTimes()
	if err != nil {
		return err
	}
	for cpu := range c.fds {
		if since, ok := c.idleSince[cpu]; ok && now[cpu] > since {
			c.idle += now[cpu] - since
		}
	}
	c.idleSince = now
	return nil
}

// idleTimes reads the idle, iowait and steal time of each CPU from /proc/stat (man 5 proc_stat; in ticks of 10 ms).
func idleTimes() (map[int]time.Duration, error) {
	const path, maxBytes = "/proc/stat", 4 << 20
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read idle times: %w", err)
	}
	defer f.Close()
	times, err := parseIdleTimes(io.LimitReader(f, maxBytes))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return times, nil
}

// parseIdleTimes reads the lines "cpuN user nice system idle iowait irq softirq steal …".
func parseIdleTimes(r io.Reader) (map[int]time.Duration, error) {
	const tick = 10 * time.Millisecond // USER_HZ is 100 on amd64 and arm64
	times := map[int]time.Duration{}
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20) // the line "intr" has a number for each interrupt
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 9 || !strings.HasPrefix(f[0], "cpu") || f[0] == "cpu" {
			continue
		}
		cpu, err := strconv.Atoi(f[0][len("cpu"):])
		if err != nil {
			return nil, fmt.Errorf("line %.60q: no CPU number", sc.Text())
		}
		for _, i := range []int{4, 5, 8} {
			n, err := strconv.ParseInt(f[i], 10, 48)
			if err != nil {
				return nil, fmt.Errorf("line %.60q: field %d is no time", sc.Text(), i)
			}
			times[cpu] += time.Duration(n) * tick
		}
	}
	return times, sc.Err()
}

// timeEnabled reads struct read_format {value, time_enabled}; 0 when the event is gone.
func timeEnabled(fd int) time.Duration {
	var b [16]byte
	if n, err := unix.Read(fd, b[:]); err != nil || n != len(b) {
		return 0
	}
	return time.Duration(binary.LittleEndian.Uint64(b[8:]))
}

func (c *clock) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for cpu, fd := range c.fds {
		errs = append(errs, unix.Close(fd))
		delete(c.fds, cpu)
	}
	return errors.Join(errs...)
}
