//go:build kernels

package vm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// bareRoot are the packages of the guests of this file: a shell's usual company, and compilers, with which tests build their programs.
var bareRoot = []string{"gcc", "g++", "libc6-dev", "musl-tools", "util-linux"}

// suite is a package's tests that run in every kernel.
type suite struct {
	pkg  string // below the module's root
	run  string // -test.run
	skip string // -test.skip, with the reason beside it
}

var suites = []suite{
	{pkg: "bpf/sampler"},
	{pkg: "bpf/unwind/native", run: "TestTablesThatDoNotFit"},
	{pkg: "bpf/unwind"},
	{pkg: "bpf/unwind/native/replay"},
	{pkg: "bpf/process"},
	{pkg: "bpf/symbol", run: "TestTheRunningKernel"},
	{pkg: "runtime/cgroupfs"},
	{pkg: "runtime/registry"},
}

// guestScript runs the suites in the guest, one after the other, and says how each ended.
const guestScript = `
ulimit -c 0
mkdir -p /tmp/t
export TMPDIR=/tmp/t
failed=0
while IFS='|' read -r pkg run skip; do
	cd /host/"$pkg"
	start=$SECONDS
	echo "=== SUITE $pkg"
	"/host/$pkg/package.test" -test.v -test.count=1 -test.run="$run" -test.skip="$skip" -test.timeout=10m </dev/null || failed=1
	echo "=== TOOK $pkg $((SECONDS - start)) s"
done </host/suites
exit $failed
`

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
	for _, arch := range []string{"amd64", "arm64"} {
		files := guestFiles(t, ctx, dir, arch)
		var done sync.WaitGroup
		for _, kernel := range []string{"linux-image-cloud-" + arch, "linux-image-6.12-cloud-" + arch} {
			if only := os.Getenv("STOKER_VM_KERNEL"); only != "" && only != kernel {
				continue
			}
			g, err := Build(ctx, Config{Kernel: kernel, Bare: true, Packages: bareRoot, Modules: []string{"overlay"}, Log: say})
			if err != nil {
				t.Fatal(err)
			}
			done.Go(func() {
				var out bytes.Buffer
				err := g.Run(ctx, Job{Command: []string{"bash", "/host/guest.sh"}, Files: files, Output: &out})
				if dir := os.Getenv("STOKER_VM_LOG"); dir != "" {
					os.WriteFile(filepath.Join(dir, kernel+".log"), out.Bytes(), 0o644)
				}
				if err != nil {
					t.Errorf("%s: %v\n%s", kernel, err, out.Bytes())
				}
			})
		}
		done.Wait()
	}
}

// guestFiles builds the tests for a processor and says where they belong in a guest.
func guestFiles(t *testing.T, ctx context.Context, dir, arch string) map[string]string {
	t.Helper()
	files := map[string]string{}
	var list strings.Builder
	for _, s := range suites {
		if only := os.Getenv("STOKER_VM_RUN"); only != "" && !strings.Contains(s.pkg, only) {
			continue
		}
		out := filepath.Join(dir, arch+"-"+strings.ReplaceAll(s.pkg, "/", "-"))
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "root", "-ldflags=-s -w", "-o", out, "github.com/stoker-profiler/stoker/"+s.pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, text)
		}
		files[s.pkg+"/package.test"] = out
		if testdata := filepath.Join("..", "..", s.pkg, "testdata"); exists(testdata) {
			files[s.pkg+"/testdata"] = testdata
		}
		fmt.Fprintf(&list, "%s|%s|%s\n", s.pkg, s.run, s.skip)
	}
	for name, text := range map[string]string{"guest.sh": guestScript, "suites": list.String()} {
		files[name] = filepath.Join(dir, arch+"-"+name)
		if err := os.WriteFile(files[name], []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
