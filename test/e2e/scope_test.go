//go:build root

package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/test/workload"
)

func TestOutOfScopeHasExactlyNoSamples(t *testing.T) {
	a := startAgent(t, options{frequency: fine, targets: fmt.Sprintf("[{exclude: true, label: {secret: \"yes\"}}, {label: {%s: %q}}, {exclude: true}]", testLabel, t.Name())})
	in := start(t, spec{args: []string{"/" + workload.Burn, "0", "1"}})
	out := start(t, spec{args: []string{"/" + workload.Burn, "0", "2"}, labels: map[string]string{"secret": "yes"}})
	// A process of no container, and the same program: only the scope tells them apart.
	path, err := run.programs.Build(workload.Burn)
	if err != nil {
		t.Fatal(err)
	}
	outside := exec.Command(path, "0", "3")
	if err := outside.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(8 * time.Second)
	outside.Process.Kill()
	outside.Wait() // killed: its error says so
	in.kill(t)
	out.kill(t)
	a.stop(t)

	if p := a.profiles(t, out.id); len(p) != 0 {
		t.Errorf("the excluded container has %d profiles:\n%s", len(p), look(t, p))
	}
	all := a.profiles(t, "")
	for _, p := range all {
		if p.ContainerID != in.id {
			t.Errorf("a profile of %s %v, which is not in scope", p.ContainerID, p.Labels)
		}
	}
	pic := look(t, all)
	if pic.cum["unique_1"] == 0 {
		t.Errorf("nothing of the container in scope:\n%s", pic)
	}
	if n := pic.cum["unique_2"] + pic.cum["unique_3"]; n != 0 {
		t.Errorf("%s of what is out of scope:\n%s", time.Duration(n), pic)
	}
}

func TestTwentyContainersHaveTheirOwnAndOnlyTheirOwn(t *testing.T) {
	a := startAgent(t, options{})
	var boxes []*box
	for n := range 20 {
		boxes = append(boxes, start(t, spec{args: []string{"/" + workload.Burn, "0", fmt.Sprint(n)}}))
	}
	time.Sleep(20 * time.Second)
	charged := make([]time.Duration, len(boxes))
	for n, b := range boxes {
		charged[n] = b.kill(t)
	}
	a.stop(t)
	for n, b := range boxes {
		profiles := a.profiles(t, b.id)
		pic := look(t, profiles)
		wantCPU(t, fmt.Sprintf("container %d", n), time.Duration(pic.total[""]), charged[n], 97, 50*time.Millisecond)
		own := fmt.Sprintf("unique_%d", n)
		for name := range pic.cum {
			if strings.HasPrefix(name, "unique_") && name != own {
				t.Errorf("container %d has %s\n%s", n, name, pic)
			}
		}
		if pic.share(pic.cum, own) < 90 {
			t.Errorf("container %d has %.1f %% of %s, want nearly all\n%s", n, pic.share(pic.cum, own), own, pic)
		}
		for _, p := range profiles {
			b.wantLabels(t, p)
		}
	}
}

func TestContainerOf300MillisecondsIsProfiledWithItsLabels(t *testing.T) {
	a := startAgent(t, options{frequency: fine})
	b := start(t, spec{args: []string{"/" + workload.Burn, "300"}, labels: map[string]string{"stoker.service": "brief"}})
	b.wait(t)
	b.remove(t)
	profiles := a.stored(t, b.id, "profile of a container that is gone", func(p sink.Profile) bool { return p.Total > 0 })
	for _, p := range profiles {
		b.wantLabels(t, p)
		if p.Labels["service_name"] != "brief" {
			t.Errorf("service_name is %q, want what its label says", p.Labels["service_name"])
		}
	}
	pic := look(t, profiles)
	wantCPU(t, "short_lived_work", time.Duration(pic.cum["short_lived_work"]), 300*time.Millisecond, fine, 0)
}

func TestProcessExecdIntoARunningContainerBelongsToIt(t *testing.T) {
	a := startAgent(t, options{frequency: fine})
	b := start(t, spec{args: []string{"/" + workload.Idle}})
	a.inScope(t, b.id)
	b.exec(t, "/"+workload.Burn, "1000")
	b.kill(t)
	a.stop(t)
	pic := look(t, a.profiles(t, b.id))
	wantCPU(t, "the exec'd process", time.Duration(pic.cum["short_lived_work"]), time.Second, fine, 0)
}

// 200 processes of 50 ms each: most are gone before anybody can look at them.
func TestShortProcessesAreNamedAndLabelled(t *testing.T) {
	a := startAgent(t, options{frequency: fine})
	b := start(t, spec{args: []string{"/" + workload.Spawn, "200", "2", "/" + workload.Burn, "50"}})
	b.wait(t)
	b.remove(t)
	a.stop(t)
	profiles := a.profiles(t, b.id)
	for _, p := range profiles {
		b.wantLabels(t, p)
	}
	pic := look(t, profiles)
	wantCPU(t, "all processes", time.Duration(pic.cum["short_lived_work"]), 10*time.Second, fine, 0)
	named, unnamed := userFrames(t, profiles)
	share := 100 * float64(named) / float64(max(1, named+unnamed))
	t.Logf("%.2f %% of the user frames, weighed by their time, have a name", share)
	if share < 95 {
		t.Errorf("%.2f %% of the user frames have a name, want 95 %%\n%s", share, pic)
	}
}

// A library that takes another's place in the address space is not taken for it.
func TestLibraryAtAnotherLibrarysAddress(t *testing.T) {
	const phase, window = 8 * time.Second, time.Second
	a := startAgent(t, options{frequency: fine, window: window})
	b := start(t, spec{args: []string{"/lib64/ld-linux-x86-64.so.2", "--library-path", "/lib:/lib64", "/" + workload.Swap, "8"}})
	time.Sleep(2*phase + window)
	b.kill(t)
	a.stop(t)
	profiles := a.profiles(t, b.id)
	pic := look(t, profiles)
	// Changed mappings are seen at the end of the window: what came in between may have the old name, no more.
	bar := 100 * window.Seconds() / (2 * phase).Seconds()
	for _, name := range []string{"plugin_red_work", "plugin_blue_work"} {
		if got := pic.share(pic.cum, name); got < 50-2*bar || got > 50+2*bar {
			t.Errorf("%s has %.1f %%, want 50 %% within %.1f points\n%s", name, got, 2*bar, pic)
		}
	}
}

// Processes that come and go as fast as they can: nothing is lost, nothing is counted twice, the agent stays up.
func TestForkStorm(t *testing.T) {
	const frequency = 97
	a := startAgent(t, options{frequency: frequency})
	b := start(t, spec{args: []string{"/" + workload.Spawn, "0", "8", "/" + workload.Burn, "1"}})
	time.Sleep(10 * time.Second)
	charged := b.kill(t)
	a.stop(t)
	pic := look(t, a.profiles(t, b.id))
	wantCPU(t, "storm", time.Duration(pic.total[""]), charged, frequency, 100*time.Millisecond)
}
