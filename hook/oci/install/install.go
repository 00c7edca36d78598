// Package install puts the OCI hook in front of an engine's containers and takes it away again. It works out what would change
// (Plan), which a person may look at, and does it in steps that leave a working engine wherever they are interrupted. It writes and
// removes files of stoker's only, edits no engine's configuration and starts or stops nothing; what is left for a person to do,
// it says.
//
// Podman and CRI-O read a JSON file per hook from their hooks directories, at each start of a container, and fail every start
// when it names a program that is not there. containerd has no such thing: its CRI plugin starts containers of a runtime from a
// complete OCI spec (base_runtime_spec), which it reads when it starts itself. That spec is a file of ours; naming it in
// config.toml and restarting containerd is a person's decision.
//
// Nothing here is safe for use by two goroutines, or two stokers, on one Root.
package install

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/hook/oci/wire"
)

// Engine is an engine that can have the hook.
type Engine string

const (
	Podman     Engine = "podman"
	CRIO       Engine = "crio"
	Containerd Engine = "containerd"
)

// Engines are all.
var Engines = []Engine{Podman, CRIO, Containerd}

const (
	// Binary is where packages put the hook.
	Binary = "/usr/libexec/stoker/stoker-hook"
	// hookFile is ours in a hooks directory. Its end is what makes an engine read it.
	hookFile = "90-stoker.json"
	// SpecFile is the spec that containerd is told to start from.
	SpecFile = "/etc/stoker/containerd-base-spec.json"
	// program is the main package of what may be installed as the hook.
	program = "github.com/stoker-profiler/stoker/cmd/stoker-hook"
	// timeoutSeconds is what an engine allows the hook, and fails the start after. The hook's own time is a hundredth of it.
	timeoutSeconds = 2
	// maxFile bounds what is read of configurations and specs.
	maxFile = 4 << 20
)

// Config says where things are.
type Config struct {
	// Root is put before all paths that are read or written, and not before those that are written into files; "" outside of tests.
	Root string
	// Binary is the hook as engines will call it.
	Binary string
	// Socket is where the agent listens.
	Socket string
	// HooksDir is where Podman's or CRI-O's hook goes; "" asks the engine's configuration.
	HooksDir string
	// Base is a file with the spec that containerd's is made from; "" asks the engine's configuration, then `ctr oci spec`.
	Base string
	// owner is who has to own the hook: root but for tests.
	owner uint32
	// ctr prints containerd's default spec; nil runs the program.
	ctr func(context.Context) ([]byte, error)
}

func (c Config) path(p string) string { return filepath.Join(c.Root, p) }

// Change is one file that becomes another. Old is nil where there was none, New where there will be none.
type Change struct {
	Path     string
	Old, New []byte
}

// Plan is what is to be done: changes by us, in this order, then steps by a person.
type Plan struct {
	Changes []Change
	Notes   []string
	root    string
}

// Install plans to put the hook in place. A plan without changes means that it is. It fails where the hook could not be run, for
// then every container would fail to start.
func (c Config) Install(ctx context.Context, e Engine) (Plan, error) {
	if err := c.checkBinary(ctx); err != nil {
		return Plan{}, fmt.Errorf("install the hook for %s: %w", e, err)
	}
	p, err := c.install(ctx, e)
	if err != nil {
		return Plan{}, fmt.Errorf("install the hook for %s: %w", e, err)
	}
	return p, nil
}

func (c Config) install(ctx context.Context, e Engine) (Plan, error) {
	if e == Containerd {
		return c.installContainerd(ctx)
	}
	p := Plan{root: c.Root}
	dirs, err := c.hooksDirs(e)
	if err != nil {
		return p, err
	}
	dir := dirs[0]
	for _, d := range dirs { // the first that is there
		if _, err := os.Stat(c.path(d)); err == nil {
			dir = d
			break
		}
	}
	text, err := marshal(map[string]any{
		"version": "1.0.0", "hook": c.hook(), "when": map[string]any{"always": true}, "stages": []string{"createRuntime"},
	})
	if err != nil {
		return p, err
	}
	path := filepath.Join(dir, hookFile)
	if err := p.write(c, path, text, ours); err != nil {
		return p, err
	}
	p.Notes = append(p.Notes, fmt.Sprintf("%s reads %s at each start of a container: the next one is announced.", e, dir))
	if other := otherReader(e); other != "" {
		if theirs, err := c.hooksDirs(other); err == nil && slices.Contains(theirs, dir) {
			p.Notes = append(p.Notes, fmt.Sprintf("%s, if it is on this machine, reads the same directory.", other))
		}
	}
	return p, nil
}

func otherReader(e Engine) Engine {
	switch e {
	case Podman:
		return CRIO
	case CRIO:
		return Podman
	}
	return ""
}

// hook is the entry of a hooks directory's file and of a spec.
func (c Config) hook() map[string]any {
	env := []string{"GOMAXPROCS=1"} // the Go runtime then starts fewer threads: a third of the hook's time
	if c.Socket != wire.Socket {
		env = append(env, wire.SocketVariable+"="+c.Socket)
	}
	return map[string]any{"path": c.Binary, "args": []string{"stoker-hook"}, "env": env, "timeout": timeoutSeconds}
}

// Uninstall plans to take the hook away: everything that names the program, and never the program itself.
func (c Config) Uninstall(e Engine) (Plan, error) {
	p := Plan{root: c.Root}
	err := func() error {
		if e == Containerd {
			return c.uninstallContainerd(&p)
		}
		dirs, err := c.hooksDirs(e)
		if err != nil {
			return err
		}
		for _, d := range dirs {
			if err := p.write(c, filepath.Join(d, hookFile), nil, ours); err != nil {
				return err
			}
		}
		return nil
	}()
	if err != nil {
		return Plan{}, fmt.Errorf("uninstall the hook of %s: %w", e, err)
	}
	return p, nil
}

// RemoveBinary removes the hook's program, if no engine can call it any more as far as files tell. A containerd that has not been
// restarted since its spec changed still calls it; that is the caller's to know.
func (c Config) RemoveBinary(ctx context.Context) error {
	for _, e := range Engines {
		s := c.Status(ctx, e)
		remedy := fmt.Sprintf("run `stoker hook uninstall --runtime %s` first and do what it says", e)
		if s.Err != "" {
			return fmt.Errorf("remove %s: it is not known whether %s calls it: %s", c.Binary, e, s.Err)
		}
		if len(s.NamedBy) > 0 {
			return fmt.Errorf("remove %s: %s names it, and containers would fail to start: %s", c.Binary, s.NamedBy[0], remedy)
		}
	}
	conf, err := c.containerdConfig()
	if err != nil {
		return fmt.Errorf("remove %s: %w", c.Binary, err)
	}
	for _, spec := range conf.runtimes {
		if spec == SpecFile {
			return fmt.Errorf("remove %s: %s still names %s, so a running containerd may call it until it is restarted: "+
				"run `stoker hook uninstall --runtime containerd` and do what it says", c.Binary, containerdFile, SpecFile)
		}
	}
	if err := os.Remove(c.path(c.Binary)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the hook: %w", err)
	}
	return nil
}

// write adds a change of a file to the plan, unless it is so already. check looks at what is there now.
func (p *Plan) write(c Config, path string, text []byte, check func([]byte) error) error {
	old, err := readFile(c.path(path))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		old = nil
	case err != nil:
		return err
	default:
		if err := check(old); err != nil {
			return fmt.Errorf("%s is not stoker's: %w; remove or rename it", path, err)
		}
	}
	if (old == nil) == (text == nil) && bytes.Equal(old, text) {
		return nil
	}
	p.Changes = append(p.Changes, Change{path, old, text})
	return nil
}

// ours says why a file in a hooks directory is not one of ours. One that a crash has left empty is.
func ours(b []byte) error {
	var f struct {
		Hook struct {
			Path string   `json:"path"`
			Args []string `json:"args"`
		} `json:"hook"`
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return nil
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	if filepath.Base(f.Hook.Path) != "stoker-hook" && !slices.Equal(f.Hook.Args, []string{"stoker-hook"}) {
		return fmt.Errorf("it runs %q", f.Hook.Path)
	}
	return nil
}

// Apply does what a plan says. A file is either the old or the new one at any moment, also after a crash; engines never see half
// of one, nor the name under which it is written.
func (p Plan) Apply() error {
	for _, ch := range p.Changes {
		if err := p.apply(ch); err != nil {
			return fmt.Errorf("change %s: %w", ch.Path, err)
		}
	}
	return nil
}

func (p Plan) apply(ch Change) error {
	path := filepath.Join(p.root, ch.Path)
	dir := filepath.Dir(path)
	// What a stoker that was killed has left. Its name ends in no .json, so no engine has read it.
	left, err := filepath.Glob(filepath.Join(dir, "."+filepath.Base(path)+".*"))
	if err != nil {
		return err
	}
	for _, f := range left {
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	if ch.New == nil {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return syncDir(dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails when all went well: it has its name by then
	_, err = f.Write(ch.New)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()) // rootless engines read it, too
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// hiddenDirs are those that units commonly hide from an engine (PrivateTmp=, ProtectHome=), or that are nobody's to run programs from.
var hiddenDirs = []string{"/tmp", "/var/tmp", "/dev", "/home", "/root", "/run/user", "/proc", "/sys"}

// checkBinary makes sure that every engine can run the hook, that nobody but root can put something else in its place, and that it
// is the hook.
func (c Config) checkBinary(ctx context.Context) error {
	remedy := fmt.Sprintf("put it there with `install -D -o root -m 755 stoker-hook %s`, or name another place with --binary", Binary)
	if !filepath.IsAbs(c.Binary) || filepath.Clean(c.Binary) != c.Binary {
		return machine("%s is no full path of the hook: %s", c.Binary, remedy)
	}
	real, err := filepath.EvalSymlinks(c.path(c.Binary))
	if errors.Is(err, fs.ErrNotExist) {
		return machine("there is no %s: %s", c.Binary, remedy)
	}
	if err != nil {
		return fmt.Errorf("look at %s: %w", c.Binary, err)
	}
	root, err := filepath.EvalSymlinks(c.path("/"))
	if err != nil {
		return err
	}
	inside, err := filepath.Rel(root, real)
	if err != nil {
		return err
	}
	for _, d := range hiddenDirs {
		for _, p := range []string{c.Binary, "/" + inside} {
			if strings.HasPrefix(p, d+"/") {
				return machine("%s is below %s, which engines may not see or may not run programs from: %s", c.Binary, d, remedy)
			}
		}
	}
	for p := real; ; p = filepath.Dir(p) {
		info, err := os.Stat(p)
		if err != nil {
			return fmt.Errorf("look at %s: %w", p, err)
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		switch {
		case !ok || st.Uid != c.owner:
			return machine("%s does not belong to root, so another user could put a program there that root's engines run: chown it, or %s", p, remedy)
		case info.Mode().Perm()&0o022 != 0:
			return machine("%s can be written to by others than root, who could put a program there that root's engines run: chmod go-w it, or %s", p, remedy)
		case info.Mode().Perm()&0o005 != 0o005:
			return machine("%s cannot be read and run by everybody, so rootless engines would fail to start containers: chmod 755 it", p)
		case p == real && !info.Mode().IsRegular():
			return machine("%s is not a program: %s", c.Binary, remedy)
		}
		if p == root || p == "/" {
			break
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(real, &st); err != nil {
		return fmt.Errorf("look at the file system of %s: %w", c.Binary, err)
	}
	switch {
	case st.Flags&unix.ST_NOEXEC != 0:
		return machine("%s is on a file system from which nothing may be run (noexec): %s", c.Binary, remedy)
	case slices.Contains([]int64{unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CEPH_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC}, int64(st.Type)):
		return machine("%s is on a file system that a network or another process serves, for which every start of a container would wait: %s", c.Binary, remedy)
	}
	if _, err := version(real); err != nil {
		return machine("%s is not stoker's hook (%v): %s", c.Binary, err, remedy)
	}
	return try(ctx, real)
}

// version tells which version of the hook a file is, without running it.
func version(path string) (string, error) {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return "", err
	}
	if info.Path != program {
		return "", fmt.Errorf("it is %q", info.Path)
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && (v == "" || v == "(devel)") {
			v = s.Value
		}
	}
	if v == "" {
		v = "unknown"
	}
	return v, nil
}

// try runs the hook as an engine would, for no container: what cannot be run here would stop every one.
func try(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, timeoutSeconds*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = []string{wire.SocketVariable + "=/nonexistent"}
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		return machine("%s cannot be run on this machine: %v %s", path, err, out)
	}
	return nil
}

// machineError is a machine that is not as it has to be. Its text has the remedy.
type machineError struct{ text string }

func (e *machineError) Error() string  { return e.text }
func (e *machineError) Remedy() string { return e.text }

func machine(format string, args ...any) error { return &machineError{fmt.Sprintf(format, args...)} }

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("%s is no file of at most %d bytes", path, maxFile)
	}
	b, err := os.ReadFile(path)
	if b == nil {
		b = []byte{} // empty is not missing
	}
	return b, err
}

func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(v)
	return b.Bytes(), err
}
