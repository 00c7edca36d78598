package symbol

import (
	"bytes"
	"encoding/binary"
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
	d.record(2, make([]byte, 64)) // lines
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
		if got, _ := m.Lookup(address); got != want {
			t.Errorf("%#x: %q, want %q", address, got, want)
		}
	}
	if m.Bad != 4 {
		t.Errorf("%d records make no sense, want 4", m.Bad)
	}
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
			m.Lookup(s)
		}
	})
}
