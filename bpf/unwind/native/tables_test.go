package native

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/symbol"
	"github.com/stoker-profiler/stoker/bpf/unwind/native/cfi"
)

func TestSizesAreThoseOfTheObject(t *testing.T) {
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	if err := sizesFor(2).set(spec); err != nil {
		t.Fatal(err)
	}
	if a, b := unsafe.Sizeof(bpfSpaceHead{}), unsafe.Sizeof(bpfMapping{}); a != b {
		t.Errorf("a head has %d bytes, a mapping %d", a, b)
	}
	total := 0
	for _, name := range []string{"spaces", "rows", "page_index", "rules", "misses"} {
		total += int(spec.Maps[name].MaxEntries) * max(1, int(spec.Maps[name].ValueSize))
	}
	if total > 5<<20 { // of the 10 MB that all maps together may have
		t.Errorf("the tables take %d bytes on 2 CPUs", total)
	}
}

func TestExtents(t *testing.T) {
	e := newExtents(100, 40)
	if len(e.free) != 3 || e.left != 100 {
		t.Fatalf("%+v", e)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	var held []extent
	for range 5000 {
		if n := uint32(rnd.IntN(15) + 1); rnd.IntN(2) == 0 || len(held) == 0 {
			at, ok := e.take(n)
			if !ok {
				if slices.ContainsFunc(e.free, func(f extent) bool { return f.n >= n }) {
					t.Fatalf("no room for %d in %+v", n, e.free)
				}
				continue
			}
			if at/40 != (at+n-1)/40 {
				t.Fatalf("%d entries from %d on cross a bank", n, at)
			}
			for _, h := range held {
				if at < h.start+h.n && h.start < at+n {
					t.Fatalf("%d+%d overlaps %d+%d", at, n, h.start, h.n)
				}
			}
			held = append(held, extent{at, n})
		} else {
			i := rnd.IntN(len(held))
			e.give(held[i])
			held = slices.Delete(held, i, i+1)
		}
	}
	for _, h := range held {
		e.give(h)
	}
	if want := []extent{{0, 40}, {40, 40}, {80, 20}}; !slices.Equal(e.free, want) || e.left != 100 {
		t.Errorf("at the end %+v, want %+v", e.free, want)
	}
}

// bench is tables without a kernel.
type bench struct {
	*tables
	t          *testing.T
	graces     int
	generation uint32
}

func newBench(t *testing.T, s sizes) *bench {
	b := &bench{t: t}
	b.tables = newTables(newMemory(s), s, func(n uint32) error { b.generation = n; return nil }, func() error { b.graces++; return nil })
	return b
}

var small = sizes{spaceBanks: 1, rowBanks: 1, pages: 256, missBytes: 4096}

func maps(t *testing.T, lines ...string) *process.Maps {
	t.Helper()
	list, err := process.ParseMaps(strings.NewReader(strings.Join(lines, "")))
	if err != nil {
		t.Fatal(err)
	}
	return process.NewMaps(list)
}

// text is a mapping of 1 MiB of a file, whose code lies at ELF address 0x10000 and offset 0x1000.
func text(start uint64, inode int) string {
	return fmt.Sprintf("%x-%x r-xp 00001000 08:01 %d /bin/%d\n", start, start+0x100000, inode, inode)
}

func keyFor(inode int) fileKey { return fileKey{8, 1, uint64(inode), fmt.Sprintf("/bin/%d", inode)} }

func textOf(inode int) *textFile {
	return &textFile{
		instance: instance{major: 8, minor: 1, inode: uint64(inode), size: 1 << 21}, kind: bpfMappingKindMAPPING_ROWS,
		code: []symbol.Range{{Address: 0x10000, Offset: 0x1000, Size: 0xff123}}, first: 1, n: 16,
	}
}

func idOf(pid int) process.ID {
	return process.ID{PID: uint32(pid), StartBoottime: uint64(pid) * 1000, ExecID: 1}
}

// find does what space__of and space__find of native.bpf.c do.
func (b *bench) find(value, address uint64) *bpfMapping {
	at := uint32(value)
	head := b.mem.head(at)
	if value == 0 || uint32(head.Serial) != uint32(value>>32) {
		return nil
	}
	for i := range head.Count {
		if m := &b.mem.spaces[at+1+i]; m.Start <= address && address < m.End {
			return m
		}
	}
	return nil
}

// rule does what rule__find does: the rule at an address of a process, or what is in its place.
func (b *bench) rule(value, address uint64) (cfi.Rule, string) {
	m := b.find(value, address)
	if m == nil {
		return cfi.Rule{}, "unmapped"
	}
	if bpfMappingKind(m.Kind) != bpfMappingKindMAPPING_ROWS {
		return cfi.Rule{}, fmt.Sprintf("mapping %d", m.Kind)
	}
	at := address - m.Bias
	slot := m.Pages + uint32(at>>16)
	word := b.mem.pages[slot].Word
	if state := bpfPageState(word >> 56); state != bpfPageStatePAGE_ROWS {
		return cfi.Rule{}, fmt.Sprintf("page %d", state)
	}
	first, n := uint32(word), uint32(word>>32)&0xffff
	found := uint32(0)
	for _, row := range b.mem.rows[first : first+n] {
		if uint16(row) <= uint16(at) {
			found = row
		}
	}
	return cfi.Unpack(b.mem.rules[found>>16]), "rows"
}

func stackRule(n int) cfi.Rule {
	return cfi.Rule{Kind: cfi.Normal, Base: cfi.X86SP, CFA: int32(8 * n), RA: cfi.AtCFA, RAAt: -8}
}

// rowsFor are rows with the rules of 8 × each number, one every 16 bytes.
func rowsFor(numbers ...int) (rows []cfi.CompactRow, rules []cfi.Rule) {
	rules = []cfi.Rule{{}}
	for i, n := range numbers {
		r := stackRule(n)
		number := slices.Index(rules, r)
		if number < 0 {
			number = len(rules)
			rules = append(rules, r)
		}
		rows = append(rows, cfi.CompactRow{Low: uint16(16 * i), Rule: uint16(number)})
	}
	return rows, rules
}

func (b *bench) publishNow(pid int, all bool, lines ...string) uint64 {
	b.t.Helper()
	value, done := b.publish(idOf(pid), 1, maps(b.t, lines...), all)
	done()
	return value
}

func TestFromAProcessToItsRules(t *testing.T) {
	b := newBench(t, small)
	v := b.publishNow(1, false, text(0x400000, 1), text(0x7f0000000000, 2), "7f1000000000-7f1000001000 rwxp 00000000 00:00 0 \n",
		"7ffd1c5fe000-7ffd1c600000 r-xp 00000000 00:00 0 [vdso]\n")
	for address, want := range map[uint64]string{
		0x400010: "mapping 0", 0x3fffff: "unmapped", 0x500000: "unmapped", 0x7f0000000010: "mapping 0",
		0x7f1000000000: fmt.Sprintf("mapping %d", bpfMappingKindMAPPING_FP), 0x7ffd1c5fe000: "mapping 0",
	} {
		if _, got := b.rule(v, address); got != want {
			t.Errorf("%x: got %s, want %s", address, got, want)
		}
	}
	// The kernel side asks, and the file becomes known: the space changes under its readers.
	b.missed(bpfMiss{Pid: 1, Page: ^uint32(0), Address: 0x7f0000020010})
	b.missed(bpfMiss{Pid: 1, Page: ^uint32(0), Address: 0x7f0000020010})
	r, ok := b.take()
	if _, more := b.take(); !ok || more || !r.file || r.key != keyFor(2) || r.offset != 0x21010 {
		t.Fatalf("asked for %+v, more %v", r, more)
	}
	if h := b.holders(1, func(k *fileKey, _ *textFile) bool { return *k == r.key }); len(h) != 1 || h[0].pid != 1 || h[0].mapping.Start != 0x7f0000000000 {
		t.Errorf("held by %+v", h)
	}
	f := b.enter(textOf(2))
	b.learned(r.key, f)
	if _, got := b.rule(v, 0x7f0000020010); got != "page 0" {
		t.Errorf("got %s", got)
	}
	slot := f.base + 2 // 0x20010 + 0x10000 = 0x30010: page 3, the first is 1
	b.missed(bpfMiss{Pid: 1, Page: slot})
	if r, ok := b.take(); !ok || r.file || r.slot != slot {
		t.Errorf("asked for %+v", r)
	}
	if file, n, ok := b.page(slot); !ok || file != f || n != 3 {
		t.Errorf("slot %d is page %d", slot, n)
	}
	rows, rules := rowsFor(1, 2, 3)
	if err := b.install(slot, rows, rules); err != nil {
		t.Fatal(err)
	}
	for address, want := range map[uint64]int{0x7f0000020000: 1, 0x7f000002000f: 1, 0x7f0000020010: 2, 0x7f000002ffff: 3} {
		if got, how := b.rule(v, address); got != stackRule(want) {
			t.Errorf("%x: %s, %+v", address, how, got)
		}
	}
	// Another process with the file elsewhere is served at once.
	if got, how := b.rule(b.publishNow(2, false, text(0x7e0000000000, 2)), 0x7e0000020010); got != stackRule(2) {
		t.Errorf("%s, %+v", how, got)
	}
}

func TestEqualAddressSpacesAreOne(t *testing.T) {
	b := newBench(t, small)
	parent := b.publishNow(1, false, text(0x400000, 1))
	if child := b.publishNow(2, false, text(0x400000, 1)); child != parent || b.stats.spacesShared.Load() != 1 {
		t.Errorf("got %x and %x", parent, child)
	}
	b.retire(idOf(1))
	b.retire(process.ID{PID: 2, StartBoottime: 1, ExecID: 9}) // another process with that PID
	if b.find(parent, 0x400000) == nil {
		t.Error("given up while a process has it")
	}
	b.retire(idOf(2))
	if b.find(parent, 0x400000) != nil {
		t.Error("still there")
	}
	left := b.spaceRoom.left
	if ok, err := b.reclaim(); !ok || err != nil || b.graces != 1 || b.spaceRoom.left != left+2 {
		t.Errorf("reclaimed %v, %v, %d of %d", ok, err, b.spaceRoom.left, left)
	}
	if again := b.publishNow(3, false, text(0x400000, 1)); again == parent {
		t.Error("another space has the same serial")
	}
}

// A process whose mappings changed is walked by the old ones until the kernel side was told of the new ones.
func TestAChangeOfMappingsLeavesNoGap(t *testing.T) {
	b := newBench(t, small)
	old := b.publishNow(1, false, text(0x400000, 1))
	value, done := b.publish(idOf(1), 1, maps(t, text(0x400000, 1), text(0x800000, 2)), false)
	if b.find(old, 0x400000) == nil || b.find(value, 0x800000) == nil {
		t.Error("one of both is missing")
	}
	done()
	if b.find(old, 0x400000) != nil || b.find(value, 0x800000) == nil {
		t.Error("the old one is there, or the new one is not")
	}
	if value, done := b.publish(idOf(1), 1, nil, false); value != 0 {
		t.Errorf("no mappings give %x", value)
	} else {
		done()
	}
	if len(b.residents) != 0 {
		t.Errorf("%d residents", len(b.residents))
	}
}

func TestSpacesAreBounded(t *testing.T) {
	b := newBench(t, small)
	var many []string
	for i := range spaceMappings {
		many = append(many, fmt.Sprintf("%x-%x rwxp 00000000 00:00 0 \n", i<<13+0x10000, i<<13+0x11000))
	}
	if v := b.publishNow(1, false, many...); v != 0 || b.stats.spacesTooLarge.Load() != 1 {
		t.Errorf("got %x", v)
	}
	if v := b.publishNow(1, false, many[:spaceMappings-1]...); v == 0 {
		t.Error("one less does not fit")
	}
	if v := b.publishNow(2, false, text(0x400000, 1)); v != 0 || b.stats.spacesFull.Load() != 1 {
		t.Errorf("got %x though there is no room", v)
	}
	b.retire(idOf(1))
	if ok, _ := b.reclaim(); !ok {
		t.Error("nothing to reclaim")
	}
	if v := b.publishNow(2, false, text(0x400000, 1)); v == 0 {
		t.Error("no room after all")
	}
}

func TestEqualPagesShareTheirRows(t *testing.T) {
	b := newBench(t, small)
	f, g := b.enter(textOf(1)), b.enter(textOf(2))
	rows, rules := rowsFor(1, 2, 1)
	for _, slot := range []uint32{f.base, g.base + 5} {
		if err := b.install(slot, rows, rules); err != nil {
			t.Fatal(err)
		}
	}
	if b.stats.pagesShared.Load() != 1 || b.mem.pages[f.base].Word != b.mem.pages[g.base+5].Word {
		t.Errorf("%d shared", b.stats.pagesShared.Load())
	}
	left := b.rowRoom.left
	b.mu.Lock()
	b.evictPage(b.pages[f.base])
	b.mu.Unlock()
	if _, err := b.reclaim(); err != nil || b.rowRoom.left != left {
		t.Error("rows went that another page has")
	}
	b.mu.Lock()
	b.evictPage(b.pages[g.base+5])
	b.mu.Unlock()
	if _, err := b.reclaim(); err != nil || b.rowRoom.left != left+3 || len(b.ruleNumber) != 0 || len(b.ruleFree) != maxRules-1 {
		t.Errorf("%d rows free, %d rules left", b.rowRoom.left, len(b.ruleNumber))
	}
}

func TestRowsAreEvictedByLastUse(t *testing.T) {
	s := small
	s.pages = 512
	b := newBench(t, s)
	var files []*textFile
	for i := range 20 {
		files = append(files, b.enter(textOf(i+1)))
	}
	// Pages of 8192 rows, each different: 32 fill the bank.
	page := func(n int) ([]cfi.CompactRow, []cfi.Rule) {
		rows := make([]cfi.CompactRow, 8192)
		rules := []cfi.Rule{{}, stackRule(n + 1), stackRule(n + 2)}
		for i := range rows {
			rows[i] = cfi.CompactRow{Low: uint16(i * 8), Rule: uint16(i%2 + 1)}
		}
		return rows, rules
	}
	slot := func(n int) uint32 { return files[n/16].base + uint32(n%16) }
	install := func(n int) error {
		rows, rules := page(n)
		return b.install(slot(n), rows, rules)
	}
	for n := range 32 {
		if err := install(n); err != nil {
			t.Fatalf("page %d: %v", n, err)
		}
	}
	// All were used in this generation: the next one has to wait.
	if err := install(40); err != nil || b.pages[slot(40)] != nil || b.stats.rowsRefused.Load() != 1 {
		t.Errorf("%v, %d refused", err, b.stats.rowsRefused.Load())
	}
	if err := b.nextGeneration(); err != nil || b.generation != 2 {
		t.Fatal(err)
	}
	for n := range 20 { // the kernel side uses these
		b.mem.pages[slot(n)].Used = 2
	}
	if err := install(40); err != errNoRoom || b.stats.pagesEvicted.Load() != 4 { // an eighth
		t.Errorf("%v, %d evicted", err, b.stats.pagesEvicted.Load())
	}
	for n := range 20 {
		if b.pages[slot(n)] == nil {
			t.Errorf("page %d is gone though it is in use", n)
		}
	}
	if err := install(40); err != errNoRoom {
		t.Errorf("room before a grace period: %v", err)
	}
	if _, err := b.reclaim(); err != nil {
		t.Fatal(err)
	}
	if err := install(40); err != nil || b.pages[slot(40)] == nil {
		t.Errorf("after a grace period: %v", err)
	}
}

// What could not be built or read is asked for again, once in a generation.
func TestFailuresAreTriedAgain(t *testing.T) {
	b := newBench(t, small)
	v := b.publishNow(1, false, text(0x400000, 1))
	m := b.find(v, 0x400000)
	ask := func() bool {
		if m.Kind != uint32(bpfMappingKindMAPPING_UNKNOWN) {
			return false
		}
		m.Kind = uint32(bpfMappingKindMAPPING_ASKED) // as the kernel side does
		b.missed(bpfMiss{Pid: 1, Page: ^uint32(0), Address: 0x400000})
		_, ok := b.take()
		return ok
	}
	if !ask() || ask() {
		t.Fatal("not asked once")
	}
	b.unlearned(keyFor(1))
	if ask() {
		t.Error("asked again at once")
	}
	if err := b.nextGeneration(); err != nil {
		t.Fatal(err)
	}
	if !ask() {
		t.Error("not asked in the next generation")
	}
	f := b.enter(textOf(1))
	b.learned(keyFor(1), f)
	b.missed(bpfMiss{Pid: 1, Page: f.base})
	b.mem.pages[f.base].Word = pageWord(0, 0, bpfPageStatePAGE_ASKED)
	if _, ok := b.take(); !ok {
		t.Fatal("the page was not asked for")
	}
	b.unbuilt(f.base)
	if err := b.nextGeneration(); err != nil || b.mem.pages[f.base].Word != 0 {
		t.Errorf("the page's word is %x", b.mem.pages[f.base].Word)
	}
	rows, rules := rowsFor()
	if err := b.install(f.base, rows, rules); err != nil || b.mem.pageState(f.base) != bpfPageStatePAGE_NONE {
		t.Errorf("a page without rows: %v, state %d", err, b.mem.pageState(f.base))
	}
}

func TestFilesThatNobodyHasMappedMakeRoom(t *testing.T) {
	b := newBench(t, small) // 16 files of 16 pages
	for i := range 16 {
		if b.enter(textOf(i+1)) == nil {
			t.Fatalf("file %d has no room", i)
		}
	}
	b.publishNow(1, false, text(0x400000, 1))
	b.learned(keyFor(1), b.fileFor(textOf(1).instance))
	for range 2 {
		if err := b.nextGeneration(); err != nil {
			t.Fatal(err)
		}
	}
	if b.enter(textOf(99)) != nil || b.stats.filesDropped.Load() != 15 {
		t.Errorf("%d dropped", b.stats.filesDropped.Load())
	}
	if _, err := b.reclaim(); err != nil {
		t.Fatal(err)
	}
	if b.enter(textOf(99)) == nil || b.fileFor(textOf(1).instance) == nil {
		t.Error("no room, or the file of a living process is gone")
	}
}

// A mapping that does not fit the headers of its file must not lead to another file's pages.
func TestMappingsBeyondTheFile(t *testing.T) {
	b := newBench(t, small)
	f := b.enter(textOf(1))
	for _, c := range []struct{ name, line, want string }{
		{"as it is", text(0x400000, 1), "page 0"},
		{"a part", "480000-490000 r-xp 00081000 08:01 1 /bin/1\n", "page 0"},
		{"longer than the code", "400000-600000 r-xp 00001000 08:01 1 /bin/1\n", fmt.Sprintf("mapping %d", bpfMappingKindMAPPING_NONE)},
		{"not code", "400000-401000 r-xp 00000000 08:01 1 /bin/1\n", fmt.Sprintf("mapping %d", bpfMappingKindMAPPING_NONE)},
		{"behind the code", "400000-401000 r-xp 00200000 08:01 1 /bin/1\n", fmt.Sprintf("mapping %d", bpfMappingKindMAPPING_NONE)},
	} {
		b.learned(keyFor(1), f)
		m := maps(t, c.line)
		v, done := b.publish(idOf(1), 1, m, false)
		done()
		if _, got := b.rule(v, m.Code()[0].Start); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

func TestRequestsAreBounded(t *testing.T) {
	b := newBench(t, sizesFor(2))
	for i := range maxRequests/16 + 2 {
		f := b.enter(textOf(i + 1))
		for n := range f.n {
			b.missed(bpfMiss{Pid: 1, Page: f.base + n})
		}
	}
	if n := len(b.requests); n != maxRequests || b.stats.askedTooOften.Load() == 0 {
		t.Errorf("%d requests wait, %d were put off", n, b.stats.askedTooOften.Load())
	}
}

func TestBudget(t *testing.T) {
	b := budget{share: 0.1, burst: time.Second}
	if b.over() != 0 {
		t.Error("a new budget is spent")
	}
	b.used = 1500 * time.Millisecond
	if over := b.over(); over < 4*time.Second || over > 5*time.Second { // half a second too much, paid back a tenth of a second each second
		t.Errorf("to wait %s", over)
	}
	b.last = b.last.Add(-10 * time.Second)
	if b.over() != 0 || b.used > 600*time.Millisecond {
		t.Errorf("after ten seconds %s are spent", b.used)
	}
}
