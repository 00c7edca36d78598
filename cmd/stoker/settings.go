package main

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stoker-profiler/stoker/bpf/symbol/debuginfod"
	"github.com/stoker-profiler/stoker/cmd/stoker/config"
)

// settings is how a command reads the configuration: which file, and which keys it lets flags set.
type settings struct {
	app   *app
	file  string
	flags map[string]string // given flags, by name
}

// keyFlag is the value of a flag that sets a key of the configuration. The text is kept as it is: config parses it together
// with the file and the environment, so that all mistakes come at once.
type keyFlag struct {
	key   config.Key
	given map[string]string
}

func (f *keyFlag) String() string     { return "" }
func (f *keyFlag) Set(s string) error { f.given[f.key.Flag] = s; return nil }

// Type names the value in a help text.
func (f *keyFlag) Type() string { return f.key.Form }

// settings gives a command --config and the flags of the keys whose paths are named; none means all of them.
func (a *app) settings(cmd *cobra.Command, paths ...string) *settings {
	s := &settings{app: a, flags: map[string]string{}}
	flags := cmd.Flags()
	flags.SortFlags = false // in the order of the configuration
	flags.StringVar(&s.file, "config", "", "configuration `FILE` (default "+config.DefaultFile+" if it exists; $STOKER_CONFIG)")
	for _, k := range config.Keys() {
		if k.Flag == "" || len(paths) > 0 && !slices.Contains(paths, k.Path) {
			continue
		}
		f := flags.VarPF(&keyFlag{k, s.flags}, k.Flag, "", k.Help)
		if k.Switch {
			f.NoOptDefVal = "true"
		}
	}
	return s
}

// load reads the configuration. Mistakes end the program with the code for wrong use.
func (s *settings) load() (*config.Loaded, error) {
	o := config.Options{File: s.file, Environ: s.app.environ, Flags: s.flags}
	if o.File == "" {
		o.File = s.app.getenv("STOKER_CONFIG")
	}
	if o.File == "" {
		o.File, o.Optional = config.DefaultFile, true
	}
	l, err := config.Load(o)
	var problems config.Problems
	switch {
	case errors.As(err, &problems):
		return l, &exitError{exitUsage, problems}
	case errors.Is(err, fs.ErrNotExist):
		return nil, usage("%w; write the file or leave out --config", err)
	case errors.Is(err, fs.ErrPermission):
		return nil, machine(err, "run it as root or as a user who may read the file")
	case err != nil:
		return nil, &exitError{exitUsage, err}
	}
	return l, nil
}

// loadForClient reads the configuration for a command that only asks: it does not fail because the agent's own file is not
// for everybody's eyes.
func (s *settings) loadForClient() (config.Config, error) {
	l, err := s.load()
	if err == nil {
		return l.Config, nil
	}
	if errors.Is(err, fs.ErrPermission) && s.file == "" && s.app.getenv("STOKER_CONFIG") == "" {
		fmt.Fprintf(s.app.stderr, "stoker: %s is not readable for this user; going on with the defaults\n", config.DefaultFile)
		if l, err = config.Load(config.Options{Environ: s.app.environ, Flags: s.flags}); err == nil {
			return l.Config, nil
		}
		return config.Config{}, &exitError{exitUsage, err}
	}
	return config.Config{}, err
}

// getenv looks a variable up in the app's environment; the last one wins, as in a shell.
func (a *app) getenv(name string) string {
	for _, e := range slices.Backward(a.environ) {
		if value, ok := strings.CutPrefix(e, name+"="); ok {
			return value
		}
	}
	return ""
}

// debuginfodConfig is what the client of debuginfod servers needs.
func (a *agent) debuginfodConfig() debuginfod.Config {
	c := a.cfg.Symbols.Debuginfod
	return debuginfod.Config{
		URLs: c.URLs, Dir: c.Cache, MaxBytes: int64(c.MaxSize), Timeout: c.Timeout, Version: a.version, Log: a.log,
	}
}
