package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/stoker-profiler/stoker/test/containerdtest"
	"github.com/stoker-profiler/stoker/test/workload"
)

// binaries measures the memory of the agent and of its kernel maps with so many different programs in scope, each in a container of
// its own: as many files with symbols, and with unwind rows of which no two pages are equal.
func (b *bench) binaries(ctx context.Context, n int) (err error) {
	say("memory with %d different programs in scope", n)
	home := filepath.Join(b.dir, "binaries")
	if err := os.Mkdir(home, 0o755); err != nil {
		return err
	}
	if _, err := workload.New(home); err != nil { // the sources
		return err
	}
	image := containerdtest.Image{Ref: imageRef, Files: map[string]containerdtest.File{}}
	for i := range n {
		// What lies before the program's code moves all of it, the C library too: other addresses, other rows in a page.
		padding := filepath.Join(home, "padding.h")
		text := fmt.Sprintf("__asm__(\".text\\n.skip %d, 0x90\\n\");\n", 16+i*1040)
		if err := os.WriteFile(padding, []byte(text), 0o644); err != nil {
			return err
		}
		path := filepath.Join(home, fmt.Sprintf("program-%d", i))
		gcc := exec.CommandContext(ctx, "gcc", "-static", "-g0", "-O2", "-fomit-frame-pointer", "-DNO_FRAMES", "-include", padding, "-o", path, "deep.c")
		gcc.Dir = filepath.Join(home, "src")
		if out, err := gcc.CombinedOutput(); err != nil {
			return fmt.Errorf("build a program: %w: %s", err, out)
		}
		image.Files["/"+filepath.Base(path)] = containerdtest.Host(path)
	}
	state := filepath.Join(home, "containerd")
	if err := os.Mkdir(state, 0o755); err != nil {
		return err
	}
	if b.daemon, err = containerdtest.New(ctx, state); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.daemon.Stop()) }()
	if err := b.daemon.Image(image); err != nil {
		return err
	}
	a, err := b.startSampler(ctx, "binaries", 97)
	if err != nil {
		return err
	}
	defer func() { err = a.end(err) }()
	empty, _, err := rss(a.pid())
	if err != nil {
		return err
	}
	var running []*containerdtest.Container
	defer func() {
		for _, c := range running {
			err = errors.Join(err, c.Delete(context.Background()))
		}
	}()
	for i := range n {
		c, err := b.start(ctx, fmt.Sprintf("/program-%d", i), omitFrames)
		if err != nil {
			return err
		}
		running = append(running, c)
	}
	if err := sleep(ctx, 32*time.Second); err != nil { // three windows: every program has had its turn on a CPU, and all is read
		return err
	}
	now, peak, err := rss(a.pid())
	if err != nil {
		return err
	}
	kernel, count, err := mapBytes(a.pid())
	if err != nil {
		return err
	}
	taken, err := takenBy(a.program)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "== %d different programs in scope, %d samples\n", n, taken)
	fmt.Fprintf(w, "memory: stoker\t%s\tpeak %s; with nothing in scope %s\n", mib(now), mib(peak), mib(empty))
	fmt.Fprintf(w, "stoker's kernel maps\t%s\t%d maps\n", mib(kernel), count)
	w.Flush()
	fmt.Println()
	return nil
}
