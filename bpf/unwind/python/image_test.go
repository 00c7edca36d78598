package python

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/symbol"
)

// compiled is a program that has the symbols of CPython 3.11.
func compiled(t testing.TB, flags ...string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "forged")
	args := append([]string{"-O1", "-pthread", "-rdynamic", "-o", out, "../testdata/forged.c"}, flags...)
	if msg, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, msg)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// An interpreter is known by its content, by whatever name and way of linking, and nothing else is one.
func TestImages(t *testing.T) {
	for name, b := range map[string][]byte{
		"PIE": compiled(t), "fixed address": compiled(t, "-no-pie"), "stripped": compiled(t, "-s"), "the older hash table only": compiled(t, "-Wl,--hash-style=sysv"),
	} {
		im, err := readImage(bytes.NewReader(b), int64(len(b)))
		if err != nil || im == nil {
			t.Fatalf("%s: %+v, %v", name, im, err)
		}
		f, err := elf.NewFile(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		symbols, err := f.DynamicSymbols()
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]symbol.Symbol{}
		for _, s := range symbols {
			want[s.Name] = symbol.Symbol{Address: symbol.Address(s.Value), Size: s.Size}
		}
		if im.minor != 11 || im.release != "3.11.0" || im.table == nil || im.runtime != want["_PyRuntime"].Address || im.codeType != want["PyCode_Type"].Address ||
			im.loops[0].Address != want["_PyEval_EvalFrameDefault"].Address || im.loops[0].Size != want["_PyEval_EvalFrameDefault"].Size {
			t.Errorf("%s: %+v, symbols %v", name, im, want)
		}
		for _, p := range f.Progs {
			if p.Type != elf.PT_LOAD || p.Flags&elf.PF_X == 0 {
				continue
			}
			const base = 0x7f0000000000
			m := process.Mapping{Start: base + p.Vaddr&^0xfff, End: base + (p.Vaddr+p.Memsz+0xfff)&^0xfff, Offset: p.Off &^ 0xfff}
			if bias, ok := im.biasOf(&m); !ok || bias != base {
				t.Errorf("%s: bias %#x, %v", name, bias, ok)
			}
		}
	}
	for _, path := range []string{"/bin/sh", os.Args[0]} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if im, err := readImage(f, st.Size()); im != nil || err != nil {
			t.Errorf("%s: %+v, %v", path, im, err)
		}
	}
}

func FuzzImage(f *testing.F) {
	f.Add(compiled(f, "-s"))
	f.Fuzz(func(t *testing.T, b []byte) {
		im, err := readImage(bytes.NewReader(b), int64(len(b)))
		if im != nil && err != nil {
			t.Errorf("both: %+v, %v", im, err)
		}
		if im != nil && im.table != nil {
			im.attach(1 << 40)
		}
	})
}

// Debian's compiler has put a part of the loop elsewhere on amd64, and strip has taken its name away.
func TestColdPartOfTheLoop(t *testing.T) {
	f, err := os.Open("/usr/bin/python3")
	if err != nil {
		t.Fatalf("%v; run: packaging/setup.sh test", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	im, err := readImage(f, st.Size())
	if err != nil || im == nil {
		t.Fatalf("%+v, %v", im, err)
	}
	parts := im.loops[1:]
	if runtime.GOARCH == "amd64" && (len(parts) != 1 || parts[0].Size < 1<<10 || parts[0].Size > im.loops[0].Size) || runtime.GOARCH != "amd64" && len(parts) != 0 {
		t.Errorf("the loop is at %+v, other parts of it at %+v", im.loops[0], parts)
	}
}
