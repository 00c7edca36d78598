package symbol

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// xzOf compresses with the tool that distributions use for it.
func xzOf(t testing.TB, b []byte, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("xz", append([]string{"--stdout"}, args...)...)
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("xz: %v", err)
	}
	return out
}

// A stripped program with MiniDebugInfo, made by the recipe of the GDB manual, names its static functions.
func TestMiniDebugInfoNamesStaticFunctions(t *testing.T) {
	dir := t.TempDir()
	program, keep, mini := filepath.Join(dir, "program"), filepath.Join(dir, "keep"), filepath.Join(dir, "mini")
	run(t, "gcc", "-O1", "-o", program, "testdata/native/assembly.S", "testdata/native/program.c", "testdata/native/library.c")
	full := parseFile(t, program)
	var names []string
	for line := range strings.Lines(run(t, "nm", "--format=posix", "--defined-only", program)) {
		if f := strings.Fields(line); len(f) > 1 && strings.ContainsAny(f[1], "tT") {
			names = append(names, f[0])
		}
	}
	if err := os.WriteFile(keep, []byte(strings.Join(names, "\n")), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, "objcopy", "--only-keep-debug", program, mini)
	run(t, "objcopy", "-S", "--remove-section", ".comment", "--keep-symbols="+keep, mini)
	run(t, "strip", "--strip-all", "-R", ".comment", program)
	b, err := os.ReadFile(mini)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(mini+".xz", xzOf(t, b), 0o644); err != nil {
		t.Fatal(err)
	}
	stripped := parseFile(t, program)
	run(t, "objcopy", "--add-section", ".gnu_debugdata="+mini+".xz", program)
	o := parseFile(t, program)

	found := 0
	for i, start := range full.table.starts {
		a := full.table.base + Address(start)
		want := full.Lookup(nil, a)
		if len(want) != 1 || full.table.names[i] == hole || !slices.Contains(names, want[0].Function) {
			continue // the PLT, and names that the recipe leaves out
		}
		if got := o.Lookup(nil, a); len(got) != 1 || got[0] != want[0] {
			t.Errorf("%#x: %v, before it was stripped %v", a, got, want)
		}
		if len(stripped.Lookup(nil, a)) == 0 {
			found++
		}
	}
	if found < 3 {
		t.Errorf("only %d functions were found through MiniDebugInfo alone", found)
	}
	if o.degraded {
		t.Error("degraded")
	}
}

// miniELF is a stripped file around MiniDebugInfo.
func miniELF(debugdata []byte) []byte {
	return testELF{
		machine:  elf.EM_X86_64,
		segments: []elf.Prog64{load(elf.PF_R|elf.PF_X, 0, 0, 0x2000)},
		sections: []testSection{textSection(0x1000, 0x1000, 0x100),
			{name: ".gnu_debugdata", Section64: elf.Section64{Type: uint32(elf.SHT_PROGBITS)}, data: debugdata}},
	}.build()
}

// Whatever the section holds, the rest of the file is as good as without it, and nothing large is made of little.
func TestMiniDebugInfoThatLies(t *testing.T) {
	inner := smallELF("inner_function", "build id")
	wrong := bytes.Clone(inner)
	wrong[18] = byte(elf.EM_AARCH64)
	for name, data := range map[string][]byte{
		"not xz":             []byte("no xz at all, but long enough for a header of it"),
		"cut short":          xzOf(t, inner)[:100],
		"not ELF":            xzOf(t, []byte(strings.Repeat("text", 100))),
		"another machine":    xzOf(t, wrong),
		"a gigabyte of zero": xzOf(t, make([]byte, 64<<20)),
		"a large dictionary": xzOf(t, inner, "-9e", "--lzma2=dict=512MiB"),
	} {
		o := mustParse(t, miniELF(data))
		if !o.degraded || o.mini != nil {
			t.Errorf("%s: degraded %v, table %v", name, o.degraded, o.mini != nil)
		}
	}
	o := mustParse(t, miniELF(xzOf(t, inner)))
	if o.degraded || o.mini == nil {
		t.Errorf("an honest one: degraded %v, table %v", o.degraded, o.mini != nil)
	}
	if _, err := unxz(xzOf(t, make([]byte, maxMiniELF+1))); !errors.Is(err, errUnpacked) {
		t.Errorf("one byte too many: %v", err)
	}
}

func FuzzMiniDebugInfo(f *testing.F) {
	f.Add(xzOf(f, smallELF("inner_function", "build id")))
	f.Add(xzOf(f, bytes.Repeat([]byte{7}, 100_000)))
	f.Add([]byte("\xfd7zXZ\x00\x00\x04"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if plain, err := unxz(b); err == nil && len(plain) > maxMiniELF {
			t.Fatalf("%d bytes", len(plain))
		}
		o, err := parse(bytes.NewReader(miniELF(b)), int64(len(miniELF(b))), fuzzBudget)
		if err == nil {
			exercise(t, o)
		}
	})
}
