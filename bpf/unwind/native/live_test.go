//go:build root

package native

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/sampler"
	"github.com/stoker-profiler/stoker/bpf/symbol"
	"github.com/stoker-profiler/stoker/bpf/unwind"
	"github.com/stoker-profiler/stoker/runtime/cgroupfs"
)

// handler joins sampler and symbolizer on one goroutine: these tests have few stacks.
type handler struct {
	*unwind.Symbolizer
	stacks map[string]uint64 // samples by the names of user frames, outermost first
}

func (h *handler) ProcessesLost() { h.Sweep() }
func (h *handler) Window(w sampler.Window) {
	active := map[process.ID]uint32{}
	for _, c := range w.Counts {
		active[c.Key.Process] = c.Key.Scope
		locations, _ := h.Locations(c.Key)
		var names []string
		for _, l := range locations {
			if !strings.HasPrefix(l.Mapping.File, "[kernel") {
				names = append([]string{l.Line[0].Function.Name}, names...)
			}
		}
		h.stacks[strings.Join(names, ";")] += c.N
	}
	h.WindowEnd(active)
}

// manyPages is a program of as many functions as it has pages of text with 8,000 rows each. work runs in each for a tenth of a
// second, called from its middle, where the stack is as deep as only the row there knows.
func manyPages(t *testing.T, functions int) string {
	t.Helper()
	var s strings.Builder
	s.WriteString(".text\n")
	for i := range functions {
		frame := 16 + 16*(i%100)
		fmt.Fprintf(&s, ".p2align 16\n.globl page_%[1]d\n.type page_%[1]d,@function\npage_%[1]d:\n.cfi_startproc\n", i)
		if runtime.GOARCH == "arm64" {
			s.WriteString("b 1f\n.rept 2000\nnop\n.cfi_def_cfa_offset 32\nnop\n.cfi_def_cfa_offset 0\n.endr\n")
			fmt.Fprintf(&s, "1: sub sp, sp, #%[1]d\n.cfi_def_cfa_offset %[1]d\nstr x30, [sp]\n.cfi_offset 30, -%[1]d\nbl work\n"+
				"ldr x30, [sp]\n.cfi_restore 30\nadd sp, sp, #%[1]d\n.cfi_def_cfa_offset 0\nret\n", frame)
			s.WriteString(".rept 2000\nnop\n.cfi_def_cfa_offset 48\nnop\n.cfi_def_cfa_offset 0\n.endr\n")
		} else {
			s.WriteString("jmp 1f\n.rept 2000\nnop\n.cfi_def_cfa_offset 32\nnop\n.cfi_def_cfa_offset 8\n.endr\n")
			fmt.Fprintf(&s, "1: sub $%[1]d, %%rsp\n.cfi_def_cfa_offset %[2]d\ncall work\nadd $%[1]d, %%rsp\n.cfi_def_cfa_offset 8\nret\n", frame-8, frame)
			s.WriteString(".rept 2000\nnop\n.cfi_def_cfa_offset 48\nnop\n.cfi_def_cfa_offset 8\n.endr\n")
		}
		fmt.Fprintf(&s, ".cfi_endproc\n.size page_%[1]d,.-page_%[1]d\n", i)
	}
	var c strings.Builder
	c.WriteString("#include <time.h>\nstatic volatile unsigned long sink;\n" +
		"static long now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000 + t.tv_nsec / 1000000; }\n" +
		"__attribute__((noinline)) void work(void) { for (long end = now() + 100; now() < end;) for (int i = 0; i < 100000; i++) sink += i; }\n")
	for i := range functions {
		fmt.Fprintf(&c, "void page_%d(void);\n", i)
	}
	c.WriteString("int main(void) {\n")
	for range 2 { // the second time what was evicted is built again
		for i := range functions {
			fmt.Fprintf(&c, "page_%d();\n", i)
		}
	}
	c.WriteString("return 0;\n}\n")
	dir := t.TempDir()
	for name, text := range map[string]string{"pages.s": s.String(), "main.c": c.String()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(dir, "pages")
	if msg, err := exec.Command("gcc", "-O2", "-fomit-frame-pointer", "-no-pie", "-Wa,--noexecstack", "-o", out, filepath.Join(dir, "main.c"), filepath.Join(dir, "pages.s")).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, msg)
	}
	return out
}

// A program whose tables are larger than the room for them: rows are evicted and built again while it is walked by them, and its
// stacks stay right.
func TestTablesThatDoNotFit(t *testing.T) {
	const functions = 40 // 320,000 rows, and there is room for 262,144
	program := manyPages(t, functions)
	h, err := cgroupfs.Detect()
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("/stoker-test-%d-tables", os.Getpid())
	dir := filepath.Join(h.Mount, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer func() {
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if err := unix.Rmdir(dir); err == nil || time.Now().After(deadline) {
				if err != nil {
					t.Error(err)
				}
				return
			}
		}
	}()
	id, err := h.ID(name)
	if err != nil {
		t.Fatal(err)
	}
	u := &Unwinder{sizes: sizes{spaceBanks: 1, rowBanks: 1, pages: 4096, missBytes: 4096}}
	s, err := sampler.Open(sampler.Config{FrequencyHz: 297, CgroupController: h.Controller, Unwinders: []unwind.Unwinder{u}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Scopes().Add(id, 1); err != nil {
		t.Fatal(err)
	}
	l := &handler{stacks: map[string]uint64{}, Symbolizer: unwind.NewSymbolizer(unwind.SymbolizerConfig{
		Unwinders: []unwind.Unwinder{u}, Cache: symbol.NewCache(24 << 20), Current: s.Current, RaiseEpoch: s.RaiseEpoch, SetSpace: s.SetSpace,
	})}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- u.Run(ctx) }()
	go func() { ended <- s.Run(ctx, 500*time.Millisecond, l) }()
	cmd := exec.Command("sh", "-c", `echo $$ >"$0"/cgroup.procs && exec "$1"`, dir, program)
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %v\n%s", cmd.Args, err, msg)
	}
	stop()
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	right, wrong, cut := uint64(0), uint64(0), uint64(0)
	seen := map[string]bool{}
	for stack, n := range l.stacks {
		frames := strings.Split(stack, ";")
		if frames[len(frames)-1] != "work" {
			continue
		}
		page := frames[max(0, len(frames)-2)]
		switch {
		case strings.HasPrefix(stack, "_start;") && strings.HasSuffix(stack, ";main;"+page+";work") && strings.HasPrefix(page, "page_"):
			right += n
			seen[page] = true
		case frames[0] == unwind.Truncated:
			cut += n
		default:
			wrong += n
			t.Logf("%4d %s", n, stack)
		}
	}
	k, err := s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	st := l.Stats().Unwinders["native"]
	t.Logf("%d right, %d cut, %d wrong; %d pages built, %d evicted, %d asked for; events %v", right, cut, wrong, st["pages_built"], st["pages_evicted"], st["pages_asked"], k.Events)
	// The first samples in each page are cut, and more while room is made: how many depends on the machine.
	// Before the kernel side knows the program's mappings its frame pointer is believed.
	if wrong > k.Events["no_space"] || len(seen) < functions/2 {
		t.Errorf("%d right, %d cut, %d wrong, %d functions of %d seen", right, cut, wrong, len(seen), functions)
	}
	if st["pages_evicted"] == 0 || st["grace_periods"] == 0 || st["pages_asked"] == 0 || k.Events["rows_missing"] == 0 {
		t.Errorf("nothing was evicted or asked for: %v", st)
	}
}
