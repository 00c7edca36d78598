package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestACheckThatHangsHoldsUpNothing(t *testing.T) {
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	rows := Run(t.Context(), []Check{
		{"a", "hangs", func(context.Context) []Finding { <-release; return nil }},
		{"b", "heeds", func(ctx context.Context) []Finding { <-ctx.Done(); return one(Degraded, "waited", "x") }},
		{"c", "works", func(context.Context) []Finding { return one(OK, "fine", "") }},
		{"d", "has nothing to say", func(context.Context) []Finding { return nil }},
		{"e", "several", func(context.Context) []Finding { return []Finding{{"one", OK, "1", ""}, {"", Broken, "2", "y"}} }},
	}, 50*time.Millisecond)
	var got []string
	for _, r := range rows {
		got = append(got, fmt.Sprintf("%s %s %s %s", r.Area, r.Check, r.State, r.Detail))
	}
	want := "a hangs degraded no answer within 50ms|b heeds degraded waited|c works ok fine|e one ok 1|e several broken 2"
	if strings.Join(got, "|") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, "|"), want)
	}
	if Worst(rows) != Broken || Worst(rows[:3]) != Degraded || Worst(rows[2:3]) != OK {
		t.Error("the worst is not the worst")
	}
}

func findings(t *testing.T, c Check) string {
	t.Helper()
	var b strings.Builder
	for _, r := range Run(t.Context(), []Check{c}, time.Second) {
		if r.State != OK && r.Remedy == "" {
			t.Errorf("%s is %s without a remedy", r.Detail, r.State)
		}
		fmt.Fprintf(&b, "%s %s: %s\n", r.Check, r.State, r.Detail)
	}
	return b.String()
}

func TestEngines(t *testing.T) {
	dir := t.TempDir()
	serve := func(name string, h http.HandlerFunc) string {
		path := filepath.Join(dir, name)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: h}
		go s.Serve(l)
		t.Cleanup(func() { s.Close() })
		return path
	}
	dead := filepath.Join(dir, "dead.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	good := serve("good.sock", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"Version": "29.0.1"}`) })
	for _, c := range []struct {
		e    Engine
		want string
	}{
		{Engine{"docker", filepath.Join(dir, "none"), false, DockerVersion}, ""},
		{Engine{"docker", filepath.Join(dir, "none"), true, DockerVersion}, "broken: the configuration names it"},
		{Engine{"docker", dead, false, DockerVersion}, "degraded: nobody listens"},
		{Engine{"docker", good, false, DockerVersion}, "ok: version 29.0.1"},
		{Engine{"nri", good, false, nil}, "ok: takes connections"},
		{Engine{"docker", serve("page.sock", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "<html>") }), true, DockerVersion}, "degraded: takes connections and does not answer as an engine"},
		{Engine{"docker", serve("silent.sock", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), true, DockerVersion}, "degraded"},
		{Engine{"docker", serve("long.sock", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"Version": %q}`, strings.Repeat("x", 1<<12))
		}), true, DockerVersion}, "degraded"},
		{Engine{"containerd", good, true, func(context.Context, string) (string, error) { return "2.4.2", nil }}, "ok: version 2.4.2"},
	} {
		got := findings(t, Engines([]Engine{c.e}, false)[0])
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s %s: %q, want %q", c.e.Name, c.e.Socket, got, c.want)
		}
	}
}

type server struct{ err error }

func (server) Name() string                  { return "far" }
func (s server) Probe(context.Context) error { return s.err }

func TestServerStoreAndWeb(t *testing.T) {
	if got := findings(t, Server(server{})); got != "far ok: takes pushes\n" {
		t.Error(got)
	}
	rows := Run(t.Context(), []Check{Server(server{errors.New("HTTP 401: unauthorized: check pyroscope.basic_auth")})}, time.Second)
	if len(rows) != 1 || rows[0].State != Degraded || rows[0].Remedy != "check pyroscope.basic_auth" || !strings.Contains(rows[0].Detail, "401") {
		t.Errorf("%+v", rows)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "not/yet/profiles.db")
	if got := findings(t, Store(path, 1<<20, 0, false)); !strings.Contains(got, "ok: 0 MiB of at most 1") {
		t.Error(got)
	}
	if got := findings(t, Store(path, 1<<20, 1.1, false)); !strings.Contains(got, "degraded") || !strings.Contains(got, "min_free") {
		t.Error(got)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := findings(t, Store(filepath.Join(file, "profiles.db"), 1<<20, 0, false)); !strings.Contains(got, "broken") {
		t.Error(got)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got := findings(t, Listen(l.Addr().String(), false)); !strings.Contains(got, "broken") {
		t.Error(got)
	}
	if got := findings(t, Listen(l.Addr().String(), true)); !strings.Contains(got, "ok: the agent's") {
		t.Error(got)
	}
}

func TestMachine(t *testing.T) {
	proc, sys := t.TempDir(), t.TempDir()
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	freezes := func(release string) bool { return strings.HasPrefix(release, "6.1.25") }
	for release, want := range map[string]string{"6.12.1-amd64": "ok: Linux 6.12.1", "5.10.0": "broken: Linux 5.10.0; tested from", "6.1.25-x": "degraded: Linux 6.1.25-x may freeze", "odd": "ok"} {
		write(filepath.Join(proc, "sys/kernel/osrelease"), release+"\n")
		if got := findings(t, Machine("self", proc, sys, freezes, false)[0]); !strings.Contains(got, want) {
			t.Errorf("%s: %q", release, got)
		}
	}
	if got := findings(t, Machine("self", proc, sys, freezes, false)[1]); !strings.Contains(got, "broken: the kernel does not describe its types") {
		t.Error(got)
	}
	if got := findings(t, Machine("self", proc, sys, freezes, false)[5]); got != "" {
		t.Error(got)
	}
	write(filepath.Join(sys, "kernel/security/lockdown"), "none integrity [confidentiality]\n")
	if got := findings(t, Machine("self", proc, sys, freezes, false)[5]); !strings.Contains(got, "broken") {
		t.Error(got)
	}
	for _, c := range Machine("self", "/proc", "/sys", freezes, false) { // whatever this machine is, each says something that can be read
		findings(t, c)
	}
	if got := findings(t, Machine("0", "/proc", "/sys", freezes, false)[7]); !strings.Contains(got, "degraded") {
		t.Error(got)
	}
}
