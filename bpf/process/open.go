package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/bpf/symbol"
)

// ErrReplaced says that the file at a mapping's path is another one than was mapped: an upgrade under a running process.
var ErrReplaced = errors.New("the file is not the one that was mapped")

// inodeBits of an inode number are compared when the devices differ. overlayfs keeps the number of the file below and may
// use the bits above to say which layer it came from (its option xino).
const inodeBits = 48

// Open opens the file behind a mapping of the process with this PID: through /proc/PID/map_files, which leads to the mapped
// file itself even if it was deleted, replaced, or lies in a mount that we cannot name; where that is not allowed
// (it needs CAP_CHECKPOINT_RESTORE) or the mapping is gone, by its path in the process's root, and then only if the inode is
// the mapped one. Nothing but a regular file is opened. Close it soon: it blocks the removal of a container.
//
// Errors: [ErrGone], [ErrDenied], [ErrReplaced], [symbol.ErrNotRegular], or what the file system said.
func (r Reader) Open(pid uint32, m *Mapping) (*os.File, error) {
	if !m.Backed() {
		return nil, fmt.Errorf("mapping %s of pid %d has no file", m.Path, pid)
	}
	f, err := r.open(pid, m)
	if !errors.Is(err, ErrGone) {
		return f, err
	}
	// Its first thread may have ended before the others.
	threads, threadsErr := r.threads(pid)
	if threadsErr != nil {
		return nil, err
	}
	for _, tid := range threads {
		if f, err := r.open(tid, m); !errors.Is(err, ErrGone) {
			return f, err
		}
	}
	return nil, err
}

// open is Open through one thread.
func (r Reader) open(pid uint32, m *Mapping) (*os.File, error) {
	f, err := r.openMapped(pid, m)
	if err == nil || errors.Is(err, symbol.ErrNotRegular) {
		return f, err
	}
	byPath, pathErr := r.OpenPath(pid, m)
	if pathErr == nil {
		return byPath, nil
	}
	return nil, fmt.Errorf("%w, and through map_files: %v", pathErr, err)
}

// openMapped opens through map_files.
func (r Reader) openMapped(pid uint32, m *Mapping) (*os.File, error) {
	name := r.path(pid, filepath.Join("map_files", strconv.FormatUint(m.Start, 16)+"-"+strconv.FormatUint(m.End, 16)))
	// O_PATH only names the file: opening a mapped device could do something to it.
	path, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, classify(&os.PathError{Op: "open", Path: name, Err: err})
	}
	defer unix.Close(path)
	var st unix.Stat_t
	if err := unix.Fstat(path, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, &os.PathError{Op: "open", Path: name, Err: symbol.ErrNotRegular}
	}
	if !m.sameFile(st.Dev, st.Ino) { // something else was mapped there since we read the maps
		return nil, &os.PathError{Op: "open", Path: name, Err: ErrReplaced}
	}
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(path), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, classify(&os.PathError{Op: "open", Path: name, Err: err})
	}
	return os.NewFile(uintptr(fd), m.Path), nil
}

// RootOf returns the path under which the process with this PID sees its files, for [symbol.OpenInRoot].
func (r Reader) RootOf(pid uint32) string { return r.path(pid, "root") }

// OpenPath opens the file of a mapping by its path in the root of the process with this PID, which may be another one than
// the mapping's: any process of the same container sees the same files.
func (r Reader) OpenPath(pid uint32, m *Mapping) (*os.File, error) {
	root := r.path(pid, "root")
	path := m.Path
	// maps shows paths as they are in the mount namespace. That is the process's own view, unless it has called chroot.
	if top, err := os.Readlink(root); err == nil && top != "/" && strings.HasPrefix(path, top+"/") {
		path = path[len(top):]
	}
	f, err := symbol.OpenInRoot(root, path)
	if err != nil && m.Deleted && errors.Is(err, os.ErrNotExist) {
		f, err = symbol.OpenInRoot(root, path+" (deleted)") // it may really be called so
	}
	if err != nil {
		return nil, classify(err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || !m.sameFile(st.Dev, st.Ino) {
		f.Close()
		return nil, &os.PathError{Op: "open in root " + root, Path: m.Path, Err: ErrReplaced}
	}
	return f, nil
}

// sameFile reports whether a file is the mapped one, as far as numbers tell.
func (m *Mapping) sameFile(dev, ino uint64) bool {
	if unix.Major(dev) == m.Major && unix.Minor(dev) == m.Minor {
		return ino == m.Inode
	}
	const mask = 1<<inodeBits - 1
	return ino&mask == m.Inode&mask
}
