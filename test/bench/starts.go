package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stoker-profiler/stoker/test/containerdtest"
	"github.com/stoker-profiler/stoker/test/critest"
	"github.com/stoker-profiler/stoker/test/workload"
)

// This file measures what it costs a container that stoker is in the way of its start. Each way of being there is a containerd of its
// own, side by side under one agent; in each round every one of them starts one container, in an order that turns, so that
// what else the machine does hits all alike. Compared is each round's start with that of the containerd that has less in its way.
// Then the agent is stopped, then ended, and the hook has nobody who answers. A container that does not start ends the benchmark.

// way is one containerd whose containers are started.
type way struct {
	name    string
	options critest.Options
	nri     bool // the agent is its plugin

	d   *critest.Daemon
	pod *critest.Pod
	// took is how long each round's start took: what a kubelet waits for.
	took []time.Duration
}

// starts runs that many rounds.
func (b *bench) starts(ctx context.Context, rounds int) (err error) {
	programs, err := workload.New(b.dir)
	if err != nil {
		return err
	}
	empty, err := programs.Build(workload.Nothing)
	if err != nil {
		return err
	}
	socket := filepath.Join(b.dir, "hook.sock")
	hooked := func(program string) critest.Options {
		return critest.Options{BaseSpec: func(s *specs.Spec) {
			within := 2 // seconds
			s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: program, Env: hookEnv(socket), Timeout: &within}}}
		}}
	}
	nothing := &way{name: "containerd's events"}
	again := &way{name: "the same again"} // how far apart two are that do the same
	plugin := &way{name: "NRI", nri: true}
	emptyHook := &way{name: "an empty static program as OCI hook", options: hooked(empty)}
	hook := &way{name: "stoker-hook as OCI hook", options: hooked(b.hook)}
	all := []*way{nothing, again, plugin, emptyHook, hook}

	say("%d starts of containers in each of %d containerds", rounds, len(all))
	var addresses []string
	nri := ""
	for i, w := range all {
		home := filepath.Join(b.dir, fmt.Sprintf("cri-%d", i))
		if err := os.Mkdir(home, 0o755); err != nil {
			return err
		}
		if w.d, err = critest.New(ctx, home, w.options); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, w.d.Stop()) }()
		if err := w.d.Image(containerdtest.Image{Ref: imageRef}); err != nil {
			return err
		}
		if w.pod, err = w.d.RunPod(ctx, critest.PodSpec{Name: "bench"}); err != nil {
			return err
		}
		addresses = append(addresses, w.d.Socket())
		if w.nri {
			nri = fmt.Sprintf(", nri: {enabled: true, socket: %s}", w.d.NRISocket())
		}
	}
	a, err := b.startAgent("starts", 97, fmt.Sprintf("containerd: {address: [%s]}, hook: {socket: %s}%s, docker: {address: off}", strings.Join(addresses, ", "), socket, nri))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.stop()) }()
	if err := a.connected(ctx); err != nil {
		return err
	}
	if err := hookAlone(ctx, "the agent runs", empty, b.hook, socket); err != nil {
		return err
	}
	if err := measureStarts(ctx, rounds, "the agent runs", all); err != nil {
		return err
	}
	if err := a.printCases(ctx); err != nil {
		return err
	}
	if err := a.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	err = measureStarts(ctx, rounds, "the agent is stopped (SIGSTOP)", []*way{emptyHook, hook})
	if err := errors.Join(err, a.cmd.Process.Signal(syscall.SIGCONT)); err != nil {
		return err
	}
	if err := a.stop(); err != nil {
		return err
	}
	if err := hookAlone(ctx, "there is no agent", empty, b.hook, socket); err != nil {
		return err
	}
	return measureStarts(ctx, rounds, "there is no agent", []*way{emptyHook, hook})
}

// measureStarts runs rounds and prints how the ways compare with the first of them.
func measureStarts(ctx context.Context, rounds int, when string, all []*way) error {
	say("%d starts each, when %s", rounds, when)
	const warm = 3
	for _, w := range all {
		w.took = nil
	}
	for round := range warm + rounds {
		for i := range all {
			w := all[(round+i)%len(all)]
			took, err := w.start(ctx, round)
			if err != nil {
				return fmt.Errorf("%s, when %s: %w", w.name, when, err)
			}
			if round >= warm {
				w.took = append(w.took, took)
			}
		}
	}
	printStarts(when, all)
	return nil
}

// start makes a container, measures its start and removes it.
func (w *way) start(ctx context.Context, round int) (time.Duration, error) {
	c, err := w.pod.Create(ctx, critest.ContainerSpec{Name: fmt.Sprintf("c%d", round), Image: imageRef, Args: []string{"/bin/sleep", "1000"}})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	err = c.Start(ctx)
	took := time.Since(began)
	return took, errors.Join(err, c.Remove(ctx))
}

func printStarts(when string, all []*way) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Printf("== starts of %d containers each, when %s\n", len(all[0].took), when)
	fmt.Fprintln(w, "\tp50\tp99\tadded, paired: p50\tp99")
	ms := func(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1e3) }
	for _, x := range all {
		sorted := slices.Sorted(slices.Values(x.took))
		fmt.Fprintf(w, "%s\t%s\t%s", x.name, ms(at(sorted, 50)), ms(at(sorted, 99)))
		if x == all[0] {
			fmt.Fprintln(w, "\t\t")
			continue
		}
		var added []time.Duration
		for i := range x.took {
			added = append(added, x.took[i]-all[0].took[i])
		}
		slices.Sort(added)
		fmt.Fprintf(w, "\t%s\t%s\n", ms(at(added, 50)), ms(at(added, 99)))
	}
	w.Flush()
	fmt.Println()
}

// at is a percentile of what is sorted.
func at(sorted []time.Duration, percent int) time.Duration {
	return sorted[min(len(sorted)-1, len(sorted)*percent/100)]
}

// connected waits until no source of the agent is in trouble.
func (a *agentProcess) connected(ctx context.Context) error {
	for deadline := time.Now().Add(30 * time.Second); ; {
		out, err := exec.CommandContext(ctx, a.cmd.Path, "ps", "--sources", "--config", a.config).CombinedOutput()
		if err == nil && !bytes.Contains(out, []byte(" error ")) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the agent is not connected: %w\n%s\n%s", err, out, a.log.String())
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// printCases prints what the agent counted of runtimes that waited for it.
func (a *agentProcess) printCases(ctx context.Context) error {
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", a.socket)
	}}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/metrics", nil)
	if err != nil {
		return err
	}
	answer, err := c.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if what, ok := strings.CutPrefix(line, `stoker_source_cases_total{case="answer_`); ok {
			fmt.Printf("answers that were %s", strings.NewReplacer(`",source="`, ", of ", `"}`, ":").Replace(what))
		}
	}
	fmt.Println()
	return nil
}
