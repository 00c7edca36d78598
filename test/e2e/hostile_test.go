//go:build root

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/test/workload"
)

// manner is how a server behaves that is no engine.
type manner struct {
	name  string
	serve func(net.Conn)
}

// manners of servers that sit where an engine's socket is expected. Each connection is served on a goroutine of its own until the
// other side goes away or the listener is closed.
func manners() []manner {
	answer := func(body func(io.Writer) error) func(net.Conn) {
		return func(c net.Conn) {
			// Whatever is asked. A gRPC client sees no settings frame in this, a client of HTTP an answer.
			buf := make([]byte, 4096)
			if _, err := c.Read(buf); err != nil {
				return
			}
			if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Type: application/json\r\n\r\n"); err != nil {
				return
			}
			body(c) //nolint:errcheck // the client hung up: that is what it should do
		}
	}
	return []manner{
		{"garbage", func(c net.Conn) { c.Write(bytes.Repeat([]byte("\x00\xff garbage \x1b[2J"), 1<<12)) }},
		{"silent", func(c net.Conn) { io.Copy(io.Discard, c) }},
		{"flood", answer(func(w io.Writer) error { // 100 MB that never become a container
			if _, err := io.WriteString(w, `[{"Id":"`); err != nil {
				return err
			}
			chunk := bytes.Repeat([]byte("a"), 1<<20)
			for range 100 {
				if _, err := w.Write(chunk); err != nil {
					return err
				}
			}
			return nil
		})},
		{"drip", answer(func(w io.Writer) error { // a byte now and then, for ever
			for {
				if _, err := w.Write([]byte("[")); err != nil {
					return err
				}
				time.Sleep(50 * time.Millisecond)
			}
		})},
		{"many", answer(func(w io.Writer) error { // containers without end, with names that do things to a terminal
			label := strings.Repeat("x", 64<<10)
			if _, err := io.WriteString(w, "["); err != nil {
				return err
			}
			for i := range 1000 {
				_, err := fmt.Fprintf(w, `{"Id":"%064x","Names":["/\u001b]0;owned\u0007%d"],"State":"running","Image":"i","Labels":{"a":%q,"stoker-e2e":"x"}},`, i, i, label)
				if err != nil {
					return err
				}
			}
			return nil
		})},
	}
}

// hostileSocket listens where an engine would.
func hostileSocket(t *testing.T, dir, name string, m manner) string {
	t.Helper()
	path := filepath.Join(dir, name+"-"+m.name+".sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); m.serve(c) }()
		}
	}()
	return path
}

// peakRSS is the largest resident memory that a process had, in bytes.
func peakRSS(t *testing.T, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("no VmHWM in\n%s", text)
	}
	n, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}

// Beside a containerd that works, every other socket is served by something that means harm. The containers of the one that works
// are profiled as if the others were not there; what the others say costs bounded memory and a line of the log now and then.
func TestHostileSockets(t *testing.T) {
	dir, err := os.MkdirTemp("", "stoker-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	sockets := map[string][]string{}
	for _, engine := range []string{"containerd", "docker", "crio", "podman"} {
		for _, m := range manners() {
			if engine == "podman" && m.name != "flood" { // one service of each user is asked
				continue
			}
			sockets[engine] = append(sockets[engine], hostileSocket(t, dir, engine, m))
		}
	}
	list := func(engine string, more ...string) string {
		return "[" + strings.Join(append(sockets[engine], more...), ", ") + "]"
	}
	a := startAgent(t, options{
		socket: list("containerd", run.daemon.socket()), docker: list("docker"),
		runtimes: fmt.Sprintf(", crio: {address: %s}, podman: {address: %s}", list("crio"), list("podman")),
	})
	before := time.Now()
	b := start(t, spec{args: []string{"/" + workload.Burn, "0", "4"}})
	a.inScope(t, b.id)
	t.Logf("in scope %s after it was asked for", time.Since(before).Round(time.Millisecond))
	time.Sleep(10 * time.Second) // the harm takes its time: floods, second attempts
	second := time.Now()
	c := start(t, spec{args: []string{"/" + workload.Burn, "0", "5"}})
	a.inScope(t, c.id)
	t.Logf("another one in scope %s after it was asked for", time.Since(second).Round(time.Millisecond))
	for n, x := range []*box{b, c} {
		profiles := a.stored(t, x.id, "profile with its labels", func(p sink.Profile) bool { return p.Total > 0 && p.Labels["container_runtime"] == "containerd" })
		pic := look(t, profiles)
		if own := fmt.Sprintf("unique_%d", 4+n); pic.share(pic.cum, own) < 90 {
			t.Errorf("%.1f %% of %s\n%s", pic.share(pic.cum, own), own, pic)
		}
	}

	out, errs, code := a.command(t, "ps", "--sources")
	if code != 0 {
		t.Fatalf("ps --sources: exit code %d: %s", code, errs)
	}
	for engine, paths := range sockets {
		for _, p := range paths {
			if !strings.Contains(out, filepath.Base(p)) {
				t.Errorf("ps says nothing of %s's socket %s", engine, filepath.Base(p))
			}
		}
	}
	all, errs, code := a.command(t, "ps", "--all")
	if code != 0 {
		t.Fatalf("ps --all: exit code %d: %s", code, errs)
	}
	if strings.ContainsAny(out+all+a.log.String(), "\x1b\x07") {
		t.Error("what a socket said reaches the terminal as it is")
	}
	if rss := peakRSS(t, a.cmd.Process.Pid); rss > 160<<20 {
		t.Errorf("the agent's memory grew to %d MB", rss>>20)
	} else {
		t.Logf("the agent's memory grew to %d MB", rss>>20)
	}
	for _, paths := range sockets {
		for _, p := range paths {
			n := 0
			for line := range strings.Lines(a.log.String()) {
				if strings.Contains(line, p) && !strings.Contains(line, "level=DEBUG") {
					n++
				}
			}
			if n == 0 || n > 3 { // one for each kind of trouble: it does not answer, is no engine, breaks off
				t.Errorf("%s: %d lines in the log", filepath.Base(p), n)
			}
		}
	}
	if resp, err := http.Get("http://" + a.listen + "/healthz"); err != nil {
		t.Error(err)
	} else {
		resp.Body.Close()
	}
	b.kill(t)
	c.kill(t)
	a.stop(t)
	if t.Failed() {
		t.Logf("ps --sources:\n%s", out)
	}
}
