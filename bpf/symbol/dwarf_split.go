package symbol

import (
	"errors"
	"os"
	"strings"
)

// This file finds and opens the other files that debug information may be in: supplementary files, which dwz moves to what several
// programs have in common (DWARF 5 section 7.3.6), split files, into which a compiler writes all that the linker need not see (section
// 7.3.2), and packages of these (section 7.3.5). The same exists for DWARF 4 with other names ("GNU DebugFission").

// ErrNoCompanion says that debug information is in part in a file that was not found.
var ErrNoCompanion = errors.New("a file that belongs to the debug information is not there")

const (
	// maxDwpColumns are the sections of a package that an index may tell of; eight are known.
	maxDwpColumns = 16
	// maxDwpProbes is how long one entry of a package's index is looked for. The table is at most two thirds full.
	maxDwpProbes = 1 << 10
	// maxSplitUnits is how many units of one split file are looked at: there is one, or with link-time optimization a few.
	maxSplitUnits = 1 << 10
)

// companions are the other files of one reading.
type companions struct {
	find   DebugFinder
	place  string // of the file that is read
	budget *debugBudget

	sup      *debugFile
	supTried bool
	dwp      *splitPackage
	dwpTried bool
	open     []*os.File
	errs     []error // why files are missing, the first few
}

// close closes what was opened.
func (o *companions) close() {
	for _, f := range o.open {
		f.Close()
	}
}

// miss remembers why a file is missing.
func (o *companions) miss(err error) {
	if len(o.errs) < 4 && err != nil {
		o.errs = append(o.errs, err)
	}
}

// missing is the error for all that was not found.
func (o *companions) missing() error {
	for _, err := range o.errs {
		if errors.Is(err, ErrNotYet) {
			return ErrNotYet
		}
	}
	if len(o.errs) > 0 {
		return ErrNoCompanion
	}
	return nil
}

// supplement opens the supplementary file of m; nil if it has none or it is not there.
func (o *companions) supplement(m *image) *debugFile {
	if o.supTried {
		return o.sup
	}
	o.supTried = true
	s, _, err := m.supplement()
	if err != nil || s.name == "" {
		o.miss(err)
		return nil
	}
	f, err := o.find.supplement(s, o.place)
	if err != nil {
		o.miss(err)
		return nil
	}
	o.open = append(o.open, f)
	if m, _, err = imageOf(f); err == nil {
		o.sup, err = newDebugFile(m, f, o.budget, false)
	}
	o.miss(err)
	return o.sup
}

// split opens the unit that belongs to a skeleton, nil if it is not there. Whoever got one calls done when it has been read.
func (o *companions) split(u *unit) (split *unit, done func()) {
	if u.dwoID == 0 {
		return nil, nil
	}
	if p := o.splitPackage(); p != nil {
		if d, err := p.file(u.dwoID); err != nil {
			o.miss(err)
		} else if d != nil {
			if split, err = d.splitUnit(u); split != nil {
				return split, func() {}
			}
			o.miss(err)
		}
	}
	f, _, err := o.find.find(o.find.splitPaths(u.dir, u.text(u.root.dwoName)), "", func(f *os.File) error {
		var err error
		split, err = o.splitFile(f, u)
		return err
	})
	if err != nil {
		o.miss(err)
		return nil, nil
	}
	return split, func() { f.Close() }
}

// splitFile opens the unit of a skeleton in a split file. The file is an object file: units of types, which the linker would have made
// one of each, have sections of their own with the same name.
func (o *companions) splitFile(f *os.File, skeleton *unit) (*unit, error) {
	m, _, err := imageOf(f)
	if err != nil {
		return nil, err
	}
	d, err := newDebugFile(m, f, o.budget, true)
	if err != nil {
		return nil, err
	}
	name := d.info.name
	for i := range m.sections {
		s := &m.sections[i]
		if s.name != name {
			continue
		}
		d.heads, d.scanned = nil, 0
		clear(d.opened)
		if err := d.openSection(m, f, s, strings.HasPrefix(name, ".z"), &d.info); err != nil {
			return nil, err
		}
		if u, err := d.splitUnit(skeleton); u != nil || err != nil {
			return u, err
		}
	}
	return nil, ErrOtherDebugFile
}

// splitUnit finds the unit of a skeleton in a split file; nil if there is none.
func (d *debugFile) splitUnit(skeleton *unit) (*unit, error) {
	for i := range maxSplitUnits {
		if i == len(d.heads) {
			if ok, err := d.nextHead(); !ok || err != nil {
				return nil, err
			}
		}
		h, err := d.headAt(d.heads[i])
		if err != nil {
			return nil, err
		}
		if !h.code || h.version >= 5 && h.dwoID != skeleton.dwoID {
			continue
		}
		u, err := d.openUnit(h, skeleton)
		if err != nil {
			return nil, err
		}
		if u.dwoID == skeleton.dwoID {
			return u, nil
		}
	}
	return nil, nil
}

// splitPackage is a file with all split units of a program, and an index of them.
type splitPackage struct {
	d     *debugFile
	index debugSection
}

// splitPackage opens the package, nil if there is none.
func (o *companions) splitPackage() *splitPackage {
	if o.dwpTried {
		return o.dwp
	}
	o.dwpTried = true
	f, _, err := o.find.find(o.find.packagePaths(), "", func(f *os.File) error {
		m, _, err := imageOf(f)
		if err != nil {
			return err
		}
		p := &splitPackage{}
		if p.d, err = newDebugFile(m, f, o.budget, true); err != nil {
			return err
		}
		if err := p.d.open(m, f, "cu_index", &p.index); err != nil {
			return err
		}
		if p.index.size == 0 {
			return ErrOtherDebugFile
		}
		o.dwp = p
		return nil
	})
	if err != nil {
		return nil // most programs have none
	}
	o.open = append(o.open, f)
	return o.dwp
}

// file returns the part of a package that belongs to one unit; nil if the package has none of it. The index is a hash table of
// identities, a table of rows, and for each row and section the offset and the size of its part (section 7.3.5.3).
func (p *splitPackage) file(id uint64) (*debugFile, error) {
	c := p.d.cursor(&p.index, 0, p.index.size)
	version, columns, units, slots := c.u32(), c.u32(), c.u32(), c.u32()
	if c.err == nil && version != 2 && version != 5 {
		c.fail("an index of unknown version")
	}
	rows := 16 + 12*slots
	if c.err == nil && (columns == 0 || columns > maxDwpColumns || slots&(slots-1) != 0 || units > slots || rows+4*columns*(1+2*units) > p.index.size) {
		c.fail("an index that is larger than its section")
	}
	if c.err != nil || slots == 0 {
		return nil, c.err
	}
	row := uint64(0)
	at, step := id&(slots-1), id>>32&(slots-1)|1
	for range min(slots, maxDwpProbes) {
		c.spend(1)
		c.seek(16 + 8*at)
		signature := c.u64()
		c.seek(16 + 8*slots + 4*at)
		n := c.u32()
		if c.err != nil || n == 0 {
			return nil, c.err
		}
		if signature == id {
			row = n
			break
		}
		at = (at + step) & (slots - 1)
	}
	if row == 0 || row > units {
		return nil, nil
	}
	part := &debugFile{debugBudget: p.d.debugBudget, dwo: true, abbrevs: map[uint64]abbrevTable{}, opened: map[uint64]*unit{}, supplement: p.d.supplement}
	part.str, part.lineStr = p.d.str, p.d.lineStr
	for column := range columns {
		c.seek(rows + 4*column)
		kind := c.u32()
		c.seek(rows + 4*columns*row + 4*column)
		off := c.u32()
		c.seek(rows + 4*columns*(units+row) + 4*column)
		size := c.u32()
		if c.err != nil {
			return nil, c.err
		}
		var whole, to *debugSection
		switch {
		case kind == 1:
			whole, to = &p.d.info, &part.info
		case kind == 3:
			whole, to = &p.d.abbrev, &part.abbrev
		case kind == 6:
			whole, to = &p.d.strOffsets, &part.strOffsets
		case kind == 8 && version == 5:
			whole, to = &p.d.rnglists, &part.rnglists
		default:
			continue
		}
		if off > whole.size || size > whole.size-off {
			c.fail("a part beyond the end of " + whole.name)
			return nil, c.err
		}
		*to = debugSection{name: whole.name, r: whole.r, off: whole.off + int64(off), size: size}
	}
	return part, nil
}
