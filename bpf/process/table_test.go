package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/bpf/symbol"
)

// proc is a made-up /proc.
type proc struct {
	t    *testing.T
	root string
}

func newProc(t *testing.T) proc { return proc{t, t.TempDir()} }

func (p proc) write(name, text string) {
	p.t.Helper()
	path := filepath.Join(p.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// process writes what the kernel shows of a process that started at a tick.
func (p proc) process(pid int, ticks uint64, maps string) ID {
	p.t.Helper()
	p.write(fmt.Sprintf("%d/stat", pid), stat(pid, "a.out", ticks))
	p.write(fmt.Sprintf("%d/maps", pid), maps)
	return ID{PID: uint32(pid), StartBoottime: ticks*tick + 77, ExecID: 1}
}

func (p proc) remove(pid int) {
	p.t.Helper()
	if err := os.RemoveAll(filepath.Join(p.root, fmt.Sprint(pid))); err != nil {
		p.t.Fatal(err)
	}
}

func stat(pid int, name string, ticks uint64) string {
	return fmt.Sprintf("%d (%s) S 1 2 3 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 1 0 %d 2 3 18446744073709551615 1 1 0\n", pid, name, ticks)
}

func at(start uint64, inode int) string {
	return fmt.Sprintf("%x-%x r-xp 00000000 08:01 %d /bin/%d\n", start, start+0x1000, inode, inode)
}

// table makes a Table whose clock stands still and whose kernel knows every process.
func (p proc) table(change func(*Config)) (*Table, *time.Time) {
	now := time.Unix(1e9, 0)
	cfg := Config{Reader: Reader{p.root}, Current: func(ID) bool { return true }, Now: func() time.Time { return now }}
	if change != nil {
		change(&cfg)
	}
	return NewTable(cfg, nil), &now
}

func TestStartTime(t *testing.T) {
	for _, c := range []struct {
		in   string
		want uint64
		ok   bool
	}{
		{stat(1, "cat", 4711), 4711, true},
		{stat(1, ") S 1 2 3 0 -1 4 1 0 0 0 1 1 0 0 20 0 1 0 666 ", 4711), 4711, true},
		{stat(1, "", 4711), 4711, true},
		{"1 (cat) S 1 2 3", 0, false},
		{"1 cat S", 0, false},
		{"", 0, false},
		{strings.Replace(stat(1, "cat", 4711), "4711", "x", 1), 0, false},
	} {
		if got, ok := parseStartTime([]byte(c.in)); got != c.want || ok != c.ok {
			t.Errorf("%q: got %d, %v, want %d, %v", c.in, got, ok, c.want, c.ok)
		}
	}
}

func TestMapsOfOurselves(t *testing.T) {
	var r Reader
	text, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	ticks, ok := parseStartTime(text)
	if !ok {
		t.Fatalf("no start time in %q", text)
	}
	id := ID{PID: uint32(os.Getpid()), StartBoottime: ticks * tick}
	maps, err := r.Maps(id)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for i, m := range maps.Code() {
		if m.Path != exe {
			continue
		}
		found = true
		f, err := r.OpenPath(id.PID, &maps.Code()[i])
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if !found {
		t.Errorf("%s is not among %+v", exe, maps.Code())
	}
	id.StartBoottime += tick
	if _, err := r.Maps(id); !errors.Is(err, ErrGone) {
		t.Errorf("another start time: %v", err)
	}
	if _, err := r.Maps(ID{PID: 1 << 22}); !errors.Is(err, ErrGone) {
		t.Errorf("no such process: %v", err)
	}
}

func TestOpenPath(t *testing.T) {
	p := newProc(t)
	root := filepath.Join(p.root, "1", "root")
	p.write("1/root/bin/app", "app")
	p.write("1/root/bin/odd (deleted)", "odd")
	if err := unix.Mkfifo(filepath.Join(root, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/bin/app", filepath.Join(root, "absolute")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../../../../../etc/passwd", filepath.Join(root, "escape")); err != nil {
		t.Fatal(err)
	}
	mapping := func(name, path string) Mapping {
		t.Helper()
		info, err := os.Lstat(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		return Mapping{Start: 0x1000, End: 0x2000, Executable: true, Major: unix.Major(st.Dev), Minor: unix.Minor(st.Dev), Inode: st.Ino, Path: path}
	}
	app := mapping("bin/app", "/bin/app")
	overlay, otherLayer, other := app, app, app
	overlay.Major, overlay.Minor = 0, 99
	otherLayer.Major, otherLayer.Inode = 99, app.Inode|1<<62
	other.Inode++
	odd := mapping("bin/odd (deleted)", "/bin/odd")
	odd.Deleted = true
	none := app
	none.Path = "/bin/none"
	link := app
	link.Path = "/absolute"
	escape := app
	escape.Path = "/escape"
	anonymous := Mapping{Start: 0x1000, End: 0x2000, Executable: true}
	for _, c := range []struct {
		name string
		m    Mapping
		want error
	}{
		{"the mapped file", app, nil},
		{"stat and maps disagree about the device, as on overlayfs", overlay, nil},
		{"and the inode says which layer", otherLayer, nil},
		{"a link inside the root", link, nil},
		{"really called (deleted)", odd, nil},
		{"replaced", other, ErrReplaced},
		{"deleted", none, ErrGone},
		{"a link out of the root", escape, ErrGone},
		{"a FIFO", mapping("fifo", "/fifo"), symbol.ErrNotRegular},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := Reader{p.root}.Open(1, &c.m)
			if err == nil {
				f.Close()
			}
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	if _, err := (Reader{p.root}).Open(1, &anonymous); err == nil {
		t.Error("anonymous memory was opened")
	}
}

func TestDenied(t *testing.T) {
	for _, errno := range []error{unix.EACCES, unix.EPERM} {
		if err := classify(&os.PathError{Op: "open", Path: "/proc/1/maps", Err: errno}); !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "CAP_SYS_PTRACE") {
			t.Errorf("%v: got %v", errno, err)
		}
	}
	if err := classify(unix.ESRCH); !errors.Is(err, ErrGone) {
		t.Errorf("ESRCH: got %v", err)
	}
}

func TestKeeps(t *testing.T) {
	maps := func(text ...string) *Maps {
		t.Helper()
		list, err := ParseMaps(strings.NewReader(strings.Join(text, "")))
		if err != nil {
			t.Fatal(err)
		}
		return NewMaps(list)
	}
	const jit = "9000-a000 rwxp 00000000 00:00 0 \n"
	old := maps(at(0x1000, 1), at(0x5000, 2), jit)
	for _, c := range []struct {
		name string
		now  *Maps
		want bool
	}{
		{"nothing happened", old, true},
		{"a library came", maps(at(0x1000, 1), at(0x5000, 2), at(0x7000, 3), jit), true},
		{"just-in-time code went", maps(at(0x1000, 1), at(0x5000, 2)), true},
		{"just-in-time code came", maps(at(0x1000, 1), at(0x5000, 2), jit, "c000-d000 rwxp 00000000 00:00 0 \n"), true},
		{"it was renamed", maps("1000-2000 r-xp 00000000 08:01 1 /bin/new (deleted)\n", at(0x5000, 2), jit), true},
		{"it grew", maps("1000-3000 r-xp 00000000 08:01 1 /bin/1\n", at(0x5000, 2), jit), true},
		{"it was split", maps("1000-1800 r-xp 00000000 08:01 1 /bin/1\n", "1800-2000 r-xp 00000800 08:01 1 /bin/1\n", at(0x5000, 2), jit), true},
		{"a library went", maps(at(0x1000, 1), jit), false},
		{"another file", maps(at(0x1000, 1), at(0x5000, 3), jit), false},
		{"another place of the file", maps(at(0x1000, 1), "5000-6000 r-xp 00001000 08:01 2 /bin/2\n", jit), false},
		{"half of it went", maps(at(0x1000, 1), "5000-5800 r-xp 00000000 08:01 2 /bin/2\n", jit), false},
		{"nothing is there", maps(), false},
		{"not known", nil, false},
	} {
		if got := c.now.Keeps(old); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
	if !old.Keeps(nil) {
		t.Error("nothing to keep")
	}
}

func TestTableIsBounded(t *testing.T) {
	p := newProc(t)
	table, _ := p.table(func(c *Config) { c.MaxProcesses = 8 })
	forgotten := 0
	table.lost = func(*Process) { forgotten++ }
	first := p.process(1, 10, at(0x1000, 1))
	table.Get(first, 1, nil)
	for pid := 2; pid < 20; pid++ {
		id := p.process(pid, 10, at(0x1000, pid))
		table.Get(id, 1, nil)
		if pid == 5 {
			table.Exit(id)
		}
	}
	s := table.Stats()
	if s.Processes > 8 || s.Evicted < 10 || forgotten != int(s.Evicted) || s.Mappings != s.Processes {
		t.Errorf("%+v, %d forgotten", s, forgotten)
	}
	if _, ok := table.Lookup(ID{PID: 5, StartBoottime: 10*tick + 77, ExecID: 1}); ok {
		t.Error("what ended was not the first to go")
	}
	if len(table.byPID) != len(table.byID) || len(table.scopes) != 1 || len(table.scopes[1]) != len(table.byID) {
		t.Errorf("the indexes do not agree: %d by PID, %d by ID, scopes %v", len(table.byPID), len(table.byID), table.scopes)
	}
}

func TestProcessesAreForgotten(t *testing.T) {
	p := newProc(t)
	table, _ := p.table(nil)
	ended, idle := p.process(1, 10, at(0x1000, 1)), p.process(2, 10, at(0x1000, 1))
	table.Get(ended, 1, nil)
	table.Get(idle, 2, nil)
	ended.Epoch = 3 // an ID's epoch is not the process's
	table.Exit(ended)
	table.Exit(ended)
	for window := 1; window <= idleWindows; window++ {
		table.WindowEnd()
		if _, ok := table.Lookup(ended); ok != (window < exitWindows) {
			t.Errorf("window %d after the exit: known %v", window, ok)
		}
		if _, ok := table.Lookup(idle); ok != (window < idleWindows) {
			t.Errorf("window %d without a sample: known %v", window, ok)
		}
	}
	if s := table.Stats(); s.Exits != 1 || s.Processes != 0 || s.Mappings != 0 || len(table.scopes) != 0 {
		t.Errorf("%+v, scopes %v", s, table.scopes)
	}
}

func TestSweep(t *testing.T) {
	p := newProc(t)
	table, _ := p.table(nil)
	gone, reused, alive := p.process(1, 10, at(0x1000, 1)), p.process(2, 10, at(0x1000, 1)), p.process(3, 10, at(0x1000, 1))
	for _, id := range []ID{gone, reused, alive} {
		table.Get(id, 1, nil)
	}
	p.remove(1)
	p.process(2, 11, at(0x1000, 9))
	table.Sweep()
	table.Sweep()
	table.WindowEnd()
	table.WindowEnd()
	if _, ok := table.Lookup(alive); !ok || table.Stats().Processes != 1 || table.Stats().Swept != 2 {
		t.Errorf("alive is known: %v, %+v", ok, table.Stats())
	}
}

func TestReplacedMappingsServeLateStacks(t *testing.T) {
	p := newProc(t)
	table, _ := p.table(nil)
	id := p.process(1, 10, at(0x1000, 1)+at(0x5000, 2))
	proc := table.Get(id, 1, nil)
	p.process(1, 10, at(0x1000, 1))
	if c := table.Refresh(proc); !c.Fresh || !c.Moved {
		t.Errorf("a library went: %+v", c)
	}
	for window := range exitWindows + 1 {
		if _, ok := proc.Find(0x5000); ok != (window < exitWindows) {
			t.Errorf("window %d after: found %v", window, ok)
		}
		table.WindowEnd()
	}
}

// A program that execs the next at once: by the time that its exec record is read, /proc shows the next one's maps, and its stacks
// come before the record of the second exec. They are not named by the next program's files.
func TestMapsOfTheNextProgramAreNotBelieved(t *testing.T) {
	p := newProc(t)
	now := uint64(1) // the exec count that the kernel knows
	table, _ := p.table(func(c *Config) { c.Current = func(id ID) bool { return id.ExecID == now } })
	low, high := []Evidence{{0x1010, 0x10}}, []Evidence{{0x7f0000001010, 0x10}}
	for _, c := range []struct {
		name     string
		start    uint64
		evidence []Evidence
		known    bool // are the maps taken for the first program's
	}{
		{"a fixed address proves nothing", 0x1000, low, false},
		{"nothing is said", 0x7f0000001000, nil, false},
		{"only the same address space agrees at a random one", 0x7f0000001000, high, true},
		{"another place of the file", 0x7f0000001000, []Evidence{{0x7f0000001010, 0x20}}, false},
	} {
		first := p.process(1, 10, at(c.start, 2))
		first.ExecID, now = now+1, now+2 // it is the second one already
		table.Exec(first, 1)
		if got := table.Get(first, 1, c.evidence).Maps() != nil; got != c.known {
			t.Errorf("%s: named by the second one's maps: %v", c.name, got)
		}
		second := first
		second.ExecID = now
		if table.Exec(second, 1); table.Get(second, 1, c.evidence).Maps() == nil {
			t.Errorf("%s: the second program has no maps", c.name)
		}
	}
}

func TestMovedToAnotherScope(t *testing.T) {
	p := newProc(t)
	table, _ := p.table(nil)
	id, other := p.process(1, 10, at(0x1000, 1)), p.process(2, 10, at(0x1000, 1))
	a, b := table.Get(id, 1, nil), table.Get(other, 2, nil)
	if n := len(table.Siblings(b, 9)); n != 0 {
		t.Errorf("%d siblings in the first scope", n)
	}
	table.Get(id, 2, nil)
	if s := table.Siblings(b, 9); len(s) != 1 || s[0] != a || len(table.scopes) != 1 {
		t.Errorf("siblings %v, scopes %v", s, table.scopes)
	}
}

func TestLongMapsAreReadRarely(t *testing.T) {
	p := newProc(t)
	var long strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&long, "%x-%x r--p 00000000 08:01 1 /a/path/of/some/length/as/they/are/in/containers\n", 0x1000*(i+16), 0x1000*(i+17))
	}
	id := p.process(1, 10, at(0x1000, 1)+long.String())
	table, now := p.table(nil)
	proc := table.Get(id, 1, nil)
	for range 100 {
		table.Refresh(proc)
		table.Reread(proc)
	}
	if n := table.Stats().Reads; n != 1 {
		t.Errorf("read %d times at once", n)
	}
	*now = now.Add(10 * time.Second)
	table.Refresh(proc)
	if n := table.Stats().Reads; n != 2 {
		t.Errorf("read %d times after ten seconds", n)
	}
}

func TestTooManyMappings(t *testing.T) {
	p := newProc(t)
	var many strings.Builder
	for i := range MaxMappings + 10 {
		many.WriteString(at(uint64(0x1000*(i+1)), 1))
	}
	table, _ := p.table(nil)
	proc := table.Get(p.process(1, 10, many.String()), 1, nil)
	if s := table.Stats(); s.TooMany != 1 || s.Mappings != MaxMappings {
		t.Errorf("%+v", s)
	}
	if _, ok := proc.Find(0x1000); !ok {
		t.Error("the mappings that fit are not used")
	}
}

func TestLyingProc(t *testing.T) {
	p := newProc(t)
	table, _ := p.table(nil)
	id := p.process(1, 10, "nonsense\n")
	if proc := table.Get(id, 1, nil); proc.Maps() != nil || table.Stats().Failed != 1 {
		t.Errorf("%+v", table.Stats())
	}
	for range 100 {
		table.Get(id, 1, nil)
	}
	if n := table.Stats().Failed; n > freeReads+1 {
		t.Errorf("tried %d times at once", n)
	}
	failed := table.Stats().Failed
	id = p.process(2, 10, at(0x1000, 1))
	p.write("2/stat", "nonsense")
	if proc := table.Get(id, 1, nil); proc.Maps() != nil || table.Stats().Failed != failed+1 {
		t.Errorf("%+v", table.Stats())
	}
}
