package symbol

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

func TestPerfMap(t *testing.T) {
	m, err := readPerfMap(iotest.OneByteReader(strings.NewReader(`3ef414c0 398 LazyCompile:~add /app/server.js:12:3
0x3ef41900 0x20 RegExp:a b
3ef41a00 100 old one
3ef41a80 10 new one inside of it
3ef41b00 0 nothing
3ef41b00 10
zzz 10 no number
ffffffffffffff00 200 wraps around
3ef41b00 1ffffffff too large
3ef41c00 10 ` + strings.Repeat("x", maxPerfMapLine) + `
3ef41d00 10 last
3ef41d00 10 last, at the same place
3ef41e00 10 being writt`)))
	if err != nil {
		t.Fatal(err)
	}
	for address, want := range map[uint64]string{
		0x3ef414bf: "", 0x3ef414c0: "LazyCompile:~add /app/server.js:12:3", 0x3ef41857: "LazyCompile:~add /app/server.js:12:3", 0x3ef41858: "",
		0x3ef41910: "RegExp:a b", 0x3ef41a10: "", 0x3ef41a80: "new one inside of it", 0x3ef41a90: "", 0x3ef41aff: "",
		0x3ef41b00: "", 0x3ef41c00: "", 0x3ef41d0f: "last, at the same place", 0x3ef41e00: "", 0: "", 1<<64 - 1: "",
	} {
		if got, _ := m.Lookup(address); got != (Line{Function: want}) {
			t.Errorf("%#x: %v, want %q", address, got, want)
		}
	}
	if m.Bad != 7 || m.Replaced != 2 || m.Dropped != 0 || m.Len() != 4 {
		t.Errorf("bad %d, replaced %d, dropped %d, functions %d", m.Bad, m.Replaced, m.Dropped, m.Len())
	}
}

// Against the obvious way: a function is there as long as nobody has written another one over any part of it.
func TestPerfMapReusesMemory(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var b strings.Builder
	const space = 4096
	type function struct{ start, end int }
	var there []function
	for i := range 2000 {
		f := function{start: r.IntN(space - 64)}
		f.end = f.start + 1 + r.IntN(64)
		fmt.Fprintf(&b, "%x %x f%d\n", f.start, f.end-f.start, i)
		for k, old := range there {
			if old.start < f.end && f.start < old.end {
				there[k] = function{}
			}
		}
		there = append(there, f)
	}
	var want [space]string
	for i, f := range there {
		for a := f.start; a < f.end; a++ {
			want[a] = fmt.Sprintf("f%d", i)
		}
	}
	m, err := readPerfMap(strings.NewReader(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	for a := range space {
		if got, _ := m.Lookup(uint64(a)); got.Function != want[a] {
			t.Errorf("%#x: %v, want %q", a, got, want[a])
		}
	}
}

func TestPerfMapIsBounded(t *testing.T) {
	file := filepath.Join(t.TempDir(), "perf-1.map")
	var b strings.Builder
	for i := range maxPerfMapCodes + 10 {
		fmt.Fprintf(&b, "%x 10 f%d\n", i*16, i)
	}
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := ReadPerfMap(f)
	if err != nil {
		t.Fatal(err)
	}
	if m.Len() != maxPerfMapCodes || m.Dropped != 10 || m.Bytes() > 8<<20 {
		t.Errorf("%d functions, %d dropped, %d bytes", m.Len(), m.Dropped, m.Bytes())
	}
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if _, err := ReadPerfMap(dir); err != ErrNotRegular {
		t.Errorf("a directory: %v", err)
	}
}

func FuzzPerfMap(f *testing.F) {
	f.Add([]byte("3ef414c0 398 LazyCompile:~add /app/server.js:12:3\n3ef41500 10 x\n"))
	f.Add([]byte("0 ffffffff a\n1 1 b\n0 2 c\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readPerfMap(strings.NewReader(string(b)))
		if err != nil {
			t.Fatal(err) // memory has no errors
		}
		var end uint64
		for i, s := range m.starts {
			if s < end {
				t.Fatalf("functions overlap at %#x", s)
			}
			end = s + uint64(m.sizes[i])
			if l, ok := m.Lookup(s); !ok || l.Function == "" {
				t.Fatalf("no name at %#x", s)
			}
		}
	})
}
