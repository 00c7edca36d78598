package process

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"strings"
	"unique"
)

// Limits of one maps file. vm.max_map_count is 65,530 by default and can be set to millions, and a path can be as long as
// somebody nests directories: what a process makes of it must not cost us more than this.
const (
	// MaxMappings is how many mappings of one process are kept. The largest honest ones have some 3,000 executable ones.
	MaxMappings = 10_000
	// maxMapsBytes is how much of one maps file is read: 65,530 mappings with paths of 150 bytes fit.
	maxMapsBytes = 16 << 20
	// maxPath is PATH_MAX: a longer path cannot be opened by name anyway. It is cut, and the mapping stays.
	maxPath = 4096
)

// ErrTooManyMappings says that a process has more mappings than we keep. What was read until then is usable.
var ErrTooManyMappings = fmt.Errorf("more than %d mappings or %d bytes of them", MaxMappings, maxMapsBytes)

// Mapping is one range of a process's address space.
type Mapping struct {
	// Start and End are virtual addresses, [Start, End). Offset is where Start lies in the file, in bytes.
	Start, End, Offset uint64
	Executable         bool
	// Major, Minor and Inode identify the file. On overlayfs the device is not the one that stat tells.
	Major, Minor uint32
	Inode        uint64
	// Path is the file as the process sees it, or a name the kernel gives: [vdso], [heap], [anon:NAME], or nothing.
	Path string
	// Deleted is true when Path no longer leads to the file.
	Deleted bool
}

// Backed reports whether the mapping is one of a file, a memfd or shared memory: something with an inode.
func (m *Mapping) Backed() bool { return m.Inode != 0 }

// FileOffset returns where the byte at the virtual address lies in the file. The address must lie in the mapping.
func (m *Mapping) FileOffset(address uint64) uint64 { return address - m.Start + m.Offset }

// ParseMaps reads the text of a /proc/PID/maps: proc(5). Paths are unescaped, " (deleted)" is taken off.
//
// Of more than MaxMappings mappings, or 16 MiB, the first ones are returned with [ErrTooManyMappings]. Other errors say at
// which byte the text is not what it should be, and come with the mappings before it.
func ParseMaps(r io.Reader) ([]Mapping, error) {
	list, _, err := parseMaps(r, false)
	return list, err
}

// parseMaps is ParseMaps and says how many bytes it read. With codeOnly it leaves out what cannot be executed: a table of
// code has a tenth of the mappings.
func parseMaps(r io.Reader, codeOnly bool) (out []Mapping, offset int, err error) {
	// Room for the fixed columns and a path in which every byte is escaped in four.
	in := bufio.NewReaderSize(io.LimitReader(r, maxMapsBytes+1), 4*maxPath+256)
	for {
		line, err := in.ReadSlice('\n')
		n := len(line)
		whole := err == nil
		for errors.Is(err, bufio.ErrBufferFull) { // a path beyond maxPath: what we have of it is enough
			var rest []byte
			if n == len(line) {
				line = bytes.Clone(line)
			}
			rest, err = in.ReadSlice('\n')
			n += len(rest)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return out, offset, fmt.Errorf("read mappings at byte %d: %w", offset, err)
		}
		if offset += n; offset > maxMapsBytes {
			return out, offset, ErrTooManyMappings
		}
		if n == 0 {
			return out, offset, nil
		}
		if whole || line[len(line)-1] == '\n' {
			line = line[:len(line)-1]
		}
		m, ok := parseMapping(line, codeOnly)
		if !ok {
			return out, offset, fmt.Errorf("mapping at byte %d is not of the form \"start-end perms offset dev inode path\": %.100q",
				offset-n, line)
		}
		if codeOnly && !m.Executable {
			continue
		}
		if len(out) == MaxMappings {
			return out, offset, ErrTooManyMappings
		}
		out = append(out, m)
	}
}

// parseMapping reads one line, "55d0e6a2a000-55d0e6a2c000 r-xp 00002000 fd:01 1234 /bin/cat". With codeOnly the columns
// behind the permissions of data are not looked at.
func parseMapping(line []byte, codeOnly bool) (m Mapping, ok bool) {
	c := columns{rest: line, ok: true}
	m.Start = c.number(16, '-')
	m.End = c.number(16, ' ')
	perms := c.word()
	if !c.ok || len(perms) != 4 || m.Start >= m.End {
		return Mapping{}, false
	}
	m.Executable = perms[2] == 'x'
	if codeOnly && !m.Executable {
		return m, true
	}
	m.Offset = c.number(16, ' ')
	major, minor := c.number(16, ':'), c.number(16, ' ')
	m.Inode = c.number(10, ' ')
	if !c.ok || major > 1<<32-1 || minor > 1<<32-1 {
		return Mapping{}, false
	}
	m.Major, m.Minor = uint32(major), uint32(minor)
	path := string(bytes.TrimLeft(c.rest, " "))
	if m.Inode != 0 || strings.HasPrefix(path, "/") {
		// seq_path() escapes newlines only, so a backslash of the path itself can be mistaken for an escape. Whoever opens
		// the file compares its inode.
		path = strings.ReplaceAll(path, `\012`, "\n")
		path, m.Deleted = strings.CutSuffix(path, " (deleted)")
	}
	if len(path) > maxPath {
		path = path[:maxPath]
	}
	// The same few hundred paths are in the tables of all processes of a node.
	m.Path = unique.Make(path).Value()
	return m, true
}

// columns cuts a line into its columns; ok turns false at the first that is not there.
type columns struct {
	rest []byte
	ok   bool
}

// number reads digits up to end, which it takes away. At the end of the line end may be missing.
func (c *columns) number(base uint64, end byte) (v uint64) {
	i := 0
	for ; i < len(c.rest) && c.rest[i] != end; i++ {
		var d uint64
		switch b := c.rest[i]; {
		case '0' <= b && b <= '9':
			d = uint64(b - '0')
		case 'a' <= b && b <= 'f':
			d = uint64(b-'a') + 10
		case 'A' <= b && b <= 'F':
			d = uint64(b-'A') + 10
		default:
			d = base // no digit
		}
		hi, lo := bits.Mul64(v, base)
		sum, carry := bits.Add64(lo, d, 0)
		if d >= base || hi != 0 || carry != 0 {
			c.ok = false
			return 0
		}
		v = sum
	}
	c.ok = c.ok && i > 0
	c.rest = c.rest[min(i+1, len(c.rest)):]
	return v
}

func (c *columns) word() []byte {
	word, rest, _ := bytes.Cut(c.rest, []byte{' '})
	c.rest = rest
	return word
}

// Maps is the executable part of a process's address space at one moment. It is immutable and may be shared.
type Maps struct {
	code []Mapping
	text int // bytes of text that it was read from
}

// NewMaps makes a table of the executable mappings in list. A mapping that overlaps the one before it is left out: the
// kernel never shows such.
func NewMaps(list []Mapping) *Maps {
	m := &Maps{code: make([]Mapping, 0, len(list))}
	for i := range list {
		if list[i].Executable {
			m.code = append(m.code, list[i])
		}
	}
	slices.SortStableFunc(m.code, func(a, b Mapping) int {
		if a.Start < b.Start {
			return -1
		}
		return 1
	})
	last := uint64(0)
	m.code = slices.DeleteFunc(m.code, func(c Mapping) bool {
		if c.Start < last {
			return true
		}
		last = c.End
		return false
	})
	return m
}

// Find returns the executable mapping that holds the address. The result is shared: do not write to it.
func (m *Maps) Find(address uint64) (*Mapping, bool) {
	if m == nil {
		return nil, false
	}
	i, ok := slices.BinarySearchFunc(m.code, address, func(c Mapping, a uint64) int {
		switch {
		case a < c.Start:
			return 1
		case a >= c.End:
			return -1
		}
		return 0
	})
	if !ok {
		return nil, false
	}
	return &m.code[i], true
}

// Code returns the executable mappings in the order of their addresses. The result is shared: do not write to it.
func (m *Maps) Code() []Mapping {
	if m == nil {
		return nil
	}
	return m.code
}

// Keeps reports whether every address that lies in a file by old lies in the same place of the same file by m: then what was
// named with old is still right. Paths do not count (a file can be renamed), nor does anonymous memory (it has no names to
// lose, and just-in-time compilers move it all the time).
func (m *Maps) Keeps(old *Maps) bool {
	for _, o := range old.Code() {
		if !o.Backed() {
			continue
		}
		// A mapping can have been split or grown; both ends decide.
		for _, a := range [2]uint64{o.Start, o.End - 1} {
			n, ok := m.Find(a)
			if !ok || n.Major != o.Major || n.Minor != o.Minor || n.Inode != o.Inode || n.FileOffset(a) != o.FileOffset(a) {
				return false
			}
		}
	}
	return true
}

// Equal reports whether both tables have the same code at the same addresses. Two address spaces that are equal are one and
// the same, as far as addresses are random.
func (m *Maps) Equal(o *Maps) bool {
	return slices.EqualFunc(m.Code(), o.Code(), func(a, b Mapping) bool {
		return a.Start == b.Start && a.End == b.End && a.Offset == b.Offset && a.Major == b.Major && a.Minor == b.Minor && a.Inode == b.Inode
	})
}
