package web

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Group is the group whose members may use the agent's socket.
const Group = "stoker"

// maxConns bounds the file descriptors that local strangers can make the agent hold. A browser uses six.
const maxConns = 128

// Listen opens addr: "127.0.0.1:4041", or "unix:/run/stoker/stoker.sock". A socket belongs to group where that group
// exists, has mode 0660 from the moment its name appears, takes the place of one that nobody listens on any more, and is
// removed by Close. An address that is not loopback is opened as asked; the caller decides whether that is wise.
func Listen(addr, group string) (net.Listener, error) {
	path, isUnix := strings.CutPrefix(addr, "unix:")
	if !isUnix {
		l, err := net.Listen("tcp", addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("listen on %s: %w; another program, maybe another stoker, uses it: stop it or set web.listen", addr, err)
		}
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", addr, err)
		}
		return newLimited(l, nil), nil
	}
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("listen on %s: the path of a socket must be absolute", addr)
	}
	if err := claim(path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	// Bound inside a directory that only we may enter, then renamed: at no moment can anybody reach a socket whose mode is
	// not yet right, and the stale one is replaced in one step.
	private, err := os.MkdirTemp(dir, ".stoker-")
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	defer os.RemoveAll(private)
	hidden := filepath.Join(private, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: hidden, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	l.SetUnlinkOnClose(false)
	fail := func(err error) (net.Listener, error) {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	if err := os.Chmod(hidden, 0o660); err != nil {
		return fail(err)
	}
	if gid, ok := groupID(group); ok {
		// Without the right to give files away only root and we ourselves can use the socket: less, but not unsafe.
		if err := os.Chown(hidden, -1, gid); err != nil && !errors.Is(err, fs.ErrPermission) {
			return fail(err)
		}
	}
	made, err := os.Stat(hidden)
	if err != nil {
		return fail(err)
	}
	if err := os.Rename(hidden, path); err != nil {
		return fail(err)
	}
	return newLimited(l, func() {
		// Only our own: another agent may have taken the name since.
		if now, err := os.Lstat(path); err == nil && os.SameFile(made, now) {
			_ = os.Remove(path) // nobody to tell; a stale socket is replaced at the next start
		}
	}), nil
}

// claim says whether path may be taken: it does not exist, or it is a socket that nobody listens on.
func claim(path string) error {
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
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
		return errors.New("another stoker is listening there: stop it first")
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("cannot tell whether another stoker is listening there: %w", err)
}

func groupID(name string) (int, bool) {
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

// limited is a listener with a bounded number of open connections and something to do once when it is closed.
type limited struct {
	net.Listener
	slots   chan struct{}
	done    chan struct{}
	once    sync.Once
	onClose func()
}

func newLimited(l net.Listener, onClose func()) *limited {
	return &limited{Listener: l, slots: make(chan struct{}, maxConns), done: make(chan struct{}), onClose: onClose}
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: c, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

func (l *limited) Close() error {
	err := net.ErrClosed
	l.once.Do(func() {
		close(l.done)
		if l.onClose != nil {
			l.onClose()
		}
		err = l.Listener.Close()
	})
	return err
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.release()
	return err
}

// Peer is who is at the other end of a Unix socket, as the kernel saw it when it connected.
type Peer struct {
	PID      int32
	UID, GID uint32
}

// mayRecord says whether the peer may make the agent sample: root, whoever runs the agent, and the members of group. The
// socket's mode already keeps others out; this holds too when somebody widened it.
func (p Peer) mayRecord(group string) bool {
	if p.UID == 0 || int(p.UID) == os.Geteuid() {
		return true
	}
	gid, ok := groupID(group)
	if !ok {
		return false
	}
	if int(p.GID) == gid {
		return true
	}
	u, err := user.LookupId(strconv.FormatUint(uint64(p.UID), 10))
	if err != nil {
		return false
	}
	ids, err := u.GroupIds()
	return err == nil && slices.Contains(ids, strconv.Itoa(gid))
}

type peerKey struct{}

// PeerOf returns the peer of a request that came over a Unix socket.
func PeerOf(ctx context.Context) (Peer, bool) {
	p, ok := ctx.Value(peerKey{}).(Peer)
	return p, ok
}

// ConnContext puts the peer into the context of each connection; it goes into [http.Server.ConnContext]. [Serve] does so.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	if l, ok := c.(*limitedConn); ok {
		c = l.Conn
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	p, err := peerOf(u)
	if err != nil {
		// Without credentials the connection counts as one that came over TCP: it may look, not record.
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, p)
}

func peerOf(u *net.UnixConn) (Peer, error) {
	raw, err := u.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var p Peer
	var inner error
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			inner = err
			return
		}
		p = Peer{PID: cred.Pid, UID: cred.Uid, GID: cred.Gid}
	})
	return p, errors.Join(err, inner)
}

// Serve answers on l with h until ctx ends, then lets open requests finish for a few seconds. It returns nil when ctx
// ended, or what made the listener fail.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	s := &http.Server{
		Handler:           h,
		ConnContext:       ConnContext,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		// Handlers that take longer move their own deadline.
		WriteTimeout:   2 * time.Minute,
		IdleTimeout:    2 * time.Minute,
		MaxHeaderBytes: 64 << 10,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext:    func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	failed := make(chan error, 1)
	go func() { failed <- s.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	if err := s.Shutdown(grace); err != nil {
		log.Debug("requests were still open when the web server stopped", "err", err)
		s.Close()
	}
	<-failed
	return nil
}
