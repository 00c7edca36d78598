//go:build root

package symbol

import (
	"bufio"
	"os"
	"strings"
	"testing"
)

// TestTheRunningKernel looks up every function of the running kernel at its own address.
func TestTheRunningKernel(t *testing.T) {
	k, err := NewKernel("/proc")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("/proc/kallsyms")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	names := map[uint64]map[string]bool{}
	for in := bufio.NewScanner(f); in.Scan(); {
		addr, typ, name, module, ok := parseKallsym(in.Bytes())
		if !ok {
			t.Fatalf("%q", in.Text())
		}
		if strings.IndexByte("tTwW", typ) < 0 || string(module) == "bpf" { // BPF programs of other tests come and go
			continue
		}
		if names[addr] == nil {
			names[addr] = map[string]bool{}
		}
		names[addr][string(name)] = true
	}
	if len(names) < 1000 {
		t.Fatalf("only %d functions", len(names))
	}
	bad := 0
	for addr, want := range names {
		if got, _, ok := k.Lookup(addr); !ok || !want[got] {
			if bad++; bad < 5 {
				t.Errorf("Lookup(%#x) = %q, want one of %v", addr, got, want)
			}
		}
	}
	t.Logf("%d functions, %d bytes, %d differ", len(names), k.Bytes(), bad)
}
