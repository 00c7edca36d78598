package symbol

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
)

// splitProgram compiles the test program in a directory, as a build tree would, and returns it.
func splitProgram(t testing.TB, dir string, command ...string) string {
	t.Helper()
	source, err := filepath.Abs("testdata/inlines/inlines.cc")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "inlines")
	runIn(t, dir, command[0], append(command[1:], "-gsplit-dwarf", "-o", file, source)...)
	return file
}

// Of programs whose debug information is split, in files or in a package, every address is told as another reader tells it.
func TestSplitDebugLinesAgreeWithLLVM(t *testing.T) {
	for name, command := range map[string][]string{
		"gcc DWARF 5":            {"g++", "-O2", "-gdwarf-5"},
		"gcc DWARF 4":            {"g++", "-O2", "-gdwarf-4"},
		"gcc types":              {"g++", "-O2", "-gdwarf-5", "-fdebug-types-section"},
		"gcc sections":           {"g++", "-O3", "-gdwarf-4", "-ffunction-sections", "-Wl,--gc-sections"},
		"clang DWARF 5":          {"clang++-19", "-O2", "-gdwarf-5"},
		"clang DWARF 4":          {"clang++-19", "-O2", "-gdwarf-4"},
		"clang inlines repeated": {"clang++-19", "-O2", "-gdwarf-5", "-fsplit-dwarf-inlining"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := splitProgram(t, dir, command...)
			addresses := codeAddresses(t, file, 3)
			same, of := compareLines(t, file, addresses)
			t.Logf("%d of %d addresses", same, of)
			if of < 500 || same != of {
				t.Errorf("%d of %d addresses agree", same, of)
			}
			want := debugLinesOf(t, file, addresses)
			dwo, err := filepath.Glob(filepath.Join(dir, "*.dwo"))
			if err != nil || len(dwo) != 1 {
				t.Fatalf("split files %q, %v", dwo, err)
			}
			// The same in a package, however it was made; the split file is not there then.
			// Of gcc's DWARF 5 neither tool makes one: GNU's of binutils 2.40 crashes, LLVM's does not end.
			var tools []string
			switch {
			case slices.Contains(command, "-gdwarf-4"):
				tools = []string{"llvm-dwp-19", "dwp"}
			case command[0] == "clang++-19":
				tools = []string{"llvm-dwp-19"}
			}
			for _, tool := range tools {
				runIn(t, dir, tool, "-e", file, "-o", file+".dwp")
				if err := os.Rename(dwo[0], dwo[0]+".away"); err != nil {
					t.Fatal(err)
				}
				if got := debugLinesOf(t, file, addresses); !reflect.DeepEqual(got, want) {
					t.Errorf("a package that %s made tells other lines", tool)
				}
				if err := os.Rename(dwo[0]+".away", dwo[0]); err != nil {
					t.Fatal(err)
				}
				os.Remove(file + ".dwp")
			}
		})
	}
}

// Where a split file is missing, is of another build, or is nonsense, lines are told all the same, and why there is no more.
func TestMissingSplitFiles(t *testing.T) {
	dir := t.TempDir()
	file := splitProgram(t, dir, "g++", "-O2", "-gdwarf-5")
	addresses := codeAddresses(t, file, 7)
	want := debugLinesOf(t, file, addresses)
	dwo, err := filepath.Glob(filepath.Join(dir, "*.dwo"))
	if err != nil || len(dwo) != 1 {
		t.Fatalf("split files %q, %v", dwo, err)
	}
	other := filepath.Join(dir, "other")
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	splitProgram(t, other, "g++", "-O1", "-gdwarf-5", "-DOTHER")
	for name, content := range map[string]string{"missing": "", "nonsense": "\x7fELF\x02\x01", "of another build": readAll(t, filepath.Join(other, filepath.Base(dwo[0])))} {
		os.Remove(dwo[0])
		if content != "" {
			if err := os.WriteFile(dwo[0], []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		got, err := allLines(new(LineReader), f, DebugFinder{Path: file, Root: "/"}, addresses)
		f.Close()
		if !errors.Is(err, ErrNoCompanion) {
			t.Errorf("%s: error %v", name, err)
		}
		for a, w := range want {
			outer, inner := w[len(w)-1], w[0]
			if g := got[a]; len(g) != 1 || g[0].File != inner.File || g[0].Line != inner.Line || g[0].Function != "" {
				t.Fatalf("%s: %#x in %s: got %v, want line %d", name, a, outer.Function, g, inner.Line)
			}
		}
	}
}

func readAll(t testing.TB, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// What dwz moves to a supplementary file is found there: the lines are those of before.
func TestSupplementaryDebugFiles(t *testing.T) {
	for name, c := range map[string]struct {
		compile []string
		dwz     []string
	}{
		"DWARF 4":                 {[]string{"-gdwarf-4"}, nil},
		"DWARF 5 as GNU":          {[]string{"-gdwarf-5"}, nil},
		"DWARF 5 as the standard": {[]string{"-gdwarf-5"}, []string{"-5"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			source, err := filepath.Abs("testdata/inlines/inlines.cc")
			if err != nil {
				t.Fatal(err)
			}
			// dwz moves what two programs have in common.
			var files []string
			for _, level := range []string{"-O2", "-O3"} {
				file := filepath.Join(dir, "inlines"+level)
				runIn(t, dir, "g++", append(slices.Clone(c.compile), level, "-o", file, source)...)
				files = append(files, file)
			}
			addresses := codeAddresses(t, files[0], 2)
			want := debugLinesOf(t, files[0], addresses)
			common := filepath.Join(dir, "debug", "common.debug")
			if err := os.Mkdir(filepath.Dir(common), 0o755); err != nil {
				t.Fatal(err)
			}
			runIn(t, dir, "dwz", slices.Concat(c.dwz, []string{"-m", common, "-M", "debug/common.debug"}, files)...)
			got := debugLinesOf(t, files[0], addresses)
			for a, w := range want {
				if !slices.Equal(got[a], w) {
					t.Fatalf("%#x:\n got %v\nwant %v", a, got[a], w)
				}
			}
			if len(want) < 1500 || len(got) != len(want) {
				t.Errorf("%d of %d addresses", len(got), len(want))
			}
			// In another place it is found by what it is: by build id among the host's debug files, or not at all.
			host := t.TempDir()
			place := filepath.Join(host, "usr/lib/debug/.build-id")
			if s := supplementOf(t, files[0]); s.buildID != "" {
				place = filepath.Join(place, s.buildID[:2], s.buildID[2:]+".debug")
			} else {
				place = filepath.Join(host, "usr/lib/debug/.dwz/common.debug")
			}
			if err := os.MkdirAll(filepath.Dir(place), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(common, place); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(files[0])
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			found, err := allLines(new(LineReader), f, DebugFinder{Path: files[0], Root: "/", Host: host}, addresses)
			if supplementOf(t, files[0]).buildID != "" {
				if err != nil || !reflect.DeepEqual(found, got) {
					t.Errorf("by build id on the host: %d addresses, %v", len(found), err)
				}
			} else if !errors.Is(err, ErrNoCompanion) {
				t.Errorf("not there: %v", err)
			}
			// Somebody else's is not taken for it.
			garble := []byte(readAll(t, place))
			if s := supplementOf(t, files[0]); s.buildID != "" {
				copy(garble[bytes.Index(garble, mustHex(t, s.buildID)):], "other")
			} else {
				copy(garble[bytes.Index(garble, s.checksum):], "other")
			}
			if err := os.WriteFile(common, garble, 0o600); err != nil {
				t.Fatal(err)
			}
			lost, err := allLines(new(LineReader), f, DebugFinder{Path: files[0], Root: "/"}, addresses)
			if !errors.Is(err, ErrNoCompanion) || len(lost) != len(want) {
				t.Errorf("another build's: %d addresses, %v", len(lost), err)
			}
		})
	}
}

func supplementOf(t testing.TB, file string) supplement {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, _, err := imageOf(f)
	if err != nil {
		t.Fatal(err)
	}
	s, _, err := m.supplement()
	if err != nil || s.name == "" {
		t.Fatalf("no supplementary file: %v", err)
	}
	return s
}

func mustHex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// FuzzSplitDebugLines damages a program, its split file or package, and its supplementary file.
func FuzzSplitDebugLines(f *testing.F) {
	type set struct{ program, other []byte }
	sets := map[byte]set{}
	names := map[byte]string{0: "lib.dwo", 1: "lib.dwo", 2: "lib.so.dwp", 3: "lib.so.dwp", 4: "sup", 5: "sup"}
	source, err := filepath.Abs("testdata/native/library.c")
	if err != nil {
		f.Fatal(err)
	}
	inlines := filepath.Join(filepath.Dir(source), "../inlines/inlines.cc")
	for kind := range byte(6) {
		dir := f.TempDir()
		version := []string{"-gdwarf-5", "-gdwarf-4"}[kind%2]
		switch kind / 2 {
		case 0, 1:
			runIn(f, dir, "clang-19", version, "-gsplit-dwarf", "-nostdlib", "-shared", "-fPIC", "-O2", "-o", "lib.so", source)
			found, err := filepath.Glob(filepath.Join(dir, "*.dwo"))
			if err != nil || len(found) != 1 {
				f.Fatalf("split files %q, %v", found, err)
			}
			if kind/2 == 1 {
				runIn(f, dir, "llvm-dwp-19", "-e", "lib.so", "-o", "lib.so.dwp")
				break
			}
			// The name that the program has is the one that the compiler gave.
			names[kind] = filepath.Base(found[0])
		case 2:
			for _, name := range []string{"lib.so", "two.so"} { // large enough for dwz
				runIn(f, dir, "g++", version, "-shared", "-fPIC", "-O2", "-o", name, inlines)
			}
			runIn(f, dir, "dwz", "-m", "sup", "lib.so", "two.so")
		}
		sets[kind] = set{[]byte(readAll(f, filepath.Join(dir, "lib.so"))), []byte(readAll(f, filepath.Join(dir, names[kind])))}
		f.Add(kind, uint32(0), byte(0), uint32(0), byte(0))
		f.Add(kind, uint32(700), byte(1), uint32(900), byte(0x80))
	}
	f.Fuzz(func(t *testing.T, kind byte, at uint32, flip byte, atOther uint32, flipOther byte) {
		s := sets[kind%6]
		dir := t.TempDir()
		program, other := bytes.Clone(s.program), bytes.Clone(s.other)
		program[int(at)%len(program)] ^= flip
		other[int(atOther)%len(other)] ^= flipOther
		if err := os.WriteFile(filepath.Join(dir, names[kind%6]), other, 0o600); err != nil {
			t.Fatal(err)
		}
		find := DebugFinder{Path: "/lib.so", Root: dir}
		lines, _, err := debugLines(bytes.NewReader(program), int64(len(program)), &unitIndex{}, companions{find: find}, codeOf(program))
		if flip == 0 && flipOther == 0 && (err != nil || len(lines) == 0) {
			t.Fatalf("what is sound gives %d lines, %v", len(lines), err)
		}
		for a, l := range lines {
			if len(l) == 0 || len(l) > maxInlined {
				t.Fatalf("%#x: %d lines", a, len(l))
			}
		}
	})
}

// codeOf returns a few addresses in the code of a file.
func codeOf(b []byte) (list []Address) {
	m, err := newImage(newSource(bytes.NewReader(b), int64(len(b))))
	if err != nil {
		return nil
	}
	s := m.section(".text")
	if s == nil {
		return nil
	}
	for a := s.addr; a < s.addr+Address(min(s.size, 256)); a += 8 {
		list = append(list, a)
	}
	return list
}

// FuzzSplitPackage reads an index that was written to be read.
func FuzzSplitPackage(f *testing.F) {
	index := func(version uint32, ids ...uint64) []byte {
		le := binary.LittleEndian
		var b []byte
		for _, v := range []uint32{version, 2, uint32(len(ids)), 8} {
			b = le.AppendUint32(b, v)
		}
		var hash [8]uint64
		var rows [8]uint32
		for i, id := range ids {
			at := id & 7
			for rows[at] != 0 {
				at = (at + (id>>32&7 | 1)) & 7
			}
			hash[at], rows[at] = id, uint32(i+1)
		}
		for _, h := range hash {
			b = le.AppendUint64(b, h)
		}
		for _, r := range rows {
			b = le.AppendUint32(b, r)
		}
		b = le.AppendUint32(le.AppendUint32(b, 1), 3)
		for i := range ids {
			b = le.AppendUint32(le.AppendUint32(b, uint32(16*i)), uint32(8*i))
		}
		for range ids {
			b = le.AppendUint32(le.AppendUint32(b, 16), 8)
		}
		return b
	}
	f.Add(index(5, 1, 2, 9), uint64(9))
	f.Add(index(2, 1<<40|3, 3), uint64(3))
	f.Add(index(5), uint64(3))
	f.Fuzz(func(t *testing.T, b []byte, id uint64) {
		budget := newDebugBudget()
		section := func(name string, b []byte) debugSection {
			return debugSection{name: name, r: bytes.NewReader(b), size: uint64(len(b))}
		}
		p := &splitPackage{d: &debugFile{debugBudget: budget, info: section(".debug_info.dwo", make([]byte, 64)), abbrev: section(".debug_abbrev.dwo", make([]byte, 32))},
			index: section(".debug_cu_index", b)}
		d, err := p.file(id)
		if err == nil && d != nil && (d.info.size > 64 || uint64(d.info.off)+d.info.size > 64 || uint64(d.abbrev.off)+d.abbrev.size > 32) {
			t.Fatalf("a part beyond its section: %+v %+v", d.info, d.abbrev)
		}
	})
}

// FuzzSupplement reads the name of a supplementary file.
func FuzzSupplement(f *testing.F) {
	f.Add([]byte("common.debug\x00\x01\x02\x03\x04"), []byte("\x05\x00\x00common\x00\x04abcd"))
	f.Add([]byte("no end"), []byte("\x05\x00\x01\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"))
	f.Fuzz(func(t *testing.T, link, sup []byte) {
		for _, sections := range []map[string][]byte{{".gnu_debugaltlink": link}, {".debug_sup": sup}} {
			b := hostile(sections)
			m, err := newImage(newSource(bytes.NewReader(b), int64(len(b))))
			if err != nil {
				t.Fatal(err)
			}
			s, _, err := m.supplement()
			if err != nil || len(s.name) > maxDebugLink || len(s.buildID) > 2*maxBuildID {
				t.Fatalf("%+v, %v", s, err)
			}
			if s.name != "" && s.buildID == "" && s.checksum == nil {
				t.Fatal("a file that nothing identifies")
			}
		}
	})
}
