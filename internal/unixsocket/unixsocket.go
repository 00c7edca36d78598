// Package unixsocket opens the sockets at which this machine's other processes reach the agent, and says who they are. A socket
// has its mode from the moment its name appears, takes the place of one that nobody listens on any more, and goes away with
// its listener. Functions may be called from any goroutine; what they return belongs to the caller.
package unixsocket

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Config says what kind of socket to open.
type Config struct {
	// Network is "unix" for a stream, "unixpacket" for messages over a connection (SOCK_SEQPACKET).
	Network string
	// Mode is the socket's: who may write to it may connect.
	Mode fs.FileMode
	// Group owns the socket where a group of that name exists. Empty: the process's own.
	Group string
	// Backlog is how many connections may wait to be accepted; 0 means as many as the kernel allows. A client that does not
	// want to wait gets EAGAIN from a full one.
	Backlog int
}

// Listener is a listening socket that has a name.
type Listener struct {
	*net.UnixListener
	path string
	made os.FileInfo
	once sync.Once
}

// Listen opens a socket at an absolute path. The directory is made if there is none. Errors say what to do where a person can.
func Listen(path string, c Config) (*Listener, error) {
	l, err := listen(path, c)
	if err != nil {
		return nil, fmt.Errorf("listen on unix:%s: %w", path, err)
	}
	return l, nil
}

func listen(path string, c Config) (_ *Listener, err error) {
	if !filepath.IsAbs(path) {
		return nil, errors.New("the path of a socket must be absolute")
	}
	if err := claim(c.Network, path); err != nil {
		return nil, err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	// Bound inside a directory that only we may enter, then renamed: at no moment can anybody reach a socket whose mode is
	// not yet right, and the stale one is replaced in one step.
	private, err := os.MkdirTemp(dir, ".stoker-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(private)
	hidden := filepath.Join(private, "s")
	l, err := bind(hidden, c)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	if err := os.Chmod(hidden, c.Mode); err != nil {
		return nil, err
	}
	if gid, ok := GroupID(c.Group); ok {
		// Without the right to give files away only root and we ourselves can use the socket: less, but not unsafe.
		if err := os.Chown(hidden, -1, gid); err != nil && !errors.Is(err, fs.ErrPermission) {
			return nil, err
		}
	}
	made, err := os.Stat(hidden)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(hidden, path); err != nil {
		return nil, err
	}
	return &Listener{UnixListener: l, path: path, made: made}, nil
}

// bind makes the socket itself. By hand, because package net has no say about the backlog.
func bind(path string, c Config) (*net.UnixListener, error) {
	kind := unix.SOCK_STREAM
	if c.Network == "unixpacket" {
		kind = unix.SOCK_SEQPACKET
	}
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close() // FileListener has a copy
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, fmt.Errorf("bind: %w", err)
	}
	backlog := c.Backlog
	if backlog == 0 {
		backlog = unix.SOMAXCONN
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	u := l.(*net.UnixListener) // it is what a unix socket's file gives
	u.SetUnlinkOnClose(false)
	return u, nil
}

// Close ends the listener and removes the socket. It may be called twice; the second call returns [net.ErrClosed].
func (l *Listener) Close() error {
	err := net.ErrClosed
	l.once.Do(func() {
		// Only our own: another agent may have taken the name since.
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(l.made, now) {
			_ = os.Remove(l.path) // nobody to tell; a stale socket is replaced at the next start
		}
		err = l.UnixListener.Close()
	})
	return err
}

// claim says whether path may be taken: it does not exist, or it is a socket that nobody listens on.
func claim(network, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s exists and is not a socket: remove it or choose another path", path)
	}
	c, err := net.DialTimeout(network, path, time.Second)
	if err == nil {
		c.Close()
		return errors.New("another stoker is listening there: stop it first")
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("cannot tell whether another stoker is listening there: %w", err)
}

// GroupID returns the number of a group, and false where there is no such group.
func GroupID(name string) (int, bool) {
	if name == "" {
		return 0, false
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, false
	}
	id, err := strconv.Atoi(g.Gid)
	return id, err == nil
}

// Peer is who is at the other end of a connection, as the kernel saw it when it connected. PID is 0 when the process is in a pid
// namespace that this one does not see; UID and GID are the overflow id (65534) when they are not mapped into this user namespace.
type Peer struct {
	PID      int32
	UID, GID uint32
}

// PeerOf asks the kernel.
func PeerOf(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("ask who is at the other end: %w", err)
	}
	var cred *unix.Ucred
	var inner error
	if err := raw.Control(func(fd uintptr) { cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		inner = err
	}
	if inner != nil {
		return Peer{}, fmt.Errorf("ask who is at the other end: %w", inner)
	}
	return Peer{PID: cred.Pid, UID: cred.Uid, GID: cred.Gid}, nil
}
