// Package oci is how an OCI runtime tells us about a container that it creates: the agent's end of the conversation with
// cmd/stoker-hook (Source, a source of containers called "hook"), and putting the hook in place and taking it away (install.go).
// What goes over the socket is in package wire.
//
// Everybody on the machine may connect, for rootless engines run their hooks as any user. So a message is believed as far as
// the kernel vouches for it: who sent it, which process it means, in which cgroup that is. Root's word names the container; a
// user's counts for as much as the name of a cgroup of that user's, which the user may choose anyway. What is refused is
// counted by reason and logged once. No path that a message names is opened, and no engine is asked anything: it waits for us.
//
// A Source is owned by the goroutine in its Run, which starts one per connection, and one per container to see its end.
package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/hook/oci/wire"
	"github.com/stoker-profiler/stoker/internal/unixsocket"
	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
	"github.com/stoker-profiler/stoker/runtime/container"
)

const (
	// backlog is how many hooks may wait while the agent is busy or stopped; the next are told so at once. Each waits for
	// wire.WaitMillis at most, so more than this many were never worth answering.
	backlog = 128
	// readWithin is how long a connection may be silent. A hook sends as soon as it is connected.
	readWithin = 100 * time.Millisecond
	// maxConns bounds connections in all, maxUserConns those of all users but root together, so that they cannot take root's
	// places, and maxConnsPerUser those of one.
	maxConns, maxUserConns, maxConnsPerUser = 64, 32, 8
	// maxWatched bounds the containers whose end we look out for ourselves, each with a file descriptor.
	maxWatched = 1024
	// retryFrom and retryTo bound how long we wait before we try again to open the socket.
	retryFrom, retryTo = time.Second, 30 * time.Second
)

// Config says where to listen.
type Config struct {
	Socket    string // absolute path
	Hierarchy cgroupfs.Hierarchy
	Log       *slog.Logger // nil discards
}

// Source tells about the containers that hooks announce. It ends what it told when the kernel says that the container's first
// process has ended and nobody is left in its cgroup.
type Source struct {
	socket string
	h      cgroupfs.Hierarchy
	log    *slog.Logger

	mu      sync.Mutex // protects what follows
	status  container.Status
	counts  map[string]uint64
	logged  map[refusal]bool
	conns   map[uint32]int // by user id; they add up to all
	watched map[uint64]bool
}

var (
	_ container.Source         = (*Source)(nil)
	_ container.StatusReporter = (*Source)(nil)
	_ container.CountReporter  = (*Source)(nil)
)

// New returns a Source that listens when it is run.
func New(c Config) *Source {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Source{
		socket: c.Socket, h: c.Hierarchy, log: c.Log.With("source", "hook"),
		counts: map[string]uint64{}, logged: map[refusal]bool{}, conns: map[uint32]int{}, watched: map[uint64]bool{},
	}
}

// Name implements [container.Source].
func (s *Source) Name() string { return "hook" }

// Status implements [container.StatusReporter]. Connected means that hooks can reach us; whether any is installed is not known.
func (s *Source) Status() container.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// Counts implements [container.CountReporter].
func (s *Source) Counts() map[string]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := map[string]uint64{}
	for name, n := range s.counts {
		counts[name] = n
	}
	return counts
}

func (s *Source) count(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[name]++
}

// setStatus reports whether the status is news.
func (s *Source) setStatus(err error) bool {
	now := container.Status{Connected: err == nil, Since: time.Now()}
	if err != nil {
		now.Err = err.Error()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status.Connected == now.Connected && s.status.Err == now.Err && !s.status.Since.IsZero() {
		return false
	}
	s.status = now
	return true
}

// Run implements [container.Source]. A socket that cannot be opened is tried again: maybe another agent holds it.
func (s *Source) Run(ctx context.Context, emit func(container.Event)) error {
	// What exists already was told to somebody else: hooks speak once. So there is no Syncing either: it would be a promise to take
	// back what was told and is no more.
	emit(container.Event{Type: container.Synced, Source: s.Name(), At: time.Now()})
	var work sync.WaitGroup
	defer work.Wait()
	for wait := retryFrom; ; wait = min(2*wait, retryTo) {
		l, err := s.listen()
		if err == nil {
			s.setStatus(nil)
			wait = retryFrom
			err = s.serve(ctx, l, emit, &work)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err = fmt.Errorf("%w; hooks start their containers without us meanwhile; runtimes.hook.socket names another place, or off", err)
		if s.setStatus(err) {
			s.log.Warn("the socket of the OCI hook is not open", "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

func (s *Source) listen() (*unixsocket.Listener, error) {
	// Anybody may connect: a rootless engine's hook runs as its user.
	l, err := unixsocket.Listen(s.socket, unixsocket.Config{Network: "unixpacket", Mode: 0o666, Backlog: backlog})
	if err != nil {
		return nil, err
	}
	raw, err := l.SyscallConn()
	if err == nil {
		if controlErr := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) // accepted sockets inherit it
		}); err == nil {
			err = controlErr
		}
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("ask the kernel for the senders of messages: %w", err)
	}
	return l, nil
}

// serve answers until ctx ends or the socket fails.
func (s *Source) serve(ctx context.Context, l *unixsocket.Listener, emit func(container.Event), work *sync.WaitGroup) error {
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		c, err := l.AcceptUnix()
		switch {
		case errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE):
			s.count("no_descriptors")
			time.Sleep(10 * time.Millisecond) // hooks have left by then
			continue
		case err != nil:
			return fmt.Errorf("accept on unix:%s: %w", s.socket, err)
		}
		peer, err := unixsocket.PeerOf(c)
		if err != nil || !s.enter(peer.UID) {
			s.count("busy")
			c.Close() // which the hook takes for an answer
			continue
		}
		work.Go(func() {
			defer s.leave(peer.UID)
			defer c.Close()
			s.converse(ctx, c, peer, emit, work)
		})
	}
}

// enter takes a place for a connection of a user, if there is one.
func (s *Source) enter(uid uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, users := 0, 0
	for u, n := range s.conns {
		all += n
		if u != 0 {
			users += n
		}
	}
	if all >= maxConns || uid != 0 && (users >= maxUserConns || s.conns[uid] >= maxConnsPerUser) {
		return false
	}
	s.conns[uid]++
	return true
}

func (s *Source) leave(uid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns[uid]--; s.conns[uid] == 0 {
		delete(s.conns, uid)
	}
}

// converse reads the message of one hook, does what it asks for, and answers.
func (s *Source) converse(ctx context.Context, c *net.UnixConn, peer unixsocket.Peer, emit func(container.Event), work *sync.WaitGroup) {
	at := time.Now()
	if err := c.SetDeadline(at.Add(readWithin)); err != nil {
		return // closed
	}
	m, vouched, err := receive(c, peer)
	if errors.Is(err, errSilent) {
		s.count("silent")
		return
	}
	var a announcement
	if err == nil {
		a, err = s.examine(m, vouched, peer)
	}
	if err != nil {
		s.refuse(peer, m.ID, err)
		return
	}
	emit(container.Event{Type: container.Upsert, Source: s.Name(), Inferred: a.inferred, Container: a.c, At: at})
	s.count("announced")
	if m.Cut {
		s.count("annotations_left_out")
	}
	if _, err := c.Write([]byte{wire.InScope}); err != nil {
		s.count("late") // the hook had no more time
	}
	s.watch(ctx, a, emit, work)
}

// errSilent: the other end connected and said nothing, like a program that looks whether somebody listens.
var errSilent = errors.New("it said nothing")

// receive reads one message and what the kernel vouches for: the process that the sender names, 0 if it named none.
func receive(c *net.UnixConn, peer unixsocket.Peer) (m wire.Message, vouched int, err error) {
	buf := make([]byte, wire.MaxMessage+1)
	// Room for the credentials, which come first, and for nothing else: the kernel throws away file descriptors that somebody
	// sends along.
	oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil || n == 0 {
		return m, 0, errSilent
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || n > wire.MaxMessage {
		return m, 0, refuse("malformed", "its message is longer than %d bytes, or has files with it", wire.MaxMessage)
	}
	m, ok := wire.Parse(buf[:n])
	if !ok {
		return m, 0, refuse("malformed", "its message of %d bytes is none of this version's", n)
	}
	scms, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(scms) != 1 {
		return m, 0, refuse("malformed", "the kernel does not say who sent the message")
	}
	cred, err := unix.ParseUnixCredentials(&scms[0])
	if err != nil || cred.Uid != peer.UID {
		return m, 0, refuse("malformed", "one user connected and another sent the message")
	}
	if cred.Pid != peer.PID { // else the kernel filled in the sender itself
		vouched = int(cred.Pid)
	}
	return m, vouched, nil
}

// refusal is a reason not to believe a message: the value of a metric's label.
type refusal string

// refused is an error with its reason.
type refused struct {
	reason refusal
	what   string
}

func (e *refused) Error() string { return e.what }

func refuse(reason refusal, format string, args ...any) error {
	return &refused{reason, fmt.Sprintf(format, args...)}
}

// refuse counts and logs that a message is not believed.
func (s *Source) refuse(peer unixsocket.Peer, id string, err error) {
	reason := refusal("failed") // /proc or the cgroup tree could not be read
	if r := (*refused)(nil); errors.As(err, &r) {
		reason = r.reason
	}
	s.mu.Lock()
	s.counts["refused_"+string(reason)]++
	first := !s.logged[reason]
	s.logged[reason] = true
	s.mu.Unlock()
	if first {
		s.log.Warn("the message of a hook was refused; others for this reason are counted only", "reason", string(reason),
			"uid", peer.UID, "pid", peer.PID, "container", id, "err", err)
	}
}

// watch tells when a container has ended, unless that is watched already.
func (s *Source) watch(ctx context.Context, a announcement, emit func(container.Event), work *sync.WaitGroup) {
	s.mu.Lock()
	full := len(s.watched) >= maxWatched
	if s.watched[a.c.CgroupID] || full {
		s.mu.Unlock()
		a.process.Close()
		if full {
			s.count("unwatched") // whoever else knows of it will say when it is gone
		}
		return
	}
	s.watched[a.c.CgroupID] = true
	s.mu.Unlock()
	work.Go(func() {
		defer func() {
			s.mu.Lock()
			delete(s.watched, a.c.CgroupID)
			s.mu.Unlock()
		}()
		if s.awaitEnd(ctx, a) {
			// The kernel's word, whoever announced it.
			emit(container.Event{Type: container.Gone, Source: s.Name(), Inferred: true, At: time.Now(),
				Container: container.Container{ID: a.c.ID, Runtime: a.c.Runtime, CgroupPath: a.c.CgroupPath, CgroupID: a.c.CgroupID}})
		}
	})
}

// lookAgain is how often we look whether a container whose first process has ended has others still.
const lookAgain = time.Second

// awaitEnd blocks until the container's first process has ended and nobody is left in its cgroup. It reports whether that is so,
// and not that ctx has ended.
func (s *Source) awaitEnd(ctx context.Context, a announcement) bool {
	defer context.AfterFunc(ctx, func() { a.process.Close() })()
	defer a.process.Close()
	if raw, err := a.process.SyscallConn(); err == nil {
		// A pidfd is readable when its process has ended; Close ends the wait too.
		_ = raw.Read(ended)
	}
	for ctx.Err() == nil {
		pids, err := s.h.Processes(a.c.CgroupPath)
		if id, idErr := s.h.ID(a.c.CgroupPath); errors.Is(err, fs.ErrNotExist) || idErr == nil && id != a.c.CgroupID || err == nil && len(pids) == 0 {
			return true
		}
		select {
		case <-ctx.Done():
		case <-time.After(lookAgain):
		}
	}
	return false
}

// ended reports whether the process of a pidfd has ended.
func ended(pidfd uintptr) bool {
	p := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, 0)
		if !errors.Is(err, unix.EINTR) {
			return err != nil || n != 0
		}
	}
}

// openProcess returns a pidfd: the process itself, where its number may be another's a moment later.
func openProcess(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, refuse("gone", "there is no process %d, which it names", pid)
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("pidfd of %d", pid)), nil
}

// describe fills in what annotations say of a container. CRI-O writes the names that the kubelet gives its containers, containerd
// its own.
func describe(c *container.Container, annotations map[string]string) {
	first := func(keys ...string) string {
		i := slices.IndexFunc(keys, func(k string) bool { return annotations[k] != "" })
		if i < 0 {
			return ""
		}
		return annotations[keys[i]]
	}
	const cri, crio = "io.kubernetes.cri.", "io.kubernetes.cri-o."
	c.Annotations = annotations
	c.Pod.Name = first(cri+"sandbox-name", "io.kubernetes.pod.name")
	c.Pod.Namespace = first(cri+"sandbox-namespace", "io.kubernetes.pod.namespace")
	c.Pod.UID = first(cri+"sandbox-uid", "io.kubernetes.pod.uid")
	c.KubernetesContainer = first(cri+"container-name", "io.kubernetes.container.name")
	c.Image = first(cri+"image-name", crio+"ImageName")
	kind := first(cri+"container-type", crio+"ContainerType")
	c.Sandbox = kind == "sandbox"
	switch manager := annotations["io.container.manager"]; {
	case manager == "libpod":
		c.Runtime = "podman"
	case manager == "cri-o" || annotations[crio+"ContainerType"] != "":
		c.Runtime = "cri-o"
	case annotations[cri+"container-type"] != "":
		c.Runtime, c.Namespace = "containerd", "k8s.io"
	}
}
