// Package pprof builds, merges and encodes the profiles that stoker stores and ships: one pprof for one container, one
// profile type, one window.
//
// A [Builder] takes stacks of shared, immutable locations and gives gzipped profiles as Pyroscope wants them: every
// location has a named line and a mapping, no stack is longer than the server takes, no sample is empty, and what exceeds
// the server's limits is split, never dropped. [Merge] and [Merger] add many stored profiles up again, [Diff] subtracts one
// from another, [Parse] and [Encode] are the only ways in and out of bytes.
//
// Nothing here does I/O, starts a goroutine or keeps state between calls but for the pool of compressors. A Builder and a
// Merger belong to one goroutine; the functions may be called from any. Locations handed in are never written to.
package pprof

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/sink"
)

// The limits of a Pyroscope server with default settings, and what follows from them.
const (
	// MaxSamples is how many samples one profile may have: the server refuses one more.
	MaxSamples = 16_000
	// MaxBytes bounds a profile's decompressed size. The server takes 4 MiB, but charges a profile and its labels against a
	// bucket of 2 MiB that never lets a larger one pass, so it would be answered 429 for ever.
	MaxBytes = 1_900 << 10
	// MaxFrames is how many frames a stack may have. The server cuts longer ones silently, at the leaf.
	MaxFrames = 1_000
	// MaxString bounds every string; the server keeps only the tail of a longer one.
	MaxString = 65_535
	// maxStackBytes bounds the size that one stack alone can need, so that a container with absurd symbols cannot make a
	// profile that no split brings under MaxBytes.
	maxStackBytes = 1 << 20
)

// Names that stand where the truth cannot: each is counted in [Counts].
const (
	// FramesCut is the frame that stands for the middle of a stack that was too long.
	FramesCut = "[frames cut]"
	// NoStack is the frame of a sample that came without any.
	NoStack = "[no stack]"
	// Unmapped is the mapping of locations that came without one. Pyroscope needs each location to have a mapping.
	Unmapped = "[unmapped]"
)

// Counts is what a Builder had to change or leave out.
type Counts struct {
	CutStacks   int // stacks longer than MaxFrames, or too large in bytes: the middle became FramesCut
	EmptyStacks int // samples without a frame: they got NoStack
	Unnamed     int // locations without a line or with an empty name: they got file!0xADDR
	BadStrings  int // strings that were too long or not UTF-8
	NonPositive int // samples left out because a value was negative or all were zero
}

// Add sums two Counts.
func (c Counts) Add(d Counts) Counts {
	return Counts{c.CutStacks + d.CutStacks, c.EmptyStacks + d.EmptyStacks, c.Unnamed + d.Unnamed,
		c.BadStrings + d.BadStrings, c.NonPositive + d.NonPositive}
}

// Built is one finished profile.
type Built struct {
	Pprof   []byte // gzipped profile.proto
	Total   int64  // sum of the first sample type's values
	Samples int
	Bytes   int // decompressed size: what Pyroscope's limits count
}

// Builder collects the samples of one container, one type and one window. Make one with [NewBuilder].
//
// Equal samples are summed, whether their locations are identical or only equal in content (the same file, offset and lines
// seen in two processes). The result does not depend on the order of Add.
type Builder struct {
	typ    sink.Type
	start  time.Time
	end    time.Time
	period int64
	err    error // the first wrong call of Add

	counts    Counts
	mappings  []mapping
	functions []function
	locations []location
	samples   []sample

	// By identity: the fast way for locations that were seen before. The maps keep their keys alive, so an address is
	// never reused while it is in here.
	byLocation map[*profile.Location]uint32
	byFunction map[*profile.Function]uint32
	byMapping  map[*profile.Mapping]uint32
	// By content.
	mappingIDs  map[mappingKey]uint32
	functionIDs map[function]uint32
	locationIDs map[string]uint32
	sampleIDs   map[string]uint32

	key   []byte // scratch: the content key of a location or sample
	stack []uint32
}

// mappingKey is what tells files apart. Where a file was mapped differs from process to process, where its code lies in the
// file does not.
type mappingKey struct {
	size, offset  uint64
	file, buildID string
}

type mapping struct {
	mappingKey
	start uint64 // the lowest of those that were seen
}

type function struct {
	name, systemName, filename string
	startLine                  int64
}

type line struct {
	function     uint32
	line, column int64
}

type location struct {
	mapping uint32
	address uint64 // relative to the mapping's start: the same in every process
	folded  bool
	lines   []line
	bytes   int // what it takes in an encoded profile, with all that it refers to; about
}

type sample struct {
	stack  []uint32 // leaf first
	values []int64
}

// NewBuilder returns an empty Builder for profiles of type t over [start, end). period is in the unit of t's period type:
// 1e9/Hz for the CPU.
func NewBuilder(t sink.Type, start, end time.Time, period int64) *Builder {
	b := &Builder{typ: t, start: start, end: end, period: period,
		mappingIDs: map[mappingKey]uint32{}, functionIDs: map[function]uint32{},
		locationIDs: map[string]uint32{}, sampleIDs: map[string]uint32{}}
	b.forgetIdentity()
	return b
}

// forgetIdentity drops the shortcuts by pointer, and with them the last references to foreign locations.
func (b *Builder) forgetIdentity() {
	b.byLocation = map[*profile.Location]uint32{}
	b.byFunction = map[*profile.Function]uint32{}
	b.byMapping = map[*profile.Mapping]uint32{}
}

// Add adds one sample: its stack, leaf first, and one value for each sample type of the profile. The locations are read, not
// kept beyond the life of the Builder, and never written to. A sample whose values are all zero or one of them negative is
// counted and left out. A wrong number of values is a bug of the caller: Profiles will return it.
func (b *Builder) Add(locs []*profile.Location, values ...int64) {
	if len(values) != len(b.typ.Samples) {
		if b.err == nil {
			b.err = fmt.Errorf("profile %s: sample with %d values for %d sample types", b.typ.Name, len(values), len(b.typ.Samples))
		}
		return
	}
	some := false
	for _, v := range values {
		if v < 0 {
			b.counts.NonPositive++
			return
		}
		some = some || v > 0
	}
	if !some {
		b.counts.NonPositive++
		return
	}
	b.stack = b.stack[:0]
	for _, l := range locs {
		if l == nil {
			l = unknownLocation
		}
		id, ok := b.byLocation[l]
		if !ok {
			id = b.intern(l)
			b.byLocation[l] = id
		}
		b.stack = append(b.stack, id)
	}
	if len(b.stack) == 0 {
		b.counts.EmptyStacks++
		b.stack = append(b.stack, b.mark(NoStack))
	}
	b.cut()

	b.key = b.key[:0]
	for _, id := range b.stack {
		b.key = binary.AppendUvarint(b.key, uint64(id))
	}
	i, ok := b.sampleIDs[string(b.key)]
	if !ok {
		b.sampleIDs[string(b.key)] = uint32(len(b.samples))
		b.samples = append(b.samples, sample{stack: slices.Clone(b.stack), values: slices.Clone(values)})
		return
	}
	sum := b.samples[i].values
	for j, v := range values {
		sum[j] = addSaturating(sum[j], v)
	}
}

// Counts says what was changed or left out so far.
func (b *Builder) Counts() Counts { return b.counts }

// Len is the number of distinct samples so far.
func (b *Builder) Len() int { return len(b.samples) }

// What stands for a location or a mapping that is not there.
var (
	unknownLocation = &profile.Location{}
	unmapped        = &profile.Mapping{}
)

func addSaturating(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// cut shortens b.stack to what the server takes. The server would drop the leaf end; here the middle goes, so that both
// what was called and from where stay true.
func (b *Builder) cut() {
	n := len(b.stack)
	keep := min(n, MaxFrames)
	size := 0
	for _, id := range b.stack {
		size += b.locations[id].bytes
	}
	if n <= MaxFrames && size <= maxStackBytes {
		return
	}
	b.counts.CutStacks++
	mark := b.mark(FramesCut)
	if n > MaxFrames {
		keep = MaxFrames - 1
	}
	leaf, root := keep-keep/2, keep/2
	// Bytes are a question of hostile symbols only: take frames from both ends while half of the budget lasts.
	fit := func(ids func(int) uint32, count int) int {
		left := maxStackBytes / 2
		for i := range count {
			if left -= b.locations[ids(i)].bytes; left < 0 {
				return i
			}
		}
		return count
	}
	leaf = fit(func(i int) uint32 { return b.stack[i] }, leaf)
	root = fit(func(i int) uint32 { return b.stack[n-1-i] }, root)
	tail := n - root
	b.stack[leaf] = mark
	b.stack = append(b.stack[:leaf+1], b.stack[tail:]...)
}

// mark interns a frame that stands for something that is no code.
func (b *Builder) mark(name string) uint32 {
	m := b.internMapping(mapping{mappingKey: mappingKey{file: Unmapped}})
	f := b.internFunction(function{name: name, systemName: name})
	return b.internLocation(location{mapping: m, lines: []line{{function: f}}})
}

func (b *Builder) intern(l *profile.Location) uint32 {
	m := l.Mapping
	if m == nil {
		m = unmapped
	}
	id, ok := b.byMapping[m]
	if !ok {
		id = b.internMapping(mapping{start: m.Start, mappingKey: mappingKey{size: m.Limit - m.Start, offset: m.Offset,
			file: b.text(cmp.Or(m.File, Unmapped)), buildID: b.text(m.BuildID)}})
		b.byMapping[m] = id
	}
	out := location{mapping: id, folded: l.IsFolded, address: l.Address - m.Start}
	for _, ln := range l.Line {
		if ln.Function == nil || (ln.Function.Name == "" && ln.Function.SystemName == "") {
			continue
		}
		f, ok := b.byFunction[ln.Function]
		if !ok {
			f = b.internFunction(function{name: b.text(cmp.Or(ln.Function.Name, ln.Function.SystemName)),
				systemName: b.text(cmp.Or(ln.Function.SystemName, ln.Function.Name)), filename: b.text(ln.Function.Filename),
				startLine: ln.Function.StartLine})
			b.byFunction[ln.Function] = f
		}
		out.lines = append(out.lines, line{f, ln.Line, ln.Column})
	}
	if len(out.lines) == 0 {
		b.counts.Unnamed++
		file := "unknown"
		if m.File != "" {
			file = path.Base(b.mappings[id].file)
		}
		name := b.text(fmt.Sprintf("%s!0x%x", file, l.Address))
		out.lines = []line{{function: b.internFunction(function{name: name, systemName: name})}}
	}
	return b.internLocation(out)
}

// text returns s as a profile may hold it: valid UTF-8 of at most MaxString bytes. The head is kept: that is where a
// symbol says what it is.
func (b *Builder) text(s string) string {
	if len(s) <= MaxString && utf8.ValidString(s) {
		return s
	}
	b.counts.BadStrings++
	const ellipsis = "…"
	if len(s) > 2*MaxString { // do not scan what is thrown away
		s = s[:2*MaxString]
	}
	s = strings.ToValidUTF8(s, string(utf8.RuneError))
	if len(s) <= MaxString {
		return s
	}
	s = s[:MaxString-len(ellipsis)]
	for len(s) > 0 {
		if r, n := utf8.DecodeLastRuneInString(s); r != utf8.RuneError || n != 1 {
			break
		}
		s = s[:len(s)-1] // a rune that the cut went through
	}
	return s + ellipsis
}

func (b *Builder) internMapping(m mapping) uint32 {
	id, ok := b.mappingIDs[m.mappingKey]
	if !ok {
		id = uint32(len(b.mappings))
		b.mappingIDs[m.mappingKey] = id
		b.mappings = append(b.mappings, m)
	}
	b.mappings[id].start = min(b.mappings[id].start, m.start)
	return id
}

func (b *Builder) internFunction(f function) uint32 {
	id, ok := b.functionIDs[f]
	if !ok {
		id = uint32(len(b.functions))
		b.functionIDs[f] = id
		b.functions = append(b.functions, f)
	}
	return id
}

func (b *Builder) internLocation(l location) uint32 {
	k := b.key[:0]
	k = binary.AppendUvarint(k, uint64(l.mapping))
	k = binary.AppendUvarint(k, l.address)
	if l.folded {
		k = append(k, 1)
	} else {
		k = append(k, 0)
	}
	for _, ln := range l.lines {
		k = binary.AppendUvarint(k, uint64(ln.function))
		k = binary.AppendVarint(k, ln.line)
		k = binary.AppendVarint(k, ln.column)
	}
	b.key = k
	id, ok := b.locationIDs[string(k)]
	if !ok {
		l.bytes = b.closureBytes(&l)
		id = uint32(len(b.locations))
		b.locationIDs[string(k)] = id
		b.locations = append(b.locations, l)
	}
	return id
}

// Profiles returns what was added as gzipped profiles: none if nothing was added, several if one would exceed the server's
// limits; parts share time and type, and a server adds them up. The Builder may be used on afterwards.
func (b *Builder) Profiles() ([]Built, error) {
	if b.err != nil {
		return nil, b.err
	}
	if len(b.samples) == 0 {
		return nil, nil
	}
	if err := b.checkType(); err != nil {
		return nil, err
	}
	o := b.order()
	var built []Built
	for _, part := range b.split(o) {
		p := b.assemble(o, part)
		if err := p.CheckValid(); err != nil {
			return nil, fmt.Errorf("profile %s of %s: built an invalid profile: %w", b.typ.Name, b.start.Format(time.RFC3339), err)
		}
		gz, size, err := encode(p)
		if err != nil {
			return nil, fmt.Errorf("encode profile %s of %s: %w", b.typ.Name, b.start.Format(time.RFC3339), err)
		}
		if size > MaxBytes {
			return nil, fmt.Errorf("profile %s of %s: a part of %d samples takes %d bytes, more than the %d that were planned",
				b.typ.Name, b.start.Format(time.RFC3339), len(part), size, MaxBytes)
		}
		x := Built{Pprof: gz, Samples: len(part), Bytes: size}
		for _, s := range p.Sample {
			x.Total = addSaturating(x.Total, s.Value[0])
		}
		built = append(built, x)
	}
	return built, nil
}

// checkType refuses what Pyroscope would refuse, or store under a name that nobody can query.
func (b *Builder) checkType() error {
	if len(b.typ.Samples) == 0 {
		return errors.New("profile without a sample type")
	}
	names := []string{b.typ.Name, b.typ.Period.Type, b.typ.Period.Unit}
	for _, s := range b.typ.Samples {
		names = append(names, s.Type, s.Unit)
	}
	for _, n := range names {
		if strings.ContainsAny(n, ":-") || !utf8.ValidString(n) {
			return fmt.Errorf("profile type %q: %q must be UTF-8 without ':' and '-'", b.typ.Name, n)
		}
	}
	return nil
}

// profile returns everything as one profile, however large. Its samples are in canonical order.
func (b *Builder) profile() *profile.Profile {
	o := b.order()
	return b.assemble(o, o.samples)
}

// ordering is the canonical order of everything: it depends on content only, so equal input gives equal bytes.
type ordering struct {
	mappingRank  []uint32 // by id
	functionRank []uint32
	locationRank []uint32
	samples      []uint32 // ids, in order
}

func ranks[T any](items []T, compare func(a, b uint32) int) []uint32 {
	ids := make([]uint32, len(items))
	for i := range ids {
		ids[i] = uint32(i)
	}
	slices.SortFunc(ids, compare)
	rank := make([]uint32, len(ids))
	for i, id := range ids {
		rank[id] = uint32(i)
	}
	return rank
}

// order sorts functions and mappings by content, locations by how many samples use them (frequent ones get short ids) and
// then content, samples by their stacks from the root on: neighbours then share most bytes, which is what gzip likes.
func (b *Builder) order() ordering {
	var o ordering
	o.functionRank = ranks(b.functions, func(x, y uint32) int {
		f, g := &b.functions[x], &b.functions[y]
		return cmp.Or(cmp.Compare(f.name, g.name), cmp.Compare(f.systemName, g.systemName),
			cmp.Compare(f.filename, g.filename), cmp.Compare(f.startLine, g.startLine))
	})
	weight := make([]int64, len(b.mappings))
	uses := make([]int, len(b.locations))
	for i := range b.samples {
		last := uint32(math.MaxUint32)
		for _, id := range b.samples[i].stack {
			uses[id]++
			if m := b.locations[id].mapping; m != last {
				weight[m] = addSaturating(weight[m], b.samples[i].values[0])
				last = m
			}
		}
	}
	o.mappingRank = ranks(b.mappings, func(x, y uint32) int {
		m, n := &b.mappings[x], &b.mappings[y]
		// pprof calls the first mapping the main binary: the heaviest file that is no library, if there is one.
		return cmp.Or(cmp.Compare(library(m.file), library(n.file)), cmp.Compare(weight[y], weight[x]),
			cmp.Compare(m.file, n.file), cmp.Compare(m.buildID, n.buildID), cmp.Compare(m.offset, n.offset),
			cmp.Compare(m.size, n.size))
	})
	o.locationRank = ranks(b.locations, func(x, y uint32) int {
		l, k := &b.locations[x], &b.locations[y]
		if c := cmp.Or(cmp.Compare(uses[y], uses[x]), cmp.Compare(o.mappingRank[l.mapping], o.mappingRank[k.mapping]),
			cmp.Compare(l.address, k.address)); c != 0 {
			return c
		}
		c := slices.CompareFunc(l.lines, k.lines, func(p, q line) int {
			return cmp.Or(cmp.Compare(o.functionRank[p.function], o.functionRank[q.function]), cmp.Compare(p.line, q.line),
				cmp.Compare(p.column, q.column))
		})
		if c == 0 && l.folded != k.folded {
			if l.folded {
				return 1
			}
			return -1
		}
		return c
	})
	o.samples = make([]uint32, len(b.samples))
	for i := range o.samples {
		o.samples[i] = uint32(i)
	}
	slices.SortFunc(o.samples, func(x, y uint32) int {
		s, t := b.samples[x].stack, b.samples[y].stack
		for i := 1; i <= len(s) && i <= len(t); i++ {
			if c := cmp.Compare(o.locationRank[s[len(s)-i]], o.locationRank[t[len(t)-i]]); c != 0 {
				return c
			}
		}
		return cmp.Compare(len(s), len(t))
	})
	return o
}

// library is 0 for what may be a main binary, 1 for shared libraries, 2 for what is no file.
func library(file string) int {
	base := path.Base(file)
	switch {
	case strings.HasPrefix(file, "["):
		return 2
	case strings.HasSuffix(base, ".so"), strings.Contains(base, ".so."):
		return 1
	}
	return 0
}

// headerBytes bounds an encoded profile's types, times and the empty string.
const headerBytes = 512

// varint is how many bytes n takes as a field: its tag and the number. A field that is 0 is not written.
func varint(n uint64) int { return 1 + (bits.Len64(n|1)+6)/7 }

// message is how many bytes a nested message of n bytes takes, with tag and length.
func message(n int) int { return varint(uint64(n)) + n }

// id bounds a field that refers to the i-th entry of a table: ids are given by rank, so any of them may be the highest.
func id[T any](table []T) int { return varint(uint64(len(table))) }

// stringID bounds a reference to the string table, whose length nobody knows before the end.
const stringID = 1 + 4

func (b *Builder) lineBytes(l *line) int {
	return message(id(b.functions) + varint(uint64(l.line)) + varint(uint64(l.column)))
}

func (b *Builder) functionBytes(f *function) int {
	return message(id(b.functions) + 3*stringID + varint(uint64(f.startLine)))
}

// mappingBytes counts the four flags too.
func (b *Builder) mappingBytes(m *mapping) int {
	return message(id(b.mappings) + varint(m.start) + varint(m.start+m.size) + varint(m.offset) + 2*stringID + 4*2)
}

// locationBytes bounds l and its lines, without what they refer to.
func (b *Builder) locationBytes(l *location) int {
	n := id(b.locations) + id(b.mappings) + varint(l.address+b.mappings[l.mapping].start) + 2
	for i := range l.lines {
		n += b.lineBytes(&l.lines[i])
	}
	return message(n)
}

// closureBytes bounds l with its mapping, functions and their strings, whatever ids they get.
func (b *Builder) closureBytes(l *location) int {
	const reserve = 16 // ids and string ids may need more bytes at the end than now
	m := &b.mappings[l.mapping]
	n := reserve + b.locationBytes(l) + b.mappingBytes(m) + message(len(m.file)) + message(len(m.buildID))
	for _, ln := range l.lines {
		f := &b.functions[ln.function]
		n += reserve + b.functionBytes(f) + message(len(f.name)) + message(len(f.systemName)) + message(len(f.filename))
	}
	return n
}

func (b *Builder) sampleBytes(s *sample) int {
	values := 0
	for _, v := range s.values {
		values += varint(uint64(v))
	}
	return message(message(len(s.stack)*(id(b.locations)-1)) + message(values))
}

// split cuts the ordered samples into parts that each stay within the server's limits.
func (b *Builder) split(o ordering) [][]uint32 {
	if len(o.samples) <= MaxSamples {
		total := headerBytes
		for i := range b.locations {
			total += b.closureBytes(&b.locations[i])
		}
		for i := range b.samples {
			total += b.sampleBytes(&b.samples[i])
		}
		if total <= MaxBytes {
			return [][]uint32{o.samples}
		}
	}
	// The sum above counts what is shared once for each use. Here everything is counted once per part.
	var parts [][]uint32
	var seen partSeen
	size, from := headerBytes, 0
	for i, id := range o.samples {
		n := b.costIn(&seen, &b.samples[id])
		if i > from && (size+n > MaxBytes || i-from == MaxSamples) {
			parts = append(parts, o.samples[from:i])
			seen, size, from = partSeen{}, headerBytes, i
			n = b.costIn(&seen, &b.samples[id])
		}
		size += n
	}
	return append(parts, o.samples[from:])
}

// partSeen is what a part of a split profile already holds.
type partSeen struct {
	locations, functions, mappings map[uint32]bool
	strings                        map[string]bool
}

func first[K comparable](m *map[K]bool, k K) bool {
	if (*m)[k] {
		return false
	}
	if *m == nil {
		*m = map[K]bool{}
	}
	(*m)[k] = true
	return true
}

// costIn is what s adds to a part that holds seen; it is in seen afterwards.
func (b *Builder) costIn(seen *partSeen, s *sample) int {
	n := b.sampleBytes(s)
	text := func(t string) {
		if first(&seen.strings, t) {
			n += message(len(t))
		}
	}
	for _, id := range s.stack {
		if !first(&seen.locations, id) {
			continue
		}
		l := &b.locations[id]
		n += b.locationBytes(l)
		if m := &b.mappings[l.mapping]; first(&seen.mappings, l.mapping) {
			n += b.mappingBytes(m)
			text(m.file)
			text(m.buildID)
		}
		for _, ln := range l.lines {
			if f := &b.functions[ln.function]; first(&seen.functions, ln.function) {
				n += b.functionBytes(f)
				text(f.name)
				text(f.systemName)
				text(f.filename)
			}
		}
	}
	return n
}

// assemble makes the profile of the given samples, with only what they use.
func (b *Builder) assemble(o ordering, part []uint32) *profile.Profile {
	usedLocation := make([]bool, len(b.locations))
	frames := 0
	for _, id := range part {
		frames += len(b.samples[id].stack)
		for _, l := range b.samples[id].stack {
			usedLocation[l] = true
		}
	}
	usedMapping, usedFunction := make([]bool, len(b.mappings)), make([]bool, len(b.functions))
	for id, used := range usedLocation {
		if used {
			usedMapping[b.locations[id].mapping] = true
			for _, ln := range b.locations[id].lines {
				usedFunction[ln.function] = true
			}
		}
	}
	p := &profile.Profile{TimeNanos: b.start.UnixNano(), DurationNanos: max(0, b.end.Sub(b.start).Nanoseconds()), Period: b.period,
		PeriodType: &profile.ValueType{Type: b.typ.Period.Type, Unit: b.typ.Period.Unit}}
	for _, s := range b.typ.Samples {
		p.SampleType = append(p.SampleType, &profile.ValueType{Type: s.Type, Unit: s.Unit})
	}
	mappings := make([]*profile.Mapping, len(b.mappings))
	for _, id := range inOrder(usedMapping, o.mappingRank) {
		m := b.mappings[id]
		mappings[id] = &profile.Mapping{ID: uint64(len(p.Mapping)) + 1, Start: m.start, Limit: m.start + m.size, Offset: m.offset,
			File: m.file, BuildID: m.buildID, HasFunctions: true}
		p.Mapping = append(p.Mapping, mappings[id])
	}
	functions := make([]*profile.Function, len(b.functions))
	for _, id := range inOrder(usedFunction, o.functionRank) {
		f := b.functions[id]
		functions[id] = &profile.Function{ID: uint64(len(p.Function)) + 1, Name: f.name, SystemName: f.systemName,
			Filename: f.filename, StartLine: f.startLine}
		p.Function = append(p.Function, functions[id])
	}
	locations := make([]*profile.Location, len(b.locations))
	for _, id := range inOrder(usedLocation, o.locationRank) {
		l := &b.locations[id]
		m := mappings[l.mapping]
		out := &profile.Location{ID: uint64(len(p.Location)) + 1, Mapping: m, Address: l.address + m.Start, IsFolded: l.folded,
			Line: make([]profile.Line, len(l.lines))}
		m.HasInlineFrames = m.HasInlineFrames || len(l.lines) > 1
		for i, ln := range l.lines {
			out.Line[i] = profile.Line{Function: functions[ln.function], Line: ln.line, Column: ln.column}
			m.HasFilenames = m.HasFilenames || functions[ln.function].Filename != ""
			m.HasLineNumbers = m.HasLineNumbers || ln.line != 0
		}
		locations[id] = out
		p.Location = append(p.Location, out)
	}
	flat := make([]*profile.Location, 0, frames)
	samples := make([]profile.Sample, len(part))
	p.Sample = make([]*profile.Sample, len(part))
	for i, id := range part {
		s := &b.samples[id]
		begin := len(flat)
		for _, l := range s.stack {
			flat = append(flat, locations[l])
		}
		samples[i] = profile.Sample{Location: flat[begin:len(flat):len(flat)], Value: slices.Clone(s.values)}
		p.Sample[i] = &samples[i]
	}
	return p
}

// inOrder returns the ids that are used, by rank.
func inOrder(used []bool, rank []uint32) []uint32 {
	byRank := make([]uint32, len(rank))
	for id, r := range rank {
		byRank[r] = uint32(id)
	}
	return slices.DeleteFunc(byRank, func(id uint32) bool { return !used[id] })
}
