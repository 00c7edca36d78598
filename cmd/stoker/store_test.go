package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/sink/pprof"
	"github.com/stoker-profiler/stoker/sink/store"
)

// filledStore writes two windows of two containers that ended a minute ago and returns the path.
func filledStore(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "profiles.db")
	db, err := store.Open(store.Config{Path: path, Sinks: []string{"pyroscope.example.net"}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for window := range 2 {
		var profiles []sink.Profile
		for i, service := range []string{"shop/web", "shop/db"} {
			p := testProfile("leaf_of_"+service, "main")
			end := time.Now().Add(time.Duration(window-7) * 10 * time.Second)
			start := end.Add(-10 * time.Second)
			p.TimeNanos, p.DurationNanos = start.UnixNano(), int64(end.Sub(start))
			gz, err := pprof.Encode(p)
			if err != nil {
				t.Fatal(err)
			}
			profiles = append(profiles, sink.Profile{
				Type: sink.CPU, Labels: sink.Labels{"service_name": service, "container_name": fmt.Sprint("c", i)}, ContainerID: fmt.Sprint("id", i),
				Start: start, End: end, Pprof: gz, Total: 3e7, Samples: 1,
			})
		}
		if err := db.Write(context.Background(), profiles); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func execSQL(t *testing.T, path string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func storeApp(t *testing.T, path string) (a *app, stdout, stderr *bytes.Buffer) {
	t.Helper()
	return testApp(t, nil, "STOKER_STORE_PATH="+path)
}

// TestQuery: what is selected is added up, in every form of asking for it; query and store export are one.
func TestQuery(t *testing.T) {
	path := filledStore(t)
	for _, c := range []struct {
		args string
		code int
		says string // on standard output if the code is 0
	}{
		{"query -o FILE", 0, "main;leaf_of_shop/web 60000000"},
		{"store export -o FILE", 0, "main;leaf_of_shop/db 60000000"},
		{"query -l service_name=shop/web -o FILE", 0, "main;leaf_of_shop/web 60000000"},
		{"query -l service_name=~shop/.* -l container_name!=c1 -o FILE", 0, "main;leaf_of_shop/web 60000000"},
		{"query --from -10m --to now -l service_name!~.*web -o FILE", 0, "main;leaf_of_shop/db 60000000"},
		{"query --type process_cpu:cpu:nanoseconds:cpu:nanoseconds -o FILE", 0, "60000000"},
		{"query", 0, "flat"},
		{"query --output json", 0, `"flat": 60000000`},
		{"query -l service_name=shop/other", 3, "the values of service_name in that time are shop/db, shop/web"},
		{"query --last 1s", 3, "the store has no profile at all of that time"},
		{"query --type memory", 3, "no profile"},
		{"query --from 2026-01-01 --to 2025-01-01", 2, "is not before"},
		{"query --to now", 2, "--to needs --from"},
		{"query -l service_name=~(", 2, "missing closing"},
	} {
		t.Run(c.args, func(t *testing.T) {
			a, stdout, stderr := storeApp(t, path)
			file := filepath.Join(t.TempDir(), "out.folded")
			code := a.execute(context.Background(), strings.Fields(strings.ReplaceAll(c.args, "FILE", file)))
			said := stderr.String()
			if c.code == 0 {
				said = stdout.String()
				if text, err := os.ReadFile(file); err == nil {
					said = string(text)
				}
			}
			if code != c.code || !strings.Contains(said, c.says) {
				t.Errorf("exit code %d, want %d; want %q in %s%s", code, c.code, c.says, said, stderr)
			}
			if strings.Contains(c.args, "container_name!=c1") && strings.Contains(said, "shop/db") {
				t.Errorf("the condition does not hold for %s", said)
			}
		})
	}
}

// TestQueryOfADamagedStore writes what can be read and fails all the same.
func TestQueryOfADamagedStore(t *testing.T) {
	path := filledStore(t)
	execSQL(t, path, "UPDATE profiles SET pprof = x'1f8b00' WHERE id = 1")
	a, stdout, stderr := storeApp(t, path)
	if code := a.execute(context.Background(), []string{"query", "-l", "service_name=shop/web"}); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	if !strings.Contains(stdout.String(), "30 ms") || !strings.Contains(stderr.String(), "not complete") {
		t.Errorf("printed %s, said %s", stdout, stderr)
	}
	a, stdout, stderr = storeApp(t, path)
	if code := a.execute(context.Background(), []string{"store", "check"}); code != exitFailed || !strings.Contains(stderr.String(), "profile 1") {
		t.Errorf("store check: exit code %d, printed %s, said %s", code, stdout, stderr)
	}
	a, stdout, _ = storeApp(t, path)
	if code := a.execute(context.Background(), []string{"store", "check", "--output", "json"}); code != exitFailed || !json.Valid(stdout.Bytes()) {
		t.Errorf("store check as JSON: exit code %d, printed %s", code, stdout)
	}
}

func TestStoreLs(t *testing.T) {
	path := filledStore(t)
	execSQL(t, path, "UPDATE deliveries SET state = 'refused', reason = 'too old' WHERE profile_id <= 2",
		"UPDATE deliveries SET state = 'uncertain', doubts = 1, reason = 'the answer was lost' WHERE profile_id = 3")
	a, stdout, stderr := storeApp(t, path)
	if code := a.execute(context.Background(), []string{"store", "ls"}); code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	for _, want := range []string{"4 profiles", "2 series", "shop/web", "c1", "60 ms", "pyroscope.example.net", "pending",
		"refused           2", "too old", "uncertain         1", "the answer was lost"} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	a, stdout, stderr = storeApp(t, path)
	if code := a.execute(context.Background(), []string{"store", "ls", "--output", "json", "-l", "service_name=shop/db"}); code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	var l storeList
	if err := json.Unmarshal(stdout.Bytes(), &l); err != nil || len(l.Series) != 1 || l.Series[0].Total != 6e7 || l.Profiles != 4 {
		t.Errorf("%v: %s", err, stdout)
	}
	a, stdout, stderr = storeApp(t, path)
	if code := a.execute(context.Background(), []string{"store", "check"}); code != 0 || !strings.HasPrefix(stdout.String(), "ok: ") {
		t.Errorf("store check: exit code %d: %s%s", code, stdout, stderr)
	}
}

// TestNoStore: each way of not having one gives a line that says what to do.
func TestNoStore(t *testing.T) {
	dir := t.TempDir()
	foreign := filepath.Join(dir, "text.db")
	if err := os.WriteFile(foreign, []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, says string }{
		{filepath.Join(dir, "missing.db"), "start the agent with `stoker run`"},
		{foreign, "corrupt"},
	} {
		for _, command := range []string{"query", "store ls", "store check"} {
			a, _, stderr := storeApp(t, c.path)
			if code := a.execute(context.Background(), strings.Fields(command)); code != exitFailed || !strings.Contains(stderr.String(), c.says) {
				t.Errorf("%s: exit code %d, said %s", command, code, stderr)
			}
		}
	}
}

// TestTimesAsPeopleWriteThem is the table of --from and --to.
func TestTimesAsPeopleWriteThem(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 30, 0, 0, time.UTC)
	for _, c := range []struct{ in, want string }{
		{"now", "2026-03-01T12:30:00Z"}, {"-90m", "2026-03-01T11:00:00Z"}, {"now-1d", "2026-02-28T12:30:00Z"},
		{"12:00", "2026-03-01T12:00:00Z"}, {"13:00", "2026-02-28T13:00:00Z"}, {"12:00:05", "2026-03-01T12:00:05Z"},
		{"2026-02-03", "2026-02-03T00:00:00Z"}, {"2026-02-03 04:05", "2026-02-03T04:05:00Z"}, {"2026-02-03T04:05:06+02:00", "2026-02-03T02:05:06Z"},
		{"yesterday", ""}, {"", ""}, {"-", ""}, {"now+1h", ""}, {"25:00", ""}, {"2026-02-30", ""},
	} {
		got, err := parseTime(c.in, now)
		if c.want == "" != (err != nil) || err == nil && got.UTC().Format(time.RFC3339) != c.want {
			t.Errorf("parseTime(%q) = %s, %v; want %q", c.in, got, err, c.want)
		}
	}
}
