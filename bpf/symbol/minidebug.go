package symbol

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/therootcompany/xz"
)

// Limits on MiniDebugInfo. What Fedora packs for its largest libraries stays below a tenth of them. The dictionary is that of
// xz's default preset, with which the format is written; a header may claim 4 GiB and the decoder would allocate them.
const (
	maxDebugdata   = 8 << 20  // bytes, compressed
	maxMiniELF     = 16 << 20 // bytes, unpacked
	maxDebugdataLZ = 8 << 20  // bytes, dictionary
)

// miniSymbols reads .gnu_debugdata: an ELF file compressed with xz that holds the part of .symtab which a stripped file's
// .dynsym lacks. Fedora and its relatives put it into every binary. nil if there is none, or if the file was not stripped. Its
// sections have the addresses of those of the file around it; none but the symbols have contents.
// See "MiniDebugInfo" in the GDB manual (Debugging with GDB, section "Debugging Information in a Special Section").
func (m *image) miniSymbols(skip func(Address) bool) (*table, error) {
	s := m.section(".gnu_debugdata")
	if s == nil || m.section(".symtab") != nil || !m.inFile(s) {
		return nil, nil
	}
	packed, err := m.src.bytes(s.off, s.size, maxDebugdata, "MiniDebugInfo")
	if err != nil {
		return nil, err
	}
	plain, err := unxz(packed)
	if err != nil {
		return nil, &FormatError{s.off, fmt.Sprintf("MiniDebugInfo that cannot be unpacked (%v)", err)}
	}
	// What the inner file says follows from bytes that are in the outer file's log, so it needs no identity of its own.
	inner, err := newImage(newSource(bytes.NewReader(plain), int64(len(plain))))
	if err != nil {
		return nil, &FormatError{s.off, fmt.Sprintf("MiniDebugInfo that is no ELF file (%v)", err)}
	}
	if inner.machine != m.machine || inner.class64 != m.class64 {
		return nil, &FormatError{s.off, "MiniDebugInfo of another machine"}
	}
	t, err := inner.symbols(skip)
	if err != nil {
		return nil, &FormatError{s.off, fmt.Sprintf("MiniDebugInfo: %v", err)}
	}
	return t, nil
}

// errUnpacked says that compressed bytes hold more than anybody means well with.
var errUnpacked = errors.New("larger than the limit")

// unxz unpacks at most maxMiniELF bytes.
func unxz(packed []byte) ([]byte, error) {
	r, err := xz.NewReader(bytes.NewReader(packed), maxDebugdataLZ)
	if err != nil {
		return nil, err
	}
	r.Multistream(false)
	plain, err := io.ReadAll(io.LimitReader(r, maxMiniELF+1))
	if err != nil {
		return nil, err
	}
	if len(plain) > maxMiniELF {
		return nil, errUnpacked
	}
	return plain, nil
}
