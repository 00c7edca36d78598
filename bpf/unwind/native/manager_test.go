package native

import (
	"bytes"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/symbol"
	"github.com/stoker-profiler/stoker/bpf/unwind/native/cfi"
)

// self publishes our own mappings and answers what is asked for them, as it is when a container starts.
func self(t *testing.T, b *bench) (m *manager, value uint64) {
	t.Helper()
	var r process.Reader
	maps, err := r.MapsOf(uint32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	m = newManager(b.tables, r)
	m.loader.patience = time.Hour
	id := process.ID{PID: uint32(os.Getpid()), ExecID: 1}
	value, done := b.publish(id, 1, maps, true)
	done()
	for r, ok := b.take(); ok; r, ok = b.take() {
		m.answer(r)
	}
	return m, value
}

func TestTheManagerReadsWhatIsMapped(t *testing.T) {
	b := newBench(t, sizesFor(2))
	m, value := self(t, b)
	if b.stats.files.Load() < 2 || b.stats.filesFailed.Load() != 0 { // ourselves and the vDSO
		t.Fatalf("%d files, %d failed", b.stats.files.Load(), b.stats.filesFailed.Load())
	}
	pc := uint64(reflect.ValueOf(TestTheManagerReadsWhatIsMapped).Pointer())
	rule, how := b.rule(value, pc)
	if how == "page 0" { // we have more pages than are read at once
		e := b.find(value, pc)
		slot := e.Pages + uint32((pc-e.Bias)>>16)
		b.missed(bpfMiss{Pid: uint32(os.Getpid()), Page: slot})
		r, ok := b.take()
		if !ok {
			t.Fatal("the page was not asked for")
		}
		m.answer(r)
		rule, how = b.rule(value, pc)
	}
	// At its first instruction a function's return address is on top of the stack.
	if want := (cfi.Rule{Kind: cfi.Normal, Base: cfi.X86SP, CFA: 8, RA: cfi.AtCFA, RAAt: -8}); how != "rows" || rule.Kind != want.Kind {
		t.Errorf("%s, rule %+v", how, rule)
	}
	if b.stats.pagesFailed.Load() != 0 || b.stats.pages.Load() == 0 {
		t.Errorf("%d pages built, %d failed", b.stats.pages.Load(), b.stats.pagesFailed.Load())
	}
}

// What is mapped may have become another file: its rows would be another's.
func TestTheManagerRefusesAnotherFile(t *testing.T) {
	b := newBench(t, sizesFor(2))
	m, value := self(t, b)
	e := b.find(value, uint64(reflect.ValueOf(TestTheManagerRefusesAnotherFile).Pointer()))
	b.mu.Lock()
	f := b.slots[0]
	for _, s := range b.slots {
		if s.image == nil {
			f = s
		}
	}
	f.instance.mtime++
	slot := f.base + f.n - 1
	if p := b.pages[slot]; p != nil {
		b.evictPage(p)
	}
	b.mu.Unlock()
	m.answer(request{slot: slot, pid: uint32(os.Getpid()), scope: 1})
	if b.stats.pagesFailed.Load() != 1 || b.pages[slot] != nil || e == nil {
		t.Errorf("%d failed, built %v", b.stats.pagesFailed.Load(), b.pages[slot] != nil)
	}
}

func TestFilesThatAreNoELF(t *testing.T) {
	for name, text := range map[string][]byte{"code that was made": make([]byte, 8192), "cut short": []byte("\x7fELF"), "empty": nil} {
		f, err := newTextFile(bytes.NewReader(text), int64(len(text)))
		if err != nil || f.kind != bpfMappingKindMAPPING_FP {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
	}
	image, err := symbol.VDSOImage()
	if err != nil {
		t.Fatal(err)
	}
	if f, err := newTextFile(bytes.NewReader(image), int64(len(image))); err != nil || f.kind != bpfMappingKindMAPPING_ROWS || f.n == 0 {
		t.Errorf("vDSO: %+v, %v", f, err)
	}
}

// One container that asks for more than its share waits; others do not.
func TestAContainerHasAShareOfTheReading(t *testing.T) {
	b := newBench(t, sizesFor(2))
	m, _ := self(t, b)
	m.scopes[1] = &budget{share: scopeShare, burst: scopeBurst, used: 2 * scopeBurst}
	m.scopes[2] = &budget{share: scopeShare, burst: scopeBurst}
	if m.scopes[1].over() == 0 || m.scopes[2].over() != 0 {
		t.Error("the wrong one waits")
	}
	b.putOff(request{file: true, key: keyFor(7), scope: 1})
	if _, ok := b.failedFiles[keyFor(7)]; !ok || b.stats.askedTooOften.Load() != 1 {
		t.Error("what was put off is not tried again")
	}
	if err := b.nextGeneration(); err != nil {
		t.Fatal(err)
	}
	m.forgive()
	if len(m.scopes) != 1 || len(b.failedFiles) != 0 {
		t.Errorf("%d scopes are remembered, %d files", len(m.scopes), len(b.failedFiles))
	}
}
