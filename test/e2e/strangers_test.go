//go:build root

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/test/workload"
)

// A local user who is not in the group may not use the agent's socket, and not record even where somebody widened its mode; whoever takes
// all places of the page's port stops neither the sampling nor the commands of who may use the socket.
func TestStrangersAtTheAgentsListeners(t *testing.T) {
	a := startAgent(t, options{window: time.Second})
	b := start(t, spec{args: []string{"/" + workload.Burn, "0", "8"}})
	a.inScope(t, b.id)
	for _, dir := range []string{a.dir, filepath.Dir(a.dir), filepath.Dir(a.socket), run.dir} { // as the directories of a package are
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(a.config, 0o644); err != nil {
		t.Fatal(err)
	}
	asNobody := func(args ...string) (out string, code int) {
		t.Helper()
		as := []string{fmt.Sprintf("--reuid=%d", nobody), fmt.Sprintf("--regid=%d", nobody), "--clear-groups", run.stoker}
		text, err := exec.Command("setpriv", append(append(as, args...), "--config", a.config)...).CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		if exit != nil {
			code = exit.ExitCode()
		}
		return string(text), code
	}
	commands := [][]string{{"ps"}, {"top", "--once"}, {"record", "-d", "1s", "-o", "-"}}
	for _, args := range commands {
		if out, code := asNobody(args...); code != 4 || !strings.Contains(out, "group stoker") || strings.Contains(out, b.id) {
			t.Errorf("a stranger's stoker %s: exit code %d: %s", args[0], code, out)
		}
	}
	if err := os.Chmod(a.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	if out, code := asNobody(commands[2]...); code != 4 || !strings.Contains(out, fmt.Sprintf("user %d may not record", nobody)) {
		t.Errorf("a stranger records over a socket that was widened: exit code %d: %s", code, out)
	}

	if out, _ := asNobody("doctor"); !strings.Contains(out, "may not be looked at with these rights") || strings.Contains(out, b.id) {
		t.Errorf("a stranger's doctor looks into a container: %s", out)
	}

	// As a container in the host's network can.
	const many = 200
	for range many {
		c, err := net.DialTimeout("tcp", a.listen, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET /api/v1/top HTTP/1.1\r\nHost: localhost\r\nX: "); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	for _, args := range commands {
		if out, errs, code := a.command(t, args...); code != 0 {
			t.Errorf("stoker %s while the page's places are taken: exit code %d: %s%s", args[0], code, out, errs)
		}
	}
	a.stored(t, b.id, "profile while the page's places are taken", func(p sink.Profile) bool { return p.Start.After(began) && p.Total > 0 })
	eventually(t, time.Minute, "the page answers again", func() error { _, err := a.get("/healthz"); return err })
	b.kill(t)
	a.stop(t)
}
