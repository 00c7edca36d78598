package symbol

import (
	"bytes"
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
	h, ok := parseHeader(head, min(size, maxPclntab))
	if !ok {
		return nil, nil
	}
	l := goLoader{m: m, h: h, addr: addr, budget: budget}
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
	budget int64
}

// bad is the error for a table that contradicts itself.
func (l *goLoader) bad(what string) error {
	off, _, _ := l.m.fileOffset(l.addr)
	return &FormatError{off, "pclntab with " + what}
}

// part reads [from, to) of the table.
func (l *goLoader) part(from, to uint64, what string) ([]byte, error) {
	if to < from || to > l.h.size {
		return nil, l.bad(what + " outside of the table")
	}
	return l.m.at(l.addr+Address(from), to-from, maxPclntab, what)
}

// pack reads [from, to) of the table into a packed.
func (l *goLoader) pack(from, to uint64, what string) (*packed, error) {
	if to < from || to > l.h.size {
		return nil, l.bad(what + " outside of the table")
	}
	off, have, ok := l.m.fileOffset(l.addr + Address(from))
	if !ok || have < to-from {
		return nil, l.bad(what + " outside of the file")
	}
	var w packer
	if err := l.m.src.stream(off, to-from, what, func(b []byte) error { _, err := w.Write(b); return err }); err != nil {
		return nil, err
	}
	return w.done(), nil
}

// goFunc is one function record of the table while it is read.
type goFunc struct {
	name, pcfile, pcline, cu, line uint32
	pcil                           []byte // inline tree indices
	tree                           uint32 // offset of the inline tree from gofunc
	nodes                          uint32 // entries in it
}

func (l *goLoader) load() (*goTable, error) {
	if l.h.version == go12 || l.h.version == go116 {
		return l.loadOld()
	}
	g := &goTable{version: l.h.version, quantum: l.h.quantum}
	le := binary.LittleEndian
	ftab, err := l.part(l.h.funcs, l.h.funcs+8*l.h.nfunc+4, "function table")
	if err != nil {
		return nil, err
	}
	g.starts = make([]uint32, l.h.nfunc+1)
	var last uint32
	for i := range g.starts {
		g.starts[i] = le.Uint32(ftab[8*i:])
		if i > 0 && g.starts[i] < g.starts[i-1] {
			return nil, l.bad("functions that are not sorted")
		}
		if i < int(l.h.nfunc) {
			last = max(last, le.Uint32(ftab[8*i+4:]))
		}
	}
	module, ok, err := l.findModule()
	if err != nil {
		return nil, err
	}
	if g.text = module.text; !ok {
		g.text = l.h.text
	}
	if !l.m.executable(g.text+Address(g.starts[0])) || g.text+Address(g.starts[l.h.nfunc]) < g.text {
		return nil, l.bad("functions outside of the program's code")
	}
	if g.names, err = l.pack(l.h.funcnames, l.h.cutab, "function names"); err != nil {
		return nil, err
	}
	// Records lie behind the function table; the last one ends before anything else can be as long.
	end := min(l.h.size, l.h.funcs+uint64(last)+44+4*maxPcdata+4*256)
	full := l.h.size <= maxFullTable || end-l.h.funcs+(l.h.funcs-l.h.pctab) <= maxFullTable
	funcs, err := l.part(l.h.funcs, end, "function records")
	if err != nil {
		return nil, err
	}
	if full {
		if err := l.fill(g, ftab, funcs, module.gofunc); err != nil {
			return nil, err
		}
		if g.bytesHeld() <= l.budget {
			return g, nil
		}
		g.records, g.offsets, g.cutab, g.files = nil, nil, nil, nil
	}
	g.nameOffsets = make([]uint32, l.h.nfunc)
	for i := range g.nameOffsets {
		g.nameOffsets[i] = math.MaxUint32
		if off := uint64(le.Uint32(ftab[8*i+4:])); off+8 <= uint64(len(funcs)) {
			g.nameOffsets[i] = le.Uint32(funcs[off+4:])
		}
	}
	if g.bytesHeld() > l.budget {
		return nil, errTooLarge
	}
	return g, nil
}

// fill writes the records of all functions.
func (l *goLoader) fill(g *goTable, ftab, funcs []byte, gofunc Address) error {
	le := binary.LittleEndian
	pctab, err := l.part(l.h.pctab, l.h.funcs, "pc tables")
	if err != nil {
		return err
	}
	if g.cutab, err = l.pack(l.h.cutab, l.h.files, "file numbers"); err != nil {
		return err
	}
	if g.files, err = l.pack(l.h.files, l.h.pctab, "file names"); err != nil {
		return err
	}
	node := uint64(16)
	if l.h.version == go118 {
		node = 20
	}
	list := make([]goFunc, l.h.nfunc)
	treeMin, treeMax := uint64(math.MaxUint64), uint64(0)
	for i := range list {
		f := &list[i]
		off := uint64(le.Uint32(ftab[8*i+4:]))
		if !l.record(f, funcs, off) {
			f.name = math.MaxUint32
			continue
		}
		npc, nfd := uint64(le.Uint32(funcs[off+28:])), uint64(funcs[off+39])
		fixed := uint64(40)
		if l.h.version >= go120 {
			nfd, fixed = uint64(funcs[off+43]), 44
		}
		if npc <= 2 || npc > maxPcdata || nfd <= 3 || gofunc == 0 || off+fixed+4*npc+4*nfd > uint64(len(funcs)) {
			continue
		}
		tree := le.Uint32(funcs[off+fixed+4*npc+4*3:])
		table := pctable(pctab, le.Uint32(funcs[off+fixed+4*2:]))
		if tree == math.MaxUint32 || table == nil {
			continue
		}
		if n := maxValue(table) + 1; n > 0 && n <= maxInlineTree {
			f.pcil, f.tree, f.nodes = table, tree, uint32(n)
			treeMin, treeMax = min(treeMin, uint64(tree)), max(treeMax, uint64(tree)+uint64(n)*node)
		}
	}
	var trees []byte
	if treeMax > treeMin && treeMax-treeMin <= maxFuncdata {
		// A tree that is not there costs the inlined frames, not the functions.
		if trees, err = l.m.at(gofunc+Address(treeMin), treeMax-treeMin, maxFuncdata, "inline trees"); ignoreFormat(err) != nil {
			return err
		}
	}
	var w packer
	var buf []byte
	g.offsets = make([]uint32, 1, l.h.nfunc+1)
	for i := range list {
		f := &list[i]
		r := goFunction{
			name: f.name, cu: f.cu, line: f.line,
			pcfile: pctable(pctab, f.pcfile), pcline: pctable(pctab, f.pcline),
		}
		if f.nodes > 0 && trees != nil {
			r.pcil = f.pcil
			b := trees[uint64(f.tree)-treeMin:]
			for range f.nodes {
				var e inlined
				if l.h.version == go118 {
					e = inlined{name: le.Uint32(b[12:]), parentPC: le.Uint32(b[16:])}
				} else {
					e = inlined{name: le.Uint32(b[4:]), parentPC: le.Uint32(b[8:]), line: le.Uint32(b[12:])}
				}
				r.tree = append(r.tree, e)
				b = b[node:]
			}
		}
		buf = r.append(buf[:0])
		if _, err := w.Write(buf); err != nil {
			return err
		}
		if int64(len(w.p.data)) > l.budget {
			break // the caller keeps the reduced form
		}
		g.offsets = append(g.offsets, w.size())
	}
	g.records = w.done()
	return nil
}

// record reads the fixed part of the function record at off.
func (l *goLoader) record(f *goFunc, funcs []byte, off uint64) bool {
	if off+44 > uint64(len(funcs)) {
		return false
	}
	le := binary.LittleEndian
	b := funcs[off:]
	f.name, f.pcfile, f.pcline, f.cu = le.Uint32(b[4:]), le.Uint32(b[20:]), le.Uint32(b[24:]), le.Uint32(b[32:])
	if l.h.version >= go120 {
		f.line = le.Uint32(b[36:])
	}
	return true
}

// loadOld reads the layouts of Go 1.2 to 1.17, whose functions have absolute addresses. They have no inlined frames here.
func (l *goLoader) loadOld() (*goTable, error) {
	if l.h.size > maxFullTable {
		return nil, l.bad("a size beyond the limit for its version")
	}
	// A table without a section of its own ends somewhere before its segment does.
	all, err := l.part(0, l.h.size, "table")
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	ptr := uint64(l.h.ptr)
	word := func(off uint64) uint64 {
		if off+ptr > uint64(len(all)) {
			return 0
		}
		if ptr == 8 {
			return le.Uint64(all[off:])
		}
		return uint64(le.Uint32(all[off:]))
	}
	tabEnd := l.h.funcs + 2*ptr*l.h.nfunc + ptr
	if tabEnd+4 > uint64(len(all)) {
		return nil, l.bad("a function table that reaches beyond it")
	}
	g := &goTable{version: l.h.version, quantum: l.h.quantum, text: Address(word(l.h.funcs))}
	if !l.m.executable(g.text) {
		return nil, l.bad("functions outside of the program's code")
	}
	pctab, recBase := all, uint64(0)
	if l.h.version == go116 {
		pctab, recBase = all[l.h.pctab:l.h.funcs], l.h.funcs
	}
	var names, files, cutab, records packer
	write := func(w *packer, s []byte) (uint32, error) {
		off := w.size()
		if _, err := w.Write(s); err != nil {
			return 0, err
		}
		_, err := w.Write(zero[:])
		return off, err
	}
	str := func(off uint64) []byte {
		if off >= uint64(len(all)) {
			return nil
		}
		return cname(all, uint32(off))
	}
	if l.h.version == go12 {
		fileTab := uint64(le.Uint32(all[tabEnd:]))
		n := uint64(0)
		if fileTab+4 <= uint64(len(all)) {
			n = min(uint64(le.Uint32(all[fileTab:])), (uint64(len(all))-fileTab)/4)
		}
		for i := range n {
			off := uint32(math.MaxUint32)
			if s := str(uint64(le.Uint32(all[fileTab+4*i:]))); i > 0 && s != nil {
				if off, err = write(&files, s); err != nil {
					return nil, err
				}
			}
			if _, err := cutab.Write(le.AppendUint32(nil, off)); err != nil {
				return nil, err
			}
		}
		g.cutab, g.files = cutab.done(), files.done()
	} else {
		if g.cutab, err = l.pack(l.h.cutab, l.h.files, "file numbers"); err != nil {
			return nil, err
		}
		if g.files, err = l.pack(l.h.files, l.h.pctab, "file names"); err != nil {
			return nil, err
		}
	}
	g.starts = make([]uint32, 0, l.h.nfunc+1)
	g.offsets = make([]uint32, 1, l.h.nfunc+1)
	var buf []byte
	for i := range l.h.nfunc + 1 {
		entry := word(l.h.funcs + 2*ptr*i)
		if entry < uint64(g.text) || entry-uint64(g.text) > math.MaxUint32 ||
			i > 0 && uint32(entry-uint64(g.text)) < g.starts[i-1] {
			return nil, l.bad("functions that are not sorted")
		}
		g.starts = append(g.starts, uint32(entry-uint64(g.text)))
		if i == l.h.nfunc {
			break
		}
		var r goFunction
		off := recBase + word(l.h.funcs+2*ptr*i+ptr)
		if off >= recBase && off+ptr+32 <= uint64(len(all)) {
			b := all[off+ptr:]
			r.pcfile, r.pcline = pctable(pctab, le.Uint32(b[16:])), pctable(pctab, le.Uint32(b[20:]))
			nameAt := uint64(le.Uint32(b))
			if l.h.version == go116 {
				nameAt += l.h.funcnames
				r.cu = le.Uint32(b[28:])
			}
			if r.name, err = write(&names, str(nameAt)); err != nil {
				return nil, err
			}
		}
		buf = r.append(buf[:0])
		if _, err := records.Write(buf); err != nil {
			return nil, err
		}
		g.offsets = append(g.offsets, records.size())
	}
	g.names, g.records = names.done(), records.done()
	if g.bytesHeld() > l.budget {
		return nil, errTooLarge
	}
	return g, nil
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
