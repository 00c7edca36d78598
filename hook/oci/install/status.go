package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"syscall"
	"time"
)

// Status is how things stand with one engine.
type Status struct {
	Engine Engine `json:"runtime"`
	// Installed means that there is a file of ours that names the hook and that the engine reads.
	Installed bool `json:"installed"`
	// UpToDate means that installing would change nothing.
	UpToDate bool `json:"up_to_date"`
	// Reads is where the engine looks: hooks directories, or containerd's configuration.
	Reads []string `json:"reads"`
	// NamedBy are our files that name the hook, whether the engine reads them or not.
	NamedBy []string `json:"named_by"`
	// Binary is the hook's program, as our files name it, and what it is; BinaryErr why it cannot be run.
	Binary        string `json:"binary"`
	BinaryVersion string `json:"binary_version,omitempty"`
	BinaryErr     string `json:"binary_error,omitempty"`
	// Socket is where the agent listens, SocketErr why nobody answers there.
	Socket    string `json:"socket"`
	SocketErr string `json:"socket_error,omitempty"`
	// Err is why it is not known how things stand.
	Err string `json:"error,omitempty"`
}

// Status looks, and changes nothing.
func (c Config) Status(ctx context.Context, e Engine) Status {
	s := Status{Engine: e, Binary: c.Binary, Socket: c.Socket, Reads: []string{}, NamedBy: []string{}}
	if err := c.files(e, &s); err != nil {
		s.Err = err.Error()
	}
	if p, err := c.install(ctx, e); err == nil {
		s.UpToDate = s.Installed && len(p.Changes) == 0
	}
	named := c
	named.Binary = s.Binary
	if err := named.checkBinary(ctx); err != nil {
		s.BinaryErr = err.Error()
	}
	if v, err := version(c.path(s.Binary)); err == nil {
		s.BinaryVersion = v
	}
	if err := answers(s.Socket); err != nil {
		s.SocketErr = err.Error()
	}
	return s
}

// files finds our files and what they say.
func (c Config) files(e Engine, s *Status) error {
	if e == Containerd {
		conf, err := c.containerdConfig()
		if err != nil {
			return err
		}
		s.Reads = append(s.Reads, containerdFile)
		var spec struct {
			Hooks struct {
				CreateRuntime []json.RawMessage `json:"createRuntime"`
			} `json:"hooks"`
		}
		b, err := readFile(c.path(SpecFile))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := json.Unmarshal(b, &spec); err != nil {
			return fmt.Errorf("%s: %w; containerd would not start with it: run stoker hook install --runtime containerd", SpecFile, err)
		}
		for _, h := range spec.Hooks.CreateRuntime {
			entry, err := json.Marshal(map[string]any{"hook": h})
			if err == nil && ours(entry) == nil {
				s.named(SpecFile, entry)
			}
		}
		for _, named := range conf.runtimes {
			s.Installed = s.Installed || named == SpecFile && len(s.NamedBy) > 0
		}
		return nil
	}
	dirs, err := c.hooksDirs(e)
	if err != nil {
		return err
	}
	s.Reads = dirs
	for _, d := range dirs {
		path := filepath.Join(d, hookFile)
		b, err := readFile(c.path(path))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = ours(b)
		}
		if err != nil {
			return fmt.Errorf("%s: %w; the engine may refuse to start containers: see stoker hook install --runtime %s", path, err, e)
		}
		s.Installed = true
		s.named(path, b)
	}
	return nil
}

// named takes note of a file of ours and of the program and the socket that it names.
func (s *Status) named(path string, text []byte) {
	s.NamedBy = append(s.NamedBy, path)
	var f struct {
		Hook struct {
			Path string `json:"path"`
		} `json:"hook"`
	}
	if err := json.Unmarshal(text, &f); err == nil && f.Hook.Path != "" {
		s.Binary = f.Hook.Path
	}
}

// answers connects as a hook does and hangs up.
func answers(socket string) error {
	c, err := net.DialTimeout("unixpacket", socket, time.Second)
	switch {
	case err == nil:
		return c.Close()
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED):
		return errors.New("no agent listens there: start stoker, or see runtimes.hook.socket; containers start without it meanwhile")
	}
	return err
}
