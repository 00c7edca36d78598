package install

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const defaultSpec = `{"ociVersion":"1.2.0","process":{"args":["sh"],"rlimits":[{"type":"RLIMIT_NOFILE","hard":18446744073709551615}]},"hooks":{"createRuntime":[{"path":"/other"}],"poststop":[{"path":"/bye"}]}}`

// machineAt is a machine in a directory, with the real hook in its place. It belongs to whoever runs the test.
func machineAt(t *testing.T) Config {
	t.Helper()
	root := t.TempDir()
	c := Config{Root: root, Binary: Binary, Socket: "/run/stoker/hook.sock", owner: uint32(os.Geteuid()),
		ctr: func(context.Context) ([]byte, error) { return []byte(defaultSpec), nil }}
	put(t, c, Binary, "")
	build := exec.Command("go", "build", "-o", c.path(Binary), program)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the hook: %v\n%s", err, out)
	}
	for p := c.path(Binary); p != filepath.Dir(root); p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func put(t *testing.T, c Config, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(c.path(path)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.path(path), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, c Config, path string) string {
	t.Helper()
	b, err := os.ReadFile(c.path(path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// do makes a plan and follows it. It returns the paths that changed.
func do(t *testing.T, p Plan, err error) (changed []string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Apply(); err != nil {
		t.Fatal(err)
	}
	for _, ch := range p.Changes {
		changed = append(changed, ch.Path)
	}
	return changed
}

// tree is all files but the hook's program, to see that nothing else changes.
func tree(t *testing.T, c Config) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(c.Root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || strings.HasSuffix(path, "/stoker-hook") {
			return err
		}
		b, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, c.Root)] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestInstallAndUninstallForPodman(t *testing.T) {
	c := machineAt(t)
	json90 := "/usr/share/containers/oci/hooks.d/90-stoker.json"
	p, err := c.Install(t.Context(), Podman)
	if err != nil {
		t.Fatal(err)
	}
	if len(tree(t, c)) != 0 {
		t.Error("a plan has changed something")
	}
	if d := p.Changes[0].Diff(); !strings.HasPrefix(d, "--- /dev/null\n+++ "+json90+"\n@@ -0,0 +1,") || !strings.Contains(d, `+    "timeout": 2`) {
		t.Errorf("diff:\n%s", d)
	}
	do(t, p, nil)
	var f struct {
		Version string
		Hook    struct {
			Path    string
			Timeout int
		}
		When   map[string]any
		Stages []string
	}
	if err := json.Unmarshal([]byte(get(t, c, json90)), &f); err != nil || f.Version != "1.0.0" || f.Hook.Path != Binary || f.Hook.Timeout != 2 ||
		f.When["always"] != true || len(f.Stages) != 1 || f.Stages[0] != "createRuntime" {
		t.Errorf("got %+v, %v", f, err)
	}
	if info, err := os.Stat(c.path(json90)); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("rootless engines cannot read it: %v, %v", info.Mode(), err)
	}
	if s := c.Status(t.Context(), Podman); !s.Installed || !s.UpToDate || s.Err != "" || s.Binary != Binary || s.BinaryVersion == "" || s.BinaryErr != "" || s.SocketErr == "" {
		t.Errorf("status %+v", s)
	}
	if s := c.Status(t.Context(), CRIO); !s.Installed {
		t.Errorf("CRI-O reads the same directory: %+v", s)
	}
	p, err = c.Install(t.Context(), Podman)
	if changed := do(t, p, err); len(changed) != 0 {
		t.Errorf("installed again, changed %v", changed)
	}
	if err := c.RemoveBinary(t.Context()); err == nil || !strings.Contains(err.Error(), json90) {
		t.Errorf("the program was removed under the engine's feet: %v", err)
	}
	// Another socket: the file changes, and says so line by line.
	c.Socket = "/run/other.sock"
	if s := c.Status(t.Context(), Podman); s.UpToDate {
		t.Errorf("status %+v", s)
	}
	p, err = c.Install(t.Context(), Podman)
	if d := p.Changes[0].Diff(); err != nil || !strings.Contains(d, "\n-      \"GOMAXPROCS=1\"\n+      \"GOMAXPROCS=1\",\n+      \"STOKER_HOOK_SOCKET=/run/other.sock\"\n") {
		t.Errorf("%v, diff:\n%s", err, d)
	}
	do(t, p, err)
	for _, want := range []int{1, 0} {
		p, err = c.Uninstall(Podman)
		if changed := do(t, p, err); len(changed) != want {
			t.Errorf("uninstall changed %v", changed)
		}
	}
	if left := tree(t, c); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if err := c.RemoveBinary(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(c.path(Binary)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the program is still there: %v", err)
	}
}

func TestHooksDirectoriesAreThoseOfTheEnginesConfiguration(t *testing.T) {
	c := machineAt(t)
	put(t, c, "/usr/share/containers/containers.conf", "[engine]\nhooks_dir = [\"/vendor/hooks.d\"]\n")
	put(t, c, "/etc/containers/containers.conf.d/10-x.conf", "[engine]\nhooks_dir = [\"/missing/hooks.d\", \"/srv/hooks.d\"]\n")
	put(t, c, "/etc/containers/containers.conf.d/20-y.conf", "[engine]\nevents_logger = \"file\"\n")
	put(t, c, "/etc/crio/crio.conf.d/01.conf", "[crio.runtime]\nhooks_dir = [\"/crio/hooks.d\"]\n")
	put(t, c, "/srv/hooks.d/50-other.json", "{}")
	p, err := c.Install(t.Context(), Podman)
	if changed := do(t, p, err); len(changed) != 1 || changed[0] != "/srv/hooks.d/90-stoker.json" {
		t.Errorf("changed %v", changed)
	}
	p, err = c.Install(t.Context(), CRIO)
	if changed := do(t, p, err); len(changed) != 1 || changed[0] != "/crio/hooks.d/90-stoker.json" {
		t.Errorf("changed %v", changed)
	}
	put(t, c, "/etc/containers/containers.conf.d/30-z.conf", "[engine\n")
	if _, err := c.Install(t.Context(), Podman); err == nil || !strings.Contains(err.Error(), "30-z.conf") {
		t.Errorf("broken configuration: %v", err)
	}
	if s := c.Status(t.Context(), Podman); s.Err == "" {
		t.Errorf("status %+v", s)
	}
	c.HooksDir = "/own/hooks.d"
	p, err = c.Install(t.Context(), Podman)
	if changed := do(t, p, err); len(changed) != 1 || changed[0] != "/own/hooks.d/90-stoker.json" {
		t.Errorf("changed %v", changed)
	}
}

func TestContainerdsSpecKeepsWhatIsInItAndItsConfigurationIsLeftAlone(t *testing.T) {
	c := machineAt(t)
	const toml = "version = 2\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n"
	put(t, c, containerdFile, toml)
	p, err := c.Install(t.Context(), Containerd)
	if changed := do(t, p, err); len(changed) != 1 || changed[0] != SpecFile {
		t.Fatalf("changed %v", changed)
	}
	if notes := strings.Join(p.Notes, "\n"); !strings.Contains(notes, "[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.'runc']\n    base_runtime_spec = '"+SpecFile+"'") {
		t.Errorf("what a person has to do:\n%s", notes)
	}
	spec := get(t, c, SpecFile)
	for _, want := range []string{"18446744073709551615", `"path": "/other"`, `"path": "/bye"`, `"path": "` + Binary + `"`} {
		if !strings.Contains(spec, want) {
			t.Errorf("the spec has no %s:\n%s", want, spec)
		}
	}
	if s := c.Status(t.Context(), Containerd); s.Installed || len(s.NamedBy) != 1 {
		t.Errorf("it is not read yet: %+v", s)
	}
	put(t, c, "/etc/containerd/conf.d/stoker.toml", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nbase_runtime_spec = \""+SpecFile+"\"\n")
	if s := c.Status(t.Context(), Containerd); !s.Installed || !s.UpToDate {
		t.Errorf("status %+v", s)
	}
	p, err = c.Install(t.Context(), Containerd)
	if changed := do(t, p, err); len(changed) != 0 {
		t.Errorf("installed again, changed %v", changed)
	}
	// The file stays without the hook while containerd is told to read it.
	p, err = c.Uninstall(Containerd)
	if changed := do(t, p, err); len(changed) != 1 {
		t.Errorf("changed %v", changed)
	}
	if spec := get(t, c, SpecFile); strings.Contains(spec, Binary) || !strings.Contains(spec, `"path": "/other"`) {
		t.Errorf("the spec is\n%s", spec)
	}
	if err := c.RemoveBinary(t.Context()); err == nil || !strings.Contains(err.Error(), "restarted") {
		t.Errorf("the program was removed though containerd may call it: %v", err)
	}
	if err := os.Remove(c.path("/etc/containerd/conf.d/stoker.toml")); err != nil {
		t.Fatal(err)
	}
	p, err = c.Uninstall(Containerd)
	do(t, p, err)
	if left := tree(t, c); len(left) != 1 || left[containerdFile] != toml {
		t.Errorf("left: %v", left)
	}
	// A spec that the engine starts from already is what ours is made from; two of them are a person's to choose from.
	put(t, c, "/srv/a.json", `{"ociVersion":"1.0.0","mine":true}`)
	put(t, c, containerdFile, "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.a]\nbase_runtime_spec = '/srv/a.json'\n")
	p, err = c.Install(t.Context(), Containerd)
	do(t, p, err)
	if spec := get(t, c, SpecFile); !strings.Contains(spec, `"mine": true`) || !strings.Contains(strings.Join(p.Notes, "\n"), "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'a']") {
		t.Errorf("the spec is\n%s\nnotes %q", spec, p.Notes)
	}
	put(t, c, containerdFile, get(t, c, containerdFile)+"[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.b]\nbase_runtime_spec = '/srv/b.json'\n")
	if _, err := c.Install(t.Context(), Containerd); err == nil || !strings.Contains(err.Error(), "--base") {
		t.Errorf("two specs: %v", err)
	}
	for _, bad := range []string{"", "[]", "{}", `{"ociVersion":"1","hooks":[]}`, `{"ociVersion":"1","hooks":{"createRuntime":{}}}`, "{"} {
		put(t, c, "/srv/a.json", bad)
		c.Base = "/srv/a.json"
		if _, err := c.Install(t.Context(), Containerd); err == nil {
			t.Errorf("a spec was made from %q", bad)
		}
	}
}

func TestHalfDoneStatesAreFinished(t *testing.T) {
	c := machineAt(t)
	dir := "/usr/share/containers/oci/hooks.d"
	put(t, c, dir+"/.90-stoker.json.12345", `{"half`) // killed while it wrote
	put(t, c, dir+"/.other.json.1", "theirs")
	p, err := c.Install(t.Context(), Podman)
	do(t, p, err)
	if files := tree(t, c); len(files) != 2 || files[dir+"/.other.json.1"] != "theirs" {
		t.Errorf("files %v", files)
	}
	put(t, c, dir+"/90-stoker.json", "") // an older file system after a crash
	p, err = c.Install(t.Context(), Podman)
	do(t, p, err)
	if get(t, c, dir+"/90-stoker.json") == "" {
		t.Error("it is still empty")
	}
	// The program is gone already: what names it can still be taken away.
	if err := os.Remove(c.path(Binary)); err != nil {
		t.Fatal(err)
	}
	if s := c.Status(t.Context(), Podman); !s.Installed || s.BinaryErr == "" {
		t.Errorf("status %+v", s)
	}
	if _, err := c.Install(t.Context(), Podman); err == nil {
		t.Error("installed without a program")
	}
	p, err = c.Uninstall(Podman)
	if changed := do(t, p, err); len(changed) != 1 {
		t.Errorf("changed %v", changed)
	}
}

func TestAFileOfAnotherIsNotTouched(t *testing.T) {
	c := machineAt(t)
	for _, text := range []string{`{"version":"1.0.0","hook":{"path":"/usr/bin/other"}}`, "not json"} {
		put(t, c, "/usr/share/containers/oci/hooks.d/90-stoker.json", text)
		if _, err := c.Install(t.Context(), Podman); err == nil || !strings.Contains(err.Error(), "not stoker's") {
			t.Errorf("install: %v", err)
		}
		if _, err := c.Uninstall(Podman); err == nil || !strings.Contains(err.Error(), "not stoker's") {
			t.Errorf("uninstall: %v", err)
		}
	}
}

func TestAProgramThatEnginesCannotRunIsRefusedWithTheRemedy(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, c *Config)
		want  string
	}{
		"missing":        {func(t *testing.T, c *Config) { c.Binary = "/usr/libexec/nothing" }, "there is no"},
		"relative":       {func(t *testing.T, c *Config) { c.Binary = "bin/stoker-hook" }, "full path"},
		"below /tmp":     {func(t *testing.T, c *Config) { move(t, c, "/tmp/stoker-hook") }, "may not see"},
		"below /home":    {func(t *testing.T, c *Config) { move(t, c, "/home/u/stoker-hook") }, "may not see"},
		"a link to /tmp": {func(t *testing.T, c *Config) { link(t, c, "/tmp/stoker-hook") }, "may not see"},
		"not executable": {func(t *testing.T, c *Config) { chmod(t, c, Binary, 0o644) }, "read and run by everybody"},
		"not for users":  {func(t *testing.T, c *Config) { chmod(t, c, "/usr/libexec/stoker", 0o700) }, "rootless engines"},
		"writable":       {func(t *testing.T, c *Config) { chmod(t, c, "/usr/libexec", 0o777) }, "written to by others"},
		"not root's":     {func(t *testing.T, c *Config) { c.owner++ }, "does not belong to root"},
		"not the hook":   {func(t *testing.T, c *Config) { put(t, *c, Binary, "#!/bin/sh\n"); chmod(t, c, Binary, 0o755) }, "not stoker's hook"},
	} {
		t.Run(name, func(t *testing.T) {
			m := machineAt(t)
			c.spoil(t, &m)
			_, err := m.Install(t.Context(), Podman)
			lacks := (*machineError)(nil)
			if !errors.As(err, &lacks) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func move(t *testing.T, c *Config, to string) {
	t.Helper()
	put(t, *c, to, "")
	if err := os.Rename(c.path(Binary), c.path(to)); err != nil {
		t.Fatal(err)
	}
	c.Binary = to
}

func link(t *testing.T, c *Config, to string) {
	t.Helper()
	move(t, c, to)
	c.Binary = Binary
	if err := os.Symlink(c.path(to), c.path(Binary)); err != nil {
		t.Fatal(err)
	}
}

func chmod(t *testing.T, c *Config, path string, mode fs.FileMode) {
	t.Helper()
	if err := os.Chmod(c.path(path), mode); err != nil {
		t.Fatal(err)
	}
}

func TestDiffShowsWhatDiffers(t *testing.T) {
	for _, c := range []struct{ old, new, want string }{
		{"a\nb\nc\nd\ne\nf\ng\nh\n", "a\nb\nc\nd\nX\nf\ng\nh\n", "--- /f\n+++ /f\n@@ -2,7 +2,7 @@\n b\n c\n d\n-e\n+X\n f\n g\n h\n"},
		{"a\na\n", "a\na\na\n", "--- /f\n+++ /f\n@@ -1,2 +1,3 @@\n a\n a\n+a\n"},
		{"x\n", "", "--- /f\n+++ /dev/null\n@@ -1,1 +0,0 @@\n-x\n"},
	} {
		ch := Change{Path: "/f", Old: []byte(c.old), New: []byte(c.new)}
		if c.new == "" {
			ch.New = nil
		}
		if got := ch.Diff(); got != c.want {
			t.Errorf("got\n%s\nwant\n%s", got, c.want)
		}
	}
}

// Engines' files are read, whatever is in them.
func FuzzFiles(f *testing.F) {
	for _, s := range []string{defaultSpec, "", "{}", `{"hook":{"path":"/x/stoker-hook"}}`, `{"ociVersion":"1","hooks":{"createRuntime":[null,1,{"path":"stoker-hook"}]}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = ours(b) // any answer, no panic
		c := Config{Binary: Binary}
		with, err := c.withHook(b, true)
		if err != nil {
			return
		}
		again, err := c.withHook(with, true)
		if err != nil || string(again) != string(with) {
			t.Fatalf("%q: not the same when it is done twice: %v\n%s\n%s", b, err, with, again)
		}
		without, err := c.withHook(with, false)
		if err != nil || strings.Contains(string(without), Binary) && !strings.Contains(string(b), "stoker-hook") {
			t.Fatalf("%q: the hook stays: %v\n%s", b, err, without)
		}
	})
}
