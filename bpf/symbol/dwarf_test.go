package symbol

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// symbolized asks llvm-symbolizer, which shares no code with us, for the functions and lines at addresses.
func symbolized(t testing.TB, file string, addresses []Address) map[Address][]Line {
	t.Helper()
	var in strings.Builder
	for _, a := range addresses {
		fmt.Fprintf(&in, "%#x\n", a)
	}
	cmd := exec.Command("llvm-symbolizer-19", "--obj="+file, "--no-demangle", "--inlines", "--output-style=LLVM")
	cmd.Stdin = strings.NewReader(in.String())
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("llvm-symbolizer-19: %v", err)
	}
	got := map[Address][]Line{}
	for i, block := range strings.Split(strings.TrimSpace(string(out)), "\n\n") {
		lines := strings.Split(strings.TrimSpace(block), "\n")
		for k := 0; k+1 < len(lines); k += 2 {
			// FILE:LINE:COLUMN
			at := lines[k+1]
			at = at[:strings.LastIndexByte(at, ':')]
			n, err := strconv.Atoi(at[strings.LastIndexByte(at, ':')+1:])
			if err != nil {
				t.Fatalf("llvm-symbolizer-19 says %q", lines[k+1])
			}
			file := at[:strings.LastIndexByte(at, ':')]
			if file == "??" {
				file = ""
			}
			name := strings.TrimSuffix(demangled(lines[k]), ".cold") // it takes outermost names from the symbol table
			if name == "??" {
				name = ""
			}
			got[addresses[i]] = append(got[addresses[i]], Line{Function: name, File: filepath.Clean(file), Line: n})
		}
	}
	return got
}

// codeAddresses returns every n-th address of the file's .text.
func codeAddresses(t testing.TB, file string, n int) []Address {
	t.Helper()
	f, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := f.Section(".text")
	var list []Address
	for a := s.Addr; a < s.Addr+s.Size; a += uint64(n) {
		list = append(list, Address(a))
	}
	return list
}

// compareLines reports how many of the addresses that have debug information we tell as llvm-symbolizer does: all functions, files
// and lines.
func compareLines(t *testing.T, file string, addresses []Address) (same, of int) {
	t.Helper()
	got := debugLinesOf(t, file, addresses)
	shown := 0
	for a, want := range symbolized(t, file, addresses) {
		if want[0].Line == 0 && !filepath.IsAbs(want[0].File) { // from the symbol table: no debug information there
			continue
		}
		lines := slices.Clone(got[a])
		for i := range lines {
			lines[i].StartLine, lines[i].File = 0, filepath.Clean(lines[i].File)
		}
		of++
		// It takes the outermost name from the symbol table, as the agent does.
		if n, w := len(lines)-1, len(want)-1; n >= 0 && strings.HasSuffix(want[w].Function, "::"+lines[n].Function) {
			lines[n].Function = want[w].Function
		}
		if slices.Equal(lines, want) {
			same++
		} else if shown++; shown <= 5 {
			t.Logf("%s %#x:\n got %v\nwant %v", filepath.Base(file), a, lines, want)
		}
	}
	return same, of
}

// Every address of a program that inlines a lot is told as another reader of DWARF tells it, for each form that compilers write.
func TestDebugLinesAgreeWithLLVM(t *testing.T) {
	for name, command := range map[string][]string{
		"gcc DWARF 5":           {"g++", "-O2", "-g"},
		"gcc DWARF 4":           {"g++", "-O2", "-gdwarf-4"},
		"gcc DWARF 3":           {"g++", "-O2", "-gdwarf-3", "-gstrict-dwarf"},
		"gcc compressed":        {"g++", "-O2", "-g", "-gz=zlib"},
		"gcc 64-bit":            {"g++", "-O2", "-g", "-gdwarf64"},
		"gcc LTO":               {"g++", "-O2", "-g", "-flto"},
		"gcc function sections": {"g++", "-O3", "-g", "-ffunction-sections", "-Wl,--gc-sections"},
		"gcc not optimized":     {"g++", "-O0", "-g"},
		"clang DWARF 5":         {"clang++-19", "-O2", "-g"},
		"clang DWARF 4":         {"clang++-19", "-O2", "-gdwarf-4"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "inlines")
			run(t, command[0], append(command[1:], "-o", file, "testdata/inlines/inlines.cc")...)
			same, of := compareLines(t, file, codeAddresses(t, file, 1))
			t.Logf("%d of %d addresses", same, of)
			if of < 500 || same != of {
				t.Errorf("%d of %d addresses agree", same, of)
			}
		})
	}
}

// However sections are packed, the same is read from them.
func TestDebugLinesOfCompressedSections(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	run(t, "g++", "-O2", "-g", "-o", plain, "testdata/inlines/inlines.cc")
	addresses := codeAddresses(t, plain, 3)
	want := debugLinesOf(t, plain, addresses)
	for name, command := range map[string][]string{
		"zlib":     {"objcopy", "--compress-debug-sections=zlib-gabi"},
		"zlib-gnu": {"objcopy", "--compress-debug-sections=zlib-gnu"},
		"zstd":     {"llvm-objcopy-19", "--compress-debug-sections=zstd"},
	} {
		file := filepath.Join(dir, name)
		run(t, command[0], append(command[1:], plain, file)...)
		got := debugLinesOf(t, file, addresses)
		if len(want) < 500 || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %d addresses, %d from what is not compressed, or other lines", name, len(got), len(want))
		}
	}
}

func debugLinesOf(t *testing.T, file string, addresses []Address) map[Address][]Line {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines, err := allLines(new(LineReader), f, DebugFinder{Path: file, Root: "/"}, addresses)
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// allLines reads until there is no rest.
func allLines(r *LineReader, f *os.File, find DebugFinder, addresses []Address) (map[Address][]Line, error) {
	all := map[Address][]Line{}
	var errs []error
	for len(addresses) > 0 {
		lines, rest, err := r.Lines(f, find, addresses)
		maps.Copy(all, lines)
		addresses, errs = rest, append(errs, err)
	}
	return all, errors.Join(errs...)
}

// debugSeed is a small program with debug information.
func debugSeed(t testing.TB, args ...string) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "seed")
	run(t, "gcc", append(args, "-nostdlib", "-shared", "-fPIC", "-O2", "-o", file, "testdata/native/library.c")...)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func FuzzDebugLines(f *testing.F) {
	for _, args := range [][]string{{"-g"}, {"-gdwarf-4"}, {"-g", "-gz"}} {
		seed := debugSeed(f, args...)
		f.Add(seed, uint32(0), byte(0), uint32(1), byte(0xff))
		f.Add(seed, uint32(len(seed)/2), byte(0x80), uint32(len(seed)/3), byte(1))
	}
	f.Fuzz(func(t *testing.T, b []byte, at1 uint32, flip1 byte, at2 uint32, flip2 byte) {
		if len(b) == 0 {
			return
		}
		b = bytes.Clone(b)
		b[int(at1)%len(b)] ^= flip1
		b[int(at2)%len(b)] ^= flip2
		lines, _, _ := debugLines(bytes.NewReader(b), int64(len(b)), &unitIndex{}, companions{}, []Address{0, 0x1000, 0x1001, 0x1020, 0x1100, 1<<64 - 1})
		for a, l := range lines {
			if len(l) == 0 || len(l) > maxInlined {
				t.Fatalf("%#x: %d lines", a, len(l))
			}
		}
	})
}

// hostile writes a file with the given debug sections.
func hostile(sections map[string][]byte) []byte {
	e := testELF{machine: elf.EM_X86_64, segments: []elf.Prog64{load(elf.PF_R|elf.PF_X, 0, 0, 0x1000)}}
	for name, data := range sections {
		e.sections = append(e.sections, testSection{name: name, Section64: elf.Section64{Type: uint32(elf.SHT_PROGBITS)}, data: data})
	}
	return e.build()
}

// A file can ask for far more work than it has bytes. Each of these ends by a limit, long before anybody would notice.
func TestDebugLinesBoundTheWork(t *testing.T) {
	uleb := func(v uint64) (b []byte) {
		for ; v >= 0x80; v >>= 7 {
			b = append(b, byte(v)|0x80)
		}
		return append(b, byte(v))
	}
	unit := func(entries []byte) []byte { // DWARF 4, 8-byte addresses, abbreviations at 0
		b := binary.LittleEndian.AppendUint32(nil, uint32(7+len(entries)))
		return append(append(b, 4, 0, 0, 0, 0, 0, 8), entries...)
	}
	root := append([]byte{1, 0x11, 1, 0x11, 0x01, 0x12, 0x07, 0x10, 0x17, 0, 0}, 0) // compile unit with low, high, stmt_list
	rootEntry := append([]byte{1, 0x80, 0, 0, 0, 0, 0, 0, 0}, append([]byte{0, 0, 1, 0, 0, 0, 0, 0}, 0, 0, 0, 0)...)
	root = root[:len(root)-1]

	// A subprogram whose attributes are 200,000 constants of no bytes, as often as one likes.
	fat := append(slices.Clone(root), 2, 0x2e, 0)
	for range 200_000 {
		fat = append(append(fat, uleb(0x3fff)...), 0x21, 0)
	}
	fat = append(fat, 0, 0, 0)
	entries := append(slices.Clone(rootEntry), bytes.Repeat([]byte{2}, 100_000)...)
	// Entries in one another without end.
	deep := append(slices.Clone(root), 2, 0x2e, 1, 0, 0, 0)
	// A function that is an instance of itself.
	self := append(slices.Clone(root), 2, 0x2e, 0, 0x11, 0x01, 0x12, 0x07, 0x31, 0x13, 0, 0, 0)
	selfEntry := append([]byte{2, 0x80, 0, 0, 0, 0, 0, 0, 0}, 0, 0, 1, 0, 0, 0, 0, 0)
	selfEntry = binary.LittleEndian.AppendUint32(selfEntry, uint32(11+len(rootEntry)))

	for name, c := range map[string]struct {
		sections map[string][]byte
		want     string // part of the error
	}{
		"attributes of no bytes":  {map[string][]byte{".debug_abbrev": fat, ".debug_info": unit(entries)}, "limits"},
		"depth":                   {map[string][]byte{".debug_abbrev": deep, ".debug_info": unit(append(slices.Clone(rootEntry), bytes.Repeat([]byte{2}, 100_000)...))}, "too deep"},
		"a circle of references":  {map[string][]byte{".debug_abbrev": self, ".debug_info": unit(append(slices.Clone(rootEntry), selfEntry...))}, "cut short"}, // there is no line table
		"a unit that is too long": {map[string][]byte{".debug_abbrev": deep, ".debug_info": {0xf0, 0, 0, 0, 4, 0}}, "longer than its section"},
		"sizes that lie":          {map[string][]byte{".debug_abbrev": deep, ".zdebug_info": append([]byte("ZLIB\x00\x00\x00\x7f\xff\xff\xff\xff"), 0x78, 0x9c)}, "limits"},
	} {
		b := hostile(c.sections)
		_, _, err := debugLines(bytes.NewReader(b), int64(len(b)), &unitIndex{}, companions{}, []Address{0x100})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
