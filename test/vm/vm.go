// Package vm boots a virtual machine with Debian 12, with or without systemd, and a kernel of Debian's, and runs a command in it, for
// tests that need what this machine lacks: systemd, a pure cgroup v2 tree, another kernel, another processor. QEMU emulates the
// processor (TCG), so that it works on any machine and is slow: what is measured in a guest says nothing about time.
//
// What was downloaded and built is kept below the user's cache directory, keyed by package versions and by the recipes in this folder,
// and used again. A guest writes to nothing but memory and temporary files; it has no network. Building needs root and the packages
// that packaging/setup.sh calls the set "vm"; booting needs only QEMU. Functions may be used by any goroutine and several
// processes at the same time.
package vm

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

var (
	//go:embed tree.sh
	treeScript []byte
	//go:embed bare.sh
	bareScript []byte
	//go:embed initrd.sh
	initrdScript []byte
	//go:embed init.sh
	initScript []byte
)

// Kernels of Debian 12, by the packages that depend on the newest build of each.
const (
	Kernel6_1       = "linux-image-cloud-amd64"
	Kernel6_12      = "linux-image-6.12-cloud-amd64"
	Kernel6_1ARM64  = "linux-image-cloud-arm64"
	Kernel6_12ARM64 = "linux-image-6.12-cloud-arm64"
)

// Engines are the packages of a guest that runs every engine there is in Debian 12, EngineModules what the kernel needs for that. Tests
// that ask for the same guest share it.
var (
	Engines = []string{
		"containerd", "runc", "crun", "docker.io",
		"podman", "netavark", "uidmap", "slirp4netns", "fuse-overlayfs",
		"systemd-container", "lxc", "apparmor",
	}
	EngineModules = []string{"overlay", "veth", "tun", "fuse"}
)

// modules are what every guest needs to reach its disks and the host; what a kernel has built in costs nothing.
var modules = []string{"virtio_pci", "virtio_blk", "virtio_console", "ext4"}

// Config says what a guest is made of.
type Config struct {
	Kernel string // a package that depends on the kernel's, as Kernel6_1; its name ends with the processor's
	// Bare leaves systemd out: the packages are unpacked and nothing of them is set up, and the command runs right after the
	// kernel has started, with proc, sysfs, cgroup2, bpffs and tracefs mounted. A processor other than ours needs it.
	Bare     bool
	Packages []string // Debian packages of the guest beside systemd's own; virtual ones are not resolved: name a real one
	Modules  []string // kernel modules that are loaded before systemd starts, with what they depend on
	// Log is called with a line for each step that takes longer than a moment. nil discards.
	Log func(format string, args ...any)
}

// base are the packages of every guest.
var base = []string{"systemd", "systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd", "udev", "kmod", "iproute2", "procps",
	"login", "passwd", "busybox-static"}

// bareBase are the packages of every guest without systemd.
var bareBase = []string{"kmod", "procps", "busybox-static"}

// emulator says how a processor is emulated: Debian's name for it → QEMU's program and arguments.
var emulator = map[string]struct {
	program, cpu, console string
	machine               []string
}{
	// no_timer_check: where QEMU gets little of a CPU, the kernel takes its timer for broken and panics ("IO-APIC + timer doesn't work").
	"amd64": {program: "qemu-system-x86_64", cpu: "max", console: "ttyS0 no_timer_check"},
	// Not "max", which signs pointers with a real cipher, slowly: three times the time to boot.
	"arm64": {program: "qemu-system-aarch64", cpu: "cortex-a76", console: "ttyAMA0", machine: []string{"-M", "virt"}},
}

// Guest is what can be booted, any number of times, also at the same time.
type Guest struct {
	kernel, initrd, root string
	arch                 string
	bare                 bool
	log                  func(format string, args ...any)
}

// keptFor is how long something that nobody used stays in the cache.
const keptFor = 14 * 24 * time.Hour

// Build makes a guest, or finds it in the cache. It takes about two minutes and 2 GB of disk, a second if nothing is to be
// done. ctx ends whatever was started.
func Build(ctx context.Context, cfg Config) (*Guest, error) {
	if cfg.Log == nil {
		cfg.Log = func(string, ...any) {}
	}
	arch := cfg.Kernel[strings.LastIndexByte(cfg.Kernel, '-')+1:]
	emulated, ok := emulator[arch]
	switch {
	case !ok:
		return nil, fmt.Errorf("build a virtual machine: the kernel %s is for no processor that we emulate", cfg.Kernel)
	case !cfg.Bare && arch != runtime.GOARCH:
		return nil, fmt.Errorf("build a virtual machine: setting up Debian's packages for %s on %s is not possible: Bare has to be set", arch, runtime.GOARCH)
	}
	for _, program := range []string{emulated.program, "debootstrap", "mkfs.ext4", "modprobe", "depmod", "busybox", "xz"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("build a virtual machine: %w; run: packaging/setup.sh vm", err)
		}
	}
	user, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("find where to keep virtual machines: %w", err)
	}
	c := cache{dir: filepath.Join(user, "stoker-vm")}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return nil, fmt.Errorf("keep virtual machines: %w", err)
	}
	c.prune(time.Now().Add(-keptFor))
	apt, err := newApt(c.dir, arch)
	if err != nil {
		return nil, fmt.Errorf("keep lists of packages: %w", err)
	}

	kernelPackage, err := apt.dependency(ctx, cfg.Kernel)
	if err != nil {
		return nil, err
	}
	versions, err := apt.candidates(ctx, []string{kernelPackage})
	if err != nil {
		return nil, err
	}
	kernelDir, err := c.get("kernel", key(versions), func(dir string) error {
		cfg.Log("download %s", versions)
		return apt.unpack(ctx, kernelPackage, dir)
	})
	if err != nil {
		return nil, fmt.Errorf("get the kernel %s: %w", kernelPackage, err)
	}
	busybox := "/bin/busybox"
	if arch != runtime.GOARCH {
		name := "busybox-static"
		version, err := apt.candidates(ctx, []string{name})
		if err != nil {
			return nil, err
		}
		dir, err := c.get("busybox", key(arch, version), func(dir string) error { return apt.unpack(ctx, name, dir) })
		if err != nil {
			return nil, fmt.Errorf("get busybox for %s: %w", arch, err)
		}
		busybox = filepath.Join(dir, "bin", "busybox")
	}

	load := slices.Concat(modules, cfg.Modules)
	initrdDir, err := c.get("initrd", key(versions, busybox, strings.Join(load, " "), string(initrdScript), string(initScript)), func(dir string) error {
		init := filepath.Join(dir, "init")
		if err := os.WriteFile(init, initScript, 0o755); err != nil {
			return err
		}
		return script(ctx, initrdScript, append([]string{kernelDir, init, busybox, filepath.Join(dir, "initrd.gz")}, load...)...)
	})
	if err != nil {
		return nil, fmt.Errorf("make the initial RAM disk of %s: %w", kernelPackage, err)
	}

	tree, packages := treeScript, slices.Concat(base, cfg.Packages)
	if cfg.Bare {
		tree, packages = bareScript, slices.Concat(bareBase, cfg.Packages)
	}
	slices.Sort(packages)
	packages = slices.Compact(packages)
	if versions, err = apt.candidates(ctx, packages); err != nil {
		return nil, err
	}
	rootDir, err := c.get("root", key(arch, versions, string(tree)), func(dir string) error {
		mirror, err := mirror(ctx)
		if err != nil {
			return err
		}
		cfg.Log("install Debian for %s with %d packages and what they depend on; takes about a minute and a half", arch, len(packages))
		return script(ctx, tree, dir, mirror, strings.Join(packages, ","), arch)
	})
	if err != nil {
		return nil, fmt.Errorf("make the guest's root: %w", err)
	}
	images, err := filepath.Glob(filepath.Join(kernelDir, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return nil, fmt.Errorf("%s holds the kernels %v, want one", kernelDir, images)
	}
	return &Guest{kernel: images[0], initrd: filepath.Join(initrdDir, "initrd.gz"), root: filepath.Join(rootDir, "root.ext4"),
		arch: arch, bare: cfg.Bare, log: cfg.Log}, nil
}

// cache is a directory of directories that are complete or not there.
type cache struct{ dir string }

func key(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d %s\n", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// get returns the directory of a key, which build fills if it is not there.
func (c cache) get(what, key string, build func(dir string) error) (dir string, err error) {
	dir = filepath.Join(c.dir, what+"-"+key)
	if now := time.Now(); os.Chtimes(dir, now, now) == nil {
		return dir, nil
	}
	made, err := os.MkdirTemp(c.dir, "new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(made)
	if err := os.Chmod(made, 0o755); err != nil {
		return "", err
	}
	if err := build(made); err != nil {
		return "", err
	}
	now := time.Now() // unpacking a package sets its own time
	if err := os.Chtimes(made, now, now); err != nil {
		return "", err
	}
	if err := os.Rename(made, dir); err != nil && !errors.Is(err, fs.ErrExist) { // another process was faster
		return "", err
	}
	return dir, nil
}

// prune removes what was not used since a time. What is in use was touched.
func (c cache) prune(before time.Time) {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.ModTime().Before(before) {
			os.RemoveAll(filepath.Join(c.dir, e.Name())) // another time, if not now
		}
	}
}

// output runs a program that answers with a few lines.
func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, errs.Bytes())
	}
	return string(out), nil
}

// script runs one of the scripts here in namespaces of its own, so that nothing of it stays when it has ended or was ended.
func script(ctx context.Context, text []byte, args ...string) error {
	f, err := os.CreateTemp("", "stoker-vm-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	args = append([]string{"--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", f.Name()}, args...)
	cmd := exec.CommandContext(ctx, "unshare", args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		text := out.Bytes()
		return fmt.Errorf("%w; the end of its output:\n%s", err, text[max(0, len(text)-4000):])
	}
	return nil
}

// apt asks for packages of one processor. For another than ours it has lists and archives of its own, so that this machine's
// dpkg never hears of the other.
type apt struct {
	suffix  string   // of names of packages
	options []string // of apt-get and apt-cache
}

func newApt(dir, arch string) (apt, error) {
	if arch == runtime.GOARCH {
		return apt{}, nil
	}
	state := filepath.Join(dir, "apt-"+arch)
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(state, d), 0o755); err != nil {
			return apt{}, err
		}
	}
	now := time.Now()
	return apt{suffix: ":" + arch, options: []string{
		"-o", "Dir::State::Lists=" + filepath.Join(state, "lists"), "-o", "Dir::Cache=" + filepath.Join(state, "cache"),
		"-o", "APT::Architectures::=" + arch, "-o", "APT::Architectures::=" + runtime.GOARCH,
	}}, os.Chtimes(state, now, now) // it is in use
}

// run runs apt-get or apt-cache.
func (a apt) run(ctx context.Context, program string, args ...string) (string, error) {
	return output(ctx, program, slices.Concat(a.options, args)...)
}

// dependency is the kernel's own package: those without a version in their name only depend on it.
func (a apt) dependency(ctx context.Context, meta string) (found string, err error) {
	err = a.updated(ctx, func() error {
		out, err := a.run(ctx, "apt-cache", "depends", meta+a.suffix)
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if p, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(p, "linux-image-") {
				found = strings.TrimSuffix(p, a.suffix)
				return nil
			}
		}
		return fmt.Errorf("package %s depends on no kernel", meta)
	})
	return found, err
}

// candidates names packages with the versions that would be installed, one a line.
func (a apt) candidates(ctx context.Context, packages []string) (string, error) {
	var names []string
	for _, p := range packages {
		names = append(names, p+a.suffix)
	}
	out, err := a.run(ctx, "apt-cache", append([]string{"policy"}, names...)...)
	if err != nil {
		return "", err
	}
	var name string
	found := map[string]string{}
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, " ") {
			name = strings.TrimSuffix(strings.TrimSpace(line), ":")
		} else if v, ok := strings.CutPrefix(strings.TrimSpace(line), "Candidate: "); ok && v != "(none)" {
			found[name] = v
		}
	}
	var list []string
	for _, p := range names {
		if found[p] == "" {
			return "", fmt.Errorf("apt knows no package %s", p)
		}
		list = append(list, p+" "+found[p])
	}
	return strings.Join(list, "\n"), nil
}

// updated runs f, and once more after apt-get update if it fails: lists of packages grow old, and old kernels vanish.
func (a apt) updated(ctx context.Context, f func() error) error {
	err := f()
	if err == nil {
		return nil
	}
	if _, updateErr := a.run(ctx, "apt-get", "update", "-q"); updateErr != nil {
		return errors.Join(err, updateErr)
	}
	return f()
}

// unpack downloads a package into dir and unpacks it there.
func (a apt) unpack(ctx context.Context, name, dir string) error {
	return a.updated(ctx, func() error {
		scratch, err := os.MkdirTemp("", "stoker-vm-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(scratch)
		cmd := exec.CommandContext(ctx, "apt-get", slices.Concat(a.options, []string{"download", "-q", "-o", "APT::Sandbox::User=root", name + a.suffix})...)
		cmd.Dir = scratch
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("download: %w: %s", err, out)
		}
		files, err := filepath.Glob(filepath.Join(scratch, "*.deb"))
		if err != nil || len(files) != 1 {
			return fmt.Errorf("apt-get download left %v", files)
		}
		_, err = output(ctx, "dpkg-deb", "-x", files[0], dir)
		return err
	})
}

// mirror is where this machine has Debian 12 from.
func mirror(ctx context.Context) (string, error) {
	out, err := output(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Release: bookworm")
	if err != nil {
		return "", err
	}
	first, _, _ := strings.Cut(out, "\n")
	if first == "" {
		return "", errors.New("apt knows no mirror of Debian 12 (bookworm); add one to /etc/apt/sources.list")
	}
	return first, nil
}

// Job is one boot of a guest.
type Job struct {
	// Command runs in the guest as root, with HOME and PATH set, once systemd has started what it starts.
	Command []string
	// Files are put into the guest below /host, read-only: path there → file or directory here.
	Files map[string]string
	// Cmdline is added to the kernel's command line.
	Cmdline string
	// Paced makes the guest's clock one of its instructions, 8 ns each: a machine that is busy with other things makes the guest slow and
	// not short of timer interrupts. It has one processor then, not two.
	Paced bool
	// CPU is QEMU's name of a processor with its options, "" for a usual one.
	CPU string
	// Output gets what the command writes to stdout and stderr, as it comes.
	Output io.Writer
}

// resultPrefix begins the guest's last line.
const resultPrefix = "stoker-vm: exit status "

// Run boots the guest, runs the command in it and switches it off. The error is nil only if the guest itself said that the command
// ended with 0; else it has the end of the guest's console. When ctx ends, the guest does.
func (g *Guest) Run(ctx context.Context, job Job) error {
	scratch, err := os.MkdirTemp("", "stoker-vm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	share := filepath.Join(scratch, "share.ext4")
	if err := shareImage(ctx, filepath.Join(scratch, "share"), share, job); err != nil {
		return fmt.Errorf("make the guest's second disk: %w", err)
	}
	console := filepath.Join(scratch, "console.log")
	e := emulator[g.arch]
	cmdline := "console=" + e.console + " panic=-1 quiet systemd.show_status=0 "
	if g.bare {
		cmdline += "stoker-vm.bare "
	}
	processors := []string{"-accel", "tcg", "-smp", "2"}
	if job.Paced {
		processors = []string{"-accel", "tcg,thread=single", "-icount", "shift=3", "-smp", "1"}
	}
	cmd := exec.CommandContext(ctx, e.program, append(slices.Concat(e.machine, processors),
		"-cpu", cmp.Or(job.CPU, e.cpu), "-m", "2G", "-nic", "none", "-no-reboot", "-nodefaults", "-display", "none", "-monitor", "none", "-serial", "file:"+console,
		"-kernel", g.kernel, "-initrd", g.initrd,
		"-append", strings.TrimSpace(cmdline+job.Cmdline),
		"-drive", "file="+g.root+",format=raw,if=virtio,cache=unsafe,snapshot=on",
		"-drive", "file="+share+",format=raw,if=virtio,readonly=on",
		"-device", "virtio-serial-pci", "-chardev", "file,id=out,path=/dev/fd/1", "-device", "virtserialport,chardev=out,name=stoker")...)
	cmd.Env = append(os.Environ(), "TMPDIR="+scratch) // where the changes to the first disk go
	cmd.WaitDelay = 10 * time.Second
	result := &lines{out: job.Output}
	var errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = result, &errs
	g.log("boot %s", filepath.Base(g.kernel))
	start := time.Now()
	result.first = func() { g.log("the guest is up after %.0f s", time.Since(start).Seconds()) }
	err = cmd.Run()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	g.log("the guest ended after %.0f s", time.Since(start).Seconds())
	if result.status == "0" {
		return nil
	}
	text, readErr := os.ReadFile(console)
	if readErr != nil {
		text = []byte(readErr.Error())
	}
	said := "the guest ended without saying how the command did"
	if result.status != "" {
		said = "the command ended with exit status " + result.status
	}
	return fmt.Errorf("%s (QEMU: %v %s); the end of the guest's console:\n%s", said, err, errs.Bytes(), text[max(0, len(text)-6000):])
}

// shareImage makes the second disk.
func shareImage(ctx context.Context, dir, image string, job Job) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	quoted := make([]string, len(job.Command))
	for i, arg := range job.Command {
		quoted[i] = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
	}
	run := "exec >/dev/vport0p1 2>&1 </dev/null\ncd /\necho\n" + strings.Join(quoted, " ") +
		"\nstatus=$?\necho\necho '" + resultPrefix + "'$status\nsync\nbusybox poweroff -f\n"
	if err := os.WriteFile(filepath.Join(dir, "run"), []byte(run), 0o755); err != nil {
		return err
	}
	for in, here := range job.Files {
		to := filepath.Join(dir, filepath.Join("/", in))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if _, err := output(ctx, "cp", "-a", "-L", here, to); err != nil {
			return err
		}
	}
	size, err := output(ctx, "du", "-sk", "--apparent-size", dir)
	if err != nil {
		return err
	}
	kib := 0
	if _, err := fmt.Sscan(size, &kib); err != nil {
		return fmt.Errorf("du: %w in %q", err, size)
	}
	_, err = output(ctx, "mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", dir, image, fmt.Sprint(kib+kib/8+8192)+"k")
	return err
}

// lines passes whole lines on and keeps the guest's last word.
type lines struct {
	out    io.Writer
	first  func()
	rest   []byte
	status string
}

// maxLine bounds a line of a guest that never ends it.
const maxLine = 1 << 20

// Write implements [io.Writer].
func (l *lines) Write(p []byte) (int, error) {
	if l.first != nil {
		l.first()
		l.first = nil
	}
	l.rest = append(l.rest, p...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok && len(l.rest) < maxLine {
			return len(p), nil
		}
		l.rest = rest
		line = bytes.TrimSuffix(line, []byte("\r"))
		if status, ok := strings.CutPrefix(string(line), resultPrefix); ok {
			l.status = status
			continue
		}
		if l.out != nil {
			if _, err := fmt.Fprintf(l.out, "%s\n", line); err != nil {
				return 0, err
			}
		}
	}
}
