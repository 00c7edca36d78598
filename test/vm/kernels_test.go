//go:build kernels

package vm

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the table of docs/kernels.md")

// bareRoot are the packages of the guests of this file: a shell's usual company, and compilers, with which tests build their programs.
var bareRoot = []string{"gcc", "g++", "libc6-dev", "musl-tools", "util-linux"}

// suite is those of a package's tests that run in every kernel: what asks something of a kernel, once. The verifier takes seconds for
// each load of the programs here, and the lane minutes. The registry's tests are not among them: nothing in them is the kernel's.
type suite struct {
	pkg  string // below the module's root
	tags string
	run  string // -test.run
}

var suites = []suite{
	{"test/vm/features", "guest", ""},
	{"runtime/cgroupfs", "root", ""},
	{"bpf/process", "root", ""},
	{"bpf/symbol", "root", "^TestTheRunningKernel$"},
	{"bpf/sampler", "root", "^Test(BusyCgroupIsSampledAndNothingElse|NestedCgroupBelongsToItsContainer|ScopeChangesTakeEffectAtOnce|ExecAndExitAreTold|LanguagesLoad)$"},
	{"bpf/unwind", "root", "^Test(StacksWithoutFramePointers|FilesOfAContainer|BinaryDeletedUnderItsProcess)$/^(PIE|pivot_root|chroot)$"},
}

// signed are the tests of the walk that run once more, or once on arm64, where return addresses are signed.
var signed = []suite{
	{"bpf/unwind", "root", "^Test(StacksWithoutFramePointers|StackOfAStrippedProgram)$/^PIE$"},
	{"bpf/unwind/native/replay", "", "^TestStacksOfKnownCallsAreExact$/^(O3|O0|coroutine)$"},
}

// guestScript runs the suites in the guest, one after the other, and says how each ended.
const guestScript = `
ulimit -c 0
mkdir -p /tmp/t
export TMPDIR=/tmp/t
failed=0
if [[ ${1-} == signed ]]; then
	# Compilers that sign return addresses and mark where jumps may land; that they do, and that this processor heeds it, is seen first.
	mkdir /tmp/bin
	for c in gcc g++; do printf '#!/bin/sh\nexec /usr/bin/%s -mbranch-protection=standard "$@"\n' $c >/tmp/bin/$c; chmod +x /tmp/bin/$c; done
	export PATH=/tmp/bin:$PATH
	echo 'void f(void); int main(void) { f(); return 0; }' | gcc -O2 -S -x c -o - - | grep -q paciasp || { echo "gcc signs nothing"; exit 1; }
	grep -qw paca /proc/cpuinfo && grep -qw bti /proc/cpuinfo || { echo "the processor has no pointer authentication or no BTI"; exit 1; }
fi
while IFS='~' read -r pkg run; do
	cd /host/"$pkg"
	start=$SECONDS status=pass
	"/host/$pkg/package.test" -test.v -test.count=1 -test.run="$run" -test.timeout=8m </dev/null || status=FAIL failed=1
	echo "suite $pkg took $((SECONDS - start)) s: $status"
done </host/suites
exit $failed
`

// machines are the columns of the table.
var machines = []struct {
	kernel, name string
	cpu          string // of a boot of its own, after the first, with the suites of signed
}{
	{kernel: Kernel6_1, name: "amd64 6.1"},
	{kernel: Kernel6_12, name: "amd64 6.12"},
	{kernel: Kernel6_1ARM64, name: "arm64 6.1"},
	{kernel: Kernel6_12ARM64, name: "arm64 6.12", cpu: "max,pauth-impdef=on"},
}

// The kernel side, and what reads the kernel, in each of Debian's kernels on both processors; once more on arm64 with signed return
// addresses. What each kernel has is the table of docs/kernels.md. Two guests run at a time, for there are two processors.
func TestKernels(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("making a guest's root needs root: run as root")
	}
	ctx := t.Context()
	if deadline, ok := t.Deadline(); ok { // earlier than the test's own, so that the guest's console is shown
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-15*time.Second))
		defer cancel()
	}
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf("kernels: "+format+"\n", args...)
	}
	dir := t.TempDir()
	var cells [4]map[string]string // by machine and row
	var rows []string
	all := true
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, 2)
	// start runs suites in a guest when there is a slot for it.
	start := func(g *Guest, name, cpu, mode string, list []suite, done func(out []byte)) {
		files := guestFiles(t, ctx, filepath.Join(dir, strings.ReplaceAll(name, " ", "-")+mode), g.arch, list)
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			var out bytes.Buffer
			prefixed := &lines{out: writer(func(p []byte) { say("%s: %s", name, bytes.TrimSpace(p)) })}
			err := g.Run(ctx, Job{Command: []string{"bash", "/host/guest.sh", mode}, Files: files, Paced: true, CPU: cpu, Output: io.MultiWriter(&out, prefixed)})
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if done != nil {
				done(out.Bytes())
			}
		})
	}
	for i, m := range machines {
		if only := os.Getenv("STOKER_VM_KERNEL"); only != "" && only != m.name {
			all = false
			continue
		}
		g, err := Build(ctx, Config{Kernel: m.kernel, Bare: true, Packages: bareRoot, Modules: []string{"overlay"}, Log: say})
		if err != nil {
			t.Fatal(err)
		}
		start(g, m.name, "", "", suites, func(out []byte) {
			mu.Lock()
			defer mu.Unlock()
			cells[i] = map[string]string{}
			for line := range strings.Lines(string(out)) {
				line = strings.TrimSpace(line)
				cell, ok := strings.CutPrefix(line, "kernel-table: ")
				row, value, ok2 := strings.Cut(cell, " = ")
				if name, ended, isSuite := strings.Cut(strings.TrimPrefix(line, "suite "), " took "); isSuite && strings.HasPrefix(line, "suite ") {
					_, value, ok = strings.Cut(ended, ": ")
					row, ok2 = "tests of `"+name+"`", !strings.HasPrefix(name, "test/")
				}
				if !ok || !ok2 {
					continue
				}
				cells[i][row] = value
				if !slices.Contains(rows, row) {
					rows = append(rows, row)
				}
			}
		})
		if m.cpu != "" {
			start(g, m.name+" signed", m.cpu, "signed", signed, nil)
		}
	}
	running.Wait()
	if t.Failed() || !all || ctx.Err() != nil {
		return
	}
	var table strings.Builder
	head, rule := "| |", "|---|"
	for _, m := range machines {
		head, rule = head+" "+m.name+" |", rule+"---|"
	}
	table.WriteString(head + "\n" + rule + "\n")
	for _, row := range rows {
		fmt.Fprintf(&table, "| %s |", row)
		for i := range machines {
			value := cells[i][row]
			if value == "" {
				t.Errorf("%s does not say: %s", machines[i].name, row)
			}
			fmt.Fprintf(&table, " %s |", value)
		}
		table.WriteString("\n")
	}
	if err := checkTable(filepath.Join("..", "..", "docs", "kernels.md"), table.String()); err != nil {
		t.Error(err)
	}
}

// checkTable compares the table in a file with what was found, or puts it there.
func checkTable(path, table string) error {
	const begin, end = "<!-- kernels: make test-kernels KERNELS=-update -->\n", "<!-- /kernels -->\n"
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(b), begin)
	old, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return errors.New(path + " has no place for the table")
	}
	if old == table {
		return nil
	}
	if *update {
		return os.WriteFile(path, []byte(before+begin+table+end+after), 0o644)
	}
	return fmt.Errorf("%s says:\n%s\nThe kernels say:\n%s\nRun: make test-kernels KERNELS=-update", path, old, table)
}

// writer makes a function an [io.Writer].
type writer func(p []byte)

func (w writer) Write(p []byte) (int, error) { w(p); return len(p), nil }

// guestFiles builds the tests for a processor and says where they belong in a guest.
func guestFiles(t *testing.T, ctx context.Context, dir, arch string, list []suite) map[string]string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	var script strings.Builder
	for _, s := range list {
		if only := os.Getenv("STOKER_VM_RUN"); only != "" && s.pkg != only {
			continue
		}
		out := filepath.Join(dir, strings.ReplaceAll(s.pkg, "/", "-"))
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-tags", s.tags, "-ldflags=-s -w", "-o", out, "github.com/stoker-profiler/stoker/"+s.pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, text)
		}
		files[s.pkg+"/package.test"] = out
		testdata := filepath.Join("..", "..", s.pkg, "testdata")
		if _, err := os.Stat(testdata); err == nil {
			files[s.pkg+"/testdata"] = testdata
		}
		fmt.Fprintf(&script, "%s~%s\n", s.pkg, s.run)
	}
	for name, text := range map[string]string{"guest.sh": guestScript, "suites": script.String()} {
		files[name] = filepath.Join(dir, name)
		if err := os.WriteFile(files[name], []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return files
}
