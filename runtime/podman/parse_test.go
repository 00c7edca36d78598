package podman

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var (
	idA = strings.Repeat("a1", 32)
	idB = strings.Repeat("b2", 32)
)

// cmdline is a conmon's, as Podman 4.3 writes it.
func cmdline(id, name string, more ...string) []byte {
	args := []string{"/usr/bin/conmon", "--api-version", "1", "-c", id, "-u", id, "-r", "/usr/bin/crun", "-b", "/lib/overlay-containers/" + id + "/userdata",
		"-p", "/run/x/pidfile", "-n", name, "--exit-dir", "/tmp/exits", "--full-attach", "-s", "-l", "journald", "--log-level", "warning",
		"--runtime-arg", "--log-format=json", "--runtime-arg", "--log", "--conmon-pidfile", "/run/x/conmon.pid", "--exit-command", "/usr/bin/podman"}
	for _, a := range []string{"--root", "/lib", "--runroot", "/run/x", "--tmpdir", "/tmp/libpod", "container", "cleanup", id} {
		args = append(args, "--exit-command-arg", a)
	}
	return []byte(strings.Join(append(args, more...), "\x00") + "\x00")
}

func TestConmonsCommandLine(t *testing.T) {
	c, ok := parseConmon(cmdline(idA, "web"))
	if want := (conmon{id: idA, name: "web", bundle: "/lib/overlay-containers/" + idA + "/userdata", runtime: "crun", runRoot: "/run/x", tmpDir: "/tmp/libpod"}); !ok || c != want {
		t.Errorf("got %+v, %t, want %+v", c, ok, want)
	}
	crio := []byte(strings.Join([]string{"conmon", "-b", "/run/containers/x", "-c", idA, "--exit-dir", "/var/run/crio/exits", "-n", "k8s_x", "-r", "/usr/bin/runc", "-u", idA, "-s"}, "\x00"))
	for name, line := range map[string][]byte{
		"podman exec":             cmdline(idA, "web", "-e", "--exec-attach"),
		"another session":         bytes.Replace(cmdline(idA, "web"), []byte("-u\x00"+idA), []byte("-u\x00"+idB), 1),
		"CRI-O":                   crio,
		"an id that is none":      cmdline("short", "web"),
		"another one's clean-up":  bytes.Replace(cmdline(idA, "web"), []byte("cleanup\x00--exit-command-arg\x00"+idA), []byte("cleanup\x00--exit-command-arg\x00"+idB), 1),
		"nothing":                 nil,
		"too long":                bytes.Repeat([]byte("x\x00"), maxCmdline),
		"an option without value": []byte("conmon\x00-c"),
	} {
		if c, ok := parseConmon(line); ok {
			t.Errorf("%s: %+v", name, c)
		}
	}
	if c, ok := parseConmon(bytes.Replace(cmdline(idA, strings.Repeat("n", maxName+1)), []byte("/tmp/libpod"), []byte("relative"), 1)); !ok || c.name != "" || c.tmpDir != "" {
		t.Errorf("got %+v, %t", c, ok)
	}
}

func TestStatAndStatus(t *testing.T) {
	parent, start, comm, err := parseStat([]byte("42 (a) b) S 7 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 999 1\n"))
	if err != nil || parent != 7 || start != 12345 || comm != "a) b" {
		t.Errorf("%d %d %q %v", parent, start, comm, err)
	}
	for _, bad := range []string{"", "1 (x", "1 (x) S 1", "1 (x) S y 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345", "1 (x) S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 z"} {
		if _, _, _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q is understood", bad)
		}
	}
	for text, want := range map[string]uint32{"Name:\tx\nUid:\t1000\t1000\t1000\t1000\nGid:\t1\n": 1000, "Uid:\t0\t0\t0\t0\n": 0} {
		if uid, ok := parseUID([]byte(text)); !ok || uid != want {
			t.Errorf("%q: %d, %t", text, uid, ok)
		}
	}
	for _, bad := range []string{"", "Uid:\t1000\t0\t0\t0\n", "Uid:\t1\n", "Uid:\tx\tx\tx\tx\n"} {
		if _, ok := parseUID([]byte(bad)); ok {
			t.Errorf("%q is a user", bad)
		}
	}
}

func TestNotesAreUnderstood(t *testing.T) {
	known, err := parseStorage([]byte(`[{"id":"` + idA + `","names":["web"],"metadata":"{\"image-name\":\"localhost/bb:1\",\"name\":\"web\"}","created":"2026-11-25T04:41:24Z"},
		{"id":"x"},{"id":"` + idB + `","metadata":"not JSON"}]`))
	if err != nil || len(known) != 2 || known[idA].name != "web" || known[idA].image != "localhost/bb:1" || known[idA].created.IsZero() || known[idB].name != "" {
		t.Errorf("%+v, %v", known, err)
	}
	s, err := parseSpec([]byte(`{"annotations":{"a":"b"},"process":{"env":["OTEL_SERVICE_NAME=x","PASSWORD=y"]},"linux":{"cgroupsPath":"/libpod_parent/x"}}`))
	if err != nil || s.annotations["a"] != "b" || len(s.env) != 1 || s.env["OTEL_SERVICE_NAME"] != "x" || s.cgroupsPath != "/libpod_parent/x" {
		t.Errorf("%+v, %v", s, err)
	}
	k := newKnown()
	for _, line := range []string{
		`{"ID":"` + idB + `","Name":"pod1","Status":"create","Time":"2026-11-25T04:41:24Z","Type":"pod","Attributes":null}`,
		`{"ID":"` + idA + `","Image":"i","Name":"web","Status":"create","Time":"2026-11-25T04:41:25Z","Type":"container","PodID":"` + idB + `","Attributes":{"l":"v"}}`,
		`{"ID":"` + idA + `","Image":"i","Name":"web","Status":"start","Time":"2026-11-25T04:41:26Z","Type":"container","Attributes":{"l":"v"}}`,
	} {
		e, err := parseLogLine([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		k.take(e)
	}
	d := k.containers[idA]
	if d.name != "web" || d.image != "i" || d.labels["l"] != "v" || d.pod != idB || k.pods[idB] != "pod1" || d.started.Sub(d.created) != time.Second {
		t.Errorf("%+v", d)
	}
	e, err := parseJournalLine([]byte(`{"PODMAN_TYPE":"container","PODMAN_EVENT":"start","PODMAN_ID":"` + idA + `","PODMAN_NAME":"web","PODMAN_IMAGE":"i",
		"PODMAN_LABELS":"{\"l\":\"v\"}","PODMAN_TIME":"2026-11-25T04:41:26.5Z","_UID":"1000","MESSAGE":[1,2]}`))
	if err != nil || e.name != "web" || e.labels["l"] != "v" || e.status != "start" || e.at.IsZero() {
		t.Errorf("%+v, %v", e, err)
	}
	e, err = parseEvent([]byte(`{"status":"create","id":"` + idA + `","Type":"container","Action":"create","Actor":{"ID":"` + idA + `","Attributes":{
		"containerExitCode":"0","image":"i","name":"web","podId":"","l":"v"}},"timeNano":1795581714349902420}`))
	if err != nil || e.name != "web" || len(e.labels) != 1 || e.labels["l"] != "v" || e.at.IsZero() || e.status != "create" {
		t.Errorf("%+v, %v", e, err)
	}
	listed, err := parseList([]byte(`[{"Id":"` + idA + `","Names":["web"],"Image":"i","Labels":null,"Pod":"` + idB + `","PodName":"pod1","IsInfra":true},{"Id":"short"}]`))
	if err != nil || len(listed) != 1 || listed[idA].labels == nil || listed[idA].podName != "pod1" || !listed[idA].infra {
		t.Errorf("%+v, %v", listed, err)
	}
	for path, want := range map[string]string{
		"/libpod_parent/" + idB + "/libpod-" + idA:                                               idB,
		"/machine.slice/machine-libpod_pod_" + idB + ".slice/libpod-" + idA + ".scope/container": idB,
		"/libpod_parent/libpod-" + idA:                                                           "", "": "",
	} {
		if got := podOf(path); got != want {
			t.Errorf("%s: %q", path, got)
		}
	}
}

// A log is read on from where it was read to, also when it was rotated or the last line is not whole.
func TestTheLogOfEventsIsFollowed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "events", "events.log")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	n := newNotes(uint32(os.Getuid()))
	line := func(id, name string) string {
		return fmt.Sprintf(`{"ID":%q,"Name":%q,"Status":"start","Type":"container","Attributes":{"n":%q}}`+"\n", id, name, name)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	name := func(id string) string {
		d, _, err := n.logged(dir, id)
		if err != nil {
			t.Error(err)
		}
		return d.name
	}
	if _, ok, err := n.logged(dir, idA); ok || err != nil {
		t.Errorf("there is no log: %t, %v", ok, err)
	}
	whole := line(idA, "one")
	write(whole + line(idB, "two")[:20])
	if name(idA) != "one" || name(idB) != "" {
		t.Error("the first line")
	}
	write(whole + line(idB, "two"))
	if name(idB) != "two" {
		t.Error("the second line, whole by now")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	write(line(idB, "three"))
	if name(idB) != "three" || name(idA) != "one" {
		t.Error("a rotated log")
	}
	write(line(idB, "four") + "not JSON\n")
	if _, _, err := n.logged(dir, idB); err == nil {
		t.Error("what is not understood is not said")
	}
}

// A user's Podman names files; only that user's are read, and nothing is opened that is not a file.
func TestOnlyFilesOfTheUserAreRead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config.json")
	if err := os.WriteFile(path, []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	mine := newNotes(uint32(os.Getuid()))
	if _, err := mine.spec(&conmon{bundle: dir}); err != nil {
		t.Error(err)
	}
	if _, err := newNotes(uint32(os.Getuid()) + 1).spec(&conmon{bundle: dir}); err == nil || !strings.Contains(err.Error(), "belongs to user") {
		t.Errorf("another user's file: %v", err)
	}
	for name, target := range map[string]string{"device": "/dev/zero", "directory": dir} {
		bundle := filepath.Join(t.TempDir(), name)
		if err := os.Mkdir(bundle, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(bundle, "config.json")); err != nil {
			t.Fatal(err)
		}
		if _, err := mine.spec(&conmon{bundle: bundle}); err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.Truncate(path, maxSpec+1); err != nil {
		t.Fatal(err)
	}
	if _, err := mine.spec(&conmon{bundle: dir}); err == nil || !strings.Contains(err.Error(), "more than any") {
		t.Errorf("a file that is too large: %v", err)
	}
}

func TestAStreamOfEventsIsBounded(t *testing.T) {
	var said []logEvent
	bad := 0
	take := func(e logEvent) { said = append(said, e) }
	err := parseEvents(strings.NewReader("\n{\"Type\":\"container\"}\nnot JSON\n"), 1000, take, func(error) { bad++ })
	if !errors.Is(err, io.EOF) || len(said) != 1 || bad != 1 {
		t.Errorf("%v, %d events, %d bad", err, len(said), bad)
	}
	if err := parseEvents(strings.NewReader(strings.Repeat("x", 2000)), 1000, take, func(error) {}); !errors.Is(err, errTooLong) {
		t.Errorf("%v", err)
	}
}

func FuzzConmon(f *testing.F) {
	f.Add(cmdline(idA, "web"))
	f.Add(cmdline(idA, "web", "-e"))
	f.Add([]byte("conmon\x00-c"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, ok := parseConmon(b)
		if ok && (!validID(c.id) || len(c.name) > maxName || c.bundle != "" && !filepath.IsAbs(c.bundle)) {
			t.Errorf("%+v", c)
		}
		_, _, _, _ = parseStat(b)
		_, _ = parseUID(b)
	})
}

func FuzzNotes(f *testing.F) {
	f.Add([]byte(`[{"id":"` + idA + `","names":["web"],"metadata":"{}"}]`))
	f.Add([]byte(`{"ID":"` + idA + `","Status":"start","Type":"container","Attributes":{"l":"v"}}`))
	f.Add([]byte(`{"PODMAN_TYPE":"container","PODMAN_LABELS":"{}","PODMAN_ID":["x"]}`))
	f.Add([]byte(`{"annotations":{"a":"b"},"process":{"env":["OTEL_SERVICE_NAME"]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if known, err := parseStorage(b); err == nil {
			for id := range known {
				if !validID(id) {
					t.Errorf("id %q", id)
				}
			}
		}
		k := newKnown()
		if e, err := parseLogLine(b); err == nil {
			k.take(e)
		}
		if e, err := parseJournalLine(b); err == nil {
			k.take(e)
		}
		for id := range k.containers {
			if !validID(id) {
				t.Errorf("id %q", id)
			}
		}
		_, _ = parseSpec(b)
	})
}

func FuzzAPI(f *testing.F) {
	f.Add([]byte(`[{"Id":"` + idA + `","Names":["web"],"Labels":{"a":"b"}}]`))
	f.Add([]byte(`{"Type":"container","Action":"start","Actor":{"ID":"` + idA + `","Attributes":{"name":"x"}},"timeNano":1}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if known, err := parseList(b); err == nil {
			for id, d := range known {
				if !validID(id) || d.labels == nil {
					t.Errorf("%q: %+v", id, d)
				}
			}
		}
		_ = parseEvents(bytes.NewReader(b), 4096, func(e logEvent) {
			if e.labels == nil {
				t.Error("an event has its labels, or none")
			}
		}, func(error) {})
	})
}
