package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// version is set by the build (-ldflags "-X main.version=…").
var version string

// buildVersion is the version of this binary: what the build was told, else what the Go module says.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "unknown"
}

// versionInfo is what `stoker version` tells.
type versionInfo struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Modified bool   `json:"modified,omitempty"` // built from a work tree with changes
	Built    string `json:"commit_time,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
	Kernel   string `json:"kernel"`
}

func (a *app) versionInfo() (versionInfo, error) {
	v := versionInfo{Version: a.version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				v.Commit = s.Value
			case "vcs.modified":
				v.Modified = s.Value == "true"
			case "vcs.time":
				v.Built = s.Value
			}
		}
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return v, fmt.Errorf("ask the kernel for its version: %w", err)
	}
	v.Kernel = unix.ByteSliceToString(uts.Release[:])
	return v, nil
}

func (a *app) versionCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Show the version of this binary and of the kernel it runs on",
		Long:    `Show the version, the commit it was built from, the Go version and the running kernel: what a bug report needs.`,
		Example: "  stoker version\n  stoker version --output json",
		Args:    noArguments,
	}
	outputFlag(cmd, &format, "o", formatTable, formatJSON)
	cmd.RunE = func(*cobra.Command, []string) error {
		if err := checkFormat(format, formatTable, formatJSON); err != nil {
			return err
		}
		v, err := a.versionInfo()
		if err != nil {
			return err
		}
		if format == formatJSON {
			return printJSON(a.stdout, v)
		}
		commit := v.Commit
		if commit == "" {
			commit = "unknown"
		} else if v.Modified {
			commit += ", modified"
		}
		_, err = fmt.Fprintf(a.stdout, "stoker %s\ncommit    %s\ngo        %s\nplatform  %s\nkernel    %s\n", v.Version, commit, v.Go, v.Platform, v.Kernel)
		return err
	}
	return cmd
}
