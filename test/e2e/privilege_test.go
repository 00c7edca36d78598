//go:build root

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/cmd/stoker/doctor"
	"github.com/stoker-profiler/stoker/internal/privilege"
	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/test/workload"
)

// Each capability taken away in turn: what is lost is what the table says and no more, and doctor, the log and the metric say it
// in its words. The programs are another user's, for root may read its own without any of them.
func TestEachCapabilityAndWhatIsLostWithoutIt(t *testing.T) {
	for _, c := range append(privilege.Table, privilege.Capability{Name: "none"}) {
		t.Run(c.Name, func(t *testing.T) {
			set := "-all"
			for _, other := range privilege.Table {
				if other.Name != c.Name {
					set += ",+" + strings.ToLower(strings.TrimPrefix(other.Name, "CAP_"))
				}
			}
			a := newAgent(t, options{frequency: fine, wrap: []string{"setpriv", "--bounding-set=" + set, "--inh-caps=" + set}})
			a.start(t)
			if c.Essential {
				if code := a.wait(t); code != 4 || !strings.Contains(a.log.String(), c.Name) {
					t.Errorf("exit code %d, want 4, with the capability's name:\n%s", code, tail(a.log.String(), 5))
				}
				return
			}
			a.ready(t)
			user := start(t, spec{args: []string{"/" + workload.As, "4321", "/" + workload.Burn, "0", "9"}})
			kernel := start(t, spec{args: []string{"/" + workload.As, "4321", "/" + workload.Kernel}})
			for _, b := range []*box{user, kernel} {
				a.inScope(t, b.id)
				b.used(t, time.Second)
			}
			// Doctor looks at the agent that runs, not at itself.
			out, errs, code := a.command(t, "doctor", "--output", "json")
			var rows []doctor.Row
			if err := json.Unmarshal([]byte(out), &rows); err != nil || code != 0 {
				t.Errorf("doctor: exit code %d, %v: %s%s", code, err, out, errs)
			}
			page, err := a.get("/metrics")
			if err != nil {
				t.Fatal(err)
			}
			for _, other := range privilege.Table {
				missing := other.Name == c.Name
				var said bool
				for _, r := range rows {
					said = said || r.Check == other.Name && r.State == doctor.Degraded && strings.Contains(r.Detail, other.Lost) && r.Remedy != ""
				}
				metric := strings.Contains(string(page), fmt.Sprintf("stoker_capability{capability=%q} 0", other.Name))
				logged := strings.Contains(a.log.String(), "capability="+other.Name)
				if said != missing || metric != missing || logged != missing {
					t.Errorf("%s is missing: %t; doctor says so: %t, the metric: %t, the log: %t", other.Name, missing, said, metric, logged)
				}
			}
			for _, b := range []*box{user, kernel} {
				a.stored(t, b.id, "profile", func(p sink.Profile) bool { return p.Total > 0 })
				b.kill(t)
			}
			a.stop(t)
			pic, sys := look(t, a.profiles(t, user.id)), look(t, a.profiles(t, kernel.id))
			if named := pic.share(pic.cum, "unique_9") > 90; named != (c.Name != "CAP_SYS_PTRACE") {
				t.Errorf("functions of another user's process have names: %t\n%s", named, pic)
			}
			if named := sys.cum["do_syscall_64"]+sys.cum["el0_svc"] > 0; named != (c.Name != "CAP_SYSLOG") {
				t.Errorf("kernel functions have names: %t\n%s", named, sys)
			}
		})
	}
}
