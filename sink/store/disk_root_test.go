//go:build root

package store

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/sink"
)

// tmpfs mounts a file system of its own size for t.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatalf("mount a tmpfs: %v: run as root", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fillDisk writes a file until nothing more fits.
func fillDisk(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 64 << 10; size >= 4096; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, unix.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestDiskThatOthersFill(t *testing.T) {
	dir := tmpfs(t, "16m")
	clock := newClock()
	w := newWorkload(3, 1000, 1000, 16)
	s := open(t, clock, func(c *Config) { c.Path = filepath.Join(dir, "profiles.db") })
	for range 20 {
		write(t, s, w.window(t, clock, "cart", 300))
		clock.pass(10 * time.Second)
	}
	filler := filepath.Join(dir, "filler")
	fillDisk(t, filler)
	var err error
	for n := 0; err == nil; n++ {
		if n > 1000 {
			t.Fatal("a full disk takes windows for ever")
		}
		err = s.Write(context.Background(), []sink.Profile{w.window(t, clock, "cart", 300)})
		clock.pass(10 * time.Second)
	}
	if !errors.Is(err, ErrFull) {
		t.Fatalf("%v, want ErrFull", err)
	}
	if got := selected(t, s, Query{}); len(got) == 0 {
		t.Error("nothing is readable while the disk is full")
	}
	if err := s.Maintain(context.Background()); err != nil && !errors.Is(err, ErrFull) {
		t.Errorf("maintenance on a full disk: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	before := sum(selected(t, s, Query{}))
	p := w.window(t, clock, "cart", 300)
	write(t, s, p)
	if got := sum(selected(t, s, Query{})); got != before+p.Total {
		t.Errorf("after the disk had room again the store has %d, want %d", got, before+p.Total)
	}
	if err := s.Check(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestStoreNeverFillsADisk(t *testing.T) {
	dir := tmpfs(t, "16m")
	clock := newClock()
	w := newWorkload(3, 1000, 1000, 16)
	s := open(t, clock, func(c *Config) { c.Path, c.MinFree = filepath.Join(dir, "profiles.db"), 0.2 })
	var last sink.Profile
	for range 600 {
		last = w.window(t, clock, "cart", 300)
		write(t, s, last)
		clock.pass(10 * time.Second)
		if free, total, err := freeSpace(dir); err != nil || float64(free) < 0.15*float64(total) {
			t.Fatalf("%d bytes of %d free (%v), a fifth must stay", free, total, err)
		}
	}
	got := selected(t, s, Query{})
	if n := evicted(s.Stats(), "disk", false); n == 0 || len(got)+int(n) != 600 || !got[0].End.Equal(last.End) {
		t.Errorf("%d profiles left, %d evicted", len(got), n)
	}
}

// Without any room at the start there is an error that says so, and no half-made file that keeps a later start from working.
func TestStartOnAFullDisk(t *testing.T) {
	dir := tmpfs(t, "1m")
	filler := filepath.Join(dir, "filler")
	fillDisk(t, filler)
	path := filepath.Join(dir, "profiles.db")
	_, err := Open(Config{Path: path, Clock: newClock()})
	if !errors.Is(err, ErrFull) {
		t.Fatalf("%v, want ErrFull", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	clock := newClock()
	s := open(t, clock, func(c *Config) { c.Path = path })
	write(t, s, small().window(t, clock, "cart", 5))
	if s.Stats().CorruptFiles != 0 {
		t.Error("the file of the failed start was taken for a corrupt one")
	}
}

// A user without any rights reads what the modes allow, with and without an agent, and is told what to do where they do not.
func TestOtherUserReads(t *testing.T) {
	dir, err := os.MkdirTemp("", "stoker-store-") // t.TempDir is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	bin, path := filepath.Join(dir, "reader"), filepath.Join(dir, "profiles.db")
	if err := errors.Join(os.WriteFile(bin, self, 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	read := func() string {
		t.Helper()
		cmd := exec.Command(bin)
		cmd.Env = []string{"STOKER_TEST_READER=" + path}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
			t.Fatal(err)
		}
		return string(out)
	}
	clock := newClock()
	s := open(t, clock, func(c *Config) { c.Path = path })
	write(t, s, small().window(t, clock, "cart", 5))
	if got := read(); !strings.Contains(got, "permission denied") || !strings.Contains(got, "run as root") {
		t.Errorf("not for others: %q", got)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Chmod(path+suffix, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := read(); got != "1 profiles\n" {
		t.Errorf("with an agent: %q", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := read(); got != "1 profiles\n" {
		t.Errorf("without an agent: %q", got)
	}
}
