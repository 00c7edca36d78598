package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/hook/oci/wire"
	"github.com/stoker-profiler/stoker/internal/unixsocket"
	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
)

// announcement is a message that is believed.
type announcement struct {
	c        container.Container
	inferred bool     // it says no more than the name of the cgroup does
	process  *os.File // pidfd of the container's first process; whoever has the announcement closes it
}

// examine finds out what of a message is so. Every other error than a refusal is trouble with /proc or the cgroup tree.
//
// The process: a hook's pid is one of its own pid namespace. Root's hook lets the kernel translate it (vouched); a user's cannot, so
// it counts only where the hook's namespace is ours. Root may name any process, a user those that are its own.
//
// The cgroup: the kernel's word about the process, never the message's. It has to be the container's own, or processes of others
// would be profiled under the container's name: one whose name has the container's id in it, as every engine's has, that
// neither we nor the hook are in.
func (s *Source) examine(m wire.Message, vouched int, peer unixsocket.Peer) (a announcement, err error) {
	if !validID(m.ID) {
		return a, refuse("id", "no engine makes an id like %q", m.ID)
	}
	pid := vouched
	if pid == 0 {
		if pid, err = s.samePIDNamespace(m.PID, peer); err != nil {
			return a, err
		}
	}
	if a.process, err = openProcess(pid); err != nil {
		return a, err
	}
	defer func() {
		if err != nil {
			a.process.Close()
		}
	}()
	root := peer.UID == 0
	if !root {
		mine, err := s.belongs(pid, peer.UID)
		if err != nil {
			return a, err
		}
		if !mine {
			return a, refuse("stranger", "the process %d that it names does not belong to user %d", pid, peer.UID)
		}
	}
	path, err := s.h.OfPID(pid)
	if err != nil {
		return a, err
	}
	own, err := s.ownCgroup(path, m.ID, peer)
	if err != nil {
		return a, err
	}
	id, err := s.h.ID(own)
	if err != nil {
		return a, err
	}
	name, ok := cgroupfs.ParsePath(own)
	known := ok && name.Kind == cgroupfs.KindContainer && name.ID == m.ID
	if !root {
		// A user may make processes and cgroups called anything. So the cgroup has to be one that the user may make, and has to be
		// called as what it is said to be; and then that is all that it says.
		if err := s.delegated(own, peer.UID); err != nil {
			return a, err
		}
		if !known {
			return a, refuse("cgroup", "cgroup %s of user %d is not called as an engine calls that of container %s", own, peer.UID, m.ID)
		}
	}
	a.c = container.Container{ID: m.ID, CgroupPath: own, CgroupID: id, PID: pid}
	if root {
		describe(&a.c, m.Annotations)
	}
	if known && name.Runtime != "" {
		a.c.Runtime, a.c.SystemdUnit = name.Runtime, name.Unit
	}
	if !root {
		a.c.User = strconv.FormatUint(uint64(peer.UID), 10)
		a.inferred = true
	}
	raw, err := a.process.SyscallConn()
	if err != nil {
		return a, fmt.Errorf("look whether process %d has ended: %w", pid, err)
	}
	over := true
	if err := raw.Control(func(fd uintptr) { over = ended(fd) }); err != nil || over { // what was read may have been another's
		return a, refuse("gone", "the process %d that it names has ended", pid)
	}
	return a, nil
}

// validID reports whether an engine may have made the id: runc's alphabet (libcontainer/factory_linux.go, validateID), but nothing
// that is a name of something else in a path.
func validID(id string) bool {
	for i := range len(id) {
		switch c := id[i]; {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
		case i > 0 && (c == '-' || c == '_' || c == '.' || c == '+'):
		default:
			return false
		}
	}
	return id != "" && len(id) <= wire.MaxID
}

// samePIDNamespace returns pid if it means the same process here as to the hook.
func (s *Source) samePIDNamespace(pid int, peer unixsocket.Peer) (int, error) {
	ours, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return 0, fmt.Errorf("learn our pid namespace: %w", err)
	}
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", peer.PID))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, refuse("gone", "the hook has ended")
	}
	if err != nil {
		return 0, fmt.Errorf("learn the pid namespace of a hook: %w", err)
	}
	if ours != theirs {
		return 0, refuse("pid_namespace", "the hook is in %s and may not have the kernel translate pids", theirs)
	}
	return pid, nil
}

// maxUserNamespaces is how deep the kernel lets user namespaces be nested (include/linux/user_namespace.h).
const maxUserNamespaces = 33

// belongs reports whether a process is a user's: it runs as that user, or in a user namespace that this user made, maybe through
// others in between, as a rootless engine's containers do.
func (s *Source) belongs(pid int, uid uint32) (bool, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return false, refuse("gone", "the process %d that it names has ended", pid)
	}
	if err != nil {
		return false, fmt.Errorf("learn whose pid %d is: %w", pid, err)
	}
	if realUID(string(status)) == int64(uid) {
		return true, nil
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
	if errors.Is(err, fs.ErrPermission) {
		return false, nil // a process with rights that we lack is nobody's but root's
	}
	if err != nil {
		return false, fmt.Errorf("learn whose pid %d is: %w", pid, err)
	}
	for range maxUserNamespaces {
		fd := int(ns.Fd())
		owner, err := unix.IoctlGetUint32(fd, unix.NS_GET_OWNER_UID)
		if err == nil && owner == uid {
			ns.Close()
			return true, nil
		}
		parent, err := unix.IoctlRetInt(fd, unix.NS_GET_PARENT)
		ns.Close()
		if err != nil { // EPERM: that was ours, or the first one
			return false, nil
		}
		ns = os.NewFile(uintptr(parent), "user namespace")
	}
	ns.Close()
	return false, nil
}

// realUID finds the first number of the line Uid in a /proc/PID/status, -1 if there is none. That /proc/PID belongs to somebody says
// nothing: a process that may not be dumped, as runc's is, belongs to root there.
func realUID(status string) int64 {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, "Uid:"); ok {
			if fields := strings.Fields(rest); len(fields) > 0 {
				if uid, err := strconv.ParseUint(fields[0], 10, 32); err == nil {
					return int64(uid)
				}
			}
		}
	}
	return -1
}

// ownCgroup returns the container's own cgroup: the deepest on the way to its process that has its id in its name. crun and systemd
// make others below it.
func (s *Source) ownCgroup(path, id string, peer unixsocket.Peer) (string, error) {
	parts := strings.Split(path, "/")
	end := len(parts)
	for end > 0 && !namesContainer(parts[end-1], id) {
		end--
	}
	if end == 0 {
		return "", refuse("cgroup", "its process is in cgroup %s, which is not the container's own: nothing there is called %s", path, id)
	}
	own := strings.Join(parts[:end], "/")
	for who, pid := range map[string]int{"stoker itself": os.Getpid(), "its engine": int(peer.PID)} {
		theirs, err := s.h.OfPID(pid)
		if err == nil && (theirs == own || strings.HasPrefix(theirs, own+"/")) {
			return "", refuse("shared", "cgroup %s has %s in it too", own, who)
		}
	}
	return own, nil
}

// namesContainer reports whether a cgroup is called after a container: ID, PREFIX-ID, PREFIX-ID.scope or SLICE:PREFIX:ID.
func namesContainer(part, id string) bool {
	for _, name := range []string{part, strings.TrimSuffix(part, ".scope")} {
		if rest, ok := strings.CutSuffix(name, id); ok && (rest == "" || strings.HasSuffix(rest, "-") || strings.HasSuffix(rest, ":")) {
			return true
		}
	}
	return false
}

// delegated refuses a cgroup that is not the user's own.
func (s *Source) delegated(path string, uid uint32) error {
	info, err := os.Lstat(s.h.Dir(path))
	if err != nil {
		return fmt.Errorf("learn whose cgroup %s is: %w", path, err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != uid {
		return refuse("cgroup", "cgroup %s does not belong to user %d", path, uid)
	}
	return nil
}
