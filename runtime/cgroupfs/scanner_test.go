package cgroupfs

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/runtime/container"
)

// log keeps what a source says, in order.
type events struct {
	mu  sync.Mutex
	all []container.Event
}

func (l *events) emit(e container.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, e)
}

func (l *events) text() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var lines []string
	for _, e := range l.all {
		line := e.Type.String()
		if e.Container.ID != "" {
			line += " " + e.Container.ID
		}
		if e.Container.Sandbox {
			line += " sandbox"
		}
		if e.Complete {
			line += " complete"
		}
		if !slices.Contains(lines, line) || e.Type == container.Gone {
			lines = append(lines, line)
		}
	}
	return lines
}

// wait polls until what was said contains all of want.
func (l *events) wait(t *testing.T, want ...string) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		got := l.text()
		missing := slices.DeleteFunc(slices.Clone(want), func(w string) bool { return slices.Contains(got, w) })
		if len(missing) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the scanner said %q, %q is missing", got, missing)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func start(t *testing.T, s *Scanner) *events {
	t.Helper()
	l := &events{}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, l.emit) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
	return l
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestScannerTellsWhatExistsAndWhatComesAndGoes(t *testing.T) {
	tree := t.TempDir()
	write(t, tree, "docker/"+id64+"/cgroup.events", "populated 1\nfrozen 0\n")
	write(t, tree, "docker/"+id64b+"/cgroup.events", "populated 0\nfrozen 0\n") // left over
	write(t, tree, "lxc.payload.web/cgroup.events", "populated 1\n")
	mkdir(t, filepath.Join(tree, "lxc.monitor.web"))
	mkdir(t, filepath.Join(tree, "system.slice/a.service"))
	s := NewScanner(Hierarchy{Mount: tree}, nil)
	l := start(t, s)
	l.wait(t, "syncing", "upsert "+id64, "upsert web complete", "synced")

	mkdir(t, filepath.Join(tree, "default/c1"))               // a new parent and at once a container: the mkdir race
	mkdir(t, filepath.Join(tree, "default/c1/init.scope"))    // nested: not a container
	mkdir(t, filepath.Join(tree, "default/c1/docker/"+id64b)) // nested: not a container, whatever its name
	l.wait(t, "upsert c1")
	if err := os.RemoveAll(filepath.Join(tree, "default/c1")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(tree, "docker", id64)); err != nil {
		t.Fatal(err)
	}
	l.wait(t, "gone c1", "gone "+id64)
	for _, line := range l.text() {
		if strings.Contains(line, id64b) || strings.Contains(line, "a.service") {
			t.Errorf("the scanner said %q", line)
		}
	}
	for _, e := range l.all {
		if !e.Inferred || e.Source != "cgroup" || e.At.IsZero() {
			t.Errorf("event %+v, want it inferred, with source and time", e)
		}
		if e.Type == container.Upsert && (e.Container.CgroupID == 0 || e.Container.CgroupPath == "") {
			t.Errorf("upsert %+v without a cgroup", e)
		}
	}
	if st := s.Status(); !st.Connected || st.Err != "" {
		t.Errorf("status %+v", st)
	}
}

func TestScannerFindsEveryContainerOfAStorm(t *testing.T) {
	tree := t.TempDir()
	l := start(t, NewScanner(Hierarchy{Mount: tree}, nil))
	l.wait(t, "synced")
	const pods, each = 40, 5
	var want []string
	for i := range pods {
		uid := strings.Repeat("0", 30) + string(rune('a'+i/10%6)) + string(rune('0'+i%10))
		for j := range each {
			id := uid + "-" + string(rune('a'+j))
			mkdir(t, filepath.Join(tree, "kubepods/burstable/pod"+uid, id))
			want = append(want, "upsert "+id)
		}
	}
	l.wait(t, want...)
}

func TestScannerTellsARestartAsAnotherCgroup(t *testing.T) {
	tree := t.TempDir()
	l := start(t, NewScanner(Hierarchy{Mount: tree}, nil))
	l.wait(t, "synced")
	dir := filepath.Join(tree, "default/c1")
	mkdir(t, dir)
	l.wait(t, "upsert c1")
	keep, err := os.Open(dir) // so that the file system does not give the inode to the next directory
	if err != nil {
		t.Fatal(err)
	}
	defer keep.Close()
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	mkdir(t, dir)
	l.wait(t, "gone c1")
	deadline := time.Now().Add(30 * time.Second)
	for {
		ids := map[uint64]bool{}
		l.mu.Lock()
		for _, e := range l.all {
			if e.Type == container.Upsert {
				ids[e.Container.CgroupID] = true
			}
		}
		last := l.all[len(l.all)-1]
		l.mu.Unlock()
		if len(ids) == 2 && last.Type == container.Upsert {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("cgroup ids %v, the last event is %v; want two ids and an upsert", ids, last.Type)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func TestScannerTellsPauseContainers(t *testing.T) {
	tree, proc := t.TempDir(), t.TempDir()
	pod := "kubepods/pod" + uid
	write(t, tree, pod+"/"+id64+"/cgroup.events", "populated 1\n")
	write(t, tree, pod+"/"+id64+"/cgroup.procs", "10\n")
	write(t, tree, pod+"/"+id64b+"/cgroup.events", "populated 1\n")
	write(t, tree, pod+"/"+id64b+"/cgroup.procs", "11\n12\n")
	write(t, proc, "10/comm", "pause\n")
	write(t, proc, "11/comm", "pause\n")
	write(t, proc, "12/comm", "web\n")
	l := start(t, NewScanner(Hierarchy{Mount: tree, Proc: proc}, nil))
	l.wait(t, "upsert "+id64+" sandbox complete", "upsert "+id64b)

	// One that starts later is recognised when its process runs its own program.
	write(t, tree, pod+"/late/cgroup.procs", "13\n")
	write(t, proc, "13/comm", "runc:[2:INIT]\n")
	l.wait(t, "upsert late")
	write(t, proc, "13/comm", "pause\n")
	l.wait(t, "upsert late sandbox complete")
}

func TestScannerRescanFindsWhatNobodyToldIt(t *testing.T) {
	tree := t.TempDir()
	write(t, tree, "docker/"+id64+"/cgroup.events", "populated 1\n")
	s := NewScanner(Hierarchy{Mount: tree}, nil)
	s.rescan = 20 * time.Millisecond
	l := start(t, s)
	l.wait(t, "upsert "+id64)
	write(t, tree, "docker/"+id64+"/cgroup.events", "populated 0\n") // ended, and the directory stays
	l.wait(t, "gone "+id64)
	write(t, tree, "docker/"+id64b+"/cgroup.procs", "") // empty for now
	l.wait(t, "upsert "+id64b)
	if s.Stats().Rescans < 2 || s.Stats().Watches == 0 {
		t.Errorf("stats %+v", s.Stats())
	}
}

func TestScannerWaitsForTheFirstProcessOfACgroupThatAWalkMet(t *testing.T) {
	tree := t.TempDir()
	write(t, tree, "docker/"+id64+"/cgroup.events", "populated 0\n")
	l := start(t, NewScanner(Hierarchy{Mount: tree}, nil))
	l.wait(t, "synced")
	write(t, tree, "docker/"+id64+"/cgroup.events", "populated 1\n")
	l.wait(t, "upsert "+id64)
}

func TestScannerSaysWhatIsWrongWithTheTree(t *testing.T) {
	s := NewScanner(Hierarchy{Mount: filepath.Join(t.TempDir(), "nothing")}, nil)
	if err := s.Run(t.Context(), func(container.Event) {}); err == nil || !strings.Contains(err.Error(), "cgroup tree at") {
		t.Errorf("got %v", err)
	}
	if st := s.Status(); st.Connected || st.Err == "" {
		t.Errorf("status %+v", st)
	}
}

func TestOverflowIsARescan(t *testing.T) {
	tree := t.TempDir()
	s := NewScanner(Hierarchy{Mount: tree}, nil)
	l := &events{}
	c := &scan{Scanner: s, emit: l.emit, dirs: map[int32]string{}, found: map[string]*found{}, empty: map[string]time.Time{}}
	if err := c.walk(); err != nil {
		t.Fatal(err)
	}
	write(t, tree, "docker/"+id64+"/cgroup.events", "populated 1\n")
	if err := c.apply(change{wd: -1, mask: unix.IN_Q_OVERFLOW}); err != nil {
		t.Fatal(err)
	}
	l.wait(t, "upsert "+id64)
	if s.Stats().Overflows != 1 || s.Counts()["overflow"] != 1 {
		t.Errorf("stats %+v, want one overflow", s.Stats())
	}
}

func FuzzParseChanges(f *testing.F) {
	event := func(length uint32, name string) []byte {
		b := binary.NativeEndian.AppendUint32(nil, 1)
		b = binary.NativeEndian.AppendUint32(b, unix.IN_CREATE|unix.IN_ISDIR)
		b = binary.NativeEndian.AppendUint32(b, 0)
		b = binary.NativeEndian.AppendUint32(b, length)
		return append(b, name...)
	}
	f.Add(event(4, "abc\x00"))
	f.Add(append(event(0, ""), event(8, "x\x00\x00\x00\x00\x00\x00\x00")...))
	f.Add(event(4096, "short"))
	f.Add(event(0xffffffff, "x"))
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		changes, err := parseChanges(b)
		if err == nil && len(b) > 0 && len(changes) == 0 {
			t.Errorf("%x: no change and no error", b)
		}
	})
}
