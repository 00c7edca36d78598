package symbol

import (
	"bytes"
	"cmp"
	"math"
	"slices"
)

// padding is the largest gap between two functions that is taken for alignment: code in it is never executed, and an entry
// for each gap would double the table.
const padding = 15

func cname(tab []byte, off uint32) []byte {
	b := tab[off:min(uint64(len(tab)), uint64(off)+maxName)]
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}

// compact sorts the functions, chooses one name per address, gives ends to those without a size, and writes the compact
// table. ends are where code ends, sorted: they bound functions without a size that no other follows.
func compact(all []function, strs [][]byte, ends []Address) (*table, error) {
	if len(all) == 0 {
		return nil, nil
	}
	name := func(f *function) []byte { return cname(strs[f.tab], f.name) }
	slices.SortFunc(all, func(a, b function) int {
		if a.addr != b.addr {
			return cmp.Compare(a.addr, b.addr)
		}
		if a.label != b.label { // a typed symbol before a label
			if b.label {
				return -1
			}
			return 1
		}
		if a.rank != b.rank {
			return cmp.Compare(b.rank, a.rank)
		}
		if as, bs := a.end > a.addr, b.end > b.addr; as != bs {
			if as {
				return -1
			}
			return 1
		}
		an, bn := name(&a), name(&b)
		if len(an) != len(bn) {
			return cmp.Compare(len(an), len(bn))
		}
		return bytes.Compare(an, bn)
	})
	// One per address: the first is the best name; the extent is the largest that any alias claims.
	kept := all[:0]
	for _, f := range all {
		if n := len(kept); n > 0 && kept[n-1].addr == f.addr {
			kept[n-1].end = max(kept[n-1].end, f.end)
			continue
		}
		kept = append(kept, f)
	}
	w := tableWriter{t: &table{base: kept[0].addr}}
	type open struct {
		end  Address
		name uint32
	}
	var stack []open // symbols that cover the current address, innermost last
	// closeUntil ends what ends at or before a.
	closeUntil := func(a Address) {
		for len(stack) > 0 && stack[len(stack)-1].end <= a {
			end := stack[len(stack)-1].end
			for len(stack) > 0 && stack[len(stack)-1].end <= end {
				stack = stack[:len(stack)-1]
			}
			switch {
			case len(stack) > 0:
				w.add(end, stack[len(stack)-1].name)
			case a-end > padding:
				w.add(end, hole)
			}
		}
	}
	for i := range kept {
		f := &kept[i]
		if uint64(f.addr-w.t.base) > math.MaxUint32 {
			break // more than 4 GiB of code: no linker's work
		}
		closeUntil(f.addr)
		if f.end == f.addr {
			if len(stack) > 0 && f.label {
				continue // a label inside of a function that knows its size
			}
			e, _ := slices.BinarySearch(ends, f.addr+1)
			if e == len(ends) {
				continue
			}
			f.end = ends[e]
			if i+1 < len(kept) {
				f.end = min(f.end, kept[i+1].addr)
			}
			if len(stack) > 0 {
				f.end = min(f.end, stack[len(stack)-1].end)
			}
			if f.end <= f.addr {
				continue
			}
		}
		off := w.names.size()
		if _, err := w.names.Write(name(f)); err != nil {
			return nil, err
		}
		if _, err := w.names.Write(zero[:]); err != nil {
			return nil, err
		}
		w.add(f.addr, off)
		stack = append(stack, open{f.end, off})
	}
	closeUntil(math.MaxUint64)
	return w.done(), nil
}

var zero [1]byte

// tableWriter appends entries in the order of their addresses.
type tableWriter struct {
	t     *table
	names packer
}

func (w *tableWriter) add(a Address, name uint32) {
	if uint64(a-w.t.base) > math.MaxUint32 {
		return
	}
	start := uint32(a - w.t.base)
	n := len(w.t.starts)
	if n > 0 && w.t.starts[n-1] == start {
		w.t.names[n-1] = name
		return
	}
	w.t.starts = append(w.t.starts, start)
	w.t.names = append(w.t.names, name)
}

func (w *tableWriter) done() *table {
	w.t.starts, w.t.names = slices.Clone(w.t.starts), slices.Clone(w.t.names)
	w.t.text = w.names.done()
	return w.t
}
