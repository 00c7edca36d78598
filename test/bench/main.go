// Bench measures what stoker costs, in one run and beside what others cost on the same load: nanoseconds per run of the BPF
// program in and out of scope next to an empty program and to bpf_get_stack alone, and per frame without frame pointers; the
// agent's CPU time per thousand samples, its memory and its kernel maps, how long it takes to the first sample, and what the
// kernel did not deliver; then `perf record` with frame pointers and with copies of the stack, and a bpftrace one-liner. Then
// how many unwind rows some files have and how long it takes to make them, and the memory with 50 different programs in scope;
// last, what it adds to the start of a container that the runtime waits for it.
// `make bench` runs it as root. Its output is for people: no test depends on a time, and only ratios within one run mean
// anything on another machine.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/cilium/ebpf"

	"github.com/stoker-profiler/stoker/test/containerdtest"
	"github.com/stoker-profiler/stoker/test/workload"
)

const (
	imageRef = "localhost/bench:1"
	// frames is the depth of the load's stack: 12 frames of the program and the C library, as in the bar of docs.
	frames = "11"
	// omitFrames is the same for the stack without frame pointers: with the C library's three it has 15 frames.
	omitFrames = "12"
)

func main() {
	agent := flag.String("agent", "bin/stoker", "the built program")
	hook := flag.String("hook", "bin/stoker-hook", "the built OCI hook")
	seconds := flag.Int("seconds", 10, "how long each measurement takes")
	frequencies := flag.String("frequencies", "97,997", "Hz, comma separated: at the low rate caches are cold; none: do not measure sampling")
	starts := flag.Int("starts", 100, "starts of containers to measure each way; 0: none")
	quick := flag.Bool("quick", false, "of sampling, only what one run of a BPF program takes: no perf, no bpftrace, -seconds as short as given")
	binaries := flag.Int("binaries", 50, "different programs in scope while memory is measured; 0: do not")
	tables := flag.Bool("tables", true, "measure the unwind rows of some files")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b := &bench{agent: *agent, hook: *hook, length: time.Duration(*seconds) * time.Second, quick: *quick}
	if err := b.run(ctx, *frequencies, *starts, *binaries, *tables); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures what was asked for.
func (b *bench) run(ctx context.Context, frequencies string, starts, binaries int, tables bool) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("it loads BPF programs and runs containers, so it needs root: sudo -E make bench")
	}
	if b.agent, err = filepath.Abs(b.agent); err != nil {
		return err
	}
	if b.hook, err = filepath.Abs(b.hook); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "stoker-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if frequencies != "none" {
		if err := b.sampling(ctx, frequencies); err != nil {
			return err
		}
	}
	if tables {
		if err := b.tables(); err != nil {
			return err
		}
	}
	if binaries > 0 {
		if err := b.binaries(ctx, binaries); err != nil {
			return err
		}
	}
	if starts > 0 {
		return b.starts(ctx, starts)
	}
	return nil
}

// sampling measures what samples cost, at each frequency.
func (b *bench) sampling(ctx context.Context, frequencies string) (err error) {
	restore, err := enableStats()
	if err != nil {
		return err
	}
	defer restore()

	programs, err := workload.New(b.dir)
	if err != nil {
		return err
	}
	files, err := programs.Files(workload.Deep, workload.DeepOmit, workload.Idle)
	if err != nil {
		return err
	}
	b.deep, b.deepOmit = files["/"+workload.Deep], files["/"+workload.DeepOmit]
	image := containerdtest.Image{Ref: imageRef, Files: map[string]containerdtest.File{}}
	for in, host := range files {
		image.Files[in] = containerdtest.Host(host)
	}
	home := filepath.Join(b.dir, "containerd")
	if err := os.Mkdir(home, 0o755); err != nil {
		return err
	}
	if b.daemon, err = containerdtest.New(ctx, home); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.daemon.Stop()) }()
	if err := b.daemon.Image(image); err != nil {
		return err
	}

	fmt.Printf("%d CPUs, each busy with a stack of 12 frames by frame pointer; %s per measurement\n\n", cpus(), b.length)
	for _, f := range strings.Split(frequencies, ",") {
		hz, err := strconv.Atoi(f)
		if err != nil {
			return fmt.Errorf("frequency %q: %w", f, err)
		}
		if err := b.measure(ctx, hz); err != nil {
			return err
		}
	}
	return nil
}

// bench is what all measurements share.
type bench struct {
	agent, hook, dir string
	deep, deepOmit   string // the loads
	daemon           *containerdtest.Daemon
	length           time.Duration
	quick            bool
	n                int // makes container ids unique
}

// result is one frequency's numbers.
type result struct {
	hz                    int
	empty, stack          runs // the two baselines, half of them before the agent ran and half after
	outside, inside, omit runs // stoker's program; omit: in scope, without frame pointers
	all                   runs // of it while inside was measured
	shallow, deep         runs // in scope, stacks of 8 and of 100 frames without frame pointers
	insideTime            time.Duration
	agentCPU, omitCPU     time.Duration // of stoker's process while inside and omit were measured
	rss, rssPeak, maps    int64
	mapCount              int
	firstSample, startCPU time.Duration
	perf, dwarf, bpftrace other // dwarf: perf with a copy of the stack in each sample
}

// other is what another tool needed on the same load.
type other struct {
	cpu, post   time.Duration // while recording; afterwards, to make names of addresses
	rss         int64
	samples     int64
	outputBytes int64
	program     runs // bpftrace's
}

func (b *bench) measure(ctx context.Context, hz int) error {
	r := result{hz: hz}
	// Before and after, because how cold the caches are, which is most of the cost, depends on what else the machine does.
	say("%d Hz: an empty program, bpf_get_stack", hz)
	if err := b.baselines(ctx, &r); err != nil {
		return err
	}
	say("%d Hz: stoker", hz)
	if err := b.stoker(ctx, &r); err != nil {
		return err
	}
	say("%d Hz: an empty program, bpf_get_stack", hz)
	if err := b.baselines(ctx, &r); err != nil {
		return err
	}
	if b.quick {
		r.printRuns()
		return nil
	}
	say("%d Hz: perf record -g", hz)
	if err := b.runPerf(ctx, &r, &r.perf, b.deep, "-g"); err != nil {
		return err
	}
	say("%d Hz: perf record --call-graph dwarf", hz)
	if err := b.runPerf(ctx, &r, &r.dwarf, b.deepOmit, "--call-graph=dwarf"); err != nil {
		return err
	}
	say("%d Hz: bpftrace", hz)
	if err := b.runBpftrace(ctx, &r); err != nil {
		return err
	}
	r.print()
	return nil
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// load keeps each CPU busy with a program in no container until the returned function is called.
func (b *bench) load(program string) (pids []int, stop func(), err error) {
	var cmds []*exec.Cmd
	stop = func() {
		for _, c := range cmds {
			c.Process.Kill()
			c.Wait() // killed: its error says so
		}
	}
	for range cpus() {
		c := exec.Command(program, frames)
		if err := c.Start(); err != nil {
			stop()
			return nil, nil, err
		}
		cmds, pids = append(cmds, c), append(pids, c.Process.Pid)
	}
	return pids, stop, nil
}

// baselines adds a measurement of each of the two programs to r, alone and one after the other: side by side they would warm
// each other's caches.
func (b *bench) baselines(ctx context.Context, r *result) error {
	var objs baselineObjects
	if err := loadBaselineObjects(&objs, nil); err != nil {
		return fmt.Errorf("load the programs to compare with: %w", err)
	}
	defer objs.Close()
	pids, stop, err := b.load(b.deep)
	if err != nil {
		return err
	}
	defer stop()
	for p, sum := range map[*ebpf.Program]*runs{objs.ReturnZero: &r.empty, objs.GetStack: &r.stack} {
		detach, err := attach(p, r.hz, pids)
		if err != nil {
			return err
		}
		seen, _, err := b.watch(ctx, p)
		detach()
		if err != nil {
			return err
		}
		sum.n, sum.ns = sum.n+seen.n, sum.ns+seen.ns
	}
	return nil
}

// start runs one container; kill ends it.
func (b *bench) start(ctx context.Context, args ...string) (*containerdtest.Container, error) {
	b.n++
	return b.daemon.Run(ctx, containerdtest.Spec{ID: fmt.Sprintf("bench-%d-%d", os.Getpid(), b.n), Image: imageRef, Args: args})
}

func (b *bench) stoker(ctx context.Context, r *result) (err error) {
	idle, err := b.start(ctx, "/"+workload.Idle)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, idle.Delete(context.Background())) }()
	a, err := b.startSampler(ctx, fmt.Sprintf("stoker-%d", r.hz), r.hz)
	if err != nil {
		return err
	}
	defer func() { err = a.end(err) }()
	if err := a.ticks(ctx); err != nil {
		return err
	}
	r.firstSample = time.Since(a.began)
	if r.startCPU, err = cpuTime(a.pid()); err != nil {
		return err
	}

	// Out of scope: the load belongs to no container.
	_, stop, err := b.load(b.deep)
	if err != nil {
		return err
	}
	if r.outside, _, err = b.watch(ctx, a.program); err != nil {
		stop()
		return err
	}
	stop()

	inside, agentCPU, err := b.inScope(ctx, a, r, workload.Deep, frames)
	if err != nil {
		return err
	}
	r.inside, r.all, r.insideTime, r.agentCPU = inside.runs, inside.all, inside.length, agentCPU
	omit, agentCPU, err := b.inScope(ctx, a, r, workload.DeepOmit, omitFrames)
	if err != nil {
		return err
	}
	r.omit, r.omitCPU = omit.runs, agentCPU
	if err := b.depth(ctx, a, r); err != nil {
		return err
	}
	if r.rss, r.rssPeak, err = rss(a.pid()); err != nil {
		return err
	}
	r.maps, r.mapCount, err = mapBytes(a.pid())
	return err
}

// inScope keeps each CPU busy with a container of a program, and returns what stoker's program and its process took.
func (b *bench) inScope(ctx context.Context, a *sampler, r *result, args ...string) (s samples, agentCPU time.Duration, err error) {
	var busy []*containerdtest.Container
	defer func() {
		for _, c := range busy {
			err = errors.Join(err, c.Delete(context.Background()))
		}
	}()
	args[0] = "/" + args[0]
	for range cpus() {
		c, err := b.start(ctx, args...)
		if err != nil {
			return s, 0, err
		}
		busy = append(busy, c)
	}
	if err := sleep(ctx, 12*time.Second); err != nil { // a whole window, so that stacks and symbols are known
		return s, 0, err
	}
	before, err := cpuTime(a.pid())
	if err != nil {
		return s, 0, err
	}
	if s, err = b.watchSamples(ctx, a.program, r.outside); err != nil {
		return s, 0, err
	}
	after, err := cpuTime(a.pid())
	return s, after - before, err
}

// settle is how long a load runs before anything is counted.
const settle = time.Second

// watch counts the runs of a program during one measurement of two windows: what the agent does at their end counts.
func (b *bench) watch(ctx context.Context, p *ebpf.Program) (runs, time.Duration, error) {
	if err := sleep(ctx, settle); err != nil {
		return runs{}, 0, err
	}
	before, err := runsOf(p)
	began := time.Now()
	if err != nil {
		return runs{}, 0, err
	}
	length := b.length
	if !b.quick {
		length = max(length, 20*time.Second)
	}
	if err := sleep(ctx, length); err != nil {
		return runs{}, 0, err
	}
	after, err := runsOf(p)
	return after.sub(before), time.Since(began), err
}

// samples are the runs of stoker's program that took a sample, beside all of its runs.
type samples struct {
	runs
	all    runs
	length time.Duration
}

// watchSamples does the same for stoker's program. outside is what a run takes that finds nothing in scope.
func (b *bench) watchSamples(ctx context.Context, p *ebpf.Program, outside runs) (s samples, err error) {
	before, err := takenBy(p)
	if err != nil {
		return s, err
	}
	if s.all, s.length, err = b.watch(ctx, p); err != nil {
		return s, err
	}
	after, err := takenBy(p)
	if err != nil {
		return s, err
	}
	// What was taken in the second before the measurement is in the difference: in proportion.
	taken := float64(after-before) * s.length.Seconds() / (s.length + settle).Seconds()
	s.runs = s.all.in(uint64(taken), outside)
	return s, nil
}

// newProgram waits for a perf_event program that was not there before.
func newProgram(ctx context.Context, before map[ebpf.ProgramID]string, name string, died <-chan struct{}) (*ebpf.Program, error) {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		now, err := perfPrograms()
		if err != nil {
			return nil, err
		}
		for id, n := range now {
			if _, old := before[id]; !old && (name == "" || n == name) {
				return ebpf.NewProgramFromID(id)
			}
		}
		select {
		case <-died:
			return nil, errors.New("the process ended before it loaded its BPF program")
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil, errors.New("no new BPF program within 30 s")
}

// finished fills in what a process that has ended needed.
func (o *other) finished(cmd *exec.Cmd) {
	o.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		o.rss = u.Maxrss << 10
	}
}

var perfSamples = regexp.MustCompile(`\((\d+) samples\)`)

func (b *bench) runPerf(ctx context.Context, r *result, o *other, program, how string) error {
	_, stop, err := b.load(program)
	if err != nil {
		return err
	}
	defer stop()
	data := filepath.Join(b.dir, "perf.data")
	cmd := exec.CommandContext(ctx, "perf", "record", "-a", how, "-e", "cpu-clock", "-F", strconv.Itoa(r.hz), "-o", data,
		"sleep", fmt.Sprint(b.length.Seconds()))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("perf record: %w: %s", err, out)
	}
	o.finished(cmd)
	m := perfSamples.FindSubmatch(out)
	if m == nil {
		return fmt.Errorf("perf record does not say how many samples it has: %s", out)
	}
	if o.samples, err = strconv.ParseInt(string(m[1]), 10, 64); err != nil {
		return err
	}
	info, err := os.Stat(data)
	if err != nil {
		return err
	}
	o.outputBytes = info.Size()
	report := exec.CommandContext(ctx, "perf", "report", "-i", data, "--stdio", "--no-children", "-g", "none")
	if out, err := report.CombinedOutput(); err != nil {
		return fmt.Errorf("perf report: %w: %s", err, out)
	}
	o.post = report.ProcessState.UserTime() + report.ProcessState.SystemTime()
	return nil
}

var bpftraceCount = regexp.MustCompile(`(?m)\]: (\d+)$`)

func (b *bench) runBpftrace(ctx context.Context, r *result) error {
	_, stop, err := b.load(b.deep)
	if err != nil {
		return err
	}
	defer stop()
	others, err := perfPrograms()
	if err != nil {
		return err
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, "bpftrace", "-e", fmt.Sprintf(`profile:hz:%d /pid != 0/ { @[kstack, ustack] = count(); } interval:s:%d { exit(); }`,
		r.hz, int(b.length.Seconds())))
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		return err
	}
	died := make(chan struct{})
	var ended error
	go func() {
		ended = cmd.Wait()
		close(died)
	}()
	// Two programs: profile and interval are both perf events. The one that runs is profile.
	var program *ebpf.Program
	var last runs
	for done := false; !done; {
		select {
		case <-died:
			done = true
		case <-time.After(100 * time.Millisecond):
		}
		if program == nil {
			if program, err = busiest(others); err != nil {
				return err
			}
			continue
		}
		if now, err := runsOf(program); err == nil {
			last = now
		}
	}
	if program != nil {
		program.Close()
	}
	if ended != nil {
		return fmt.Errorf("bpftrace: %w: %s", ended, errs.String())
	}
	r.bpftrace.program = last
	r.bpftrace.finished(cmd)
	for _, m := range bpftraceCount.FindAllSubmatch(out.Bytes(), -1) {
		n, err := strconv.ParseInt(string(m[1]), 10, 64)
		if err != nil {
			return err
		}
		r.bpftrace.samples += n
	}
	r.bpftrace.outputBytes = int64(out.Len())
	return nil
}

// busiest returns the perf_event program that was not there before and has run most, nil if none has run yet.
func busiest(before map[ebpf.ProgramID]string) (*ebpf.Program, error) {
	now, err := perfPrograms()
	if err != nil {
		return nil, err
	}
	var found *ebpf.Program
	var most uint64
	for id := range now {
		if _, old := before[id]; old {
			continue
		}
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // unloaded meanwhile
		}
		if r, err := runsOf(p); err == nil && r.n > max(most, 10) {
			if found != nil {
				found.Close()
			}
			found, most = p, r.n
			continue
		}
		p.Close()
	}
	return found, nil
}

// us says how long a run of a program took.
func us(x runs) string { return fmt.Sprintf("%.2f µs × %d", x.each()/1e3, x.n) }

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// printRuns prints what one run of each BPF program takes.
func (r *result) printRuns() {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	row := func(what, value, beside string) { fmt.Fprintf(w, "%s\t%s\t%s\n", what, value, beside) }
	ratio := func(a, b runs, of string, bar float64) string {
		q := a.each() / b.each()
		word := "within"
		if q > bar {
			word = "ABOVE"
		}
		return fmt.Sprintf("%.2f × %s, %s the bar of %.1f", q, of, word, bar)
	}
	fmt.Fprintf(w, "== %d Hz\n", r.hz)
	row("a program that returns 0", us(r.empty), "")
	row("bpf_get_stack of the user stack alone", us(r.stack), "")
	row("stoker, out of scope", us(r.outside), ratio(r.outside, r.empty, "return 0", 3))
	row("stoker, in scope, 12 frames", us(r.inside), ratio(r.inside, r.stack, "bpf_get_stack", 1.5))
	bar := 6.0 // warm; the same stack by the OpenTelemetry profiler takes 14 µs warm and 27 to 35 µs cold
	if r.hz < 500 {
		bar = 14
	}
	row("stoker, in scope, 15 frames without frame pointers", us(r.omit), fmt.Sprintf("bar %.0f µs at this rate", bar))
	row("a frame more, without frame pointers", fmt.Sprintf("%.0f ns", r.perFrame()), fmt.Sprintf("%d frames %s, %d frames %s", shallow, us(r.shallow), deep, us(r.deep)))
	if share := float64(r.inside.n) / float64(r.all.n); share < 0.8 {
		row("NOT TO BE TRUSTED", fmt.Sprintf("the load had %.0f %% of the ticks", 100*share), "something else uses the CPUs")
	}
	w.Flush()
}

func (r *result) print() {
	r.printRuns()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	row := func(what, value, beside string) { fmt.Fprintf(w, "%s\t%s\t%s\n", what, value, beside) }
	perThousand := func(cpu time.Duration, samples int64) string {
		return fmt.Sprintf("%.2f ms CPU per 1000 samples", cpu.Seconds()*1e6/float64(max(1, samples)))
	}
	if r.bpftrace.program.n > 0 {
		row("bpftrace's program", us(r.bpftrace.program), fmt.Sprintf("%.2f × stoker in scope", r.bpftrace.program.each()/r.inside.each()))
	}
	n := r.all.n
	expected := float64(r.hz*cpus()) * r.insideTime.Seconds()
	row("missed by the kernel", fmt.Sprintf("%.2f %%", 100*(expected-float64(n))/expected), fmt.Sprintf("%d runs of %.0f ticks", n, expected))
	row("stoker's process", perThousand(r.agentCPU, int64(n)), fmt.Sprintf("%.2f %% of one CPU, symbols and store included", 100*r.agentCPU.Seconds()/r.insideTime.Seconds()))
	row("perf record", perThousand(r.perf.cpu, r.perf.samples), fmt.Sprintf("%d samples, %s written, then %s CPU for perf report", r.perf.samples, mib(r.perf.outputBytes), r.perf.post.Round(time.Millisecond)))
	row("stoker's process, without frame pointers", perThousand(r.omitCPU, int64(r.omit.n)), "")
	row("perf record --call-graph dwarf", perThousand(r.dwarf.cpu, r.dwarf.samples), fmt.Sprintf("%d samples, %s written, then %s CPU for perf report", r.dwarf.samples, mib(r.dwarf.outputBytes), r.dwarf.post.Round(time.Millisecond)))
	row("bpftrace", perThousand(r.bpftrace.cpu, r.bpftrace.samples), fmt.Sprintf("%d samples; its start and symbols included", r.bpftrace.samples))
	row("memory: stoker", mib(r.rss), "peak "+mib(r.rssPeak)+", bar 45 MB")
	row("memory: perf record", mib(r.perf.rss), "")
	row("memory: bpftrace", mib(r.bpftrace.rss), "")
	row("stoker's kernel maps", mib(r.maps), fmt.Sprintf("%d maps, bar 10 MB on 2 CPUs", r.mapCount))
	row("start to first sample", r.firstSample.Round(time.Millisecond).String(), fmt.Sprintf("%s CPU, bar 1 s and 0.5 s", r.startCPU.Round(time.Millisecond)))
	w.Flush()
	fmt.Println()
}
