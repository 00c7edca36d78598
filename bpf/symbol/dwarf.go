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

// LineReader reads the debug information of one file, a little at a time: it remembers between two readings which units have which
// addresses. The zero value is ready. It is not safe for concurrent use.
type LineReader struct {
	key   fileKey
	index unitIndex
}

// Bytes is the memory that r occupies.
func (r *LineReader) Bytes() int64 { return 64 + r.index.bytes() }

// Lines reads from the DWARF of f what the compiler inlined at each of the addresses and which lines they are, innermost first, as
// [Object.Lookup] would say it of a Go program. Names are demangled. An address of which DWARF says nothing is absent from the
// result. The outermost line is the function itself: where the symbol table calls it differently, the caller decides.
//
// Only the units that hold the addresses are read, in pieces, and no more in one go than takes a moment: the addresses that it did not
// get to are returned as rest, to be asked for again, and so a file of gigabytes costs no more at a time than one of megabytes. What
// was found before a limit or nonsense ended the reading is returned with the error; errors say the place in the file. f may be closed
// afterwards. Units are read in the order in which the addresses name them first. If f is another file than the last time, r begins anew.
//
// Read: DWARF 2 to 5, compressed sections, units that refer to one another (link-time optimization, dwz), supplementary files
// (.gnu_debugaltlink, .debug_sup) and split files and their packages (.dwo, .dwp), which find looks for. Where these are missing, lines
// are told and no inlined functions, and the error is [ErrNoCompanion]; or, if they may come, [ErrNotYet].
func (r *LineReader) Lines(f *os.File, find DebugFinder, addresses []Address) (lines map[Address][]Line, rest []Address, err error) {
	key, err := keyOf(f)
	if err != nil {
		return nil, nil, err
	}
	if r.key != key {
		*r = LineReader{key: key}
	}
	defer func() {
		if p := recover(); p != nil { // a container's file must not end the agent, not even through a bug of ours
			*r, rest = LineReader{}, nil
			err = fmt.Errorf("bug in the parser of debug information, please report it with the file: %v\n%s", p, debug.Stack())
		}
		if err != nil {
			err = fmt.Errorf("read debug information of %s: %w", f.Name(), err)
		}
	}()
	return debugLines(f, key.size, &r.index, companions{find: find, place: placeOf(f)}, addresses)
}

func debugLines(r io.ReaderAt, size int64, index *unitIndex, others companions, addresses []Address) (map[Address][]Line, []Address, error) {
	m, err := newImage(newSource(r, size))
	if err != nil {
		return nil, nil, err
	}
	if !m.hasDebugInfo() {
		return nil, nil, ErrNoDebugInfo
	}
	budget := newDebugBudget()
	d, err := newDebugFile(m, r, budget, false)
	if err != nil {
		return nil, nil, err
	}
	others.budget = budget
	defer others.close()
	d.supplement = func() *debugFile { return others.supplement(m) }
	q := &debugQuery{d: d, others: &others, out: map[Address][]Line{}, steps: maxRangeSteps}
	rank := make(map[Address]int, len(addresses))
	for i, a := range addresses {
		if _, twice := rank[a]; !twice {
			rank[a] = i
		}
	}
	q.addresses = slices.Sorted(maps.Keys(rank))

	budget.begin()
	byUnit, rest, err := q.findUnits(index)
	errs := []error{err}
	urgency := func(unit uint64) int {
		least := len(rank)
		for _, a := range byUnit[unit] {
			least = min(least, rank[a])
		}
		return least
	}
	units := slices.SortedFunc(maps.Keys(byUnit), func(a, b uint64) int { return cmp.Compare(urgency(a), urgency(b)) })
	for i, off := range units {
		if i > 0 && budget.tired() {
			rest = append(rest, byUnit[off]...)
			continue
		}
		errs = append(errs, q.readUnit(off, byUnit[off]))
	}
	return q.out, rest, errors.Join(append(errs, others.missing())...)
}

// debugQuery is one call of Lines.
type debugQuery struct {
	d         *debugFile
	others    *companions
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
	u, err := q.d.openUnit(h, nil)
	if err != nil {
		return err
	}
	slices.Sort(addresses)
	code, done := u, func() {}
	if u.root.dwoName.form != 0 {
		if split, closer := q.others.split(u); split != nil {
			code, done = split, closer
		}
	}
	defer done()
	chains, err := q.functions(code, addresses)
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
