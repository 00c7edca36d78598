package podman

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// This file reads what Podman writes down where no service answers: the container's OCI spec, the storage's list of
// containers, and its log of events, which is a file or the journal. The files of a user's Podman are that user's: only what
// that user owns is read, so that nobody has us open what is not theirs.

const (
	maxSpec    = 4 << 20  // bytes of one OCI spec
	maxStorage = 32 << 20 // bytes of the storage's list of containers
	maxLogRead = 8 << 20  // bytes of the log of events that are read at a time; Podman rotates it at 1 MB
	maxLine    = 1 << 20  // bytes of one event
	maxJournal = 4 << 20  // bytes of journalctl's answer
	maxKnown   = 16384    // containers that are remembered of a list or a log
	maxName    = 4096     // bytes of a name
	// journalTimeout bounds one question to the journal. It reads files; a cold disk takes a second.
	journalTimeout = 5 * time.Second
)

// description is what people said about a container.
type description struct {
	name, image  string
	labels       map[string]string // nil: not known
	pod, podName string            // id and name of its pod
	infra        bool              // it is a pod's pause container
	created      time.Time
	started      time.Time
}

// spec is what we want of a container's OCI spec.
type spec struct {
	annotations, env map[string]string
	cgroupsPath      string
}

// keptEnv are the only variables of a container's environment that we keep: others may be secrets.
var keptEnv = map[string]bool{"OTEL_SERVICE_NAME": true, "OTEL_RESOURCE_ATTRIBUTES": true}

func parseSpec(b []byte) (spec, error) {
	var s specs.Spec
	if err := json.Unmarshal(b, &s); err != nil {
		return spec{}, err
	}
	out := spec{annotations: s.Annotations, env: map[string]string{}}
	if out.annotations == nil {
		out.annotations = map[string]string{}
	}
	if s.Process != nil {
		for _, e := range s.Process.Env {
			if name, value, ok := strings.Cut(e, "="); ok && keptEnv[name] {
				out.env[name] = value
			}
		}
	}
	if s.Linux != nil {
		out.cgroupsPath = s.Linux.CgroupsPath
	}
	return out, nil
}

// parseStorage understands containers.json and volatile-containers.json of containers/storage (containers.go, Container).
func parseStorage(b []byte) (map[string]description, error) {
	var list []struct {
		ID       string    `json:"id"`
		Names    []string  `json:"names"`
		Metadata string    `json:"metadata"`
		Created  time.Time `json:"created"`
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, err
	}
	known := make(map[string]description, min(len(list), maxKnown))
	for _, c := range list {
		if !validID(c.ID) || len(known) >= maxKnown {
			continue
		}
		d := description{created: c.Created}
		if len(c.Names) > 0 && len(c.Names[0]) <= maxName {
			d.name = c.Names[0]
		}
		// What libpod notes for itself (libpod/storage.go, RuntimeContainerMetadata). Without it there is no image's name.
		var meta struct {
			Image string `json:"image-name"`
		}
		if json.Unmarshal([]byte(c.Metadata), &meta) == nil {
			d.image = meta.Image
		}
		known[c.ID] = d
	}
	return known, nil
}

// logEvent is one event in any of the forms in which Podman tells it.
type logEvent struct {
	typ, status, id, name, image, pod string
	labels                            map[string]string
	at                                time.Time
}

// parseLogLine understands a line of events.log (libpod/events/events.go, Event).
func parseLogLine(b []byte) (logEvent, error) {
	var e struct {
		ID, Image, Name, Status, Type, PodID string
		Time                                 time.Time
		Attributes                           map[string]string
	}
	if err := json.Unmarshal(b, &e); err != nil {
		return logEvent{}, err
	}
	return logEvent{e.Type, e.Status, e.ID, e.Name, e.Image, e.PodID, e.Attributes, e.Time}, nil
}

// parseJournalLine understands a line of `journalctl -o json` (libpod/events/journal_linux.go). A field that is not text is
// an array of bytes there, and one that occurs twice an array of texts: both are none of Podman's.
func parseJournalLine(b []byte) (logEvent, error) {
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		return logEvent{}, err
	}
	text := func(name string) string { s, _ := fields[name].(string); return s }
	e := logEvent{typ: text("PODMAN_TYPE"), status: text("PODMAN_EVENT"), id: text("PODMAN_ID"), name: text("PODMAN_NAME"),
		image: text("PODMAN_IMAGE"), pod: text("PODMAN_POD_ID")}
	e.at, _ = time.Parse(time.RFC3339Nano, text("PODMAN_TIME")) // zero: not known
	if labels := text("PODMAN_LABELS"); labels != "" {
		if err := json.Unmarshal([]byte(labels), &e.labels); err != nil {
			return logEvent{}, fmt.Errorf("PODMAN_LABELS: %w", err)
		}
	}
	return e, nil
}

// known is what a log of events says by now about containers, and the names of pods.
type known struct {
	containers map[string]description
	pods       map[string]string
}

func newKnown() known { return known{map[string]description{}, map[string]string{}} }

// take adds one event.
func (k *known) take(e logEvent) {
	if !validID(e.id) || len(e.name) > maxName {
		return
	}
	switch {
	case e.typ == "pod" && e.status == "remove":
		delete(k.pods, e.id)
	case e.typ == "pod" && e.name != "" && len(k.pods) < maxKnown:
		k.pods[e.id] = e.name
	case e.typ != "container":
	case e.status == "remove":
		delete(k.containers, e.id)
	default:
		d, ok := k.containers[e.id]
		if !ok && len(k.containers) >= maxKnown {
			return
		}
		d.overlay(description{name: e.name, image: e.image, labels: e.labels, pod: e.pod})
		if d.labels == nil {
			d.labels = map[string]string{} // an event has them all, or there are none
		}
		switch e.status {
		case "create":
			d.created = e.at
		case "start":
			d.started = e.at
		}
		k.containers[e.id] = d
	}
}

// overlay takes what another description knows.
func (d *description) overlay(o description) {
	for _, f := range []struct {
		to   *string
		from string
	}{{&d.name, o.name}, {&d.image, o.image}, {&d.pod, o.pod}, {&d.podName, o.podName}} {
		if f.from != "" {
			*f.to = f.from
		}
	}
	if o.labels != nil {
		d.labels = o.labels
	}
	d.infra = d.infra || o.infra
	if !o.created.IsZero() {
		d.created = o.created
	}
	if !o.started.IsZero() {
		d.started = o.started
	}
}

// notes reads Podman's files of one user. It may be used by any goroutine.
type notes struct {
	uid        uint32
	journalctl string // the program; empty: there is none

	mu      sync.Mutex // protects what follows
	storage map[string]*storageFile
	logs    map[string]*logFile
}

// storageFile is a list of containers as it was read.
type storageFile struct {
	modified time.Time
	size     int64
	known    map[string]description
}

// logFile is a log of events as far as it was read.
type logFile struct {
	inode  uint64
	offset int64
	known  known
}

func newNotes(uid uint32) *notes {
	n := &notes{uid: uid, storage: map[string]*storageFile{}, logs: map[string]*logFile{}}
	if path, err := exec.LookPath("journalctl"); err == nil {
		n.journalctl = path
	}
	return n
}

// open opens a regular file of the user, and nothing else: not even to look what it is, for opening a device may do something.
func (n *notes) open(path string) (*os.File, os.FileInfo, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, nil, fmt.Errorf("%s is not a regular file", path)
	}
	if st.Uid != n.uid {
		return nil, nil, fmt.Errorf("%s belongs to user %d, not to user %d, whose Podman names it", path, st.Uid, n.uid)
	}
	f, err := os.Open("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return nil, nil, fmt.Errorf("open %s: %w", path, err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

func (n *notes) read(path string, limit int64) ([]byte, os.FileInfo, error) {
	f, info, err := n.open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if info.Size() > limit {
		return nil, nil, fmt.Errorf("%s has %d bytes, more than any that Podman writes", path, info.Size())
	}
	b, err := io.ReadAll(io.LimitReader(f, limit))
	return b, info, err
}

// spec reads a container's OCI spec.
func (n *notes) spec(c *conmon) (spec, error) {
	if c.bundle == "" {
		return spec{}, fs.ErrNotExist
	}
	path := filepath.Join(c.bundle, "config.json")
	b, _, err := n.read(path, maxSpec)
	if err != nil {
		return spec{}, err
	}
	s, err := parseSpec(b)
	if err != nil {
		return spec{}, fmt.Errorf("read %s: %w", path, err)
	}
	return s, nil
}

// stored is what the storage's lists say about a container: name, image, time.
func (n *notes) stored(c *conmon) (description, error) {
	if c.bundle == "" {
		return description{}, nil
	}
	// GRAPHROOT/DRIVER-containers/ID/userdata; those of --rm have a list of their own, below either root.
	dir := filepath.Dir(filepath.Dir(c.bundle))
	paths := []string{filepath.Join(dir, "containers.json"), filepath.Join(dir, "volatile-containers.json")}
	if c.runRoot != "" {
		paths = append(paths, filepath.Join(c.runRoot, filepath.Base(dir), "volatile-containers.json"))
	}
	var errs []error
	for _, path := range paths {
		known, err := n.storageFile(path)
		if d, ok := known[c.id]; ok {
			return d, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return description{}, errors.Join(errs...)
}

func (n *notes) storageFile(path string) (map[string]description, error) {
	f, info, err := n.open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.storage[path]; s != nil && s.modified.Equal(info.ModTime()) && s.size == info.Size() {
		return s.known, nil
	}
	if info.Size() > maxStorage {
		return nil, fmt.Errorf("%s has %d bytes, more than any that Podman writes", path, info.Size())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxStorage))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	known, err := parseStorage(b)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(n.storage) > 64 {
		clear(n.storage) // a user may name as many roots as there are containers
	}
	n.storage[path] = &storageFile{info.ModTime(), info.Size(), known}
	return known, nil
}

// logged is what the log of events in a directory says about a container. ok is false if it says nothing, or there is none.
func (n *notes) logged(tmpDir, id string) (d description, ok bool, err error) {
	if tmpDir == "" {
		return description{}, false, nil
	}
	f, info, err := n.open(filepath.Join(tmpDir, "events", "events.log"))
	if errors.Is(err, fs.ErrNotExist) {
		return description{}, false, nil
	}
	if err != nil {
		return description{}, false, err
	}
	defer f.Close()
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.logs[tmpDir]
	inode := inodeOf(info)
	if l == nil || l.inode != inode || l.offset > info.Size() {
		if l == nil && len(n.logs) > 64 {
			clear(n.logs)
		}
		// A new one, or a rotated one: what was known from before it still holds.
		next := &logFile{inode: inode, known: newKnown()}
		if l != nil {
			next.known = l.known
		}
		l = next
		n.logs[tmpDir] = l
	}
	err = l.read(f, info.Size())
	d, ok = l.known.containers[id]
	d.podName = l.known.pods[d.pod]
	return d, ok, err
}

// read reads what was added.
func (l *logFile) read(f io.ReaderAt, size int64) error {
	if size-l.offset > maxLogRead {
		l.offset = size - maxLogRead // the newest
	}
	b := make([]byte, size-l.offset)
	n, err := f.ReadAt(b, l.offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read Podman's log of events: %w", err)
	}
	b = b[:n]
	end := bytes.LastIndexByte(b, '\n') + 1 // the last line may not be whole yet
	if end == 0 && len(b) > maxLine {
		end = len(b)
	}
	var errs error
	for line := range bytes.Lines(b[:end]) {
		e, err := parseLogLine(line)
		if err != nil {
			errs = fmt.Errorf("read Podman's log of events: %w", err)
			continue
		}
		l.known.take(e)
	}
	l.offset += int64(end)
	return errs
}

func inodeOf(info os.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}

// journal asks the journal about a container of the user, and about its pod if it is in one. The journal knows who wrote: a
// user cannot write as another.
func (n *notes) journal(ctx context.Context, id, pod string) (d description, ok bool, err error) {
	k := newKnown()
	if err := n.ask(ctx, id, &k); err != nil {
		return description{}, false, err
	}
	d, ok = k.containers[id]
	if validID(d.pod) {
		pod = d.pod
	}
	if ok && validID(pod) {
		if err := n.ask(ctx, pod, &k); err != nil {
			return d, ok, err
		}
		d.pod, d.podName = pod, k.pods[pod]
	}
	return d, ok, nil
}

// ask adds the last events of an object. There is no library that reads the journal without C; the program is the interface
// that systemd promises to keep.
func (n *notes) ask(ctx context.Context, id string, k *known) error {
	if n.journalctl == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, journalTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, n.journalctl, "--quiet", "--no-pager", "--output=json", "--boot", "--lines=16",
		"--output-fields=PODMAN_TYPE,PODMAN_EVENT,PODMAN_ID,PODMAN_NAME,PODMAN_IMAGE,PODMAN_POD_ID,PODMAN_LABELS,PODMAN_TIME",
		fmt.Sprintf("_UID=%d", n.uid), "PODMAN_ID="+id,
		"PODMAN_EVENT=create", "PODMAN_EVENT=init", "PODMAN_EVENT=start", "PODMAN_EVENT=rename")
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/bin:/bin"}
	cmd.WaitDelay = time.Second
	out := &bounded{left: maxJournal}
	cmd.Stdout = out
	if err := cmd.Run(); err != nil && len(out.b) == 0 {
		if ctx.Err() != nil {
			return fmt.Errorf("ask the journal: %w", ctx.Err())
		}
		return nil // it is empty, or there is none
	}
	for line := range bytes.Lines(out.b) {
		e, err := parseJournalLine(line)
		if err != nil {
			return fmt.Errorf("read the journal: %w", err)
		}
		k.take(e)
	}
	return nil
}

// bounded keeps the beginning of what is written.
type bounded struct {
	b    []byte
	left int
}

func (w *bounded) Write(p []byte) (int, error) {
	n := min(len(p), w.left)
	w.b = append(w.b, p[:n]...)
	w.left -= n
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}
