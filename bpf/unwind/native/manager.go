package native

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/symbol"
	"github.com/stoker-profiler/stoker/bpf/unwind/native/cfi"
)

const (
	vdsoPath = "[vdso]"
	// warmPages is how many pages of a file are built before they are asked for, when there is time: small programs, the dynamic
	// linker and the C library are then whole before the first sample hits them, which is all that a process of 50 ms may get.
	warmPages = 32
	// buildShare is the share of one CPU that reading tables may take in the long run, buildBurst what may be used at once: when
	// the agent starts on a node full of containers.
	buildShare = 0.05
	buildBurst = 2 * time.Second
	// One container may have half of it: what it asks for beyond that waits for the next generation.
	scopeShare, scopeBurst = buildShare / 2, buildBurst / 2
	// installTries is how often room is made for the rows of one page.
	installTries = 3
	// reclaimEvery is how long what was given up waits for a grace period if nobody needs it.
	reclaimEvery = time.Second
)

// manager reads what the kernel side asks for. Its goroutine is that of run.
type manager struct {
	t          *tables
	reader     process.Reader
	loader     *loader
	budget     budget
	scopes     map[uint32]*budget
	generation uint32        // in which the loader got its patience
	cost       time.Duration // of the answer under way, CPU time
}

func newManager(t *tables, r process.Reader) *manager {
	return &manager{t: t, reader: r, loader: newLoader(), budget: budget{share: buildShare, burst: buildBurst}, scopes: map[uint32]*budget{}}
}

// run answers requests until ctx ends. misses is the kernel side's ring.
func (m *manager) run(ctx context.Context, misses *ringbuf.Reader) error {
	var listen sync.WaitGroup
	defer listen.Wait()
	stop := context.AfterFunc(ctx, func() { _ = misses.Close() })
	defer func() {
		if stop() {
			_ = misses.Close()
		}
	}()
	failed := make(chan error, 1)
	listen.Go(func() { failed <- m.listen(misses) })
	tick := time.NewTicker(reclaimEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			if ctx.Err() != nil {
				return nil
			}
			return err
		case <-tick.C:
			m.forgive()
			if _, err := m.t.reclaim(); err != nil {
				return err
			}
		case <-m.t.wake:
		}
		for r, ok := m.t.take(); ok; r, ok = m.t.take() {
			b := m.scopes[r.scope]
			if b == nil {
				b = &budget{share: scopeShare, burst: scopeBurst}
				m.scopes[r.scope] = b
			}
			if b.over() > 0 {
				if !r.foreseen {
					m.t.putOff(r)
				}
				continue
			}
			if over := m.budget.over(); over > 0 {
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(over):
				}
			}
			took := m.answer(r)
			m.budget.used += took
			b.used += took
		}
	}
}

// listen takes what the kernel side asks for off the ring until that is closed.
func (m *manager) listen(misses *ringbuf.Reader) error {
	var rec ringbuf.Record
	for {
		if err := misses.ReadInto(&rec); err != nil {
			return fmt.Errorf("read what the kernel side asks for: %w", err)
		}
		var miss bpfMiss
		if _, err := binary.Decode(rec.RawSample, binary.NativeEndian, &miss); err != nil {
			return fmt.Errorf("the kernel side asks in %d bytes, not %d", len(rec.RawSample), binary.Size(miss))
		}
		m.t.missed(miss)
	}
}

// forgive gives containers new patience in each generation, and forgets who has used nothing lately.
func (m *manager) forgive() {
	g := m.t.currentGeneration()
	if g == m.generation {
		return
	}
	m.generation = g
	m.loader.windowEnd()
	for scope, b := range m.scopes {
		if b.over(); b.used == 0 {
			delete(m.scopes, scope)
		}
	}
}

// answer reads a file or a page, and returns the CPU time that it took. Waiting for a file costs its container's patience, not
// everybody's budget.
func (m *manager) answer(r request) time.Duration {
	m.cost = 0
	m.read(r)
	m.t.stats.buildMicros.Add(uint64(m.cost.Microseconds()))
	return m.cost
}

func (m *manager) read(r request) {
	if r.file {
		if r.key.path == vdsoPath && r.key.inode == 0 {
			m.learnVDSO(r.key)
			return
		}
		ok := m.with(r.pid, func(key *fileKey, _ *textFile) bool { return *key == r.key }, func(f *os.File) error {
			return m.learn(f, r)
		})
		if !ok {
			m.t.unlearned(r.key)
		}
		return
	}
	file, n, ok := m.t.page(r.slot)
	if !ok {
		return
	}
	if file.image != nil {
		ok = m.build(bytes.NewReader(file.image), file, n) == nil
	} else {
		ok = m.with(r.pid, func(_ *fileKey, f *textFile) bool { return f == file }, func(f *os.File) error {
			if now, err := instanceOf(f, file.instance); err != nil || now != file.instance {
				return errors.Join(process.ErrReplaced, err)
			}
			return m.build(f, file, n)
		})
	}
	if !ok && !r.foreseen {
		m.t.unbuilt(r.slot)
	}
}

// with opens a file through a process that has it mapped, and reads it on another goroutine: a file system that a container has
// mounted itself may never answer.
func (m *manager) with(pid uint32, match func(*fileKey, *textFile) bool, read func(*os.File) error) bool {
	for _, h := range m.t.holders(pid, match) {
		var cost time.Duration
		l := start(m.loader, h.scope, func() (*os.File, bool, error) {
			f, err := m.reader.Open(h.pid, &h.mapping)
			return f, false, err
		}, func(f *os.File) (struct{}, error) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			began := threadTime()
			defer func() { cost = threadTime() - began }()
			return struct{}{}, read(f)
		})
		if l == nil || !m.loader.wait(&l.pending) {
			m.t.stats.slowRead.Add(1)
			return false
		}
		m.cost += cost
		if l.err == nil {
			return true
		}
		if errors.Is(l.err, symbol.ErrNotRegular) { // what is mapped there is no file of code: a device
			return false
		}
	}
	return false
}

// threadTime is the CPU time of the calling thread.
func threadTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0 // cannot be: the clock is there since Linux 2.6.12
	}
	return time.Duration(ts.Nano())
}

// instanceOf tells which file at which time this is; like gives what only a mapping tells.
func instanceOf(f *os.File, like instance) (instance, error) {
	var st unix.Stat_t
	raw, err := f.SyscallConn()
	if err != nil {
		return like, err
	}
	var statErr error
	if err := raw.Control(func(fd uintptr) { statErr = unix.Fstat(int(fd), &st) }); err != nil || statErr != nil {
		return like, errors.Join(err, statErr)
	}
	like.ctime, like.mtime, like.size = st.Ctim.Nano(), st.Mtim.Nano(), st.Size
	return like, nil
}

// learn finds out what a file's tables are, and builds the pages that will be needed first.
func (m *manager) learn(f *os.File, r request) error {
	in, err := instanceOf(f, instance{major: r.key.major, minor: r.key.minor, inode: r.key.inode})
	if err != nil {
		return err
	}
	file := m.t.fileFor(in)
	if file == nil {
		if file, err = newTextFile(f, in.size); err != nil {
			return err
		}
		file.instance = in
		if file = m.t.enter(file); file == nil {
			return errNoRoom
		}
	}
	m.t.learned(r.key, file)
	m.warm(f, file, r)
	return nil
}

func (m *manager) learnVDSO(key fileKey) {
	image, err := symbol.VDSOImage()
	if err == nil {
		var file *textFile
		if file, err = newTextFile(bytes.NewReader(image), int64(len(image))); err == nil {
			file.image = image
			if file = m.t.enter(file); file != nil {
				m.t.learned(key, file)
				m.warm(bytes.NewReader(image), file, request{})
				return
			}
		}
	}
	m.t.unlearned(key)
}

// newTextFile reads the headers of a file.
func newTextFile(r io.ReaderAt, size int64) (*textFile, error) {
	elf, err := cfi.Open(r, size)
	var format *symbol.FormatError
	switch {
	case errors.Is(err, symbol.ErrNotELF), errors.As(err, &format):
		// Code that was made at run time and kept in a file, or a file that lies.
		return &textFile{kind: bpfMappingKindMAPPING_FP}, nil
	case err != nil:
		return nil, err
	}
	code := elf.Code()
	if len(code) == 0 {
		return &textFile{kind: bpfMappingKindMAPPING_NONE}, nil
	}
	first, last := cfi.PageNumber(math.MaxUint64), cfi.PageNumber(0)
	for _, c := range code {
		// A mapping is whole pages of memory.
		first = min(first, cfi.PageOf(c.Address&^(memoryPage-1)))
		last = max(last, cfi.PageOf((c.End()-1)|(memoryPage-1)))
	}
	if last-first >= maxFilePages {
		return &textFile{kind: bpfMappingKindMAPPING_NONE}, nil
	}
	return &textFile{kind: bpfMappingKindMAPPING_ROWS, elf: elf, code: code, first: first, n: uint32(last-first) + 1}, nil
}

// memoryPage is the unit of mappings: 4 KiB, or 64 KiB on some arm64 kernels.
var memoryPage = symbol.Address(os.Getpagesize())

// maxFilePages bounds the pages of one file: 256 MiB of text. The largest known is Chromium's with 160.
const maxFilePages = 4096

// warm builds the page of a file in which the sample was that made the file known, and sees to the others if they are few.
func (m *manager) warm(r io.ReaderAt, f *textFile, why request) {
	if f.kind != bpfMappingKindMAPPING_ROWS {
		return
	}
	at, sampled := f.address(why.offset, 1)
	sampled = sampled && why.offset != 0
	if f.n <= warmPages {
		var rest []request
		for slot := f.base; slot < f.base+f.n; slot++ {
			rest = append(rest, request{slot: slot, pid: why.pid, scope: why.scope, foreseen: true})
		}
		m.t.foresee(rest)
	}
	if !sampled {
		return
	}
	n := cfi.PageOf(at)
	slot := f.base + uint32(n-f.first)
	if _, _, ok := m.t.page(slot); ok && m.build(r, f, n) != nil {
		m.t.unbuilt(slot)
	}
}

// build makes the rows of a page and puts them where the kernel side finds them.
func (m *manager) build(r io.ReaderAt, f *textFile, n cfi.PageNumber) error {
	rules := []cfi.Rule{{}} // number 0 is Invalid
	numbers := map[cfi.Rule]uint16{}
	var stats cfi.Stats
	rows, err := f.elf.Page(r, nil, n, func(rule cfi.Rule) (uint16, bool) {
		number, ok := numbers[rule]
		if !ok {
			number = uint16(len(rules))
			rules = append(rules, rule)
			numbers[rule] = number
		}
		return number, true
	}, &stats)
	if err != nil {
		return err
	}
	m.t.stats.count(&stats)
	slot := f.base + uint32(n-f.first)
	for range installTries {
		if err = m.t.install(slot, rows, rules); err == nil {
			return nil
		}
		if ok, reclaimErr := m.t.reclaim(); !ok {
			return errors.Join(err, reclaimErr)
		}
	}
	return err
}

// budget is CPU time to spend: share of one CPU in the long run, burst at once. It is full at first.
type budget struct {
	share float64
	burst time.Duration
	used  time.Duration
	last  time.Time
}

// over returns how long to wait until there is something to spend; 0: not at all.
func (b *budget) over() time.Duration {
	now := time.Now()
	if !b.last.IsZero() {
		b.used = max(0, b.used-time.Duration(b.share*float64(now.Sub(b.last))))
	}
	b.last = now
	return max(0, time.Duration(float64(b.used-b.burst)/b.share))
}

// newGrace returns a function that returns after every BPF program that runs now has ended: updating a map of maps waits for
// that (maybe_wait_bpf_programs, since Linux 4.19).
func newGrace() (grace func() error, closer io.Closer, err error) {
	inner := &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	outer, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ArrayOfMaps, KeySize: 4, MaxEntries: 1, InnerMap: inner})
	if err != nil {
		return nil, nil, fmt.Errorf("make a map to wait for walks with: %w", err)
	}
	m, err := ebpf.NewMap(inner)
	if err != nil {
		outer.Close()
		return nil, nil, fmt.Errorf("make a map to wait for walks with: %w", err)
	}
	return func() error {
		if err := outer.Put(uint32(0), m); err != nil {
			return fmt.Errorf("wait for walks to end: %w", err)
		}
		return nil
	}, closers{outer, m}, nil
}

type closers []io.Closer

func (c closers) Close() error {
	var errs []error
	for _, x := range c {
		errs = append(errs, x.Close())
	}
	return errors.Join(errs...)
}
