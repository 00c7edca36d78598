package symbol

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// ErrNotRegular is returned for what is not a regular file: directories, FIFOs, sockets, devices.
var ErrNotRegular = errors.New("not a regular file")

// openTries is how often a lookup is repeated when somebody renames directories below it at the same moment.
const openTries = 8

// OpenInRoot opens the regular file that a process with the given root directory calls path. root is usually
// "/proc/PID/root". Symbolic links, also absolute ones and "..", are followed inside the root and never lead out of it; magic
// links are refused. Nothing but a regular file is ever opened: the type is known from a descriptor that only names the file,
// so that opening has no side effect on devices and FIFOs and does not wait for a writer.
//
// Close the file soon: an open file in a container's mount blocks the removal of the container.
//
// Errors are *os.PathError; errors.Is finds os.ErrNotExist, [ErrNotRegular], and unix.ENOSYS on kernels before 5.6, where it
// refuses.
func OpenInRoot(root, path string) (*os.File, error) { return openInRoot(root, path, unix.Openat2) }

func openInRoot(root, path string, openat2 func(int, string, *unix.OpenHow) (int, error)) (*os.File, error) {
	fail := func(err error) (*os.File, error) {
		if err == unix.ENOSYS {
			err = fmt.Errorf("%w: files of containers are only opened where the kernel keeps lookups inside their root (openat2, Linux 5.6)", err)
		}
		return nil, &os.PathError{Op: "open in root " + root, Path: path, Err: err}
	}
	dir, err := retry(func() (int, error) {
		return unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return fail(err)
	}
	defer unix.Close(dir)
	name, err := retry(func() (int, error) {
		return openat2(dir, path, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
	})
	if err != nil {
		return fail(err)
	}
	defer unix.Close(name)
	var st unix.Stat_t
	if err := unix.Fstat(name, &st); err != nil {
		return fail(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fail(ErrNotRegular)
	}
	// The descriptor's own link leads to that very file, whatever the path means by now.
	fd, err := retry(func() (int, error) {
		return unix.Open("/proc/self/fd/"+strconv.Itoa(name), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	})
	if err != nil {
		return fail(err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// retry repeats a system call that was interrupted or raced with a rename.
func retry(f func() (int, error)) (int, error) {
	var fd int
	var err error
	for range openTries {
		if fd, err = f(); err != unix.EINTR && err != unix.EAGAIN {
			break
		}
	}
	return fd, err
}
