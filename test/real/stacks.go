package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/bpf/unwind/native/cfi"
)

// place is a function, whatever anybody calls it: the file, and where the function begins in it.
type place struct {
	file  string // its last element: containers' and perf's paths differ
	start uint64 // ELF virtual address
}

// stack is one sample's frames of user space, outermost last, with its weight.
type stack struct {
	frames []place
	weight float64
	end    uint64 // address in the file of the outermost frame
	cut    bool   // it says of itself that callers are missing, or does not end where programs and threads begin
}

// files finds functions in the files of the container's tree.
type files struct {
	root string
	open map[string]*file
}

type file struct {
	starts []uint64 // of functions, sorted: by the search table of unwind information and by symbols
	symtab bool     // has a symbol table of its own, not only of what it exports
	code   []elf.ProgHeader
	elf    io.ReaderAt
	tables *cfi.File
	roots  map[uint64]bool // by function: nobody has called it
}

// root says whether nobody can have called the code at an address: a table says so, or it is where the program begins.
func (f *file) root(at uint64) bool {
	if f == nil || f.tables == nil {
		return false
	}
	known, ok := f.roots[f.function(at)]
	if !ok {
		rows, err := f.tables.Rows(f.elf, nil, cfi.Address(at), cfi.Address(at)+1, nil)
		known = err == nil && len(rows) > 0 && rows[0].Rule.Kind == cfi.Stop
		f.roots[f.function(at)] = known
	}
	return known
}

// address turns an offset in the file, as perf prints it, into an ELF virtual address.
func (f *file) address(offset uint64) uint64 {
	if f != nil {
		for _, p := range f.code {
			if offset >= p.Off && offset-p.Off < p.Filesz {
				return offset - p.Off + p.Vaddr
			}
		}
	}
	return offset
}

// get reads a file of the tree once; nil for what is none (vDSO, deleted, generated).
func (f *files) get(path string) *file {
	if known, ok := f.open[path]; ok {
		return known
	}
	var read *file
	if b, err := os.ReadFile(filepath.Join(f.root, path)); err == nil {
		if e, err := elf.NewFile(bytes.NewReader(b)); err == nil {
			read = readFile(e)
			read.elf, read.roots = bytes.NewReader(b), map[uint64]bool{}
			read.tables, _ = cfi.Open(read.elf, int64(len(b))) // nil: of another machine, whose programs do not run here
		}
	}
	f.open[path] = read
	return read
}

func readFile(e *elf.File) *file {
	f := &file{}
	for _, p := range e.Progs {
		if p.Type == elf.PT_LOAD && p.Flags&elf.PF_X != 0 {
			f.code = append(f.code, p.ProgHeader)
		}
	}
	seen := map[uint64]bool{}
	add := func(at uint64) {
		if at != 0 && !seen[at] {
			seen[at] = true
			f.starts = append(f.starts, at)
		}
	}
	for i, read := range []func() ([]elf.Symbol, error){e.Symbols, e.DynamicSymbols} {
		all, _ := read() // none is what stripped files have
		for _, s := range all {
			if elf.ST_TYPE(s.Info) == elf.STT_FUNC && s.Section != elf.SHN_UNDEF {
				add(s.Value)
				f.symtab = f.symtab || i == 0
			}
		}
	}
	// .eh_frame_hdr (LSB Core 5.0, 10.6.2): gcc and binutils write its table of function starts as pairs of 32-bit distances.
	if s := e.Section(".eh_frame_hdr"); s != nil {
		if b, err := s.Data(); err == nil && len(b) >= 12 && b[0] == 1 && b[1] == 0x1b && b[2] == 0x03 && b[3] == 0x3b {
			for i := 12; i+8 <= len(b); i += 8 {
				add(s.Addr + uint64(int64(int32(binary.LittleEndian.Uint32(b[i:])))))
			}
		}
	}
	slices.Sort(f.starts)
	return f
}

// function is the beginning of the function that an address is in; the address itself where nothing is known of the file.
func (f *file) function(address uint64) uint64 {
	if f == nil {
		return 0 // one function for all of such a file
	}
	i := sort.Search(len(f.starts), func(i int) bool { return f.starts[i] > address })
	if i == 0 {
		return address
	}
	return f.starts[i-1]
}

// ours are the stacks of profiles, with how many of their frames have a name.
func (f *files) ours(profiles []*profile.Profile, names map[place]string) (stacks []stack, named, inSymtab, namedInSymtab float64) {
	var all float64
	for _, p := range profiles {
		for _, s := range p.Sample {
			out := stack{weight: float64(s.Value[0])}
			path := ""
			for _, l := range s.Location {
				name := l.Line[len(l.Line)-1].Function.Name
				switch {
				case l.Mapping != nil && strings.HasPrefix(l.Mapping.File, "[kernel"):
					continue
				case slices.Contains([]string{"[truncated]", "[stack not delivered]", "[stack not counted]", "[stack lost]"}, name):
					out.cut = true
					continue
				}
				path = ""
				if l.Mapping != nil {
					path = l.Mapping.File
				}
				file := f.get(path)
				at := place{filepath.Base(path), file.function(l.Address)}
				out.frames, out.end = append(out.frames, at), l.Address
				has := !strings.Contains(name, "!0x") && !strings.HasPrefix(name, "[")
				all += out.weight
				if has {
					named += out.weight
					names[at] = name
				}
				if file != nil && file.symtab {
					inSymtab += out.weight
					if has {
						namedInSymtab += out.weight
					}
				}
			}
			if n := len(out.frames); n > 0 && !f.get(path).root(out.end) {
				out.cut = true
			}
			if len(out.frames) > 0 || out.cut { // else all of it is in the kernel
				stacks = append(stacks, out)
			}
		}
	}
	if all > 0 {
		named /= all
	}
	return stacks, named, inSymtab, namedInSymtab
}

var (
	frameLine = regexp.MustCompile(`^\s+([0-9a-f]+) .*\((.*)\)$`)
	headLine  = regexp.MustCompile(`^\S.*?\s\d+/\d+\s`)
)

// perfs are the stacks that perf unwound from copies of the stack (perf record --call-graph dwarf). perf says where in the file the code is; places are
// looked up as ours are, so that what is compared is the walk and not who knows more names. It unwinds within the tree:
// most of the processes have ended by then, and their files cannot be found through them. data is a path in the tree.
func (f *files) perfs(ctx context.Context, data string) (stacks []stack, err error) {
	cmd := exec.CommandContext(ctx, "chroot", f.root, "perf", "script", "-i", data, "--no-inline", "-F", "comm,pid,tid,time,ip,sym,dso")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var errs strings.Builder
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var now *stack
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if m := frameLine.FindStringSubmatch(line); m != nil && now != nil {
			pc, err := strconv.ParseUint(m[1], 16, 64)
			if err != nil || strings.HasPrefix(m[2], "[") && m[2] != "[vdso]" { // the kernel's
				continue
			}
			if len(now.frames) > 0 {
				pc-- // the call, not what comes after it
			}
			in := f.get(m[2])
			now.frames = append(now.frames, place{filepath.Base(m[2]), in.function(in.address(pc))})
			continue
		}
		if now != nil && len(now.frames) > 0 {
			stacks = append(stacks, *now)
		}
		now = nil
		if headLine.MatchString(line) {
			now = &stack{weight: 1}
		}
	}
	if now != nil && len(now.frames) > 0 {
		stacks = append(stacks, *now)
	}
	if err := errors.Join(lines.Err(), cmd.Wait()); err != nil {
		return nil, fmt.Errorf("perf script: %w: %s", err, errs.String())
	}
	return stacks, nil
}

// whole are the stacks that end where one of ours ends that says of itself that it is whole: perf does not say it of its own.
func whole(theirs, ours []stack) (out []stack) {
	roots := map[place]bool{}
	for _, s := range ours {
		if !s.cut {
			roots[s.frames[len(s.frames)-1]] = true
		}
	}
	for _, s := range theirs {
		if roots[s.frames[len(s.frames)-1]] {
			out = append(out, s)
		}
	}
	return out
}

// ends are the outermost frames of stacks that are cut, with their share of all time, most first.
func ends(stacks []stack) (out []difference) {
	share := map[place]float64{}
	var all float64
	for _, s := range stacks {
		all += s.weight
		if s.cut && len(s.frames) > 0 {
			share[place{s.frames[len(s.frames)-1].file, s.end}] += s.weight
		}
	}
	for p, weight := range share {
		out = append(out, difference{at: p, ours: weight / all})
	}
	slices.SortFunc(out, func(a, b difference) int { return cmp.Compare(b.ours, a.ours) })
	return out
}

// totals is each function's share of the time of all stacks that it is in, and the time of all.
func totals(stacks []stack) (share map[place]float64, all float64) {
	share = map[place]float64{}
	for _, s := range stacks {
		all += s.weight
		seen := map[place]bool{}
		for _, p := range s.frames {
			if !seen[p] {
				seen[p] = true
				share[p] += s.weight
			}
		}
	}
	for p := range share {
		share[p] /= all
	}
	return share, all
}

// chance is how large the largest difference between two sets of stacks is that were drawn from the same ones: the middle of many
// draws. It takes samples to be independent of each other.
func chance(ours, theirs []stack, top []difference, period float64) float64 {
	index := map[place]int{}
	for i, d := range top {
		index[d.at] = i
	}
	var pool [][]int // of each sample, which of the functions are in it
	add := func(s stack, n int) {
		var in []int
		for _, p := range s.frames {
			if i, ok := index[p]; ok && !slices.Contains(in, i) {
				in = append(in, i)
			}
		}
		for range n {
			pool = append(pool, in)
		}
	}
	for _, s := range ours {
		add(s, int(math.Round(s.weight/period)))
	}
	mine := len(pool)
	for _, s := range theirs {
		add(s, 1)
	}
	if mine == 0 || mine == len(pool) {
		return 0
	}
	random := rand.New(rand.NewPCG(1, 1))
	var largest []float64
	for range 201 {
		random.Shuffle(len(pool), func(i, j int) { pool[i], pool[j] = pool[j], pool[i] })
		counts := [2][]float64{make([]float64, len(top)), make([]float64, len(top))}
		for i, in := range pool {
			side := 0
			if i >= mine {
				side = 1
			}
			for _, f := range in {
				counts[side][f]++
			}
		}
		var most float64
		for f := range top {
			most = max(most, math.Abs(counts[0][f]/float64(mine)-counts[1][f]/float64(len(pool)-mine)))
		}
		largest = append(largest, most)
	}
	slices.Sort(largest)
	return largest[len(largest)/2]
}

// difference is a function and its share by both.
type difference struct {
	at           place
	ours, theirs float64
}

func (d difference) size() float64 { return max(d.ours-d.theirs, d.theirs-d.ours) }

// compare takes the twenty functions with the largest total by either, and returns them by how much the two differ, most first.
func compare(ours, theirs map[place]float64) []difference {
	top := map[place]bool{}
	for _, m := range []map[place]float64{ours, theirs} {
		var all []place
		for p := range m {
			all = append(all, p)
		}
		slices.SortFunc(all, func(a, b place) int { return cmp.Compare(m[b], m[a]) })
		for _, p := range all[:min(20, len(all))] {
			top[p] = true
		}
	}
	var out []difference
	for p := range top {
		out = append(out, difference{p, ours[p], theirs[p]})
	}
	slices.SortFunc(out, func(a, b difference) int { return cmp.Compare(b.size(), a.size()) })
	return out
}
