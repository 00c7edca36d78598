//go:build root

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/cmd/stoker/doctor"
	"github.com/stoker-profiler/stoker/internal/privilege"
	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/test/workload"
)

// stranger is who owns the programs of these tests, for root may read its own without any capability. nobody runs the agent.
const stranger, nobody = 4321, 65534

// What each capability's lack takes the names of.
const (
	plain   = "a program that everybody may read"
	private = "a program that its owner alone may read"
	deleted = "a program whose file was deleted"
	kernel  = "the kernel"
)

var namesLost = map[string][]string{
	"CAP_SYS_PTRACE":         {plain, private, deleted},
	"CAP_DAC_READ_SEARCH":    {private, deleted},
	"CAP_CHECKPOINT_RESTORE": {deleted},
	"CAP_SYSLOG":             {kernel},
}

// Each capability taken away in turn, of root and of another user, and none: what is lost is what the table says and no more, and
// doctor, the log and the metric say it in its words.
func TestEachCapabilityAndWhatIsLostWithoutIt(t *testing.T) {
	boxes := strangersPrograms(t)
	var targets []string
	for _, b := range boxes {
		targets = append(targets, fmt.Sprintf("{name: %q}", b.id))
	}
	for _, user := range []string{"root", "nobody"} {
		for _, c := range append(privilege.Table, privilege.Capability{Name: "nothing"}) {
			t.Run(user+" without "+c.Name, func(t *testing.T) {
				set := "-all"
				for _, other := range privilege.Table {
					if other.Name != c.Name {
						set += ",+" + strings.ToLower(strings.TrimPrefix(other.Name, "CAP_"))
					}
				}
				wrap := []string{"setpriv", "--no-new-privs", "--bounding-set=" + set, "--inh-caps=" + set}
				if user == "nobody" {
					wrap = append(wrap, fmt.Sprintf("--reuid=%d", nobody), fmt.Sprintf("--regid=%d", nobody), "--clear-groups", "--ambient-caps="+set)
				}
				a := newAgent(t, options{frequency: fine, window: time.Second, targets: "[" + strings.Join(targets, ", ") + ", {exclude: true}]", wrap: wrap})
				for _, dir := range []string{a.dir, filepath.Dir(a.dir), filepath.Dir(a.socket), run.dir} { // where nobody has to reach its configuration and make its store
					if err := os.Chmod(dir, 0o777); err != nil {
						t.Fatal(err)
					}
				}
				a.start(t)
				if c.Essential {
					a.watches(t)
					a.tells(t, c.Name, user == "nobody")
					a.refuses(t, c.Name, boxes[plain].id)
					a.stop(t)
					if n := len(a.profiles(t, "")); n > 0 {
						t.Errorf("%d profiles, and nothing can be sampled", n)
					}
					return
				}
				a.ready(t)
				for what, b := range boxes {
					a.stored(t, b.id, "profile of "+what, func(p sink.Profile) bool { return p.Total > int64(30*time.Millisecond) })
				}
				a.tells(t, c.Name, user == "nobody")
				if c.Name == "nothing" {
					a.namesRows(t, boxes)
				}
				a.stop(t)
				for what, b := range boxes {
					want := true
					for _, lost := range namesLost[c.Name] {
						want = want && lost != what
					}
					pic := look(t, a.profiles(t, b.id))
					named := pic.share(pic.cum, "unique_9") > 90
					switch what {
					case private, deleted:
						named = pic.share(pic.cum, "leaf_sixty") > 30
					case kernel:
						named = pic.cum["do_syscall_64"]+pic.cum["el0_svc"] > 0
					}
					if named != want {
						t.Errorf("functions of %s have names: %t, want %t\n%s", what, named, want, pic)
					}
				}
			})
		}
	}
}

// Another user with all capabilities who is in the group of an engine's socket profiles as root does: names and labels included. Without the
// group names are what it loses (the rows of nobody above, and TestContainerdSocketForbidden).
func TestAnotherUserInTheGroupOfTheSocketLosesNothing(t *testing.T) {
	const group = 4322
	d := startDaemon(t)
	if err := os.Chown(d.socket(), 0, group); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(d.socket(), 0o660); err != nil {
		t.Fatal(err)
	}
	set := "-all"
	for _, c := range privilege.Table {
		set += ",+" + strings.ToLower(strings.TrimPrefix(c.Name, "CAP_"))
	}
	a := newAgent(t, options{socket: d.socket(), window: time.Second, wrap: []string{"setpriv", "--no-new-privs", "--bounding-set=" + set, "--inh-caps=" + set, "--ambient-caps=" + set,
		fmt.Sprintf("--reuid=%d", nobody), fmt.Sprintf("--regid=%d", nobody), fmt.Sprintf("--groups=%d", group)}})
	for _, dir := range []string{a.dir, filepath.Dir(a.dir), filepath.Dir(a.socket), run.dir} {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	for dir := filepath.Dir(d.socket()); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) { // CAP_DAC_READ_SEARCH passes directories, and is the agent's alone
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	a.start(t)
	a.ready(t)
	b := d.start(t, spec{args: []string{"/" + workload.Burn, "0", "6"}, labels: map[string]string{"stoker.service": "somebody's"}})
	all := a.stored(t, b.id, "profile", func(p sink.Profile) bool {
		return p.Total > int64(200*time.Millisecond) && p.Labels["service_name"] != b.id
	})
	b.wantLabels(t, all[len(all)-1])
	out, _, code := a.command(t, "doctor", "--output", "json")
	if code != 0 || strings.Contains(out, `"missing: `) || strings.Contains(out, "may not connect") || strings.Contains(out, "does not let us in at "+d.socket()) {
		t.Errorf("doctor: exit code %d: %s", code, out)
	}
	b.kill(t)
	a.stop(t)
	if pic := look(t, a.profiles(t, b.id)); pic.share(pic.cum, "unique_6") < 90 {
		t.Errorf("functions have no names\n%s", pic)
	}
}

// watches waits until an agent answers that may not sample, which is not called healthy.
func (a *agent) watches(t *testing.T) {
	t.Helper()
	eventually(t, 20*time.Second, "the agent answers", func() error {
		if _, err := a.get("/metrics"); err != nil {
			return err
		}
		return nil
	})
	if _, err := a.get("/healthz"); err == nil || !strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), "nothing is sampled") {
		t.Errorf("/healthz: %v, want 503, and that nothing is sampled", err)
	}
}

// refuses checks what an agent does that lacks a capability without which nothing is sampled: it knows the containers and says of each why
// it is not profiled, and whoever asks for samples learns why there are none.
func (a *agent) refuses(t *testing.T, lacks, id string) {
	t.Helper()
	eventually(t, 20*time.Second, "the container is known", func() error {
		out, errs, code := a.command(t, "ps", "-o", "json", id)
		var list []struct{ State, Reason string }
		if err := json.Unmarshal([]byte(out), &list); err != nil || code != 0 || len(list) != 1 {
			return fmt.Errorf("stoker ps: exit code %d, %v: %s%s", code, err, out, errs)
		}
		if list[0].State != "failed" || !strings.Contains(list[0].Reason, "nothing is sampled: "+lacks+" is missing") {
			return fmt.Errorf("%s: %s", list[0].State, list[0].Reason)
		}
		return nil
	})
	for _, args := range [][]string{{"top", "--once"}, {"record", "-d", "1s", "-o", "-"}} {
		if out, errs, code := a.command(t, args...); code != 4 || out != "" || !strings.Contains(errs, lacks+" is missing") || !strings.Contains(errs, "CapabilityBoundingSet=") {
			t.Errorf("stoker %s: exit code %d, want 4 and the remedy: %s%s", strings.Join(args, " "), code, out, errs)
		}
	}
}

// tells checks that doctor, the metric and the log name the capability that the agent lacks, and no other. bystander: the agent may
// not use the engines' sockets.
func (a *agent) tells(t *testing.T, lacks string, bystander bool) {
	t.Helper()
	// Doctor looks at the agent that runs, not at itself.
	out, errs, code := a.command(t, "doctor", "--output", "json")
	var rows []doctor.Row
	wantCode := 0
	for _, c := range privilege.Table {
		if c.Name == lacks && c.Essential {
			wantCode = 4
		}
	}
	if err := json.Unmarshal([]byte(out), &rows); err != nil || code != wantCode {
		t.Errorf("doctor: exit code %d, want %d, %v: %s%s", code, wantCode, err, out, errs)
	}
	page, err := a.get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range privilege.Table {
		missing := c.Name == lacks
		state := doctor.Degraded
		if c.Essential {
			state = doctor.Broken
		}
		var said bool
		for _, r := range rows {
			said = said || r.Check == c.Name && r.State == state && strings.Contains(r.Detail, c.Lost) && r.Remedy != ""
		}
		metric := strings.Contains(string(page), fmt.Sprintf("stoker_capability{capability=%q} 0", c.Name))
		logged := strings.Contains(a.log.String(), "capability="+c.Name) && strings.Contains(a.log.String(), c.Lost)
		if said != missing || metric != missing || logged != missing {
			t.Errorf("%s is missing: %t; doctor says so: %t, the metric: %t, the log: %t", c.Name, missing, said, metric, logged)
		}
	}
	var barred bool
	for _, r := range rows {
		barred = barred || r.State == doctor.Degraded && r.Area == "agent" && strings.Contains(r.Detail, run.daemon.socket())
	}
	if barred != bystander {
		t.Errorf("doctor says that the agent may not use containerd's socket: %t, want %t\n%s", barred, bystander, out)
	}
}

// namesRows checks doctor's findings about the programs of the containers: it has all rights, so that nothing of them is out of its reach.
func (a *agent) namesRows(t *testing.T, boxes map[string]*box) {
	t.Helper()
	out, errs, _ := a.command(t, "doctor", "--output", "json")
	var rows []doctor.Row
	if err := json.Unmarshal([]byte(out), &rows); err != nil {
		t.Fatalf("doctor: %v: %s%s", err, out, errs)
	}
	for what, b := range boxes {
		var said bool
		for _, r := range rows {
			said = said || r.Area == "symbols" && strings.HasPrefix(b.id, r.Check) && r.State == doctor.OK && strings.Contains(r.Detail, "with all names")
		}
		if !said {
			t.Errorf("doctor does not say that the functions of %s (%s) have names:\n%s", what, b.id, out)
		}
	}
}

// strangersPrograms starts one container for each thing that can lose its names.
func strangersPrograms(t *testing.T) map[string]*box {
	t.Helper()
	as := func(path string, more ...string) []string {
		return append([]string{"/" + workload.As, fmt.Sprint(stranger), path}, more...)
	}
	copied := func(name string) (dir string) {
		t.Helper()
		dir, err := os.MkdirTemp(run.dir, "stranger-")
		if err != nil {
			t.Fatal(err)
		}
		from, err := run.programs.Build(name)
		if err != nil {
			t.Fatal(err)
		}
		in, err := os.Open(from)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		path := filepath.Join(dir, "program")
		out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o500)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(out, in); err != nil {
			t.Fatal(err)
		}
		if err := out.Close(); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{path, dir} {
			if err := os.Chown(p, stranger, stranger); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	hidden, gone := copied(workload.SharesPIE), copied(workload.SharesC)
	if err := os.Chmod(filepath.Join(gone, "program"), 0o755); err != nil {
		t.Fatal(err)
	}
	boxes := map[string]*box{
		plain:   start(t, spec{docker: true, args: as("/"+workload.Burn, "0", "9")}),
		kernel:  start(t, spec{docker: true, args: as("/" + workload.Kernel)}),
		private: start(t, spec{docker: true, args: as("/p/program"), mounts: map[string]string{hidden: "/p"}}),
		deleted: start(t, spec{docker: true, args: as("/p/program"), mounts: map[string]string{gone: "/p"}}),
	}
	boxes[deleted].used(t, 100*time.Millisecond) // it runs
	if err := os.Remove(filepath.Join(gone, "program")); err != nil {
		t.Fatal(err)
	}
	return boxes
}
