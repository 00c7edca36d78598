package pprof

import (
	"bytes"
	"compress/gzip"
	"errors"
	gopprof "runtime/pprof"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"

	"github.com/stoker-profiler/stoker/sink"
)

func window(t testing.TB, n int, values ...int64) []byte {
	t.Helper()
	start := windowStart.Add(time.Duration(n) * 10 * time.Second)
	b := NewBuilder(sink.CPU, start, start.Add(10*time.Second), period)
	for i, s := range newProcess(uint64(n+1) << 24).stacks() {
		if i < len(values) {
			b.Add(s, values[i])
		}
	}
	built, err := b.Profiles()
	if err != nil {
		t.Fatal(err)
	}
	return built[0].Pprof
}

func TestMergeSumsAndSpans(t *testing.T) {
	p, err := Merge(window(t, 1, 1, 2), window(t, 0, 10, 0, 30), window(t, 2, 100))
	if err != nil {
		t.Fatal(err)
	}
	if sum(p) != 143 || len(p.Sample) != 3 {
		t.Errorf("sum %d in %d samples, want 143 in 3", sum(p), len(p.Sample))
	}
	if p.TimeNanos != windowStart.UnixNano() || p.DurationNanos != 30e9 {
		t.Errorf("starts at %d for %d ns, want %d for 30 s", p.TimeNanos, p.DurationNanos, windowStart.UnixNano())
	}
	golden(t, "merged.txt", p.String())
}

func TestMergeInAnyOrderGivesEqualBytes(t *testing.T) {
	parts := [][]byte{window(t, 0, 10, 0, 30), window(t, 1, 1, 2), window(t, 2, 100)}
	var want []byte
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}} {
		p, err := Merge(parts[order[0]], parts[order[1]], parts[order[2]])
		if err != nil {
			t.Fatal(err)
		}
		got, err := Encode(p)
		if err != nil {
			t.Fatal(err)
		}
		if want == nil {
			want = got
		}
		if !bytes.Equal(got, want) {
			t.Errorf("order %v changes the bytes", order)
		}
	}
}

// Go's own heap profile has four sample types, labels with numbers, and locations without mappings.
func TestForeignProfileKeepsItsSums(t *testing.T) {
	var heap bytes.Buffer
	if err := gopprof.WriteHeapProfile(&heap); err != nil {
		t.Fatal(err)
	}
	p := mustParse(t, heap.Bytes())
	var m Merger
	for range 2 {
		if err := m.AddProfile(p); err != nil {
			t.Fatal(err)
		}
	}
	got, err := m.Profile()
	if err != nil {
		t.Fatal(err)
	}
	for i, st := range p.SampleType {
		var before, after int64
		for _, s := range p.Sample {
			before += s.Value[i]
		}
		for _, s := range got.Sample {
			after += s.Value[i]
		}
		if after != 2*before {
			t.Errorf("%s: %d, want %d", st.Type, after, 2*before)
		}
	}
	for _, l := range got.Location {
		if len(l.Line) == 0 || l.Mapping == nil {
			t.Errorf("location %d is not complete", l.ID)
		}
	}
}

func TestMergerSplitsLikeABuilder(t *testing.T) {
	var m Merger
	if built, err := m.Profiles(); built != nil || err != nil {
		t.Errorf("an empty Merger gives %v, %v", built, err)
	}
	if _, err := m.Profile(); err == nil {
		t.Error("an empty Merger gives a profile")
	}
	for i := range 3 {
		if err := m.Add(window(t, i, 1, 2, 3)); err != nil {
			t.Fatal(err)
		}
	}
	built, err := m.Profiles()
	if err != nil || len(built) != 1 || built[0].Total != 18 || m.Len() != 3 {
		t.Errorf("built %+v, %v", built, err)
	}
}

func TestMergeOfDifferentTypesIsAnError(t *testing.T) {
	p, err := Parse(window(t, 0, 1))
	if err != nil {
		t.Fatal(err)
	}
	p.SampleType[0].Type = "inuse_space"
	other, err := Encode(p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Merge(window(t, 0, 1), other); err == nil || !strings.Contains(err.Error(), "inuse_space") {
		t.Errorf("got %v, want an error that names the type", err)
	}
	if _, err := Diff(mustParse(t, window(t, 0, 1)), p); err == nil {
		t.Error("a difference of two types passed")
	}
}

func mustParse(t *testing.T, gz []byte) *profile.Profile {
	t.Helper()
	p, err := Parse(gz)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDiffIsPprofsOwn(t *testing.T) {
	base, compare := mustParse(t, window(t, 0, 100, 50)), mustParse(t, window(t, 1, 130, 0, 7))
	before := base.String()
	d, err := Diff(base, compare)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "diff.txt", d.String())
	if sum(d) != 137-150 {
		t.Errorf("difference %d, want %d", sum(d), 137-150)
	}
	if base.String() != before {
		t.Error("Diff changed its base")
	}
}

func squeeze(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestHostileBytesAreRefused(t *testing.T) {
	good := window(t, 0, 1, 2, 3)
	for _, c := range []struct {
		name string
		data []byte
		big  bool
	}{
		{"empty", nil, false},
		{"text", []byte("heap profile: 0: 0 [0: 0] @ heapprofile"), false},
		{"gzip of nothing", squeeze(t, nil), false},
		{"half", good[:len(good)/2], false},
		{"one flipped byte", append(append([]byte{}, good[:len(good)/2]...), append([]byte{good[len(good)/2] ^ 0x40}, good[len(good)/2+1:]...)...), false},
		{"a bomb", squeeze(t, make([]byte, 64<<20)), true},
		{"two million samples", squeeze(t, bytes.Repeat([]byte{2<<3 | 2, 0}, 2<<20)), true},
		{"location of nothing", []byte{2<<3 | 2, 2, 1 << 3, 9}, false},
	} {
		_, err := Parse(c.data)
		if err == nil || c.big != errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: got %v, want an error, too large: %v", c.name, err, c.big)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(window(f, 0, 1, 2, 3))
	p, err := profile.Parse(bytes.NewReader(window(f, 0, 5)))
	if err != nil {
		f.Fatal(err)
	}
	var plain bytes.Buffer
	if err := p.WriteUncompressed(&plain); err != nil {
		f.Fatal(err)
	}
	f.Add(plain.Bytes())
	f.Add([]byte{})
	f.Add([]byte{2<<3 | 2, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse(data)
		if err != nil {
			return
		}
		var m Merger
		if err := m.AddProfile(p); err != nil {
			t.Fatal(err)
		}
		built, err := m.Profiles()
		if err != nil {
			return // a type that Pyroscope would refuse
		}
		for _, x := range built {
			if _, err := Parse(x.Pprof); err != nil {
				t.Fatalf("our own output does not parse: %v", err)
			}
		}
	})
}
