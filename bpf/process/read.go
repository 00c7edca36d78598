package process

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// ErrGone says that the process has ended, or that its PID belongs to another one now.
var ErrGone = errors.New("the process is gone")

// ErrDenied says that we may not look at the process: CAP_SYS_PTRACE (and CAP_PERFMON) are missing, or a security module
// objects.
var ErrDenied = errors.New("not permitted: the agent needs CAP_SYS_PTRACE (CapabilityBoundingSet= and AmbientCapabilities= in the unit)")

// maxTasks is how many threads are asked for the maps of a process whose first thread has ended: any that lives will do.
const maxTasks = 64

// tick is the unit of field 22 of /proc/PID/stat: USER_HZ is 100 on every architecture we run on.
const tick = 10_000_000 // ns

// Reader reads /proc. The zero value reads the real one; it is safe for concurrent use.
type Reader struct {
	// Root is where procfs is mounted; "" means /proc. It must show the host's PIDs.
	Root string
}

func (r Reader) path(pid uint32, name string) string {
	root := r.Root
	if root == "" {
		root = "/proc"
	}
	return filepath.Join(root, strconv.FormatUint(uint64(pid), 10), name)
}

// Maps reads the executable mappings of a process and makes sure that it was that process: its start time must be the same
// after the read. Whether it has exec'd meanwhile is not for /proc to say: ask the kernel's exec count afterwards.
//
// Errors are [ErrGone], [ErrDenied], or about the file's content; with [ErrTooManyMappings] the result is usable.
func (r Reader) Maps(id ID) (*Maps, error) {
	m, err := r.MapsOf(id.PID)
	if err != nil && !errors.Is(err, ErrTooManyMappings) {
		return nil, err
	}
	if alive, aliveErr := r.Alive(id); aliveErr != nil {
		return nil, aliveErr
	} else if !alive {
		return nil, fmt.Errorf("read maps of pid %d: %w", id.PID, ErrGone)
	}
	return m, err
}

// MapsOf reads the executable mappings of whatever process has the PID now.
func (r Reader) MapsOf(pid uint32) (*Maps, error) {
	m, err := r.readMaps(r.path(pid, "maps"))
	if err != nil || len(m.Code()) > 0 {
		return m, err
	}
	// A process whose first thread has ended shows no mappings there, while its other threads run on.
	threads, err := r.threads(pid)
	if err != nil {
		return nil, err
	}
	for _, tid := range threads {
		m, err := r.readMaps(r.path(tid, "maps"))
		if errors.Is(err, ErrGone) {
			continue // that thread has ended; another may live
		}
		if err != nil || len(m.Code()) > 0 {
			return m, err
		}
	}
	return nil, fmt.Errorf("read maps of pid %d: no thread has any: %w", pid, ErrGone)
}

// threads returns some other threads of a process. /proc answers for a thread's number as it does for a process's.
func (r Reader) threads(pid uint32) ([]uint32, error) {
	dir, err := os.Open(r.path(pid, "task"))
	if err != nil {
		return nil, classify(err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(maxTasks)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, classify(err)
	}
	var out []uint32
	for _, name := range names {
		if tid, err := strconv.ParseUint(name, 10, 32); err == nil && uint32(tid) != pid {
			out = append(out, uint32(tid))
		}
	}
	return out, nil
}

func (r Reader) readMaps(path string) (*Maps, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, classify(err)
	}
	defer f.Close()
	list, n, err := parseMaps(f, true)
	if err != nil && !errors.Is(err, ErrTooManyMappings) {
		return nil, classify(fmt.Errorf("%s: %w", path, err))
	}
	m := NewMaps(list)
	m.text = n
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return m, err
}

// Alive reports whether the process still exists, by PID and start time.
func (r Reader) Alive(id ID) (bool, error) {
	path := r.path(id.PID, "stat")
	f, err := os.Open(path)
	if err != nil {
		if err = classify(err); errors.Is(err, ErrGone) {
			return false, nil
		}
		return false, err
	}
	defer f.Close()
	var buf [1024]byte // 52 numbers and a name of 15 bytes
	n, err := f.Read(buf[:])
	if err != nil && !errors.Is(err, io.EOF) {
		if err = classify(err); errors.Is(err, ErrGone) {
			return false, nil
		}
		return false, err
	}
	start, ok := parseStartTime(buf[:n])
	if !ok {
		return false, fmt.Errorf("%s has no start time in field 22: %.100q", path, buf[:n])
	}
	return start == id.StartBoottime/tick, nil
}

// parseStartTime reads field 22 of a stat file, in ticks since boot. The name in field 2 may hold anything, also ") 1".
func parseStartTime(stat []byte) (uint64, bool) {
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, false
	}
	fields := bytes.Fields(stat[end+1:])
	const first, want = 3, 22
	if len(fields) <= want-first {
		return 0, false
	}
	v, err := strconv.ParseUint(string(fields[want-first]), 10, 64)
	return v, err == nil
}

// classify turns what /proc answers for a process that has ended or is not ours to see into ErrGone or ErrDenied.
func classify(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH):
		return fmt.Errorf("%w (%v)", ErrGone, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w (%v)", ErrDenied, err)
	}
	return err
}

// maxStatus bounds /proc/PID/status; it has some 60 lines.
const maxStatus = 64 << 10

// Self returns the PID by which a process knows itself, which is the one in the innermost PID namespace that it is in, and its
// effective user id as the host counts.
func (r Reader) Self(pid uint32) (inside, user uint32, err error) {
	path := r.path(pid, "status")
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, classify(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxStatus))
	if err != nil {
		return 0, 0, classify(err)
	}
	found := 0
	for line := range bytes.Lines(b) {
		key, list, _ := bytes.Cut(line, []byte(":"))
		fields := bytes.Fields(list)
		switch {
		case string(key) == "Uid" && len(fields) == 4: // real, effective, saved, of the file system
			user, err = number(fields[1])
		case string(key) == "NSpid" && len(fields) > 0: // outermost namespace first
			inside, err = number(fields[len(fields)-1])
		default:
			continue
		}
		if err != nil {
			return 0, 0, fmt.Errorf("%s: %s: %w", path, key, err)
		}
		found++
	}
	if found != 2 {
		return 0, 0, fmt.Errorf("%s has no Uid or no NSpid", path)
	}
	return inside, user, nil
}

func number(b []byte) (uint32, error) {
	v, err := strconv.ParseUint(string(b), 10, 32)
	return uint32(v), err
}
