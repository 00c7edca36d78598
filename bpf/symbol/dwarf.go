package symbol

import (
	"cmp"
	"debug/dwarf"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime/debug"
	"slices"
)

// maxInlined is how many functions that are inlined in one another are told of one address.
const maxInlined = 64

// ErrNoDebugInfo says that a file has no DWARF, or none that we would read.
var ErrNoDebugInfo = errors.New("no debug information")

// DebugLines reads from the DWARF of f what the compiler inlined at each of the addresses and which lines they are, innermost
// first, as [Object.Lookup] would say it of a Go program. Names are demangled. An address of which DWARF says nothing is absent
// from the result. The outermost line is the function itself: where the symbol table calls it differently, the caller decides.
//
// Only the units that hold the addresses are read, in pieces, at most a fixed number of bytes for one call, so that a file of
// gigabytes costs no more than one of megabytes. What was found before a limit or nonsense ended the reading is returned with the
// error; errors say the place in the file. f may be closed afterwards. Safe for concurrent use on different files.
//
// Read: DWARF 2 to 5, compressed sections, units that refer to one another (link-time optimization, dwz). Not read: split
// files (.dwo) and supplementary ones (.gnu_debugaltlink); of these the lines are told and no inlined functions.
func DebugLines(f *os.File, addresses []Address) (lines map[Address][]Line, err error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, ErrNotRegular
	}
	defer func() {
		if p := recover(); p != nil { // a container's file must not end the agent, not even through a bug of ours
			err = fmt.Errorf("bug in the parser of debug information, please report it with the file: %v\n%s", p, debug.Stack())
		}
		if err != nil {
			err = fmt.Errorf("read debug information of %s: %w", f.Name(), err)
		}
	}()
	return debugLines(f, st.Size(), addresses)
}

func debugLines(r io.ReaderAt, size int64, addresses []Address) (map[Address][]Line, error) {
	m, err := newImage(newSource(r, size))
	if err != nil {
		return nil, err
	}
	if !m.hasDebugInfo() {
		return nil, ErrNoDebugInfo
	}
	d, err := newDebugFile(m, r)
	if err != nil {
		return nil, err
	}
	q := &debugQuery{d: d, out: map[Address][]Line{}, steps: maxRangeSteps}
	addresses = slices.Clone(addresses)
	slices.Sort(addresses)
	q.addresses = slices.Compact(addresses)
	byUnit, err := q.findUnits()
	errs := []error{err}
	for _, off := range slices.Sorted(maps.Keys(byUnit)) {
		errs = append(errs, q.readUnit(off, byUnit[off]))
		if errors.Is(errors.Join(errs...), errDebugLimit) {
			break
		}
	}
	return q.out, errors.Join(errs...)
}

// debugQuery is one call of DebugLines.
type debugQuery struct {
	d         *debugFile
	addresses []Address // sorted
	out       map[Address][]Line
	steps     int // ranges that may still be read
}

// within returns which of the sorted addresses lie in [low, high).
func within(sorted []Address, low, high Address) (from, to int) {
	from, _ = slices.BinarySearch(sorted, low)
	to, _ = slices.BinarySearch(sorted[from:], high)
	return from, from + to
}

// findUnits tells which unit has each address, by unit: from .debug_aranges, and for what is not in there (clang writes none)
// from the first entry of each unit.
func (q *debugQuery) findUnits() (map[uint64][]Address, error) {
	byUnit := map[uint64][]Address{}
	missing := map[Address]bool{}
	for _, a := range q.addresses {
		missing[a] = true
	}
	take := func(unit uint64, low, high Address) {
		from, to := within(q.addresses, low, high)
		for _, a := range q.addresses[from:to] {
			if missing[a] {
				delete(missing, a)
				byUnit[unit] = append(byUnit[unit], a)
			}
		}
	}
	// A broken index is no reason to go without: the units themselves tell too.
	arangesErr := q.aranges(take)
	if len(missing) == 0 || errors.Is(arangesErr, errDebugLimit) {
		return byUnit, arangesErr
	}
	var bad error
	err := q.d.eachHead(func(h unitHead) bool {
		if !h.code {
			return true
		}
		u, err := q.d.openUnit(h)
		if err == nil {
			err = u.eachRange(&u.root, &q.steps, func(low, high Address) bool {
				take(h.off, low, high)
				return len(missing) > 0
			})
		}
		bad = cmp.Or(bad, err)
		return len(missing) > 0 && !errors.Is(err, errDebugLimit)
	})
	return byUnit, errors.Join(err, bad)
}

// aranges reads .debug_aranges (DWARF 5 section 6.1.2).
func (q *debugQuery) aranges(f func(unit uint64, low, high Address)) error {
	d := q.d
	for off := uint64(0); off < d.aranges.size; {
		c := d.cursor(&d.aranges, off, d.aranges.size)
		c.length()
		version := c.u16()
		unit := c.offset()
		size, segment := uint64(c.u8()), c.u8()
		if c.err == nil && (version != 2 || size != 4 && size != 8 || segment != 0) {
			c.fail("a set of an unknown kind")
		}
		if c.err != nil {
			return c.err
		}
		// Pairs are aligned to their own size, from the beginning of the set.
		if rest := (c.pos - off) % (2 * size); rest != 0 {
			c.skip(2*size - rest)
		}
		for c.left() >= 2*size {
			low, n := Address(c.uint(size)), Address(c.uint(size))
			if low == 0 && n == 0 {
				break
			}
			if q.steps--; q.steps < 0 {
				return errDebugLimit
			}
			if low+n > low {
				f(unit, low, low+n)
			}
		}
		if c.err != nil {
			return c.err
		}
		off = c.end
	}
	return nil
}

// covering is a function that covers an address.
type covering struct {
	depth              int
	off                uint64 // of its entry
	name               string
	declLine           uint64
	callFile, callLine uint64 // where it was inlined; 0 for the outermost
}

// readUnit fills q.out for the addresses, which are sorted and lie in the unit at off.
func (q *debugQuery) readUnit(off uint64, addresses []Address) error {
	h, err := q.d.headAt(off)
	if err != nil {
		return err
	}
	u, err := q.d.openUnit(h)
	if err != nil {
		return err
	}
	slices.Sort(addresses)
	chains, err := q.functions(u, addresses)
	// Lines may be good where the entries are not, and the other way round.
	var places []place
	t, lineErr := u.lines()
	if lineErr == nil && t != nil {
		places, lineErr = t.run(addresses)
	}
	for i, a := range addresses {
		chain := chains[i]
		var at place
		if places != nil {
			at = places[i]
		}
		if len(chain) == 0 {
			if !at.known {
				continue
			}
			chain = []covering{{}}
		}
		// From the innermost outwards: each is at the place where the one inside of it was inlined.
		lines := make([]Line, 0, len(chain))
		for k := len(chain) - 1; k >= 0; k-- {
			l := Line{Function: demangled(chain[k].name), Line: int(min(at.line, 1<<31)), StartLine: int(min(chain[k].declLine, 1<<31))}
			if t != nil && at.known {
				l.File = t.file(at.file)
			}
			lines = append(lines, l)
			at = place{chain[k].callFile, chain[k].callLine, true}
		}
		q.out[a] = lines
	}
	return errors.Join(err, lineErr)
}

// functions walks the entries of a unit and returns, for each address, the functions that cover it, outermost first.
func (q *debugQuery) functions(u *unit, addresses []Address) ([][]covering, error) {
	chains := make([][]covering, len(addresses))
	c := u.cursor(u.entries)
	depth := 0
	var path [maxDepth]uint64 // the entries around the current one
	for c.left() > 0 {
		e, ok := u.die(c)
		if c.err != nil {
			return chains, c.err
		}
		if !ok {
			if depth--; depth <= 0 {
				break
			}
			continue
		}
		path[depth] = e.off
		covers := true
		switch e.tag {
		case dwarf.TagSubprogram, dwarf.TagInlinedSubroutine:
			covers = false
			var name string
			var declLine uint64
			named := false
			err := u.eachRange(&e, &q.steps, func(low, high Address) bool {
				from, to := within(addresses, low, high)
				for i := from; i < to; i++ {
					chain := chains[i]
					if n := len(chain); n > 0 && (chain[n-1].depth >= depth || path[chain[n-1].depth] != chain[n-1].off) || n >= maxInlined {
						continue // another function has it already: identical code that was folded, or nonsense
					}
					if len(chain) == 0 && e.tag != dwarf.TagSubprogram {
						continue
					}
					covers = true
					if !named {
						name, declLine = u.nameOf(&e)
						named = true
					}
					f := covering{depth: depth, off: e.off, name: name, declLine: declLine}
					if e.tag == dwarf.TagInlinedSubroutine {
						f.callFile, f.callLine = e.callFile, e.callLine
					}
					chains[i] = append(chain, f)
				}
				return true
			})
			if err != nil {
				return chains, err
			}
		case dwarf.TagStructType, dwarf.TagClassType, dwarf.TagUnionType, dwarf.TagEnumerationType, dwarf.TagArrayType, dwarf.TagSubroutineType:
			// Functions inside of types are declarations; Rust has code in there.
			covers = e.tag == dwarf.TagStructType || e.tag == dwarf.TagClassType || e.tag == dwarf.TagUnionType || e.tag == dwarf.TagEnumerationType
		}
		if !e.children {
			if depth == 0 {
				break
			}
			continue
		}
		if !covers && e.sibling > c.pos {
			c.seek(e.sibling)
			continue
		}
		if depth++; depth >= maxDepth {
			c.fail("entries too deep in one another")
			return chains, c.err
		}
	}
	return chains, c.err
}
