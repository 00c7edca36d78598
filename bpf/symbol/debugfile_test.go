package symbol

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// The debug file of a stripped program is found by the rules of GDB, and no other file is taken for it.
func TestSeparateDebugFiles(t *testing.T) {
	dir := t.TempDir()
	strip := func(name string, flags ...string) (program, debug string) {
		program, debug = filepath.Join(dir, name), filepath.Join(dir, name+".debug")
		run(t, "g++", append(flags, "-O2", "-g", "-o", program, "testdata/inlines/inlines.cc")...)
		run(t, "objcopy", "--only-keep-debug", program, debug)
		run(t, "objcopy", "--strip-all", "--add-gnu-debuglink="+debug, program)
		return program, debug
	}
	verify := func(d DebugSource, file string) error {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		return d.Verify(f)
	}
	withID, idDebug := strip("with-id", "-Wl,--build-id=0x0123456789abcdef")
	withLink, linkDebug := strip("with-link", "-Wl,--build-id=none", "-DOTHER")

	d := parseFile(t, withID).DebugSource()
	if d.Inside || !d.Elsewhere() {
		t.Fatalf("%+v", d)
	}
	want := []string{"/usr/lib/debug/.build-id/01/23456789abcdef.debug", "/app/bin/with-id.debug", "/app/bin/.debug/with-id.debug",
		"/usr/lib/debug/app/bin/with-id.debug"}
	if got := d.Paths("/app/bin/with-id"); !reflect.DeepEqual(got, want) {
		t.Errorf("paths %q", got)
	}
	if err := verify(d, idDebug); err != nil {
		t.Error(err)
	}
	if err := verify(d, linkDebug); !errors.Is(err, ErrOtherDebugFile) {
		t.Errorf("a file without a build id: %v", err)
	}
	d = parseFile(t, withLink).DebugSource()
	if got := d.Paths("/x/with-link"); len(got) != 3 || got[0] != "/x/with-link.debug" {
		t.Errorf("paths %q", got)
	}
	if err := verify(d, linkDebug); err != nil {
		t.Error(err)
	}
	if err := verify(d, idDebug); !errors.Is(err, ErrOtherDebugFile) {
		t.Errorf("a file with another checksum: %v", err)
	}
	if d := parseFile(t, idDebug).DebugSource(); !d.Inside || d.Elsewhere() {
		t.Errorf("the debug file itself: %+v", d)
	}
}
