package symbol

import "path"

// This file reads .debug_line: which line of which file an instruction comes from (DWARF 5 section 6.2).

// maxLineFiles bounds the files, and the directories, of one unit.
const maxLineFiles = 1 << 16

// place is a line of a file, by the file's number in its unit. Line 0 is code that the compiler made of several lines.
type place struct {
	file, line uint64
	known      bool
}

// lineTable is the head of one unit's line program and, after run, the places of the addresses that were asked for.
type lineTable struct {
	u       *unit
	c       *cursor
	version uint64

	minInst, maxOps, lineRange, opcodeBase uint64
	lineBase                               int64
	lengths                                []uint8 // operands of each standard opcode

	dirs  []string
	files []lineFile
}

type lineFile struct {
	name string
	dir  uint64
}

// lines reads the head of the unit's line program; nil if it has none.
func (u *unit) lines() (*lineTable, error) {
	if !u.hasLine {
		return nil, nil
	}
	c := u.d.cursor(&u.d.line, u.lineOff, u.d.line.size)
	c.length()
	t := &lineTable{u: u, c: c, version: c.u16()}
	if c.err == nil && (t.version < 2 || t.version > 5) {
		c.fail("unknown version of a line table")
	}
	if t.version >= 5 {
		c.skip(2) // sizes of addresses and segment selectors
	}
	program := c.offset()
	program += c.pos
	t.minInst, t.maxOps = uint64(c.u8()), 1
	if t.version >= 4 {
		t.maxOps = max(1, uint64(c.u8()))
	}
	c.skip(1) // default_is_stmt
	t.lineBase, t.lineRange, t.opcodeBase = int64(int8(c.u8())), uint64(c.u8()), uint64(c.u8())
	if c.err == nil && (t.lineRange == 0 || t.opcodeBase == 0 || program > c.end) {
		c.fail("a line table whose head makes no sense")
	}
	t.lengths = make([]uint8, t.opcodeBase)
	for i := uint64(1); i < t.opcodeBase; i++ {
		t.lengths[i] = c.u8()
	}
	if t.version >= 5 {
		t.readNames5()
	} else {
		t.readNames()
	}
	if c.err != nil {
		return nil, c.err
	}
	c.seek(program)
	return t, c.err
}

// readNames reads directories and files as versions 2 to 4 have them. Both are counted from 1; directory 0 is the unit's.
func (t *lineTable) readNames() {
	t.dirs, t.files = []string{t.u.dir}, []lineFile{{name: t.u.name}}
	for t.c.err == nil {
		dir := t.c.cstring()
		if dir == "" {
			break
		}
		t.addDir(dir)
	}
	for t.c.err == nil {
		name := t.c.cstring()
		if name == "" {
			break
		}
		f := lineFile{name, t.c.uleb()}
		t.c.uleb() // time
		t.c.uleb() // size
		t.addFile(f)
	}
}

func (t *lineTable) addDir(dir string) {
	if t.dirs = append(t.dirs, dir); len(t.dirs) > maxLineFiles {
		t.c.fail("too many directories")
	}
}

func (t *lineTable) addFile(f lineFile) {
	if t.files = append(t.files, f); len(t.files) > maxLineFiles {
		t.c.fail("too many files")
	}
}

// readNames5 reads directories and files as version 5 has them, both counted from 0.
func (t *lineTable) readNames5() {
	t.readEntries(func(f lineFile) { t.addDir(f.name) })
	t.readEntries(t.addFile)
}

func (t *lineTable) readEntries(add func(lineFile)) {
	c := t.c
	type format struct {
		content uint64
		form    form
	}
	var formats []format
	for range c.u8() {
		formats = append(formats, format{c.uleb(), form(c.uleb())})
	}
	n := c.uleb()
	if c.err == nil && (n > maxLineFiles || n > 0 && len(formats) == 0) {
		c.fail("too many files")
	}
	for i := uint64(0); i < n && c.err == nil; i++ {
		var f lineFile
		for _, g := range formats {
			switch g.content {
			case 1: // DW_LNCT_path
				if g.form == formString {
					f.name = c.cstring()
				} else {
					f.name = t.u.text(t.u.value(c, g.form, 0))
				}
			case 2: // DW_LNCT_directory_index
				f.dir = t.u.value(c, g.form, 0).v
			default:
				t.u.value(c, g.form, 0)
			}
		}
		if c.err == nil {
			add(f)
		}
	}
}

// file returns the path of file n as the compiler saw it, "" if there is no such file.
func (t *lineTable) file(n uint64) string {
	if n >= uint64(len(t.files)) || t.files[n].name == "" {
		return ""
	}
	f := t.files[n]
	name := f.name
	if !path.IsAbs(name) && f.dir < uint64(len(t.dirs)) {
		name = path.Join(t.dirs[f.dir], name)
	}
	if f.dir != 0 && !path.IsAbs(name) && t.u.dir != "" { // directory 0 is the unit's own, relative or not
		name = path.Join(t.u.dir, name)
	}
	return name
}

// run executes the line program and returns the place of each address, which are sorted; the zero place where it tells none.
func (t *lineTable) run(addresses []Address) ([]place, error) {
	places := make([]place, len(addresses))
	c := t.c
	var (
		address Address
		op      uint64 // of a VLIW instruction
		now     = place{1, 1, true}
		last    Address // of the row before, which ends where the next one begins
		was     place
		open    bool
	)
	emit := func(end bool) {
		if open && address > last {
			lo, hi := within(addresses, last, address)
			for i := lo; i < hi; i++ {
				if !places[i].known {
					places[i] = was
				}
			}
		}
		last, was, open = address, now, !end
	}
	advance := func(n uint64) {
		if t.maxOps == 1 {
			address += Address(n * t.minInst)
			return
		}
		address += Address((op + n) / t.maxOps * t.minInst)
		op = (op + n) % t.maxOps
	}
	for c.left() > 0 {
		c.spend(1)
		opcode := uint64(c.u8())
		switch {
		case opcode >= t.opcodeBase:
			opcode -= t.opcodeBase
			advance(opcode / t.lineRange)
			now.line += uint64(t.lineBase + int64(opcode%t.lineRange))
			emit(false)
		case opcode == 0: // extended
			n := c.uleb()
			end := c.pos + n
			if n == 0 || end < c.pos || end > c.end {
				c.fail("an opcode longer than its table")
				break
			}
			switch c.u8() {
			case 1: // DW_LNE_end_sequence
				emit(true)
				address, op, now = 0, 0, place{1, 1, true}
			case 2: // DW_LNE_set_address
				if n-1 <= 8 && n > 1 {
					address, op = Address(c.uint(n-1)), 0
				}
			case 3: // DW_LNE_define_file
				f := lineFile{c.cstring(), c.uleb()}
				t.addFile(f)
			}
			c.seek(end)
		case opcode == 1: // DW_LNS_copy
			emit(false)
		case opcode == 2: // advance_pc
			advance(c.uleb())
		case opcode == 3: // advance_line
			now.line += uint64(c.sleb())
		case opcode == 4: // set_file
			now.file = c.uleb()
		case opcode == 8: // const_add_pc
			advance((255 - t.opcodeBase) / t.lineRange)
		case opcode == 9: // fixed_advance_pc
			address, op = address+Address(c.u16()), 0
		default: // known or not, it says how many operands it has
			for range t.lengths[opcode] { // at most 255
				c.uleb()
			}
		}
	}
	return places, c.err
}
