package symbol

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// dump is a JIT dump that a test writes.
type dump struct{ bytes.Buffer }

func newDump() *dump {
	d := &dump{}
	put(&d.Buffer, []uint32{jitMagic, jitVersion, jitHeaderBytes, 62, 0, 4711})
	put(&d.Buffer, []uint64{1, 0}) // time, flags
	return d
}

func (d *dump) record(kind uint32, body []byte) {
	put(&d.Buffer, []uint32{kind, uint32(jitRecordBytes + len(body))})
	put(&d.Buffer, uint64(2))
	d.Write(body)
}

func (d *dump) load(index, start uint64, name string, code []byte) {
	b := new(bytes.Buffer)
	put(b, []uint32{4711, 4712})
	put(b, []uint64{start, start, uint64(len(code)), index})
	b.WriteString(name + "\x00")
	b.Write(code)
	d.record(jitLoad, b.Bytes())
}

func (d *dump) move(index, from, to, size uint64) {
	b := new(bytes.Buffer)
	put(b, []uint32{4711, 4712})
	put(b, []uint64{to, from, to, size, index})
	d.record(jitMove, b.Bytes())
}

// lines writes the lines of the function that comes next: pairs of a place and FILE:LINE.
func (d *dump) lines(start uint64, pairs ...any) {
	b := new(bytes.Buffer)
	put(b, []uint64{start, uint64(len(pairs) / 2)})
	for i := 0; i < len(pairs); i += 2 {
		put(b, uint64(pairs[i].(int))+start)
		file, line, _ := strings.Cut(pairs[i+1].(string), ":")
		n, err := strconv.Atoi(line)
		if err != nil {
			panic(err)
		}
		put(b, []uint32{uint32(n), 7})
		b.WriteString(file + "\x00")
	}
	d.record(jitDebug, b.Bytes())
}

func (d *dump) read(t testing.TB) *PerfMap {
	t.Helper()
	m, err := readJITDump(bytes.NewReader(d.Bytes()), int64(d.Len()))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestJITDump(t *testing.T) {
	d := newDump()
	code := bytes.Repeat([]byte{0x90}, 100_000) // more than is read at once
	d.load(1, 0x1000000, "LazyCompile:*add /app/server.js:12:3", code[:0x40])
	d.record(jitDebug, make([]byte, 64)) // of nothing
	d.load(2, 0x2000000, "big", code)
	d.record(4, make([]byte, 8)) // unwinding
	d.load(3, 0x3000000, "moves", code[:0x80])
	d.move(3, 0x3000000, 0x4000000, 0x80)
	d.load(4, 0x3000000, "where it was", code[:0x20])
	d.move(9, 0x1, 0x2, 0x10)       // nobody knows it
	d.move(1, 0x1111, 0x2000, 0x10) // it is not there
	d.load(5, 1<<64-8, "wraps", code[:0x10])
	d.load(6, 0x5000000, "", code[:0x10])
	d.record(jitClose, nil)
	d.load(7, 0x6000000, "after the end", code[:0x10])
	m := d.read(t)
	for address, want := range map[uint64]string{
		0x1000000: "LazyCompile:*add /app/server.js:12:3", 0x100003f: "LazyCompile:*add /app/server.js:12:3", 0x1000040: "",
		0x2000000 + 99_999: "big", 0x4000010: "moves", 0x3000010: "where it was", 0x3000030: "", 0x5000000: "", 0x6000000: "",
	} {
		if got, _ := m.Lookup(address); got != (Line{Function: want}) {
			t.Errorf("%#x: %v, want %q", address, got, want)
		}
	}
	if m.Bad != 4 {
		t.Errorf("%d records make no sense, want 4", m.Bad)
	}
}

func TestJITDumpLines(t *testing.T) {
	code := make([]byte, 0x100)
	for _, shift := range []int{0, jitELFHeader} {
		d := newDump()
		d.lines(0x1000, shift+0x20, "b.js:7", shift, "/app/a.js:3", shift+0x10, "\xff:4", shift+0x30, "\xff:0", shift+0x40, "c.js:1")
		d.load(1, 0x1000, "f", code)
		d.load(2, 0x2000, "without", code)
		d.lines(0x9000, shift, "x.js:1") // of no function
		d.load(3, 0x3000, "also without", code)
		d.lines(0x4000, shift, "moved.js:5")
		d.load(4, 0x4000, "moves", code)
		d.move(4, 0x4000, 0x5000, uint64(len(code)))
		// What makes no sense ends the list, and is counted.
		d.lines(0x6000, shift, "good.js:1", shift+0x10, "good.js:2", 0x7000, "beyond.js:3", shift+0x20, "good.js:4")
		d.load(5, 0x6000, "partly", code)
		// Names that V8 had freed when it wrote them.
		freed := "\xb2\x8f\x03\x00\x00\x00\x00\x00\x12\x34\x56\x78\x9a\xbc\xde\xf0"
		d.lines(0x7000, shift, freed+"ong/server.js:12", shift+0x10, freed+"ong/server.js:13", shift+0x20, freed+"ong/another.js:14")
		d.load(6, 0x7000, "JS:*add /srv/is/not/so/long/server.js:12:3"[:len("JS:*add ")]+"/srv/application"+"ong/server.js:12:3", code)
		m := d.read(t)
		for at, want := range map[uint64]string{
			0x1000: "f /app/a.js:3", 0x100f: "f /app/a.js:3", 0x1010: "f /app/a.js:4", 0x1020: "f b.js:7", 0x1030: "f :0", 0x1040: "f c.js:1", 0x10ff: "f c.js:1",
			0x2000: "without :0", 0x3000: "also without :0", 0x4000: "moves moved.js:5", 0x5010: "moves moved.js:5",
			0x6000: "partly good.js:1", 0x6080: "partly good.js:2", 0x7005: "JS:*add /srv/applicationong/server.js:12:3 /srv/applicationong/server.js:12",
			0x7015: "JS:*add /srv/applicationong/server.js:12:3 /srv/applicationong/server.js:13",
			0x7025: "JS:*add /srv/applicationong/server.js:12:3 /srv/applicationong/server.js:13",
		} {
			l, _ := m.Lookup(at)
			if got := fmt.Sprintf("%s %s:%d", l.Function, l.File, l.Line); got != want {
				t.Errorf("shift %#x: %#x: %q, want %q", shift, at, got, want)
			}
		}
		if m.Bad != 2 {
			t.Errorf("%d records make no sense, want 2", m.Bad)
		}
	}
}

// However much a runtime writes, a bounded part of it is kept.
func TestJITDumpLinesAreBounded(t *testing.T) {
	d := newDump()
	d.record(jitDebug, make([]byte, maxJITDebug)) // more than one function may have
	for i := range 300 {
		var pairs []any
		for k := range 4000 {
			pairs = append(pairs, k, fmt.Sprintf("file%d/%d.js:%d", i, k, k))
		}
		start := uint64(0x100000 * (i + 1))
		d.lines(start, pairs...)
		d.load(uint64(i), start, "f", make([]byte, 4000))
	}
	m := d.read(t)
	if m.Bytes() > maxJITLines+1<<20 || m.Dropped < 2 || m.Len() != 300 {
		t.Errorf("%d bytes, %d dropped, %d functions", m.Bytes(), m.Dropped, m.Len())
	}
}

// The dumps that V8 and LLVM write say which line of which function runs.
func TestJITDumpsOfRuntimes(t *testing.T) {
	dir := t.TempDir()
	check := func(pattern, function, file string, lines ...int) {
		t.Helper()
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) != 1 {
			t.Fatalf("dumps %q, %v", found, err)
		}
		f, err := os.Open(found[0])
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		m, err := ReadJITDump(f)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[int]bool{}
		for i := range m.starts {
			for at := m.starts[i]; at < m.starts[i]+uint64(m.sizes[i]); at++ {
				if l, _ := m.Lookup(at); strings.Contains(l.Function, function) && l.File == file {
					seen[l.Line] = true
				}
			}
		}
		for _, l := range lines {
			if !seen[l] {
				t.Errorf("%s: no code of line %d, but of %v", found[0], l, seen)
			}
		}
		for l := range seen {
			if !slices.Contains(lines, l) {
				t.Errorf("%s: code of line %d", found[0], l)
			}
		}
	}
	// Node.js 20.20.2 wrote this one (node --perf-prof); of its functions those of one script were kept. In what the baseline compiler
	// made the script's name is damaged.
	const script = "/tmp/application/src/server.js"
	check("testdata/jit/node20.dump", "^twice "+script, script, 3, 4, 5, 6)
	check("testdata/jit/node20.dump", "*twice "+script, script, 1, 2, 4, 5, 6)

	program := filepath.Join(dir, "p.c")
	text := "long twice(int n)\n{\n\tlong s = n;\n\tfor (int i = 0; i < n; i++)\n\t\ts += i ^ n;\n\treturn s;\n}\nint main(void)\n{\n\treturn twice(3) == 1;\n}\n"
	if err := os.WriteFile(program, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	runIn(t, dir, "clang-19", "-g", "-O0", "-S", "-emit-llvm", "-o", "p.ll", program)
	cmd := exec.Command("lli-19", "-jit-kind=mcjit", "p.ll")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "JITDUMPDIR="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("lli-19: %v: %s", err, out)
	}
	check(filepath.Join(dir, ".debug/jit/*/jit-*.dump"), "twice", program, 2, 3, 4, 5, 6)
}

// A file that is being written ends anywhere; what is whole counts.
func TestJITDumpCutShort(t *testing.T) {
	d := newDump()
	d.load(1, 0x1000, "whole", make([]byte, 32))
	whole := d.Len()
	d.load(2, 0x2000, "cut", make([]byte, 32))
	for n := whole; n < d.Len(); n++ {
		m, err := readJITDump(bytes.NewReader(d.Bytes()[:n]), int64(n))
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := m.Lookup(0x1000); !ok || m.Len() != 1 {
			t.Fatalf("%d bytes: %d functions", n, m.Len())
		}
	}
	for n := range jitHeaderBytes {
		if _, err := readJITDump(bytes.NewReader(d.Bytes()[:n]), int64(n)); err == nil {
			t.Errorf("a header of %d bytes is taken", n)
		}
	}
	b := bytes.Clone(d.Bytes())
	binary.LittleEndian.PutUint32(b[4:], 2)
	if _, err := readJITDump(bytes.NewReader(b), int64(len(b))); err == nil {
		t.Error("another version is taken")
	}
}

func FuzzJITDump(f *testing.F) {
	d := newDump()
	d.load(1, 0x1000, "a", make([]byte, 16))
	d.move(1, 0x1000, 0x2000, 16)
	f.Add(d.Bytes())
	d = newDump()
	d.lines(0x1000, 0x40, "/app/a.js:3", 0x44, "\xff:4", 0x48, "\xb2\x8f\x03\x00\x00\x00\x00\x00\x12\x34\x56\x78\x9a\xbc\xde\xf0/server.js:5")
	d.load(1, 0x1000, "JS:~f /srv/applications/server.js:3:1", make([]byte, 16))
	d.move(1, 0x1000, 0x2000, 16)
	f.Add(d.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readJITDump(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		var end uint64
		for i, s := range m.starts {
			if s < end {
				t.Fatalf("functions overlap at %#x", s)
			}
			end = s + uint64(m.sizes[i])
			for at := s; at < min(end, s+64); at++ {
				if l, ok := m.Lookup(at); !ok || l.Line < 0 || (l.Line == 0) != (l.File == "") {
					t.Fatalf("%#x: %+v", at, l)
				}
			}
		}
	})
}
