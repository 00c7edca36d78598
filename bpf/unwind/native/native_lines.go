package native

import (
	"cmp"
	"errors"
	"runtime"
	"slices"
	"sync/atomic"
	"time"
	"weak"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/bpf/symbol"
	"github.com/stoker-profiler/stoker/bpf/unwind"
)

// This file adds to native frames what only DWARF knows: functions that were inlined, and lines. A frame is first named by the
// symbol table, at once; its place is then looked up behind the symbolizer's back, and when the answer is there the location that
// stacks hold is replaced. So no stack ever waits for debug information, and a file of gigabytes costs its share and no more.

const (
	// maxWanted bounds the places that wait to be looked up. All of a file are looked up at once: those in the same unit of it cost
	// little more than one.
	maxWanted = 8192
	// lineShare is the part of one CPU that debug information may take: a reader rests this many times as long as it was on a CPU, and at
	// least as long as it took.
	lineShare = 50
	// linePatience is how long a reader may take before another one is begun beside it: a container's file system may never
	// answer. maxStuck of them are given up for; then no debug information is read until one comes back.
	linePatience, maxStuck = 20 * time.Second, 4
	// noLines is how many windows a file in which nothing was found is left alone.
	noLines = 60
	// readerBudget bounds what is kept of files between two readings of them, in bytes: which unit has which addresses.
	readerBudget = 6 << 20
)

// lineSource is a file as one container has it. Debug information is no part of what two files must have in common to share
// symbols, and a container can ship a debug file of its own for somebody else's library: what it says is believed in its own
// stacks only.
type lineSource struct {
	scope  uint32
	object weak.Pointer[symbol.Object]
}

// lineFile says where a file's debug information is to be had.
type lineFile struct {
	info symbol.DebugSource
	open opener
	find symbol.DebugFinder // the files that are not the file itself
}

// wantedPlace is a place that waits.
type wantedPlace struct {
	location *profile.Location
	stacks   int // that it was in since it waits: a measure of how much it is wanted
}

// wantedLines are the places of one file that wait.
type wantedLines struct {
	lineFile
	places map[locationKey]*wantedPlace
	retry  uint64             // window before which it is left alone
	fetch  uint64             // window in which a debug file was on its way: what waits is not tried again in it; 0: none was
	reader *symbol.LineReader // what is known of the file; nil: nothing, or a job has it
	read   uint64             // window in which it was used last
}

// lineJob is one file being read. What it found may be read when done is closed.
type lineJob struct {
	source lineSource
	places map[locationKey]*wantedPlace
	asked  []symbol.Address // of the places, most wanted first
	reader *symbol.LineReader
	began  time.Time
	done   chan struct{}

	lines    map[symbol.Address][]symbol.Line
	rest     []symbol.Address          // that it did not get to
	names    map[symbol.Address]string // from the separate file's symbol table
	separate bool
	took     time.Duration // from begin to end
	cpu      time.Duration // of that, on a CPU
	err      error
}

// liner looks places up. The symbolizer's goroutine owns it.
type liner struct {
	cache   *symbol.Cache
	now     func() time.Time
	wanted  map[lineSource]*wantedLines
	waiting int                                 // places
	asked   *unwind.Recent[locationKey, uint64] // lately, and in which window
	window  uint64                              // counted from 1
	job     *lineJob
	stuck   []*lineJob
	rest    time.Time // no job begins before

	found, absent, dropped, separate, failed, slow, slices, incomplete atomic.Uint64
}

func newLiner(cache *symbol.Cache) *liner {
	return &liner{cache: cache, now: time.Now, window: 1, wanted: map[lineSource]*wantedLines{},
		asked: unwind.NewRecent[locationKey, uint64](2 * maxWanted)}
}

// wants reports whether it is worth asking for the lines of a place: it has not been asked for lately.
func (l *liner) wants(src lineSource, k locationKey) bool {
	since := uint64(0)
	if w := l.wanted[src]; w != nil {
		since = w.retry
	}
	if since > l.window {
		return false
	}
	if w := l.wanted[src]; w != nil && w.places[k] != nil {
		w.places[k].stacks++
	}
	// What was asked before the file was left alone had no answer.
	at, asked := l.asked.Get(k)
	return !asked || at < since
}

// want asks for the lines of a location, of the file that f says how to open: through the process that was sampled last, for it is
// the least likely to have ended.
func (l *liner) want(src lineSource, k locationKey, at *profile.Location, f lineFile) {
	w := l.wanted[src]
	if w == nil && len(l.wanted) < maxFiles {
		w = &wantedLines{places: map[locationKey]*wantedPlace{}}
		l.wanted[src] = w
	}
	if w == nil || l.waiting >= maxWanted {
		l.dropped.Add(1)
		return
	}
	l.asked.Put(k, l.window, 1)
	w.lineFile = f
	if w.places[k] == nil {
		w.places[k] = &wantedPlace{stacks: 1}
		l.waiting++
	}
	w.places[k].location = at
}

// poll collects what has been found and begins to read the next file, if that is due. replace is called for each place that is
// known better now.
func (l *liner) poll(replace func(k locationKey, old *profile.Location, lines []symbol.Line, name string)) {
	if j := l.job; j != nil {
		select {
		case <-j.done:
			l.finish(j, replace)
			l.job = nil
		default:
			if l.now().Sub(j.began) < linePatience {
				return
			}
			l.slow.Add(1)
			l.stuck, l.job = append(l.stuck, j), nil
			l.leave(j.source, noLines)
		}
	}
	running := l.stuck[:0]
	for _, j := range l.stuck {
		select {
		case <-j.done: // too late for its places, they may have changed; they are asked for again
		default:
			running = append(running, j)
		}
	}
	clear(l.stuck[len(running):])
	if l.stuck = running; len(l.stuck) >= maxStuck || l.waiting == 0 || l.now().Before(l.rest) {
		return
	}
	// The file with most places waiting: it is the one that is sampled most.
	var next lineSource
	most := 0
	for src, w := range l.wanted {
		if n := len(w.places); n > most && (w.fetch == 0 || w.fetch < l.window) && !l.isStuck(src) {
			next, most = src, n
		}
	}
	if most > 0 {
		l.begin(next)
	}
}

// isStuck reports whether a file of the same container keeps a reader waiting.
func (l *liner) isStuck(src lineSource) bool {
	for _, j := range l.stuck {
		if j.source.scope == src.scope {
			return true
		}
	}
	return false
}

// begin reads a file on a goroutine of its own.
func (l *liner) begin(src lineSource) {
	w := l.wanted[src]
	j := &lineJob{source: src, began: l.now(), done: make(chan struct{}), reader: w.reader}
	if w.reader = nil; j.reader == nil {
		j.reader = new(symbol.LineReader)
	}
	// Those first that most stacks have.
	keys := make([]locationKey, 0, len(w.places))
	for k := range w.places {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b locationKey) int {
		return cmp.Or(cmp.Compare(w.places[b].stacks, w.places[a].stacks), cmp.Compare(a.address, b.address))
	})
	j.asked = make([]symbol.Address, 0, len(keys))
	for _, k := range keys {
		j.asked = append(j.asked, k.address)
	}
	j.places, w.places = w.places, map[locationKey]*wantedPlace{}
	l.waiting -= len(j.places)
	l.job = j
	file := w.lineFile
	go func() {
		defer close(j.done)
		runtime.LockOSThread() // whose CPU time is ours then
		defer runtime.UnlockOSThread()
		began, cpu := time.Now(), threadTime()
		defer func() { j.took, j.cpu = time.Since(began), threadTime()-cpu }()
		if file.info.Inside {
			f, _, err := file.open()
			if err != nil {
				j.err = err
				return
			}
			defer f.Close()
			j.lines, j.rest, j.err = j.reader.Lines(f, file.find, j.asked)
			return
		}
		f, find, err := file.find.Separate(file.info)
		if err != nil {
			j.err = err
			return
		}
		defer f.Close()
		j.separate = true
		j.lines, j.rest, j.err = j.reader.Lines(f, find, j.asked)
		// Assembly has a symbol and, mostly, no entry in DWARF.
		if object, err := l.cache.Load(f); err == nil {
			j.names = map[symbol.Address]string{}
			var lines []symbol.Line
			for _, a := range j.asked {
				if lines = object.Lookup(lines[:0], a); len(lines) > 0 {
					j.names[a] = lines[len(lines)-1].Function
				}
			}
		}
	}()
}

// finish hands over what a job found.
func (l *liner) finish(j *lineJob, replace func(locationKey, *profile.Location, []symbol.Line, string)) {
	l.rest = l.now().Add(max(j.took, lineShare*j.cpu))
	if j.separate {
		l.separate.Add(1)
	}
	rest := make(map[symbol.Address]bool, len(j.rest))
	for _, a := range j.rest {
		rest[a] = true
	}
	w := l.wanted[j.source]
	later := errors.Is(j.err, symbol.ErrNotYet) // what is known now is not all, and nobody would ask again
	for k, old := range j.places {
		lines, name := j.lines[k.address], j.names[k.address]
		switch {
		case later || rest[k.address]:
			if w != nil && w.places[k] == nil && l.waiting < maxWanted {
				w.places[k] = old
				l.waiting++
			}
		case len(lines) == 0 && name == "":
			l.absent.Add(1)
		default:
			l.found.Add(1)
			replace(k, old.location, lines, name)
		}
	}
	if w != nil {
		w.reader, w.read = j.reader, l.window
		l.limitReaders(w)
	}
	if len(rest) > 0 {
		l.slices.Add(1)
	}
	switch {
	case later:
		if w != nil {
			w.fetch = l.window
		}
	case errors.Is(j.err, symbol.ErrNoDebugInfo): // counted as absent: most images have none
		l.leave(j.source, noLines)
	case mayBeElsewhere(j.err): // the process has ended, another one will come
		l.leave(j.source, 1)
	case errors.Is(j.err, symbol.ErrNoCompanion):
		l.incomplete.Add(1)
	case j.err != nil:
		l.failed.Add(1)
		if len(rest) == 0 {
			l.leave(j.source, noLines)
		}
	}
}

// limitReaders forgets what is known of files that were not read for longest, until the rest fits; not of latest.
func (l *liner) limitReaders(latest *wantedLines) {
	for {
		total := int64(0)
		var oldest *wantedLines
		for _, w := range l.wanted {
			if w.reader == nil {
				continue
			}
			if total += w.reader.Bytes(); w != latest && (oldest == nil || w.read < oldest.read) {
				oldest = w
			}
		}
		if total <= readerBudget || oldest == nil {
			return
		}
		oldest.reader = nil
	}
}

// leave stops asking for a file's lines for that many windows.
func (l *liner) leave(src lineSource, windows uint64) {
	if w := l.wanted[src]; w != nil {
		l.waiting -= len(w.places)
		clear(w.places)
		w.retry = l.window + windows
	}
}

// windowEnd forgets files that nobody has in memory any more.
func (l *liner) windowEnd() {
	l.window++
	for src, w := range l.wanted {
		if src.object.Value() == nil {
			l.waiting -= len(w.places)
			delete(l.wanted, src)
		}
	}
}

// withLines makes the location that an old one becomes by what DWARF says. The outermost function keeps the name that the symbol
// table gave it: that is what other tools call it.
func (s *symbolizer) withLines(k locationKey, old *profile.Location, lines []symbol.Line, name string) {
	outermost := old.Line[len(old.Line)-1].Function.Name
	if object := k.object.Value(); object != nil {
		if s.lines = object.Lookup(s.lines[:0], k.address); len(s.lines) > 0 {
			name = s.lines[len(s.lines)-1].Function
		}
	}
	if len(lines) == 0 {
		lines = []symbol.Line{{}}
	}
	l := &profile.Location{Mapping: old.Mapping, Address: old.Address, Line: make([]profile.Line, 0, len(lines))}
	for i, line := range lines {
		function := line.Function
		if i == len(lines)-1 && name != "" {
			function = name
		}
		if function == "" {
			function = unwind.Unknown
			if i == len(lines)-1 {
				function = outermost
			}
		}
		f := s.env.Names.Function(function, line.File, int64(line.StartLine))
		l.Line = append(l.Line, profile.Line{Function: f, Line: int64(line.Line)})
	}
	s.locations.Put(k, named{l, unwind.NamedSymbol}, 256+64*int64(len(l.Line)))
	s.env.Replace(k.scope, old, l)
}
