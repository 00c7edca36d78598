package workload

import (
	"debug/elf"
	"slices"
	"testing"
)

// Every program compiles here, has the functions that the tests look for, and (Swap and Calls apart) needs no library.
func TestProgramsHaveTheirFunctions(t *testing.T) {
	b, err := New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		SharesC:    {"leaf_sixty", "leaf_thirty", "leaf_ten", "alpha", "beta", "cycle"},
		SharesPIE:  {"leaf_sixty", "cycle"},
		SharesCXX:  {"_ZN3app11leaf_thirtyERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEEm"},
		SharesOmit: {"leaf_sixty", "cycle"},
		Unstripped: {"leaf_sixty", "cycle"},
		Calls:      {"compare", "sorts", "copies", "formats"},
		DeepOmit:   {"level", "work"},
		SharesGo:   {"main.leafSixty", "main.leafThirty", "main.alpha", "main.beta", "main.worker"},
		Idle:       {"main"},
		Burn:       {"short_lived_work", "unique_0", "unique_19"},
		Spawn:      {"main"},
		Kernel:     {"read_zeros"},
		Deep:       {"level", "work"},
		Shop:       {"main.handle", "main.decode"},
		Render:     {"main"},
		Backup:     {"back_up", "pack", "checksum"},
		Swap:       {"main"},
	} {
		files, err := b.Files(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := elf.Open(files["/"+name])
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		symbols, err := f.Symbols()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, w := range want {
			if !slices.ContainsFunc(symbols, func(s elf.Symbol) bool { return s.Name == w }) {
				t.Errorf("%s has no symbol %s", name, w)
			}
		}
		libs, err := f.ImportedLibraries()
		if err != nil || (len(libs) > 0) != (name == Swap || name == Calls) {
			t.Errorf("%s imports %v (%v)", name, libs, err)
		}
	}
}
