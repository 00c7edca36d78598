package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// What can be wrong with the file; errors.Is finds them in what the store returns.
var (
	// ErrFull: the file system, or the bound with nothing left to evict, has no room. The store goes on by itself as soon
	// as there is.
	ErrFull = errors.New("no room")
	// ErrLocked: another stoker has the file open for writing.
	ErrLocked = errors.New("in use by another stoker")
	// ErrCorrupt: the file is damaged.
	ErrCorrupt = errors.New("corrupt")
	// ErrNewer: the file was written by a later version.
	ErrNewer = errors.New("written by a later version of stoker")
	// ErrForeign: the file is a database, but not stoker's.
	ErrForeign = errors.New("a database of another program")

	errEmpty = errors.New("empty")
)

// code returns SQLite's primary result code in err, or 0.
func code(err error) int {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code() & 0xff
	}
	return 0
}

func isFull(err error) bool {
	if errors.Is(err, ErrFull) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || code(err) == sqlite3.SQLITE_FULL {
		return true
	}
	// The index of the write-ahead log cannot grow: SQLite says IOERR_SHMSIZE for what is ENOSPC.
	e, ok := errors.AsType[*sqlite.Error](err)
	return ok && e.Code() == sqlite3.SQLITE_IOERR_SHMSIZE
}

func isCorrupt(err error) bool {
	c := code(err)
	return c == sqlite3.SQLITE_CORRUPT || c == sqlite3.SQLITE_NOTADB || errors.Is(err, ErrCorrupt)
}

// isUnwritable says that SQLite would have to create or write something beside the file and cannot.
func isUnwritable(err error) bool {
	return code(err) == sqlite3.SQLITE_CANTOPEN || code(err) == sqlite3.SQLITE_READONLY
}

// kind names the class of a failed write for the metric.
func kind(err error) string {
	switch {
	case isFull(err):
		return "full"
	case isCorrupt(err):
		return "corrupt"
	case code(err) == sqlite3.SQLITE_BUSY:
		return "busy"
	case code(err) == sqlite3.SQLITE_READONLY, errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return "permission"
	case errors.Is(err, os.ErrClosed):
		return "closed"
	}
	return "other"
}

// remedy adds to err what the operator can do, and the sentinel that tells what it is.
func remedy(err error) error {
	switch {
	case err == nil:
		return nil
	case isFull(err) && !errors.Is(err, ErrFull):
		return fmt.Errorf("%w: %w: free space on the file system, lower store.max_size, or set store.path to a larger one; profiles are written again as soon as there is room", ErrFull, err)
	case isCorrupt(err) && !errors.Is(err, ErrCorrupt):
		return fmt.Errorf("%w: %w: a running agent sets the file aside by itself; otherwise move it away", ErrCorrupt, err)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: the file system is mounted read-only: set store.path to one that can be written", err)
	case kind(err) == "permission":
		return fmt.Errorf("%w: run as root, or make the file, its -wal and -shm and their directory accessible to this user", err)
	case isUnwritable(err):
		return fmt.Errorf("%w: it needs to be a regular file in a directory that this user can write to", err)
	case code(err) == sqlite3.SQLITE_BUSY:
		return fmt.Errorf("%w: another program holds a lock on the file: end it (fuser shows which)", err)
	}
	return err
}

// lockFile takes the lock that says "an agent writes here". It is a file of its own: SQLite's locks on the database would be
// dropped by closing any other descriptor of it.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			pid := make([]byte, 20)
			n, _ := f.ReadAt(pid, 0) // only to help: an empty file names no process
			return nil, fmt.Errorf("%w (process %s): stop it, or give this one another store.path", ErrLocked, pid[:n])
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	// Who holds it is for people only; a full disk must not keep the agent from starting.
	if err := f.Truncate(0); err == nil {
		fmt.Fprintf(f, "%d", os.Getpid())
	}
	return f, nil
}

// freeSpace returns what an unprivileged writer could still use of path's file system, and the size of the whole.
func freeSpace(path string) (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, fmt.Errorf("statfs %s: %w", path, err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}
