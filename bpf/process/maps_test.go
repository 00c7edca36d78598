package process

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"
)

func TestParseMaps(t *testing.T) {
	for _, c := range []struct {
		name, line string
		want       Mapping
	}{
		{"file", "55d0e6a2a000-55d0e6a2c000 r-xp 00002000 fd:01 1234                       /usr/bin/cat\n",
			Mapping{0x55d0e6a2a000, 0x55d0e6a2c000, 0x2000, true, 0xfd, 1, 1234, "/usr/bin/cat", false}},
		{"data", "1000-2000 rw-p 00002000 fd:01 1234 /usr/bin/cat\n",
			Mapping{0x1000, 0x2000, 0x2000, false, 0xfd, 1, 1234, "/usr/bin/cat", false}},
		{"shared, not readable", "1000-2000 --xs 0 0:5 7 /x\n", Mapping{0x1000, 0x2000, 0, true, 0, 5, 7, "/x", false}},
		{"anonymous", "7ffff7ff8000-7ffff7ffc000 rwxp 00000000 00:00 0 \n",
			Mapping{0x7ffff7ff8000, 0x7ffff7ffc000, 0, true, 0, 0, 0, "", false}},
		{"without the blanks behind", "1000-2000 rwxp 00000000 00:00 0\n", Mapping{0x1000, 0x2000, 0, true, 0, 0, 0, "", false}},
		{"without a newline at the end", "1000-2000 rwxp 00000000 00:00 0 /x", Mapping{0x1000, 0x2000, 0, true, 0, 0, 0, "/x", false}},
		{"vdso", "7ffd1c5fe000-7ffd1c600000 r-xp 00000000 00:00 0                          [vdso]\n",
			Mapping{0x7ffd1c5fe000, 0x7ffd1c600000, 0, true, 0, 0, 0, "[vdso]", false}},
		{"vsyscall, the highest address", "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n",
			Mapping{0xffffffffff600000, 0xffffffffff601000, 0, true, 0, 0, 0, "[vsyscall]", false}},
		{"the whole space", "0-ffffffffffffffff ---p ffffffffffffffff ffffffff:ffffffff 18446744073709551615 /x\n",
			Mapping{0, 1<<64 - 1, 1<<64 - 1, false, 1<<32 - 1, 1<<32 - 1, 1<<64 - 1, "/x", false}},
		{"heap", "1000-2000 rw-p 00000000 00:00 0 [heap]\n", Mapping{0x1000, 0x2000, 0, false, 0, 0, 0, "[heap]", false}},
		{"named anonymous memory", "1000-2000 rwxp 00000000 00:00 0 [anon:Ruby:rb_jit_reserve_addr_space]\n",
			Mapping{0x1000, 0x2000, 0, true, 0, 0, 0, "[anon:Ruby:rb_jit_reserve_addr_space]", false}},
		{"deleted", "1000-2000 r-xp 00000000 00:1f 99 /tmp/x (deleted)\n", Mapping{0x1000, 0x2000, 0, true, 0, 0x1f, 99, "/tmp/x", true}},
		{"memfd", "1000-2000 r-xp 00000000 00:01 99 /memfd:jit (deleted)\n", Mapping{0x1000, 0x2000, 0, true, 0, 1, 99, "/memfd:jit", true}},
		{"shared anonymous memory", "1000-2000 rwxs 00000000 00:01 4 /dev/zero (deleted)\n", Mapping{0x1000, 0x2000, 0, true, 0, 1, 4, "/dev/zero", true}},
		{"huge pages", "1000-2000 rwxp 00000000 00:00 0 //anon\n", Mapping{0x1000, 0x2000, 0, true, 0, 0, 0, "//anon", false}},
		{"blanks in the path", "1000-2000 r-xp 00000000 00:1f 99 /a b  c \n", Mapping{0x1000, 0x2000, 0, true, 0, 0x1f, 99, "/a b  c ", false}},
		{"newline in the path", "1000-2000 r-xp 00000000 00:1f 99 /a\\012b\\012\n", Mapping{0x1000, 0x2000, 0, true, 0, 0x1f, 99, "/a\nb\n", false}},
		{"a backslash that escapes nothing", "1000-2000 r-xp 00000000 00:1f 99 /a\\040b\n", Mapping{0x1000, 0x2000, 0, true, 0, 0x1f, 99, `/a\040b`, false}},
		{"not UTF-8", "1000-2000 r-xp 00000000 00:1f 99 /\xff\n", Mapping{0x1000, 0x2000, 0, true, 0, 0x1f, 99, "/\xff", false}},
		{"path longer than PATH_MAX", "1000-2000 r-xp 00000000 00:1f 99 /" + strings.Repeat("x/", 30_000) + "\n",
			Mapping{0x1000, 0x2000, 0, true, 0, 0x1f, 99, ("/" + strings.Repeat("x/", 30_000))[:maxPath], false}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for name, r := range map[string]io.Reader{
				"whole": strings.NewReader(c.line), "byte by byte": iotest.OneByteReader(strings.NewReader(c.line)),
			} {
				got, err := ParseMaps(r)
				if err != nil || len(got) != 1 || got[0] != c.want {
					t.Errorf("%s: got %+v, %v, want %+v", name, got, err, c.want)
				}
			}
		})
	}
}

func TestParseMapsSaysWhereItFails(t *testing.T) {
	const good = "1000-2000 r-xp 00000000 00:1f 99 /x\n"
	for _, bad := range []string{
		"\n", " \n", "x\n", "1000\n", "1000-\n", "1000-2000\n", "1000-2000 r-x 0 0:0 0 /x\n", "1000-2000 r-xp\n", "1000-2000 r-xp 0 00 0 /x\n",
		"2000-1000 r-xp 0 0:0 0 /x\n", "1000-1000 r-xp 0 0:0 0 /x\n", "-2000 r-xp 0 0:0 0\n", "g000-h000 r-xp 0 0:0 0 /x\n",
		"10000000000000000-10000000000001000 r-xp 0 0:0 0 /x\n", "1000-2000 r-xp 0 100000000:0 0 /x\n",
		"1000-2000 r-xp 0 0:0 18446744073709551616 /x\n", "1000-2000 r-xp 0 0:0 a /x\n",
	} {
		got, err := ParseMaps(strings.NewReader(good + bad + good))
		if err == nil || len(got) != 1 || !strings.Contains(err.Error(), fmt.Sprintf("byte %d ", len(good))) {
			t.Errorf("%q: got %v, %v, want the first mapping and an error that says byte %d", bad, got, err, len(good))
		}
	}
	want := errors.New("no")
	if _, err := ParseMaps(io.MultiReader(strings.NewReader(good), iotest.ErrReader(want))); !errors.Is(err, want) {
		t.Errorf("got %v, want the reader's error", err)
	}
}

func TestParseMapsIsBounded(t *testing.T) {
	var many bytes.Buffer
	for i := range MaxMappings + 1 {
		fmt.Fprintf(&many, "%x-%x r-xp 00000000 00:1f 99 /x\n", i<<12, (i+1)<<12)
	}
	got, err := ParseMaps(&many)
	if !errors.Is(err, ErrTooManyMappings) || len(got) != MaxMappings {
		t.Errorf("%d mappings: got %d, %v", MaxMappings+1, len(got), err)
	}
	// Data does not count where only code is asked for; the bytes do.
	var data bytes.Buffer
	for i := range MaxMappings + 1 {
		fmt.Fprintf(&data, "%x-%x rw-p 00000000 00:1f 99 /x\n", i<<12, (i+1)<<12)
	}
	fmt.Fprint(&data, "7f0000000000-7f0000001000 r-xp 00000000 00:1f 99 /x\n")
	if got, _, err := parseMaps(&data, true); err != nil || len(got) != 1 {
		t.Errorf("code behind %d mappings of data: got %d, %v", MaxMappings+1, len(got), err)
	}
	endless := io.MultiReader(strings.NewReader("1000-2000 r-xp 00000000 00:1f 99 /"), neverEnds{})
	if _, err := ParseMaps(endless); !errors.Is(err, ErrTooManyMappings) {
		t.Errorf("an endless line: got %v", err)
	}
}

type neverEnds struct{}

func (neverEnds) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func FuzzParseMaps(f *testing.F) {
	self, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(self)
	f.Add([]byte("55d0e6a2a000-55d0e6a2c000 r-xp 00002000 fd:01 1234 /usr/bin/cat (deleted)\n"))
	f.Add([]byte("1000-2000 r-xp 00000000 00:1f 99 /a\\012b\n1000-3000 r-xp 00000000 00:1f 99 [vdso]"))
	f.Add([]byte("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n"))
	f.Add([]byte("2000-1000 r-xp 00000000 00:1f 99 //anon\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := ParseMaps(bytes.NewReader(text))
		if len(list) > MaxMappings {
			t.Fatalf("%d mappings", len(list))
		}
		for _, m := range list {
			if m.Start >= m.End || len(m.Path) > maxPath {
				t.Fatalf("impossible mapping %+v", m)
			}
		}
		code, n, codeErr := parseMaps(bytes.NewReader(text), true)
		if n > len(text) || err == nil && codeErr != nil {
			t.Fatalf("%d of %d bytes read, code only: %v, all: %v", n, len(text), codeErr, err)
		}
		maps := NewMaps(list)
		if !maps.Equal(NewMaps(code)) && err == nil {
			t.Fatalf("code only is not the executable part: %+v, %+v", code, list)
		}
		last := uint64(0)
		for _, m := range maps.Code() {
			if m.Start < last {
				t.Fatalf("overlap at %x", m.Start)
			}
			last = m.End
			for _, a := range []uint64{m.Start, m.End - 1} {
				if found, ok := maps.Find(a); !ok || *found != m {
					t.Fatalf("address %x of %+v is not found: %+v", a, m, found)
				}
			}
		}
		if !maps.Keeps(maps) {
			t.Fatal("maps differ from themselves")
		}
	})
}

func BenchmarkParseMaps(b *testing.B) {
	var text bytes.Buffer
	for i := range 200 {
		perms := [...]string{"r--p", "r-xp", "r--p", "rw-p"}[i%4]
		fmt.Fprintf(&text, "%x-%x %s %08x fd:01 %d                     /usr/lib/x86_64-linux-gnu/libexample-%d.so.1.2.3\n",
			0x7f0000000000+i<<16, 0x7f0000000000+(i+1)<<16, perms, i%4<<16, 1000+i/4, i/4)
	}
	for name, codeOnly := range map[string]bool{"all": false, "code": true} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(text.Len()))
			for b.Loop() {
				if _, _, err := parseMaps(bytes.NewReader(text.Bytes()), codeOnly); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
