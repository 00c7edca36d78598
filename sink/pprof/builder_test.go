package pprof

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/sink"
)

var update = flag.Bool("update", false, "write the golden files anew")

const period = 1_000_000_000 / 97

var (
	windowStart = time.Date(2026, 3, 4, 5, 6, 7, 8, time.UTC)
	windowEnd   = windowStart.Add(10 * time.Second)
)

// process makes locations as the symbolizer does for one process: the same files, mapped somewhere else in each.
type process struct{ app, libc, kernel *profile.Mapping }

func newProcess(base uint64) process {
	return process{
		app: &profile.Mapping{Start: base, Limit: base + 0x8000, Offset: 0x1000, File: "/usr/bin/shop", BuildID: "0a0b0c"},
		libc: &profile.Mapping{Start: base + 0x100000, Limit: base + 0x180000, File: "/usr/lib/x86_64-linux-gnu/libc.so.6",
			BuildID: "c0ffee"},
		kernel: &profile.Mapping{File: "[kernel.kallsyms]"},
	}
}

func at(m *profile.Mapping, offset uint64, names ...string) *profile.Location {
	l := &profile.Location{Mapping: m, Address: m.Start + offset}
	for i, n := range names {
		file := ""
		if m.File == "/usr/bin/shop" {
			file = "shop.cc"
		}
		l.Line = append(l.Line, profile.Line{Function: &profile.Function{Name: n, SystemName: n, Filename: file, StartLine: 10},
			Line: int64(20 + i)})
	}
	return l
}

func (p process) stacks() [][]*profile.Location {
	main, serve := at(p.app, 0x10, "main"), at(p.app, 0x20, "serve")
	return [][]*profile.Location{
		{at(p.app, 0x30, "inlined", "price"), serve, main},
		{at(p.libc, 0x40, "memcpy"), serve, main},
		{at(p.kernel, 0xffffffff81000010, "copy_page"), at(p.kernel, 0xffffffff81000020, "do_syscall_64"), at(p.libc, 0x50, "read"), serve, main},
	}
}

func build(t *testing.T, b *Builder) []Built {
	t.Helper()
	built, err := b.Profiles()
	if err != nil {
		t.Fatal(err)
	}
	return built
}

func parseOne(t *testing.T, built []Built) *profile.Profile {
	t.Helper()
	if len(built) != 1 {
		t.Fatalf("got %d profiles, want 1", len(built))
	}
	p, err := Parse(built[0].Pprof)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it anew)\ngot:\n%s\nwant:\n%s", file, got, want)
	}
}

func TestTwoProcessesOfOneProgramBecomeOneProfile(t *testing.T) {
	b := NewBuilder(sink.CPU, windowStart, windowEnd, period)
	for i, base := range []uint64{0x400000, 0x7f0000000000} {
		for j, s := range newProcess(base).stacks() {
			b.Add(s, int64(i*3+j+1)*period)
		}
	}
	built := build(t, b)
	p := parseOne(t, built)
	golden(t, "two_processes.txt", p.String())
	if got, want := built[0].Total, int64(21*period); got != want {
		t.Errorf("total %d, want %d", got, want)
	}
	if built[0].Samples != 3 || b.Len() != 3 {
		t.Errorf("%d samples, %d in the builder, want 3: equal stacks are summed", built[0].Samples, b.Len())
	}
	if c := b.Counts(); c != (Counts{}) {
		t.Errorf("counts %+v, want none", c)
	}
	for _, m := range p.Mapping {
		if !m.HasFunctions {
			t.Errorf("mapping %s without has_functions", m.File)
		}
	}
	if p.Mapping[0].File != "/usr/bin/shop" {
		t.Errorf("first mapping %s, want the program", p.Mapping[0].File)
	}
}

func TestEqualInputGivesEqualBytesInAnyOrder(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var stacks [][]*profile.Location
	for _, base := range []uint64{0x400000, 0x7f0000000000} {
		stacks = append(stacks, newProcess(base).stacks()...)
	}
	stacks = append(stacks, synthetic(random, 200, 30)...)
	var want []byte
	for range 5 {
		random.Shuffle(len(stacks), func(i, j int) { stacks[i], stacks[j] = stacks[j], stacks[i] })
		b := NewBuilder(sink.CPU, windowStart, windowEnd, period)
		for _, s := range stacks {
			b.Add(s, period)
		}
		got := build(t, b)[0].Pprof
		if want == nil {
			want = got
		}
		if !bytes.Equal(got, want) {
			t.Fatal("the order of Add changes the bytes")
		}
	}
}

func TestRoundTripKeepsBytes(t *testing.T) {
	b := NewBuilder(sink.CPU, windowStart, windowEnd, period)
	for _, s := range newProcess(0x400000).stacks() {
		b.Add(s, 7*period)
	}
	built := build(t, b)
	p := parseOne(t, built)
	again, err := Encode(p)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, built[0].Pprof) {
		t.Error("encode, parse, encode changed the bytes")
	}
	merged, err := Merge(built[0].Pprof)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Encode(merged); err != nil || !bytes.Equal(got, built[0].Pprof) {
		t.Errorf("the merge of one profile is not that profile (%v)", err)
	}
	if p.TimeNanos != windowStart.UnixNano() || p.DurationNanos != 10e9 || p.Period != period {
		t.Errorf("time %d duration %d period %d", p.TimeNanos, p.DurationNanos, p.Period)
	}
}

func TestNothingGivesNoProfile(t *testing.T) {
	b := NewBuilder(sink.CPU, windowStart, windowEnd, period)
	b.Add(newProcess(0).stacks()[0], 0)
	b.Add(newProcess(0).stacks()[0], -1)
	if built := build(t, b); built != nil {
		t.Errorf("got %d profiles from zero and negative values", len(built))
	}
	if got := b.Counts().NonPositive; got != 2 {
		t.Errorf("counted %d, want 2", got)
	}
}

func TestWrongNumberOfValuesIsAnError(t *testing.T) {
	b := NewBuilder(sink.CPU, windowStart, windowEnd, period)
	b.Add(newProcess(0).stacks()[0], 1, 2)
	if _, err := b.Profiles(); err == nil {
		t.Error("two values for one sample type passed")
	}
}

func TestTypeThatPyroscopeCannotQueryIsAnError(t *testing.T) {
	typ := sink.CPU
	typ.Name = "a:b"
	b := NewBuilder(typ, windowStart, windowEnd, period)
	b.Add(newProcess(0).stacks()[0], 1)
	if _, err := b.Profiles(); err == nil {
		t.Error("a colon in the type's name passed")
	}
}

func TestWhatIsMissingGetsAName(t *testing.T) {
	m := &profile.Mapping{Start: 0x1000, Limit: 0x2000, File: "/opt/a/b"}
	b := NewBuilder(sink.CPU, windowStart, windowEnd, period)
	b.Add([]*profile.Location{{Mapping: m, Address: 0x1234}}, 1)
	b.Add([]*profile.Location{{Address: 0x99}}, 2)
	b.Add([]*profile.Location{{Line: []profile.Line{{Function: &profile.Function{}}}}}, 4)
	b.Add([]*profile.Location{nil}, 8)
	b.Add(nil, 16)
	p := parseOne(t, build(t, b))
	golden(t, "missing.txt", p.String())
	if c, want := b.Counts(), (Counts{EmptyStacks: 1, Unnamed: 4}); c != want {
		t.Errorf("counts %+v, want %+v", c, want)
	}
	for _, l := range p.Location {
		if len(l.Line) == 0 || l.Line[0].Function.Name == "" || l.Mapping == nil || l.Mapping.File == "" {
			t.Errorf("location %d is not complete: %+v", l.ID, l)
		}
	}
}

func TestHostileStringsBecomeValid(t *testing.T) {
	for _, s := range []string{"\xff\xfe", strings.Repeat("ä", MaxString), strings.Repeat("\xff", 300_000), "x" + strings.Repeat("€", MaxString)} {
		b := NewBuilder(sink.CPU, windowStart, windowEnd, period)
		m := &profile.Mapping{File: s, BuildID: s}
		b.Add([]*profile.Location{{Mapping: m, Line: []profile.Line{{Function: &profile.Function{Name: s, SystemName: s, Filename: s}}}}}, 1)
		p := parseOne(t, build(t, b))
		f := p.Function[0]
		for _, got := range []string{f.Name, f.SystemName, f.Filename, p.Mapping[0].File, p.Mapping[0].BuildID} {
			if !utf8.ValidString(got) || len(got) > MaxString || got == "" {
				t.Errorf("%d bytes of %q…: valid %v, %d bytes", len(s), s[:2], utf8.ValidString(got), len(got))
			}
		}
		if b.Counts().BadStrings != 5 {
			t.Errorf("counted %d bad strings, want 5", b.Counts().BadStrings)
		}
	}
}

func TestDeepStackIsCutInTheMiddle(t *testing.T) {
	m := &profile.Mapping{File: "/bin/deep"}
	stack := func(n int) (s []*profile.Location) {
		for i := range n {
			s = append(s, at(m, uint64(i+1), fmt.Sprintf("f%d", i)))
		}
		return s
	}
	for _, c := range []struct{ frames, want, cut int }{{999, 999, 0}, {1000, 1000, 0}, {1001, 1000, 1}, {5000, 1000, 1}} {
		b := NewBuilder(sink.CPU, windowStart, windowEnd, period)
		b.Add(stack(c.frames), 5)
		got := parseOne(t, build(t, b)).Sample[0]
		if len(got.Location) != c.want || b.Counts().CutStacks != c.cut {
			t.Fatalf("%d frames became %d, %d cut; want %d, %d", c.frames, len(got.Location), b.Counts().CutStacks, c.want, c.cut)
		}
		name := func(i int) string { return got.Location[i].Line[0].Function.Name }
		if name(0) != "f0" || name(len(got.Location)-1) != fmt.Sprintf("f%d", c.frames-1) {
			t.Errorf("%d frames: leaf %s, root %s", c.frames, name(0), name(len(got.Location)-1))
		}
		if c.cut == 1 && name(500) != FramesCut {
			t.Errorf("%d frames: frame 500 is %s, want the mark", c.frames, name(500))
		}
	}
}

func TestStackOfHugeSymbolsIsCutByBytes(t *testing.T) {
	m := &profile.Mapping{File: "/bin/huge"}
	var s []*profile.Location
	for i := range 200 {
		s = append(s, at(m, uint64(i+1), fmt.Sprintf("%d%s", i, strings.Repeat("n", 60_000))))
	}
	inlined := &profile.Location{Mapping: m}
	for i := range 100 {
		inlined.Line = append(inlined.Line, profile.Line{Function: &profile.Function{Name: fmt.Sprintf("%d%s", i, strings.Repeat("i", 60_000))}})
	}
	b := NewBuilder(sink.CPU, windowStart, windowEnd, period)
	b.Add(s, 3)
	b.Add([]*profile.Location{inlined}, 4)
	total := int64(0)
	for _, x := range build(t, b) {
		total += x.Total
		if x.Bytes > MaxBytes {
			t.Errorf("a profile of %d bytes", x.Bytes)
		}
	}
	if total != 7 || b.Counts().CutStacks != 2 {
		t.Errorf("total %d, %d stacks cut; want 7, 2", total, b.Counts().CutStacks)
	}
}

func TestLargeProfilesAreSplit(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for _, c := range []struct {
		name          string
		stacks, depth int
		pad           int
	}{{"by samples", 2*MaxSamples + 5, 2, 0}, {"by bytes", 3000, 200, 800}} {
		t.Run(c.name, func(t *testing.T) {
			b := NewBuilder(sink.CPU, windowStart, windowEnd, period)
			m := &profile.Mapping{File: "/bin/x"}
			var want int64
			for i := range c.stacks {
				s := []*profile.Location{at(m, uint64(i), fmt.Sprintf("leaf%d%s", i, strings.Repeat("p", c.pad)))}
				for d := range c.depth {
					s = append(s, at(m, uint64(d)<<20, fmt.Sprintf("f%d", d)))
				}
				b.Add(s, 1+random.Int64N(1000))
			}
			for i := range b.samples {
				want += b.samples[i].values[0]
			}
			built := build(t, b)
			if len(built) < 2 {
				t.Fatalf("%d parts", len(built))
			}
			var gz [][]byte
			var got int64
			for i, x := range built {
				if x.Bytes > MaxBytes || x.Samples > MaxSamples || x.Samples == 0 {
					t.Errorf("part %d: %d bytes, %d samples", i, x.Bytes, x.Samples)
				}
				if i < len(built)-1 && x.Samples < MaxSamples && x.Bytes < MaxBytes/2 {
					t.Errorf("part %d is needlessly small: %d bytes, %d samples", i, x.Bytes, x.Samples)
				}
				got += x.Total
				gz = append(gz, x.Pprof)
			}
			p, err := Merge(gz...)
			if err != nil {
				t.Fatal(err)
			}
			if got != want || len(p.Sample) != b.Len() || sum(p) != want {
				t.Errorf("parts hold %d, their merge %d in %d samples; want %d in %d", got, sum(p), len(p.Sample), want, b.Len())
			}
		})
	}
}

func sum(p *profile.Profile) (n int64) {
	for _, s := range p.Sample {
		n += s.Value[0]
	}
	return n
}

func TestSharedLocationsAreNotWrittenTo(t *testing.T) {
	s := newProcess(0x400000).stacks()
	before := fmt.Sprintf("%+v %+v %+v", *s[0][0], *s[0][0].Mapping, *s[0][0].Line[0].Function)
	b := NewBuilder(sink.CPU, windowStart, windowEnd, period)
	for _, x := range s {
		b.Add(x, 1)
	}
	build(t, b)
	if after := fmt.Sprintf("%+v %+v %+v", *s[0][0], *s[0][0].Mapping, *s[0][0].Line[0].Function); after != before {
		t.Errorf("a shared location changed\nfrom %s\nto   %s", before, after)
	}
}

func TestOpensInGoToolPprof(t *testing.T) {
	b := NewBuilder(sink.CPU, windowStart, windowEnd, period)
	for i, s := range newProcess(0x400000).stacks() {
		b.Add(s, int64(i+1)*period)
	}
	file := filepath.Join(t.TempDir(), "cpu.pb.gz")
	if err := os.WriteFile(file, build(t, b)[0].Pprof, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ flag, want string }{
		{"-top", "copy_page"}, {"-raw", "PeriodType: cpu nanoseconds"}, {"-traces", "do_syscall_64"},
	} {
		cmd := exec.Command("go", "tool", "pprof", "-symbolize=none", c.flag, file)
		cmd.Env = append(os.Environ(), "PPROF_TMPDIR="+t.TempDir())
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), c.want) {
			t.Errorf("go tool pprof %s: %v, no %q in\n%s", c.flag, err, c.want, out)
		}
	}
}

// synthetic makes stacks as a service has them: a tree of functions with a few hot paths.
func synthetic(random *rand.Rand, stacks, depth int) [][]*profile.Location {
	p := newProcess(0x400000)
	pool := make([][]*profile.Location, depth)
	for d := range pool {
		for i := range 4 + d*4 {
			m := p.app
			if i%3 == 0 {
				m = p.libc
			}
			pool[d] = append(pool[d], at(m, uint64(d<<12+i*16), fmt.Sprintf("std::vector<shop::Item%d>::level%d(int, char const*)", i, d)))
		}
	}
	out := make([][]*profile.Location, stacks)
	for i := range out {
		for d := depth - 1; d >= 0; d-- {
			out[i] = append(out[i], pool[d][int(random.ExpFloat64()*3)%len(pool[d])])
		}
	}
	return out
}

func BenchmarkBuild1000Stacks(b *testing.B) {
	stacks := synthetic(rand.New(rand.NewPCG(5, 6)), 1000, 25)
	b.ReportAllocs()
	var built []Built
	for b.Loop() {
		x := NewBuilder(sink.CPU, windowStart, windowEnd, period)
		for _, s := range stacks {
			x.Add(s, period)
		}
		var err error
		if built, err = x.Profiles(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(built[0].Pprof)), "gzip-bytes")
	b.ReportMetric(float64(built[0].Bytes), "bytes")
}

func BenchmarkMerge(b *testing.B) {
	x := NewBuilder(sink.CPU, windowStart, windowEnd, period)
	for _, s := range synthetic(rand.New(rand.NewPCG(5, 6)), 1000, 25) {
		x.Add(s, period)
	}
	built, err := x.Profiles()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	var m Merger
	for b.Loop() {
		if err := m.Add(built[0].Pprof); err != nil {
			b.Fatal(err)
		}
	}
}
