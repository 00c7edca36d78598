package symbol

import (
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// smallELF is a file with one function of the given name and the given build id.
func smallELF(function, buildID string) []byte {
	n := note("GNU", 3, []byte(buildID))
	sections := append([]testSection{textSection(0x1000, 0x1000, 0x100)},
		symtabSections(elf.SHT_SYMTAB, 3, []testSymbol{{function, 0x1000, 0x100, globalFunc, 1}})...)
	sections = append(sections, testSection{name: ".note", Section64: elf.Section64{Type: uint32(elf.SHT_NOTE), Off: 0x1800}, data: n})
	return testELF{machine: elf.EM_X86_64, segments: []elf.Prog64{
		load(elf.PF_R|elf.PF_X, 0x1000, 0x1000, 0x100),
		{Type: uint32(elf.PT_NOTE), Off: 0x1800, Filesz: uint64(len(n))},
	}, sections: sections}.build()
}

func write(t testing.TB, path string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func loadPath(t testing.TB, c *Cache, path string) (*Object, error) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return c.Load(f)
}

func mustLoad(t testing.TB, c *Cache, path string) *Object {
	t.Helper()
	o, err := loadPath(t, c, path)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func nameAt(o *Object, a Address) string {
	if l := o.Lookup(nil, a); len(l) > 0 {
		return l[0].Function
	}
	return ""
}

func TestEqualFilesShareOneObject(t *testing.T) {
	c, dir := NewCache(1<<20), t.TempDir()
	a := mustLoad(t, c, write(t, filepath.Join(dir, "a"), smallELF("run", "same build id")))
	b := mustLoad(t, c, write(t, filepath.Join(dir, "b"), smallELF("run", "same build id")))
	if a != b {
		t.Error("two files with the same bytes have two objects")
	}
	if again := mustLoad(t, c, filepath.Join(dir, "a")); again != a {
		t.Error("the same file has two objects")
	}
	if s := c.Stats(); s.Parses != 1 || s.Shared != 1 || s.Hits != 1 || s.Objects != 1 || s.Files != 2 {
		t.Errorf("%+v, want 1 parse, 1 shared, 1 hit, 1 object, 2 files", s)
	}
}

func TestAForgedBuildIDSharesNothing(t *testing.T) {
	c, dir := NewCache(1<<20), t.TempDir()
	// Same length, same headers, same build id: only the name differs.
	honest := mustLoad(t, c, write(t, filepath.Join(dir, "honest"), smallELF("honest_name", "same build id")))
	forged := mustLoad(t, c, write(t, filepath.Join(dir, "forged"), smallELF("forged_name", "same build id")))
	if honest.BuildID() != forged.BuildID() || honest == forged {
		t.Fatalf("build ids %q and %q, same object %v; want the same id and two objects", honest.BuildID(), forged.BuildID(), honest == forged)
	}
	if a, b := nameAt(honest, 0x1010), nameAt(forged, 0x1010); a != "honest_name" || b != "forged_name" {
		t.Errorf("names %q and %q", a, b)
	}
}

// TestDifferencesThatNobodyParsesDoNotMatter: two builds that differ in their data only may share.
func TestDifferencesThatNobodyParsesDoNotMatter(t *testing.T) {
	c, dir := NewCache(1<<20), t.TempDir()
	b := testELF{machine: elf.EM_X86_64, segments: []elf.Prog64{load(elf.PF_R|elf.PF_X, 0x40000, 0x40000, 0x100)},
		sections: append([]testSection{textSection(0x40000, 0x40000, 0x100)},
			symtabSections(elf.SHT_SYMTAB, 3, []testSymbol{{"run", 0x40000, 0x100, globalFunc, 1}})...)}.build()
	a := mustLoad(t, c, write(t, filepath.Join(dir, "a"), b))
	b = bytes.Clone(b)
	b[0x20000] ^= 0xff
	if o := mustLoad(t, c, write(t, filepath.Join(dir, "b"), b)); o != a || nameAt(o, 0x40000) != "run" {
		t.Error("files that differ in bytes that are not read have two objects")
	}
}

func TestAReplacedFileIsReadAgain(t *testing.T) {
	c, path := NewCache(1<<20), filepath.Join(t.TempDir(), "f")
	if o := mustLoad(t, c, write(t, path, smallELF("before", "x"))); nameAt(o, 0x1000) != "before" {
		t.Fatal(nameAt(o, 0x1000))
	}
	// In place, of the same size, with the times set back: ctime tells.
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, smallELF("after_", "x"))
	if err := os.Chtimes(path, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
	if o := mustLoad(t, c, path); nameAt(o, 0x1000) != "after_" {
		t.Errorf("after the change: %q", nameAt(o, 0x1000))
	}
}

func TestTheBudgetIsKept(t *testing.T) {
	const budget = 8 << 10
	c, dir := NewCache(budget), t.TempDir()
	var last *Object
	for i := range 64 {
		last = mustLoad(t, c, write(t, filepath.Join(dir, "f"), smallELF("f"+string(rune('A'+i)), "x")))
		if s := c.Stats(); s.Bytes > budget {
			t.Fatalf("after %d files: %d bytes held, %d allowed", i+1, s.Bytes, budget)
		}
	}
	s := c.Stats()
	if s.Evicted == 0 || s.Objects == 0 || int(s.Evicted)+s.Objects != 64 {
		t.Errorf("%+v, want 64 objects, some of them evicted", s)
	}
	var sum int64
	for e := c.recent.Front(); e != nil; e = e.Next() {
		o := e.Value.(*entry)
		sum += o.object.Bytes() + fileCost*int64(len(o.files))
	}
	if sum != s.Bytes || len(c.files) != s.Files || len(c.ids) != s.Objects {
		t.Errorf("counted %d bytes, %d held; %d and %d files; %d and %d objects", s.Bytes, sum, s.Files, len(c.files), s.Objects, len(c.ids))
	}
	if nameAt(last, 0x1000) == "" {
		t.Error("the last object is unusable")
	}
}

func TestTheOldestGoesFirst(t *testing.T) {
	dir := t.TempDir()
	paths := []string{"a", "b", "c"}
	c := NewCache(1 << 20)
	for i, p := range paths {
		paths[i] = write(t, filepath.Join(dir, p), smallELF("function_"+p, p))
	}
	mustLoad(t, c, paths[0])
	c.budget = 2*c.Stats().Bytes + 10 // two fit
	mustLoad(t, c, paths[1])
	mustLoad(t, c, paths[0]) // used again: b is the oldest now
	mustLoad(t, c, paths[2])
	before := c.Stats().Parses
	mustLoad(t, c, paths[0])
	if got := c.Stats().Parses; got != before {
		t.Error("the object used last was evicted")
	}
	mustLoad(t, c, paths[1])
	if got := c.Stats().Parses; got != before+1 {
		t.Error("the object used first was kept")
	}
}

func TestManyFilesOfOneObjectAreBounded(t *testing.T) {
	c := NewCache(64 << 20)
	o := mustParse(t, smallELF("f", "x"))
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range uint64(maxFilesEach + 100) {
		c.keep(o, fingerprint{}, fileKey{ino: i})
	}
	if len(c.files) != maxFilesEach || c.stats.Bytes != o.bytes+fileCost*maxFilesEach {
		t.Errorf("%d files and %d bytes, want %d files", len(c.files), c.stats.Bytes, maxFilesEach)
	}
}

func TestFailuresAreRememberedForAWhile(t *testing.T) {
	c, dir := NewCache(1<<20), t.TempDir()
	now := time.Now()
	c.now = func() time.Time { return now }
	script := write(t, filepath.Join(dir, "script"), []byte("#!/bin/sh\nexec true # as long as an ELF header at least ...........................\n"))
	for range 3 {
		if _, err := loadPath(t, c, script); !errors.Is(err, ErrNotELF) {
			t.Fatalf("a script: %v, want ErrNotELF", err)
		}
	}
	if s := c.Stats(); s.Parses != 1 || s.Failed != 1 || s.NotELF != 1 || s.Negative != 2 || s.Failures != 1 {
		t.Errorf("%+v, want 1 parse that failed and 2 remembered", s)
	}
	now = now.Add(failureLife)
	if _, err := loadPath(t, c, script); !errors.Is(err, ErrNotELF) {
		t.Fatal(err)
	}
	if s := c.Stats(); s.Parses != 2 {
		t.Errorf("%d parses after the failure was forgotten, want 2", s.Parses)
	}
	var format *FormatError
	broken := smallELF("f", "x")
	broken[elf.EI_CLASS] = 9
	if _, err := loadPath(t, c, write(t, filepath.Join(dir, "broken"), broken)); !errors.As(err, &format) || format.Offset != elf.EI_CLASS {
		t.Errorf("a broken file: %v, want a FormatError at offset %d", err, elf.EI_CLASS)
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := c.Load(d); !errors.Is(err, ErrNotRegular) {
		t.Errorf("a directory: %v, want ErrNotRegular", err)
	}
}

func TestConcurrentLoadsOfAFileParseItOnce(t *testing.T) {
	c, path := NewCache(64<<20), gcc(t, "program", "-static", "testdata/native/program.c", "testdata/native/assembly.S", "testdata/native/library.c")
	var wg sync.WaitGroup
	objects := make([]*Object, 32)
	for i := range objects {
		wg.Go(func() { objects[i] = mustLoad(t, c, path) })
	}
	wg.Wait()
	for _, o := range objects {
		if o == nil || o != objects[0] {
			t.Fatal("concurrent Loads have different objects")
		}
	}
	if s := c.Stats(); s.Parses != 1 {
		t.Errorf("%d parses, want 1", s.Parses)
	}
}

// TestAFileThatGoesAwayWhileItIsParsed: the container is removed, its files are unlinked or cut.
func TestAFileThatGoesAwayWhileItIsParsed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root", "lib.so")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	b := smallELF("run", "x")
	f, err := os.Open(write(t, path, b))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	o, err := NewCache(1 << 20).Load(f)
	if err != nil || nameAt(o, 0x1000) != "run" {
		t.Errorf("an unlinked file: %v", err)
	}
	for after := range 20 {
		r := &cutAfter{whole: bytes.NewReader(b), reads: after}
		o, err := parse(r, int64(len(b)), 1<<20)
		if err == nil && r.cut {
			t.Errorf("cut after %d reads: no error, object %v", after, o)
		}
		if err == nil {
			return
		}
	}
	t.Error("never parsed")
}

// cutAfter is a file that is truncated to nothing after some reads.
type cutAfter struct {
	whole io.ReaderAt
	reads int
	cut   bool
}

func (c *cutAfter) ReadAt(p []byte, off int64) (int, error) {
	if c.reads--; c.reads < 0 {
		c.cut = true
		return 0, nil
	}
	return c.whole.ReadAt(p, off)
}

func TestLyingSizesAllocateNothing(t *testing.T) {
	huge := func(f func(*testELF)) []byte {
		e := testELF{machine: elf.EM_X86_64, segments: []elf.Prog64{load(elf.PF_R|elf.PF_X, 0, 0, 0x1000)},
			sections: append([]testSection{textSection(0x100, 0x100, 0x100)},
				symtabSections(elf.SHT_SYMTAB, 3, []testSymbol{{"f", 0x100, 0x10, globalFunc, 1}})...)}
		f(&e)
		return e.build()
	}
	for name, b := range map[string][]byte{
		"symbol table": huge(func(e *testELF) { e.sections[1].Size = 100 << 20 }),
		"symbol names": huge(func(e *testELF) { e.sections[2].Size = 100 << 20 }),
		"pclntab": huge(func(e *testELF) {
			e.sections = append(e.sections, testSection{name: ".gopclntab", Section64: elf.Section64{
				Type: uint32(elf.SHT_PROGBITS), Addr: 0x100, Off: 0x100, Size: 100 << 20}})
		}),
		"section names": huge(func(e *testELF) {
			e.sections = append(e.sections, testSection{name: ".plt", Section64: elf.Section64{
				Type: uint32(elf.SHT_PROGBITS), Flags: uint64(elf.SHF_ALLOC | elf.SHF_EXECINSTR), Size: 3 << 20}})
		}),
		"many sections": func() []byte {
			b := huge(func(*testELF) {})
			b[60], b[61] = 0xff, 0x3f
			return b
		}(),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := parse(bytes.NewReader(b), int64(len(b)), testBudget)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 2<<20 {
			t.Errorf("%s: %d bytes allocated for a file of %d bytes (%v)", name, n, len(b), err)
		}
	}
}

func TestAPanicIsAnErrorOfThatFile(t *testing.T) {
	_, bug, err := safeParse(panicking{}, 1<<20, 1<<20)
	if !bug || err == nil || !strings.Contains(err.Error(), "panicking") {
		t.Errorf("bug %v, error %v; want true and one that says where", bug, err)
	}
}

type panicking struct{}

func (panicking) ReadAt([]byte, int64) (int, error) { panic("as a bug does") }
