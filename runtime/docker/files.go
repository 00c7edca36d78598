package docker

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// This file reads the engine's own notes about its containers, where it refuses to answer. Their format is the engine's own
// affair: what cannot be understood is counted and left out.

const (
	// maxFile bounds one file in bytes. Long labels and environments make some tens of kB.
	maxFile = 1 << 20
	// maxFiles bounds how many containers are looked at.
	maxFiles = 10_000
)

// file is what was read of a container's notes.
type file struct {
	modified time.Time
	size     int64
	c        container.Container
	alive    bool // it has processes, or has not had one yet
}

// dataRoot is where the engine's files are. What its configuration does not say, or says on its command line, is as usual.
func (c *Client) dataRoot() string {
	f, err := os.Open(c.config)
	if err != nil {
		return c.root
	}
	defer f.Close()
	var said struct {
		DataRoot string `json:"data-root"`
		Graph    string `json:"graph"` // what data-root was called once
	}
	if err := json.NewDecoder(io.LimitReader(f, maxFile)).Decode(&said); err != nil {
		c.log.Debug("Docker's configuration is not understood", "file", c.config, "err", err)
		return c.root
	}
	return cmp.Or(said.DataRoot, said.Graph, c.root)
}

// readFiles tells what the engine's files say, as a list would. It returns how many containers that is.
func (t *table) readFiles() (int, error) {
	dir := filepath.Join(t.dataRoot(), "containers")
	d, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	names, err := d.Readdirnames(maxFiles)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("read %s: %w", dir, err)
	}
	t.loop.Syncing()
	seen := map[string]bool{}
	n := 0
	for _, id := range names {
		if !validID(id) {
			continue
		}
		seen[id] = true
		f, err := t.readFile(filepath.Join(dir, id, "config.v2.json"), id)
		switch {
		case errors.Is(err, fs.ErrNotExist): // being made, or being removed
			continue
		case err != nil:
			t.n.fileErrors.Add(1)
			t.log.Debug("what Docker noted about a container is not understood", "err", err)
			continue
		case f.alive:
			n++
			t.say(container.Upsert, f.c, time.Now())
		}
	}
	maps.DeleteFunc(t.files, func(id string, _ *file) bool { return !seen[id] })
	t.loop.Synced()
	return n, nil
}

// readFile reads one file, unless it is as it was.
func (t *table) readFile(path, id string) (*file, error) {
	// A pipe in its place must not hold us up.
	r, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	info, err := r.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: it is not a regular file", path)
	}
	if f := t.files[id]; f != nil && f.modified.Equal(info.ModTime()) && f.size == info.Size() {
		return f, nil
	}
	b, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("read %s: it is larger than %d bytes", path, maxFile)
	}
	f, err := parseFile(b, id)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	f.modified, f.size = info.ModTime(), info.Size()
	t.files[id] = f
	return f, nil
}

// parseFile understands a config.v2.json of the container of an id.
func parseFile(b []byte, id string) (*file, error) {
	var notes struct {
		ID      string
		Name    string
		Created time.Time
		State   struct {
			Running    bool
			Paused     bool
			Restarting bool
			StartedAt  time.Time
		}
		Config *struct {
			Image  string
			Labels map[string]string
			Env    []string
		}
	}
	if err := json.Unmarshal(b, &notes); err != nil {
		return nil, err
	}
	switch {
	case notes.ID != id:
		return nil, fmt.Errorf("it is about the container %.80q, not %s", notes.ID, id)
	case notes.Config == nil:
		return nil, errors.New("it has no Config")
	}
	s := &notes.State
	f := &file{
		c:     container.Container{ID: id, Runtime: "docker", Name: nameOf(notes.Name), Image: notes.Config.Image, CreatedAt: notes.Created, Env: container.ServiceEnv(notes.Config.Env)},
		alive: s.Running || s.Paused || s.Restarting || s.StartedAt.IsZero(),
	}
	labels := notes.Config.Labels
	if labels == nil {
		labels = map[string]string{}
	}
	describe(&f.c, labels)
	return f, nil
}
