//go:build guest

package features

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
)

// Each line is "kernel-table: ROW = VALUE". A row that cannot be found out is an error: it would look as if it were lacking.
func TestWhatThisKernelHas(t *testing.T) {
	row := func(name, value string) { fmt.Printf("kernel-table: %s = %s\n", name, value) }
	has := func(name string, err error) {
		switch {
		case err == nil:
			row(name, "yes")
		case errors.Is(err, ebpf.ErrNotSupported):
			row(name, "no")
		default:
			t.Errorf("%s: %v", name, err)
		}
	}
	has("perf_event programs", features.HaveProgramType(ebpf.PerfEvent))
	has("ring buffer", features.HaveMapType(ebpf.RingBuf))
	has("ancestor cgroup ids at a tick", features.HaveProgramHelper(ebpf.PerfEvent, asm.FnGetCurrentAncestorCgroupId))
	has("user registers at a tick (`bpf_task_pt_regs`)", features.HaveProgramHelper(ebpf.PerfEvent, asm.FnTaskPtRegs))
	has("`bpf_loop`", features.HaveProgramHelper(ebpf.PerfEvent, asm.FnLoop))
	has("user ring buffer", features.HaveMapType(ebpf.UserRingbuf))
	has("task storage", features.HaveMapType(ebpf.TaskStorage))
	has("cgroup storage", features.HaveMapType(ebpf.CgroupStorage))
	has("arena", features.HaveMapType(ebpf.Arena))
	has("instruction set v4", features.HaveV4ISA())
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bpf_task_get_cgroup1", "bpf_cgroup_from_id", "bpf_iter_num_new", "bpf_iter_task_vma_new", "bpf_wq_init"} {
		var f *btf.Func
		err := kernel.TypeByName(name, &f)
		if errors.Is(err, btf.ErrNotFound) {
			err = ebpf.ErrNotSupported
		}
		has("kfunc `"+name+"`", err)
	}
	for _, setting := range []string{"kernel/perf_event_paranoid", "kernel/unprivileged_bpf_disabled", "kernel/kptr_restrict"} {
		b, err := os.ReadFile("/proc/sys/" + setting)
		if err != nil {
			t.Error(err)
			continue
		}
		row("`"+strings.ReplaceAll(setting, "/", ".")+"`", strings.TrimSpace(string(b)))
	}
	b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		t.Fatal(err)
	}
	row("controllers of cgroup v2", strings.TrimSpace(string(b)))
}
