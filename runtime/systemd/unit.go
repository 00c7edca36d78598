package systemd

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
)

// Patterns choose units. The zero value chooses none.
type Patterns []string

// CheckPattern returns an error if a pattern is malformed, or can match the name of no service and no scope.
func CheckPattern(p string) error {
	if _, err := path.Match(escape(p), ""); err != nil {
		return fmt.Errorf("%q is not a pattern: %w; write [[] for a bracket that stands for itself", p, err)
	}
	switch {
	case p == "":
		return fmt.Errorf("an empty pattern matches nothing; remove it")
	case strings.Contains(p, "/"):
		return fmt.Errorf("%q matches no unit: names of units have no slash (systemd-escape makes a name of a path)", p)
	case len(p) > maxUnit:
		return fmt.Errorf("%d bytes are too long for the name of a unit; systemd takes %d", len(p), maxUnit)
	case strings.HasSuffix(p, ".service"), strings.HasSuffix(p, ".scope"), strings.ContainsAny(p[len(p)-1:], "*?]"):
		return nil
	}
	return fmt.Errorf("%q matches no service and no scope; write %s.service", p, strings.TrimSuffix(p, "."))
}

// match reports whether a pattern chooses a unit. The unit that we ourselves run in has to be named letter by letter: somebody who
// asks for app-*.service, or for everything, does not ask about the profiler.
func (ps Patterns) match(unit string, own bool) bool {
	return slices.ContainsFunc(ps, func(p string) bool {
		if own {
			return p == unit
		}
		ok, err := path.Match(escape(p), unit)
		return ok && err == nil
	})
}

// escape makes a backslash stand for itself, as it does in the patterns of systemctl: names of units have them (my\x2dapp.service).
func escape(p string) string { return strings.ReplaceAll(p, `\`, `\\`) }

// maxUnit is systemd's own limit for the name of a unit.
const maxUnit = 255

// parse tells the service or scope that a cgroup is the own cgroup of, and whether there may be units among those below it. The
// zero Name is a cgroup that is no unit.
//
// systemd puts a unit into its slice, and slices into each other: /system.slice/system-getty.slice/getty@tty1.service. What is
// below a unit is the unit's own business, whatever it is called, for a unit with Delegate= may make cgroups of any name. But for
// one: user@1000.service in that user's slice is a service manager, whose units are below it in the same way. Whatever a user
// makes there, it stays below that user's slice; the registry takes the user from the path.
func parse(p string) (n cgroupfs.Name, below bool) {
	if p == "/" {
		return cgroupfs.Name{}, true
	}
	parts := strings.Split(strings.TrimPrefix(p, "/"), "/")
	for i, part := range parts {
		last := i == len(parts)-1
		switch {
		case strings.HasSuffix(part, ".slice"):
			if last {
				return cgroupfs.Name{}, true
			}
		case manager(parts[:i+1]):
			if last {
				return service(p, part), true
			}
		case last && (strings.HasSuffix(part, ".service") || strings.HasSuffix(part, ".scope")):
			return service(p, part), false
		default:
			return cgroupfs.Name{}, false
		}
	}
	return cgroupfs.Name{}, false
}

// manager reports whether a cgroup is that of a user's service manager.
func manager(parts []string) bool {
	if len(parts) != 3 || parts[0] != "user.slice" {
		return false
	}
	user, ok := strings.CutPrefix(parts[1], "user-")
	user, ok2 := strings.CutSuffix(user, ".slice")
	return ok && ok2 && user != "" && strings.Trim(user, "0123456789") == "" && parts[2] == "user@"+user+".service"
}

// service is a unit by the name of its cgroup. That has a _ in front where the kernel has files of the same beginning
// (_cpu.service).
func service(p, part string) cgroupfs.Name {
	unit := strings.TrimPrefix(part, "_")
	if !valid(unit) {
		return cgroupfs.Name{}
	}
	return cgroupfs.Name{Kind: cgroupfs.KindService, Runtime: "systemd", ID: unit, Unit: unit, Path: p}
}

// valid reports whether systemd would take the name: users make cgroups of any name below their managers.
func valid(unit string) bool {
	for i := range len(unit) {
		c := unit[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && !strings.ContainsRune(`:-_.\@`, rune(c)) {
			return false
		}
	}
	return !strings.HasPrefix(unit, ".") && len(unit) <= maxUnit
}
