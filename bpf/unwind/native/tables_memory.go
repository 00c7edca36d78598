package native

import (
	"fmt"
	"slices"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Sizes of the maps' values; they mirror native.bpf.c, and a test compares them with the object.
const (
	spaceMappings = 4096
	bankRows      = 1 << 18
	maxRules      = 8192
)

// sizes is how much of each map there is.
type sizes struct {
	spaceBanks int // of spaceMappings mappings, 128 KiB
	rowBanks   int // of bankRows rows, 1 MiB
	pages      int // pages of text, 16 bytes each
	missBytes  int
}

// sizesFor sizes the maps for a machine: a node of 2 CPUs has some 20 containers.
func sizesFor(cpus int) sizes {
	return sizes{
		spaceBanks: min(max(4, cpus), 32),
		rowBanks:   min(max(3, cpus), 32),
		pages:      min(max(16<<10, cpus*2<<10), 128<<10),
		missBytes:  16 << 10,
	}
}

// set writes the sizes into the specification.
func (s sizes) set(spec *ebpf.CollectionSpec) error {
	for name, want := range map[string]struct {
		value   uint32 // what one value should have
		entries int
	}{
		"spaces":     {spaceMappings * uint32(unsafe.Sizeof(bpfMapping{})), s.spaceBanks},
		"rows":       {bankRows * 4, s.rowBanks},
		"page_index": {uint32(unsafe.Sizeof(bpfPage{})), s.pages},
		"rules":      {maxRules * 8, 1},
	} {
		m := spec.Maps[name]
		if m == nil || m.ValueSize != want.value {
			return fmt.Errorf("the object's map %s has other values than the code expects: run make generate", name)
		}
		m.MaxEntries = uint32(want.entries)
	}
	spec.Maps["misses"].MaxEntries = uint32(s.missBytes)
	return nil
}

// memory is the kernel's maps as we see them: the kernel side reads them while we write. What decides for a reader (a page's
// word, a mapping's kind, a space's serial) is written atomically and last.
type memory struct {
	spaces []bpfMapping // the first of each space is a bpfSpaceHead
	pages  []bpfPage
	rows   []uint32
	rules  []uint64
}

// newMemory makes memory that no kernel reads.
func newMemory(s sizes) *memory {
	return &memory{
		spaces: make([]bpfMapping, s.spaceBanks*spaceMappings), pages: make([]bpfPage, s.pages),
		rows: make([]uint32, s.rowBanks*bankRows), rules: make([]uint64, maxRules),
	}
}

// mapMemory maps the maps of a loaded collection. release gives the address space back.
func mapMemory(c *ebpf.Collection) (m *memory, release func(), err error) {
	var regions [][]byte
	release = func() {
		for _, r := range regions {
			_ = unix.Munmap(r) // cannot fail: it was mapped
		}
	}
	view := func(name string) []byte {
		if err != nil {
			return nil
		}
		bpf := c.Maps[name]
		var b []byte
		// An array's values lie one behind the other, each aligned to 8 bytes, which ours are.
		b, err = unix.Mmap(bpf.FD(), 0, int(bpf.MaxEntries()*bpf.ValueSize()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			err = fmt.Errorf("map the BPF map %s into memory: %w", name, err)
			return nil
		}
		regions = append(regions, b)
		return b
	}
	m = &memory{
		spaces: slicesOf[bpfMapping](view("spaces")), pages: slicesOf[bpfPage](view("page_index")),
		rows: slicesOf[uint32](view("rows")), rules: slicesOf[uint64](view("rules")),
	}
	if err != nil {
		release()
		return nil, nil, err
	}
	return m, release, nil
}

// slicesOf sees bytes as values. They are aligned: they begin at a page.
func slicesOf[T any](b []byte) []T {
	var zero T
	if len(b) == 0 {
		return nil
	}
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/int(unsafe.Sizeof(zero)))
}

// head is the head of the space at an index.
func (m *memory) head(at uint32) *bpfSpaceHead {
	return (*bpfSpaceHead)(unsafe.Pointer(&m.spaces[at]))
}

// Page words: see struct page.
func pageWord(first, n uint32, state bpfPageState) uint64 {
	return uint64(first) | uint64(n)<<32 | uint64(state)<<56
}

func (m *memory) setPage(slot uint32, word uint64) { atomic.StoreUint64(&m.pages[slot].Word, word) }

func (m *memory) pageState(slot uint32) bpfPageState {
	return bpfPageState(atomic.LoadUint64(&m.pages[slot].Word) >> 56)
}

func (m *memory) pageUsed(slot uint32) uint32 { return atomic.LoadUint32(&m.pages[slot].Used) }

func (m *memory) setKind(at uint32, kind bpfMappingKind) {
	atomic.StoreUint32(&m.spaces[at].Kind, uint32(kind))
}

// extents hands out ranges of a map's entries, first fit. No range crosses a multiple of bank.
type extents struct {
	bank  uint32
	free  []extent // in ascending order, none touching the next within a bank
	total uint32
	left  uint32
}

// extent is the range [start, start+n).
type extent struct{ start, n uint32 }

func newExtents(total, bank uint32) *extents {
	e := &extents{bank: bank, total: total, left: total}
	for at := uint32(0); at < total; at += bank {
		e.free = append(e.free, extent{at, min(bank, total-at)})
	}
	return e
}

// take returns the start of n entries; false if there is no room.
func (e *extents) take(n uint32) (uint32, bool) {
	for i := range e.free {
		f := &e.free[i]
		if f.n < n {
			continue
		}
		at := f.start
		f.start += n
		if f.n -= n; f.n == 0 {
			e.free = slices.Delete(e.free, i, i+1)
		}
		e.left -= n
		return at, true
	}
	return 0, false
}

// give takes n entries back.
func (e *extents) give(x extent) {
	e.left += x.n
	i, _ := slices.BinarySearchFunc(e.free, x.start, func(f extent, at uint32) int {
		if f.start < at {
			return -1
		}
		return 1
	})
	e.free = slices.Insert(e.free, i, x)
	e.join(i)
	if i > 0 {
		e.join(i - 1)
	}
}

// join makes one of two neighbours that touch and are in one bank.
func (e *extents) join(i int) {
	if i+1 >= len(e.free) {
		return
	}
	a, b := &e.free[i], e.free[i+1]
	if a.start+a.n == b.start && b.start%e.bank != 0 {
		a.n += b.n
		e.free = slices.Delete(e.free, i+1, i+2)
	}
}
