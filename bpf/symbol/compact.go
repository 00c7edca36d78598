package symbol

import (
	"cmp"
	"math"
	"slices"
)

// table is the compact form of symbols: entry i covers [base+starts[i], base+starts[i+1]), its name is at names[i] in text.
// An entry named hole covers code that has no symbol.
type table struct {
	base   Address
	starts []uint32
	names  []uint32
	text   *packed
}

const hole = math.MaxUint32

// padding is the largest gap between two functions that is taken for alignment: code in it is never executed, and an entry
// for each gap would double the table.
const padding = 15

// lookup returns the linkage name of the symbol that covers a.
func (t *table) lookup(a Address) (string, bool) {
	if t == nil || a < t.base || a-t.base > math.MaxUint32 {
		return "", false
	}
	i, found := slices.BinarySearch(t.starts, uint32(a-t.base))
	if !found {
		i--
	}
	if i < 0 || t.names[i] == hole {
		return "", false
	}
	name := t.text.cstring(t.names[i])
	return name, name != ""
}

func (t *table) bytesHeld() int64 {
	if t == nil {
		return 0
	}
	return 4*int64(cap(t.starts)) + 4*int64(cap(t.names)) + t.text.bytesHeld() + 64
}

// compact chooses one name per address and writes the table.
func (r *symbolReader) compact() (*table, error) {
	r.dropWorseAliases()
	names, err := r.readNames()
	if err != nil || len(r.all) == 0 {
		return nil, err
	}
	slices.SortFunc(r.all, func(a, b function) int {
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.length, b.length), cmp.Compare(a.name, b.name))
	})
	kept := r.all[:0]
	for _, f := range r.all {
		if n := len(kept); n > 0 && kept[n-1].start == f.start {
			kept[n-1].end = max(kept[n-1].end, f.end)
			continue
		}
		kept = append(kept, f)
	}
	t := &table{base: r.base, text: names}
	t.cover(kept, r.m.codeEnds())
	return t, nil
}

// dropWorseAliases sorts by address and leaves, of the symbols at one address, those whose class is best, with the largest
// extent that any of them claims. Only what remains has its name read.
func (r *symbolReader) dropWorseAliases() {
	slices.SortFunc(r.all, func(a, b function) int {
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(b.class, a.class), cmp.Compare(b.end, a.end))
	})
	kept := r.all[:0]
	first := 0 // the first of this address in kept
	for _, f := range r.all {
		if len(kept) > first && kept[first].start == f.start {
			kept[first].end = max(kept[first].end, f.end)
			if kept[first].class != f.class {
				continue
			}
		} else {
			first = len(kept)
		}
		kept = append(kept, f)
	}
	r.all = kept
}

// readNames reads the names in the order of the string tables, packs them and puts their places into the functions. Functions
// whose names are empty, outside of the table, or mere markers are dropped.
func (r *symbolReader) readNames() (*packed, error) {
	slices.SortFunc(r.all, func(a, b function) int {
		return cmp.Or(cmp.Compare(a.tab, b.tab), cmp.Compare(a.name, b.name), cmp.Compare(a.class&classPLT, b.class&classPLT))
	})
	var w packer
	var last struct {
		tab    uint8
		plt    uint8
		name   uint32
		packed uint32
		length uint16
	}
	kept := r.all[:0]
	for i, f := range r.all {
		if i == 0 || last.tab != f.tab || last.name != f.name || last.plt != f.class&classPLT {
			tab := &r.tabs[f.tab]
			name := r.page.cstring(tab.off+uint64(f.name), tab.off+tab.size)
			if r.page.err != nil {
				return nil, r.page.err
			}
			last.tab, last.name, last.plt, last.packed = f.tab, f.name, f.class&classPLT, w.size()
			last.length = uint16(len(name))
			if f.class&classTyped == 0 && mappingSymbol(name) {
				last.length = 0
			}
			if last.length > 0 {
				if _, err := w.Write(name); err != nil {
					return nil, err
				}
				tail := "\x00"
				if last.plt != 0 {
					tail = "@plt\x00"
				}
				if _, err := w.Write([]byte(tail)); err != nil {
					return nil, err
				}
			}
		}
		if last.length == 0 {
			continue
		}
		f.name, f.length = last.packed, last.length
		kept = append(kept, f)
	}
	r.all = kept
	return w.done(), nil
}

// cover writes entries for functions that are sorted and have different starts. A function inside of another interrupts it; a
// label inside of a function that knows its size is nothing. ends are where code ends, sorted: they bound functions without a
// size that no other follows.
func (t *table) cover(functions []function, ends []uint32) {
	type open struct{ end, name uint32 }
	var stack []open // functions that cover the current address, innermost last
	closeUntil := func(a uint32) {
		for len(stack) > 0 && stack[len(stack)-1].end <= a {
			end := stack[len(stack)-1].end
			for len(stack) > 0 && stack[len(stack)-1].end <= end {
				stack = stack[:len(stack)-1]
			}
			switch {
			case len(stack) > 0:
				t.add(end, stack[len(stack)-1].name)
			case a-end > padding:
				t.add(end, hole)
			}
		}
	}
	for i := range functions {
		f := &functions[i]
		closeUntil(f.start)
		if f.end == f.start {
			if len(stack) > 0 && f.class&classTyped == 0 {
				continue
			}
			e, _ := slices.BinarySearch(ends, f.start+1)
			if e == len(ends) {
				continue
			}
			f.end = ends[e]
			if i+1 < len(functions) {
				f.end = min(f.end, functions[i+1].start)
			}
			if len(stack) > 0 {
				f.end = min(f.end, stack[len(stack)-1].end)
			}
			if f.end <= f.start {
				continue
			}
		}
		t.add(f.start, f.name)
		stack = append(stack, open{f.end, f.name})
	}
	closeUntil(math.MaxUint32)
	t.starts, t.names = slices.Clone(t.starts), slices.Clone(t.names)
}

// add appends an entry, or renames the last one if it begins there too.
func (t *table) add(start, name uint32) {
	n := len(t.starts)
	if n > 0 && t.starts[n-1] == start {
		t.names[n-1] = name
		return
	}
	t.starts, t.names = append(t.starts, start), append(t.names, name)
}
