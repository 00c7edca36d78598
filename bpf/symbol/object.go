package symbol

import (
	"encoding/hex"
	"errors"
	"io"
	"strings"

	"github.com/ianlancetaylor/demangle"
)

// Demangling is bounded: names longer than maxDemangle stay as they are, results end at 1 << maxDemangledShift bytes.
const (
	maxDemangle       = 4096
	maxDemangledShift = 13
)

// errTooLarge says that a file's symbols do not fit, in whatever form.
var errTooLarge = errors.New("symbols larger than the memory budget allows")

// Line is one function at one place; several of them, innermost first, are what the compiler inlined into one another.
type Line struct {
	// Function is the name as people write it: C++ and Rust demangled without parameters, Go as the linker has it, a PLT
	// stub as name@plt. Never empty.
	Function string
	// File, Line and StartLine (where the function begins) are known for Go only; empty or 0 otherwise.
	File            string
	Line, StartLine int
}

// Object is what is known about the code of one ELF file. It is immutable, holds no file open, and is safe for concurrent
// use.
type Object struct {
	buildID  string
	segments []segment
	table    *table
	mini     *table // of MiniDebugInfo: what .symtab would have said and .dynsym does not
	golang   *goTable
	bounds   *bounds // of functions without a symbol
	debug    DebugSource
	stripped bool // no table tells of functions that are not exported
	degraded bool // lines or functions were left out for their size

	id    identity
	log   []span
	bytes int64
}

// parse reads an object from size bytes at r. budget bounds what it may hold in memory, in bytes. A file whose headers can be
// read gives an object, if need be without names.
func parse(r io.ReaderAt, size, budget int64) (*Object, error) {
	src := newSource(r, size)
	m, err := newImage(src)
	if err != nil {
		return nil, err
	}
	o := &Object{buildID: m.buildID, segments: m.segments}
	if o.debug, err = m.debugSource(); err != nil {
		return nil, err
	}
	o.golang, err = m.goSymbols(budget)
	if err := o.reduce(err); err != nil {
		return nil, err
	}
	if o.golang != nil && o.golang.records == nil {
		o.degraded = true
	}
	o.table, err = m.symbols(o.golang.covers)
	if err := o.reduce(err); err != nil {
		return nil, err
	}
	o.mini, err = m.miniSymbols(o.golang.covers)
	if err := o.reduce(err); err != nil {
		return nil, err
	}
	o.stripped = m.section(".symtab") == nil && o.mini == nil && (o.golang == nil || o.golang.records == nil)
	if o.golang.bytesHeld()+o.table.bytesHeld()+o.mini.bytesHeld() > budget {
		o.table, o.mini, o.degraded = nil, nil, true
	}
	if o.golang == nil && o.mini == nil {
		o.bounds, err = m.readBounds()
		if err := o.reduce(err); err != nil {
			return nil, err
		}
		if o.table.bytesHeld()+o.bounds.bytesHeld() > budget {
			o.bounds, o.degraded = nil, true
		}
	}
	o.id, o.log = src.identity(), src.log
	o.bytes = 256 + int64(len(o.segments))*40 + int64(cap(o.log))*16 + o.table.bytesHeld() + o.mini.bytesHeld() +
		o.golang.bytesHeld() + o.bounds.bytesHeld()
	return o, nil
}

// reduce takes the error of one table of symbols: nonsense and sizes beyond the limits cost that table, failures to read
// cost the object.
func (o *Object) reduce(err error) error {
	var format *FormatError
	if errors.As(err, &format) || errors.Is(err, errTooLarge) {
		o.degraded = true
		return nil
	}
	return err
}

// BuildID is the GNU build id that the file claims, in hex, or "". Files that differ may claim the same.
func (o *Object) BuildID() string { return o.buildID }

// KernelBuildID is the build id as the kernel's stack walk with BPF_F_USER_BUILD_ID reports it: of 20 bytes, shorter ones
// (LLVM's linker writes 8) followed by zeros. False: the kernel knows no build id of this file.
func (o *Object) KernelBuildID() (id [20]byte, ok bool) {
	b, err := hex.DecodeString(o.buildID)
	if err != nil || len(b) == 0 || len(b) > len(id) {
		return id, false
	}
	copy(id[:], b)
	return id, true
}

// Stripped reports whether the file has lost the names of the functions that it does not export: it has no .symtab, MiniDebugInfo or
// pclntab. A separate debug file may have them ([DebugFinder.Separate]).
func (o *Object) Stripped() bool { return o.stripped }

// Named reports whether the file names any function at all.
func (o *Object) Named() bool { return o.table != nil || o.mini != nil || o.golang != nil }

// Bytes is the memory that o occupies.
func (o *Object) Bytes() int64 { return o.bytes }

// Address returns the ELF virtual address of the byte at off in the file; false when no segment loads it.
func (o *Object) Address(off FileOffset) (Address, bool) {
	for _, s := range o.segments {
		if s.exec && uint64(off) >= s.off && uint64(off)-s.off < s.filesz {
			return s.vaddr + Address(uint64(off)-s.off), true
		}
	}
	for _, s := range o.segments {
		if uint64(off) >= s.off && uint64(off)-s.off < s.filesz {
			return s.vaddr + Address(uint64(off)-s.off), true
		}
	}
	return 0, false
}

// Lookup appends the functions at a to dst, innermost inlined first, and returns it; it appends nothing if a has no symbol.
// The caller has already subtracted 1 from return addresses.
func (o *Object) Lookup(dst []Line, a Address) []Line {
	if o.golang.covers(a) {
		return o.golang.lookup(dst, a)
	}
	name, ok := o.table.lookup(a)
	if !ok {
		name, ok = o.mini.lookup(a)
	}
	if ok {
		dst = append(dst, Line{Function: demangled(name)})
	}
	return dst
}

// Function returns where the function that a is in begins, by the unwind information of the file: for code without a symbol. False:
// it is not known.
func (o *Object) Function(a Address) (Address, bool) { return o.bounds.function(a) }

// MayHaveLines reports whether [DebugLines], of the file or of a separate one, may know more about an address than Lookup does: of
// Go code Lookup says it all.
func (o *Object) MayHaveLines(a Address) bool {
	return (o.debug.Inside || o.debug.Elsewhere()) && !o.golang.covers(a)
}

// demangled turns a linkage name of C++ or Rust into the one people write, without parameters, clone suffixes and symbol
// version. Names of other languages, and whatever it cannot read, stay as they are.
func demangled(name string) string {
	base, version, _ := strings.Cut(name, "@")
	if base == "" {
		return name
	}
	if len(base) >= 3 && base[0] == '_' && len(base) <= maxDemangle {
		if d, err := demangle.ToString(base, demangle.NoParams, demangle.MaxLength(maxDemangledShift)); err == nil && d != "" {
			base = d
		}
	}
	if version == "plt" {
		return base + "@plt"
	}
	return base
}
