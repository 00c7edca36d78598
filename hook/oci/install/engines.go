package install

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/BurntSushi/toml"
)

// defaultHooksDir is what Podman and CRI-O read unless they are told otherwise. Podman 4.3.1 does not read
// /etc/containers/oci/hooks.d, though its manual says so.
const defaultHooksDir = "/usr/share/containers/oci/hooks.d"

// hooksDirs returns where an engine looks for hooks, the last word of its configuration.
func (c Config) hooksDirs(e Engine) ([]string, error) {
	if c.HooksDir != "" {
		if !filepath.IsAbs(c.HooksDir) {
			return nil, fmt.Errorf("%s is no full path of a hooks directory", c.HooksDir)
		}
		return []string{filepath.Clean(c.HooksDir)}, nil
	}
	// containers.conf(5), crio.conf(5)
	files, parts := []string{"/usr/share/containers/containers.conf", "/etc/containers/containers.conf"}, "/etc/containers/containers.conf.d/*.conf"
	if e == CRIO {
		files, parts = []string{"/etc/crio/crio.conf"}, "/etc/crio/crio.conf.d/*.conf"
	}
	dirs := []string{defaultHooksDir}
	found, err := filepath.Glob(c.path(parts)) // sorted
	if err != nil {
		return nil, err
	}
	for i, f := range files {
		files[i] = c.path(f)
	}
	for _, path := range append(files, found...) {
		var conf struct {
			Engine struct {
				HooksDir []string `toml:"hooks_dir"`
			} `toml:"engine"`
			CRIO struct {
				Runtime struct {
					HooksDir []string `toml:"hooks_dir"`
				} `toml:"runtime"`
			} `toml:"crio"`
		}
		if err := decode(path, &conf); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		if said := append(conf.Engine.HooksDir, conf.CRIO.Runtime.HooksDir...); len(said) > 0 {
			dirs = said
		}
	}
	for _, d := range dirs {
		if !filepath.IsAbs(d) {
			return nil, fmt.Errorf("%s's configuration names a hooks directory %q, which is no full path: choose one with --hooks-dir", e, d)
		}
	}
	return dirs, nil
}

// decode reads a TOML file.
func decode(path string, v any) error {
	b, err := readFile(path)
	if err != nil {
		return err
	}
	if err := toml.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

const containerdFile = "/etc/containerd/config.toml"

// The CRI plugin's name in config.toml, by the version of the file: containerd 2 writes 3, and reads older ones too.
const (
	criPlugin2 = "io.containerd.grpc.v1.cri"
	criPlugin3 = "io.containerd.cri.v1.runtime"
)

// containerdConfig is what of containerd's configuration is of interest.
type containerdConfig struct {
	plugin string
	// runtimes are the CRI plugin's, with their base_runtime_spec. There is one called runc unless the file says otherwise.
	runtimes map[string]string
}

func (c Config) containerdConfig() (containerdConfig, error) {
	conf := containerdConfig{plugin: criPlugin3, runtimes: map[string]string{}}
	seen := map[string]bool{}
	files := []string{c.path(containerdFile)}
	for i := 0; i < len(files) && i < 100; i++ { // imports may import
		if seen[files[i]] {
			continue
		}
		seen[files[i]] = true
		var file struct {
			Version int      `toml:"version"`
			Imports []string `toml:"imports"`
			Plugins map[string]struct {
				Containerd struct {
					Runtimes map[string]struct {
						Spec string `toml:"base_runtime_spec"`
					} `toml:"runtimes"`
				} `toml:"containerd"`
			} `toml:"plugins"`
		}
		if err := decode(files[i], &file); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return conf, err
		}
		if i == 0 && file.Version < 3 {
			conf.plugin = criPlugin2
		}
		for _, plugin := range []string{criPlugin2, criPlugin3} {
			for name, r := range file.Plugins[plugin].Containerd.Runtimes {
				if r.Spec != "" || conf.runtimes[name] == "" {
					conf.runtimes[name] = r.Spec
				}
			}
		}
		for _, pattern := range file.Imports {
			if !filepath.IsAbs(pattern) {
				pattern = filepath.Join(filepath.Dir(containerdFile), pattern)
			}
			more, err := filepath.Glob(c.path(pattern))
			if err != nil {
				return conf, fmt.Errorf("imports of %s: %w", files[i], err)
			}
			slices.Sort(more)
			files = append(files, more...)
		}
	}
	if len(conf.runtimes) == 0 {
		conf.runtimes["runc"] = ""
	}
	return conf, nil
}
