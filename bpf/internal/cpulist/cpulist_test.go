package cpulist

import (
	"maps"
	"slices"
	"testing"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		in   string
		want []int // nil: an error
	}{
		{"0\n", []int{0}},
		{"0-3", []int{0, 1, 2, 3}},
		{"0-1,4,6-7\n", []int{0, 1, 4, 6, 7}},
		{"", []int{}},
		{"3-1", nil},
		{"a", nil},
		{"0-", nil},
		{"-1", nil},
		{"0-99999999", nil},
	} {
		got, err := Parse(c.in)
		if (err != nil) != (c.want == nil) {
			t.Errorf("Parse(%q): error %v, want error: %v", c.in, err, c.want == nil)
			continue
		}
		if err == nil && !slices.Equal(slices.Sorted(maps.Keys(got)), c.want) {
			t.Errorf("Parse(%q) = %v, want %v", c.in, got, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"0-3,8", "", "1-", "65535", "0-65536"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		cpus, err := Parse(s)
		if err == nil && len(cpus) > maxCPU {
			t.Fatalf("Parse(%q) made %d CPUs", s, len(cpus))
		}
	})
}
