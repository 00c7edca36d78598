package symbol

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const kallsyms = `0000000000000000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81000000 T startup_64
ffffffff81000040 t local_name
ffffffff81000040 T global_name
ffffffff81000080 T __x64_sys_read
ffffffff81000080 T sys_read
ffffffff81000100 W weak_name
ffffffff81000200 T _etext
ffffffff82000000 D some_data
ffffffffc0000000 t ext4_read	[ext4]
ffffffffc0000100 T ext4_write	[ext4]
ffffffffc0000200 d ext4_data	[ext4]
ffffffffc0001000 t xfs_read	[xfs]
ffffffffc0900000 t bpf_prog_6deef7357e7b4530_sd_devices	[bpf]
ffffffff81000140 t out_of_order
`

// proc makes a proc directory with the given kallsyms.
func proc(t testing.TB, kallsyms string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "kallsyms"), []byte(kallsyms))
	return dir
}

func TestKernelAddressesAreNamed(t *testing.T) {
	k, err := NewKernel(proc(t, kallsyms))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		addr         uint64
		name, module string
		ok           bool
	}{
		{0xffffffff80ffffff, "", "", false},
		{0xffffffff81000000, "startup_64", "", true},
		{0xffffffff8100003f, "startup_64", "", true},
		{0xffffffff81000040, "global_name", "", true},
		{0xffffffff81000090, "sys_read", "", true},
		{0xffffffff81000110, "weak_name", "", true},
		{0xffffffff81000150, "out_of_order", "", true},
		{0xffffffff82000010, "", "", false}, // data
		{0xffffffffc0000010, "ext4_read", "ext4", true},
		{0xffffffffc0000210, "", "", false}, // data of a module ends its code
		{0xffffffffc0001010, "xfs_read", "xfs", true},
		{0xffffffffc0101000, "", "", false}, // too far from anything
		{0xffffffffc0900010, "bpf_prog_6deef7357e7b4530_sd_devices", "bpf", true},
		{0, "", "", false}, {^uint64(0), "", "", false},
	} {
		if name, module, ok := k.Lookup(c.addr); name != c.name || module != c.module || ok != c.ok {
			t.Errorf("Lookup(%#x) = %q, %q, %v, want %q, %q, %v", c.addr, name, module, ok, c.name, c.module, c.ok)
		}
	}
}

func TestRefreshSeesNewModules(t *testing.T) {
	dir := proc(t, kallsyms)
	k, err := NewKernel(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Refresh(); err != nil || k.Generation() != 0 {
		t.Errorf("nothing changed: %v, generation %d, want 0", err, k.Generation())
	}
	write(t, filepath.Join(dir, "kallsyms"), []byte(kallsyms+"ffffffffc0a00000 t new_function\t[new]\n"))
	if err := k.Refresh(); err != nil || k.Generation() != 1 {
		t.Errorf("a module was loaded: %v, generation %d, want 1", err, k.Generation())
	}
	if name, module, ok := k.Lookup(0xffffffffc0a00010); name != "new_function" || module != "new" || !ok {
		t.Errorf("%q, %q, %v, want new_function of new", name, module, ok)
	}
	if err := os.Remove(filepath.Join(dir, "kallsyms")); err != nil {
		t.Fatal(err)
	}
	if err := k.Refresh(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without kallsyms: %v", err)
	}
	if _, _, ok := k.Lookup(0xffffffffc0a00010); !ok {
		t.Error("the symbols were lost with a failed refresh")
	}
}

func TestHiddenKernelAddressesAreAnErrorWithTheRemedy(t *testing.T) {
	var b strings.Builder
	for i := range 10 {
		fmt.Fprintf(&b, "%016x T function_%d\n", 0, i)
	}
	_, err := NewKernel(proc(t, b.String()))
	if !errors.Is(err, ErrKernelHidden) || !strings.Contains(err.Error(), "CAP_SYSLOG") {
		t.Errorf("%v, want ErrKernelHidden that names CAP_SYSLOG", err)
	}
	for name, text := range map[string]string{
		"empty":     "",
		"nonsense":  "hello\n",
		"no name":   "ffffffff81000000 T\n",
		"long line": strings.Repeat("f", 1<<20),
		"bad digit": "fffffffg81000000 T x\n",
	} {
		if k, err := NewKernel(proc(t, text)); err == nil {
			t.Errorf("%s: no error, %d bytes", name, k.Bytes())
		}
	}
}

func TestTheVDSOHasItsFunctions(t *testing.T) {
	o, err := VDSO()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for i, s := range o.table.starts {
		found = found || o.table.names[i] != hole && strings.Contains(nameAt(o, o.table.base+Address(s)), "clock_gettime")
	}
	if !found {
		t.Errorf("no clock_gettime in\n%s", o.table.describe())
	}
	if again, _ := VDSO(); again != o {
		t.Error("the vDSO was read twice")
	}
}
