// Package daemon is a server that a test runs for itself: started until it answers, stopped, killed, paused and started again, by
// pid. The packages below test that run an engine (containerdtest, dockertest, podmantest) are its only callers.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// startTimeout is how long a daemon may take until it answers; a loaded two-core machine needs a few seconds.
const startTimeout = 60 * time.Second

// endTimeout is how long a daemon may take to end when asked nicely.
const endTimeout = 20 * time.Second

// Server is one daemon, up or down. With its exported fields set it is down and can be started. Packages embed it, so its methods
// are named as their callers read them. Safe for concurrent use.
type Server struct {
	Name    string // for errors
	LogPath string // what it writes, over all its starts
	Listens string // the socket: it is up when something answers here and Ready says so

	mu    sync.Mutex // protects what follows
	cmd   *exec.Cmd  // nil while it is down
	ended chan struct{}
}

// Log returns what the daemon wrote so far, over all its starts.
func (d *Server) Log() string {
	b, err := os.ReadFile(d.LogPath)
	if errors.Is(err, fs.ErrNotExist) {
		return "" // it was never started
	}
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// PID is the daemon's, 0 while it is down.
func (d *Server) PID() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd == nil {
		return 0
	}
	return d.cmd.Process.Pid
}

// Start starts the daemon by the command that command makes, and waits until it listens and ready, where it is not nil, finds
// that it answers: a socket exists a little before the services behind it do. Starting what runs is an error.
func (d *Server) Start(ctx context.Context, command func() (*exec.Cmd, error), ready func(context.Context) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd != nil {
		return fmt.Errorf("start %s: it runs already", d.Name)
	}
	log, err := os.OpenFile(d.LogPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", d.Name, err)
	}
	defer log.Close() // the child has its own
	cmd, err := command()
	if err != nil {
		return fmt.Errorf("start %s: %w", d.Name, err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	// Its own process group: a Ctrl-C at the terminal is for the demo, which then ends containers in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", d.Name, err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in the log; that it ended is what counts
		close(ended)
	}()
	d.cmd, d.ended = cmd, ended
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if conn, err := net.Dial("unix", d.Listens); err == nil {
			conn.Close()
			if ready == nil || ready(ctx) == nil {
				return nil
			}
		}
		select {
		case <-ended:
			d.cmd = nil
			return fmt.Errorf("start %s: it ended at once; it wrote:\n%s", d.Name, d.Log())
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("start %s: no answer on %s: %w; it wrote:\n%s", d.Name, d.Listens, ctx.Err(), d.Log()),
				d.endLocked(syscall.SIGKILL))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// KillDaemon ends the daemon with SIGKILL and waits for its end. Containers live on.
func (d *Server) KillDaemon() error { return d.end(syscall.SIGKILL) }

// StopDaemon ends the daemon with SIGTERM, with SIGKILL if it takes long, and waits for its end. Containers live on.
func (d *Server) StopDaemon() error { return d.end(syscall.SIGTERM) }

// PauseDaemon stops the daemon with SIGSTOP: its socket takes connections and never answers. ResumeDaemon lets it go on.
func (d *Server) PauseDaemon() error { return d.signal(syscall.SIGSTOP) }

// ResumeDaemon lets a paused daemon go on.
func (d *Server) ResumeDaemon() error { return d.signal(syscall.SIGCONT) }

func (d *Server) signal(s syscall.Signal) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd == nil {
		return fmt.Errorf("send %v to %s: it is down", s, d.Name)
	}
	if err := d.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("send %v to %s: %w", s, d.Name, err)
	}
	return nil
}

func (d *Server) end(s syscall.Signal) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.endLocked(s)
}

func (d *Server) endLocked(s syscall.Signal) error {
	if d.cmd == nil {
		return nil
	}
	cmd := d.cmd
	d.cmd = nil
	if err := cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end %s with %v: %w", d.Name, s, err)
	}
	if s != syscall.SIGKILL {
		_ = cmd.Process.Signal(syscall.SIGCONT) // a paused one would never read its signal
	}
	select {
	case <-d.ended:
	case <-time.After(endTimeout):
		_ = cmd.Process.Kill()
		<-d.ended
	}
	return nil
}
