package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stoker-profiler/stoker/cmd/stoker/config"
	"github.com/stoker-profiler/stoker/hook/oci/install"
)

func (a *app) hookCommand() *cobra.Command {
	return group("hook", "Have containers announced before their first instruction, by an OCI hook",
		`Put stoker's OCI hook in front of an engine's containers, take it away, or see how things stand.

The engine runs the hook while it creates a container, and waits: about a millisecond with the agent, 20 at most when the agent
hangs, and as good as nothing when there is none. What the hook cannot do it leaves undone: it never stops a container.
Nothing is changed but files of stoker's own, and no engine is restarted. docs/hooks.md tells what it gives and what it costs.`,
		a.hookInstallCommand(), a.hookUninstallCommand(), a.hookStatusCommand())
}

// hookFlags are those that the commands share.
type hookFlags struct {
	runtimes         []string
	binary, hooksDir string
	base, format     string
	dryRun           bool
	settings         *settings // nil: the configuration is not of interest
}

func (a *app) hookFlags(cmd *cobra.Command, s *settings) *hookFlags {
	f := &hookFlags{settings: s}
	cmd.Flags().StringSliceVar(&f.runtimes, "runtime", nil, "the engine, a `NAME`: podman, crio, containerd")
	cmd.Flags().StringVar(&f.binary, "binary", install.Binary, "the hook's program, a `PATH` as engines see it")
	cmd.Flags().StringVar(&f.hooksDir, "hooks-dir", "", "hooks directory of podman or crio, a `DIR`; default: what the engine's configuration says")
	outputFlag(cmd, &f.format, "o", formatTable, formatJSON)
	if err := cmd.RegisterFlagCompletionFunc("runtime", cobra.FixedCompletions(engineNames(), cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag was added above
	}
	return f
}

func engineNames() []string {
	var names []string
	for _, e := range install.Engines {
		names = append(names, string(e))
	}
	return names
}

// open reads the flags: the engines that are meant, all if none is named and that is allowed, and where things are.
func (f *hookFlags) open(all bool) ([]install.Engine, install.Config, error) {
	var c install.Config
	if err := checkFormat(f.format, formatTable, formatJSON); err != nil {
		return nil, c, err
	}
	engines := []install.Engine{}
	for _, name := range f.runtimes {
		if !slices.Contains(engineNames(), name) {
			return nil, c, usage("--runtime %s: choose one of %s", name, strings.Join(engineNames(), ", "))
		}
		engines = append(engines, install.Engine(name))
	}
	if len(engines) == 0 {
		if !all {
			return nil, c, usage("say which engine with --runtime: %s", strings.Join(engineNames(), ", "))
		}
		engines = install.Engines
	}
	if f.hooksDir != "" && slices.Contains(engines, install.Containerd) && len(f.runtimes) > 0 {
		return nil, c, usage("--hooks-dir: containerd has no hooks directory")
	}
	c = install.Config{Binary: f.binary, HooksDir: f.hooksDir, Base: f.base}
	if f.settings != nil {
		cfg, err := f.settings.loadForClient()
		if err != nil {
			return nil, c, err
		}
		c.Socket = cfg.Runtimes.Hook.Socket
	}
	return engines, c, nil
}

// hookResult is what install and uninstall tell with --output json.
type hookResult struct {
	Runtime string       `json:"runtime"`
	Applied bool         `json:"applied"`
	Changes []hookChange `json:"changes"`
	Notes   []string     `json:"notes"`
}

type hookChange struct {
	Path string `json:"path"`
	Diff string `json:"diff"`
}

func (a *app) hookInstallCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "install --runtime NAME",
		Short: "Put the OCI hook in place for an engine",
		Long: `Put the hook in place for an engine and show the files that change.

  podman, crio   a JSON file in the engine's hooks directory; works at once
  containerd     a base spec with the hook in it, for the pods of CRI; the lines for config.toml are shown, adding them and
                 restarting containerd is yours

Refuses when the hook's program cannot be run by every engine, for then no container would start. Does nothing when all is done.`,
		Example: `  stoker hook install --runtime podman --dry-run
  stoker hook install --runtime containerd`,
		Args: noArguments,
	}
	f := a.hookFlags(cmd, a.settings(cmd, "runtimes.hook.socket"))
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "show what would change and change nothing")
	cmd.Flags().StringVar(&f.base, "base", "", "make containerd's spec from this one, a `FILE`; default: what config.toml names, else what `ctr oci spec` prints")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		engines, c, err := f.open(false)
		if err != nil {
			return err
		}
		if c.Socket == config.Off {
			return usage("runtimes.hook.socket is off: the agent would not listen to the hook")
		}
		return a.hookChange(f, engines, func(e install.Engine) (install.Plan, error) { return c.Install(cmd.Context(), e) })
	}
	return cmd
}

func (a *app) hookUninstallCommand() *cobra.Command {
	var removeBinary bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take the OCI hook away",
		Long: `Take the hook away from the engines named, or from all, and show the files that change. The program itself stays until nothing
names it: an engine whose hook is missing starts no container.`,
		Example: `  stoker hook uninstall --runtime podman
  stoker hook uninstall --remove-binary`,
		Args: noArguments,
	}
	f := a.hookFlags(cmd, nil) // a broken configuration must not keep the hook in place
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "show what would change and change nothing")
	cmd.Flags().BoolVar(&removeBinary, "remove-binary", false, "then remove the hook's program, if no engine calls it any more")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		engines, c, err := f.open(true)
		if err != nil {
			return err
		}
		loaded := false // containerd may have a spec with the hook in its memory
		err = a.hookChange(f, engines, func(e install.Engine) (install.Plan, error) {
			p, err := c.Uninstall(e)
			loaded = loaded || e == install.Containerd && len(p.Changes) > 0
			return p, err
		})
		if err != nil || !removeBinary || f.dryRun {
			return err
		}
		if loaded {
			return machine(fmt.Errorf("%s stays: containerd calls it until it is restarted", c.Binary), "restart containerd, then run this again")
		}
		return permission(c.RemoveBinary(cmd.Context()))
	}
	return cmd
}

// hookChange makes a plan for each engine, shows it, and unless it is a dry run does it.
func (a *app) hookChange(f *hookFlags, engines []install.Engine, plan func(install.Engine) (install.Plan, error)) error {
	results := []hookResult{}
	for _, e := range engines {
		p, err := plan(e)
		if err != nil {
			return permission(err)
		}
		r := hookResult{Runtime: string(e), Applied: !f.dryRun, Changes: []hookChange{}, Notes: append([]string{}, p.Notes...)}
		for _, ch := range p.Changes {
			r.Changes = append(r.Changes, hookChange{ch.Path, ch.Diff()})
		}
		if !f.dryRun {
			if err := p.Apply(); err != nil {
				return permission(err)
			}
		}
		results = append(results, r)
		if f.format == formatJSON {
			continue
		}
		for _, ch := range r.Changes {
			fmt.Fprint(a.stdout, ch.Diff)
		}
		switch {
		case len(r.Changes) == 0:
			fmt.Fprintf(a.stdout, "%s: nothing to change\n", e)
		case f.dryRun:
			fmt.Fprintf(a.stdout, "%s: nothing was changed (--dry-run)\n", e)
		default:
			fmt.Fprintf(a.stdout, "%s: done\n", e)
		}
		for _, n := range r.Notes {
			fmt.Fprintln(a.stdout, n)
		}
	}
	if f.format == formatJSON {
		return printJSON(a.stdout, results)
	}
	return nil
}

// permission adds the remedy to an error that a user without rights gets.
func permission(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return machine(err, "run it as root")
	}
	return err
}

func (a *app) hookStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show where the OCI hook is in place, and whether it would work",
		Long:    `Show for each engine whether the hook is in place where the engine looks, which version its program is, and whether the agent answers.`,
		Example: "  stoker hook status\n  stoker hook status --runtime podman --output json",
		Args:    noArguments,
	}
	f := a.hookFlags(cmd, a.settings(cmd, "runtimes.hook.socket"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		engines, c, err := f.open(true)
		if err != nil {
			return err
		}
		list := []install.Status{}
		for _, e := range engines {
			list = append(list, c.Status(cmd.Context(), e))
		}
		if f.format == formatJSON {
			return printJSON(a.stdout, list)
		}
		t := table{columns: []column{{title: "RUNTIME"}, {title: "HOOK"}, {title: "PROGRAM"}, {title: "AGENT"}, {title: "READS"}}}
		troubles := []string{}
		for _, s := range list {
			state := "not installed"
			switch {
			case s.Err != "":
				state = "unknown"
				troubles = append(troubles, fmt.Sprintf("%s: %s", s.Engine, s.Err))
			case s.Installed && s.UpToDate:
				state = "installed"
			case s.Installed:
				state = "outdated"
				troubles = append(troubles, fmt.Sprintf("%s: the hook is not as this version would install it: run stoker hook install --runtime %s", s.Engine, s.Engine))
			case len(s.NamedBy) > 0:
				state = "not read"
				troubles = append(troubles, fmt.Sprintf("%s: %s is there, but the engine is not told to read it: see stoker hook install --runtime %s", s.Engine, s.NamedBy[0], s.Engine))
			}
			program, agent := cmp.Or(s.BinaryVersion, "ok"), "answers"
			if s.BinaryErr != "" {
				program = "trouble"
				if s.Installed || s.BinaryVersion != "" {
					troubles = append(troubles, fmt.Sprintf("%s: %s", s.Engine, s.BinaryErr))
				} else {
					program = "none"
				}
			}
			if s.SocketErr != "" {
				agent = "no"
				if s.Installed {
					troubles = append(troubles, fmt.Sprintf("%s: %s: %s", s.Engine, s.Socket, s.SocketErr))
				}
			}
			t.add(string(s.Engine), state, program, agent, strings.Join(s.Reads, ", "))
		}
		if err := t.print(a.stdout, 0); err != nil {
			return err
		}
		for _, text := range troubles {
			fmt.Fprintln(a.stdout, text)
		}
		return nil
	}
	return cmd
}
