package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/pprof/profile"
	"github.com/spf13/cobra"

	"github.com/stoker-profiler/stoker/cmd/stoker/config"
	"github.com/stoker-profiler/stoker/cmd/stoker/target"
	"github.com/stoker-profiler/stoker/sink/file"
	"github.com/stoker-profiler/stoker/sink/web"
)

// formatsHelp is the same for record and query.
const formatsHelp = `The ending of FILE picks the format: .pb.gz (pprof), .html (a flame graph that needs nothing else), .svg, .folded, .json
(speedscope), .txt; - is a table of functions on standard output.`

// longestRecording keeps a slip ("10h" for "10m") from occupying the sampler; the store holds the long run.
const longestRecording = time.Hour

func (a *app) recordCommand() *cobra.Command {
	var (
		duration  string
		name      string
		format    string
		frequency int
		own       bool
	)
	cmd := &cobra.Command{
		Use:   "record [TARGET…]",
		Short: "Sample containers for a while and write the profile to a file",
		Long: `Sample the CPU of the targets for a while and write what they did.

TARGET is the name of a container, its id or the beginning of it, name=NAME, LABEL=VALUE (a label of the container or its
pod), or pid:N (one process). Several are added up; none means all containers.

` + formatsHelp + `

Asks the agent. Without one, or with --own-sampler, it samples by itself, as root, and nothing is stored.`,
		Example: `  stoker record                                  # everything for 10 seconds, as a table
  stoker record web -d 30s -o web.html
  stoker record com.docker.compose.project=shop -o shop.pb.gz && go tool pprof -http : shop.pb.gz
  stoker record pid:4242 -d 5s --own-sampler -F 997 -o burst.svg`,
	}
	s := a.settings(cmd, "socket")
	flags := cmd.Flags()
	flags.StringVarP(&duration, "duration", "d", "10s", "how long to sample, a `DURATION`")
	flags.StringVarP(&name, "file", "o", "-", "`FILE` to write")
	flags.IntVarP(&frequency, "frequency", "F", 0, "samples per second on each CPU, `HZ`, of a sampler of our own (default: as configured)")
	flags.BoolVar(&own, "own-sampler", false, "do not ask the agent, even if one runs")
	outputFlag(cmd, &format, "", formatTable, formatJSON)
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		d, err := config.ParseDuration(duration)
		if err != nil {
			return usage("--duration: %w", err)
		}
		if d <= 0 || d > longestRecording {
			return usage("--duration %s: choose more than 0 and at most %s", duration, config.FormatDuration(longestRecording))
		}
		if cmd.Flags().Changed("frequency") && (frequency < 1 || frequency > 10_000) {
			return usage("--frequency %d: choose 1 to 10000 samples per second", frequency)
		}
		if _, err := target.Parse(args); err != nil {
			return err
		}
		out, err := newResult(name, format)
		if err != nil {
			return err
		}
		cfg, err := s.loadForClient()
		if err != nil {
			return err
		}
		request := web.RecordRequest{Targets: args, Duration: web.Duration(d), Frequency: frequency}
		if frequency != 0 {
			cfg.Sampling.Frequency = frequency // of a sampler of our own
		}
		line := a.progress()
		defer line.done()
		line.set("starting …")
		agent, err := a.connect(cmd.Context(), cfg, own)
		if err != nil {
			return err
		}
		defer func() { err = cmp.Or(err, agent.close()) }()
		p, err := agent.Record(cmd.Context(), request, func(p web.RecordProgress) {
			elapsed, total := time.Duration(p.Elapsed), time.Duration(p.Duration)
			soFar := ""
			if p.Samples > 0 { // known with each window that ends
				soFar = fmt.Sprintf("  %d samples in %d containers", p.Samples, p.Containers)
			}
			line.set("%s %s of %s%s", bar(elapsed, total, 20), elapsed.Round(time.Second), total.Round(time.Second), soFar)
		})
		if err != nil {
			return err
		}
		line.done()
		facts := []file.Fact{}
		if len(args) > 0 {
			facts = append(facts, file.Fact{Name: "targets", Value: strings.Join(args, ", ")})
		}
		return a.write(out, p, file.Options{Title: title(args), Facts: facts})
	}
	return cmd
}

func title(targets []string) string {
	if len(targets) == 0 {
		return "all containers"
	}
	return strings.Join(targets, ", ")
}

// result is where a profile goes and how.
type result struct {
	name string // file, or "-"
	json bool   // a table as JSON
}

// newResult checks the flags before the work begins: nobody wants to record for a minute and then hear of a mistyped name.
func newResult(name, output string) (result, error) {
	if err := checkFormat(output, formatTable, formatJSON); err != nil {
		return result{}, err
	}
	r := result{name, output == formatJSON}
	if name == "-" {
		return r, nil
	}
	if r.json {
		return r, usage("--output json prints a table; it does not go together with -o %s", name)
	}
	if _, err := file.FormatOf(name); err != nil {
		return r, usage("-o %w", err)
	}
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		return r, usage("-o %s: it is a directory; name a file in it", name)
	}
	if _, err := os.Stat(filepath.Dir(name)); err != nil {
		return r, usage("-o %s: %w; create the directory first", name, err)
	}
	return r, nil
}

// write writes p as asked.
func (a *app) write(r result, p *profile.Profile, o file.Options) error {
	switch {
	case r.json:
		return printJSON(a.stdout, functionList(p))
	case r.name == "-":
		o.Width = a.width()
		_, lines, ok := terminal(a.stdout)
		if ok {
			o.Rows = max(lines-8, 10) // the head of the table has about that many lines
		}
		return file.Write(a.stdout, file.Text, p, o)
	}
	if err := file.Create(r.name, p, o); err != nil {
		return err
	}
	// On standard error: standard output is for results.
	if _, _, ok := terminal(a.stderr); ok {
		fmt.Fprintf(a.stderr, "wrote %s\n", r.name)
	}
	return nil
}

// functionTable is a profile's table of functions as JSON has it.
type functionTable struct {
	Type      string          `json:"type"`
	Unit      string          `json:"unit"` // of total, flat and cum
	Start     time.Time       `json:"start,omitzero"`
	Duration  web.Duration    `json:"duration"`
	Total     int64           `json:"total"`
	Functions []file.Function `json:"functions"`
}

// functionList adds up the first sample type per function.
func functionList(p *profile.Profile) functionTable {
	t := functionTable{Duration: web.Duration(p.DurationNanos)}
	if len(p.SampleType) > 0 {
		t.Type, t.Unit = p.SampleType[0].Type, p.SampleType[0].Unit
	}
	if p.TimeNanos != 0 {
		t.Start = time.Unix(0, p.TimeNanos).UTC()
	}
	functions, total := file.Top(p, 0)
	t.Functions, t.Total = append([]file.Function{}, functions...), total
	return t
}
