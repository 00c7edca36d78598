// Command real looks at stacks of real programs, as Debian ships them, in containers, and prints one row of a table for each: which
// share of their stacks reaches the root, which share of frames has a name, and how the twenty largest functions compare with
// what perf finds with --call-graph dwarf at the same time; with -gdb, also how many stacks gdb unwinds to the same frames.
//
//	make build && go run ./test/real -agent bin/stoker [-only NAME,…] [-gdb]
//
// It needs root, podman, debootstrap and perf, and makes a Debian tree of about 2 GB below the user's cache directory the first time,
// which takes two minutes; then half a minute for each program.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/sink/store"
	"github.com/stoker-profiler/stoker/test/podmantest"
	"github.com/stoker-profiler/stoker/test/workload"
)

const (
	frequency = 199 // of the agent and of perf, which copies 64 KiB of stack at each sample
	window    = 2 * time.Second
)

func main() {
	agent := flag.String("agent", "bin/stoker", "the agent to look with")
	only := flag.String("only", "", "names of programs, or the beginning of them, with commas between; all if empty")
	gdb := flag.Bool("gdb", false, "compare 1,000 stacks of each program that lives long enough with gdb's")
	warm := flag.Duration("warm", 15*time.Second, "how long a program runs first")
	length := flag.Duration("length", 20*time.Second, "how long perf and the agent look at it together")
	show := flag.Int("show", 0, "print that many of the largest differences of each program, and how the agent's samples ended")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := look(ctx, *agent, *only, *gdb, *warm, *length, *show); err != nil {
		fmt.Fprintln(os.Stderr, "real:", err)
		os.Exit(1)
	}
}

func look(ctx context.Context, agent, only string, gdb bool, warm, length time.Duration, show int) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("it runs containers and samples them, so it needs root")
	}
	tree, err := tree(ctx)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "stoker-real-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	engine, err := podmantest.New(filepath.Join(dir, "podman"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, engine.Stop()) }()
	if err := musl(ctx, dir, filepath.Join(tree, "src")); err != nil {
		return err
	}
	a := &observer{dir: dir, agent: agent}
	if err := a.start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.stop()) }()

	fmt.Println("| program | samples | reach the root | first seconds | frames with a name | of them in files with a symbol table | top 20 beside perf | perf's samples, whole | as gdb |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|")
	for n, p := range programs {
		if only != "" && !slices.ContainsFunc(strings.Split(only, ","), func(s string) bool { return strings.HasPrefix(p.name, s) }) {
			continue
		}
		r := &run{program: p, engine: engine, observer: a, tree: tree, name: fmt.Sprintf("stoker-real-%d-%d", os.Getpid(), n)}
		row, err := r.measure(ctx, warm, length, gdb, show)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		fmt.Println(row)
	}
	return nil
}

// tree is a Debian with all programs, made once.
func tree(ctx context.Context) (string, error) {
	user, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	packages := []string{"ca-certificates", "procps", "linux-perf"}
	for _, p := range programs {
		packages = append(packages, p.packages...)
	}
	slices.Sort(packages)
	packages = slices.Compact(packages)
	at := filepath.Join(user, "stoker-real", "tree")
	stamp := filepath.Join(at, ".packages")
	list := strings.Join(packages, ",")
	if have, err := os.ReadFile(stamp); err == nil && string(have) == list {
		return at, nil
	}
	fmt.Fprintf(os.Stderr, "real: installing a Debian with %d packages and what they need below %s\n", len(packages), at)
	if err := os.RemoveAll(at); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return "", err
	}
	mirror, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Release: bookworm").Output()
	if err != nil {
		return "", fmt.Errorf("find the Debian mirror of this machine: %w", err)
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(mirror)), "\n")
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--pid", "--fork", "debootstrap", "--variant=minbase", "--include="+list, "bookworm", at, first)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("debootstrap: %w\n%s", err, out[max(0, len(out)-2000):])
	}
	return at, os.WriteFile(stamp, []byte(list), 0o644)
}

// musl builds the workload Calls for musl, from sources in dir.
func musl(ctx context.Context, dir, into string) error {
	if err := os.MkdirAll(into, 0o755); err != nil {
		return err
	}
	if _, err := workload.New(dir); err != nil { // writes the sources
		return err
	}
	for out, args := range map[string][]string{"calls-musl": nil, "calls-musl-static": {"-static"}} {
		args = append(args, "-g0", "-O2", "-fomit-frame-pointer", "-DNO_FRAMES", "-o", filepath.Join(into, out), filepath.Join(dir, "src", "calls.c"))
		if text, err := exec.CommandContext(ctx, "musl-gcc", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("musl-gcc: %w\n%s", err, text)
		}
	}
	return nil
}

// observer is the agent, for all programs.
type observer struct {
	dir, agent string
	cmd        *exec.Cmd
	log        bytes.Buffer
}

func (o *observer) store() string { return filepath.Join(o.dir, "profiles.db") }

func (o *observer) start(ctx context.Context) error {
	config := filepath.Join(o.dir, "stoker.yaml")
	text := fmt.Sprintf(`sampling: {frequency: %d, window: %s}
targets: [{runtime: podman}, {exclude: true}]
store: {path: %s, min_free: 1%%}
web: {listen: off}
socket: %s
runtimes: {containerd: {address: off}, docker: {address: off}, podman: {address: off}, crio: {address: off}, hook: {socket: off}}
`, frequency, window, o.store(), filepath.Join(o.dir, "stoker.sock"))
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	o.cmd = exec.Command(o.agent, "run", "--config", config)
	o.cmd.Stdout, o.cmd.Stderr = &o.log, &o.log
	if err := o.cmd.Start(); err != nil {
		return err
	}
	for range 200 {
		if _, err := os.Stat(filepath.Join(o.dir, "stoker.sock")); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	return errors.Join(fmt.Errorf("the agent does not start; its log:\n%s", o.log.String()), o.stop())
}

func (o *observer) stop() error {
	return errors.Join(o.cmd.Process.Signal(syscall.SIGTERM), o.cmd.Wait())
}

// outcomes is how samples ended, and what happened on the way, since the agent began.
func (o *observer) outcomes(ctx context.Context) (map[string]float64, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(o.dir, "stoker.sock"))
	}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://stoker/metrics", nil)
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask the agent for its metrics: %w", err)
	}
	defer answer.Body.Close()
	found := map[string]float64{}
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil && (strings.HasPrefix(name, "stoker_samples_total{") || strings.HasPrefix(name, "stoker_sampler_events_total{")) {
			found[name] = v
		}
	}
	return found, lines.Err()
}

// profiles are those of a container whose windows lie within an interval.
func (o *observer) profiles(ctx context.Context, id string, from, to time.Time) (all []*profile.Profile, err error) {
	s, err := store.OpenReadOnly(o.store())
	if err != nil {
		return nil, err
	}
	defer s.Close()
	for sp, err := range s.Select(ctx, store.Query{From: from.Add(-time.Hour), To: to.Add(time.Hour), ContainerID: id}) {
		if err != nil {
			return nil, err
		}
		p, err := profile.ParseData(sp.Pprof)
		if err != nil {
			return nil, err
		}
		if start := time.Unix(0, p.TimeNanos); start.Before(from) || start.Add(time.Duration(p.DurationNanos)).After(to) {
			continue
		}
		all = append(all, p)
	}
	return all, nil
}

// run is one program in its container.
type run struct {
	program
	engine     *podmantest.Engine
	observer   *observer
	tree, name string
}

func (r *run) measure(ctx context.Context, warm, length time.Duration, gdb bool, show int) (row string, err error) {
	began := time.Now()
	id, err := r.engine.Run(ctx, podmantest.Spec{Name: r.name, Image: r.tree + ":O", Args: []string{"sh", "-c", r.script},
		Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "LC_ALL=C"}, Options: []string{"--tmpfs", "/tmp:exec", "--rootfs"}})
	if err != nil {
		return "", err
	}
	defer func() {
		_, e := r.engine.Podman(context.WithoutCancel(ctx), "rm", "--force", "--time", "0", r.name)
		err = errors.Join(err, e)
	}()
	if err := sleep(ctx, warm); err != nil {
		return "", err
	}
	inTree := "/tmp/" + r.name + ".data"
	data := filepath.Join(r.tree, inTree)
	defer os.Remove(data)
	before, err := r.observer.outcomes(ctx)
	if err != nil {
		return "", err
	}
	from, err := r.perf(ctx, data, length)
	if err != nil {
		return "", err
	}
	to := time.Now()
	after, err := r.observer.outcomes(ctx)
	if err != nil {
		return "", err
	}
	f := &files{root: r.tree, open: map[string]*file{}}
	theirs, err := f.perfs(ctx, inTree)
	if err != nil {
		return "", err
	}
	if err := sleep(ctx, 2*window); err != nil { // the last window is in the store then
		return "", err
	}
	profiles, err := r.observer.profiles(ctx, id, from, to.Add(window))
	if err != nil {
		return "", err
	}
	names := map[place]string{}
	ours, named, inSymtab, namedInSymtab := f.ours(profiles, names)
	first, err := r.observer.profiles(ctx, id, began.Add(-window), began.Add(3*window))
	if err != nil {
		return "", err
	}
	cold, _, _, _ := f.ours(first, names)
	if len(ours) == 0 || len(theirs) == 0 {
		return "", fmt.Errorf("%d stacks of the agent and %d of perf: the program does nothing", len(ours), len(theirs))
	}
	// perf copies at most 64 KiB of a stack and knows no way through code without unwind information: where it lost its way, it
	// cannot say how much time a caller takes.
	known := whole(theirs, ours)
	a, weight := totals(ours)
	b, _ := totals(known)
	diff := compare(a, b)
	points := "-"
	if len(known)*2 > len(theirs) {
		points = fmt.Sprintf("%.1f points; by chance %.1f", 100*diff[0].size(), 100*chance(ours, known, diff, 1e9/frequency))
	}
	if show > 0 {
		for _, k := range slices.Sorted(maps.Keys(after)) {
			if n := after[k] - before[k]; n > 0 {
				fmt.Printf("    %8.0f %s\n", n, k)
			}
		}
	}
	for _, e := range ends(ours)[:min(show, len(ends(ours)))] {
		fmt.Printf("    %5.2f %% of the time is in stacks that are cut above %s 0x%x\n", 100*e.ours, e.at.file, e.at.start)
	}
	for _, d := range diff[:min(show, len(diff))] {
		fmt.Printf("    %5.1f %% ours, %5.1f %% perf's: %s %s+0x%x\n", 100*d.ours, 100*d.theirs, names[d.at], d.at.file, d.at.start)
	}
	table := "-"
	if inSymtab > 0 {
		table = fmt.Sprintf("%.1f %%", 100*namedInSymtab/inSymtab)
	}
	same := "-"
	if gdb && r.busy != "" {
		if same, err = r.gdb(ctx); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("| %s | %.0f | %.2f %% | %.1f %% | %.1f %% | %s | %s | %d, %.1f %% | %s |", r.program.name, weight/1e9*frequency, 100*(1-cut(ours)), 100*(1-cut(cold)),
		100*named, table, points, len(theirs), 100*float64(len(known))/float64(len(theirs)), same), nil
}

// perf records the container's processes and those that they start, and returns when it began.
func (r *run) perf(ctx context.Context, data string, length time.Duration) (from time.Time, err error) {
	for range 20 {
		pids, err := r.pids(ctx)
		if err != nil {
			return from, err
		}
		from = time.Now()
		cmd := exec.CommandContext(ctx, "perf", "record", "-q", "-N", "-B", "-e", "cpu-clock", "-F", strconv.Itoa(frequency), "--call-graph", "dwarf,65528",
			"-m", "4096", "-o", data, "-p", strings.Join(pids, ","), "--", "sleep", fmt.Sprint(length.Seconds()))
		out, err := cmd.CombinedOutput()
		if err == nil {
			return from, nil
		}
		if time.Since(from) > length { // it is not that one of the processes had ended before perf could look at it
			return from, fmt.Errorf("perf record: %w\n%s", err, out)
		}
	}
	return from, errors.New("perf record: the processes of the container end before it can look at them")
}

// cut is the share of stacks that say of themselves that callers are missing.
func cut(stacks []stack) float64 {
	var all, missing float64
	for _, s := range stacks {
		all += s.weight
		if s.cut {
			missing += s.weight
		}
	}
	if all == 0 {
		return 0
	}
	return missing / all
}

// pids are the container's processes, as this machine numbers them.
func (r *run) pids(ctx context.Context) ([]string, error) {
	out, err := r.engine.Podman(ctx, "top", r.name, "hpid")
	if err != nil {
		return nil, err
	}
	pids := strings.Fields(out)
	if len(pids) < 2 {
		return nil, fmt.Errorf("podman top says %q", out)
	}
	return pids[1:], nil // the first is the title
}

// gdb compares a thousand stacks of the busiest process of a name with those that gdb unwinds.
func (r *run) gdb(ctx context.Context) (string, error) {
	pids, err := r.pids(ctx)
	if err != nil {
		return "", err
	}
	busiest, most := "", int64(-1)
	for _, pid := range pids {
		line, err := os.ReadFile("/proc/" + pid + "/cmdline")
		if err != nil {
			continue // it has ended
		}
		if !strings.Contains(strings.ReplaceAll(string(line), "\x00", " "), r.busy) {
			continue
		}
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		user, err := strconv.ParseInt(fields[11], 10, 64) // utime, proc(5)
		if err == nil && user > most {
			busiest, most = pid, user
		}
	}
	if busiest == "" {
		return "", fmt.Errorf("no process is called %q", r.busy)
	}
	out, err := exec.CommandContext(ctx, "go", "run", "github.com/stoker-profiler/stoker/bpf/unwind/native/replay/gdb", "-n", "1000", "-show", "3", "-pid", busiest).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("gdb: %w\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	for _, l := range lines[:len(lines)-1] {
		fmt.Fprintln(os.Stderr, l)
	}
	_, counts, _ := strings.Cut(lines[len(lines)-1], "frames: ")
	equal, _, _ := strings.Cut(counts, ",")
	return equal, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
