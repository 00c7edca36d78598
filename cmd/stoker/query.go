package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/google/pprof/profile"
	"github.com/spf13/cobra"

	"github.com/stoker-profiler/stoker/cmd/stoker/config"
	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/sink/file"
	"github.com/stoker-profiler/stoker/sink/pprof"
	"github.com/stoker-profiler/stoker/sink/store"
)

// queryCommand is `stoker query`, and under another name `stoker store export`.
func (a *app) queryCommand(use string) *cobra.Command {
	var (
		interval interval
		labels   []string
		typ      string
		name     string
		format   string
	)
	cmd := &cobra.Command{
		Use:   use,
		Short: "Add up stored profiles of a time and write the sum to a file",
		Long: `Select profiles from the store by time and labels, add them up and write the sum. Works with and without a running agent;
the user must be able to read the store.

A label condition is NAME=VALUE, NAME!=VALUE, NAME=~REGEXP or NAME!~REGEXP; a regular expression must match the whole value;
several conditions must all hold. "stoker store ls --output json" shows which labels there are.

A time is RFC 3339 (2026-03-01T12:00:00Z), "2026-03-01 12:00" or "12:00" in local time, now, or a duration before now (-90m).

` + formatsHelp,
		Example: `  stoker ` + use + `                                        # the last hour of everything, as a table
  stoker ` + use + ` --last 24h -l service_name=shop/web -o web.html
  stoker ` + use + ` --from 12:00 --to 12:05 -l 'container_name=~web-.*' -o noon.pb.gz`,
		Args: noArguments,
	}
	if use == "export" {
		cmd.Short += " (the same as stoker query)"
		cmd.Example = strings.ReplaceAll(cmd.Example, "stoker export", "stoker store export")
	}
	s := a.settings(cmd, "store.path")
	flags := cmd.Flags()
	interval.flags(cmd)
	flags.StringArrayVarP(&labels, "label", "l", nil, "label `CONDITION`; may be repeated")
	flags.StringVar(&typ, "type", sink.CPU.Name, "profile `TYPE`, as process_cpu or in Pyroscope's five parts")
	flags.StringVarP(&name, "file", "o", "-", "`FILE` to write")
	outputFlag(cmd, &format, "", formatTable, formatJSON)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		out, err := newResult(name, format)
		if err != nil {
			return err
		}
		q := store.Query{Type: typ}
		if q.From, q.To, err = interval.parse(cmd, time.Now()); err != nil {
			return err
		}
		if q.Match, err = matchers(labels); err != nil {
			return err
		}
		cfg, err := s.loadForClient()
		if err != nil {
			return err
		}
		db, err := openStore(cfg.Store.Path)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, db.Close()) }()
		p, damaged, err := a.merge(cmd.Context(), db, q)
		if err != nil {
			return err
		}
		facts := []file.Fact{{Name: "asked for", Value: q.From.Local().Format(time.DateTime) + " to " + q.To.Local().Format(time.DateTime)}}
		title := "all containers"
		if len(labels) > 0 {
			title = strings.Join(labels, ", ")
		}
		if err := a.write(out, p, file.Options{Title: title, Facts: facts}); err != nil {
			return err
		}
		if damaged != nil {
			return fmt.Errorf("the result is there but not complete: %w", damaged)
		}
		return nil
	}
	return cmd
}

// openStore opens the database to read it.
func openStore(path string) (*store.Store, error) {
	db, err := store.OpenReadOnly(path)
	switch {
	case err == nil:
		return db, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w; there is no store yet: start the agent with `stoker run`, or name another store with --store-path", err)
	}
	// SQLite has its own words for a file that this user may not open; the system's answer is clear.
	if f, opened := os.Open(path); opened == nil {
		f.Close()
	} else if errors.Is(opened, fs.ErrPermission) {
		return nil, &exitError{exitMachine, err} // it says what to do
	}
	return nil, err
}

// merge adds up what q selects. Profiles that cannot be read are left out and reported in damaged. Nothing selected is an
// error that says what there is.
func (a *app) merge(ctx context.Context, db *store.Store, q store.Query) (sum *profile.Profile, damaged, err error) {
	line := a.progress()
	defer line.done()
	var m pprof.Merger
	for p, err := range db.Select(ctx, q) {
		if err == nil {
			if err = m.Add(p.Pprof); errors.Is(err, pprof.ErrTooLarge) {
				return nil, nil, err // it says what to ask for instead
			}
		}
		if err != nil {
			damaged = errors.Join(damaged, err)
			continue
		}
		if m.Len()%100 == 1 {
			line.set("adding up … %d profiles", m.Len())
		}
	}
	if m.Len() > 0 {
		sum, err = m.Profile()
		return sum, damaged, err
	}
	if damaged != nil {
		return nil, nil, damaged
	}
	return nil, nil, nothing(ctx, db, q)
}

// nothing says that nothing is selected, and what there is.
func nothing(ctx context.Context, db *store.Store, q store.Query) error {
	services, err := db.Labels(ctx, store.Query{From: q.From, To: q.To, Type: q.Type})
	if err != nil {
		return err
	}
	there := "the store has no profile at all of that time; `stoker store ls` shows what it has"
	if names := services["service_name"]; len(names) > 0 {
		const most = 20
		there = "the values of service_name in that time are " + strings.Join(names[:min(len(names), most)], ", ")
		if more := len(names) - most; more > 0 {
			there += fmt.Sprintf(" and %d more", more)
		}
	}
	return &exitError{exitNoTarget, fmt.Errorf("no profile matches between %s and %s: %s",
		q.From.Local().Format(time.DateTime), q.To.Local().Format(time.DateTime), there)}
}

// interval is the flags that choose a time.
type interval struct{ last, from, to string }

func (i *interval) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&i.last, "last", "1h", "the time up to now, a `DURATION`")
	cmd.Flags().StringVar(&i.from, "from", "", "begin of the time, instead of --last: a `TIME`")
	cmd.Flags().StringVar(&i.to, "to", "now", "end of the time, with --from: a `TIME`")
}

func (i *interval) parse(cmd *cobra.Command, now time.Time) (from, to time.Time, err error) {
	changed := cmd.Flags().Changed
	switch {
	case changed("from") && changed("last"):
		return from, to, usage("--last ends now and --from begins elsewhere; give one of them")
	case changed("to") && !changed("from"):
		return from, to, usage("--to needs --from")
	case !changed("from"):
		d, err := config.ParseDuration(i.last)
		if err != nil || d == 0 {
			return from, to, usage("--last: %q is not a duration; write it like 10m, 1h or 3d", i.last)
		}
		return now.Add(-d), now, nil
	}
	if from, err = parseTime(i.from, now); err != nil {
		return from, to, usage("--from: %w", err)
	}
	if to, err = parseTime(i.to, now); err != nil {
		return from, to, usage("--to: %w", err)
	}
	if !from.Before(to) {
		return from, to, usage("--from %s is not before --to %s", from.Format(time.RFC3339), to.Format(time.RFC3339))
	}
	return from, to, nil
}

// parseTime reads a point in time as people write it. A time of day alone is the last one that has been.
func parseTime(s string, now time.Time) (time.Time, error) {
	if s == "now" {
		return now, nil
	}
	if before, ok := strings.CutPrefix(strings.TrimPrefix(s, "now"), "-"); ok {
		if d, err := config.ParseDuration(before); err == nil {
			return now.Add(-d), nil
		}
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	for _, layout := range []string{time.TimeOnly, "15:04"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			t = time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), t.Second(), 0, now.Location())
			if t.After(now) {
				t = t.AddDate(0, 0, -1)
			}
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf(`%q is not a time; write it like 2026-03-01T12:00:00Z, "2026-03-01 12:00", 12:00, now or -90m`, s)
}

// matchers reads label conditions.
func matchers(texts []string) ([]store.Matcher, error) {
	var list []store.Matcher
	for _, text := range texts {
		m, err := store.ParseMatcher(text)
		if err != nil {
			return nil, usage("--label: %w", err)
		}
		list = append(list, m)
	}
	return list, nil
}
