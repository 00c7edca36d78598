//go:build root

package unwind_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/bpf/process"
)

// These tests need root: for /proc/PID/map_files, other roots and mount namespaces.

func TestBinaryReplacedUnderItsProcess(t *testing.T) {
	file := build(t, "target", "target.c", "-pie", "-fPIE", "-pthread")
	p := start(t, exec.Command(file))
	stranger := build(t, "stranger", "library.c", "-shared", "-fPIC", "-DNAME=stranger")
	if err := os.Rename(stranger, file); err != nil {
		t.Fatal(err)
	}
	if got := newBench(t, nil).resolve(p, p.at["leaf"]); got != "leaf" {
		t.Errorf("got %s", got)
	}
	// By its path the file is another one now, and not to be believed.
	var r process.Reader
	for _, m := range mappings(t, p.id) {
		if m.Executable && m.Path == file {
			if !m.Deleted {
				t.Errorf("%+v is not marked as deleted", m)
			}
			if _, err := r.OpenPath(p.id.PID, &m); !errors.Is(err, process.ErrReplaced) {
				t.Errorf("by path: got %v, want %v", err, process.ErrReplaced)
			}
		}
	}
}

func TestBinaryDeletedUnderItsProcess(t *testing.T) {
	file := build(t, "target", "target.c", "-pie", "-fPIE", "-pthread")
	p := start(t, exec.Command(file))
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	got := newBench(t, nil).stack(p.id, scope, nil, frame(p.at["leaf"], false))
	if names(got) != "leaf" || got[0].Mapping.File != file {
		t.Errorf("got %s in %s", names(got), got[0].Mapping.File)
	}
}

func TestProgramThatNeverWasAFile(t *testing.T) {
	text, err := os.ReadFile(build(t, "target", "target.c", "-pie", "-fPIE", "-pthread"))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.MemfdCreate("ghost", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "ghost")
	defer f.Close()
	if _, err := f.Write(text); err != nil {
		t.Fatal(err)
	}
	p := start(t, exec.Command(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)))
	got := newBench(t, nil).stack(p.id, scope, nil, frame(p.at["leaf"], false))
	if names(got) != "leaf" || got[0].Mapping.File != "/memfd:ghost" {
		t.Errorf("got %s in %s", names(got), got[0].Mapping.File)
	}
}

func TestExecutableMemoryThatIsNoELF(t *testing.T) {
	p := start(t, exec.Command(build(t, "target", "target.c", "-pthread")))
	data := filepath.Join(t.TempDir(), "code.bin")
	if err := os.WriteFile(data, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	at := p.do("map %s 0 2000 0", data)
	got := newBench(t, nil).stack(p.id, scope, nil, frame(at, false), frame(at+77, true))
	if names(got) != "[jit] [jit]" || got[0].Mapping.File != data {
		t.Errorf("got %s in %s", names(got), got[0].Mapping.File)
	}
}

// A container's root: an overlay in a mount namespace of its own, as a runtime makes it; and a chroot there, as some
// programs do it themselves.
func TestFilesOfAContainer(t *testing.T) {
	for _, c := range []struct{ name, start string }{
		{"pivot_root", "cd merged; exec ./app/target pivot"},
		{"chroot", "exec chroot merged /app/target"},
	} {
		t.Run(c.name, func(t *testing.T) { testFilesOfAContainer(t, c.start) })
	}
}

func testFilesOfAContainer(t *testing.T, how string) {
	file := build(t, "target", "target.c", "-static", "-pthread", "-w")
	dir := t.TempDir()
	script := `set -e
mount -t tmpfs tmpfs "$1"
cd "$1"
mkdir lower upper work merged
mkdir lower/app
cp "$2" lower/app/target
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged
` + how
	p := start(t, exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", dir, file))
	if _, err := os.Stat("/app/target"); err == nil {
		t.Fatal("the host has an /app/target, which this test must tell from the container's")
	}
	got := newBench(t, nil).stack(p.id, scope, nil, frame(p.at["leaf"], false))
	if names(got) != "leaf" || !strings.HasSuffix(got[0].Mapping.File, "/app/target") {
		t.Errorf("got %s in %s", names(got), got[0].Mapping.File)
	}

	// Without the right to use map_files the path has to do, in the process's own root.
	var r process.Reader
	var code process.Mapping
	for _, m := range mappings(t, p.id) {
		if m.Executable && strings.HasSuffix(m.Path, "/app/target") {
			code = m
		}
	}
	open := func() error {
		f, err := r.OpenPath(p.id.PID, &code)
		if err == nil {
			f.Close()
		}
		return err
	}
	if err := open(); err != nil {
		t.Error(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/root/app/target", p.id.PID), &st); err != nil {
		t.Fatal(err)
	}
	t.Logf("maps say %d:%d inode %d, stat says %d:%d inode %d", code.Major, code.Minor, code.Inode,
		unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)

	// An upgrade inside the container.
	root := fmt.Sprintf("/proc/%d/root/app/", p.id.PID)
	for _, step := range []struct {
		do   func() error
		want error
	}{
		{func() error { return os.Rename(root+"target", root+"target.old") }, process.ErrGone},
		{func() error { return os.WriteFile(root+"target", []byte("new"), 0o700) }, process.ErrReplaced},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if err := open(); !errors.Is(err, step.want) {
			t.Errorf("got %v, want %v", err, step.want)
		}
	}
	if got := newBench(t, nil).resolve(p, p.at["main"]); got != "main" {
		t.Errorf("after the upgrade: got %s", got)
	}
	p.kill()
	// Nothing of ours keeps the mount busy: it went with the last process in it.
	if text, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(text), dir) {
		t.Errorf("mounts are left: %v", err)
	}
}

// A short-lived process must be read before it is gone: what its exec record triggers has to be enough.
func TestProcessesThatLiveForAMoment(t *testing.T) {
	file := build(t, "target", "target.c", "-pie", "-fPIE", "-pthread")
	b := newBench(t, nil)
	for range 20 {
		p := start(t, exec.Command(file))
		b.Exec(p.id, scope)
		p.kill()
		if got := names(b.stack(p.id, scope, nil, frame(p.at["leaf"], false), frame(p.at["middle"], true))); got != "leaf middle" {
			t.Errorf("got %s", got)
		}
		b.Exit(p.id)
		b.WindowEnd(nil)
	}
	if n := b.Stats().Processes.Processes; n > 2 {
		t.Errorf("%d processes are remembered", n)
	}
}

// Nobody else can name a process's code.
func TestPerfMapOfAStranger(t *testing.T) {
	p := start(t, exec.Command(build(t, "target", "target.c", "-pthread")))
	data := filepath.Join(t.TempDir(), "code.bin")
	if err := os.WriteFile(data, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	at := p.do("map %s 0 2000 0", data)
	perfMapOf(t, p, fmt.Sprintf("%x 80 forged\n", at))
	if err := os.Chown(fmt.Sprintf("/tmp/perf-%d.map", p.id.PID), 65534, 65534); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, nil)
	b.resolve(p, at)
	for deadline := time.Now().Add(20 * time.Second); b.Stats().Unwinders["native"]["perf_maps_failed"] == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it was not refused")
		}
		b.WindowBegin()
	}
	if got := b.resolve(p, at); got != "[jit]" {
		t.Errorf("got %s", got)
	}
}
