package containerdtest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
)

// busybox is Debian's static one: a shell and its tools in one file without libraries.
const busybox = "/bin/busybox"

// applets are the names under which busybox is linked into each image.
var applets = []string{"sh", "sleep", "true", "false", "ls", "cat", "echo", "ps", "id", "yes", "mkdir", "kill", "sha256sum", "usleep", "env", "touch"}

// File is one file of an image. Exactly one of Content, HostPath and Link says what is in it; a zero Content is an empty file.
type File struct {
	Content  []byte
	HostPath string      // copy this file of the host
	Link     string      // a symbolic link to this target
	Mode     fs.FileMode // 0 means 0755
}

// Host is a file copied from the host, executable.
func Host(path string) File { return File{HostPath: path} }

// Image says what an image consists of. busybox with its shell and a few tools in /bin, /etc/passwd and the usual empty
// directories are in each.
type Image struct {
	Ref    string          // "localhost/demo:1"; containerd wants a name with a host and a tag
	Files  map[string]File // absolute path → file
	Cmd    []string        // what runs when a Spec names no Args
	Env    []string        // "NAME=value"; PATH=/bin comes first
	Labels map[string]string
}

// Image makes an image and keeps it for Run, which imports it into the namespace that asks for it. A reference that was
// made before is replaced for namespaces that have not asked for it yet.
func (d *Daemon) Image(image Image) error {
	name := hex.EncodeToString([]byte(image.Ref))
	archive := filepath.Join(d.path("images"), name[max(0, len(name)-64):]+".tar")
	if err := image.Write(archive); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.images[image.Ref] = archive
	return nil
}

// Write makes the image as a docker-archive at path: what `ctr images import`, `docker load` and `podman load` accept.
func (image Image) Write(path string) (err error) {
	layer, err := image.layer()
	if err != nil {
		return fmt.Errorf("make image %s: %w", image.Ref, err)
	}
	digest := func(b []byte) string { h := sha256.Sum256(b); return hex.EncodeToString(h[:]) }
	config, err := json.Marshal(map[string]any{
		"architecture": goruntime.GOARCH, "os": "linux",
		"config": map[string]any{"Cmd": image.Cmd, "Env": append([]string{"PATH=/bin"}, image.Env...), "Labels": image.Labels},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer)}},
	})
	if err != nil {
		return fmt.Errorf("make image %s: %w", image.Ref, err)
	}
	configName := digest(config) + ".json"
	manifest, err := json.Marshal([]map[string]any{{"Config": configName, "RepoTags": []string{image.Ref}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return fmt.Errorf("make image %s: %w", image.Ref, err)
	}
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("make image %s: %w", image.Ref, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := tar.NewWriter(f)
	for _, part := range []struct {
		name string
		body []byte
	}{{configName, config}, {"layer.tar", layer}, {"manifest.json", manifest}} {
		if err := w.WriteHeader(&tar.Header{Name: part.name, Mode: 0o644, Size: int64(len(part.body)), Typeflag: tar.TypeReg}); err != nil {
			return fmt.Errorf("make image %s: %w", image.Ref, err)
		}
		if _, err := w.Write(part.body); err != nil {
			return fmt.Errorf("make image %s: %w", image.Ref, err)
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("make image %s: %w", image.Ref, err)
	}
	return nil
}

// layer is the image's root file system as an uncompressed tar.
func (image Image) layer() ([]byte, error) {
	files := map[string]File{
		"/bin/busybox": Host(busybox),
		"/etc/passwd":  {Content: []byte("root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"), Mode: 0o644},
	}
	for _, a := range applets {
		files["/bin/"+a] = File{Link: "busybox"}
	}
	maps.Copy(files, image.Files)
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	made := map[string]bool{}
	var directory func(dir string) error
	directory = func(dir string) error {
		if dir == "/" || made[dir] {
			return nil
		}
		if err := directory(path.Dir(dir)); err != nil {
			return err
		}
		made[dir] = true
		mode := int64(0o755)
		if dir == "/tmp" {
			mode = 0o1777
		}
		return w.WriteHeader(&tar.Header{Name: dir[1:] + "/", Mode: mode, Typeflag: tar.TypeDir})
	}
	for _, dir := range []string{"/bin", "/dev", "/etc", "/proc", "/sys", "/tmp"} {
		if err := directory(dir); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !path.IsAbs(name) || path.Clean(name) != name {
			return nil, fmt.Errorf("file %q: want a clean absolute path", name)
		}
		if err := directory(path.Dir(name)); err != nil {
			return nil, err
		}
		if err := add(w, name, files[name]); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func add(w *tar.Writer, name string, file File) error {
	h := &tar.Header{Name: name[1:], Mode: int64(file.Mode.Perm()), Typeflag: tar.TypeReg}
	if h.Mode == 0 {
		h.Mode = 0o755
	}
	if file.Link != "" {
		h.Typeflag, h.Linkname = tar.TypeSymlink, file.Link
		return w.WriteHeader(h)
	}
	var body io.Reader = bytes.NewReader(file.Content)
	h.Size = int64(len(file.Content))
	if file.HostPath != "" {
		f, err := os.Open(file.HostPath)
		if errors.Is(err, fs.ErrNotExist) && file.HostPath == busybox {
			return fmt.Errorf("%w; install the package busybox-static", err)
		}
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		body, h.Size = io.LimitReader(f, info.Size()), info.Size()
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(w, body)
	return err
}

// Import makes an image that Image made known to a namespace, once. Run does it by itself.
func (d *Daemon) Import(ctx context.Context, namespace, ref string) error {
	d.importing.Lock()
	defer d.importing.Unlock()
	d.mu.Lock()
	archive, known := d.images[ref]
	_, done := d.imported[namespace+" "+ref]
	refs := slices.Sorted(maps.Keys(d.images))
	d.mu.Unlock()
	if !known {
		return fmt.Errorf("image %q was not made; there are: %s", ref, strings.Join(refs, ", "))
	}
	if done {
		return nil
	}
	if _, err := d.ctr(ctx, namespace, "images", "import", archive); err != nil {
		return fmt.Errorf("import image %s: %w", ref, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.imported[namespace+" "+ref] = struct{}{}
	return nil
}
