package symbol

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path"
	"strings"
)

const (
	// maxDebugLink is how long the section .gnu_debuglink may be: a file's name and a checksum.
	maxDebugLink = 4 << 10
	// maxChecked is how large a debug file may be that only a checksum over all of it identifies.
	maxChecked = 256 << 20
	// debugRoot is where all distributions keep debug files.
	debugRoot = "/usr/lib/debug"
)

// ErrOtherDebugFile is returned for a debug file that belongs to another build of the program.
var ErrOtherDebugFile = errors.New("debug file of another build")

// DebugSource says where the debug information of an object is.
type DebugSource struct {
	// Inside: in the file itself.
	Inside  bool
	buildID string
	link    string // name of a file with the debug information, and the checksum over it; "": not said
	crc     uint32
}

// DebugSource says where the debug information of o is.
func (o *Object) DebugSource() DebugSource { return o.debug }

// debugSource reads it.
func (m *image) debugSource() (DebugSource, error) {
	d := DebugSource{Inside: m.hasDebugInfo(), buildID: m.buildID}
	s := m.section(".gnu_debuglink")
	if d.Inside || !m.inFile(s) || s.size < 8 || s.size > maxDebugLink {
		return d, nil
	}
	b, err := m.src.bytes(s.off, s.size, maxDebugLink, "name of the debug file")
	if err != nil {
		return d, err
	}
	name := cstringAt(b, 0, maxDebugLink)
	at := (len(name) + 4) &^ 3 // after the terminating zero, aligned
	// It is a name and no path, or somebody wants to lead us somewhere.
	if name != "" && !strings.ContainsRune(name, '/') && name != ".." && at+4 <= len(b) {
		d.link, d.crc = name, binary.LittleEndian.Uint32(b[at:])
	}
	return d, nil
}

// Elsewhere reports whether debug information may be in a file of its own.
func (d DebugSource) Elsewhere() bool { return !d.Inside && (len(d.buildID) > 2 || d.link != "") }

// Paths lists where the separate debug file of an object may be that was loaded from the given path, best first, as GDB looks for
// it (GDB manual, "Debugging Information in Separate Files").
func (d DebugSource) Paths(file string) []string {
	var paths []string
	if len(d.buildID) > 2 {
		paths = append(paths, debugRoot+"/.build-id/"+d.buildID[:2]+"/"+d.buildID[2:]+".debug")
	}
	if d.link != "" {
		dir := path.Dir(path.Clean("/" + file))
		paths = append(paths, path.Join(dir, d.link), path.Join(dir, ".debug", d.link), path.Join(debugRoot, dir, d.link))
	}
	return paths
}

// Verify reports whether f is the debug file of this very build: it has the same build id, or, where there is none, the checksum
// that the link names.
func (d DebugSource) Verify(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return ErrNotRegular
	}
	m, err := newImage(newSource(f, st.Size()))
	if err != nil {
		return fmt.Errorf("read %s: %w", f.Name(), err)
	}
	if d.buildID != "" {
		if m.buildID != d.buildID {
			return fmt.Errorf("%s: %w", f.Name(), ErrOtherDebugFile)
		}
		return nil
	}
	if st.Size() > maxChecked {
		return fmt.Errorf("%s: %w: %d bytes", f.Name(), errDebugLimit, st.Size())
	}
	sum := crc32.NewIEEE()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, st.Size())); err != nil {
		return fmt.Errorf("read %s: %w", f.Name(), err)
	}
	if sum.Sum32() != d.crc {
		return fmt.Errorf("%s: %w", f.Name(), ErrOtherDebugFile)
	}
	return nil
}
