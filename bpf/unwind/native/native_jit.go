package native

import (
	"errors"
	"fmt"
	"os"
	"path"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/symbol"
	"github.com/stoker-profiler/stoker/bpf/unwind"
)

// This file names code that a program made while it ran, where its runtime writes down what it made: the perf map that node
// --perf-basic-prof, JVM agents, .NET (DOTNET_PerfMapEnabled) and others leave in the container's /tmp, or the JIT dump of node
// --perf-prof and others. It is read in the background,
// when code without a name was sampled, and again when it has changed.

const (
	// perfMapBudget bounds the memory for the perf maps of all processes, in bytes.
	perfMapBudget = 16 << 20
	// maxPerfReads is how many perf maps are read at once. A container's file system may never answer: then its process keeps one
	// place, and no container more than one.
	maxPerfReads = 4
	// perfRetry is how many windows a process without a perf map is not asked for it.
	perfRetry = 6
)

// errNotOwner says that somebody else than the process has written its perf map.
var errNotOwner = errors.New("the perf map belongs neither to the process's user nor to root")

// perfState tells one content of a perf map from the next.
type perfState struct {
	size  int64
	mtime time.Time
}

// perfRead is a perf map being read. What it found may be read when done is closed.
type perfRead struct {
	done  chan struct{}
	state perfState
	codes *symbol.PerfMap // nil: as before
	err   error
}

// perfMap is what is known of the perf map of one process.
type perfMap struct {
	codes  *symbol.PerfMap // nil: none
	state  perfState
	read   *perfRead
	missed bool   // code without a name was sampled since the last read
	retry  uint64 // window before which it is not read
}

// perfMaps holds what all processes share. The symbolizer's goroutine owns it.
type perfMaps struct {
	reading []*attachment // with a read under way
	bytes   int64

	read, named, failed, over atomic.Uint64
}

// jit names an address in code that a program made. [anon:NAME], memfd:NAME and the like say who made it, if anything does.
func (a *attachment) jit(m *process.Mapping, address uint64) named {
	from := anonymous
	if m.Path != "" {
		from = m.Path
	}
	line, ok := a.perf.lookup(address)
	if !ok {
		a.perf.missed = true
		// The first time it is worth a moment: programs that are sampled for a few seconds have names from the start.
		if first := a.perf.state == (perfState{}); a.readPerfMap() && first && a.s.loader.patient(a.p.Scope(), a.perf.read.done) {
			a.s.collectPerfMaps(a)
			line, ok = a.perf.lookup(address)
		}
	}
	if ok {
		a.s.perf.named.Add(1)
		return named{a.s.jitLocation(line, from), unwind.NamedSymbol}
	}
	return named{a.s.jitLocation(symbol.Line{Function: jit}, from), unwind.NamedJIT}
}

// jitLocation is the one location of a line of a function in a mapping; its address means nothing outside of its process.
func (s *symbolizer) jitLocation(line symbol.Line, from string) *profile.Location {
	key := jitKey{line, from}
	l, ok := s.jits.Get(key)
	if !ok {
		l = s.env.Names.Unaddressed(line.Function, from)
		if line.File != "" {
			l.Line[0] = profile.Line{Function: s.env.Names.Function(line.Function, line.File, 0), Line: int64(line.Line)}
		}
		s.jits.Put(key, l, 256+int64(len(line.Function)+len(line.File)+len(from)))
	}
	return l
}

type jitKey struct {
	line symbol.Line
	from string
}

// lookup names an address by what was read.
func (p *perfMap) lookup(address uint64) (symbol.Line, bool) {
	if p.codes == nil {
		return symbol.Line{}, false
	}
	return p.codes.Lookup(address)
}

// readPerfMap begins to read the process's perf map, if it may have changed, and reports whether it has begun.
func (a *attachment) readPerfMap() bool {
	p := &a.perf
	if p.read != nil || p.retry > a.s.window || a.p.Gone() || len(a.s.perf.reading) >= maxPerfReads {
		return false
	}
	for _, other := range a.s.perf.reading {
		if other.p.Scope() == a.p.Scope() {
			return false
		}
	}
	p.missed = false
	r := &perfRead{done: make(chan struct{})}
	p.read = r
	a.s.perf.reading = append(a.s.perf.reading, a)
	reader, pid, code, before := a.s.env.Reader, a.p.ID().PID, a.p.Maps().Code(), p.state
	go func() {
		defer close(r.done)
		r.codes, r.state, r.err = openPerfMap(reader, pid, code, before)
	}()
	return true
}

// openPerfMap reads the perf map of a process, or the JIT dump that it has mapped, nil if it is as it was before.
func openPerfMap(reader process.Reader, pid uint32, code []process.Mapping, before perfState) (*symbol.PerfMap, perfState, error) {
	inside, owner, err := reader.Self(pid)
	if err != nil {
		return nil, before, err
	}
	read := symbol.ReadPerfMap
	f, err := symbol.OpenInRoot(reader.RootOf(pid), fmt.Sprintf("/tmp/perf-%d.map", inside))
	if errors.Is(err, os.ErrNotExist) {
		// Whoever writes a JIT dump maps a page of it as code, so that perf learns its path.
		name := fmt.Sprintf("jit-%d.dump", inside)
		for i := range code {
			if code[i].Backed() && path.Base(code[i].Path) == name {
				read = symbol.ReadJITDump
				f, err = reader.Open(pid, &code[i])
				break
			}
		}
	}
	if err != nil {
		return nil, before, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, before, err
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || sys.Uid != owner && sys.Uid != 0 {
		return nil, before, errNotOwner // anybody in the container may write to /tmp
	}
	now := perfState{st.Size(), st.ModTime()}
	if now == before {
		return nil, now, nil
	}
	codes, err := read(f)
	return codes, now, err
}

// collectPerfMaps takes over what has been read; processes whose code has names now have their stacks named again, but for current,
// the one whose stack is being named.
func (s *symbolizer) collectPerfMaps(current *attachment) {
	reading := s.perf.reading[:0]
	for _, a := range s.perf.reading {
		select {
		case <-a.perf.read.done:
			if a.takePerfMap() && a != current {
				s.env.Better(a.p)
			}
		default:
			reading = append(reading, a)
		}
	}
	clear(s.perf.reading[len(reading):])
	s.perf.reading = reading
}

// takePerfMap reports whether there are new names.
func (a *attachment) takePerfMap() bool {
	p, shared := &a.perf, &a.s.perf
	r := p.read
	p.read = nil
	p.retry = a.s.window + 1 // once per window
	switch {
	case errors.Is(r.err, os.ErrNotExist), errors.Is(r.err, process.ErrGone):
		p.retry = a.s.window + perfRetry
		return false
	case r.err != nil:
		shared.failed.Add(1)
		p.retry = a.s.window + perfRetry
		return false
	case r.codes == nil || a.detached:
		return false
	}
	p.state = r.state
	if shared.bytes-p.bytes()+r.codes.Bytes() > perfMapBudget {
		shared.over.Add(1)
		p.retry = a.s.window + perfRetry
		return false
	}
	shared.bytes += r.codes.Bytes() - p.bytes()
	shared.read.Add(1)
	p.codes = r.codes
	return true
}

// bytes is what the process's perf map takes of the budget.
func (p *perfMap) bytes() int64 {
	if p.codes == nil {
		return 0
	}
	return p.codes.Bytes()
}
