//go:build root

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/sink/web"
	"github.com/stoker-profiler/stoker/test/workload"
)

// What is profiled changes with SIGHUP, at once: a container that runs leaves and comes back, another one's frequency changes, and
// what was counted before is worth what it was. A configuration with mistakes changes nothing.
func TestSelectionChangesWhileContainersRun(t *testing.T) {
	const frequency = 97
	mine := fmt.Sprintf("label: {%s: %q}", testLabel, t.Name())
	a := startAgent(t, options{frequency: frequency, targets: "[{" + mine + "}, {exclude: true}]"})
	blue := start(t, spec{args: []string{"/" + workload.Burn, "0", "1"}, labels: map[string]string{"team": "blue"}})
	red := start(t, spec{args: []string{"/" + workload.Burn, "0", "2"}, labels: map[string]string{"team": "red"}})
	slow := start(t, spec{args: []string{"/" + workload.Burn, "0", "3"}, labels: map[string]string{"team": "blue", "stoker.frequency": "20"}})
	mute := start(t, spec{args: []string{"/" + workload.Burn, "0", "4"}, labels: map[string]string{"team": "blue", "stoker.enable": "false"}})
	willing := start(t, spec{args: []string{"/" + workload.Burn, "0", "5"}, labels: map[string]string{"team": "red", "stoker.enable": "true"}})
	state := func(want string) func(web.Container) bool {
		return func(c web.Container) bool { return c.State == want }
	}

	a.becomes(t, blue.id, "blue is profiled", state("profiled"))
	before := a.becomes(t, red.id, "red is profiled", state("profiled"))
	a.becomes(t, willing.id, "willing is profiled", state("profiled"))
	if c := a.becomes(t, slow.id, "slow is profiled", state("profiled")); c.AskedFrequency != 20 || c.GivenFrequency != 19 {
		t.Errorf("slow asked for %d Hz and has %d, want 20 and 19", c.AskedFrequency, c.GivenFrequency)
	}
	if c := a.becomes(t, mute.id, "mute is excluded", state("excluded")); !strings.Contains(c.Reason, "stoker.enable") {
		t.Errorf("mute is not profiled because %q", c.Reason)
	}
	a.stored(t, red.id, "a profile of red", func(p sink.Profile) bool { return p.Total > 0 })
	a.stored(t, slow.id, "a profile of slow", func(p sink.Profile) bool { return p.Total > 0 })

	// Red is excluded, and no container chooses its frequency any more.
	a.opts.targets = "[{exclude: true, label: {team: red}}, {" + mine + "}, {exclude: true}]"
	a.opts.extra = "container_labels: {allow: [enable, service]}"
	a.configure(t)
	a.reload(t)
	c := a.becomes(t, red.id, "red is excluded", state("excluded"))
	excluded := time.Now()
	if !strings.Contains(c.Reason, "rule 1 of targets excludes label team: red") {
		t.Errorf("red is not profiled because %q", c.Reason)
	}
	c = a.becomes(t, willing.id, "willing is excluded all the same", state("excluded"))
	if len(c.Notes) != 1 || !strings.Contains(c.Notes[0], "does not overrule targets") {
		t.Errorf("willing's notes are %q", c.Notes)
	}
	c = a.becomes(t, slow.id, "slow is sampled at the full frequency", func(c web.Container) bool { return c.GivenFrequency == frequency })
	if len(c.Notes) != 1 || !strings.Contains(c.Notes[0], "not allowed by container_labels") {
		t.Errorf("slow's notes are %q", c.Notes)
	}
	a.becomes(t, mute.id, "mute is excluded still", state("excluded"))
	time.Sleep(2 * a.opts.window)

	// A mistake.
	good := a.opts.targets
	a.opts.targets = "[{exclude: true, image: \"[\"}, {colour: red}]"
	a.configure(t)
	a.reload(t)
	eventually(t, 20*time.Second, "the log says what is wrong", func() error {
		for _, want := range []string{"the configuration is not reloaded", "is not a pattern", "colour"} {
			if !strings.Contains(a.log.String(), want) {
				return fmt.Errorf("%q is not in the log", want)
			}
		}
		return nil
	})
	a.opts.targets = good // for the commands that ask the agent; it has not read it
	a.configure(t)
	a.becomes(t, red.id, "red is excluded still", state("excluded"))
	a.becomes(t, blue.id, "blue is profiled still", state("profiled"))

	// Red comes back, blue goes; slow may choose again.
	included := time.Now()
	a.opts.targets = strings.ReplaceAll(good, "team: red", "team: blue")
	a.opts.extra = ""
	a.configure(t)
	a.reload(t)
	if c = a.becomes(t, red.id, "red is profiled again", state("profiled")); c.ScopeID == before.ScopeID {
		t.Errorf("red has its old scope %d again", c.ScopeID)
	}
	a.becomes(t, blue.id, "blue is excluded", state("excluded"))
	a.stored(t, red.id, "a profile of red after its return", func(p sink.Profile) bool { return p.Start.After(included) && p.Total > 0 })
	charged := cpuUsage(t, slow.c.CgroupPath())
	a.stop(t)

	for _, p := range a.profiles(t, red.id) {
		red.wantLabels(t, p)
		if p.End.After(excluded) && p.Start.Before(included.Add(-a.opts.window)) {
			t.Errorf("a profile of red [%s, %s) from when it was excluded, [%s, %s)", p.Start, p.End, excluded, included)
		}
	}
	if p := a.profiles(t, mute.id); len(p) > 0 {
		t.Errorf("%d profiles of a container that said no", len(p))
	}
	var total time.Duration
	for _, p := range a.profiles(t, slow.id) {
		total += time.Duration(p.Total)
	}
	// It is blue, so it left with the last reload. At 19 Hz, at 97 Hz, and in the window in which that changed, a sample is worth its time.
	t.Logf("slow: %s in profiles, %s charged until its end", total, charged)
	if total == 0 || total > charged+time.Second {
		t.Errorf("slow has %s in profiles and was charged %s", total, charged)
	}
}

// A container that nobody has described yet is sampled, for it may be wanted. When the agent ends before anybody could, the rules judge it
// by what is known.
func TestWhatNobodyDescribedIsJudgedAtTheEnd(t *testing.T) {
	a := startAgent(t, options{socket: "off", window: 10 * time.Second, targets: "[{label: {nobody: has}}, {exclude: true}]"})
	b := start(t, spec{args: []string{"/" + workload.Burn, "0", "1"}, docker: true})
	a.becomes(t, b.id, "a container that only its cgroup tells of is in scope", func(c web.Container) bool { return c.State == "provisional" })
	used := cpuUsage(t, b.c.CgroupPath())
	b.used(t, used+500*time.Millisecond)
	a.stop(t)
	if p := a.profiles(t, ""); len(p) > 0 {
		t.Errorf("%d profiles of what the rules exclude:\n%s", len(p), look(t, p))
	}
}
