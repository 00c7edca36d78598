package symbol

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

const (
	// maxDebugLink is how long the sections .gnu_debuglink, .gnu_debugaltlink and .debug_sup may be: a file's name and what tells
	// that it is the right one.
	maxDebugLink = 4 << 10
	// maxChecked is how large a debug file may be that only a checksum over all of it identifies.
	maxChecked = 256 << 20
	// debugRoot is where all distributions keep debug files.
	debugRoot = "/usr/lib/debug"
)

var (
	// ErrOtherDebugFile is returned for a debug file that belongs to another build of the program.
	ErrOtherDebugFile = errors.New("debug file of another build")
	// ErrNotYet is returned by [DebugFinder.Fetch] for a file that may be there in a while.
	ErrNotYet = errors.New("debug file is being fetched")
)

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
	paths := buildIDPaths(d.buildID)
	if d.link != "" {
		dir := path.Dir(path.Clean("/" + file))
		paths = append(paths, path.Join(dir, d.link), path.Join(dir, ".debug", d.link), path.Join(debugRoot, dir, d.link))
	}
	return paths
}

// buildIDPaths is where the debug file with a build id, in hex, may be.
func buildIDPaths(id string) []string {
	if len(id) <= 2 {
		return nil
	}
	return []string{debugRoot + "/.build-id/" + id[:2] + "/" + id[2:] + ".debug"}
}

// Verify reports whether f is the debug file of this very build: it has the same build id, or, where there is none, the checksum
// that the link names.
func (d DebugSource) Verify(f *os.File) error {
	m, size, err := imageOf(f)
	if err != nil {
		return err
	}
	if d.buildID != "" {
		if m.buildID != d.buildID {
			return fmt.Errorf("%s: %w", f.Name(), ErrOtherDebugFile)
		}
		return nil
	}
	if size > maxChecked {
		return fmt.Errorf("%s: %w: %d bytes", f.Name(), errDebugLimit, size)
	}
	sum := crc32.NewIEEE()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, size)); err != nil {
		return fmt.Errorf("read %s: %w", f.Name(), err)
	}
	if sum.Sum32() != d.crc {
		return fmt.Errorf("%s: %w", f.Name(), ErrOtherDebugFile)
	}
	return nil
}

// VerifyDebugFile reports whether f is a debug file for the build id, which is in hex.
func VerifyDebugFile(f *os.File, buildID string) error {
	m, _, err := imageOf(f)
	switch {
	case err != nil:
		return err
	case m.buildID == "" || m.buildID != buildID:
		return fmt.Errorf("%s: %w", f.Name(), ErrOtherDebugFile)
	case !m.hasDebugInfo() && m.section(".symtab") == nil:
		return fmt.Errorf("%s: %w", f.Name(), ErrNoDebugInfo)
	}
	return nil
}

// imageOf reads the headers of a file.
func imageOf(f *os.File) (*image, int64, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !st.Mode().IsRegular() {
		return nil, 0, ErrNotRegular
	}
	m, err := newImage(newSource(f, st.Size()))
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return m, st.Size(), nil
}

// DebugFinder finds the files that hold an object's debug information, where it is not in the object: the separate debug file, the
// supplementary file of several, split files and packages of them. They are looked for as the object's container sees files, then
// among the debug files of the host, and at last asked for by build id. Whatever is found is used only if it says that it belongs
// to the very build. A DebugFinder is a value; it may be used on any goroutine.
type DebugFinder struct {
	// Path is what the processes that have mapped the object call it, Root the root directory that they see it in.
	Path, Root string
	// Host is the root directory of the host, of which only /usr/lib/debug is looked into. "": do not.
	Host string
	// Fetch asks somebody else for the debug file of a build id, in hex; nil: nobody. It does not wait: a file that is not there
	// yet is [ErrNotYet], one that nobody has wraps os.ErrNotExist.
	Fetch func(buildID string) (*os.File, error)

	debug string // path of the separate debug file, "" if it has none or is not in use
}

// Separate finds the separate debug file, and returns with it the finder for the files that this one needs. The error is
// [ErrNoDebugInfo] if there is none, [ErrNotYet] if there may be one later.
func (w DebugFinder) Separate(d DebugSource) (*os.File, DebugFinder, error) {
	f, at, err := w.find(d.Paths(w.Path), d.buildID, d.Verify)
	w.debug = at
	return f, w, err
}

// find returns the first file of those in the paths, or with the build id, that is the right one, and its path, "" if it was fetched.
func (w DebugFinder) find(paths []string, buildID string, verify func(*os.File) error) (*os.File, string, error) {
	for i, root := range []string{w.Root, w.Host} {
		if root == "" || i > 0 && w.Host == w.Root {
			continue
		}
		for _, p := range paths {
			if i > 0 && !strings.HasPrefix(p, debugRoot+"/") {
				continue // what a container calls a file says nothing about the host's
			}
			f, err := OpenInRoot(root, p)
			if err != nil {
				continue // the usual case: nobody installed it
			}
			if verify(f) == nil {
				return f, p, nil
			}
			f.Close()
		}
	}
	if w.Fetch == nil || len(buildID) <= 2 {
		return nil, "", ErrNoDebugInfo
	}
	f, err := w.Fetch(buildID)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, "", ErrNoDebugInfo
	case err != nil:
		return nil, "", err
	}
	if err := verify(f); err != nil {
		f.Close()
		return nil, "", err
	}
	return f, "", nil
}

// supplement says which supplementary file a file with debug information needs: one that other files need too, because what they
// have in common was moved there.
type supplement struct {
	name     string // "": none
	buildID  string // in hex; or
	checksum []byte // since DWARF 5
}

// supplement reads .gnu_debugaltlink (GNU, DWARF 4 and older: name and build id) or .debug_sup (DWARF 5 section 7.3.6: version, is it
// one itself, name, checksum).
func (m *image) supplement() (s supplement, isOne bool, err error) {
	if at := m.section(".gnu_debugaltlink"); m.inFile(at) && at.size <= maxDebugLink {
		b, err := m.src.bytes(at.off, at.size, maxDebugLink, "name of the supplementary debug file")
		if err != nil {
			return s, false, err
		}
		name := cstringAt(b, 0, maxDebugLink)
		if id := b[min(len(b), len(name)+1):]; name != "" && len(id) > 1 && len(id) <= maxBuildID {
			return supplement{name: name, buildID: hex.EncodeToString(id)}, false, nil
		}
	}
	at := m.section(".debug_sup")
	if !m.inFile(at) || at.size < 5 || at.size > maxDebugLink {
		return s, false, nil
	}
	b, err := m.src.bytes(at.off, at.size, maxDebugLink, "name of the supplementary debug file")
	if err != nil || binary.LittleEndian.Uint16(b) != 5 {
		return s, false, err
	}
	isOne = b[2] == 1
	name := cstringAt(b, 3, maxDebugLink)
	rest := b[min(len(b), 3+len(name)+1):]
	n, k := binary.Uvarint(rest)
	if k <= 0 || n == 0 || n > uint64(len(rest)-k) {
		return s, isOne, nil
	}
	return supplement{name: name, checksum: rest[k:][:n]}, isOne, nil
}

// supplement opens the supplementary file; real is the place of the file that needs it, as the kernel knows it.
func (w DebugFinder) supplement(s supplement, real string) (*os.File, error) {
	paths := buildIDPaths(s.buildID)
	if path.IsAbs(s.name) {
		paths = append(paths, path.Clean(s.name))
	} else {
		for _, file := range []string{real, w.debug, w.Path} {
			if file != "" {
				paths = append(paths, path.Join("/", path.Dir(file), s.name))
			}
		}
		// Distributions keep them in one directory, whatever the way there was when they were made.
		if _, rest, ok := strings.Cut(s.name, "/.dwz/"); ok {
			paths = append(paths, path.Join(debugRoot, ".dwz", path.Join("/", rest)))
		}
	}
	f, _, err := w.find(distinct(paths), s.buildID, func(f *os.File) error {
		m, _, err := imageOf(f)
		if err != nil {
			return err
		}
		if s.buildID != "" && m.buildID == s.buildID {
			return nil
		}
		own, isOne, err := m.supplement()
		if err == nil && (s.checksum == nil || !isOne || !slices.Equal(own.checksum, s.checksum)) {
			err = fmt.Errorf("%s: %w", f.Name(), ErrOtherDebugFile)
		}
		return err
	})
	return f, err
}

// splitPaths is where the split file of a unit may be.
func (w DebugFinder) splitPaths(dir, name string) (paths []string) {
	if path.IsAbs(name) {
		paths = append(paths, path.Clean(name))
	} else if path.IsAbs(dir) {
		paths = append(paths, path.Join(dir, name))
	}
	for _, file := range []string{w.Path, w.debug} {
		if file != "" {
			beside := path.Join("/", path.Dir(file))
			if !path.IsAbs(name) {
				paths = append(paths, path.Join(beside, name))
			}
			paths = append(paths, path.Join(beside, path.Base(name)))
		}
	}
	return distinct(paths)
}

// packagePaths is where the package of all split files of a program may be.
func (w DebugFinder) packagePaths() (paths []string) {
	for _, file := range []string{w.Path, w.debug, strings.TrimSuffix(w.debug, ".debug")} {
		if file != "" {
			paths = append(paths, path.Join("/", file)+".dwp")
		}
	}
	if w.Path != "" {
		paths = append(paths, debugRoot+path.Join("/", w.Path)+".dwp")
	}
	return distinct(paths)
}

// distinct removes what comes twice.
func distinct(list []string) (out []string) {
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// placeOf is the path of an open file without symbolic links, as the kernel knows it in the file's own mounts; "" if it does not say.
func placeOf(f *os.File) string {
	raw, err := f.SyscallConn()
	if err != nil {
		return ""
	}
	place := ""
	if raw.Control(func(fd uintptr) { place, err = os.Readlink("/proc/self/fd/" + strconv.Itoa(int(fd))) }) != nil || err != nil {
		return ""
	}
	return place
}
