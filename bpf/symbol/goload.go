package symbol

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"math"
	"slices"
)

// maxGoScan is how many bytes of a Go program are searched for a pclntab or for the moduledata that no section names.
const maxGoScan = 256 << 20

// moduledata is what the runtime's struct of that name says about a module.
type moduledata struct{ text, etext, gofunc Address }

// Places of moduledata's fields, in words from its start.
const (
	moduleFuncnames = 1  // []byte
	moduleFtab      = 16 // []functab
	moduleText      = 22
	moduleEtext     = 23
	moduleGofunc118 = 38
	moduleGofunc120 = 40
	moduleWords     = 41
)

// goSymbols reads the pclntab; nil if the file is not a Go program. A Go program whose table cannot be read has the symbols
// of its symbol table.
func (m *image) goSymbols(budget int64) (*goTable, error) {
	addr, size, ok, err := m.findPclntab()
	if err != nil || !ok {
		return nil, err
	}
	head, err := m.at(addr, min(72, size), 72, "pclntab header")
	if err != nil {
		return nil, err
	}
	if len(head) < 72 {
		return nil, nil
	}
	h, ok := parseHeader(head, size)
	if !ok {
		return nil, nil
	}
	off, have, _ := m.fileOffset(addr)
	h.size = min(h.size, have)
	l := goLoader{m: m, h: h, addr: addr, off: off, page: newPager(m.src), budget: budget}
	return l.load()
}

// ignoreFormat drops errors that say the bytes are nonsense: what else the file has is still good. Errors of reading stay.
func ignoreFormat(err error) error {
	var f *FormatError
	if errors.As(err, &f) {
		return nil
	}
	return err
}

// findPclntab returns where the pclntab lies: its section, or where its header is found in the data of a program that other
// signs say is Go (linking through the C linker merges the section away in position-independent files).
func (m *image) findPclntab() (Address, uint64, bool, error) {
	for _, name := range []string{".gopclntab", ".data.rel.ro.gopclntab"} {
		if s := m.section(name); m.inFile(s) && s.size >= 72 {
			return s.addr, s.size, true, nil
		}
	}
	if !m.goNote && m.section(".go.buildinfo") == nil {
		return 0, 0, false, nil
	}
	left := uint64(maxGoScan)
	for _, s := range m.segments {
		if s.exec || s.off > m.src.size || s.filesz > m.src.size-s.off {
			continue
		}
		pad := uint64(-s.vaddr & 7) // tables are aligned in memory
		if s.filesz <= pad {
			continue
		}
		n := min(s.filesz-pad, left)
		left -= n
		var found Address
		at := s.vaddr + Address(pad)
		var tail [72]byte // a header may lie across two pieces
		tailLen := 0
		try := func(b []byte, at Address) bool {
			for i := 0; i+72 <= len(b); i += 8 {
				if binary.LittleEndian.Uint32(b[i:])|0xf == 0xffffffff && b[i+4] == 0 && b[i+5] == 0 {
					if _, ok := parseHeader(b[i:], s.filesz-uint64(at+Address(i)-s.vaddr)); ok {
						found = at + Address(i)
						return true
					}
				}
			}
			return false
		}
		stop := errors.New("found")
		err := m.src.stream(s.off+pad, n, "Go data", func(b []byte) error {
			join := append(bytes.Clone(tail[:tailLen]), b[:min(len(b), 72)]...)
			if tailLen > 0 && try(join, at-Address(tailLen)) || try(b, at) {
				return stop
			}
			at += Address(len(b))
			tailLen = min(len(b)&^7, 64)
			copy(tail[:], b[len(b)-tailLen:])
			return nil
		})
		if err == stop {
			return found, s.filesz - uint64(found-s.vaddr), true, nil
		}
		if err != nil {
			return 0, 0, false, ignoreFormat(err)
		}
	}
	return 0, 0, false, nil
}

// goLoader turns a pclntab into a goTable.
type goLoader struct {
	m      *image
	h      pclnHeader
	addr   Address
	off    uint64 // of the table in the file; its bytes lie together
	page   *pager
	budget int64
}

// bad is the error for a table that contradicts itself.
func (l *goLoader) bad(what string) error { return &FormatError{l.off, "pclntab with " + what} }

// read returns n bytes at off in the table, valid until the next call; fewer if the table or the file ends before.
func (l *goLoader) read(off, n uint64) []byte {
	if off >= l.h.size {
		return nil
	}
	return l.page.read(l.off+off, min(n, l.h.size-off))
}

// word reads a pointer-sized word at off in the table.
func (l *goLoader) word(off uint64) uint64 {
	b := l.read(off, uint64(l.h.ptr))
	switch len(b) {
	case 8:
		return binary.LittleEndian.Uint64(b)
	case 4:
		return uint64(binary.LittleEndian.Uint32(b))
	}
	return 0
}

// pack reads [from, to) of the table into a packed.
func (l *goLoader) pack(from, to uint64, what string) (*packed, error) {
	if to < from || to > l.h.size {
		return nil, l.bad(what + " outside of the table")
	}
	var w packer
	if err := l.m.src.stream(l.off+from, to-from, what, func(b []byte) error {
		if int64(len(w.p.data)) > l.budget {
			return errTooLarge
		}
		_, err := w.Write(b)
		return err
	}); err != nil {
		return nil, err
	}
	return w.done(), nil
}

// pctable appends the pc-value table at off to dst, without its terminator; nothing if there is none or it does not end.
// base is where the tables begin and end where they must end.
func (l *goLoader) pctable(dst []byte, base, end, off uint64) []byte {
	if off == 0 || off >= end-base {
		return dst
	}
	for n := uint64(64); ; n = min(8*n, maxPCTable) {
		n = min(n, end-base-off)
		b := l.read(base+off, n)
		if t, ok := cutPCTable(b); ok {
			return append(dst, t...)
		}
		if uint64(len(b)) < n || n == end-base-off || n == maxPCTable {
			return dst
		}
	}
}

func (l *goLoader) load() (*goTable, error) {
	if int64(l.h.nfunc)*8 > l.budget {
		return nil, errTooLarge
	}
	if l.h.version == go12 || l.h.version == go116 {
		return l.loadOld()
	}
	g := &goTable{version: l.h.version, quantum: l.h.quantum}
	le := binary.LittleEndian
	n := l.h.nfunc
	g.starts = make([]uint32, 0, min(n+1, readChunk))
	offsets := make([]uint32, 0, min(n, readChunk)) // of the records
	if l.h.size < l.h.funcs+8*n+4 {
		return nil, l.bad("a function table that reaches beyond it")
	}
	for i := range n + 1 {
		b := l.read(l.h.funcs+8*i, 8)
		if len(b) < 4 {
			return nil, cmp.Or(l.page.err, l.bad("a function table that reaches beyond it"))
		}
		start := le.Uint32(b)
		if i > 0 && start < g.starts[i-1] {
			return nil, l.bad("functions that are not sorted")
		}
		g.starts = append(g.starts, start)
		if i < n && len(b) == 8 {
			offsets = append(offsets, le.Uint32(b[4:]))
		}
	}
	module, ok, err := l.findModule()
	if err != nil {
		return nil, err
	}
	if g.text = module.text; !ok {
		g.text = l.h.text
	}
	if !l.m.executable(g.text+Address(g.starts[0])) || g.text+Address(g.starts[n]) < g.text {
		return nil, l.bad("functions outside of the program's code")
	}
	if g.names, err = l.pack(l.h.funcnames, l.h.cutab, "function names"); err != nil {
		return nil, err
	}
	err = l.fill(g, offsets, module.gofunc)
	if err == nil && l.page.err == nil && g.bytesHeld() <= l.budget {
		return g, nil
	}
	if err := cmp.Or(err, l.page.err); err != nil && ignoreFormat(err) != nil && !errors.Is(err, errTooLarge) {
		return nil, err
	}
	// Too large with lines, or nonsense in the tables of lines: names alone.
	g.records, g.offsets, g.cutab, g.files = nil, nil, nil, nil
	l.page.err = nil
	g.nameOffsets = make([]uint32, n)
	for i, off := range offsets {
		g.nameOffsets[i] = math.MaxUint32
		if b := l.read(l.h.funcs+uint64(off), 8); len(b) == 8 {
			g.nameOffsets[i] = le.Uint32(b[4:])
		}
	}
	if l.page.err != nil {
		return nil, l.page.err
	}
	if g.bytesHeld() > l.budget {
		return nil, errTooLarge
	}
	return g, nil
}

// fill writes the records of all functions, whose places are given by offsets.
func (l *goLoader) fill(g *goTable, offsets []uint32, gofunc Address) error {
	le := binary.LittleEndian
	var err error
	if g.cutab, err = l.pack(l.h.cutab, l.h.files, "file numbers"); err != nil {
		return err
	}
	if g.files, err = l.pack(l.h.files, l.h.pctab, "file names"); err != nil {
		return err
	}
	fixed, nfuncdata, node := uint64(44), 43, uint64(16)
	if l.h.version == go118 {
		fixed, nfuncdata, node = 40, 39, 20
	}
	trees, treesLen, haveTrees := l.m.fileOffset(gofunc)
	haveTrees = haveTrees && gofunc != 0
	var w packer
	var buf, tables []byte
	var r goFunction
	g.offsets = make([]uint32, 1, len(offsets)+1)
	for _, off := range offsets {
		at := l.h.funcs + uint64(off)
		b := l.read(at, fixed+4*3)
		if uint64(len(b)) < fixed {
			return cmp.Or(l.page.err, l.bad("function records outside of the table"))
		}
		r = goFunction{name: le.Uint32(b[4:]), cu: le.Uint32(b[32:]), tree: r.tree[:0]}
		pcfile, pcline, npcdata := le.Uint32(b[20:]), le.Uint32(b[24:]), uint64(le.Uint32(b[28:]))
		if l.h.version >= go120 {
			r.line = le.Uint32(b[36:])
		}
		nfd := int(b[nfuncdata])
		pcil := uint32(0)
		if npcdata > 2 && npcdata <= maxPcdata && nfd > 3 && uint64(len(b)) == fixed+4*3 && haveTrees {
			pcil = le.Uint32(b[fixed+4*2:])
		}
		tables = l.pctable(tables[:0], l.h.pctab, l.h.funcs, uint64(pcfile))
		i := len(tables)
		tables = l.pctable(tables, l.h.pctab, l.h.funcs, uint64(pcline))
		j := len(tables)
		tables = l.pctable(tables, l.h.pctab, l.h.funcs, uint64(pcil))
		r.pcfile, r.pcline = tables[:i], tables[i:j]
		if n := uint64(maxValue(tables[j:]) + 1); n > 0 && n <= maxInlineTree {
			if b := l.read(at+fixed+4*npcdata+4*3, 4); len(b) == 4 && le.Uint32(b) != math.MaxUint32 {
				tree := uint64(le.Uint32(b))
				if tree+n*node <= treesLen {
					if b := l.page.read(trees+tree, n*node); uint64(len(b)) == n*node {
						r.pcil = tables[j:]
						for ; len(b) > 0; b = b[node:] {
							e := inlined{name: le.Uint32(b[4:]), parentPC: le.Uint32(b[8:])}
							if node == 20 {
								e = inlined{name: le.Uint32(b[12:]), parentPC: le.Uint32(b[16:])}
							} else {
								e.line = le.Uint32(b[12:])
							}
							r.tree = append(r.tree, e)
						}
					}
				}
			}
		}
		buf = r.append(buf[:0])
		if _, err := w.Write(buf); err != nil {
			return err
		}
		if int64(len(w.p.data)) > l.budget {
			return errTooLarge
		}
		g.offsets = append(g.offsets, w.size())
	}
	g.records = w.done()
	return nil
}

// loadOld reads the layouts of Go 1.2 to 1.17, whose functions have absolute addresses. They have no inlined frames here: the
// function that others were inlined into stands for them, with the innermost file and line.
func (l *goLoader) loadOld() (*goTable, error) {
	le := binary.LittleEndian
	ptr := uint64(l.h.ptr)
	if l.h.size < l.h.funcs+2*ptr*l.h.nfunc+ptr+4 {
		return nil, l.bad("a function table that reaches beyond it")
	}
	g := &goTable{version: l.h.version, quantum: l.h.quantum, text: Address(l.word(l.h.funcs))}
	if !l.m.executable(g.text) {
		return nil, l.bad("functions outside of the program's code")
	}
	var err error
	pctab, pctabEnd, base, nameBase := uint64(0), l.h.size, uint64(0), uint64(0)
	if l.h.version == go116 {
		pctab, pctabEnd, base, nameBase = l.h.pctab, l.h.funcs, l.h.funcs, l.h.funcnames
		if g.cutab, err = l.pack(l.h.cutab, l.h.files, "file numbers"); err != nil {
			return nil, err
		}
		if g.files, err = l.pack(l.h.files, l.h.pctab, "file names"); err != nil {
			return nil, err
		}
	} else if err := l.oldFiles(g, uint64(l.h.funcs+2*ptr*l.h.nfunc+ptr)); err != nil {
		return nil, err
	}
	var names, records packer
	var buf, tables []byte
	g.offsets = make([]uint32, 1, min(l.h.nfunc+1, readChunk))
	for i := range l.h.nfunc + 1 {
		entry := l.word(l.h.funcs + 2*ptr*i)
		if entry < uint64(g.text) || entry-uint64(g.text) > math.MaxUint32 ||
			i > 0 && uint32(entry-uint64(g.text)) < g.starts[i-1] {
			return nil, cmp.Or(l.page.err, l.bad("functions that are not sorted"))
		}
		g.starts = append(g.starts, uint32(entry-uint64(g.text)))
		if i == l.h.nfunc {
			break
		}
		var r goFunction
		at := base + l.word(l.h.funcs+2*ptr*i+ptr)
		if b := l.read(at+ptr, 32); len(b) == 32 {
			name, pcfile, pcline := le.Uint32(b), le.Uint32(b[16:]), le.Uint32(b[20:])
			if l.h.version == go116 {
				r.cu = le.Uint32(b[28:])
			}
			tables = l.pctable(tables[:0], pctab, pctabEnd, uint64(pcfile))
			r.pcfile = tables
			tables = l.pctable(tables, pctab, pctabEnd, uint64(pcline))
			r.pcfile, r.pcline = tables[:len(r.pcfile)], tables[len(r.pcfile):]
			r.name = names.size()
			if _, err := names.Write(l.page.cstring(l.off+nameBase+uint64(name), l.off+l.h.size)); err != nil {
				return nil, err
			}
		} else {
			r.name = names.size()
		}
		if _, err := names.Write([]byte{0}); err != nil {
			return nil, err
		}
		buf = r.append(buf[:0])
		if _, err := records.Write(buf); err != nil {
			return nil, err
		}
		g.offsets = append(g.offsets, records.size())
		if int64(len(records.p.data)+len(names.p.data)) > l.budget {
			return nil, errTooLarge
		}
	}
	g.names, g.records = names.done(), records.done()
	if g.bytesHeld() > l.budget {
		return nil, errTooLarge
	}
	return g, l.page.err
}

// oldFiles reads the file table of Go 1.2 to 1.15, whose place is written at off: a count that includes itself, then offsets of
// names.
func (l *goLoader) oldFiles(g *goTable, off uint64) error {
	le := binary.LittleEndian
	u32 := func(off uint64) uint64 {
		if b := l.read(off, 4); len(b) == 4 {
			return uint64(le.Uint32(b))
		}
		return 0
	}
	tab := u32(off)
	n := min(u32(tab), maxGoFuncs)
	var files, cutab packer
	for i := range n {
		place := uint32(math.MaxUint32)
		if name := u32(tab + 4*i); i > 0 && name > 0 {
			place = files.size()
			if _, err := files.Write(l.page.cstring(l.off+name, l.off+l.h.size)); err != nil {
				return err
			}
			if _, err := files.Write([]byte{0}); err != nil {
				return err
			}
		}
		if _, err := cutab.Write(le.AppendUint32(nil, place)); err != nil {
			return err
		}
		if int64(len(files.p.data)) > l.budget {
			return errTooLarge
		}
	}
	g.cutab, g.files = cutab.done(), files.done()
	return l.page.err
}

// findModule reads the moduledata: section .go.module from Go 1.26, before that the struct in the program's data whose first
// word is the pclntab's address, or the place that a relocation of a position-independent file fills with it.
func (l *goLoader) findModule() (moduledata, bool, error) {
	relocs, err := l.relocations()
	if err != nil {
		return moduledata{}, false, err
	}
	if s := l.m.section(".go.module"); s != nil {
		if d, ok, err := l.module(s.addr, relocs); ok || err != nil {
			return d, ok, err
		}
	}
	for _, r := range relocs {
		if r.addend == l.addr {
			if d, ok, err := l.module(r.at, relocs); ok || err != nil {
				return d, ok, err
			}
		}
	}
	left := uint64(maxGoScan)
	for _, s := range l.m.segments {
		if !s.write || s.off > l.m.src.size || s.filesz > l.m.src.size-s.off {
			continue
		}
		pad := uint64(-s.vaddr & 7) // tables are aligned in memory
		if s.filesz <= pad {
			continue
		}
		var candidates []Address
		at := s.vaddr + Address(pad)
		n := min(s.filesz-pad, left)
		left -= n
		ptr := int(l.h.ptr)
		err := l.m.src.stream(s.off+pad, n, "Go data", func(b []byte) error {
			// Pieces begin on word boundaries: no word lies across two.
			for i := 0; i+ptr <= len(b) && len(candidates) < 16; i += ptr {
				v := uint64(binary.LittleEndian.Uint32(b[i:]))
				if ptr == 8 {
					v = binary.LittleEndian.Uint64(b[i:])
				}
				if v == uint64(l.addr) {
					candidates = append(candidates, at+Address(i))
				}
			}
			at += Address(len(b))
			return nil
		})
		if err != nil {
			return moduledata{}, false, err
		}
		for _, c := range candidates {
			if d, ok, err := l.module(c, relocs); ok || err != nil {
				return d, ok, err
			}
		}
	}
	return moduledata{}, false, nil
}

// relative is a relocation that puts load address + addend at a place.
type relative struct{ at, addend Address }

// relocations returns the relative relocations of a 64-bit file, sorted by place.
func (l *goLoader) relocations() ([]relative, error) {
	s := l.m.section(".rela.dyn")
	if s == nil {
		s = l.m.section(".rela")
	}
	if !l.m.class64 || !l.m.inFile(s) || s.size > maxRelocations || s.typ != elf.SHT_RELA {
		return nil, nil
	}
	b, err := l.m.src.bytes(s.off, s.size, maxRelocations, "relocations")
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	list := make([]relative, 0, len(b)/24)
	for ; len(b) >= 24; b = b[24:] {
		t := uint32(le.Uint64(b[8:]))
		if l.m.machine == elf.EM_X86_64 && t == uint32(elf.R_X86_64_RELATIVE) ||
			l.m.machine == elf.EM_AARCH64 && t == uint32(elf.R_AARCH64_RELATIVE) {
			list = append(list, relative{Address(le.Uint64(b)), Address(le.Uint64(b[16:]))})
		}
	}
	slices.SortFunc(list, func(a, b relative) int {
		if a.at < b.at {
			return -1
		}
		if a.at > b.at {
			return 1
		}
		return 0
	})
	return list, nil
}

// module reads the moduledata at a and says whether it is the one of this pclntab: its slices must be where the table's
// header puts them.
func (l *goLoader) module(a Address, relocs []relative) (moduledata, bool, error) {
	ptr := uint64(l.h.ptr)
	b, err := l.m.at(a, moduleWords*ptr, moduleWords*8, "moduledata")
	if err != nil {
		return moduledata{}, false, ignoreFormat(err)
	}
	word := func(i int) Address {
		at := a + Address(uint64(i)*ptr)
		if j, ok := slices.BinarySearchFunc(relocs, at, func(r relative, at Address) int {
			if r.at < at {
				return -1
			}
			if r.at > at {
				return 1
			}
			return 0
		}); ok {
			return relocs[j].addend
		}
		if ptr == 8 {
			return Address(binary.LittleEndian.Uint64(b[8*i:]))
		}
		return Address(binary.LittleEndian.Uint32(b[4*i:]))
	}
	if word(0) != l.addr || word(moduleFuncnames) != l.addr+Address(l.h.funcnames) ||
		word(moduleFtab) != l.addr+Address(l.h.funcs) || uint64(word(moduleFtab+1)) != l.h.nfunc+1 {
		return moduledata{}, false, nil
	}
	d := moduledata{text: word(moduleText), etext: word(moduleEtext), gofunc: word(moduleGofunc120)}
	if l.h.version == go118 {
		d.gofunc = word(moduleGofunc118)
	}
	return d, d.text < d.etext && l.m.executable(d.text), nil
}
