package symbol

import (
	"cmp"
	"debug/dwarf"
	"slices"
)

// This file reads .debug_info: compile units, their entries (DIEs) and what one needs of their attributes. Section numbers are
// those of the DWARF 5 standard; version 4 and older differ where a comment says so.

const (
	maxUnits      = 1 << 17 // compile units; the largest programs known have 60,000
	maxAbbrevs    = 1 << 16 // of one table
	maxAttributes = 1 << 18 // of one table
	maxTables     = 16      // abbreviation tables that are kept
	maxOpened     = 64      // units that are kept because others refer to them
	maxDepth      = 512     // of entries in one another
	maxRefs       = 8       // from an entry to the one with its name: concrete → abstract → declaration
	maxRangeSteps = 1 << 20 // address ranges read in one go
)

// form is how an attribute is written (section 7.5.6). debug/dwarf keeps its own to itself.
type form uint16

const (
	formAddr         form = 0x01
	formBlock2       form = 0x03
	formBlock4       form = 0x04
	formData2        form = 0x05
	formData4        form = 0x06
	formData8        form = 0x07
	formString       form = 0x08
	formBlock        form = 0x09
	formBlock1       form = 0x0a
	formData1        form = 0x0b
	formFlag         form = 0x0c
	formSdata        form = 0x0d
	formStrp         form = 0x0e
	formUdata        form = 0x0f
	formRefAddr      form = 0x10
	formRef1         form = 0x11
	formRef2         form = 0x12
	formRef4         form = 0x13
	formRef8         form = 0x14
	formRefUdata     form = 0x15
	formIndirect     form = 0x16
	formSecOffset    form = 0x17
	formExprloc      form = 0x18
	formFlagPresent  form = 0x19
	formStrx         form = 0x1a
	formAddrx        form = 0x1b
	formRefSup4      form = 0x1c
	formStrpSup      form = 0x1d
	formData16       form = 0x1e
	formLineStrp     form = 0x1f
	formRefSig8      form = 0x20
	formImplicit     form = 0x21
	formLoclistx     form = 0x22
	formRnglistx     form = 0x23
	formRefSup8      form = 0x24
	formStrx1        form = 0x25
	formStrx2        form = 0x26
	formStrx3        form = 0x27
	formStrx4        form = 0x28
	formAddrx1       form = 0x29
	formAddrx2       form = 0x2a
	formAddrx3       form = 0x2b
	formAddrx4       form = 0x2c
	formGNUAddrIndex form = 0x1f01
	formGNUStrIndex  form = 0x1f02
	formGNURefAlt    form = 0x1f20
	formGNUStrpAlt   form = 0x1f21
)

// attribute is one line of an abbreviation.
type attribute struct {
	name     dwarf.Attr
	form     form
	implicit int64
}

type abbrev struct {
	tag        dwarf.Tag
	children   bool
	attributes []attribute
}

type abbrevTable map[uint64]*abbrev

// abbrevsAt reads an abbreviation table (section 7.5.3).
func (d *debugFile) abbrevsAt(off uint64) (abbrevTable, error) {
	if t, ok := d.abbrevs[off]; ok {
		return t, nil
	}
	c := d.cursor(&d.abbrev, off, d.abbrev.size)
	t := abbrevTable{}
	attributes := 0
	for c.err == nil {
		a, code := abbrevFrom(c, &attributes)
		if a == nil {
			break
		}
		if t[code] = a; len(t) > maxAbbrevs {
			c.fail("too many abbreviations")
		}
	}
	if c.err != nil {
		return nil, c.err
	}
	if len(d.abbrevs) >= maxTables {
		clear(d.abbrevs)
	}
	d.abbrevs[off] = t
	return t, nil
}

// abbrevAt reads one abbreviation of a table, the first that a unit uses: it is nearly always the first of the table, too.
func (d *debugFile) abbrevAt(off, code uint64) (abbrevTable, error) {
	if t, ok := d.abbrevs[off]; ok {
		return t, nil
	}
	c := d.cursor(&d.abbrev, off, d.abbrev.size)
	c.buf = make([]byte, 0, scanAhead)
	attributes := 0
	for c.err == nil {
		a, n := abbrevFrom(c, &attributes)
		if n == code && a != nil {
			return abbrevTable{code: a}, c.err
		}
		if a == nil {
			c.fail("an entry of an unknown kind")
		}
	}
	return nil, c.err
}

// abbrevFrom reads an abbreviation and its code; nil at the end of the table.
func abbrevFrom(c *cursor, attributes *int) (*abbrev, uint64) {
	code := c.uleb()
	if code == 0 {
		return nil, 0
	}
	a := &abbrev{tag: dwarf.Tag(c.uleb()), children: c.u8() != 0}
	for c.err == nil {
		at := attribute{name: dwarf.Attr(c.uleb()), form: form(c.uleb())}
		if at.form == formImplicit {
			at.implicit = c.sleb()
		}
		if at.name == 0 && at.form == 0 {
			break
		}
		a.attributes = append(a.attributes, at)
		if *attributes++; *attributes > maxAttributes {
			c.fail("too many attributes")
		}
	}
	return a, code
}

// unitHead is the header of a unit in .debug_info (section 7.5.1).
type unitHead struct {
	off, end    uint64 // in .debug_info
	entries     uint64 // where the first entry begins
	abbrevOff   uint64
	version     uint16
	addressSize uint8
	dwarf64     bool
	code        bool   // a unit that may have code: a compile unit, not one of types
	dwoID       uint64 // of a skeleton and of its split unit, since version 5
}

// headAt reads the header at off.
func (d *debugFile) headAt(off uint64) (unitHead, error) {
	c := d.cursor(&d.info, off, d.info.size)
	c.buf = make([]byte, 0, 32) // the longest header has 28
	return headFrom(c)
}

// headFrom reads a header; the cursor ends where the unit does from now on.
func headFrom(c *cursor) (unitHead, error) {
	h := unitHead{off: c.pos, code: true}
	c.length()
	h.end, h.version, h.dwarf64 = c.end, uint16(c.u16()), c.dwarf64
	if c.err == nil && (h.version < 2 || h.version > 5) {
		c.fail("unknown DWARF version")
	}
	if h.version == 5 {
		kind := c.u8()
		h.addressSize = c.u8()
		h.abbrevOff = c.offset()
		switch kind {
		case 1, 3: // DW_UT_compile, DW_UT_partial
		case 4, 5: // DW_UT_skeleton, DW_UT_split_compile
			h.dwoID = c.u64()
		case 2, 6: // DW_UT_type, DW_UT_split_type
			c.skip(8)
			c.offset()
			h.code = false
		default:
			c.fail("unknown kind of unit")
		}
	} else {
		h.abbrevOff = c.offset()
		h.addressSize = c.u8()
	}
	h.entries = c.pos
	if c.err == nil && h.addressSize != 4 && h.addressSize != 8 {
		c.fail("addresses that are neither 4 nor 8 bytes long")
	}
	return h, c.err
}

// nextHead finds the unit behind those that are known and enters it; false at the end.
func (d *debugFile) nextHead() (ok bool, err error) {
	if d.scanned >= d.info.size {
		return false, nil
	}
	c := d.cursor(&d.info, d.scanned, d.info.size)
	c.buf = make([]byte, 0, 16)
	c.length()
	if c.err != nil {
		return false, c.err
	}
	if len(d.heads) >= maxUnits {
		return false, errDebugLimit
	}
	d.spend(1)
	d.heads, d.scanned = append(d.heads, d.scanned), c.end
	return true, nil
}

// headOf returns the unit that the entry at off belongs to.
func (d *debugFile) headOf(off uint64) (unitHead, bool) {
	for off >= d.scanned {
		if ok, err := d.nextHead(); !ok || err != nil || d.work < 0 {
			return unitHead{}, false
		}
	}
	i, found := slices.BinarySearch(d.heads, off)
	if !found {
		i--
	}
	if i < 0 {
		return unitHead{}, false
	}
	h, err := d.headAt(d.heads[i])
	return h, err == nil && off >= h.entries && off < h.end
}

// unitOf opens the unit that the entry at off belongs to; nil if there is none that could be read.
func (d *debugFile) unitOf(off uint64) *unit {
	h, found := d.headOf(off)
	if !found {
		return nil
	}
	if u := d.opened[h.off]; u != nil {
		return u
	}
	u, err := d.openUnit(h, nil)
	if err != nil {
		return nil
	}
	if len(d.opened) >= maxOpened {
		clear(d.opened)
	}
	d.opened[h.off] = u
	return u
}

// unit is a unit that is being read.
type unit struct {
	d *debugFile
	unitHead
	abbrevs abbrevTable
	// What its first entry says; entries cannot be read without it.
	low                                    Address
	strOffsetsBase, addrBase, rnglistsBase uint64
	dir, name                              string
	lineOff                                uint64
	hasLine                                bool
	root                                   die
	// skeleton is, of a split unit, the unit in the program that knows addresses, ranges and lines; nil otherwise.
	skeleton *unit
}

// die is what is of use in an entry.
type die struct {
	off, next     uint64 // where it is and where the one after it begins
	tag           dwarf.Tag
	children      bool
	sibling       uint64 // 0: not said
	name, linkage value
	low, high     value
	ranges        value
	origin        value
	declLine      uint64
	callFile      uint64
	callLine      uint64
	dir           value
	line          value
	bases         [4]uint64 // str_offsets, addr, rnglists, ranges
	dwoName       value
	dwoID         uint64 // before version 5, which has it in the unit's header
}

// value is an attribute that is not looked up yet.
type value struct {
	form form // 0: absent
	v    uint64
	off  uint64 // of a string in place
}

// openUnit reads the first entry of a unit; skeleton is nil but for a split one.
func (d *debugFile) openUnit(h unitHead, skeleton *unit) (*unit, error) {
	t, err := d.abbrevsAt(h.abbrevOff)
	if err != nil {
		return nil, err
	}
	u := &unit{d: d, unitHead: h, abbrevs: t, skeleton: skeleton}
	c := u.cursor(h.entries)
	c.buf = make([]byte, 0, scanAhead)
	return u, u.readRoot(c)
}

// readRoot reads the first entry of a unit and what it says about the others.
func (u *unit) readRoot(c *cursor) error {
	root, ok := u.die(c)
	if c.err != nil || !ok {
		return cmp.Or(c.err, error(&FormatError{uint64(u.d.info.off) + u.entries, u.d.info.name + ": a unit without entries"}))
	}
	u.root = root
	u.strOffsetsBase, u.addrBase, u.rnglistsBase = root.bases[0], root.bases[1], root.bases[2]
	if u.dwoID == 0 {
		u.dwoID = root.dwoID
	}
	if u.d.dwo && u.version >= 5 { // a split unit's tables begin behind the headers of their sections (sections 7.26, 7.28)
		u.strOffsetsBase, u.rnglistsBase = 8, 12
		if u.dwarf64 {
			u.strOffsetsBase, u.rnglistsBase = 16, 20
		}
	}
	if u.skeleton != nil {
		u.low = u.skeleton.low
	}
	if a, ok := u.address(root.low); ok {
		u.low = a
	}
	u.dir, u.name = u.text(root.dir), u.text(root.name)
	u.lineOff, u.hasLine = root.line.v, root.line.form != 0
	return nil
}

func (u *unit) cursor(off uint64) *cursor {
	c := u.d.cursor(&u.d.info, off, u.end)
	c.dwarf64 = u.dwarf64
	return c
}

// die reads the entry at the cursor; false is the null entry that ends a row of siblings.
func (u *unit) die(c *cursor) (die, bool) {
	e := die{off: c.pos}
	code := c.uleb()
	if code == 0 || c.err != nil {
		e.next = c.pos
		return e, false
	}
	a := u.abbrevs[code]
	if a == nil {
		c.fail("an entry of an unknown kind")
		return e, false
	}
	e.tag, e.children = a.tag, a.children
	if c.spend(1 + len(a.attributes)); c.err != nil {
		return e, false
	}
	for _, at := range a.attributes {
		v := u.value(c, at.form, at.implicit)
		switch at.name {
		case dwarf.AttrSibling:
			if off, ok := u.localReference(v); ok && off > e.off && off < u.end {
				e.sibling = off
			}
		case dwarf.AttrName:
			e.name = v
		case dwarf.AttrLinkageName, 0x2007: // DW_AT_MIPS_linkage_name, before version 4
			e.linkage = v
		case dwarf.AttrLowpc:
			e.low = v
		case dwarf.AttrHighpc:
			e.high = v
		case dwarf.AttrRanges:
			e.ranges = v
		case dwarf.AttrAbstractOrigin, dwarf.AttrSpecification:
			e.origin = v
		case dwarf.AttrDeclLine:
			e.declLine = v.v
		case dwarf.AttrCallFile:
			e.callFile = v.v
		case dwarf.AttrCallLine:
			e.callLine = v.v
		case dwarf.AttrCompDir:
			e.dir = v
		case dwarf.AttrStmtList:
			e.line = v
		case dwarf.AttrStrOffsetsBase:
			e.bases[0] = v.v
		case dwarf.AttrAddrBase, 0x2133: // DW_AT_GNU_addr_base
			e.bases[1] = v.v
		case dwarf.AttrRnglistsBase:
			e.bases[2] = v.v
		case 0x2132: // DW_AT_GNU_ranges_base
			e.bases[3] = v.v
		case dwarf.AttrDwoName, 0x2130: // DW_AT_GNU_dwo_name
			e.dwoName = v
		case 0x2131: // DW_AT_GNU_dwo_id
			e.dwoID = v.v
		}
	}
	e.next = c.pos
	return e, c.err == nil
}

// value reads an attribute, or skips it if its form is none that we look up.
func (u *unit) value(c *cursor, f form, implicit int64) value {
	for range 4 { // an indirect form may be indirect again; nobody writes that
		if f != formIndirect {
			break
		}
		f = form(c.uleb())
	}
	v := value{form: f}
	switch f {
	case formAddr:
		v.v = c.uint(uint64(u.addressSize))
	case formData1, formFlag, formRef1, formStrx1, formAddrx1:
		v.v = uint64(c.u8())
	case formData2, formRef2, formStrx2, formAddrx2:
		v.v = c.u16()
	case formStrx3, formAddrx3:
		v.v = c.uint(3)
	case formData4, formRef4, formStrx4, formAddrx4, formRefSup4:
		v.v = c.u32()
	case formData8, formRef8, formRefSig8, formRefSup8:
		v.v = c.u64()
	case formData16:
		c.skip(16)
	case formSdata:
		v.v = uint64(c.sleb())
	case formUdata, formRefUdata, formStrx, formAddrx, formLoclistx, formRnglistx, formGNUAddrIndex, formGNUStrIndex:
		v.v = c.uleb()
	case formRefAddr:
		if u.version <= 2 {
			v.v = c.uint(uint64(u.addressSize))
		} else {
			v.v = c.offset()
		}
	case formStrp, formSecOffset, formStrpSup, formLineStrp, formGNURefAlt, formGNUStrpAlt:
		v.v = c.offset()
	case formString:
		v.off = c.pos
		c.skipString()
	case formBlock1:
		c.skip(uint64(c.u8()))
	case formBlock2:
		c.skip(c.u16())
	case formBlock4:
		c.skip(c.u32())
	case formBlock, formExprloc:
		c.skip(c.uleb())
	case formFlagPresent:
		v.v = 1
	case formImplicit:
		v.v = uint64(implicit)
	default:
		c.fail("an attribute of an unknown form")
	}
	return v
}

// text looks a string attribute up; "" if it is absent or in a file that is not there.
func (u *unit) text(v value) string {
	d := u.d
	switch v.form {
	case formString:
		return d.stringAt(&d.info, v.off)
	case formStrp:
		return d.stringAt(&d.str, v.v)
	case formLineStrp:
		return d.stringAt(&d.lineStr, v.v)
	case formStrpSup, formGNUStrpAlt:
		if sup := d.supplement(); sup != nil {
			return sup.stringAt(&sup.str, v.v)
		}
	case formStrx, formStrx1, formStrx2, formStrx3, formStrx4, formGNUStrIndex:
		width := uint64(4)
		if u.dwarf64 {
			width = 8
		}
		if v.v > d.strOffsets.size {
			return ""
		}
		c := d.cursor(&d.strOffsets, u.strOffsetsBase+v.v*width, d.strOffsets.size)
		c.buf = make([]byte, 0, 8)
		if off := c.uint(width); c.err == nil {
			return d.stringAt(&d.str, off)
		}
	}
	return ""
}

// address looks an address attribute up.
func (u *unit) address(v value) (Address, bool) {
	switch v.form {
	case formAddr:
		return Address(v.v), true
	case formAddrx, formAddrx1, formAddrx2, formAddrx3, formAddrx4, formGNUAddrIndex:
		return u.indexed(v.v)
	}
	return 0, false
}

// indexed reads an entry of .debug_addr, which is always in the program itself.
func (u *unit) indexed(i uint64) (Address, bool) {
	if u.skeleton != nil {
		return u.skeleton.indexed(i)
	}
	if i > u.d.addr.size {
		return 0, false
	}
	c := u.d.cursor(&u.d.addr, u.addrBase+i*uint64(u.addressSize), u.d.addr.size)
	c.buf = make([]byte, 0, 8)
	a := c.uint(uint64(u.addressSize))
	return Address(a), c.err == nil
}

// reference returns the file in whose .debug_info an attribute points to a place, and the place; false if there is none, or not here.
func (u *unit) reference(v value) (*debugFile, uint64, bool) {
	switch v.form {
	case formRefSup4, formRefSup8, formGNURefAlt:
		sup := u.d.supplement()
		return sup, v.v, sup != nil
	}
	off, ok := u.localReference(v)
	return u.d, off, ok
}

// localReference is reference within the file.
func (u *unit) localReference(v value) (uint64, bool) {
	switch v.form {
	case formRef1, formRef2, formRef4, formRef8, formRefUdata:
		return u.off + v.v, u.off+v.v >= u.off
	case formRefAddr:
		return v.v, true
	}
	return 0, false
}

// eachRange calls f with the address ranges of an entry until it returns false. steps bounds how many are read.
func (u *unit) eachRange(e *die, steps *int, f func(low, high Address) bool) error {
	if e.ranges.form == 0 {
		low, ok := u.address(e.low)
		if !ok || e.high.form == 0 {
			return nil
		}
		high, isAddress := u.address(e.high)
		if !isAddress {
			high = low + Address(e.high.v) // since version 4: a length
		}
		if high > low {
			f(low, high)
		}
		return nil
	}
	if u.version < 5 {
		if s := u.skeleton; s != nil {
			return s.rangesAt(e.ranges.v+s.root.bases[3], u.low, steps, f)
		}
		return u.rangesAt(e.ranges.v, u.low, steps, f)
	}
	off := e.ranges.v
	if e.ranges.form == formRnglistx {
		width := uint64(4)
		if u.dwarf64 {
			width = 8
		}
		if off > u.d.rnglists.size {
			return nil
		}
		c := u.d.cursor(&u.d.rnglists, u.rnglistsBase+off*width, u.d.rnglists.size)
		c.buf = make([]byte, 0, 8)
		off = u.rnglistsBase + c.uint(width)
		if c.err != nil {
			return c.err
		}
	}
	return u.rnglistAt(off, steps, f)
}

// rangesAt reads a list of .debug_ranges (DWARF 4 section 2.17.3).
func (u *unit) rangesAt(off uint64, base Address, steps *int, f func(low, high Address) bool) error {
	c := u.d.cursor(&u.d.ranges, off, u.d.ranges.size)
	largest := ^uint64(0) >> (64 - 8*u.addressSize)
	for c.err == nil {
		if *steps--; *steps < 0 {
			return errDebugLimit
		}
		low, high := c.uint(uint64(u.addressSize)), c.uint(uint64(u.addressSize))
		switch {
		case c.err != nil || low == 0 && high == 0:
			return c.err
		case low == largest:
			base = Address(high)
		case low < high:
			if !f(base+Address(low), base+Address(high)) {
				return nil
			}
		}
	}
	return c.err
}

// rnglistAt reads a list of .debug_rnglists (section 7.25).
func (u *unit) rnglistAt(off uint64, steps *int, f func(low, high Address) bool) error {
	c := u.d.cursor(&u.d.rnglists, off, u.d.rnglists.size)
	base := u.low
	addr := func() Address { return Address(c.uint(uint64(u.addressSize))) }
	addrx := func() Address {
		a, ok := u.indexed(c.uleb())
		if !ok {
			c.fail("an index beyond .debug_addr")
		}
		return a
	}
	for c.err == nil {
		if *steps--; *steps < 0 {
			return errDebugLimit
		}
		var low, high Address
		switch kind := c.u8(); kind {
		case 0: // DW_RLE_end_of_list
			return c.err
		case 1: // base_addressx
			base = addrx()
		case 2: // startx_endx
			low, high = addrx(), addrx()
		case 3: // startx_length
			low = addrx()
			high = low + Address(c.uleb())
		case 4: // offset_pair
			low = base + Address(c.uleb())
			high = base + Address(c.uleb())
		case 5: // base_address
			base = addr()
		case 6: // start_end
			low, high = addr(), addr()
		case 7: // start_length
			low = addr()
			high = low + Address(c.uleb())
		default:
			c.fail("an unknown kind of range")
		}
		if c.err == nil && low < high && !f(low, high) {
			return nil
		}
	}
	return c.err
}

// nameOf returns the best name that an entry has, its own or that of the entry it is an instance of, and the line where the
// function was declared.
func (u *unit) nameOf(e *die) (name string, declLine uint64) {
	plain := ""
	for range maxRefs {
		if declLine == 0 {
			declLine = e.declLine
		}
		if n := u.text(e.linkage); n != "" {
			return n, declLine
		}
		if plain == "" {
			plain = u.text(e.name)
		}
		d, off, ok := u.reference(e.origin)
		if e.origin.form == 0 || !ok {
			break
		}
		if d != u.d || off < u.entries || off >= u.end { // link-time optimization and dwz point into other units
			if u = d.unitOf(off); u == nil {
				break
			}
		}
		c := u.cursor(off)
		next, ok := u.die(c)
		if !ok {
			break
		}
		e = &next
	}
	return plain, declLine
}
