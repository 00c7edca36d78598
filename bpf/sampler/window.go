package sampler

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/unwind"
)

// originCount mirrors ORIGIN_COUNT: CPU only.
const originCount = 1

// Count is how often a stack was sampled in a window.
type Count struct {
	Key unwind.Key
	// N is the number of samples, Weight what they stand for: sampling periods for the CPU clock (N × thinning).
	N, Weight uint64
}

// Rest is what a window could not take stack by stack.
type Rest struct {
	Scope  uint32
	Origin unwind.Origin
	Count  Count // Key is zero
}

// Window is what was counted in [Start, End).
type Window struct {
	Start, End time.Time
	BootStart  time.Duration // Start on CLOCK_BOOTTIME
	Counts     []Count       // valid until Handler.Window returns
	Rest       []Rest
}

// Handler receives what the kernel side has to say, in an order that keeps the kernel protocol: every stack before the window
// that counts it, and Forget only when no later window can. All calls come from the goroutine of Run; a handler that takes long
// lets the ring fill, which costs stacks, not samples.
type Handler interface {
	// Exec: a process in scope has a new program. Exit: its last thread is ending.
	Exec(id process.ID, scope uint32)
	Exit(id process.ID)
	// MapsChanged: the process has more or fewer executable pages than before. Whoever finds its mappings changed raises its epoch.
	MapsChanged(id process.ID)
	// Stack: a stack that was not sent before, or again after its epoch or scope changed. The handler keeps it.
	Stack(unwind.Stack)
	// ProcessesLost: exec or exit records did not fit in the ring; whoever needs them lists processes again.
	ProcessesLost()
	Window(Window)
	// Forget: the stack will not be counted again.
	Forget(unwind.Key)
}

// windows is the part of the sampler that Run's goroutine owns.
type windows struct {
	spec     *ebpf.MapSpec // of a window's map
	open_    *ebpf.Map     // the inner map that the kernel side counts into
	start    time.Time
	boot     time.Duration
	seq      uint64 // number of the open window; raised at U1
	size     int    // keys of the next window's map
	length   time.Duration
	late     int // times in a row that the open window could not be closed
	pending  map[process.ID][]buildID
	known    map[unwind.Key]*known
	exited   map[process.ID]uint64 // → window in which the exit was read
	lastRest map[bpfRestKey]Count
	keys     []bpfStackKey // buffers of the batch read
	counts   []bpfCount
	result   []Count
	events   [bpfEventEVENT_COUNT]uint64 // as of the last window
	overflow uint64
}

// known is a stack that user space holds.
type known struct {
	arrived, used uint64 // windows
	forget        uint64 // evicted: no count can come after this window; 0: not evicted
}

func (w *windows) open(s *Sampler, spec *ebpf.MapSpec) error {
	w.spec = spec
	w.pending = map[process.ID][]buildID{}
	w.known = map[unwind.Key]*known{}
	w.exited = map[process.ID]uint64{}
	w.lastRest = map[bpfRestKey]Count{}
	w.seq = 1
	w.length = usualWindow
	w.size = s.cfg.windowKeys(s.cfg.FrequencyHz, w.length)
	m, err := w.newMap(w.size)
	if err != nil {
		return err
	}
	w.open_ = m
	if err := s.objs.Window.Put(uint32(0), m); err != nil {
		return loadError("open the first window", err)
	}
	s.stats.windowKeys.Store(int64(w.size))
	w.start, w.boot = time.Now(), boottime()
	return nil
}

func (w *windows) close() error {
	if w.open_ == nil {
		return nil
	}
	return w.open_.Close()
}

// newMap makes an inner map like the object's own, type information included: up to 6.1 the kernel refuses one without it, because
// it compares where a value would have a timer (bpf_map_meta_equal).
func (w *windows) newMap(entries int) (*ebpf.Map, error) {
	spec := w.spec.Copy()
	spec.MaxEntries = uint32(entries)
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, loadError(fmt.Sprintf("make a map for a window of %d stacks", entries), err)
	}
	return m, nil
}

// boottime reads CLOCK_BOOTTIME.
func boottime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // cannot be: the clock is there since Linux 2.6.39
	}
	return time.Duration(ts.Nano())
}

// Run reads stacks as they come and closes a window every so often, and once more when ctx ends, which it then returns nil
// for. It returns early only with an error that makes the sampler useless.
func (s *Sampler) Run(ctx context.Context, window time.Duration, h Handler) error {
	defer s.endRun()
	// One reader: wake it when something else than a record wants its attention.
	stop := context.AfterFunc(ctx, func() { _ = s.ring.Flush() })
	defer stop()
	s.win.length = window
	next := s.win.start.Add(window)
	var rec ringbuf.Record
	for {
		s.ring.SetDeadline(next)
		err := s.ring.ReadInto(&rec)
		switch {
		case err == nil:
			s.handle(rec.RawSample, h)
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, ringbuf.ErrFlushed):
		default:
			return fmt.Errorf("read the ring buffer of stacks: %w", err)
		}
		var flushed chan error
		select {
		case flushed = <-s.flush:
		default:
			if ctx.Err() == nil && time.Now().Before(next) {
				continue
			}
		}
		last := ctx.Err() != nil // asked once: ctx may end while a window is being closed
		if last {
			// X1: nothing ticks any more, so this window takes all there is.
			err = s.clock.enable(false)
		} else {
			err = s.clock.refresh()
		}
		if err != nil {
			s.cfg.Log.Warn("CPU clock", "err", err)
		}
		err = s.endWindow(h)
		if flushed != nil {
			flushed <- err
		}
		if errors.Is(err, errLate) && !last {
			s.cfg.Log.Warn("window", "err", err)
		} else if err != nil {
			return err
		}
		if last {
			return nil
		}
		if next = next.Add(window); next.Before(time.Now()) || flushed != nil {
			next = time.Now().Add(window)
		}
	}
}

var errEnded = errors.New("flush the open window: the sampler has stopped")

// Flush ends the open window now and returns when its Handler.Window has returned, or with an error when Run has ended.
func (s *Sampler) Flush(ctx context.Context) error {
	done := make(chan error, 1)
	for {
		if err := s.ring.Flush(); err != nil {
			return fmt.Errorf("flush the open window: %w", err)
		}
		select {
		case s.flush <- done:
			select {
			case err := <-done:
				return err
			case <-s.ended:
				select {
				case err := <-done: // it was the last window
					return err
				default:
					return errEnded
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		case <-s.ended:
			return errEnded
		case <-time.After(5 * time.Millisecond): // Run was between two reads: ask again
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// handle takes one record off the ring.
func (s *Sampler) handle(raw []byte, h Handler) {
	r, err := parseRecord(raw)
	if err != nil {
		s.stats.badRecords.Add(1)
		s.cfg.Log.Error("the ring buffer carries something we did not write", "err", err)
		return
	}
	w := &s.win
	switch r.typ {
	case bpfRecordTypeRECORD_EXEC:
		h.Exec(r.key.Process, r.key.Scope)
	case bpfRecordTypeRECORD_EXIT:
		w.exited[r.key.Process] = w.seq
		h.Exit(r.key.Process)
	case bpfRecordTypeRECORD_MAPS:
		h.MapsChanged(r.key.Process)
	case bpfRecordTypeRECORD_HINTS:
		w.pending[r.key.Process] = r.hints
	case bpfRecordTypeRECORD_STACK:
		st := unwind.Stack{Key: r.key, Frames: r.frames}
		if ids, ok := w.pending[r.key.Process]; ok {
			if st.Hints, ok = hintsFor(ids, r.frames); ok {
				delete(w.pending, r.key.Process)
			}
		}
		if k, ok := w.known[r.key]; ok { // sent twice, or evicted and back: an upsert
			k.arrived, k.forget = w.seq, 0
			s.stats.stacksAgain.Add(1)
		} else {
			w.known[r.key] = &known{arrived: w.seq, used: w.seq}
			s.stats.stacksNew.Add(1)
		}
		h.Stack(st)
	}
}

// errLate says that the open window could not be closed just now. Nothing is lost: it goes on.
var errLate = errors.New("the window could not be closed and goes on")

// maxLate is how many times in a row that may happen: memory or files to open may run short, and come back.
const maxLate = 6

// endWindow is U1 to U4 of the kernel protocol.
func (s *Sampler) endWindow(h Handler) error {
	w := &s.win

	// U1. The update of an array of maps returns after a grace period: every program that saw the old map has ended.
	next, err := w.newMap(w.size)
	if least := s.cfg.minWindowKeys(); err != nil && w.size > least { // short of memory, perhaps
		w.size = least
		next, err = w.newMap(w.size)
	}
	if err != nil {
		if w.late++; w.late > maxLate {
			return err
		}
		return errors.Join(errLate, err, s.drain(h))
	}
	w.late = 0
	end, bootEnd := time.Now(), boottime()
	if err := s.objs.Window.Put(uint32(0), next); err != nil {
		next.Close()
		return fmt.Errorf("open the next window: %w", err)
	}
	s.stats.windowKeys.Store(int64(w.size))
	closed := w.open_
	w.open_ = next
	defer closed.Close()
	w.seq++
	win := Window{Start: w.start, End: end, BootStart: w.boot}
	w.start, w.boot = end, bootEnd

	// U2. What the ring holds now includes the stack of every key in the closed map.
	if err := s.drain(h); err != nil {
		return err
	}

	// U3.
	if err := w.read(closed); err != nil {
		return err
	}
	for _, c := range w.result {
		if k := w.known[c.Key]; k != nil {
			k.used = w.seq
		} else if c.Key.Hash != 0 {
			s.stats.stacksLost.Add(1)
		}
	}
	win.Counts = w.result
	if win.Rest, err = s.readRest(); err != nil {
		return err
	}
	s.stats.windows.Add(1)
	h.Window(win)
	if err := s.checkEvents(h); err != nil {
		return err
	}

	// U4.
	for key, k := range w.known {
		if k.forget != 0 && k.forget <= w.seq {
			delete(w.known, key)
			h.Forget(key)
		}
	}
	if err := s.evict(); err != nil {
		return err
	}
	clear(w.pending) // their stack did not come: it was not delivered
	if err := s.scopes.windowEnd(); err != nil {
		return err
	}
	// Room for what may come when all is new, and for twice what this window had, so that a quiet node does not hold the memory of a busy one.
	w.size = max(s.cfg.windowKeys(s.clock.frequency(), w.length), 2*len(w.result))
	if len(win.Rest) > 0 {
		w.size = s.cfg.MaxWindowKeys
	}
	w.size = min(w.size, s.cfg.MaxWindowKeys)
	return nil
}

// drain reads what was in the ring when it was called.
func (s *Sampler) drain(h Handler) error {
	s.ring.SetDeadline(time.Now()) // do not wait
	var rec ringbuf.Record
	for pending := s.ring.AvailableBytes(); pending > 0; {
		err := s.ring.ReadInto(&rec)
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, ringbuf.ErrFlushed) {
			continue // an end of an earlier wait; there is more to read
		}
		if err != nil {
			return fmt.Errorf("read the ring buffer of stacks: %w", err)
		}
		pending -= 8 + (len(rec.RawSample)+7)&^7 // a record's header (BPF_RINGBUF_HDR_SZ) and padding
		s.handle(rec.RawSample, h)
	}
	return nil
}

// read copies a closed window's map into w.result. Nobody writes to the map any more.
func (w *windows) read(m *ebpf.Map) error {
	entries := int(m.MaxEntries())
	if len(w.keys) < entries {
		w.keys, w.counts = make([]bpfStackKey, entries), make([]bpfCount, entries)
	}
	w.result = w.result[:0]
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, w.keys[:entries], w.counts[:entries], nil)
		for i := range n {
			w.result = append(w.result, Count{Key: keyOf(w.keys[i]), N: w.counts[i].N, Weight: w.counts[i].Weight})
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) { // that was all
			return nil
		}
		if err != nil {
			return fmt.Errorf("read a closed window: %w", err)
		}
	}
}

// readRest returns what overflowed since the last window, by scope.
func (s *Sampler) readRest() ([]Rest, error) {
	w := &s.win
	c, err := s.readCounters()
	if err != nil {
		return nil, err
	}
	overflow := c.Outcomes[bpfOutcomeOUTCOME_OVERFLOW]
	if overflow == w.overflow {
		return nil, nil // the usual case costs one call
	}
	w.overflow = overflow
	var rest []Rest
	last := map[bpfRestKey]Count{}
	for id := range s.scopes.ids() {
		key := bpfRestKey{Scope: id, Origin: uint32(unwind.OriginCPU)}
		var perCPU []bpfCount
		if err := s.objs.Rest.Lookup(key, &perCPU); errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("read the rest of scope %d: %w", id, err)
		}
		var sum Count
		for _, v := range perCPU {
			sum.N += v.N
			sum.Weight += v.Weight
		}
		last[key] = sum
		if before := w.lastRest[key]; sum.N > before.N {
			rest = append(rest, Rest{Scope: id, Origin: unwind.OriginCPU, Count: Count{N: sum.N - before.N, Weight: sum.Weight - before.Weight}})
		}
	}
	w.lastRest = last
	return rest, nil
}

// checkEvents tells the handler when records of processes were lost.
func (s *Sampler) checkEvents(h Handler) error {
	c, err := s.readCounters()
	if err != nil {
		return err
	}
	w := &s.win
	if c.Events[bpfEventEVENT_EXEC_LOST] != w.events[bpfEventEVENT_EXEC_LOST] {
		h.ProcessesLost()
		s.sweep(h)
	}
	if c.Events[bpfEventEVENT_PROCESS_FULL] != w.events[bpfEventEVENT_PROCESS_FULL] || w.seq%reapWindows == 0 {
		if err := s.reap(); err != nil {
			return err
		}
	}
	w.events = c.Events
	return nil
}

// reapWindows is how many windows pass between two looks at the whole process table of the kernel side.
const reapWindows = 30

// reap deletes processes from the kernel side's table that ended without our being told: those whose scope was removed while
// they ran, those whose record was lost, those that were sampled once more after they were forgotten. The table would fill.
func (s *Sampler) reap() error {
	pids := make([]uint32, s.cfg.MaxProcesses)
	processes := make([]bpfProcess, s.cfg.MaxProcesses)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := s.objs.Processes.BatchLookup(&cursor, pids, processes, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("read the process table of the kernel side: %w", err)
		}
		for i, pid := range pids[:n] {
			id := process.ID{PID: pid, StartBoottime: processes[i].StartBoottime, ExecID: processes[i].ExecId}
			if _, told := s.win.exited[id]; !told && errors.Is(unix.Kill(int(pid), 0), unix.ESRCH) {
				s.forgetProcess(id)
			}
		}
		if err != nil { // that was all
			return nil
		}
	}
}

// sweep finds processes whose exit we did not hear of.
func (s *Sampler) sweep(h Handler) {
	w := &s.win
	alive := map[uint32]bool{}
	for key := range w.known {
		pid := key.Process.PID
		ok, asked := alive[pid]
		if !asked {
			ok = !errors.Is(unix.Kill(int(pid), 0), unix.ESRCH)
			alive[pid] = ok
		}
		id := key.Process
		id.Epoch = 0
		if _, told := w.exited[id]; !ok && !told {
			w.exited[id] = w.seq
			h.Exit(id)
		}
	}
}

// evict makes room in seen: stacks of processes and scopes that are gone for two windows, then the least recently counted
// ones. Nothing is evicted that arrived after the last U1: its program may not have entered it in seen yet. A key is forgotten
// only after the next two windows are read: a program that found it in seen just now counts it in the next one or, if that
// is closed before the program goes on, in the one after.
func (s *Sampler) evict() error {
	w := &s.win
	var out []bpfStackKey
	drop := func(key unwind.Key, k *known) {
		k.forget = w.seq + 2
		out = append(out, rawKey(key))
	}
	gone := map[process.ID]bool{}
	for id, at := range w.exited {
		if at+2 <= w.seq {
			gone[id] = true
			delete(w.exited, id)
			s.forgetProcess(id)
		}
	}
	scopes := s.scopes.ids()
	budget := s.cfg.MaxStacks - s.cfg.MaxStacks/4 // a quarter is kept free for what comes
	alive := 0
	for key, k := range w.known {
		id := key.Process
		id.Epoch = 0
		switch {
		case k.forget != 0:
		case gone[id] && k.arrived == w.seq: // still ending: a large address space takes its time
			w.exited[id] = w.seq
			alive++
		case gone[id], !scopes[key.Scope] && k.arrived < w.seq:
			drop(key, k)
		default:
			alive++
		}
	}
	if alive > budget {
		type candidate struct {
			key unwind.Key
			k   *known
		}
		var old []candidate
		for key, k := range w.known {
			if k.forget == 0 && k.arrived < w.seq { // it arrived before the last U1
				old = append(old, candidate{key, k})
			}
		}
		slices.SortFunc(old, func(a, b candidate) int { return int(int64(a.k.used) - int64(b.k.used)) })
		for _, c := range old[:min(len(old), alive-budget)] {
			drop(c.key, c.k)
		}
	}
	s.stats.stacksEvicted.Add(uint64(len(out)))
	s.stats.stacksKnown.Store(int64(len(w.known)))
	return s.deleteSeen(out)
}

func (s *Sampler) deleteSeen(keys []bpfStackKey) error {
	for len(keys) > 0 {
		n, err := s.objs.Seen.BatchDelete(keys, nil)
		if errors.Is(err, ebpf.ErrKeyNotExist) { // keys[n] was never in seen: it was full when the stack came
			keys = keys[n+1:]
			continue
		}
		if err != nil {
			return fmt.Errorf("forget %d stacks in the kernel: %w", len(keys), err)
		}
		return nil
	}
	return nil
}

// forgetProcess drops the kernel's entry of a process that is gone, unless its PID has a new owner.
func (s *Sampler) forgetProcess(id process.ID) {
	var p bpfProcess
	if err := s.objs.Processes.Lookup(id.PID, &p); err != nil || p.StartBoottime != id.StartBoottime || p.ExecId != id.ExecID {
		return
	}
	if err := s.objs.Processes.Delete(id.PID); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		s.cfg.Log.Warn("forget a process in the kernel", "pid", id.PID, "err", err)
	}
}

// Current reports whether the kernel still knows this PID as this process: same start, same exec. It says yes where the kernel
// knows nothing of the PID, because its table of processes was full.
func (s *Sampler) Current(id process.ID) bool {
	var p bpfProcess
	if err := s.objs.Processes.Lookup(id.PID, &p); err != nil {
		return errors.Is(err, ebpf.ErrKeyNotExist)
	}
	return p.StartBoottime == id.StartBoottime && p.ExecId == id.ExecID
}

// RaiseEpoch makes the kernel send the stacks of a process again, because its mappings changed. A process that is gone or has
// become another is no error.
func (s *Sampler) RaiseEpoch(id process.ID) error {
	var p bpfProcess
	err := s.objs.Processes.Lookup(id.PID, &p)
	if errors.Is(err, ebpf.ErrKeyNotExist) || err == nil && (p.StartBoottime != id.StartBoottime || p.ExecId != id.ExecID) {
		return nil
	}
	if err == nil {
		p.Epoch = s.epoch.Add(1)
		err = s.objs.Processes.Update(id.PID, p, ebpf.UpdateExist)
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("raise the epoch of pid %d: %w", id.PID, err)
	}
	return nil
}

// SetSpace tells the kernel side where an unwinder has put the mappings of a process, in the unwinder's own terms; 0: nowhere.
// A process that the kernel side does not know yet becomes known by it. One that is gone or has become another is no error.
func (s *Sampler) SetSpace(id process.ID, space uint64) error {
	if err := s.setProcess(id, space != 0, func(p *bpfProcess) { p.Space = space }); err != nil {
		return fmt.Errorf("tell the kernel side of the mappings of pid %d: %w", id.PID, err)
	}
	return nil
}

// SetLanguage tells the kernel side under which number the language in a slot knows a process; 0: not at all. Otherwise as SetSpace.
func (s *Sampler) SetLanguage(id process.ID, slot uint8, number uint32) error {
	i := int(slot) - firstLanguageSlot
	if i < 0 || i >= len(bpfProcess{}.Languages) {
		return fmt.Errorf("tell the kernel side of a language: slot %d is not one of the %d behind %d", slot, len(bpfProcess{}.Languages), firstLanguageSlot-1)
	}
	if err := s.setProcess(id, number != 0, func(p *bpfProcess) { p.Languages[i] = number }); err != nil {
		return fmt.Errorf("tell the kernel side of the language of pid %d: %w", id.PID, err)
	}
	return nil
}

// firstLanguageSlot mirrors FIRST_LANGUAGE_SLOT.
const firstLanguageSlot = 2

// setProcess changes the kernel's entry of a process, which it makes if it is to and there is none.
func (s *Sampler) setProcess(id process.ID, create bool, change func(*bpfProcess)) error {
	var p bpfProcess
	err := s.objs.Processes.Lookup(id.PID, &p)
	switch {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		if !create {
			return nil
		}
		p = bpfProcess{StartBoottime: id.StartBoottime, ExecId: id.ExecID}
		change(&p)
		if err = s.objs.Processes.Update(id.PID, p, ebpf.UpdateNoExist); errors.Is(err, ebpf.ErrKeyExist) {
			return nil // its first sample was faster: the first stack tells
		}
	case err == nil && (p.StartBoottime != id.StartBoottime || p.ExecId != id.ExecID):
		return nil
	case err == nil:
		change(&p)
		if err = s.objs.Processes.Update(id.PID, p, ebpf.UpdateExist); errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
	}
	return err
}
