package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stoker-profiler/stoker/cmd/stoker/target"
	"github.com/stoker-profiler/stoker/sink/web"
)

// ownTopWindow is the window of a sampler that top starts itself: nothing is stored, so it may be short and lively.
const ownTopWindow = 2 * time.Second

func (a *app) topCommand() *cobra.Command {
	var (
		format string
		once   bool
		rows   int
	)
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show who uses the CPU now: containers and their functions",
		Long: `Show the CPU use of each container, in cores, and the functions that use it. On a terminal the table is renewed with every
window of the agent, until Ctrl-C; in a pipe, with --once and with --output json it is printed once.

Asks the agent. Without one it samples by itself, as root, in windows of 2 seconds.`,
		Example: `  stoker top
  stoker top --once -n 5
  stoker top --output json | jq '.containers[0]'`,
		Args: noArguments,
	}
	s := a.settings(cmd, "socket")
	cmd.Flags().BoolVar(&once, "once", false, "print one table and end")
	cmd.Flags().IntVarP(&rows, "rows", "n", 0, "`NUMBER` of containers and of functions to show (default: what fits, 10 in a pipe)")
	outputFlag(cmd, &format, "o", formatTable, formatJSON)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if err := checkFormat(format, formatTable, formatJSON); err != nil {
			return err
		}
		if rows < 0 || cmd.Flags().Changed("rows") && rows == 0 {
			return usage("-n %d: give a number of rows, 1 or more", rows)
		}
		cfg, err := s.loadForClient()
		if err != nil {
			return err
		}
		cfg.Sampling.Window = ownTopWindow // the agent has its own
		agent, err := a.connect(cmd.Context(), cfg, false)
		if err != nil {
			return err
		}
		defer func() { err = cmp.Or(err, agent.close()) }()
		if _, _, ok := terminal(a.stdout); !ok || once || format == formatJSON {
			t, err := a.nextTop(cmd.Context(), agent, time.Time{})
			if err != nil {
				return err
			}
			if format == formatJSON {
				return printJSON(a.stdout, t)
			}
			return printTop(a.stdout, t, cmp.Or(rows, 10), a.width(), a.colour())
		}
		return a.liveTop(cmd.Context(), agent, rows)
	}
	return cmd
}

// nextTop waits for a window that ended after the one before.
func (a *app) nextTop(ctx context.Context, agent observer, before time.Time) (web.Top, error) {
	line := a.progress()
	defer line.done()
	for {
		t, err := agent.Top(ctx)
		if err != nil || t.WindowEnd.After(before) {
			return t, err
		}
		if before.IsZero() {
			line.set("waiting for the first window to end …")
		}
		select {
		case <-ctx.Done():
			return t, ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// liveTop redraws the table with every window until the user ends it, which is not an error.
func (a *app) liveTop(ctx context.Context, agent observer, rows int) error {
	// The alternate screen leaves the user's scrollback as it was.
	fmt.Fprint(a.stdout, "\x1b[?1049h\x1b[?25l")
	defer fmt.Fprint(a.stdout, "\x1b[?25h\x1b[?1049l")
	for before := (time.Time{}); ; {
		t, err := a.nextTop(ctx, agent, before)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		before = t.WindowEnd
		columns, lines, _ := terminal(a.stdout)
		n := rows
		if n == 0 {
			n = max((lines-5)/2, 3) // the first line, two titles, two empty lines
		}
		var screen strings.Builder
		screen.WriteString("\x1b[H\x1b[2J")
		if err := printTop(&screen, t, n, columns, a.colour()); err != nil {
			return err
		}
		if _, err := io.WriteString(a.stdout, strings.TrimSuffix(screen.String(), "\n")); err != nil {
			return err
		}
	}
}

// function is one line of the lower table.
type function struct {
	container string
	web.TopFunction
}

func printTop(w io.Writer, t web.Top, rows, width int, colour bool) error {
	head := fmt.Sprintf("%s–%s  %s cores in %d containers", t.WindowStart.Local().Format(time.TimeOnly), t.WindowEnd.Local().Format(time.TimeOnly),
		cores(t.Cores), len(t.Containers))
	if colour {
		head = "\x1b[1m" + head + "\x1b[0m"
	}
	if _, err := fmt.Fprintf(w, "%s\n\n", head); err != nil {
		return err
	}
	window := t.WindowEnd.Sub(t.WindowStart)
	containers := table{columns: []column{
		{title: "CONTAINER", shrink: true}, {title: "SERVICE", shrink: true}, {title: "CORES", right: true}, {title: "SHARE", right: true},
		{title: "SAMPLES", right: true},
	}}
	var functions []function
	for i, c := range t.Containers {
		name := target.Name(c.Name, "", c.ID)
		if i < rows {
			containers.add(name, orDash(c.Service), cores(c.Cores), share(c.Cores, t.Cores), fmt.Sprint(c.Samples))
		}
		for _, f := range c.Functions {
			functions = append(functions, function{name, f})
		}
	}
	if err := containers.print(w, width); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	slices.SortStableFunc(functions, func(a, b function) int { return cmp.Compare(b.Self, a.Self) })
	below := table{columns: []column{
		{title: "SELF", right: true}, {title: "TOTAL", right: true}, {title: "CONTAINER", shrink: true}, {title: "FUNCTION", shrink: true},
		{title: "FILE", shrink: true},
	}}
	for _, f := range functions[:min(len(functions), rows)] {
		below.add(perWindow(f.Self, window), perWindow(f.Total, window), f.container, f.Name, orDash(f.File))
	}
	return below.print(w, width)
}

// share is a part of a sum in percent.
func share(part, sum float64) string {
	if sum <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*part/sum)
}

// perWindow turns nanoseconds of CPU time in a window into cores.
func perWindow(ns int64, window time.Duration) string {
	if window <= 0 {
		return "-"
	}
	return cores(float64(ns) / float64(window))
}
