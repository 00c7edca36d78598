package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/symbol"
)

// Container is one whose programs are looked at.
type Container struct {
	Name      string
	Processes func() ([]int, error) // pids, as the host numbers them
}

// Bounds on the look at symbols: what a container has of each is a stranger's choice.
const (
	SymbolsPatience = 30 * time.Second // for all containers of a node
	maxContainers   = 500
	maxProcesses    = 32 // of a container
	maxFiles        = 256
	maxNamed        = 3 // libraries, problems: that many are told by name
	symbolBytes     = 64 << 20
	// madeCode is how much memory with code that is of no file makes a program one that compiles while it runs. Less is a few
	// trampolines, as libffi's.
	madeCode = 64 << 10
)

// Symbols checks which functions of the containers' programs have names, and why those of the others have not. One finding for each
// container, for as many as there is time for within the context. It reads with the rights of who asks, not the agent's. fetched: the
// agent asks debuginfod servers.
func Symbols(containers func(ctx context.Context) ([]Container, error), fetched bool) Check {
	return Check{"symbols", "containers", func(ctx context.Context) []Finding {
		all, err := containers(ctx)
		if err != nil {
			return one(Degraded, "which containers there are is not known: "+err.Error(), "sudo stoker doctor")
		}
		// A little before the time is over, so that what was found is told.
		if deadline, ok := ctx.Deadline(); ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadline(ctx, deadline.Add(-time.Until(deadline)/10))
			defer cancel()
		}
		l := looker{cache: symbol.NewCache(symbolBytes), fetched: fetched}
		var out []Finding
		for i, c := range all {
			if i == maxContainers || ctx.Err() != nil {
				out = append(out, Finding{"", OK, fmt.Sprintf("%d more containers were not looked at", len(all)-i), ""})
				break
			}
			if f, ok := l.container(ctx, c); ok {
				out = append(out, f)
			}
		}
		if l.barred > 0 {
			out = append(out, Finding{"", Degraded, fmt.Sprintf("the processes of %s may not be looked at with these rights", count(l.barred, "container")), "sudo stoker doctor"})
		}
		return out
	}}
}

// looker looks at containers, one after the other.
type looker struct {
	reader  process.Reader
	cache   *symbol.Cache
	fetched bool
	barred  int // containers whose processes may not be looked at
}

// look is what is seen of one container.
type look struct {
	files    map[fileID]bool
	named    int
	exported []string // libraries that have only the names of what they export
	stripped []string // programs whose debug file is nowhere; and where it would be
	wanted   []string
	problems []problem
	barred   bool // some process may not be looked at
}

type fileID struct {
	major, minor uint32
	inode        uint64
}

type problem struct{ what, remedy string }

func (l *look) add(what, remedy string) {
	if p := (problem{what, remedy}); !slices.Contains(l.problems, p) {
		l.problems = append(l.problems, p)
	}
}

// container makes the finding of a container. false: nothing of it runs.
func (l *looker) container(ctx context.Context, c Container) (Finding, bool) {
	pids, err := c.Processes()
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return Finding{}, false
		}
		return Finding{c.Name, Degraded, err.Error(), "sudo stoker doctor"}, true
	}
	seen := look{files: map[fileID]bool{}}
	alive := false
	for _, pid := range pids[:min(len(pids), maxProcesses)] {
		if ctx.Err() != nil {
			break
		}
		alive = l.process(ctx, uint32(pid), &seen) || alive
	}
	if !alive {
		return Finding{}, false
	}
	if seen.barred {
		l.barred++
		if len(seen.files) == 0 {
			return Finding{}, false
		}
	}
	l.addStripped(&seen)
	var what, remedies []string
	for i, p := range seen.problems {
		if i == maxNamed {
			what = append(what, fmt.Sprintf("%d more like these", len(seen.problems)-i))
			break
		}
		what = append(what, p.what)
		if !slices.Contains(remedies, p.remedy) {
			remedies = append(remedies, p.remedy)
		}
	}
	rest := count(seen.named, "file") + " with all names"
	if n := len(seen.exported); n > 0 {
		rest += fmt.Sprintf(", %s with those that they export (%s)", count(n, "other"), some(seen.exported))
	}
	if len(seen.problems) == 0 {
		return Finding{c.Name, OK, rest, ""}, true
	}
	return Finding{c.Name, Degraded, strings.Join(append(what, rest), "; "), strings.Join(remedies, "; ")}, true
}

// process looks at one process; false: it is gone.
func (l *looker) process(ctx context.Context, pid uint32, seen *look) bool {
	maps, err := l.reader.MapsOf(pid)
	switch {
	case errors.Is(err, process.ErrGone):
		return false
	case errors.Is(err, process.ErrDenied):
		seen.barred = true
		return true
	case err != nil && maps == nil:
		seen.add(fmt.Sprintf("process %d: %v", pid, err), "tell the maintainers: stoker doctor --bundle FILE")
		return true
	}
	program, err := os.Readlink("/proc/" + strconv.Itoa(int(pid)) + "/exe")
	if err != nil { // its first thread has ended, or this is the kernel's
		program = ""
	}
	program = strings.TrimSuffix(program, " (deleted)")
	var made uint64
	named := false // what it makes while it runs
	code := maps.Code()
	for i := range code {
		m := &code[i]
		if !m.Backed() {
			if m.Path == "" || strings.HasPrefix(m.Path, "[anon:") {
				made += m.End - m.Start
			}
			continue
		}
		if strings.HasPrefix(path.Base(m.Path), "jit-") && strings.HasSuffix(m.Path, ".dump") {
			named = true
		}
		if ctx.Err() != nil || len(seen.files) == maxFiles {
			return true
		}
		id := fileID{m.Major, m.Minor, m.Inode}
		if seen.files[id] {
			continue
		}
		seen.files[id] = true
		l.file(pid, m, m.Path == program, seen)
	}
	if made >= madeCode && !named && !l.perfMap(pid) {
		seen.add(base(program)+" compiles code while it runs, and writes down nowhere what it is called",
			"have it write a perf map: node --perf-basic-prof, DOTNET_PerfMapEnabled=1, jcmd PID Compiler.perfmap (docs/symbols.md)")
	}
	return true
}

// perfMap reports whether a process keeps a list of the code that it makes.
func (l *looker) perfMap(pid uint32) bool {
	inside, _, err := l.reader.Self(pid)
	if err != nil {
		return false
	}
	f, err := symbol.OpenInRoot(l.reader.RootOf(pid), fmt.Sprintf("/tmp/perf-%d.map", inside))
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// file looks at one file with code. program: it is the one that the process was started from, and not a library.
func (l *looker) file(pid uint32, m *process.Mapping, program bool, seen *look) {
	name := base(m.Path)
	f, err := l.reader.Open(pid, m)
	if err != nil {
		why, remedy := unreadable(err, m.Deleted)
		if why != "" {
			seen.add(name+" "+why, remedy)
		}
		return
	}
	defer f.Close()
	o, err := l.cache.Load(f)
	switch {
	case errors.Is(err, symbol.ErrNotELF): // code of a runtime's own format, or none
		return
	case err != nil:
		seen.add(fmt.Sprintf("%s cannot be read: %v", name, err), "file "+name+" (readelf -a says more)")
		return
	case !o.Stripped():
		seen.named++
		return
	}
	find := symbol.DebugFinder{Path: m.Path, Root: l.reader.RootOf(pid), Host: "/"}
	if debug, _, err := find.Separate(o.DebugSource()); err == nil {
		debug.Close()
		seen.named++
		return
	}
	if !program && o.Named() {
		seen.exported = append(seen.exported, name)
		return
	}
	id := o.BuildID()
	if id == "" {
		seen.add(name+" is stripped, and has no build id that its debug file could be found by", "build it without strip and -s")
		return
	}
	if !slices.Contains(seen.stripped, name) {
		seen.stripped = append(seen.stripped, name)
		seen.wanted = append(seen.wanted, fmt.Sprintf("/usr/lib/debug/.build-id/%s/%s.debug", id[:min(2, len(id))], id[min(2, len(id)):]))
	}
}

// addStripped tells of the stripped programs all at once.
func (l *looker) addStripped(seen *look) {
	if len(seen.stripped) == 0 {
		return
	}
	verb, of := "is", "its debug file is"
	if len(seen.stripped) > 1 {
		verb, of = "are", "their debug files are"
	}
	what := fmt.Sprintf("%s %s stripped, and %s not on this machine: only what is exported has names", some(seen.stripped), verb, of)
	remedy := fmt.Sprintf("install the debug package (Debian: NAME-dbgsym; Fedora: dnf debuginfo-install NAME) in the image or on this machine, which brings %s", some(seen.wanted))
	if l.fetched {
		what += "; the agent asks its debuginfod servers"
	} else {
		remedy += "; or set symbols.debuginfod.urls"
	}
	seen.add(what, remedy)
}

// some names the first of a list.
func some(names []string) string {
	text := strings.Join(names[:min(len(names), maxNamed)], ", ")
	if len(names) > maxNamed {
		text += fmt.Sprintf(" and %d more", len(names)-maxNamed)
	}
	return text
}

// count is a number of things.
func count(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

// unreadable says why a mapped file could not be opened, and what to do; "" if that is no loss.
func unreadable(err error, deleted bool) (why, remedy string) {
	const rights = "run as root, or with CAP_DAC_READ_SEARCH and CAP_CHECKPOINT_RESTORE"
	switch {
	case errors.Is(err, process.ErrGone), errors.Is(err, symbol.ErrNotRegular):
		return "", ""
	case errors.Is(err, process.ErrReplaced):
		return "was replaced while it runs, and the old one may not be read", rights + "; or restart the container"
	case errors.Is(err, process.ErrDenied), errors.Is(err, fs.ErrPermission):
		return "may not be read", rights
	case deleted, errors.Is(err, fs.ErrNotExist):
		return "was deleted while it runs, and may not be read any more", rights + "; or restart the container"
	}
	return "cannot be read: " + err.Error(), rights
}

// base is the name of a file for people: a container may call its files whatever it wants, at any length.
func base(file string) string {
	name := []rune(path.Base(file))
	if len(name) > 60 {
		name = append(name[:60], '…')
	}
	return string(name)
}
