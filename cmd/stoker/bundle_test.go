package main

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A bundle has everything that a bug report needs and nothing that was planted as a secret, wherever it was.
func TestTheBundleHasNoSecrets(t *testing.T) {
	dir := t.TempDir()
	secrets := []string{"pl4nted-password", "pl4nted-token-of-the-page", "pl4nted-header", "pl4nted-bearer", "pl4nted-userinfo", "pl4nted-label", "pl4nted-log", "pl4nted-basic"}
	write := func(name, text string, mode os.FileMode) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	for path, answer := range map[string]string{
		"/healthz":           `{"status": "failing", "version": "1.2.3", "parts": [{"name": "store", "state": "failing", "message": "pl4nted-password is in an error", "remedy": "x"}]}`,
		"/metrics":           "stoker_build_info 1\n",
		"/api/v1/sources":    `[]`,
		"/api/v1/containers": `[{"id": "c1", "name": "web", "labels": {"com.example.secret": "pl4nted-label"}}]`,
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			if path == "/healthz" {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			fmt.Fprint(w, answer)
		})
	}
	s := &http.Server{Handler: mux}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	write("journalctl", `#!/bin/sh
echo 'level=WARN msg=x url=http://someone:pl4nted-userinfo@pyroscope.example.net/push authorization="Bearer pl4nted-bearer"'
echo 'PASSWORD=pl4nted-log "Authorization: Basic pl4nted-basic" pl4nted-header pl4nted-token-of-the-page'
`, 0o755)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	config := write("stoker.yaml", fmt.Sprintf(`socket: %s
store: {path: %s}
web: {listen: "off", token_file: %s}
pyroscope:
  url: http://127.0.0.1:1
  basic_auth: {username: u, password_file: %s}
  headers: {X-Key: pl4nted-header}
`, socket, filepath.Join(dir, "profiles.db"), write("token", "pl4nted-token-of-the-page\n", 0o600), write("password", "pl4nted-password\n", 0o600)), 0o600)
	var out, errs strings.Builder
	a := &app{stdout: &out, stderr: &errs, version: "1.2.3"}
	bundle := filepath.Join(dir, "b.tar.gz")
	code := a.execute(t.Context(), []string{"doctor", "--config", config, "--bundle", bundle})
	if code != exitMachine || !strings.Contains(errs.String(), "wrote "+bundle) { // the store of that agent fails
		t.Fatalf("exit code %d: %s%s", code, errs.String(), out.String())
	}
	if st, err := os.Stat(bundle); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the bundle is %v, %v: for its owner alone", st.Mode(), err)
	}
	parts := readBundle(t, bundle)
	for _, name := range []string{"doctor.json", "version.json", "config.json", "containers.json", "sources.json", "health.json", "metrics.txt", "log.txt", "kernel/version.txt", "kernel/status.txt"} {
		if _, ok := parts["stoker/"+name]; !ok {
			t.Errorf("the bundle has no %s", name)
		}
	}
	for name, text := range parts {
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s tells %s: %s", name, secret, text)
			}
		}
		if strings.HasSuffix(name, ".json") && !json.Valid([]byte(text)) {
			t.Errorf("%s is no JSON any more: %s", name, text)
		}
	}
	for name, want := range map[string]string{"config.json": "password_file", "containers.json": "com.example.secret", "log.txt": "pyroscope.example.net", "metrics.txt": "stoker_build_info", "doctor.json": "pyroscope"} {
		if !strings.Contains(parts["stoker/"+name], want) {
			t.Errorf("%s does not say %s: %s", name, want, parts["stoker/"+name])
		}
	}
	// What is there is not overwritten, and other names are refused.
	if code := a.execute(t.Context(), []string{"doctor", "--config", config, "--bundle", bundle}); code != exitFailed {
		t.Errorf("an existing file: exit code %d", code)
	}
	if code := a.execute(t.Context(), []string{"doctor", "--config", config, "--bundle", "b.zip"}); code != exitUsage {
		t.Errorf("another format: exit code %d", code)
	}
}

func readBundle(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return parts
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		parts[h.Name] = string(text)
	}
}

// Mistakes in the configuration, and secrets that are not there, are findings: doctor is for those who have trouble.
func TestDoctorGoesOnWithoutAConfiguration(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]string{
		"samplign: {}\n": "stoker config check",
		"pyroscope: {url: http://127.0.0.1:1, bearer_token_file: " + dir + "/none}\n": "bearer_token_file",
	} {
		path := filepath.Join(dir, "stoker.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var out, errs strings.Builder
		a := &app{stdout: &out, stderr: &errs, version: "1.2.3"}
		if code := a.execute(t.Context(), []string{"doctor", "--config", path}); code != exitMachine || !strings.Contains(out.String(), want) || !strings.Contains(out.String(), "kernel") {
			t.Errorf("%q: exit code %d: %s%s", text, code, errs.String(), out.String())
		}
	}
}
