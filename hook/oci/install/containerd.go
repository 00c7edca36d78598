package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os/exec"
	"slices"
	"time"
)

// installContainerd plans our spec: containerd's default, or what the engine starts from already, with the hook in it.
func (c Config) installContainerd(ctx context.Context) (Plan, error) {
	p := Plan{root: c.Root}
	conf, err := c.containerdConfig()
	if err != nil {
		return p, err
	}
	base, from, err := c.baseSpec(ctx, conf)
	if err != nil {
		return p, err
	}
	text, err := c.withHook(base, true)
	if err != nil {
		return p, fmt.Errorf("%s: %w", from, err)
	}
	if err := p.write(c, SpecFile, text, isSpec); err != nil {
		return p, err
	}
	p.Notes = append(p.Notes, fmt.Sprintf("The spec is made from %s. Make it again (stoker hook install --runtime containerd) when containerd is updated.", from))
	missing := []string{}
	for name, spec := range conf.runtimes {
		if spec != SpecFile {
			missing = append(missing, name)
		}
	}
	slices.Sort(missing)
	if len(missing) == 0 {
		if len(p.Changes) > 0 {
			p.Notes = append(p.Notes, "containerd reads it when it starts: restart containerd when it suits you. Containers run on meanwhile; those made afterwards are announced.")
		}
		return p, nil
	}
	p.Notes = append(p.Notes, fmt.Sprintf("stoker does not edit containerd's configuration. Add these lines to %s, into the tables if they are there:", containerdFile))
	for _, name := range missing {
		p.Notes = append(p.Notes, fmt.Sprintf("  [plugins.'%s'.containerd.runtimes.'%s']\n    base_runtime_spec = '%s'", conf.plugin, name, SpecFile))
	}
	p.Notes = append(p.Notes, "Then restart containerd when it suits you. Containers run on meanwhile; those of pods that are made afterwards are announced.")
	return p, nil
}

// baseSpec returns the spec to put the hook into, and says where it is from.
func (c Config) baseSpec(ctx context.Context, conf containerdConfig) ([]byte, string, error) {
	named := c.Base
	if named == "" {
		for _, spec := range slices.Sorted(maps.Values(conf.runtimes)) {
			if spec == "" || spec == SpecFile || spec == named {
				continue
			}
			if named != "" {
				return nil, "", fmt.Errorf("containerd's runtimes start from different specs, %s and %s: choose one with --base", named, spec)
			}
			named = spec
		}
	}
	if named != "" {
		b, err := readFile(c.path(named))
		return b, named, err
	}
	ctr := c.ctr
	if ctr == nil {
		ctr = runCtr
	}
	b, err := ctr(ctx)
	return b, "containerd's default (ctr oci spec)", err
}

// runCtr asks containerd's own command line for its default spec. It talks to no daemon.
func runCtr(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	path, err := exec.LookPath("ctr")
	if err != nil {
		return nil, machine("there is no ctr, which prints containerd's default spec (%v): install it, or name a file with that spec with --base", err)
	}
	cmd := exec.CommandContext(ctx, path, "oci", "spec")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("ask ctr for containerd's default spec: %w: %s", err, errs.Bytes())
	}
	return out.Bytes(), nil
}

// uninstallContainerd takes the hook out of our spec. The file stays as long as containerd is told to read it: without it the CRI
// plugin would not load at the next start.
func (c Config) uninstallContainerd(p *Plan) error {
	conf, err := c.containerdConfig()
	if err != nil {
		return err
	}
	old, err := readFile(c.path(SpecFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !slices.Contains(slices.Collect(maps.Values(conf.runtimes)), SpecFile) {
		p.Notes = append(p.Notes, "If containerd has run with this spec and not been restarted since, it still calls the hook: restart it before you remove the program.")
		return p.write(c, SpecFile, nil, isSpec)
	}
	text, err := c.withHook(old, false)
	if err != nil {
		return fmt.Errorf("%s: %w", SpecFile, err)
	}
	p.Notes = append(p.Notes, fmt.Sprintf("%s still names %s, which stays without the hook, for containerd would not start without the file. "+
		"Remove the lines with base_runtime_spec, restart containerd, and run this again to remove the file. Until containerd is restarted it calls the hook: do not remove the program before.",
		containerdFile, SpecFile))
	return p.write(c, SpecFile, text, isSpec)
}

// isSpec says why a file is no OCI spec.
func isSpec(b []byte) error {
	var spec struct {
		Version string `json:"ociVersion"`
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return nil
	}
	if err := json.Unmarshal(b, &spec); err != nil {
		return err
	}
	if spec.Version == "" {
		return errors.New("it has no ociVersion")
	}
	return nil
}

// withHook returns a spec with our hook last among those of createRuntime, or without it. All else stays as it is.
func (c Config) withHook(b []byte, with bool) ([]byte, error) {
	if err := isSpec(b); err != nil {
		return nil, fmt.Errorf("it is no OCI spec: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var spec map[string]any
	if err := d.Decode(&spec); err != nil {
		return nil, fmt.Errorf("it is no OCI spec: %w", err)
	}
	hooks, ok := spec["hooks"].(map[string]any)
	if !ok {
		if spec["hooks"] != nil {
			return nil, errors.New("its hooks are no object")
		}
		hooks = map[string]any{}
	}
	list, ok := hooks["createRuntime"].([]any)
	if !ok && hooks["createRuntime"] != nil {
		return nil, errors.New("its createRuntime hooks are no list")
	}
	list = slices.DeleteFunc(slices.Clone(list), func(h any) bool {
		entry, err := json.Marshal(map[string]any{"hook": h})
		return err == nil && ours(entry) == nil
	})
	if with {
		list = append(list, c.hook())
	}
	hooks["createRuntime"] = list
	if len(list) == 0 {
		delete(hooks, "createRuntime")
	}
	spec["hooks"] = hooks
	if len(hooks) == 0 {
		delete(spec, "hooks")
	}
	return marshal(spec)
}
