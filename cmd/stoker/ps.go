package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stoker-profiler/stoker/cmd/stoker/config"
	"github.com/stoker-profiler/stoker/cmd/stoker/target"
	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
	"github.com/stoker-profiler/stoker/sink/web"
)

func (a *app) psCommand() *cobra.Command {
	var (
		format  string
		all     bool
		sources bool
	)
	cmd := &cobra.Command{
		Use:   "ps [TARGET…]",
		Short: "List containers: whether each is profiled, how it was found, its CPU",
		Long: `List the containers of this node, and below them the sources that tell about containers.

  RUNTIME    who runs it, and for which user if not for root
  FOUND BY   who told about the container, in the order in which they did
  IN SCOPE   when sampling of it began: -12ms is before its first instruction, +3ms after
  CPU        in cores, over the last window
  PROFILED   yes, or why not

With TARGET (a name, an id or the beginning of it, name=NAME, LABEL=VALUE, pid:N) it prints all that is known about those
containers.

Asks the agent. Without one it finds the containers itself, as root, and CPU stays empty.`,
		Example: `  stoker ps
  stoker ps web                    # one container in full
  stoker ps -a --output wide       # gone containers too, and every column
  stoker ps --sources              # only who tells about containers
  stoker ps --output json`,
	}
	s := a.settings(cmd, "socket")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "list containers too that ended within the last two windows")
	cmd.Flags().BoolVar(&sources, "sources", false, "print only the sources of containers")
	outputFlag(cmd, &format, "o", formatTable, formatWide, formatJSON)
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		if err := checkFormat(format, formatTable, formatWide, formatJSON); err != nil {
			return err
		}
		if sources && len(args) > 0 {
			return usage("--sources prints no containers; leave out %q", args)
		}
		if _, err := target.Parse(args); err != nil {
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
		told, err := agent.Sources(cmd.Context())
		if err != nil {
			return err
		}
		if sources && format == formatJSON {
			return printJSON(a.stdout, append([]web.Source{}, told...))
		}
		if sources {
			return sourceTable(told, time.Now()).print(a.stdout, 0)
		}
		containers, err := agent.Containers(cmd.Context())
		if err != nil {
			return err
		}
		containers = slices.DeleteFunc(containers, func(c web.Container) bool { return !all && !c.GoneAt.IsZero() })
		if containers, err = chosen(args, containers); err != nil {
			return err
		}
		top, err := agent.Top(cmd.Context())
		if refusal := (*web.Error)(nil); errors.As(err, &refusal) && refusal.Status == http.StatusNotImplemented {
			err = nil // an agent that may not sample: each container says so
		}
		if err != nil {
			return err
		}
		cpu := map[string]float64{}
		for _, c := range top.Containers {
			cpu[c.ID] = c.Cores
		}
		switch {
		case format == formatJSON:
			list := make([]psContainer, 0, len(containers))
			for _, c := range containers {
				one := psContainer{Container: c}
				if v, ok := cpu[c.ID]; ok {
					one.Cores = &v
				}
				list = append(list, one)
			}
			return printJSON(a.stdout, list)
		case len(args) > 0 && format == formatTable:
			for i, c := range containers {
				if i > 0 {
					fmt.Fprintln(a.stdout)
				}
				if err := printContainer(a.stdout, c, cpu, time.Now()); err != nil {
					return err
				}
			}
			return nil
		}
		if len(containers) == 0 {
			fmt.Fprintln(a.stderr, "stoker: no containers were found on this node")
		}
		if err := psTable(containers, cpu, format == formatWide, a.width(), time.Now()).print(a.stdout, a.width()); err != nil {
			return err
		}
		if len(args) > 0 {
			return nil
		}
		for i, s := range told { // what is no trouble is said in short; --sources says it all
			if s.State == web.SourceAbsent {
				told[i].Message = firstClause(s.Message)
			}
		}
		fmt.Fprintln(a.stdout)
		if err := sourceTable(told, time.Now()).print(a.stdout, 0); err != nil {
			return err
		}
		if hint := nriHint(cfg, told); hint != "" {
			fmt.Fprintln(a.stderr, "stoker:", hint)
		}
		return nil
	}
	return cmd
}

// nriHint offers NRI where a runtime does and nobody uses it.
func nriHint(cfg config.Config, sources []web.Source) string {
	if cfg.Runtimes.NRI.Enabled || slices.ContainsFunc(sources, func(s web.Source) bool { return s.Name == "nri" }) {
		return ""
	}
	socket := strings.TrimPrefix(cfg.Runtimes.NRI.Socket, "unix://")
	if info, err := os.Stat(socket); err != nil || info.Mode().Type() != fs.ModeSocket {
		return ""
	}
	return "a runtime offers NRI at " + socket + ": with runtimes.nri.enabled pods are in scope before their first instruction, always; docs/nri.md says what that risks"
}

// chosen returns the containers that the targets mean; no targets mean all.
func chosen(args []string, containers []web.Container) ([]web.Container, error) {
	if len(args) == 0 {
		return containers, nil
	}
	targets, err := target.Parse(args)
	if err != nil {
		return nil, err
	}
	model := make([]container.Container, len(containers))
	for i, c := range containers {
		model[i] = container.Container{ID: c.ID, Name: c.Name, KubernetesContainer: c.KubernetesContainer, Labels: c.Labels, CgroupPath: c.CgroupPath, PID: c.PID}
		if c.Pod != nil {
			model[i].Pod = container.Pod{Name: c.Pod.Name, Namespace: c.Pod.Namespace}
		}
	}
	selection, err := target.Resolve(targets, model, func(pid int) (string, error) {
		h, err := cgroupfs.Detect()
		if err != nil {
			return "", err
		}
		return h.OfPID(pid)
	})
	if err != nil {
		return nil, err
	}
	var out []web.Container
	for i, c := range model {
		if selection.Container(c) {
			out = append(out, containers[i])
		}
	}
	return out, nil
}

// psContainer is a container with its CPU over the last window; absent where none was measured.
type psContainer struct {
	web.Container
	Cores *float64 `json:"cores,omitempty"`
}

// narrow is the width of a terminal below which the image gives way to the reasons.
const narrow = 110

// psTable makes the table for a terminal of a width, 0 for any; cpu is in cores, by container id.
func psTable(containers []web.Container, cpu map[string]float64, wide bool, width int, now time.Time) *table {
	image := wide || width == 0 || width >= narrow
	t := &table{columns: []column{{title: "NAME", shrink: true}, {title: "RUNTIME"}}}
	if image {
		t.columns = append(t.columns, column{title: "IMAGE", shrink: true})
	}
	t.columns = append(t.columns, column{title: "FOUND BY", shrink: true}, column{title: "IN SCOPE", right: true}, column{title: "CPU", right: true})
	if wide {
		t.columns = append(t.columns, column{title: "ID"}, column{title: "POD"}, column{title: "SERVICE"}, column{title: "USER"}, column{title: "HZ"},
			column{title: "PID"}, column{title: "CGROUP"}, column{title: "STARTED"})
	}
	t.columns = append(t.columns, column{title: "PROFILED", shrink: true}) // last: a reason takes what room is left
	for _, c := range containers {
		use := "-"
		if v, ok := cpu[c.ID]; ok {
			use = cores(v)
		}
		runtime := orDash(c.Runtime)
		if c.User != "" && !wide { // wide has a column for it
			runtime += " (" + c.User + ")"
		}
		row := []string{target.Name(c.Name, c.KubernetesContainer, c.ID), runtime}
		switch {
		case wide:
			row = append(row, orDash(c.Image))
		case image:
			row = append(row, orDash(shortImage(c.Image)))
		}
		row = append(row, orDash(found(foundBy(c), image)), inScope(c), use)
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
			row = append(row, c.ID, orDash(pod), orDash(c.Service), orDash(c.User), orDash(frequency(c)), orDash(pid), orDash(c.CgroupPath), orDash(started))
		}
		t.add(append(row, profiled(c))...)
	}
	return t
}

// sourceTable says who tells about containers, and how that stands. Print it uncut: the remedy is at the end of the line.
func sourceTable(sources []web.Source, now time.Time) *table {
	t := &table{columns: []column{{title: "SOURCE"}, {title: "STATE"}, {title: "SINCE"}, {title: "CONTAINERS", right: true}, {title: "MESSAGE"}}}
	for _, s := range sources {
		since := "-"
		if !s.Since.IsZero() {
			since = span(now.Sub(s.Since))
		}
		t.add(s.Name, string(s.State), since, fmt.Sprint(s.Containers), s.Message)
	}
	return t
}

// firstClause returns a message up to its details: a cause, a list, what to do.
func firstClause(message string) string {
	for _, mark := range []string{": ", " (", "; "} {
		message, _, _ = strings.Cut(message, mark)
	}
	return message
}

// printContainer prints all that is known about a container, a fact a line. Lines are not cut: this is where one reads a reason.
func printContainer(w io.Writer, c web.Container, cpu map[string]float64, now time.Time) error {
	var b strings.Builder
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "  %-12s %s\n", name, clean(value))
		}
	}
	at := func(name string, t time.Time, than string) {
		switch {
		case t.IsZero():
		case than == "" || c.StartedAt.IsZero():
			line(name, fmt.Sprintf("%s, %s ago", t.Local().Format("2006-01-02 15:04:05.000"), span(now.Sub(t))))
		default:
			line(name, fmt.Sprintf("%s, %s", t.Local().Format("2006-01-02 15:04:05.000"), beforeOrAfter(t.Sub(c.StartedAt), than)))
		}
	}
	fmt.Fprintln(&b, clean(target.Name(c.Name, c.KubernetesContainer, c.ID)))
	line("profiled", profiled(c))
	for _, note := range c.Notes {
		line("note", note)
	}
	if c.GivenFrequency != 0 {
		asked := ""
		if c.AskedFrequency != 0 {
			asked = fmt.Sprintf("; its label asks for %d Hz", c.AskedFrequency)
		}
		line("frequency", fmt.Sprintf("%d Hz%s", c.GivenFrequency, asked))
	}
	if v, ok := cpu[c.ID]; ok {
		line("cpu", cores(v)+" cores in the last window")
	}
	line("service", c.Service)
	line("tenant", c.Tenant)
	line("id", c.ID)
	runtime := c.Runtime
	if c.Namespace != "" {
		runtime += ", namespace " + c.Namespace
	}
	if c.User != "" {
		runtime += ", of user " + c.User
	}
	line("runtime", runtime)
	line("image", c.Image)
	if c.Pod != nil {
		line("pod", fmt.Sprintf("%s/%s, uid %s", c.Pod.Namespace, c.Pod.Name, orDash(c.Pod.UID)))
		line("in the pod", c.KubernetesContainer)
	}
	line("unit", c.SystemdUnit)
	if c.PID != 0 {
		line("pid", fmt.Sprint(c.PID))
	}
	if c.CgroupPath != "" {
		line("cgroup", fmt.Sprintf("%s, id %d", c.CgroupPath, c.CgroupID))
	}
	const start = "its first instruction"
	at("created", c.CreatedAt, "")
	at("process made", c.TaskCreatedAt, start)
	at("started", c.StartedAt, "")
	at("in scope", c.InScopeAt, start)
	at("ended", c.GoneAt, "")
	sources := foundBy(c)
	for i, name := range sources {
		after := ""
		if i > 0 {
			after = fmt.Sprintf(", %s after the first", span(c.Sources[name].Sub(c.Sources[sources[0]])))
		}
		line("found by", fmt.Sprintf("%s, %s%s", name, c.Sources[name].Local().Format("15:04:05.000"), after))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Labels)) {
		line("label", name+"="+c.Labels[name])
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func beforeOrAfter(d time.Duration, what string) string {
	if d < 0 {
		return span(d) + " before " + what
	}
	return span(d) + " after " + what
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

// foundBy lists the sources that told about the container, in the order in which they did.
func foundBy(c web.Container) []string {
	return slices.SortedFunc(maps.Keys(c.Sources), func(a, b string) int {
		return cmp.Or(c.Sources[a].Compare(c.Sources[b]), cmp.Compare(a, b))
	})
}

// found puts the sources in a cell: all, or the first and how many more.
func found(sources []string, all bool) string {
	if !all && len(sources) > 1 {
		return fmt.Sprintf("%s +%d", sources[0], len(sources)-1)
	}
	return strings.Join(sources, ", ")
}

// inScope says when sampling began, relative to the container's start.
func inScope(c web.Container) string {
	switch {
	case c.InScopeAt.IsZero():
		return "-"
	case c.StartedAt.IsZero():
		return "start?"
	case c.InScopeAt.Before(c.StartedAt):
		return "-" + span(c.StartedAt.Sub(c.InScopeAt))
	}
	return "+" + span(c.InScopeAt.Sub(c.StartedAt))
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
