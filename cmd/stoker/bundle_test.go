package main

import (
	"archive/tar"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stoker-profiler/stoker/cmd/stoker/config"
	"github.com/stoker-profiler/stoker/cmd/stoker/doctor"
)

// The bundle has what is needed and none of the secrets that people plant in a configuration.
func TestTheBundleHasNoSecrets(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"password": "hunter2-file", "stoker.yaml": `
pyroscope:
  url: https://pyroscope.example.net/base
  headers: {X-Api-Key: hunter2-header}
  basic_auth: {username: u, password_file: ` + filepath.Join(dir, "password") + `}
symbols: {debuginfod: {urls: ["https://debug.example.net/"]}}
socket: ` + filepath.Join(dir, "none.sock") + `
`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := config.Load(config.Options{File: filepath.Join(dir, "stoker.yaml")})
	if err != nil {
		t.Fatal(err)
	}
	a := &app{stdout: io.Discard, stderr: io.Discard, version: "1.2.3"}
	path := filepath.Join(dir, "b.tar.gz")
	if err := a.writeBundle(t.Context(), path, l, []doctor.Row{{Area: "kernel", Check: "BTF", State: doctor.OK, Detail: "there"}}); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	all := ""
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		names, all = append(names, h.Name), all+string(text)
	}
	want := []string{"stoker/doctor.json", "stoker/version.json", "stoker/config.json", "stoker/containers.json.error", "stoker/sources.json.error", "stoker/metrics.txt.error"}
	if !slices.Equal(names, want) {
		t.Errorf("the bundle has %q, want %q", names, want)
	}
	if strings.Contains(all, "hunter2") {
		t.Errorf("a secret is in the bundle:\n%s", all)
	}
	for _, there := range []string{"pyroscope.example.net/base", "debug.example.net", "1.2.3", "X-Api-Key", "BTF"} {
		if !strings.Contains(all, there) {
			t.Errorf("%q is not in the bundle", there)
		}
	}
}
