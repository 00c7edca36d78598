package unwind

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/pprof/profile"
)

// maxName bounds a name in bytes. C++ templates make names of hundreds of bytes; a hostile file makes them as long as it
// likes, and cheap to hold compressed.
const maxName = 1024

// Names makes the parts of pprof locations, each only once: equal functions are one *profile.Function, so that thousands of
// stacks share what they have in common. It belongs to the goroutine of the [Symbolizer]. What it returns is immutable.
type Names struct {
	functions *Recent[functionKey, *profile.Function]
	mappings  *Recent[MappingKey, *profile.Mapping]
	fixed     map[fixedKey]*profile.Location
}

type functionKey struct {
	name, file string
	startLine  int64
}

type fixedKey struct{ name, mapping string }

// MappingKey is what tells one mapping from another in a profile. Addresses are those of the ELF file, not of a process: the
// same file gives the same mapping wherever it is loaded.
type MappingKey struct {
	Start, Limit, Offset uint64
	File, BuildID        string
}

// newNames holds about budget bytes of functions, and mappings beside.
func newNames(budget int64) *Names {
	return &Names{
		functions: NewRecent[functionKey, *profile.Function](budget),
		mappings:  NewRecent[MappingKey, *profile.Mapping](budget / 4),
		fixed:     map[fixedKey]*profile.Location{},
	}
}

// Function returns the function of that name; file and startLine may be empty.
func (n *Names) Function(name, file string, startLine int64) *profile.Function {
	key := functionKey{name, file, startLine}
	if f, ok := n.functions.Get(key); ok {
		return f
	}
	name, file = Clean(name), Clean(file)
	f := &profile.Function{Name: name, SystemName: name, Filename: file, StartLine: startLine}
	n.functions.Put(key, f, 160+2*int64(len(key.name)+len(key.file)))
	return f
}

// Mapping returns the mapping for a key. HasFunctions is set: we have named what can be named, nobody needs to try again.
func (n *Names) Mapping(key MappingKey) *profile.Mapping {
	if m, ok := n.mappings.Get(key); ok {
		return m
	}
	m := &profile.Mapping{Start: key.Start, Limit: key.Limit, Offset: key.Offset, File: Clean(key.File), BuildID: key.BuildID,
		HasFunctions: true}
	n.mappings.Put(key, m, 256+2*int64(len(key.File)+len(key.BuildID)))
	return m
}

// Fixed returns the location of something that has one name and no address: marks, just-in-time code, a kernel function.
// Callers use it with a small set of names only: they are kept for ever.
func (n *Names) Fixed(name, mapping string) *profile.Location {
	key := fixedKey{name, mapping}
	l := n.fixed[key]
	if l == nil {
		l = n.Unaddressed(name, mapping)
		n.fixed[key] = l
	}
	return l
}

// Unaddressed is Fixed for names that are many: it does not keep the location.
func (n *Names) Unaddressed(name, mapping string) *profile.Location {
	return &profile.Location{
		Mapping: n.Mapping(MappingKey{File: mapping}),
		Line:    []profile.Line{{Function: n.Function(name, "", 0)}},
	}
}

// Clean makes a stranger's string fit for a profile: valid UTF-8, no control characters, of bounded length.
func Clean(s string) string {
	if len(s) <= maxName && utf8.ValidString(s) && strings.IndexFunc(s, unicode.IsControl) < 0 {
		return s
	}
	if len(s) > maxName {
		s = strings.ToValidUTF8(s[:maxName], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return utf8.RuneError
		}
		return r
	}, strings.ToValidUTF8(s, string(utf8.RuneError)))
}

// Recent is a cache within a budget that keeps what was used recently: two generations, and when the young one has used up
// its share the old one is dropped. Get and Put are O(1); nothing is scanned.
type Recent[K comparable, V any] struct {
	young, old map[K]recent[V]
	cost       int64 // of young
	share      int64
}

type recent[V any] struct {
	value V
	cost  int64
}

// NewRecent makes a cache that holds values of at most about budget, in the unit of Put's cost.
func NewRecent[K comparable, V any](budget int64) *Recent[K, V] {
	return &Recent[K, V]{young: map[K]recent[V]{}, share: budget / 2}
}

// Get returns a value that Put was given, if it is still there, and keeps it for longer.
func (r *Recent[K, V]) Get(k K) (V, bool) {
	if e, ok := r.young[k]; ok {
		return e.value, true
	}
	e, ok := r.old[k]
	if ok {
		r.Put(k, e.value, e.cost)
	}
	return e.value, ok
}

// Put enters or replaces a value.
func (r *Recent[K, V]) Put(k K, v V, cost int64) {
	if e, ok := r.young[k]; ok {
		r.cost -= e.cost
	}
	if r.cost+cost > r.share && len(r.young) > 0 {
		r.old, r.young, r.cost = r.young, make(map[K]recent[V], len(r.young)/2), 0
	}
	r.young[k] = recent[V]{v, cost}
	r.cost += cost
}

// Clear drops everything.
func (r *Recent[K, V]) Clear() {
	clear(r.young)
	r.old, r.cost = nil, 0
}

// Len is how many values are held.
func (r *Recent[K, V]) Len() int { return len(r.young) + len(r.old) }
