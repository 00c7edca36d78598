package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
)

// agentProcess is a running agent, which profiles the containers of the benchmark's image and no others.
type agentProcess struct {
	cmd    *exec.Cmd
	began  time.Time
	config string
	socket string // of its API
	log    bytes.Buffer
	died   chan struct{}
}

// startAgent starts the agent with what its configuration says below runtimes. name is that of its files.
func (b *bench) startAgent(name string, hz int, runtimes string) (*agentProcess, error) {
	a := &agentProcess{config: filepath.Join(b.dir, name+".yaml"), socket: filepath.Join(b.dir, name+".sock"), died: make(chan struct{})}
	text := fmt.Sprintf(`sampling: {frequency: %d, window: 10s}
targets: [{image: %q}, {exclude: true}]
store: {path: %s, min_free: 1%%}
web: {listen: off}
socket: %s
runtimes: {%s}
`, hz, imageRef, filepath.Join(b.dir, name+".db"), a.socket, runtimes)
	if err := os.WriteFile(a.config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	a.cmd = exec.Command(b.agent, "run", "--config", a.config)
	a.cmd.Stdout, a.cmd.Stderr = &a.log, &a.log
	a.began = time.Now()
	if err := a.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		a.cmd.Wait() // how it ended is in its log
		close(a.died)
	}()
	return a, nil
}

// stop ends the agent; again does nothing.
func (a *agentProcess) stop() error {
	a.cmd.Process.Signal(syscall.SIGTERM)
	<-a.died
	if code := a.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("the agent ended with %d:\n%s", code, a.log.String())
	}
	return nil
}

func (a *agentProcess) pid() int { return a.cmd.Process.Pid }

// sampler is an agent whose BPF program is watched.
type sampler struct {
	*agentProcess
	program *ebpf.Program // what runs at each tick
}

// startSampler starts an agent on the benchmark's containerd and waits until it has loaded its program.
func (b *bench) startSampler(ctx context.Context, name string, hz int) (*sampler, error) {
	others, err := perfPrograms()
	if err != nil {
		return nil, err
	}
	a, err := b.startAgent(name, hz, fmt.Sprintf("containerd: {address: %s}, hook: {socket: off}", b.daemon.Socket()))
	if err != nil {
		return nil, err
	}
	s := &sampler{agentProcess: a}
	if s.program, err = newProgram(ctx, others, "sample", a.died); err != nil {
		return nil, s.end(err)
	}
	return s, nil
}

// end ends the agent. err is the measurement's, which gets the agent's log.
func (s *sampler) end(err error) error {
	if s.program != nil {
		s.program.Close()
	}
	if stopErr := s.stop(); stopErr != nil {
		return errors.Join(err, stopErr)
	}
	if err != nil {
		err = fmt.Errorf("%w; the agent's log:\n%s", err, s.log.String())
	}
	return err
}

// ticks waits for the first run of the program: once a container is in scope the clock ticks.
func (s *sampler) ticks(ctx context.Context) error {
	for {
		now, err := runsOf(s.program)
		if err != nil {
			return err
		}
		if now.n > 0 {
			return nil
		}
		if time.Since(s.began) > 30*time.Second {
			return errors.New("no sample within 30 s of the agent's start")
		}
		if err := sleep(ctx, time.Millisecond); err != nil {
			return err
		}
	}
}
