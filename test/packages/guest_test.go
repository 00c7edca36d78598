//go:build guest && !root

package packages

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/sink"
	"github.com/stoker-profiler/stoker/sink/store"
	"github.com/stoker-profiler/stoker/sink/web"
	"github.com/stoker-profiler/stoker/test/containerdtest"
	"github.com/stoker-profiler/stoker/test/workload"
)

// This half runs in a machine that is thrown away, as root, in the order of the file: install, look, upgrade, downgrade, remove, purge.
// The host has put into /host: old/ and new/ with the packages of two builds, the pages whose commands are typed, and the workloads.

const (
	imageRef = "localhost/workloads:1"
	database = "/var/lib/stoker/profiles.db"
	paranoid = "/proc/sys/kernel/perf_event_paranoid"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if _, err := os.Stat("/host/new"); err != nil || os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "packages: these tests run in a virtual machine that is thrown away: make test-packages")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// try runs a script as root, in a directory; sudo is the command itself.
func try(dir, script string) (string, error) {
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", "sudo() { \"$@\"; }\n"+script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	cmd.WaitDelay = 3 * time.Second // a daemon that the script leaves has its output too, and does not end; all of the script's own is read
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	return strings.TrimRight(string(out), "\n"), err
}

func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := try("/", script)
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return out
}

// typed runs the blocks of commands of a page that are marked with a word, as they stand there, in dir.
func typed(t *testing.T, page, mark, dir string) string {
	t.Helper()
	text, err := os.ReadFile("/host/" + page)
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```sh "+mark+"\n(.*?)^```$").FindAllSubmatch(text, -1)
	if len(blocks) == 0 {
		t.Fatalf("%s has no block of commands marked %q", page, mark)
	}
	var all strings.Builder
	for _, b := range blocks {
		out, err := try(dir, string(b[1]))
		if err != nil {
			t.Fatalf("%s: %v; the commands\n%swrote\n%s", page, err, b[1], out)
		}
		all.WriteString(out + "\n")
	}
	return all.String()
}

// eventually waits, long: an emulated machine is slow.
func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(3 * time.Minute)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			log, _ := try("/", "journalctl -u stoker --no-pager -n 60; systemctl status stoker --no-pager")
			t.Fatalf("%s: %v\n%s", what, err, log)
		}
		time.Sleep(300 * time.Millisecond)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// machine is what a package could leave behind.
type machine struct {
	files    map[string]bool   // all that are not in the list below
	accounts map[string]string // files of users and groups
	sysctls  map[string]string
	cgroups  map[string]bool // with stoker in their names
	programs map[string]int  // BPF programs by name
	profiles string          // AppArmor's, loaded in the kernel
	units    string
}

// others' own records, which every package changes, and what runs beside the test.
var notOurs = regexp.MustCompile(`^/(proc|sys|dev|host|tmp|boot|lost\+found)(/|$)|^/var/(log|backups|tmp)/|^/var/lib/(dpkg|apt|docker|containerd|containers|systemd/(timers|random-seed|catalog))(/|$)|` +
	`^/var/cache/(apt|debconf|ldconfig|man)/|^/run/(systemd|udev|docker|containerd|containers|runc|netns|credentials|user|log|lock|crun|libpod)(/|$)|^/root/|^/etc/ld\.so\.cache$|^/var/cache/apparmor(/[^/]+(/\.features)?)?$`)

// sysctls that change by themselves.
var moves = regexp.MustCompile(`^(fs\.(dentry-state|file-nr|inode-nr|inode-state|quota|aio-nr|binfmt_misc)|kernel\.(random|ns_last_pid|pty\.nr|perf_event_max_sample_rate|sched_domain)|net\.netfilter|vm\.stat)`)

func look(t *testing.T) machine {
	t.Helper()
	m := machine{files: map[string]bool{}, accounts: map[string]string{}, sysctls: map[string]string{}, cgroups: map[string]bool{}, programs: map[string]int{}}
	err := filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		if notOurs.MatchString(path) {
			if d != nil && d.IsDir() && !strings.HasPrefix(path, "/var/cache/apparmor") {
				return filepath.SkipDir
			}
			return nil
		}
		if err == nil {
			m.files[path] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"/etc/passwd", "/etc/group", "/etc/gshadow", "/etc/shadow"} {
		m.accounts[f] = read(t, f)
	}
	for line := range strings.Lines(sh(t, "sysctl -a 2>/dev/null")) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " = "); ok && !moves.MatchString(name) {
			m.sysctls[name] = value
		}
	}
	for _, f := range strings.Fields(sh(t, "find /sys/fs/cgroup -type d -name '*stoker*' ! -name 'stoker-vm*'")) {
		m.cgroups[f] = true
	}
	for id := ebpf.ProgramID(0); ; {
		if id, err = ebpf.ProgramGetNextID(id); err != nil {
			break
		}
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // it went
		}
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		m.programs[info.Name]++
		p.Close()
	}
	m.profiles = sh(t, "grep stoker /sys/kernel/security/apparmor/profiles || true")
	m.units = sh(t, "systemctl list-units --all --plain --no-legend 'stoker*' ! -name x 2>/dev/null | grep -v stoker-vm || true; systemctl list-unit-files --plain --no-legend 'stoker*' | grep -v stoker-vm || true")
	return m
}

// differences says what is there now and was not, or the other way round.
func (before machine) differences(now machine) error {
	var found []string
	compare := func(what string, a, b map[string]bool) {
		for f := range b {
			if !a[f] {
				found = append(found, what+" is left: "+f)
			}
		}
		for f := range a {
			if !b[f] {
				found = append(found, what+" is gone: "+f)
			}
		}
	}
	compare("file", before.files, now.files)
	compare("cgroup", before.cgroups, now.cgroups)
	for f, text := range before.accounts {
		if now.accounts[f] != text {
			found = append(found, f+" has changed:\n"+now.accounts[f])
		}
	}
	for name, value := range before.sysctls {
		if now.sysctls[name] != value {
			found = append(found, fmt.Sprintf("sysctl %s was %s and is %s", name, value, now.sysctls[name]))
		}
	}
	for name, n := range now.programs {
		if n > before.programs[name] {
			found = append(found, fmt.Sprintf("BPF programs %s: %d, were %d", name, n, before.programs[name]))
		}
	}
	if before.profiles != now.profiles {
		found = append(found, "AppArmor profiles: "+now.profiles)
	}
	if before.units != now.units {
		found = append(found, "units: "+now.units)
	}
	if found == nil {
		return nil
	}
	slices.Sort(found)
	return errors.New(strings.Join(found, "\n"))
}

// profiles reads the store, oldest first.
func profiles(container string) (all []sink.Profile, err error) {
	s, err := store.OpenReadOnly(database)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	for p, err := range s.Select(context.Background(), store.Query{From: time.Unix(0, 0), To: time.Now().Add(time.Hour), ContainerID: container}) {
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	slices.Reverse(all) // the store gives the newest first
	return all, nil
}

// hasFunction says whether a profile has samples in a function.
func hasFunction(p sink.Profile, name string) (bool, error) {
	parsed, err := profile.ParseData(p.Pprof)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(parsed.Function, func(f *profile.Function) bool { return f.Name == name }), nil
}

// wantProfile waits for a profile of a container that has the labels and samples in a function.
func wantProfile(t *testing.T, container, function string, labels map[string]string) {
	t.Helper()
	eventually(t, "a profile of "+container+" with "+function, func() error {
		all, err := profiles(container)
		if err != nil {
			return err
		}
		for _, p := range all {
			if has, err := hasFunction(p, function); err != nil || !has {
				continue
			}
			for name, want := range labels {
				if p.Labels[name] != want {
					return fmt.Errorf("label %s is %q, want %q; all: %v", name, p.Labels[name], want, p.Labels)
				}
			}
			return nil
		}
		return fmt.Errorf("%d profiles, none of it", len(all))
	})
}

// wantRunning wants an agent that runs and is content.
func wantRunning(t *testing.T) {
	t.Helper()
	if out, err := try("/", "systemctl is-active stoker; systemctl is-enabled stoker"); err != nil || out != "active\nenabled" {
		log, _ := try("/", "journalctl -u stoker --no-pager -n 60")
		t.Fatalf("the agent does not run: %s, %v\n%s", out, err, log)
	}
	// An engine that a busy machine keeps waiting is degraded until it answers.
	eventually(t, "the agent is content", func() error {
		r, err := http.Get("http://127.0.0.1:4041/healthz")
		if err != nil {
			return err
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return err
		}
		var h web.Health
		if err := json.Unmarshal(body, &h); err != nil {
			return fmt.Errorf("%w in %s", err, body)
		}
		for _, p := range h.Parts {
			if p.State != web.OK {
				err = errors.Join(err, fmt.Errorf("%s is %s: %s; %s", p.Name, p.State, p.Message, p.Remedy))
			}
		}
		return err
	})
}

// deb is the package of a build.
func deb(t *testing.T, build, name string) string {
	t.Helper()
	found, err := filepath.Glob("/host/" + build + "/" + name + "_*_amd64.deb")
	if err != nil || len(found) != 1 {
		t.Fatalf("packages of %s in %s: %v, %v", name, build, found, err)
	}
	return found[0]
}

// What a stranger does with the packages, from the first command of the README to purge, in one go.
func TestPackagesInstallRunUpgradeAndLeaveNothing(t *testing.T) {
	if level := read(t, paranoid); level != "3" {
		t.Fatalf("kernel.perf_event_paranoid is %s; Debian's default is 3, which this test is about", level)
	}
	// What burns gives way to what is tested, on two emulated processors, until the upgrade under load.
	service := func(name string, n int) {
		write(t, "/etc/systemd/system/"+name, fmt.Sprintf("[Unit]\nDescription=burns in unique_%d\n[Service]\nCPUWeight=1\nExecStart=/host/%s 0 %d\n", n, workload.Burn, n))
	}
	service("app-web.service", 4)
	image := t.TempDir() + "/image.tar"
	spec := containerdtest.Image{Ref: imageRef, Files: map[string]containerdtest.File{"/" + workload.Burn: containerdtest.Host("/host/" + workload.Burn)}}
	if err := spec.Write(image); err != nil {
		t.Fatal(err)
	}
	write(t, "/etc/docker/daemon.json", `{"bridge": "none", "iptables": false, "ip6tables": false, "exec-opts": ["native.cgroupdriver=systemd"]}`)
	sh(t, "systemctl daemon-reload; systemctl start containerd docker app-web; docker load -q -i "+image+"; ctr images import "+image)
	sh(t, "useradd -m grace")
	// What others leave or make on a machine that is no test's: deb-systemd-helper removes all empty directories of links at a purge, and
	// hooks have a directory.
	sh(t, "find /etc/systemd/system -name '*.wants' -empty -delete; mkdir -p /usr/share/containers/oci/hooks.d")
	before := look(t)

	const conf = "/etc/systemd/system/stoker.service.d/test.conf"
	var shop string
	start := time.Now()
	step := func(name string, f func(t *testing.T)) {
		t.Helper()
		if !t.Run(name, f) {
			t.FailNow() // what follows builds on it
		}
		fmt.Printf("%s: %.0f s\n", name, time.Since(start).Seconds())
		start = time.Now()
	}
	step("install by the words of the README", func(t *testing.T) {
		out := typed(t, "README.md", "installed", "/host/old")
		if !strings.Contains(out, "kernel.perf_event_paranoid is 2 instead of 3") {
			t.Errorf("nothing is said of kernel.perf_event_paranoid:\n%s", out)
		}
		wantRunning(t)
		if level := read(t, paranoid); level != "2" {
			t.Errorf("kernel.perf_event_paranoid is %s while the agent runs", level)
		}
		if out := sh(t, "systemd-analyze verify --man=no /lib/systemd/system/stoker.service 2>&1; journalctl -b -o cat --no-pager | grep -i 'stoker.service.*\\(unknown\\|ignoring\\|deprecated\\)' || true"); out != "" {
			t.Errorf("systemd complains of the unit:\n%s", out)
		}
	})
	step("a container and a service are profiled within a minute", func(t *testing.T) {
		shop = sh(t, "docker run -d --name shop --network none --cpu-shares 2 "+imageRef+" /"+workload.Burn+" 0 1")
		asked := map[string]time.Time{shop: time.Now()}
		job := strings.Repeat("c0ffee12", 8)
		sh(t, "ctr run -d --cpu-shares 2 --runc-systemd-cgroup --cgroup system.slice:nerdctl:"+job+" --label nerdctl/name=job "+imageRef+" "+job+" /"+workload.Burn+" 0 2")
		asked[job] = time.Now()
		// Both engines have systemd make the cgroups.
		sh(t, "test -d /sys/fs/cgroup/system.slice/docker-"+shop+".scope; test -d /sys/fs/cgroup/system.slice/nerdctl-"+job+".scope")
		asked["app-web.service"] = time.Now()
		typed(t, "install.md", "installed service", "/tmp")
		wantProfile(t, shop, "unique_1", map[string]string{"container_name": "shop", "service_name": "shop", "container_runtime": "docker", "container_image": imageRef})
		wantProfile(t, "app-web.service", "unique_4", map[string]string{"systemd_unit": "app-web.service", "service_name": "app-web.service", "container_runtime": "systemd"})
		wantProfile(t, job, "unique_2", map[string]string{"container_name": "job", "container_runtime": "containerd", "container_image": imageRef})
		// Within a minute, by what the profiles say: when this test gets to read them is the emulator's matter.
		for id, began := range asked {
			all, err := profiles(id)
			if err != nil {
				t.Fatal(err)
			}
			took := all[0].End.Sub(began)
			fmt.Printf("the first profile of %s is written %.0f s after it was asked for\n", id, took.Seconds())
			if took > time.Minute {
				t.Errorf("the first profile of %s came after %s", id, took)
			}
		}
		typed(t, "install.md", "installed", t.TempDir())
		sh(t, "ctr task kill -s KILL "+job)
		eventually(t, "the job goes", func() error {
			out, err := try("/", "ctr task rm "+job+"; ctr container rm "+job)
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	})
	step("what the unit gives and takes", func(t *testing.T) {
		pid := sh(t, "systemctl show --value -p MainPID stoker")
		status := read(t, "/proc/"+pid+"/status")
		const six = 1<<39 | 1<<38 | 1<<19 | 1<<2 | 1<<40 | 1<<34 // BPF PERFMON SYS_PTRACE DAC_READ_SEARCH CHECKPOINT_RESTORE SYSLOG
		for _, want := range []string{
			fmt.Sprintf("CapBnd:\t%016x", six), fmt.Sprintf("CapEff:\t%016x", six), fmt.Sprintf("CapPrm:\t%016x", six), "CapAmb:\t0000000000000000",
			"NoNewPrivs:\t1", "Seccomp:\t2", "Uid:\t0\t0\t0\t0",
		} {
			if !strings.Contains(status, want+"\n") {
				t.Errorf("no %q in\n%s", want, status)
			}
		}
		if label := read(t, "/proc/"+pid+"/attr/current"); label != "stoker (enforce)" {
			t.Errorf("AppArmor confines it as %q", label)
		}
		nothingDenied(t)
		// This kernel has the nofault deadlock, and the agent says so at each start: that is no consequence of its unit.
		if log := sh(t, "journalctl -u stoker -o cat --no-pager | grep -E 'level=(WARN|ERROR)' | grep -v 'may freeze when user stacks are read' || true"); log != "" {
			t.Errorf("the agent is not content:\n%s", log)
		}
		if s := sh(t, "systemctl show --value -p StatusText stoker"); !regexp.MustCompile(`^[1-9][0-9]* containers in scope$`).MatchString(s) {
			t.Errorf("its status is %q", s)
		}
		// Members of the group ask the agent, others do not.
		if out, err := try("/", "su grace -c 'stoker ps'"); err == nil {
			t.Errorf("a stranger reads:\n%s", out)
		}
		sh(t, "usermod -a -G stoker grace")
		if out := sh(t, "su grace -c 'stoker ps'"); !strings.Contains(out, "shop") {
			t.Errorf("a member of the group reads:\n%s", out)
		}
		sh(t, "gpasswd -d grace stoker")
		// The program is not locked in where people call it.
		sh(t, "cd /root; stoker query --last 1h -o out.folded; grep -q unique_1 out.folded; rm out.folded; stoker --help >/dev/null; test -s /usr/share/man/man1/stoker.1.gz || test ! -d /usr/share/man")
	})
	step("an idle agent lives, one that hangs is restarted", func(t *testing.T) {
		write(t, conf, "[Service]\nWatchdogSec=10\nRestartSec=1\nEnvironment=STOKER_SAMPLING_WINDOW=1s STOKER_WEB_LISTEN=off\n")
		sh(t, "systemctl stop app-web; docker pause shop; systemctl daemon-reload; systemctl restart stoker")
		pid := sh(t, "systemctl show --value -p MainPID stoker")
		fed := map[string]bool{}
		eventually(t, "it feeds the watchdog with nothing to do", func() error {
			fed[sh(t, "systemctl show --value -p WatchdogTimestampMonotonic stoker")] = true
			if len(fed) < 4 {
				return fmt.Errorf("signs of life: %v", fed)
			}
			return nil
		})
		if now := sh(t, "systemctl show --value -p MainPID stoker"); now != pid {
			t.Errorf("it was restarted while there was nothing to do: %s is %s", pid, now)
		}
		sh(t, "kill -STOP "+pid)
		eventually(t, "another agent runs", func() error {
			out, err := try("/", "systemctl show --value -p MainPID,ActiveState,NRestarts stoker")
			if f := strings.Fields(out); err != nil || slices.Contains(f, pid) || !slices.Contains(f, "active") || slices.Contains(f, "0") {
				return fmt.Errorf("%s %v", out, err)
			}
			return nil
		})
		if level := read(t, paranoid); level != "2" {
			t.Errorf("kernel.perf_event_paranoid is %s after a crash and a restart", level)
		}
		write(t, conf, "[Service]\nEnvironment=STOKER_SAMPLING_WINDOW="+window.String()+"\n") // for the rest of the test, which then waits less
		sh(t, "systemctl daemon-reload; systemctl restart stoker; docker unpause shop")
	})
	step("upgrade under load loses no window", func(t *testing.T) {
		sh(t, "docker update --cpu-shares 1024 shop")
		restarted := time.Now()
		eventually(t, "the restarted agent profiles the shop", func() error { return newer(shop, restarted) })
		was, began := sh(t, "stoker version | head -1"), time.Now()
		sh(t, "cd /host/new; apt-get install -y ./stoker_*_amd64.deb")
		wantRunning(t)
		if now := sh(t, "stoker version | head -1"); now == was {
			t.Errorf("it is still %s", was)
		}
		done := time.Now()
		eventually(t, "the new agent profiles the shop", func() error { return newer(shop, done) })
		all, err := profiles(shop)
		if err != nil {
			t.Fatal(err)
		}
		// A window of which less than its length is missing was not lost. What the windows must reach is when systemd told the old agent to
		// stop and when the new one said that it is ready.
		stopped, ready := when(t, "ActiveExitTimestamp"), when(t, "ActiveEnterTimestamp")
		fmt.Printf("from the old agent's end to the new one's beginning: %.1f s\n", ready.Sub(stopped).Seconds())
		last := began
		for _, p := range all {
			if p.Start.Before(began) {
				last = p.End
				continue
			}
			missing := p.Start.Sub(last)
			if from, to := later(last, stopped), earlier(p.Start, ready); from.Before(to) {
				missing -= to.Sub(from) // no agent ran
			}
			if missing > 0 {
				fmt.Printf("no profile for %.1f s before %s\n", missing.Seconds(), p.Start.Format(time.TimeOnly))
			}
			if missing >= window {
				t.Errorf("a window is lost: none from %s to %s, and the agent was away from %s to %s", last, p.Start, stopped, ready)
			}
			last = p.End
		}
		sh(t, "docker update --cpu-shares 2 shop")
		if !strings.Contains(read(t, "/etc/stoker/stoker.yaml"), "app-*.service") {
			t.Error("the configuration is not kept")
		}
	})
	step("downgrade keeps the profiles", func(t *testing.T) {
		count := func() int {
			all, err := profiles(shop)
			if err != nil {
				t.Fatal(err)
			}
			return len(all)
		}
		n := count()
		sh(t, "cd /host/old; apt-get install -y --allow-downgrades ./stoker_*_amd64.deb")
		wantRunning(t)
		if now := count(); now < n {
			t.Errorf("%d profiles of %d are left", now, n)
		}
	})
	step("an agent that was disabled stays so", func(t *testing.T) {
		sh(t, "systemctl disable --now stoker; cd /host/new; apt-get install -y ./stoker_*_amd64.deb")
		if out, err := try("/", "systemctl is-active stoker || true; systemctl is-enabled stoker || true"); err != nil || out != "inactive\ndisabled" {
			t.Errorf("%s, %v", out, err)
		}
		if level := read(t, paranoid); level != "3" {
			t.Errorf("kernel.perf_event_paranoid is %s with no agent", level)
		}
		sh(t, "systemctl enable --now stoker")
	})
	step("the hook's package takes the hook away before its program", func(t *testing.T) {
		const program, named = "/usr/libexec/stoker/stoker-hook", "/usr/share/containers/oci/hooks.d/90-stoker.json"
		sh(t, "apt-get install -y "+deb(t, "old", "stoker-hook"))
		sh(t, "stoker hook install --runtime podman; test -e "+named)
		sh(t, "apt-get install -y "+deb(t, "new", "stoker-hook")+"; test -e "+named)
		// containerd may have the hook in its memory: the program stays until that cannot be.
		sh(t, "stoker hook install --runtime containerd")
		if out, err := try("/", "dpkg -r stoker-hook"); err == nil || !strings.Contains(out, "restart containerd") {
			t.Errorf("removed under containerd: %v\n%s", err, out)
		}
		sh(t, "test -x "+program+"; test ! -e "+named)
		sh(t, "dpkg -r stoker-hook; test ! -e "+program+"; test ! -e /usr/libexec/stoker; dpkg -P stoker-hook")
	})
	step("remove keeps configuration and profiles, and nothing runs", func(t *testing.T) {
		nothingDenied(t) // in all that it has done
		sh(t, "apt-get remove -y stoker")
		if level := read(t, paranoid); level != "3" {
			t.Errorf("kernel.perf_event_paranoid is %s", level)
		}
		sh(t, "test -s /etc/stoker/stoker.yaml; test -s "+database+"; test ! -e /run/stoker; test ! -e /usr/bin/stoker")
		if out, err := try("/", "pgrep -x stoker"); err == nil {
			t.Errorf("still runs: %s", out)
		}
	})
	step("purge leaves nothing", func(t *testing.T) {
		// It comes back first, to its own configuration and profiles.
		sh(t, "cd /host/new; apt-get install -y ./stoker_*_amd64.deb")
		wantRunning(t)
		wantProfile(t, shop, "unique_1", nil)
		sh(t, "rm -r "+filepath.Dir(conf)+"; docker rm -f shop; apt-get purge -y stoker")
		eventually(t, "nothing is left", func() error { return before.differences(look(t)) })
		if out := sh(t, "dpkg-query -W 'stoker*' 2>&1 || true"); !strings.Contains(out, "no packages found") {
			t.Errorf("dpkg still knows %s", out)
		}
	})
	step("without systemd it installs, upgrades and goes, quietly", func(t *testing.T) {
		// A machine whose /run has no trace of systemd, as a container or a chroot.
		script := "unshare -m bash -euc 'mount -t tmpfs none /run; cd /host/new; dpkg -i ./stoker*_amd64.deb; stoker config check; dpkg -i ./stoker*_amd64.deb; dpkg -P stoker-hook stoker'"
		out := sh(t, script)
		for line := range strings.Lines(out) {
			if !regexp.MustCompile(`^(\(Reading database.*|Selecting .*|Preparing .*|Unpacking .*|Setting up .*|Removing .*|Purging .*|ok: .*|Processing triggers .*)\n?$`).MatchString(line) {
				t.Errorf("it says %s", line)
			}
		}
		eventually(t, "nothing is left", func() error { return before.differences(look(t)) })
	})
	step("rpm installs, upgrades and removes it", func(t *testing.T) {
		rpm := func(build, args string) {
			t.Helper()
			// Its database knows nothing of what dpkg has installed. The loader finds the libraries and not the environment, which the
			// package's scripts have too.
			out := sh(t, "cd /host/"+build+"; RPM_CONFIGDIR=/host/rpm/config /lib64/ld-linux-x86-64.so.2 --library-path /host/rpm/lib /host/rpm/rpm --force-debian --dbpath /tmp/rpm "+args)
			if out != "" {
				t.Errorf("rpm %s says %s", args, out)
			}
		}
		shop = sh(t, "docker run -d --name shop --network none --cpu-shares 2 "+imageRef+" /"+workload.Burn+" 0 1")
		rpm("old", "--nodeps -i stoker-*.rpm")
		sh(t, "systemctl enable --now stoker")
		wantRunning(t)
		wantProfile(t, shop, "unique_1", map[string]string{"container_name": "shop"})
		was, pid := sh(t, "stoker version | head -1"), sh(t, "systemctl show --value -p MainPID stoker")
		sh(t, "stoker hook install --runtime podman")
		rpm("new", "--nodeps -U stoker-*.rpm")
		wantRunning(t)
		if now := sh(t, "stoker version | head -1"); now == was || sh(t, "systemctl show --value -p MainPID stoker") == pid {
			t.Errorf("the old agent runs: %s", now)
		}
		sh(t, "test -e /usr/share/containers/oci/hooks.d/90-stoker.json")
		rpm("new", "-e stoker-hook")
		sh(t, "test ! -e /usr/share/containers/oci/hooks.d/90-stoker.json; test -s "+database)
		rpm("new", "-e stoker")
		if level := read(t, paranoid); level != "3" {
			t.Errorf("kernel.perf_event_paranoid is %s", level)
		}
		sh(t, "docker rm -f shop; rm -r /var/lib/stoker; groupdel stoker")
		// Those belong to a package that every system of rpms has (filesystem), and this guest has not. Empty they must be.
		sh(t, "rmdir /usr/share/doc /usr/share/licenses /usr/share/man/man1 /usr/share/man/man5 /usr/share/man /usr/share/zsh/site-functions")
		eventually(t, "nothing is left", func() error { return before.differences(look(t)) })
	})
}

// window is that of most of the test.
const window = 2 * time.Second

// when is a time that systemd knows of the agent's service.
func when(t *testing.T, property string) time.Time {
	t.Helper()
	at, err := time.Parse("Mon 2006-01-02 15:04:05.000000 MST", sh(t, "systemctl show --timestamp=us+utc --value -p "+property+" stoker"))
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// nothingDenied wants no word of AppArmor about the agent, from the boot of the machine until now.
func nothingDenied(t *testing.T) {
	t.Helper()
	if log := sh(t, "journalctl -k -o cat --no-pager | grep 'apparmor=\"DENIED\".*profile=\"stoker\"' || true"); log != "" {
		t.Errorf("AppArmor denies:\n%s", log)
	}
}

// newer wants a profile of a window that began after a time.
func newer(container string, after time.Time) error {
	all, err := profiles(container)
	if err != nil {
		return err
	}
	if len(all) == 0 || all[len(all)-1].Start.Before(after) {
		return fmt.Errorf("%d profiles, none of after %s", len(all), after)
	}
	return nil
}
