// Stoker is the agent and the command line in one binary: `stoker run` profiles the containers of this node, the other
// commands look at what it sees.
//
// main.go holds the root command and how the program ends; each command has its file; agent.go wires the agent in the order
// of the data. Commands read flags, ask one thing (the agent over its socket, the store, or a sampler of their own) and print
// it: results on standard output, everything else on standard error.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/stoker-profiler/stoker/cmd/stoker/config"
	"github.com/stoker-profiler/stoker/sink/web"
)

// app is what the commands work with: the process's surroundings, and the two functions that need a kernel. Tests give it
// others.
type app struct {
	stdout, stderr io.Writer
	environ        []string
	version        string
	// run is the agent: it blocks until ctx ends. Configurations that are to replace the first one come over reload.
	run func(ctx context.Context, cfg config.Config, log *slog.Logger, version string, reload <-chan config.Config) error
	// local starts a sampler for one command, where no agent runs. The returned function ends it.
	local func(ctx context.Context, cfg config.Config, log *slog.Logger) (web.Backend, func() error, error)
}

func main() {
	a := &app{stdout: os.Stdout, stderr: os.Stderr, environ: os.Environ(), version: buildVersion(), run: runAgent, local: startLocal}
	// The second signal ends the program at once: AfterFunc gives the signals back to Go's default.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(a.execute(ctx, os.Args[1:]))
}

// execute runs one command line and returns its exit code.
func (a *app) execute(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(append([]string{}, args...)) // nil would mean the arguments of the process
	err := root.ExecuteContext(ctx)
	if err != nil {
		for line := range strings.Lines(message(err)) {
			fmt.Fprintf(a.stderr, "stoker: %s\n", clean(strings.TrimRight(line, "\n"))) // an error may repeat a container's name
		}
	}
	return exitCode(err)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "stoker",
		Short: "Which code, in which container, is using this machine?",
		Long: `stoker samples the CPU of every container on this node with eBPF and says which functions use it:
no sidecar, no change to the application, no restart, no Kubernetes API.

Start the agent with "stoker run" (as root), then open http://127.0.0.1:4041 or ask with the commands below.
ps, top and record also work without an agent: they start a sampler of their own, as root.`,
		Example: `  stoker run                               # the agent, with no configuration at all
  stoker top                               # who uses the CPU now
  stoker record -d 30s -o web.html web     # a flame graph of container web
  stoker query --last 1h -l service_name=web -o web.pb.gz`,
		SilenceErrors: true, // execute prints them, once
		SilenceUsage:  true, // a mistake is explained by its message; the help is one flag away
		Args:          noSuchCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage("%w; see `%s --help`", err, cmd.CommandPath())
	})
	// As cobra has it, but not wider than people read.
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), "Flags.FlagUsages ", "Flags.FlagUsagesWrapped 120 "))
	root.AddCommand(a.runCommand(), a.psCommand(), a.topCommand(), a.recordCommand(), a.queryCommand("query"), a.storeCommand(), a.hookCommand(), a.doctorCommand(),
		a.configCommand(), a.versionCommand(), a.manCommand(), a.perfAccessCommand())
	return root
}

// group makes a command that only holds others.
func group(use, short, long string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Long: long, Args: noSuchCommand, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	c.AddCommand(commands...)
	return c
}

// noSuchCommand is the Args of commands that only hold others.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	cmd.SuggestionsMinimumDistance = min(2, len(args[0])/2)
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return usage("there is no command %q; did you mean `%s %s`?", args[0], cmd.CommandPath(), near[0])
	}
	return usage("there is no command %q; `%s --help` lists them", args[0], cmd.CommandPath())
}

// noArguments is the Args of commands that take none.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage("%s takes no arguments, but got %q; see `%s --help`", cmd.CommandPath(), args, cmd.CommandPath())
	}
	return nil
}
