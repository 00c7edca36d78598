package symbol

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// testRoot makes a root directory as a hostile container may have it.
func testRoot(t *testing.T) string {
	t.Helper()
	outside := t.TempDir()
	root := filepath.Join(outside, "root")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(root, "usr/lib"), 0o755))
	must(os.WriteFile(filepath.Join(root, "usr/lib/inside"), []byte("inside"), 0o644))
	must(os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o644))
	must(os.WriteFile(filepath.Join(root, "secret"), []byte("decoy"), 0o644))
	for name, target := range map[string]string{
		"absolute":  "/usr/lib/inside",
		"up":        "../../../../../../secret",
		"host":      filepath.Join(outside, "secret"), // exists on the host, not in the root
		"lib":       "usr/lib",
		"usr/back":  "../../../../usr/lib/inside",
		"loop":      "loop",
		"loop2":     "loop3",
		"loop3":     "loop2",
		"dangling":  "nowhere",
		"to_fifo":   "fifo",
		"proc_root": "/proc/self/root",
	} {
		must(os.Symlink(target, filepath.Join(root, name)))
	}
	must(unix.Mkfifo(filepath.Join(root, "fifo"), 0o644))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(err)
	defer unix.Close(fd)
	must(unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(root, "socket")}))
	return root
}

func TestPathsStayInTheRoot(t *testing.T) {
	root := testRoot(t)
	for path, want := range map[string]string{
		"/usr/lib/inside":             "inside",
		"usr/lib/inside":              "inside",
		"/absolute":                   "inside",
		"/lib/inside":                 "inside",
		"/usr/back":                   "inside",
		"/up":                         "decoy",
		"/../../../secret":            "decoy",
		"/usr/lib/../../../../secret": "decoy",
		"/usr/lib/../lib/./inside":    "inside",
	} {
		f, err := OpenInRoot(root, path)
		if err != nil {
			t.Errorf("OpenInRoot(%q): %v", path, err)
			continue
		}
		b, err := io.ReadAll(f)
		if err != nil || string(b) != want {
			t.Errorf("OpenInRoot(%q) reads %q, %v, want %q", path, b, err, want)
		}
		f.Close()
	}
	for path, want := range map[string]error{
		"/host":            os.ErrNotExist,
		"/dangling":        os.ErrNotExist,
		"/nothing":         os.ErrNotExist,
		"/loop":            unix.ELOOP,
		"/loop2":           unix.ELOOP,
		"/fifo":            ErrNotRegular,
		"/to_fifo":         ErrNotRegular,
		"/socket":          ErrNotRegular,
		"/usr/lib":         ErrNotRegular,
		"/":                ErrNotRegular,
		"/usr/lib/inside/": unix.ENOTDIR,
		"/proc_root":       os.ErrNotExist,
		"":                 os.ErrNotExist,
	} {
		f, err := OpenInRoot(root, path)
		if !errors.Is(err, want) {
			t.Errorf("OpenInRoot(%q) = %v, want %v", path, err, want)
		}
		if f != nil {
			f.Close()
		}
	}
	if _, err := OpenInRoot(filepath.Join(root, "nowhere"), "/x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a root that is gone: %v, want ErrNotExist", err)
	}
}

func TestDevicesAndMagicLinksAreNotOpened(t *testing.T) {
	for path, want := range map[string]error{
		"/dev/null":       ErrNotRegular,
		"/dev/zero":       ErrNotRegular,
		"/proc/self/exe":  unix.ELOOP, // RESOLVE_NO_MAGICLINKS
		"/proc/self/fd/0": unix.ELOOP,
	} {
		f, err := OpenInRoot("/", path)
		if !errors.Is(err, want) {
			t.Errorf("OpenInRoot(/, %q) = %v, want %v", path, err, want)
		}
		if f != nil {
			f.Close()
		}
	}
}

// TestOpeningAFIFOWakesNobody: a writer that waits for a reader must not notice that we looked.
func TestOpeningAFIFOWakesNobody(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	opened := make(chan error, 1)
	go func() {
		f, err := os.OpenFile(fifo, os.O_WRONLY, 0)
		if err == nil {
			err = f.Close()
		}
		opened <- err
	}()
	for range 50 {
		if _, err := OpenInRoot(filepath.Dir(fifo), "/fifo"); !errors.Is(err, ErrNotRegular) {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-opened:
		t.Errorf("the writer was woken: %v", err)
	default:
	}
	f, err := os.Open(fifo) // let it go
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
}

// TestFilesOfProcessesAreOpenedThroughTheirRoot opens our own program as the agent opens that of a container.
func TestFilesOfProcessesAreOpenedThroughTheirRoot(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f, err := OpenInRoot("/proc/"+strconv.Itoa(os.Getpid())+"/root", exe)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	o, err := NewCache(64 << 20).Load(f)
	if err != nil {
		t.Fatal(err)
	}
	if o.golang == nil {
		t.Error("our own program is not recognised as Go")
	}
}

func TestWithoutOpenat2NothingIsOpened(t *testing.T) {
	root := testRoot(t)
	_, err := openInRoot(root, "/usr/lib/inside", func(int, string, *unix.OpenHow) (int, error) { return -1, unix.ENOSYS })
	if !errors.Is(err, unix.ENOSYS) || !strings.Contains(err.Error(), "Linux 5.6") {
		t.Errorf("%v, want ENOSYS that names the kernel needed", err)
	}
	tries := 0
	f, err := openInRoot(root, "/usr/lib/inside", func(dir int, path string, how *unix.OpenHow) (int, error) {
		if tries++; tries < 3 {
			return -1, unix.EAGAIN // a rename raced with the lookup
		}
		return unix.Openat2(dir, path, how)
	})
	if err != nil {
		t.Fatalf("after %d tries: %v", tries, err)
	}
	f.Close()
}
