package replay

import (
	"cmp"
	"fmt"
	"io"
	"slices"

	"github.com/stoker-profiler/stoker/bpf/symbol"
	"github.com/stoker-profiler/stoker/bpf/unwind/native/cfi"
)

// File is an ELF file and the pages of rows that were asked for.
type File struct {
	r     io.ReaderAt
	size  int64
	cfi   *cfi.File
	pages map[cfi.PageNumber][]cfi.Row
}

// OpenFile reads the headers of an ELF file of size bytes. r is kept.
func OpenFile(r io.ReaderAt, size int64) (*File, error) {
	c, err := cfi.Open(r, size)
	if err != nil {
		return nil, err
	}
	return &File{r: r, size: size, cfi: c, pages: make(map[cfi.PageNumber][]cfi.Row)}, nil
}

// rule returns the rule at an offset in the file.
func (f *File) rule(offset uint64) (cfi.Rule, error) {
	a, ok := cfi.Address(0), false
	for _, s := range f.cfi.Code() {
		if d := symbol.FileOffset(offset) - s.Offset; symbol.FileOffset(offset) >= s.Offset && uint64(d) < s.Size {
			a, ok = s.Address+cfi.Address(d), true
			break
		}
	}
	if !ok {
		return cfi.Rule{}, nil
	}
	n := cfi.PageOf(a)
	rows, known := f.pages[n]
	if !known {
		var err error
		if rows, err = f.cfi.Rows(f.r, nil, n.Start(), n.Start()+cfi.PageBytes, nil); err != nil {
			return cfi.Rule{}, fmt.Errorf("rows from 0x%x on: %w", uint64(n.Start()), err)
		}
		f.pages[n] = rows
	}
	i, found := slices.BinarySearchFunc(rows, a, func(r cfi.Row, a cfi.Address) int { return cmp.Compare(r.Address, a) })
	if !found {
		i--
	}
	if i < 0 {
		return cfi.Rule{}, nil
	}
	return rows[i].Rule, nil
}
