package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/sink/file"
	"github.com/stoker-profiler/stoker/sink/store"
)

func (a *app) storeCommand() *cobra.Command {
	return group("store", "Look at the store: what it holds, what waits to be pushed, whether it is sound",
		`The store is one SQLite file, by default /var/lib/stoker/profiles.db. These commands only read it, with and without a
running agent.`,
		a.storeLsCommand(), a.queryCommand("export"), a.storeCheckCommand())
}

// storeList is what `store ls` prints.
type storeList struct {
	Path       string          `json:"path"`
	Bytes      int64           `json:"bytes"`
	Profiles   int64           `json:"profiles"`
	Oldest     time.Time       `json:"oldest,omitzero"`
	Newest     time.Time       `json:"newest,omitzero"`
	Series     []storeSeries   `json:"series"`
	Deliveries []storeDelivery `json:"deliveries"`
	Troubles   []storeTrouble  `json:"troubles"`
	Evictions  []storeEviction `json:"evictions"`
}

// storeSeries is one series of one container in the time asked for.
type storeSeries struct {
	Type        string      `json:"type"`
	Labels      sink.Labels `json:"labels"`
	ContainerID string      `json:"container_id"`
	First       time.Time   `json:"first"`
	Last        time.Time   `json:"last"`
	Total       int64       `json:"total"` // of the type's first value, nanoseconds for CPU
	unit        string
}

type storeDelivery struct {
	Sink     string `json:"sink"`
	State    string `json:"state"`
	Profiles int64  `json:"profiles"`
}

// storeTrouble is why deliveries of one sink and tenant are not simply delivered: equal reasons are counted together.
type storeTrouble struct {
	Sink     string    `json:"sink"`
	Tenant   string    `json:"tenant,omitempty"`
	State    string    `json:"state"`
	Reason   string    `json:"reason"`
	Profiles int64     `json:"profiles"`
	Doubts   int       `json:"lost_answers,omitempty"`
	Newest   time.Time `json:"newest"`            // end of the newest of these profiles
	NextTry  time.Time `json:"next_try,omitzero"` // the earliest
}

type storeEviction struct {
	Reason      string `json:"reason"`
	Undelivered bool   `json:"undelivered"`
	Profiles    int64  `json:"profiles"`
	Bytes       int64  `json:"bytes"`
}

func (a *app) storeLsCommand() *cobra.Command {
	var (
		interval interval
		labels   []string
		format   string
	)
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List what the store holds and what became of its deliveries",
		Long: `List the series of a time with their CPU, the deliveries to Pyroscope by state, and what was deleted to keep the bounds.

States of deliveries: pending waits to be sent, sending is on its way, delivered was taken, refused will never be taken (it
stays here), uncertain was sent and its answer was lost. For those that are not simply delivered the newest thousand are
looked at and their reasons counted.`,
		Example: `  stoker store ls
  stoker store ls --last 24h -l service_name=~shop/.*
  stoker store ls --output json | jq .deliveries`,
		Args: noArguments,
	}
	s := a.settings(cmd, "store.path")
	interval.flags(cmd)
	cmd.Flags().StringArrayVarP(&labels, "label", "l", nil, "label `CONDITION`, as query has it; may be repeated")
	outputFlag(cmd, &format, "o", formatTable, formatJSON)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if err := checkFormat(format, formatTable, formatJSON); err != nil {
			return err
		}
		var q store.Query
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
		stats := db.Stats()
		if stats.Err != "" {
			return errors.New(stats.Err)
		}
		// A hundred steps tell first and last well enough; the sums are exact however long a step is.
		series, err := db.Series(cmd.Context(), q, max(q.To.Sub(q.From)/100, time.Second))
		if err != nil {
			return err
		}
		list := newStoreList(stats, series)
		if list.Troubles, err = troubles(cmd.Context(), db); err != nil {
			return err
		}
		if format == formatJSON {
			return printJSON(a.stdout, list)
		}
		return a.printStore(list, q)
	}
	return cmd
}

func newStoreList(stats store.Stats, series []store.Series) storeList {
	l := storeList{
		Path: stats.Path, Bytes: stats.Bytes, Profiles: stats.Profiles, Oldest: stats.Oldest, Newest: stats.Newest,
		Series: []storeSeries{}, Deliveries: []storeDelivery{}, Evictions: []storeEviction{},
	}
	for _, s := range series {
		one := storeSeries{Type: s.Type.Name, Labels: s.Labels, ContainerID: s.ContainerID, First: s.Points[0].T, Last: s.Points[len(s.Points)-1].T}
		if len(s.Type.Samples) > 0 {
			one.unit = s.Type.Samples[0].Unit
		}
		for _, p := range s.Points {
			one.Total += p.V
		}
		l.Series = append(l.Series, one)
	}
	slices.SortStableFunc(l.Series, func(a, b storeSeries) int { return cmp.Compare(b.Total, a.Total) })
	for _, d := range stats.Deliveries {
		l.Deliveries = append(l.Deliveries, storeDelivery(d))
	}
	for _, e := range stats.Evictions {
		l.Evictions = append(l.Evictions, storeEviction(e))
	}
	return l
}

// troubles counts the reasons of deliveries that are not delivered, per sink, tenant and state.
func troubles(ctx context.Context, db *store.Store) ([]storeTrouble, error) {
	const newest = 1000
	type key struct{ sink, tenant, state, reason string }
	found, index := []storeTrouble{}, map[key]int{}
	for _, state := range []string{store.Refused, store.Uncertain, store.Pending} {
		list, err := db.Deliveries(ctx, store.DeliveryQuery{State: state, Limit: newest})
		if err != nil {
			return nil, err
		}
		for _, d := range list {
			if state == store.Pending && d.Reason == "" && d.Doubts == 0 {
				continue // it has only not been its turn
			}
			k := key{d.Sink, d.Tenant, d.State, d.Reason}
			i, ok := index[k]
			if !ok {
				i = len(found)
				index[k] = i
				found = append(found, storeTrouble{Sink: d.Sink, Tenant: d.Tenant, State: d.State, Reason: d.Reason, Newest: d.End, NextTry: d.NextTry})
			}
			t := &found[i]
			t.Profiles++
			t.Doubts += d.Doubts
			if !d.NextTry.IsZero() && (t.NextTry.IsZero() || d.NextTry.Before(t.NextTry)) {
				t.NextTry = d.NextTry
			}
		}
	}
	return found, nil
}

func (a *app) printStore(l storeList, q store.Query) error {
	fmt.Fprintf(a.stdout, "%s: %s, %d profiles", l.Path, file.FormatValue(l.Bytes, "bytes"), l.Profiles)
	if !l.Oldest.IsZero() {
		fmt.Fprintf(a.stdout, " from %s to %s", l.Oldest.Local().Format(time.DateTime), l.Newest.Local().Format(time.DateTime))
	}
	fmt.Fprintf(a.stdout, "\n\n%d series between %s and %s\n", len(l.Series), q.From.Local().Format(time.DateTime), q.To.Local().Format(time.DateTime))
	t := table{columns: []column{{title: "SERVICE", shrink: true}, {title: "CONTAINER", shrink: true}, {title: "TYPE"}, {title: "LAST"}, {title: "TOTAL", right: true}}}
	for _, s := range l.Series {
		t.add(orDash(s.Labels["service_name"]), cmp.Or(s.Labels["container_name"], s.Labels["container"], s.ContainerID[:min(len(s.ContainerID), 12)], "-"), s.Type,
			s.Last.Local().Format(time.DateTime), file.FormatValue(s.Total, s.unit))
	}
	if err := t.print(a.stdout, a.width()); err != nil {
		return err
	}
	if len(l.Deliveries) > 0 {
		t = table{columns: []column{{title: "DELIVERIES TO", shrink: true}, {title: "STATE"}, {title: "PROFILES", right: true}}}
		for _, d := range l.Deliveries {
			t.add(d.Sink, d.State, fmt.Sprint(d.Profiles))
		}
		fmt.Fprintln(a.stdout)
		if err := t.print(a.stdout, a.width()); err != nil {
			return err
		}
	}
	if len(l.Troubles) > 0 {
		t = table{columns: []column{{title: "NOT DELIVERED TO", shrink: true}, {title: "STATE"}, {title: "PROFILES", right: true}, {title: "NEWEST"}, {title: "WHY"}}}
		for _, d := range l.Troubles {
			to := d.Sink
			if d.Tenant != "" {
				to += " (" + d.Tenant + ")"
			}
			t.add(to, d.State, fmt.Sprint(d.Profiles), d.Newest.Local().Format(time.DateTime), orDash(d.Reason))
		}
		fmt.Fprintln(a.stdout)
		if err := t.print(a.stdout, 0); err != nil { // a reason that is cut off is none
			return err
		}
	}
	if len(l.Evictions) > 0 {
		t = table{columns: []column{{title: "DELETED FOR"}, {title: "UNDELIVERED"}, {title: "PROFILES", right: true}, {title: "SIZE", right: true}}}
		for _, e := range l.Evictions {
			undelivered := "no"
			if e.Undelivered {
				undelivered = "yes"
			}
			t.add(e.Reason, undelivered, fmt.Sprint(e.Profiles), file.FormatValue(e.Bytes, "bytes"))
		}
		fmt.Fprintln(a.stdout)
		return t.print(a.stdout, a.width())
	}
	return nil
}

func (a *app) storeCheckCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Read the whole store and report what is wrong with it",
		Long: `Read the whole store: the database's own integrity, references, and every profile against its row. Takes seconds and needs
no agent to be stopped. Exit code 0: all is well; 1: something is wrong, and said.`,
		Example: "  stoker store check\n  stoker store check --store-path ./profiles.db --output json",
		Args:    noArguments,
	}
	s := a.settings(cmd, "store.path")
	outputFlag(cmd, &format, "o", formatTable, formatJSON)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if err := checkFormat(format, formatTable, formatJSON); err != nil {
			return err
		}
		cfg, err := s.loadForClient()
		if err != nil {
			return err
		}
		line := a.progress()
		defer line.done()
		line.set("reading %s …", cfg.Store.Path)
		db, err := openStore(cfg.Store.Path)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, db.Close()) }()
		found := db.Check(cmd.Context())
		line.done()
		if cmd.Context().Err() != nil {
			return cmd.Context().Err()
		}
		if format == formatJSON {
			problems := []string{}
			if found != nil {
				problems = strings.Split(found.Error(), "\n")
			}
			return errors.Join(printJSON(a.stdout, map[string]any{"path": cfg.Store.Path, "problems": problems}), found)
		}
		if found != nil {
			return found
		}
		_, err = fmt.Fprintf(a.stdout, "ok: %s, %d profiles\n", cfg.Store.Path, db.Stats().Profiles)
		return err
	}
	return cmd
}
