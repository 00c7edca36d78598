//go:build root

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/test/pyroscopetest"
	"github.com/stoker-profiler/stoker/test/workload"
)

// sum is the CPU time of profiles in the store.
func sum(profiles []sink.Profile) (total int64) {
	for _, p := range profiles {
		total += p.Total
	}
	return total
}

// What a strict server has in the end is what the store has, also when the server was away for a while and the agent was
// restarted in between.
func TestServerGetsWhatTheStoreHas(t *testing.T) {
	server := pyroscopetest.New(t, pyroscopetest.Options{Delay: 200 * time.Millisecond})
	a := startAgent(t, options{window: time.Second, extra: fmt.Sprintf("pyroscope: {url: %q, remote_timeout: 10s}\n", server.URL())})
	c := start(t, spec{args: []string{"/" + workload.SharesC}, labels: map[string]string{"stoker.service": "pushed-c"}})
	golang := start(t, spec{args: []string{"/" + workload.SharesGo}, labels: map[string]string{"stoker.service": "pushed-go"}})
	eventually(t, 30*time.Second, "the server has profiles of both", func() error {
		have := map[string]bool{}
		for _, r := range server.Profiles() {
			have[r.Labels["service_name"]] = true
		}
		if !have["pushed-c"] || !have["pushed-go"] {
			return fmt.Errorf("it has %v", have)
		}
		return nil
	})
	metrics, err := a.get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	wantDocumented(t, metrics)
	for _, want := range []string{"stoker_sink_delivered_bytes_total{", "stoker_store_delivery_results_total{"} {
		if !strings.Contains(string(metrics), want) {
			t.Errorf("/metrics does not say %s:\n%s", want, metrics)
		}
	}
	server.Inject(pyroscopetest.Fault{Status: 503, Message: "away for a while"}, -1)
	c.used(t, 4*time.Second)
	c.kill(t)
	golang.kill(t)
	a.stop(t) // what is not delivered yet waits in the store
	if got, want := server.Total(""), sum(a.profiles(t, "")); got >= want {
		t.Errorf("the server has %s of %s although it was away", time.Duration(got), time.Duration(want))
	}
	server.Inject(pyroscopetest.Fault{}, 0)
	a.start(t)
	a.ready(t)
	eventually(t, 90*time.Second, "the server has what the store has", func() error {
		if got, want := server.Total(""), sum(a.profiles(t, "")); got != want {
			return fmt.Errorf("it has %s of %s", time.Duration(got), time.Duration(want))
		}
		return nil
	})
	a.stop(t)
	for _, r := range server.Profiles() {
		if r.TypeID != "process_cpu:cpu:nanoseconds:cpu:nanoseconds" {
			t.Errorf("a profile of type %s", r.TypeID)
		}
		for _, name := range []string{"node", "container_runtime", "container_name", "container_image"} {
			if r.Labels[name] == "" {
				t.Errorf("a profile without %s: %v", name, r.Labels)
			}
		}
		if r.Labels["container_id"] != "" {
			t.Errorf("a profile with a container id, which makes a series per container: %v", r.Labels)
		}
	}
}

// An agent that is killed while the server keeps it waiting sends again only what was under way, and says so.
func TestKilledAgentSendsTwiceOnlyWhatWasUnderWay(t *testing.T) {
	server, err := pyroscopetest.Start(pyroscopetest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	a := startAgent(t, options{window: time.Second, extra: fmt.Sprintf("pyroscope: {url: %q, remote_timeout: 1m}\n", server.URL())})
	b := start(t, spec{args: []string{"/" + workload.SharesC}})
	eventually(t, 30*time.Second, "the server has profiles", func() error {
		if n := len(server.Profiles()); n < 3 {
			return fmt.Errorf("it has %d", n)
		}
		return nil
	})
	// From now on the server stores what it gets and never says so.
	var before int
	server.Inject(pyroscopetest.Fault{Hang: true, Store: true}, -1)
	eventually(t, 30*time.Second, "a push hangs", func() error {
		if before == 0 {
			before = len(server.Profiles())
		}
		if n := len(server.Profiles()); n < before+2 {
			return fmt.Errorf("%d profiles arrived", n-before)
		}
		return nil
	})
	b.kill(t)
	a.kill(t)
	server.Inject(pyroscopetest.Fault{}, 0)
	a.start(t)
	a.ready(t)
	a.says(t, "the server may have them")
	eventually(t, 60*time.Second, "the server has at least what the store has", func() error {
		if got, want := server.Total(""), sum(a.profiles(t, "")); got < want {
			return fmt.Errorf("it has %s of %s", time.Duration(got), time.Duration(want))
		}
		return nil
	})
	out, errs, code := a.command(t, "store", "ls", "--output", "json")
	if code != 0 {
		t.Errorf("store ls: exit code %d: %s", code, errs)
	}
	a.stop(t)

	var twice int
	for _, v := range server.Violations() {
		if !strings.Contains(v, "sent twice") {
			t.Errorf("a Pyroscope server would have lost something: %s", v)
			continue
		}
		twice++
	}
	// How many were under way is what the agent said when it started.
	var said int
	for line := range strings.Lines(a.log.String()) {
		if _, rest, ok := strings.Cut(line, "the server may have them"); ok {
			if _, n, ok := strings.Cut(rest, "profiles="); ok {
				fmt.Sscanf(n, "%d", &said)
			}
		}
	}
	t.Logf("%d profiles arrived twice, %d were under way", twice, said)
	if twice == 0 || twice > said {
		t.Errorf("%d profiles arrived twice; %d were under way when the agent was killed, and only they may\n%s", twice, said, out)
	}
}
