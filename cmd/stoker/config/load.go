package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
)

// Source says which of the four places a value came from.
type Source string

// The places, the strongest last.
const (
	FromDefault Source = "default"
	FromFile    Source = "file"
	FromEnv     Source = "environment"
	FromFlag    Source = "flag"
)

// Origin is where a value came from.
type Origin struct {
	Source Source `json:"source"`
	// Where is "stoker.yaml:3:5", "STOKER_STORE_PATH" or "--store-path"; empty for a default.
	Where string `json:"where,omitempty"`
}

func (o Origin) String() string {
	if o.Where == "" {
		return string(o.Source)
	}
	return o.Where
}

// Loaded is a configuration with the origin of its values.
type Loaded struct {
	Config Config
	// File is the file that was read; empty if there was none.
	File string
	// Warnings are for the log: what was ignored and why.
	Warnings []string

	origins map[string]Origin
}

// Origin returns where the value of the key at path came from.
func (l *Loaded) Origin(path string) Origin {
	for p := path; ; {
		if o, ok := l.origins[p]; ok {
			return o
		}
		// A list or group that was set as a whole stands for its parts, but not for what its parts leave to their defaults.
		i := strings.LastIndexByte(p, '[')
		if i < 0 || strings.Contains(p[i:], ".") {
			return Origin{Source: FromDefault}
		}
		p = p[:i]
	}
}

// Options says where to look.
type Options struct {
	// File is the file to read. Optional: a file that does not exist is like an empty one.
	File     string
	Optional bool
	// Environ is in the form of os.Environ.
	Environ []string
	// Flags are the values of flags by their name without dashes (Key.Flag), only those that were given.
	Flags map[string]string
}

// Load reads all places and validates the result. The error is Problems with every mistake, or says why the file could not
// be read; a missing file that is not optional satisfies errors.Is(err, fs.ErrNotExist).
func Load(o Options) (*Loaded, error) {
	l := &Loaded{Config: Default(), origins: map[string]Origin{}}
	d := &decoder{file: o.File, where: map[string]string{}}
	if o.File != "" {
		data, err := readFile(o.File)
		switch {
		case errors.Is(err, fs.ErrNotExist) && o.Optional:
		case err != nil:
			return nil, err
		default:
			l.File = o.File
			d.decode(&l.Config, data)
		}
	}
	for path, where := range d.where {
		l.origins[path] = Origin{FromFile, where}
	}
	problems := d.problems
	keys := Keys()
	env := map[string]string{}
	for _, e := range o.Environ {
		if name, value, ok := strings.Cut(e, "="); ok && strings.HasPrefix(name, "STOKER_") && value != "" {
			env[name] = value
		}
	}
	delete(env, "STOKER_CONFIG") // read by the command line: it names the file
	for _, k := range keys {
		if value, ok := env[k.Env]; ok && k.Env != "" {
			l.apply(k, Origin{FromEnv, k.Env}, value, &problems)
			delete(env, k.Env)
		}
		if value, ok := o.Flags[k.Flag]; ok && k.Flag != "" {
			l.apply(k, Origin{FromFlag, "--" + k.Flag}, value, &problems)
		}
	}
	// Not an error: Kubernetes sets STOKER_SERVICE_HOST and more in every container beside a service called stoker.
	for _, name := range slices.Sorted(maps.Keys(env)) {
		l.Warnings = append(l.Warnings, fmt.Sprintf("environment variable %s names no key of the configuration and is ignored", name))
	}
	l.Config.fill()
	if err := l.Config.Validate(); err != nil {
		problems = append(problems, l.locate(err.(Problems), problems)...)
	}
	return l, problems.asError()
}

// Parse reads the text of a configuration file and validates it. name is used in messages only.
func Parse(name string, data []byte) (Config, error) {
	l := &Loaded{Config: Default(), origins: map[string]Origin{}}
	d := &decoder{file: name, where: map[string]string{}}
	d.decode(&l.Config, data)
	for path, where := range d.where {
		l.origins[path] = Origin{FromFile, where}
	}
	l.Config.fill()
	problems := d.problems
	if err := l.Config.Validate(); err != nil {
		problems = append(problems, l.locate(err.(Problems), problems)...)
	}
	return l.Config, problems.asError()
}

func (l *Loaded) apply(k Key, from Origin, value string, problems *Problems) {
	if err := k.set(&l.Config, value); err != nil {
		problems.add(from.Where, k.Path, "%v", err)
		return
	}
	l.origins[k.Path] = from
}

// locate gives the findings of Validate their places. What could not even be read, in whole or in part, is not reported a
// second time: the finding may only be a consequence.
func (l *Loaded) locate(found, before Problems) Problems {
	reported := map[string]bool{}
	for _, p := range before {
		for path := p.Key; path != ""; path = parent(path) {
			reported[path] = true
		}
	}
	var out Problems
	for _, p := range found {
		if reported[p.Key] {
			continue
		}
		for path := p.Key; path != "" && p.Where == ""; path = parent(path) {
			p.Where = l.origins[path].Where
		}
		out = append(out, p)
	}
	return out
}

// parent cuts the last step off a path.
func parent(path string) string {
	return path[:max(strings.LastIndexAny(path, ".["), 0)]
}

// fill completes what depends on other values.
func (c *Config) fill() {
	for i := range c.Pyroscope {
		e := &c.Pyroscope[i]
		if e.Name == "" {
			if u, err := url.Parse(e.URL); err == nil {
				e.Name = strings.TrimSuffix(u.Host+u.Path, "/")
			}
		}
		if e.Authorization.CredentialsFile != "" && e.Authorization.Type == "" {
			e.Authorization.Type = "Bearer"
		}
	}
}

// readFile reads at most maxFileBytes: the name may be that of a device.
func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("read the configuration: %s is larger than %s; is it the right file?", name, Bytes(maxFileBytes))
	}
	return data, nil
}
