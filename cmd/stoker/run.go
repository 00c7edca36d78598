package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/stoker-profiler/stoker/cmd/stoker/config"
)

func (a *app) runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the agent",
		Long: `Run the agent: find the containers of this node, sample their CPU, keep the profiles in the store, push them to Pyroscope
where one is configured, and serve the UI on http://127.0.0.1:4041.

Needs root, or a user with CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH, CAP_CHECKPOINT_RESTORE and CAP_SYSLOG
who may use the runtimes' sockets; without CAP_BPF or CAP_PERFMON it only watches, and "stoker doctor" says what to do. With no
configuration at all it profiles every container and keeps the profiles here.

SIGTERM and Ctrl-C write the last window and end it; a second one ends it at once. SIGHUP reads the configuration again and
takes over what can change while it runs; "stoker config show" says which keys those are.

Each key of the configuration has a flag and an environment variable: sampling.frequency is --sampling-frequency and
STOKER_SAMPLING_FREQUENCY ("stoker config show -o wide" lists them). A flag wins over the environment, that over the file.`,
		Example: `  stoker run
  stoker run --config ./stoker.yaml --log-level debug
  stoker run --pyroscope-url https://pyroscope.example.net --pyroscope-tenant-id edge
  STOKER_SAMPLING_FREQUENCY=49 stoker run --web-listen off`,
		Args: noArguments,
	}
	s := a.settings(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		l, err := s.load()
		if err != nil {
			return err
		}
		level := new(slog.LevelVar)
		log := newLogger(a.stderr, l.Config.Log, level)
		captureLibraries(log)
		for _, w := range l.Warnings {
			log.Warn(w)
		}
		if l.File == "" {
			log.Info("no configuration file, the defaults are in force", "file", config.DefaultFile)
		}
		// From here on: Go's default for SIGHUP would end the program.
		hangups := make(chan os.Signal, 1)
		signal.Notify(hangups, syscall.SIGHUP)
		defer signal.Stop(hangups)
		ctx, cancel := context.WithCancel(cmd.Context())
		reload := make(chan config.Config)
		done := make(chan struct{})
		go func() {
			defer close(done)
			r := reloader{load: s.load, inForce: l.Config, level: level, log: log, notify: notifier{log}, to: reload}
			r.run(ctx, hangups)
		}()
		defer func() { cancel(); <-done }()
		return a.run(cmd.Context(), l.Config, log, a.version, reload)
	}
	return cmd
}

// reloader reads the configuration again at each hangup. One goroutine runs it.
type reloader struct {
	load    func() (*config.Loaded, error)
	inForce config.Config // what the agent works with
	level   *slog.LevelVar
	log     *slog.Logger
	notify  notifier
	to      chan<- config.Config
}

func (r *reloader) run(ctx context.Context, hangups <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
		}
		r.notify.reloading()
		r.reload(ctx)
		if ctx.Err() == nil {
			r.notify.ready()
		}
	}
}

func (r *reloader) reload(ctx context.Context) {
	l, err := r.load()
	if err != nil {
		// Every mistake on a line of its own, as `stoker config check` has it.
		for line := range strings.Lines(err.Error()) {
			r.log.Error("the configuration is not reloaded", "err", strings.TrimRight(line, "\n"))
		}
		return
	}
	changes := config.Diff(r.inForce, l.Config)
	for _, c := range changes {
		if c.Live {
			r.log.Info("configuration changes", "key", c.Key, "from", c.Old, "to", c.New)
		} else {
			r.log.Warn("this change needs a restart of stoker and is not in force yet", "key", c.Key, "from", c.Old, "to", c.New)
		}
	}
	if len(changes) == 0 {
		r.log.Info("the configuration has not changed")
		return
	}
	r.inForce.TakeLive(l.Config)
	setLevel(r.level, r.inForce.Log.Level)
	select {
	case <-ctx.Done():
	case r.to <- r.inForce:
	}
}

// newLogger makes the agent's log. level is set from the configuration and may be changed later.
func newLogger(w io.Writer, c config.Log, level *slog.LevelVar) *slog.Logger {
	setLevel(level, c.Level)
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// maxLibraryLine is how much is kept of one line that a library logs.
const maxLibraryLine = 300

// captureLibraries makes what libraries print through the standard log lines of ours, for those who debug: net/http prints what an
// unexpected peer sent it, up to a buffer full, each time.
func captureLibraries(log *slog.Logger) {
	stdlog.SetFlags(0)
	stdlog.SetOutput(libraryLines{log})
}

type libraryLines struct{ log *slog.Logger }

func (l libraryLines) Write(line []byte) (int, error) {
	l.log.Debug("a library says", "line", strings.ToValidUTF8(string(bytes.TrimSpace(line[:min(len(line), maxLibraryLine)])), ""))
	return len(line), nil
}

// setLevel takes a level that has passed Validate.
func setLevel(level *slog.LevelVar, name string) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(name)); err != nil {
		panic(fmt.Sprintf("log.level %q passed validation: %v", name, err))
	}
	level.Set(l)
}
