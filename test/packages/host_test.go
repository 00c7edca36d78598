//go:build vm

package packages

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/test/vm"
	"github.com/stoker-profiler/stoker/test/workload"
)

const root = "../.."

// output runs a program and wants success.
func output(t *testing.T, environ []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), environ...)
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return string(out)
}

// The packages of this tree are built once, and all that is said of them is tested on these files.
func TestPackages(t *testing.T) {
	built := filepath.Join(t.TempDir(), "new")
	say("build for amd64 and arm64")
	output(t, nil, root+"/packaging/package.sh", built)
	for _, c := range []struct {
		name string
		test func(t *testing.T, built string)
	}{
		{"hold what they should", contents},
		{"rpm unpacks and its scripts parse", rpms},
		{"linters have nothing to say", linters},
		{"exposure of the unit", exposure},
		{"are reproducible", reproducible},
		{"install, upgrade and go away in a machine with systemd", guest},
	} {
		start := time.Now()
		t.Run(c.name, func(t *testing.T) { c.test(t, built) })
		say("%s: %.0f s", c.name, time.Since(start).Seconds())
	}
}

// say tells how far it is; t.Log is silent until the end.
func say(format string, args ...any) { fmt.Printf("packages: "+format+"\n", args...) }

// files are names of those in a directory that match a pattern.
func files(t *testing.T, dir, pattern string, want int) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(found) != want {
		t.Fatalf("%s in %s: %v, %v; want %d", pattern, dir, found, err, want)
	}
	return found
}

// Another build, in another directory, by somebody with another umask, language, time zone and temporary directory, gives the same
// bytes. One architecture is enough: nothing but the compiler knows of the other.
func reproducible(t *testing.T, built string) {
	dir := t.TempDir()
	tree, again, tmp := filepath.Join(dir, "somewhere else"), filepath.Join(dir, "again"), filepath.Join(dir, "tmp")
	if err := os.Mkdir(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	output(t, nil, "bash", "-euc", "mkdir \"$1\"; tar -C "+root+" --exclude=./bin --exclude=./dist -cf - . | tar -C \"$1\" -xf -", "_", tree)
	output(t, []string{"TMPDIR=" + tmp, "TZ=Asia/Kathmandu", "LC_ALL=C.UTF-8", "HOSTNAME=elsewhere"}, "unshare", "--uts", "bash", "-euc",
		"hostname elsewhere; umask 077; exec \"$1\"/packaging/package.sh \"$2\" amd64", "_", tree, again)
	entries, err := os.ReadDir(again)
	if err != nil || len(entries) != 6 { // 2 packages × 2 formats, a tarball, their sums
		t.Fatalf("%v, %v", entries, err)
	}
	for _, e := range entries {
		if e.Name() == "SHA256SUMS" {
			continue // there are more files in the other directory
		}
		a, err := os.ReadFile(filepath.Join(built, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(again, e.Name()))
		if err != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs: %v", e.Name(), err)
		}
	}
}

// Static programs for the package's machine; the configuration is the administrator's; a page and completions for each shell.
func contents(t *testing.T, built string) {
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		for name, programs := range map[string][]string{"stoker": {"usr/bin/stoker"}, "stoker-hook": {"usr/libexec/stoker/stoker-hook"}} {
			dir := t.TempDir()
			deb := files(t, built, name+"_*_"+arch+".deb", 1)[0]
			output(t, nil, "dpkg-deb", "-R", deb, dir)
			for _, p := range programs {
				f, err := elf.Open(filepath.Join(dir, p))
				if err != nil {
					t.Fatal(err)
				}
				if f.Machine != machine || slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC }) {
					t.Errorf("%s: %s is for %s, or not static", deb, p, f.Machine)
				}
				f.Close()
			}
			if name != "stoker" {
				continue
			}
			for _, p := range []string{"lib/systemd/system/stoker.service", "usr/share/man/man1/stoker-run.1.gz", "usr/share/man/man5/stoker.yaml.5.gz",
				"usr/share/bash-completion/completions/stoker", "usr/share/zsh/vendor-completions/_stoker", "usr/share/fish/vendor_completions.d/stoker.fish",
				"usr/share/doc/stoker/copyright", "usr/share/doc/stoker/changelog.gz", "usr/share/doc/stoker/changelog.Debian.gz", "usr/share/doc/stoker/third-party-licenses.gz"} {
				if st, err := os.Stat(filepath.Join(dir, p)); err != nil || st.Size() == 0 {
					t.Errorf("%s: %s: %v", deb, p, err)
				}
			}
			conffiles, err := os.ReadFile(filepath.Join(dir, "DEBIAN", "conffiles"))
			if err != nil || string(conffiles) != "/etc/apparmor.d/stoker\n/etc/stoker/stoker.yaml\n" {
				t.Errorf("%s: conffiles %q, %v", deb, conffiles, err)
			}
		}
	}
	for _, rpm := range files(t, built, "stoker-[0-9]*.rpm", 2) {
		list := output(t, nil, "rpm", "-qp", "--queryformat", `[%{FILENAMES} %{FILEFLAGS:fflags}\n]`, rpm)
		for _, want := range []string{"/usr/bin/stoker \n", "/etc/stoker/stoker.yaml cn\n", "/usr/lib/systemd/system/stoker.service \n", "/usr/share/man/man1/stoker.1.gz d\n",
			"/usr/share/zsh/site-functions/_stoker \n", "/usr/share/licenses/stoker/LICENSE l\n"} {
			if !strings.Contains(list, want) {
				t.Errorf("%s has no %q:\n%s", rpm, want, list)
			}
		}
		if scripts := output(t, nil, "rpm", "-qp", "--scripts", rpm); strings.Count(scripts, "scriptlet (using /bin/sh)") != 4 {
			t.Errorf("%s: scripts\n%s", rpm, scripts)
		}
	}
	for _, tarball := range files(t, built, "stoker-*.tar.gz", 2) {
		if list := output(t, nil, "tar", "-tzf", tarball); !strings.Contains(list, "/stoker-hook\n") || !strings.Contains(list, "/stoker.service\n") {
			t.Errorf("%s holds\n%s", tarball, list)
		}
	}
}

// What rpm does with the files, in an empty root; the scripts are only read by a shell here, and run in the virtual machine.
func rpms(t *testing.T, built string) {
	dir := t.TempDir()
	both := files(t, built, "stoker-*.x86_64.rpm", 2)
	output(t, nil, "rpm", append([]string{"--root", dir, "-i", "--noscripts", "--nodeps", "--ignoreos"}, both...)...)
	for _, p := range []string{"usr/bin/stoker", "usr/libexec/stoker/stoker-hook", "etc/stoker/stoker.yaml"} {
		if _, err := os.Stat(filepath.Join(dir, p)); err != nil {
			t.Error(err)
		}
	}
	if out := output(t, nil, filepath.Join(dir, "usr/bin/stoker"), "config", "check", filepath.Join(dir, "etc/stoker/stoker.yaml")); !strings.HasPrefix(out, "ok: ") {
		t.Error(out)
	}
	output(t, nil, "rpm", "--root", dir, "-V", "--noscripts", "--nodeps", "stoker", "stoker-hook")
	output(t, nil, "rpm", "--root", dir, "-e", "--noscripts", "stoker", "stoker-hook")
	if left := output(t, nil, "find", dir, "-name", "*stoker*"); left != "" {
		t.Errorf("rpm leaves\n%s", left)
	}
	scripts, err := filepath.Glob(root + "/packaging/rpm/*.p*")
	if err != nil || len(scripts) != 5 {
		t.Fatalf("%v, %v", scripts, err)
	}
	debian, err := filepath.Glob(root + "/packaging/deb/*.p*")
	if err != nil || len(debian) != 4 {
		t.Fatalf("%v, %v", debian, err)
	}
	for _, s := range append(scripts, debian...) {
		output(t, nil, "dash", "-n", s) // Debian's sh, the strictest there is
	}
}

// Everything that lintian and rpmlint say is an error, but for what the overrides explain.
func linters(t *testing.T, built string) {
	// Those for arm64 are made of the same files, and lintian takes five seconds for each.
	args := append([]string{"--allow-root", "--fail-on", "error,warning,info"}, files(t, built, "*_amd64.deb", 2)...)
	if out := output(t, nil, "lintian", args...); out != "" {
		t.Error(out)
	}
	// rpmlint unpacks with cpio, and the names in an rpm of nfpm are absolute: without this it writes to this machine's own /usr and /etc,
	// and looks at nothing.
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "cpio"), []byte("#!/bin/sh\nPATH=${PATH#*:} exec cpio --no-absolute-filenames \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	out := output(t, []string{"PATH=" + bin + ":" + os.Getenv("PATH")}, "rpmlint", append([]string{"--strict", "--config", root + "/packaging/rpm/rpmlint.toml"}, files(t, built, "*.rpm", 4)...)...)
	for _, f := range []string{"/usr/bin/stoker", "/usr/libexec/stoker"} {
		if made, err := os.Stat(f); err == nil && time.Since(made.ModTime()) < time.Minute {
			t.Errorf("rpmlint has written %s", f)
		}
	}
	if !strings.Contains(out, " 4 packages and 0 specfiles checked; 0 errors, 0 warnings") {
		t.Error(out)
	}
}

// maxExposure is the bar for what `systemd-analyze security` says of the unit, ten times.
const maxExposure = 40

func exposure(t *testing.T, _ string) {
	out := output(t, nil, "systemd-analyze", "security", "--no-pager", "--offline=true", fmt.Sprintf("--threshold=%d", maxExposure), root+"/packaging/systemd/stoker.service")
	figure := regexp.MustCompile(`Overall exposure level for stoker\.service: ([0-9.]+)`).FindStringSubmatch(out)
	if figure == nil {
		t.Fatal(out)
	}
	t.Logf("exposure %s", figure[1])
	page, err := os.ReadFile(root + "/docs/install.md")
	if want := "gives it " + figure[1] + " of 10"; err != nil || !strings.Contains(string(page), want) {
		t.Errorf("docs/install.md does not say %q: %v", want, err)
	}
	// Each capability is explained.
	unit, err := os.ReadFile(root + "/packaging/systemd/stoker.service")
	if err != nil {
		t.Fatal(err)
	}
	bounding := regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.*)$`).FindSubmatch(unit)
	if bounding == nil {
		t.Fatal("no CapabilityBoundingSet")
	}
	if caps := strings.Fields(string(bounding[1])); len(caps) != 6 {
		t.Errorf("capabilities: %v", caps)
	} else {
		for _, c := range caps {
			if !strings.Contains(string(unit), "# "+c+": ") {
				t.Errorf("%s has no reason", c)
			}
		}
	}
}

// The half in the virtual machine.
func guest(t *testing.T, built string) {
	if os.Geteuid() != 0 {
		t.Fatal("making a guest's root needs root: run as root")
	}
	ctx := t.Context()
	if deadline, ok := t.Deadline(); ok { // earlier than the test's own, so that the guest's console is shown
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-15*time.Second))
		defer cancel()
	}
	dir := t.TempDir()
	say("build the previous version and the guest's tests")
	old, test := filepath.Join(dir, "old"), filepath.Join(dir, "guest.test")
	// The same sources under a version that is older than any other. There is no release yet to upgrade from.
	output(t, []string{"VERSION=v0.0.0-0"}, root+"/packaging/package.sh", old, "amd64")
	output(t, []string{"CGO_ENABLED=0"}, "go", "test", "-c", "-tags", "guest", "-o", test, ".")
	share := map[string]string{"guest.test": test, "README.md": root + "/README.md", "install.md": root + "/docs/install.md"}
	for name, from := range map[string]string{"old": old, "new": built} {
		for _, deb := range files(t, from, "*_amd64.deb", 2) {
			share[name+"/"+filepath.Base(deb)] = deb
		}
		for _, rpm := range files(t, from, "*.x86_64.rpm", 2) {
			share[name+"/"+filepath.Base(rpm)] = rpm
		}
	}
	shareRPM(t, share)
	programs, err := workload.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	workloads, err := programs.Files(workload.Burn)
	if err != nil {
		t.Fatal(err)
	}
	for in, here := range workloads {
		share[in] = here
	}
	g, err := vm.Build(ctx, vm.Config{Kernel: vm.Kernel6_1, Packages: vm.Engines, Modules: vm.EngineModules, Log: say})
	if err != nil {
		t.Fatal(err)
	}
	job := vm.Job{Command: []string{"/host/guest.test", "-test.v", "-test.timeout=20m"}, Files: share, Cmdline: "apparmor=1", Output: io.Writer(os.Stdout)}
	if err := g.Run(ctx, job); err != nil {
		t.Error(err)
	}
}

// shareRPM puts this machine's rpm into a guest, which has none: Debian's package of it would bring all of Perl. Both are Debian 12.
func shareRPM(t *testing.T, share map[string]string) {
	rpm, err := exec.LookPath("rpm")
	if err != nil {
		t.Fatal(err)
	}
	share["rpm/rpm"], share["rpm/config"] = rpm, "/usr/lib/rpm"
	for _, m := range regexp.MustCompile(`(?m)^\s(\S+) => (/\S+)`).FindAllStringSubmatch(output(t, nil, "ldd", rpm), -1) {
		if name := m[1]; !strings.HasPrefix(name, "libc.") && !strings.HasPrefix(name, "libm.") { // those belong to the loader
			share["rpm/lib/"+name] = m[2]
		}
	}
}
