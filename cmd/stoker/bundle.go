package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/stoker-profiler/stoker/cmd/stoker/config"
	"github.com/stoker-profiler/stoker/cmd/stoker/doctor"
)

// This file writes the support bundle of `stoker doctor --bundle`: what somebody who cannot see the machine needs to know. A part that
// cannot be had is an entry that says why. Nothing secret leaves: values of the configuration are those of `config show`, labels of
// containers lose their values, environments are never asked for, and every text goes through a scrubber.

// maxBundlePart bounds one entry.
const maxBundlePart = 8 << 20

// writeBundle writes the bundle to a file that does not exist yet, for its owner's eyes only.
func (a *app) writeBundle(ctx context.Context, path string, l *config.Loaded, rows []doctor.Row) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write the bundle: %w", err)
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(fmt.Errorf("write the bundle: %w", err), os.Remove(path))
		}
	}()
	clean := newScrubber(l.Config)
	zipped := gzip.NewWriter(f)
	archive := tar.NewWriter(zipped)
	now := time.Now()
	for _, part := range a.bundleParts(ctx, l, rows) {
		text, err := part.text()
		if err != nil {
			part.name, text = part.name+".error", []byte(err.Error()+"\n")
		}
		if len(text) > maxBundlePart {
			text = text[len(text)-maxBundlePart:] // of a log the end says most
		}
		text = clean.scrub(text)
		h := &tar.Header{Name: "stoker/" + part.name, Mode: 0o600, Size: int64(len(text)), ModTime: now}
		if err := archive.WriteHeader(h); err != nil {
			return err
		}
		if _, err := archive.Write(text); err != nil {
			return err
		}
	}
	return errors.Join(archive.Close(), zipped.Close())
}

type bundlePart struct {
	name string
	text func() ([]byte, error)
}

func (a *app) bundleParts(ctx context.Context, l *config.Loaded, rows []doctor.Row) []bundlePart {
	indented := func(v any, err error) ([]byte, error) {
		if err != nil {
			return nil, err
		}
		return json.MarshalIndent(v, "", "  ")
	}
	agent := newClient(l.Config.Socket)
	parts := []bundlePart{
		{"doctor.json", func() ([]byte, error) { return indented(rows, nil) }},
		{"version.json", func() ([]byte, error) { v, err := a.versionInfo(); return indented(v, err) }},
		{"config.json", func() ([]byte, error) { return indented(l.Values(), nil) }},
		{"containers.json", func() ([]byte, error) {
			list, err := agent.Containers(ctx)
			for i := range list {
				for name := range list[i].Labels { // people put everything there
					list[i].Labels[name] = "<hidden>"
				}
			}
			return indented(list, err)
		}},
		{"sources.json", func() ([]byte, error) { list, err := agent.Sources(ctx); return indented(list, err) }},
		{"health.json", func() ([]byte, error) { return agent.page(ctx, "/healthz") }},
		{"metrics.txt", func() ([]byte, error) { return agent.page(ctx, "/metrics") }},
		{"log.txt", func() ([]byte, error) { return journal(ctx) }},
	}
	for name, path := range map[string]string{
		"version": "/proc/version", "cmdline": "/proc/cmdline", "status": "/proc/self/status", "lsm": "/sys/kernel/security/lsm",
		"lockdown": "/sys/kernel/security/lockdown", "perf_event_paranoid": "/proc/sys/kernel/perf_event_paranoid", "kptr_restrict": "/proc/sys/kernel/kptr_restrict",
		"unprivileged_bpf_disabled": "/proc/sys/kernel/unprivileged_bpf_disabled", "cgroup": "/proc/self/cgroup", "cgroups": "/proc/cgroups", "cpu_online": "/sys/devices/system/cpu/online",
		"os-release": "/etc/os-release", "meminfo": "/proc/meminfo",
	} {
		parts = append(parts, bundlePart{"kernel/" + name + ".txt", func() ([]byte, error) { return os.ReadFile(path) }})
	}
	slices.SortStableFunc(parts, func(a, b bundlePart) int { return cmp.Compare(a.name, b.name) })
	return parts
}

// journal is the end of the agent's log, where systemd keeps it.
func journal(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, "journalctl", "--unit=stoker", "--lines=2000", "--no-pager", "--output=short-iso").Output()
	if err != nil {
		return nil, fmt.Errorf("read the log with journalctl: %w", err)
	}
	return out, nil
}

// scrubber takes secrets out of text: those that the configuration leads to, and whatever looks like one.
type scrubber struct{ known [][]byte }

// minSecret is how long a secret must be to be looked for in text: shorter ones are in every other word.
const minSecret = 4

func newScrubber(cfg config.Config) *scrubber {
	s := &scrubber{}
	add := func(secret string) {
		if secret = strings.TrimSpace(secret); len(secret) >= minSecret {
			s.known = append(s.known, []byte(secret))
		}
	}
	file := func(path string) {
		if path == "" {
			return
		}
		if b, err := os.ReadFile(path); err == nil && len(b) <= 64<<10 { // one that this user may not read is not in what it can see either
			for line := range strings.Lines(string(b)) {
				add(line)
			}
		}
	}
	file(cfg.Web.TokenFile)
	for _, e := range cfg.Pyroscope {
		file(e.BasicAuth.PasswordFile)
		file(e.Authorization.CredentialsFile)
		file(e.BearerTokenFile)
		for _, value := range e.Headers {
			add(value)
		}
	}
	// The longest first: one may be part of another.
	slices.SortFunc(s.known, func(a, b []byte) int { return cmp.Compare(len(b), len(a)) })
	return s
}

const scrubbed = "<removed>"

var (
	userInfo = regexp.MustCompile(`(://)[^/\s"'@]+@`)
	// A name that says secret, and its value: in JSON, in a log line, in a command line.
	assigned = regexp.MustCompile(`(?i)((?:password|passwd|secret|token|api[_-]?key|credential)[a-z0-9_.-]*"?\s*[=:]\s*"?)([^\s",}]+)`)
	header   = regexp.MustCompile(`(?i)\b(bearer|basic)\s+[a-z0-9+/=._~-]{8,}`)
)

func (s *scrubber) scrub(text []byte) []byte {
	for _, secret := range s.known {
		text = bytes.ReplaceAll(text, secret, []byte(scrubbed))
	}
	text = userInfo.ReplaceAll(text, []byte("${1}"+scrubbed+"@"))
	text = header.ReplaceAll(text, []byte("${1} "+scrubbed))
	return assigned.ReplaceAllFunc(text, func(match []byte) []byte {
		parts := assigned.FindSubmatch(match)
		if bytes.HasPrefix(parts[2], []byte("/")) { // a file that holds one, which is no secret
			return match
		}
		return append(slices.Clone(parts[1]), scrubbed...)
	})
}
