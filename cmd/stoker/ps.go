package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stoker-profiler/stoker/cmd/stoker/target"
	"github.com/stoker-profiler/stoker/sink/web"
)

func (a *app) psCommand() *cobra.Command {
	var (
		format string
		all    bool
	)
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List containers: whether each is profiled, how it was found, its CPU",
		Long: `List the containers of this node.

  PROFILED   yes, or why not
  FOUND BY   who told about the container: containerd's events, the scan of cgroups, …
  IN SCOPE   when sampling of the container began, relative to its start
  CPU        in cores, over the last window

Asks the agent. Without one it finds the containers itself, as root, and CPU stays empty.`,
		Example: `  stoker ps
  stoker ps -a --output wide       # gone containers too, and every column
  stoker ps --output json`,
		Args: noArguments,
	}
	s := a.settings(cmd, "socket")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "list containers too that ended within the last two windows")
	outputFlag(cmd, &format, "o", formatTable, formatWide, formatJSON)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if err := checkFormat(format, formatTable, formatWide, formatJSON); err != nil {
			return err
		}
		cfg, err := s.loadForClient()
		if err != nil {
			return err
		}
		agent, err := a.connect(cmd.Context(), cfg, false)
		if err != nil {
			return err
		}
		defer func() { err = cmp.Or(err, agent.close()) }()
		containers, err := agent.Containers(cmd.Context())
		if err != nil {
			return err
		}
		containers = slices.DeleteFunc(containers, func(c web.Container) bool { return !all && !c.GoneAt.IsZero() })
		top, err := agent.Top(cmd.Context())
		if err != nil {
			return err
		}
		cpu := map[string]float64{}
		for _, c := range top.Containers {
			cpu[c.ID] = c.Cores
		}
		if format == formatJSON {
			list := make([]psContainer, 0, len(containers))
			for _, c := range containers {
				one := psContainer{Container: c}
				if v, ok := cpu[c.ID]; ok {
					one.Cores = &v
				}
				list = append(list, one)
			}
			return printJSON(a.stdout, list)
		}
		if len(containers) == 0 {
			fmt.Fprintln(a.stderr, "stoker: no containers were found on this node")
		}
		return psTable(containers, cpu, format == formatWide, time.Now()).print(a.stdout, a.width())
	}
	return cmd
}

// psContainer is a container with its CPU over the last window; absent where none was measured.
type psContainer struct {
	web.Container
	Cores *float64 `json:"cores,omitempty"`
}

// psTable makes the table; cpu is in cores, by container id.
func psTable(containers []web.Container, cpu map[string]float64, wide bool, now time.Time) *table {
	t := &table{columns: []column{
		{title: "NAME", shrink: true}, {title: "RUNTIME"}, {title: "IMAGE", shrink: true}, {title: "PROFILED", shrink: true},
		{title: "FOUND BY", shrink: true}, {title: "IN SCOPE"}, {title: "CPU", right: true},
	}}
	if wide {
		t.columns = append(t.columns, column{title: "ID"}, column{title: "POD"}, column{title: "SERVICE"}, column{title: "HZ"},
			column{title: "PID"}, column{title: "CGROUP"}, column{title: "STARTED"})
	}
	for _, c := range containers {
		use := "-"
		if v, ok := cpu[c.ID]; ok {
			use = cores(v)
		}
		image := c.Image
		if !wide {
			image = shortImage(image)
		}
		row := []string{
			target.Name(c.Name, c.KubernetesContainer, c.ID), orDash(c.Runtime), orDash(image), profiled(c), orDash(foundBy(c)), inScope(c), use,
		}
		if wide {
			pod := ""
			if c.Pod != nil {
				pod = c.Pod.Namespace + "/" + c.Pod.Name
			}
			pid, started := "", ""
			if c.PID != 0 {
				pid = fmt.Sprint(c.PID)
			}
			if !c.StartedAt.IsZero() {
				started = span(now.Sub(c.StartedAt)) + " ago"
			}
			row = append(row, c.ID, orDash(pod), orDash(c.Service), orDash(frequency(c)), orDash(pid), orDash(c.CgroupPath), orDash(started))
		}
		t.add(row...)
	}
	return t
}

func orDash(s string) string { return cmp.Or(s, "-") }

// profiled says yes, or why not.
func profiled(c web.Container) string {
	switch {
	case !c.GoneAt.IsZero():
		return "no: it ended"
	case c.State == "profiled" && c.AskedFrequency != 0 && c.AskedFrequency != c.GivenFrequency:
		return fmt.Sprintf("yes, at %d Hz (asked for %d)", c.GivenFrequency, c.AskedFrequency)
	case c.State == "profiled":
		return "yes"
	case c.State == "provisional":
		return "yes, until it is described"
	case c.Reason != "":
		return "no: " + c.Reason
	}
	return "no: " + c.State
}

// frequency is what the container is sampled at and what its own label asked for.
func frequency(c web.Container) string {
	switch {
	case c.GivenFrequency == 0:
		return ""
	case c.AskedFrequency != 0 && c.AskedFrequency != c.GivenFrequency:
		return fmt.Sprintf("%d of %d", c.GivenFrequency, c.AskedFrequency)
	}
	return fmt.Sprint(c.GivenFrequency)
}

// foundBy lists the sources that told about the container.
func foundBy(c web.Container) string { return strings.Join(slices.Sorted(maps.Keys(c.Sources)), ", ") }

// inScope says when sampling began, relative to the container's start.
func inScope(c web.Container) string {
	switch {
	case c.InScopeAt.IsZero():
		return "-"
	case c.StartedAt.IsZero():
		return "start unknown"
	case c.InScopeAt.Before(c.StartedAt):
		return "-" + span(c.StartedAt.Sub(c.InScopeAt)) + " before start"
	}
	return "+" + span(c.InScopeAt.Sub(c.StartedAt)) + " after"
}

// span renders a duration with about two digits.
func span(d time.Duration) string {
	switch d = d.Abs(); {
	case d < time.Millisecond:
		return fmt.Sprintf("%.1fms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours())/24)
}

// shortImage leaves out of an image reference what seldom tells images apart on one node: the registry and the digest.
func shortImage(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	if first, rest, ok := strings.Cut(ref, "/"); ok && (strings.ContainsAny(first, ".:") || first == "localhost") {
		ref = rest
	}
	return strings.TrimPrefix(ref, "library/")
}
