package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/stoker-profiler/stoker/cmd/stoker/config"
)

func (a *app) configCommand() *cobra.Command {
	return group("config", "Check and show the configuration, print the defaults",
		`Check the configuration without starting anything, show what is in force and where each value comes from, or print a file to start from.
A flag wins over the environment (STOKER_…), that over the file, that over the default.`,
		a.configCheckCommand(), a.configShowCommand(), a.configDefaultCommand())
}

func (a *app) configDefaultCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "default",
		Short: "Print a configuration file with every key, its meaning and its default",
		Long: `Print a configuration file that has every key with its meaning and its default, all as comments: what packages install as
` + config.DefaultFile + `. Nothing is read.`,
		Example: "  stoker config default > ./stoker.yaml",
		Args:    noArguments,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprint(a.stdout, config.Example())
			return err
		},
	}
}

func (a *app) configCheckCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Report every mistake of the configuration, with its place",
		Long: `Read the configuration as the agent would (file, environment) and report every mistake at once, each with file, line and
column and what to write instead. Exit code 0: no mistakes; 2: mistakes.`,
		Example: `  stoker config check
  stoker config check ./stoker.yaml
  stoker config check --output json ./stoker.yaml`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage("config check takes one file, but got %q", args)
			}
			return nil
		},
	}
	s := a.settings(cmd, "none") // --config, but no keys: a flag has no mistakes worth checking here
	outputFlag(cmd, &format, "o", formatTable, formatJSON)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if err := checkFormat(format, formatTable, formatJSON); err != nil {
			return err
		}
		if len(args) == 1 {
			if s.file != "" && s.file != args[0] {
				return usage("--config %s and the argument %s name two files; give one", s.file, args[0])
			}
			s.file = args[0]
		}
		l, err := s.load()
		var problems config.Problems
		if err != nil && !errors.As(err, &problems) {
			return err
		}
		if format == formatJSON {
			list := []map[string]string{}
			for _, p := range problems {
				list = append(list, map[string]string{"where": p.Where, "key": p.Key, "message": p.Message})
			}
			if printed := printJSON(a.stdout, map[string]any{"file": l.File, "problems": list, "warnings": append([]string{}, l.Warnings...)}); printed != nil {
				return printed
			}
			return err
		}
		if err != nil {
			return err
		}
		for _, w := range l.Warnings {
			fmt.Fprintf(a.stderr, "stoker: %s\n", w)
		}
		from := l.File
		if from == "" {
			from = "no file, the defaults"
		}
		_, err = fmt.Fprintf(a.stdout, "ok: %s\n", from)
		return err
	}
	return cmd
}

func (a *app) configShowCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show every value in force and where it comes from",
		Long: `Show every key with its value and its origin: the default, a line of the file, a variable or a flag. Secrets are hidden.
Give it the flags that you give "stoker run" to see their effect. LIVE says which keys a running agent takes over when it is
told to read its configuration again (SIGHUP, systemctl reload); the others need a restart. -o wide adds the environment
variable of each key and its meaning; the flag is the variable without STOKER_, in small letters and with dashes.`,
		Example: `  stoker config show
  stoker config show -o wide
  stoker config show --config ./stoker.yaml --sampling-frequency 49
  STOKER_LABELS=site=fra1 stoker config show --output json`,
		Args: noArguments,
	}
	s := a.settings(cmd)
	outputFlag(cmd, &format, "o", formatTable, formatWide, formatJSON)
	cmd.RunE = func(*cobra.Command, []string) error {
		if err := checkFormat(format, formatTable, formatWide, formatJSON); err != nil {
			return err
		}
		l, err := s.load()
		if err != nil {
			return err
		}
		for _, w := range l.Warnings {
			fmt.Fprintf(a.stderr, "stoker: %s\n", w)
		}
		if format == formatJSON {
			return printJSON(a.stdout, l.Values())
		}
		t := table{columns: []column{{title: "KEY"}, {title: "VALUE", shrink: true}, {title: "ORIGIN"}, {title: "LIVE"}}}
		if format == formatWide {
			t.columns = append(t.columns, column{title: "ENVIRONMENT"}, column{title: "MEANING"})
		}
		for _, v := range l.Values() {
			live := "no"
			if v.Live {
				live = "yes"
			}
			row := []string{v.Key, orDash(v.Value), v.Origin.String(), live}
			if format == formatWide {
				row = append(row, orDash(v.Env), orDash(v.Help))
			}
			t.add(row...)
		}
		if format == formatWide {
			return t.print(a.stdout, 0) // asked for everything, however wide
		}
		return t.print(a.stdout, a.width())
	}
	return cmd
}
