package cgroupfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// watchMask asks for directories that come and go. Renames exist in cgroup v1 only.
const watchMask = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_ONLYDIR | unix.IN_DONT_FOLLOW

// change is one inotify event about the child of a watched directory, or about the queue or a watch itself.
type change struct {
	wd   int32
	mask uint32
	name string
}

// watcher is an inotify instance. add and close may be called by one goroutine while another one is in read.
type watcher struct {
	f  *os.File
	fd int
}

func newWatcher() (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		if errors.Is(err, unix.EMFILE) {
			return nil, fmt.Errorf("watch the cgroup tree: %w; raise fs.inotify.max_user_instances", err)
		}
		return nil, fmt.Errorf("watch the cgroup tree: %w", err)
	}
	return &watcher{f: os.NewFile(uintptr(fd), "inotify"), fd: fd}, nil
}

// add watches a directory. Watching it again gives the same descriptor.
func (w *watcher) add(dir string) (int32, error) {
	wd, err := unix.InotifyAddWatch(w.fd, dir, watchMask)
	return int32(wd), err
}

// read blocks for the next changes. It fails with [os.ErrClosed] after close.
func (w *watcher) read(buf []byte) ([]change, error) {
	n, err := w.f.Read(buf)
	if err != nil {
		return nil, fmt.Errorf("read changes of the cgroup tree: %w", err)
	}
	return parseChanges(buf[:n])
}

func (w *watcher) close() { _ = w.f.Close() } // nothing was written

// parseChanges takes struct inotify_event apart: wd, mask, cookie, length of the name, the name with NULs behind it.
func parseChanges(b []byte) ([]change, error) {
	var changes []change
	for offset := 0; offset < len(b); {
		if len(b)-offset < unix.SizeofInotifyEvent {
			return changes, fmt.Errorf("inotify: offset %d: %d bytes are left, an event has %d", offset, len(b)-offset, unix.SizeofInotifyEvent)
		}
		head := b[offset:]
		length := binary.NativeEndian.Uint32(head[12:])
		offset += unix.SizeofInotifyEvent
		if uint64(length) > uint64(len(b)-offset) {
			return changes, fmt.Errorf("inotify: offset %d: a name of %d bytes, %d are left", offset, length, len(b)-offset)
		}
		name, _, _ := strings.Cut(string(b[offset:offset+int(length)]), "\x00")
		offset += int(length)
		changes = append(changes, change{wd: int32(binary.NativeEndian.Uint32(head)), mask: binary.NativeEndian.Uint32(head[4:]), name: name})
	}
	return changes, nil
}
