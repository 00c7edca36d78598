//go:build root

package sampler_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/sampler"
	"github.com/stoker-profiler/stoker/bpf/symbol"
	"github.com/stoker-profiler/stoker/bpf/unwind"
	"github.com/stoker-profiler/stoker/bpf/unwind/native"
	"github.com/stoker-profiler/stoker/bpf/unwind/node"
	"github.com/stoker-profiler/stoker/bpf/unwind/python"
	"github.com/stoker-profiler/stoker/bpf/unwind/ruby"
	"github.com/stoker-profiler/stoker/test/marker"
)

// The test binary is its own workload: started with STOKER_TEST_WORKLOAD it does that and nothing else.
func TestMain(m *testing.M) {
	if w := os.Getenv("STOKER_TEST_WORKLOAD"); w != "" {
		workloads[w]()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// result keeps what the workloads compute, so that computing it is not for nothing.
var result uint64

var workloads = map[string]func(){
	"spin": func() {
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
			result += spin()
		}
	},
	"storm": func() { // fork and exec as fast as one CPU can
		for {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), "STOKER_TEST_WORKLOAD=brief")
			if err := cmd.Run(); err != nil {
				return
			}
		}
	},
	"brief": func() { result += spin() },
	"maps": func() { // one more executable page, twice a second
		for {
			for deadline := time.Now().Add(500 * time.Millisecond); time.Now().Before(deadline); {
				result += spin()
			}
			if _, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
				return
			}
		}
	},
	"jit": func() { // one more executable page all the time
		for {
			result += work(1)
			if _, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
				return
			}
		}
	},
	"io": func() { // the kernel's own threads do all the work
		if err := readWithWorkers(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	},
	"stacks": func() { deep(uint64(os.Getpid())) },
}

//go:noinline
func spin() (x uint64) {
	for i := range uint64(1 << 20) {
		x = x*31 + i
	}
	return x
}

// readWithWorkers has io_uring read zeros, by a worker thread: one read at a time, for as long as it is let.
func readWithWorkers() error {
	// include/uapi/linux/io_uring.h
	const (
		offSQ, offSQEs            = 0, 0x10000000
		opRead, async, getEvents  = 22, 1 << 4, 1
		paramsBytes, sqOff, cqOff = 120, 40, 80
		sqeBytes                  = 64
	)
	var params [paramsBytes]byte
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
	if errno != 0 {
		return fmt.Errorf("io_uring_setup: %w", errno)
	}
	u32 := binary.LittleEndian.Uint32
	ring, err := unix.Mmap(int(fd), offSQ, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("map the ring: %w", err)
	}
	sqe, err := unix.Mmap(int(fd), offSQEs, sqeBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("map the entries: %w", err)
	}
	zero, err := unix.Open("/dev/zero", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	buf := make([]byte, 64<<20)
	sqe[0], sqe[1] = opRead, async
	binary.LittleEndian.PutUint32(sqe[4:], uint32(zero))
	binary.LittleEndian.PutUint64(sqe[16:], uint64(uintptr(unsafe.Pointer(&buf[0]))))
	binary.LittleEndian.PutUint32(sqe[24:], uint32(len(buf)))
	at := func(off int) *uint32 { return (*uint32)(unsafe.Pointer(&ring[u32(params[off:])])) }
	tail, cqHead, cqTail := at(sqOff+4), at(cqOff), at(cqOff+4)
	for {
		atomic.AddUint32(tail, 1)
		if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, fd, 1, 1, getEvents, 0, 0); errno != 0 && errno != unix.EINTR {
			return fmt.Errorf("io_uring_enter: %w", errno)
		}
		atomic.StoreUint32(cqHead, atomic.LoadUint32(cqTail))
		runtime.KeepAlive(buf)
	}
}

// deep makes as many different stacks as it can: each bit of n picks one of two functions.
//
//go:noinline
func deep(n uint64) {
	for {
		n = n*6364136223846793005 + 1442695040888963407
		result += left(n>>20, 20)
	}
}

//go:noinline
func left(n uint64, depth int) uint64 {
	if depth == 0 {
		return work(n)
	}
	if n&1 == 0 {
		return left(n>>1, depth-1) + 1
	}
	return right(n>>1, depth-1) + 2
}

//go:noinline
func right(n uint64, depth int) uint64 {
	if depth == 0 {
		return work(n)
	}
	if n&1 == 0 {
		return left(n>>1, depth-1) + 3
	}
	return right(n>>1, depth-1) + 4
}

//go:noinline
func work(n uint64) uint64 {
	for i := range uint64(20000) {
		n = n*31 + i
	}
	return n
}

// cgroup2 finds where the v2 tree is mounted.
func cgroup2(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir
		}
	}
	t.Fatal("no cgroup v2 tree is mounted: these tests need one at /sys/fs/cgroup or /sys/fs/cgroup/unified")
	return ""
}

// newCgroup makes a cgroup below root and removes it, with all that is in it, when the test ends.
func newCgroup(t *testing.T, root, name string) (dir string, id uint64) {
	t.Helper()
	dir = filepath.Join(root, fmt.Sprintf("stoker-test-%d-%s", os.Getpid(), name))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 200 {
			killAll(dir)
			if os.Remove(dir) == nil || os.IsNotExist(os.Remove(dir)) {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Errorf("cannot remove %s", dir)
	})
	return dir, inode(t, dir)
}

// inode is a cgroup's id.
func inode(t *testing.T, dir string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func killAll(dir string) {
	b, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	for _, pid := range strings.Fields(string(b)) {
		var n int
		if _, err := fmt.Sscan(pid, &n); err == nil {
			_ = syscall.Kill(n, syscall.SIGKILL)
		}
	}
}

// start runs a workload of this binary in a cgroup.
func start(t *testing.T, cgroup, workload string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "STOKER_TEST_WORKLOAD="+workload, "GOMAXPROCS=1")
	if cgroup != "" {
		d, err := os.Open(cgroup)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if isCgroup2(cgroup) {
			cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(d.Fd())}
		}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if cgroup != "" && !isCgroup2(cgroup) {
		if err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), fmt.Append(nil, cmd.Process.Pid), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return cmd
}

func isCgroup2(dir string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
}

// collector is a Handler that checks the protocol as it goes.
type collector struct {
	mu        sync.Mutex
	stacks    map[unwind.Key]unwind.Stack
	forgotten map[unwind.Key]bool
	n, weight map[uint32]uint64 // by scope
	byPID     map[uint32]uint64
	counts    map[unwind.Key]uint64
	rest      map[uint32]uint64
	orphans   []unwind.Key
	stackless uint64
	windows   int
	lost      int
	execs     map[process.ID]uint32
	exits     map[process.ID]bool
	again     int
	maps      map[process.ID]int
}

func newCollector() *collector {
	return &collector{
		stacks: map[unwind.Key]unwind.Stack{}, forgotten: map[unwind.Key]bool{}, n: map[uint32]uint64{}, weight: map[uint32]uint64{},
		byPID: map[uint32]uint64{}, counts: map[unwind.Key]uint64{}, rest: map[uint32]uint64{},
		execs: map[process.ID]uint32{}, exits: map[process.ID]bool{}, maps: map[process.ID]int{},
	}
}

func (c *collector) Exec(id process.ID, scope uint32) { c.locked(func() { c.execs[id] = scope }) }
func (c *collector) Exit(id process.ID)               { c.locked(func() { c.exits[id] = true }) }
func (c *collector) MapsChanged(id process.ID)        { c.locked(func() { c.maps[id]++ }) }
func (c *collector) ProcessesLost()                   { c.locked(func() { c.lost++ }) }
func (c *collector) Forget(k unwind.Key)              { c.locked(func() { delete(c.stacks, k) }) }
func (c *collector) Stack(s unwind.Stack) {
	c.locked(func() {
		if _, ok := c.stacks[s.Key]; ok {
			c.again++
		}
		c.stacks[s.Key] = s
	})
}
func (c *collector) Window(w sampler.Window) {
	c.locked(func() {
		c.windows++
		for _, x := range w.Counts {
			c.n[x.Key.Scope] += x.N
			c.weight[x.Key.Scope] += x.Weight
			c.byPID[x.Key.Process.PID] += x.N
			c.counts[x.Key] += x.N
			if x.Key.Hash == 0 {
				c.stackless += x.N
			} else if _, ok := c.stacks[x.Key]; !ok {
				c.orphans = append(c.orphans, x.Key)
			}
		}
		for _, r := range w.Rest {
			c.rest[r.Scope] += r.Count.N
		}
	})
}
func (c *collector) locked(f func()) { c.mu.Lock(); defer c.mu.Unlock(); f() }

func (c *collector) total() (n uint64) {
	for _, v := range c.n {
		n += v
	}
	for _, v := range c.rest {
		n += v
	}
	return n
}

// open starts a sampler and returns what stops it: after stop the clock is off and the last window is read.
func open(t *testing.T, cfg sampler.Config, window time.Duration) (s *sampler.Sampler, c *collector, stop func() sampler.Stats) {
	t.Helper()
	if cfg.Unwinders == nil {
		cfg.Unwinders = []unwind.Unwinder{native.New()}
	}
	s, err := sampler.Open(cfg)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { s.Close() })
	c = newCollector()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, window, c) }()
	var once sync.Once
	var st sampler.Stats
	stop = func() sampler.Stats {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
			var err error
			if st, err = s.Stats(); err != nil {
				t.Error(err)
			}
		})
		return st
	}
	t.Cleanup(func() { stop() })
	return s, c, stop
}

func mustAdd(t *testing.T, s *sampler.Sampler, cgroupID uint64, thinning uint32) uint32 {
	t.Helper()
	id, err := s.Scopes().Add(cgroupID, thinning)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// checkProtocol holds what must be true of every run after it was stopped.
func checkProtocol(t *testing.T, c *collector, st sampler.Stats) {
	t.Helper()
	var sum uint64
	for _, n := range st.Outcomes {
		sum += n
	}
	if st.Taken != sum {
		t.Errorf("taken %d ≠ Σ outcomes %d: %v", st.Taken, sum, st.Outcomes)
	}
	if got, want := c.total()+st.Outcomes["thinned"], st.Taken; got != want {
		t.Errorf("user space got %d samples, the kernel took %d", got, want)
	}
	if len(c.orphans) > 0 || st.StacksLost != 0 {
		t.Errorf("%d counts without their stack (metric: %d), e.g. %+v", len(c.orphans), st.StacksLost, c.orphans[0])
	}
	if c.stackless != st.Outcomes["undelivered"] && st.Outcomes["overflow"] == 0 {
		t.Errorf("stackless counts %d ≠ undelivered %d", c.stackless, st.Outcomes["undelivered"])
	}
	if st.BadRecords != 0 {
		t.Errorf("%d records of the ring could not be parsed", st.BadRecords)
	}
	t.Logf("taken %d, outcomes %v, events %v, stacks new %d again %d evicted %d, windows %d, runs %d of %.0f ticks, maps %d KiB",
		st.Taken, st.Outcomes, st.Events, st.StacksNew, st.StacksAgain, st.StacksEvicted, st.Windows, st.Runs, st.Ticks, st.MapBytes>>10)
}

func sleep(d time.Duration) { time.Sleep(d) }

func TestBusyCgroupIsSampledAndNothingElse(t *testing.T) {
	in, id := newCgroup(t, cgroup2(t), "in")
	out, _ := newCgroup(t, cgroup2(t), "out")
	s, c, stop := open(t, sampler.Config{FrequencyHz: 97}, time.Second)
	scope := mustAdd(t, s, id, 1)
	cmd := start(t, in, "spin")
	other := start(t, out, "spin")
	outside := start(t, "", "spin")
	sleep(5 * time.Second)
	cpu := freeze(t, cmd)
	st := stop()
	checkProtocol(t, c, st)
	// A clock that is not in step with the load: the count has the spread of a Poisson process at most. Exact shares and sums
	// over longer times are the business of test/e2e.
	want := cpu.Seconds() * 97
	if got := float64(c.n[scope]); math.Abs(got-want) > 4*math.Sqrt(want)+4 {
		t.Errorf("%v samples for %v of CPU at 97 Hz, want about %.0f", got, cpu, want)
	}
	if len(c.n) != 1 || c.byPID[uint32(other.Process.Pid)] != 0 || c.byPID[uint32(outside.Process.Pid)] != 0 {
		t.Errorf("samples of others: by scope %v, by pid %v", c.n, c.byPID)
	}
	for k, st := range c.stacks {
		if k.Context == unwind.ContextUser && len(st.Frames) < 3 {
			t.Logf("short stack %+v", st.Frames)
		}
	}
}

// freeze stops a process and returns the CPU time that it has had: none is added between reading it and the end of sampling.
func freeze(t *testing.T, cmd *exec.Cmd) time.Duration {
	t.Helper()
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	sleep(50 * time.Millisecond)
	return cpuTime(t, cmd.Process.Pid)
}

// cpuTime is user plus system time of a process, from /proc/PID/stat in ticks of 10 ms.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:]))
	var u, s int64
	if _, err := fmt.Sscan(f[11]+" "+f[12], &u, &s); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u+s) * 10 * time.Millisecond
}

func TestThinningKeepsTheWeight(t *testing.T) {
	dir, id := newCgroup(t, cgroup2(t), "thin")
	s, c, stop := open(t, sampler.Config{FrequencyHz: 997}, time.Second)
	scope := mustAdd(t, s, id, 10)
	cmd := start(t, dir, "spin")
	sleep(5 * time.Second)
	cpu := freeze(t, cmd)
	st := stop()
	checkProtocol(t, c, st)
	want := cpu.Seconds() * 997
	if got := float64(c.weight[scope]); got < want*0.7 || got > want*1.3 {
		t.Errorf("weight %v, want about %.0f", got, want)
	}
	if c.weight[scope] != 10*c.n[scope] {
		t.Errorf("weight %d ≠ 10 × %d samples", c.weight[scope], c.n[scope])
	}
}

func TestNestedCgroupBelongsToItsContainer(t *testing.T) {
	dir, id := newCgroup(t, cgroup2(t), "outer")
	inner := newInner(t, filepath.Join(dir, "a", "b"))
	s, c, stop := open(t, sampler.Config{FrequencyHz: 199}, time.Second)
	scope := mustAdd(t, s, id, 1)
	start(t, inner, "spin")
	sleep(time.Second)
	checkProtocol(t, c, stop())
	if c.n[scope] == 0 {
		t.Errorf("no samples: %v", c.n)
	}
}

// newInner makes a cgroup two levels below another.
func newInner(t *testing.T, inner string) string {
	t.Helper()
	if err := os.MkdirAll(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 100 {
			killAll(inner)
			if os.Remove(inner) == nil {
				break
			}
			sleep(20 * time.Millisecond)
		}
		os.Remove(filepath.Dir(inner))
	})
	return inner
}

// A container that is excluded inside a unit that is profiled is no part of the unit, and one that is profiled inside it is itself.
func TestBarredCgroupIsNoPartOfTheOuterOne(t *testing.T) {
	dir, id := newCgroup(t, cgroup2(t), "unit")
	inner := newInner(t, filepath.Join(dir, "excluded", "profiled"))
	barred, leaf := inode(t, filepath.Dir(inner)), inode(t, inner)
	s, c, stop := open(t, sampler.Config{FrequencyHz: 499}, 300*time.Millisecond)
	start(t, inner, "spin")
	outer := mustAdd(t, s, id, 1)
	samples := func(scope uint32) (n uint64) {
		sleep(700 * time.Millisecond) // two windows end
		c.locked(func() { n = c.n[scope] })
		return n
	}
	if samples(outer) == 0 {
		t.Error("what is inside a scope is not sampled as a part of it")
	}
	if err := s.Scopes().Bar(barred); err != nil {
		t.Fatal(err)
	}
	before := samples(outer)
	if after := samples(outer); after != before {
		t.Errorf("%d samples came after the cgroup inside was barred", after-before)
	}
	own := mustAdd(t, s, leaf, 1)
	if samples(own) == 0 {
		t.Error("a scope inside a barred cgroup is not sampled")
	}
	for _, cgroup := range []uint64{leaf, barred} {
		if err := s.Scopes().Remove(cgroup); err != nil {
			t.Fatal(err)
		}
	}
	if samples(outer) == before {
		t.Error("what was barred and no longer is is not sampled")
	}
	checkProtocol(t, c, stop())
}

func TestScopeChangesTakeEffectAtOnce(t *testing.T) {
	dir, id := newCgroup(t, cgroup2(t), "change")
	s, c, stop := open(t, sampler.Config{FrequencyHz: 499}, 300*time.Millisecond)
	cmd := start(t, dir, "spin")
	_ = cmd
	sleep(300 * time.Millisecond) // the kernel has cached nothing yet: the clock is off
	if st, _ := s.Stats(); st.Runs != 0 {
		t.Errorf("%d runs with nothing in scope: the clock must not tick", st.Runs)
	}
	first := mustAdd(t, s, id, 1)
	sleep(500 * time.Millisecond)
	second := mustAdd(t, s, id, 2)
	if second == first {
		t.Errorf("a changed thinning kept scope id %d", first)
	}
	sleep(500 * time.Millisecond)
	if err := s.Scopes().Remove(id); err != nil {
		t.Fatal(err)
	}
	st, err := s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	sleep(300 * time.Millisecond)
	final := stop()
	checkProtocol(t, c, final)
	if final.Taken != st.Taken {
		t.Errorf("%d samples after the scope was removed", final.Taken-st.Taken)
	}
	if c.n[first] == 0 || c.n[second] == 0 {
		t.Errorf("samples by scope: %v, want some for %d and %d", c.n, first, second)
	}
}

func TestExecAndExitAreTold(t *testing.T) {
	dir, id := newCgroup(t, cgroup2(t), "exec")
	s, c, stop := open(t, sampler.Config{FrequencyHz: 97}, 300*time.Millisecond)
	scope := mustAdd(t, s, id, 1)
	cmd := start(t, dir, "brief")
	pid := uint32(cmd.Process.Pid)
	_ = cmd.Wait()
	sleep(500 * time.Millisecond)
	checkProtocol(t, c, stop())
	var execs, exits int
	for p, sc := range c.execs {
		if p.PID == pid && sc == scope {
			execs++
		}
	}
	for p := range c.exits {
		if p.PID == pid {
			exits++
			if _, ok := c.execs[p]; !ok {
				t.Errorf("exit of %+v, execs %v: not the same process", p, c.execs)
			}
		}
	}
	if execs != 1 || exits != 1 {
		t.Errorf("%d execs, %d exits of pid %d, want one each", execs, exits, pid)
	}
}

func TestChangedMappingsAreTold(t *testing.T) {
	dir, id := newCgroup(t, cgroup2(t), "maps")
	s, c, stop := open(t, sampler.Config{FrequencyHz: 199}, 300*time.Millisecond)
	mustAdd(t, s, id, 1)
	cmd := start(t, dir, "maps")
	sleep(2200 * time.Millisecond)
	checkProtocol(t, c, stop())
	var told int
	for p, n := range c.maps {
		if p.PID == uint32(cmd.Process.Pid) {
			told += n
		}
	}
	if told < 2 || told > 6 {
		t.Errorf("told %d times of about 4 changes", told)
	}
}

// A just-in-time compiler changes its mappings more often than anybody wants to hear of.
func TestChangingMappingsDoNotFlood(t *testing.T) {
	dir, id := newCgroup(t, cgroup2(t), "jit")
	s, c, stop := open(t, sampler.Config{FrequencyHz: 999}, 300*time.Millisecond)
	mustAdd(t, s, id, 1)
	began := time.Now()
	cmd := start(t, dir, "jit")
	sleep(2 * time.Second)
	checkProtocol(t, c, stop())
	most := int(time.Since(began)/(100*time.Millisecond)) + 1
	for p, n := range c.maps {
		if p.PID == uint32(cmd.Process.Pid) && n > most {
			t.Errorf("told %d times, want at most %d", n, most)
		}
	}
	if len(c.maps) == 0 {
		t.Error("never told")
	}
}

// Workers of io_uring have registers of their parent and no user stack.
func TestWorkersHaveNoUserStack(t *testing.T) {
	dir, id := newCgroup(t, cgroup2(t), "io")
	s, c, stop := open(t, sampler.Config{FrequencyHz: 997}, 200*time.Millisecond)
	mustAdd(t, s, id, 1)
	cmd := start(t, dir, "io")
	cmd.Stderr = os.Stderr
	eventually(t, "samples of the worker", func() (ok bool) {
		c.locked(func() { ok = c.byPID[uint32(cmd.Process.Pid)] > 200 })
		return ok
	})
	checkProtocol(t, c, stop())
	workers := 0
	for _, s := range c.stacks {
		user := slices.IndexFunc(s.Frames, func(f unwind.RawFrame) bool { return f.Unwinder != unwind.KernelSlot })
		if user >= 0 && s.Frames[user].A == 0 {
			t.Fatalf("a user stack that begins at 0: %+v", s.Frames)
		}
		if user < 0 {
			workers++
		}
	}
	if workers == 0 {
		t.Error("no stack of a worker was seen")
	}
}

// While exec sets up a new program, the registers are still those of the old one.
func TestExecInProgressHasNoUserStack(t *testing.T) {
	kernel, err := symbol.NewKernel("/proc")
	if err != nil {
		t.Fatal(err)
	}
	dir, id := newCgroup(t, cgroup2(t), "inexec")
	s, c, stop := open(t, sampler.Config{FrequencyHz: 4999}, 200*time.Millisecond)
	mustAdd(t, s, id, 1)
	start(t, dir, "storm")
	setsUp := func(st unwind.Stack) bool { // what exec calls after it has given up the old memory
		return slices.ContainsFunc(st.Frames, func(f unwind.RawFrame) bool {
			if f.Unwinder != unwind.KernelSlot || f.Kind != unwind.KindKernel {
				return false
			}
			name, _, _ := kernel.Lookup(f.A)
			return name == "setup_arg_pages" || name == "elf_load" || name == "elf_map"
		})
	}
	seen := 0
	eventually(t, "samples of an exec in progress", func() bool {
		c.locked(func() {
			seen = 0
			for _, st := range c.stacks {
				if !setsUp(st) {
					continue
				}
				seen++
				if slices.ContainsFunc(st.Frames, func(f unwind.RawFrame) bool { return f.Unwinder != unwind.KernelSlot }) {
					t.Errorf("an exec in progress has user frames: %+v", st.Frames)
				}
			}
		})
		return seen > 10 || t.Failed()
	})
	checkProtocol(t, c, stop())
}

// What leaves the scope is forgotten, also when its processes live on and their exit is not told.
func TestRemovedScopeIsForgotten(t *testing.T) {
	dir, id := newCgroup(t, cgroup2(t), "removed")
	s, c, stop := open(t, sampler.Config{FrequencyHz: 499}, 20*time.Millisecond)
	mustAdd(t, s, id, 1)
	cmd := start(t, dir, "spin")
	pid := uint32(cmd.Process.Pid)
	var p process.ID
	eventually(t, "samples of the process", func() (ok bool) {
		c.locked(func() {
			for id := range c.execs {
				if id.PID == pid {
					p = id
				}
			}
			ok = c.byPID[pid] > 20
		})
		return ok && s.Current(p)
	})
	if err := s.Scopes().Remove(id); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its stacks forgotten", func() bool {
		st, err := s.Stats()
		if err != nil {
			t.Fatal(err)
		}
		return st.StacksKnown == 0
	})
	// Of a PID that the kernel side does not know, anything may be true.
	other := p
	other.ExecID++
	if s.Current(other) {
		t.Error("a living process was forgotten")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	eventually(t, "the process forgotten", func() bool { return s.Current(other) })
	checkProtocol(t, c, stop())
	if err := s.Flush(context.Background()); err == nil {
		t.Error("a sampler that has stopped was flushed")
	}
}

// eventually waits for something to become true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// The kernel protocol under the worst that configuration can make of it.
func TestProtocolHoldsUnderPressure(t *testing.T) {
	for _, tc := range []struct {
		name      string
		cfg       sampler.Config
		workloads []string
		window    time.Duration
		want      []string // outcomes that this must have provoked
	}{
		{"tiny ring", sampler.Config{RingBytes: 4096}, []string{"stacks", "stacks"}, 100 * time.Millisecond, nil},
		{"16 counts a window", sampler.Config{MaxWindowKeys: 16}, []string{"stacks", "stacks"}, 100 * time.Millisecond, []string{"overflow"}},
		{"16 seen", sampler.Config{MaxStacks: 16, StacksPerScope: 1 << 20}, []string{"stacks", "stacks"}, 100 * time.Millisecond, nil},
		{"eviction in each window", sampler.Config{MaxStacks: 256, StacksPerScope: 1 << 20}, []string{"stacks", "stacks"}, 50 * time.Millisecond, nil},
		{"budget of new stacks", sampler.Config{StacksPerScope: 8}, []string{"stacks"}, 100 * time.Millisecond, []string{"undelivered"}},
		{"fork and exec storm", sampler.Config{MaxProcesses: 64}, []string{"storm", "storm"}, 100 * time.Millisecond, nil},
		{"all of it", sampler.Config{RingBytes: 4096, MaxWindowKeys: 16, MaxStacks: 16, MaxProcesses: 4}, []string{"stacks", "storm"}, 30 * time.Millisecond, []string{"undelivered"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, id := newCgroup(t, cgroup2(t), "pressure")
			tc.cfg.FrequencyHz = 4999
			s, c, stop := open(t, tc.cfg, tc.window)
			scope := mustAdd(t, s, id, 1)
			for _, w := range tc.workloads {
				start(t, dir, w)
			}
			sleep(4 * time.Second)
			// Epochs are raised meanwhile: stacks must come again and nothing may be lost.
			c.locked(func() {
				for _, id := range slices.Collect(maps.Keys(c.execs)) {
					if err := s.RaiseEpoch(id); err != nil {
						t.Error(err)
					}
				}
			})
			sleep(time.Second)
			st := stop()
			checkProtocol(t, c, st)
			if c.n[scope]+c.rest[scope] == 0 {
				t.Error("nothing was sampled")
			}
			for _, o := range tc.want {
				if st.Outcomes[o] == 0 {
					t.Errorf("outcome %s was not provoked", o)
				}
			}
		})
	}
}

// A window of which nothing is known yet has room for stacks of which each is new, as those of a container that starts are.
func TestFirstWindowHasRoomForNewStacks(t *testing.T) {
	const enough = 1500 // beyond the least that a window has on two CPUs
	dir, id := newCgroup(t, cgroup2(t), "cold")
	s, c, stop := open(t, sampler.Config{FrequencyHz: 1999, StacksPerScope: 1 << 20}, time.Minute)
	scope := mustAdd(t, s, id, 1)
	for range 2 {
		start(t, dir, "stacks")
	}
	eventually(t, "that many stacks", func() (ok bool) {
		c.locked(func() { ok = len(c.stacks) >= enough })
		return ok
	})
	st := stop()
	checkProtocol(t, c, st)
	if st.Windows != 1 {
		t.Fatalf("it took %d windows", st.Windows)
	}
	if n := st.Outcomes["overflow"]; n != 0 || c.rest[scope] != 0 {
		t.Errorf("%d samples of %d stacks had no room", n, len(c.stacks))
	}
}

// Two unwinders share one stack: marker pushes its frame and hands over to native in the middle of the walk.
func TestUnwindersHandOver(t *testing.T) {
	dir, id := newCgroup(t, cgroup2(t), "handover")
	s, c, stop := open(t, sampler.Config{FrequencyHz: 499,
		Unwinders: []unwind.Unwinder{marker.Unwinder{Next: 3}, marker.Unwinder{Next: 1}, native.New()}}, 200*time.Millisecond)
	scope := mustAdd(t, s, id, 1)
	start(t, dir, "spin")
	sleep(time.Second)
	st := stop()
	checkProtocol(t, c, st)
	if c.n[scope] == 0 {
		t.Fatal("no samples")
	}
	for _, s := range c.stacks {
		user := slices.IndexFunc(s.Frames, func(f unwind.RawFrame) bool { return f.Unwinder != unwind.KernelSlot })
		if user < 0 {
			continue
		}
		first, second := s.Frames[user], s.Frames[user+1]
		if first.Unwinder != 1 || first.Kind != marker.Kind || first.A != marker.Value {
			t.Errorf("first user frame %+v, want marker's", first)
		}
		if second.Unwinder != 3 || second.A != first.B || second.ReturnAddress {
			t.Errorf("second user frame %+v, want native's at the program counter %#x", second, first.B)
		}
	}
}

// A slot that nobody took ends the walk there, with an outcome of its own and the stack so far.
func TestEmptySlotEndsTheWalk(t *testing.T) {
	dir, id := newCgroup(t, cgroup2(t), "empty")
	s, c, stop := open(t, sampler.Config{FrequencyHz: 499, Unwinders: []unwind.Unwinder{marker.Unwinder{Next: 9}}}, 200*time.Millisecond)
	mustAdd(t, s, id, 1)
	start(t, dir, "spin")
	sleep(500 * time.Millisecond)
	st := stop()
	checkProtocol(t, c, st)
	if st.Outcomes["no_unwinder"] == 0 {
		t.Errorf("outcomes %v, want no_unwinder", st.Outcomes)
	}
	for _, s := range c.stacks {
		last := s.Frames[len(s.Frames)-1]
		if s.Key.Context == unwind.ContextUser && (len(s.Frames) != 2 || last.Kind != unwind.KindTruncated) {
			t.Errorf("frames %+v, want marker's and a mark", s.Frames)
		}
	}
}

// Unwinders that hand over in a circle are stopped before the kernel's own limit of tail calls does it silently.
func TestCircleOfUnwindersIsCut(t *testing.T) {
	dir, id := newCgroup(t, cgroup2(t), "circle")
	s, c, stop := open(t, sampler.Config{FrequencyHz: 499,
		Unwinders: []unwind.Unwinder{marker.Unwinder{Next: 2}, marker.Unwinder{Next: 1}}}, 200*time.Millisecond)
	mustAdd(t, s, id, 1)
	start(t, dir, "spin")
	sleep(500 * time.Millisecond)
	st := stop()
	checkProtocol(t, c, st)
	if st.Outcomes["too_deep"] == 0 || st.Outcomes["no_unwinder"] != 0 {
		t.Errorf("outcomes %v, want too_deep", st.Outcomes)
	}
}

// On a v1 host every task is in the root of the v2 tree: scopes have ids of a v1 controller's tree. The hybrid test machine has
// both, so the v1 way is taken by asking for it.
func TestCgroupV1(t *testing.T) {
	const controller = "pids"
	root := filepath.Join("/sys/fs/cgroup", controller)
	if isCgroup2(root) {
		t.Fatalf("%s is not a cgroup v1 tree: this test needs a hybrid or v1 host", root)
	}
	dir, id := newCgroup(t, root, "v1")
	inner := filepath.Join(dir, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 100 {
			killAll(inner)
			if os.Remove(inner) == nil {
				return
			}
			sleep(20 * time.Millisecond)
		}
	})
	s, c, stop := open(t, sampler.Config{FrequencyHz: 199, CgroupController: controller}, 200*time.Millisecond)
	scope := mustAdd(t, s, id, 1)
	in := start(t, inner, "spin")
	out := start(t, "", "spin")
	sleep(time.Second)
	checkProtocol(t, c, stop())
	if c.n[scope] == 0 || c.byPID[uint32(in.Process.Pid)] == 0 || c.byPID[uint32(out.Process.Pid)] != 0 {
		t.Errorf("by scope %v, by pid %v: want samples of %d only", c.n, c.byPID, in.Process.Pid)
	}
}

func TestUnknownControllerIsRefused(t *testing.T) {
	_, err := sampler.Open(sampler.Config{FrequencyHz: 97, CgroupController: "nonsense", Unwinders: []unwind.Unwinder{native.New()}})
	if err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("error %v, want one that names the controller", err)
	}
}

// eager is a language that is loaded with the sampler, not when a process needs it.
type eager struct{ unwind.Unwinder }

// The verifier takes the programs of all languages.
func TestLanguagesLoad(t *testing.T) {
	s, err := sampler.Open(sampler.Config{FrequencyHz: 97, Unwinders: []unwind.Unwinder{native.New(), eager{python.New(nil)}, eager{node.New(nil)}, eager{ruby.New(nil)}}})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
