package config

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares got with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; run with -update and look at the difference\n got:\n%s\nwant:\n%s", path, got, want)
	}
}

// TestFullFileIsRead reads a file with every key and checks the ones that are easy to get wrong.
func TestFullFileIsRead(t *testing.T) {
	data, err := os.ReadFile("testdata/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse("full.yaml", data)
	if err != nil {
		t.Fatal(err)
	}
	for _, check := range []struct {
		what      string
		got, want any
	}{
		{"window", c.Sampling.Window, 5 * time.Second},
		{"max_size", c.Store.MaxSize, Bytes(512 << 20)},
		{"max_age", c.Store.MaxAge, 3 * 24 * time.Hour},
		{"min_free", c.Store.MinFree, Percent(0.025)},
		{"targets", c.Targets, []Rule{{Exclude: true, Image: "*/pause:*"}, {Runtime: "docker", Label: map[string]string{"team": "payments"}}}},
		{"endpoints", len(c.Pyroscope), 3},
		{"name from the URL", c.Pyroscope[0].Name, "pyroscope.example.net/push"},
		{"default of an endpoint", c.Pyroscope[0].RemoteTimeout, 30 * time.Second},
		{"authorization", c.Pyroscope[2].Authorization, Authorization{"Token", "/etc/stoker/token"}},
		{"relabel action", string(c.Relabel[1].Action), "labeldrop"},
		{"relabel default", c.Relabel[0].Replacement, "$1"},
		{"alias", c.Pyroscope[1].TLS.CAFile, "/etc/stoker/ca.pem"},
		{"one address", c.Runtimes.Containerd.Address, []string{"/run/containerd/containerd.sock"}},
		{"two addresses", c.Runtimes.Docker.Address, []string{"/var/run/docker.sock", "/run/two.sock"}},
		{"allow", c.ContainerLabels.Allow, []string{"enable"}},
	} {
		if !reflect.DeepEqual(check.got, check.want) {
			t.Errorf("%s = %v, want %v", check.what, check.got, check.want)
		}
	}
	// Every key of the schema is in that file, so that a new key cannot be forgotten here.
	l, err := Load(Options{File: "testdata/full.yaml"})
	if err != nil {
		t.Fatal(err)
	}
	set := map[string]bool{}
	for path := range l.origins {
		set[schemaPath(path)] = true
	}
	for _, k := range Keys() {
		if !set[k.Path] {
			t.Errorf("testdata/full.yaml does not set %s", k.Path)
		}
	}
}

// TestMistakesAreReportedAtOnce holds the messages for every kind of mistake; each *.yaml in testdata/bad has its text
// beside it.
func TestMistakesAreReportedAtOnce(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Parse("stoker.yaml", data)
			if err == nil {
				t.Fatal("no error")
			}
			golden(t, filepath.Join("bad", strings.TrimSuffix(filepath.Base(file), ".yaml")+".txt"), err.Error()+"\n")
		})
	}
}

func TestEmptyFilesAreTheDefault(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing\n", "---\n", "null\n", "store:\n", "store: {}\npyroscope:\n"} {
		c, err := Parse("stoker.yaml", []byte(text))
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if !reflect.DeepEqual(c, Default()) {
			t.Errorf("%q: got %+v", text, c)
		}
	}
}

func TestDefaultIsValid(t *testing.T) {
	c := Default()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
}

// TestPrecedence: flag over environment over file over default, and each value knows its origin.
func TestPrecedence(t *testing.T) {
	file := filepath.Join(t.TempDir(), "stoker.yaml")
	if err := os.WriteFile(file, []byte("sampling:\n  frequency: 50\n  window: 20s\nstore: {path: /srv/a.db}\npyroscope: {url: 'http://a'}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := Load(Options{
		File: file,
		Environ: []string{
			"STOKER_SAMPLING_WINDOW=30s", "STOKER_STORE_PATH=/srv/b.db", "STOKER_PYROSCOPE_TENANT_ID=edge", "STOKER_LABELS=site=fra1, rack=7",
			"STOKER_WEB_LISTEN=", "STOKER_CONFIG=x", "STOKER_SERVICE_HOST=10.0.0.1", "PATH=/bin",
		},
		Flags: map[string]string{"store-path": "/srv/c.db", "runtimes-containerd-address": "/a,/b", "pyroscope-tls-insecure-skip-verify": "false"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, check := range []struct{ key, value, origin string }{
		{"sampling.frequency", "50", file + ":2:14"},
		{"sampling.window", "30s", "STOKER_SAMPLING_WINDOW"},
		{"store.path", "/srv/c.db", "--store-path"},
		{"store.max_age", "72h", "default"},
		{"pyroscope.url", "http://a", file + ":5:18"},
		{"pyroscope.tenant_id", "edge", "STOKER_PYROSCOPE_TENANT_ID"},
		{"pyroscope.remote_timeout", "30s", "default"},
		{"labels", "{rack: \"7\", site: fra1}", "STOKER_LABELS"},
		{"web.listen", "127.0.0.1:4041", "default"},
		{"runtimes.containerd.address", "[/a, /b]", "--runtimes-containerd-address"},
	} {
		found := false
		for _, v := range l.Values() {
			if v.Key != check.key {
				continue
			}
			found = true
			if v.Value != check.value || v.Origin.String() != check.origin {
				t.Errorf("%s = %q from %q, want %q from %q", v.Key, v.Value, v.Origin, check.value, check.origin)
			}
		}
		if !found {
			t.Errorf("%s is not shown", check.key)
		}
	}
	if len(l.Warnings) != 1 || !strings.Contains(l.Warnings[0], "STOKER_SERVICE_HOST") {
		t.Errorf("warnings = %q, want one about STOKER_SERVICE_HOST", l.Warnings)
	}
}

// TestMistakesNameTheirPlace: a wrong value from the environment or a flag says which.
func TestMistakesNameTheirPlace(t *testing.T) {
	_, err := Load(Options{
		Environ: []string{"STOKER_STORE_MAX_SIZE=lots", "STOKER_LOG_LEVEL=inf"},
		Flags:   map[string]string{"sampling-frequency": "0", "pyroscope-tenant-id": "a|b"},
	})
	want := strings.Join([]string{
		`STOKER_STORE_MAX_SIZE: store.max_size: "lots" is not a size; write it like 256MiB or 2GiB`,
		`--sampling-frequency: sampling.frequency: 0 is out of range; choose 1 to 10000 samples per second (97 is a good start)`,
		`pyroscope.url: missing; write the base URL of the server, like https://pyroscope.example.net`,
		`--pyroscope-tenant-id: pyroscope.tenant_id: "a|b" is no tenant that Pyroscope takes; at most 150 of letters, digits and !_.*'()-`,
		`STOKER_LOG_LEVEL: log.level: "inf" is not one of debug, info, warn, error; did you mean "info"?`,
	}, "\n")
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func TestFilesThatCannotBeRead(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing.yaml")
	if _, err := Load(Options{File: missing}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that must exist: %v", err)
	}
	if l, err := Load(Options{File: missing, Optional: true}); err != nil || l.File != "" {
		t.Errorf("an optional file: %v", err)
	}
	large := filepath.Join(t.TempDir(), "large.yaml")
	if err := os.WriteFile(large, make([]byte, maxFileBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(Options{File: large}); err == nil || !strings.Contains(err.Error(), "larger than 1MiB") {
		t.Errorf("a large file: %v", err)
	}
}

// TestSecretsAreNotShown: nothing prints a header's value, neither show nor a comparison nor a mistake.
func TestSecretsAreNotShown(t *testing.T) {
	const text = "pyroscope: {url: 'https://u:hunter2@h', headers: {X-Key: 'hunter2', 'X-Bad\\n': hunter2}, basic_auth: {password: hunter2}}"
	_, err := Parse("stoker.yaml", []byte(text))
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the mistakes tell the secret, or there are none: %v", err)
	}
	before, err := Parse("a", []byte("pyroscope: {url: 'https://h', headers: {X-Key: hunter1}}"))
	if err != nil {
		t.Fatal(err)
	}
	after, err := Parse("b", []byte("pyroscope: {url: 'https://h', headers: {X-Key: hunter2}}"))
	if err != nil {
		t.Fatal(err)
	}
	changes := fmt.Sprint(Diff(before, after))
	if strings.Contains(changes, "hunter") || !strings.Contains(changes, "X-Key: <hidden>") {
		t.Errorf("Diff = %s", changes)
	}
}

// TestDiffSaysWhatNeedsARestart is the text behind SIGHUP.
func TestDiffSaysWhatNeedsARestart(t *testing.T) {
	parse := func(text string) Config {
		t.Helper()
		c, err := Parse("stoker.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	before := parse("sampling: {frequency: 97}\nlog: {level: info}\nlabels: {a: b}\npyroscope: {url: 'http://a'}")
	after := parse("sampling: {frequency: 99}\nlog: {level: debug}\ntargets: [{name: web}]\npyroscope: [{url: 'http://a'}, {url: 'http://b'}]")
	var got strings.Builder
	for _, c := range Diff(before, after) {
		fmt.Fprintf(&got, "%s: %q → %q live=%t\n", c.Key, c.Old, c.New, c.Live)
	}
	golden(t, "diff.txt", got.String())
	merged := before
	merged.TakeLive(after)
	for _, c := range Diff(before, merged) {
		if !c.Live {
			t.Errorf("TakeLive took %s", c.Key)
		}
	}
	for _, c := range Diff(merged, after) {
		if c.Live {
			t.Errorf("TakeLive left %s", c.Key)
		}
	}
	if d := Diff(before, before); d != nil {
		t.Errorf("a configuration differs from itself: %v", d)
	}
}

// TestEveryKeyCanBeSetInEachWay: the names are unique and the help says something.
func TestEveryKeyCanBeSetInEachWay(t *testing.T) {
	seen := map[string]bool{}
	var list strings.Builder
	for _, k := range Keys() {
		if k.Help == "" || seen[k.Path] || k.Env != "" && seen[k.Env] {
			t.Errorf("%s: no help text, or there twice", k.Path)
		}
		seen[k.Path], seen[k.Env] = true, true
		if (k.Env == "") != (k.Form == "groups") {
			t.Errorf("%s: env %q, form %q", k.Path, k.Env, k.Form)
		}
		fmt.Fprintf(&list, "%-36s %-42s --%-40s %-12s live=%t\n", k.Path, k.Env, k.Flag, k.Form, k.Live)
	}
	golden(t, "keys.txt", list.String())
}

func TestUnits(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"256MiB", "256MiB"}, {"1024 KiB", "1MiB"}, {"0", "0B"}, {"1000", "1000B"}, {"2GB", "1953125KiB"}, {"1TiB", "1TiB"},
		{"-1", ""}, {"MiB", ""}, {"1.5GiB", ""}, {"9999999TiB", ""}, {"", ""},
	} {
		if b, err := ParseBytes(c.in); (err == nil) != (c.want != "") || err == nil && b.String() != c.want {
			t.Errorf("ParseBytes(%q) = %s, %v; want %q", c.in, b, err, c.want)
		}
	}
	for _, c := range []struct{ in, want string }{
		{"10s", "10s"}, {"72h", "72h"}, {"3d", "72h"}, {"1w2d", "216h"}, {"1d12h", "36h"}, {"90m", "1h30m"}, {"1500ms", "1.5s"}, {"0s", "0s"},
		{"10", ""}, {"-5s", ""}, {"d", ""}, {"-1d", ""}, {"1d-5h", ""}, {"999999999w", ""}, {"", ""}, {"1d1w", ""},
	} {
		if d, err := ParseDuration(c.in); (err == nil) != (c.want != "") || err == nil && FormatDuration(d) != c.want {
			t.Errorf("ParseDuration(%q) = %s, %v; want %q", c.in, d, err, c.want)
		}
	}
	for _, c := range []struct{ in, want string }{
		{"5%", "5%"}, {"2.5 %", "2.5%"}, {"0%", "0%"}, {"100%", "100%"}, {"5", ""}, {"-1%", ""}, {"101%", ""}, {"NaN%", ""}, {"%", ""},
	} {
		if p, err := ParsePercent(c.in); (err == nil) != (c.want != "") || err == nil && p.String() != c.want {
			t.Errorf("ParsePercent(%q) = %s, %v; want %q", c.in, p, err, c.want)
		}
	}
}

// FuzzParse: no text makes it crash, hang or accept what does not validate; what it accepts can be shown and compared.
func FuzzParse(f *testing.F) {
	seeds, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	bad, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range append(seeds, bad...) {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("a: &a [*a, *a]"))
	f.Add([]byte("targets: &t [{label: {a: b}}, *t]"))
	f.Add([]byte("relabel_configs: [{regex: '(', action: x}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f", data)
		if err != nil {
			if len(err.(Problems)) == 0 {
				t.Error("an error without problems")
			}
			return
		}
		if err := c.Validate(); err != nil {
			t.Errorf("accepted, but not valid: %v", err)
		}
		if d := Diff(c, c); d != nil {
			t.Errorf("differs from itself: %v", d)
		}
	})
}

// TestReferenceIsCurrent compares the table of keys in the manual with the program's.
func TestReferenceIsCurrent(t *testing.T) {
	const path = "../../../docs/configuration.md"
	defaults := map[string]string{}
	one := Default()
	one.Pyroscope = []Endpoint{DefaultEndpoint()}
	for _, v := range flatten(one) {
		defaults[v.Key] = v.Value
	}
	var table strings.Builder
	table.WriteString("| key | default | what it does |\n|---|---|---|\n")
	cell := strings.NewReplacer("|", "\\|", "*", "\\*", "__", "\\_\\_").Replace
	for _, k := range Keys() {
		value := "-"
		if d := defaults[k.Path]; d != "" && d != "[]" && d != "{}" {
			value = "`" + d + "`"
		}
		help := cell(k.Help)
		if k.Live {
			help += " **live**"
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s (%s) |\n", k.Path, value, help, cell(k.Form))
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(file), "<!-- keys: ")
	note, rest, ok2 := strings.Cut(rest, "\n")
	_, after, ok3 := strings.Cut(rest, "<!-- /keys -->")
	if !ok || !ok2 || !ok3 {
		t.Fatalf("%s has no place for the table of keys", path)
	}
	want := before + "<!-- keys: " + note + "\n" + table.String() + "<!-- /keys -->" + after
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(file) != want {
		t.Errorf("%s does not have the program's keys; run with -update and look at the difference", path)
	}
}

// The example names every key, changes nothing as it is, and says what the defaults are where its lines are used.
func TestExampleIsTheDefaults(t *testing.T) {
	text := Example()
	if c, err := Parse("stoker.yaml", []byte(text)); err != nil || Diff(Default(), c) != nil {
		t.Errorf("as it is: %v, %v", err, Diff(Default(), c))
	}
	_, body, ok := strings.Cut(text, "\n\n")
	if !ok {
		t.Fatal(text)
	}
	var used strings.Builder
	for line := range strings.Lines(body) {
		used.WriteString(strings.TrimPrefix(line, "#"))
	}
	c, err := Parse("stoker.yaml", []byte(used.String()))
	if err != nil || Diff(Default(), c) != nil {
		t.Errorf("used: %v, %v\n%s", err, Diff(Default(), c), &used)
	}
	for _, k := range Keys() {
		last := k.Path[strings.LastIndexByte(k.Path, '.')+1:]
		if !regexp.MustCompile(`(?m)^[# -]* `+last+`:|^#`+last+`:`).MatchString(text) || !strings.Contains(strings.Join(strings.Fields(strings.ReplaceAll(text, "#", " ")), " "), k.Help) {
			t.Errorf("%s is not there\n%s", k.Path, text)
		}
	}
	// An entry of a list is written as the example has it.
	for _, list := range []string{"targets", "pyroscope"} {
		_, rest, _ := strings.Cut(text, "\n#"+list+": []\n")
		entry, _, _ := strings.Cut(rest, "\n\n")
		entry = list + ":\n" + regexp.MustCompile(`(?m)^##`).ReplaceAllString(entry, "")
		if c, err := Parse("stoker.yaml", []byte(strings.Replace(entry, `url: ""`, "url: http://h", 1))); err != nil || len(c.Targets)+len(c.Pyroscope) != 1 {
			t.Errorf("%v\n%s", err, entry)
		}
	}
}
