//go:build root

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/test/workload"
)

// A container does what it can to the profiler, all at once. The container beside it is profiled as if nothing were: all of its CPU
// time, whole stacks, right names and labels. The agent stays small, and what the attacker wrote reaches no terminal and no page.
func TestAContainerThatAttacksTheProfiler(t *testing.T) {
	allowMappings(t, 1<<20+1<<16)
	a := startAgent(t, options{frequency: 499, extra: "container_labels: {allow: [enable, service, frequency], tenants: [mine]}\n"})
	victim := start(t, spec{args: []string{"/" + workload.Burn, "0", "7"}, labels: map[string]string{"stoker.service": "victim"}})
	a.inScope(t, victim.id)
	var attackers []*box
	for _, how := range []string{"mappings", "storm", "names", "forks", "chain"} {
		attackers = append(attackers, start(t, spec{args: []string{"/" + workload.Attack, how}, labels: map[string]string{
			"stoker.tenant":    "others",
			"stoker.frequency": "1000000",
			"evil":             "\x1b[31m<script>alert(1)</script>\x07",
			"stoker.service":   "attacker \x1b]0;owned\x07<script>",
		}}))
	}
	for _, b := range attackers {
		a.inScope(t, b.id)
		b.used(t, 2*time.Second)
	}
	maps := fmt.Sprintf("/proc/%d/maps", attackers[0].c.PID())
	eventually(t, 2*time.Minute, "a million mappings", func() error {
		if n := linesOf(t, maps); n < 1_000_000 {
			return fmt.Errorf("%d mappings", n)
		}
		return nil
	})
	attackers[0].used(t, cpuUsage(t, attackers[0].c.CgroupPath())+300*time.Millisecond) // of code that runs in them
	var screen strings.Builder
	for _, args := range [][]string{{"ps", "--all"}, {"ps", "--sources"}, {"ps", attackers[0].id}, {"top", "--once"}, {"record", "-d", "2s", "-o", "-"}, {"doctor"}} {
		out, errs, code := a.command(t, args...)
		if code != 0 {
			t.Errorf("stoker %s: exit code %d: %s", strings.Join(args, " "), code, errs)
		}
		screen.WriteString(out + errs)
	}
	charged := victim.kill(t)
	for _, b := range attackers {
		if used := b.kill(t); used == 0 {
			t.Errorf("attacker %v did nothing", b.labels)
		}
	}
	rss := peakRSS(t, a.cmd.Process.Pid)
	page, err := a.get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	a.stop(t)

	profiles := a.profiles(t, victim.id)
	pic := look(t, profiles)
	wantCPU(t, "the victim", time.Duration(pic.total[""]), charged, 499, 50*time.Millisecond)
	if pic.share(pic.cum, "unique_7") < 97 || pic.share(pic.cum, "main") < 97 {
		t.Errorf("the victim has %.1f %% of its own work and %.1f %% of its main\n%s", pic.share(pic.cum, "unique_7"), pic.share(pic.cum, "main"), pic)
	}
	for _, p := range profiles {
		victim.wantLabels(t, p)
	}
	for _, p := range a.profiles(t, "") {
		if p.ContainerID != victim.id && p.Labels["service_name"] == "victim" {
			t.Errorf("a profile of %s has the victim's name", p.ContainerID)
		}
		if p.Tenant != "" {
			t.Errorf("a profile of %s is for tenant %q, which the configuration does not allow", p.ContainerID, p.Tenant)
		}
	}
	for n, how := range []string{"mappings", "storm", "names", "forks", "chain"} {
		if all := a.profiles(t, attackers[n].id); sum(all) == 0 {
			t.Errorf("%s: nothing of its CPU time was seen", how)
		}
	}
	if strings.ContainsAny(screen.String()+a.log.String(), "\x1b\x07") {
		t.Errorf("what the container wrote reaches the terminal as it is: %q", screen.String())
	}
	if !strings.Contains(string(page), "stoker_samples_taken_total") {
		t.Errorf("the metrics end early:\n%s", page)
	}
	if rss > 160<<20 {
		t.Errorf("the agent's memory grew to %d MB", rss>>20)
	}
	t.Logf("the agent's memory grew to %d MB", rss>>20)
}

// allowMappings lets a process have that many mappings until the test ends: an operator's databases may be why a node does.
func allowMappings(t *testing.T, n int) {
	t.Helper()
	const path = "/proc/sys/vm/max_map_count"
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(n)), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(path, before, 0); err != nil {
			t.Error(err)
		}
	})
}

// linesOf counts the lines of a file.
func linesOf(t *testing.T, path string) (n int) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for buf := make([]byte, 1<<16); ; {
		got, err := f.Read(buf)
		n += bytes.Count(buf[:got], []byte{'\n'})
		if errors.Is(err, io.EOF) {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
