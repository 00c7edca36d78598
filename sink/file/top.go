package file

import (
	"cmp"
	"slices"

	"github.com/google/pprof/profile"
)

// Function is what one function took: Flat by its own code, Cum with all that it called.
type Function struct {
	Name   string `json:"name"`
	Module string `json:"module,omitempty"`
	File   string `json:"file,omitempty"`
	Flat   int64  `json:"flat"`
	Cum    int64  `json:"cum"`
}

// Top lists the functions of one sample type of p, the largest Flat first, and the sum of all samples. A function counts
// once per sample for Cum, however often it called itself.
func Top(p *profile.Profile, sampleIndex int) (functions []Function, total int64) {
	type key struct{ name, module string }
	index := map[key]int{}
	seen := map[int]bool{}
	for _, s := range p.Sample {
		if sampleIndex >= len(s.Value) || s.Value[sampleIndex] == 0 {
			continue
		}
		v := s.Value[sampleIndex]
		total += v
		clear(seen)
		leaf := -1
		for f := range frames(s) {
			i, ok := index[key{f.name, f.module}]
			if !ok {
				i = len(functions)
				index[key{f.name, f.module}] = i
				functions = append(functions, Function{Name: f.name, Module: f.module, File: f.file})
			}
			if !seen[i] {
				seen[i] = true
				functions[i].Cum += v
			}
			leaf = i
		}
		if leaf >= 0 {
			functions[leaf].Flat += v
		}
	}
	slices.SortFunc(functions, func(a, b Function) int {
		return cmp.Or(cmp.Compare(b.Flat, a.Flat), cmp.Compare(b.Cum, a.Cum), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Module, b.Module))
	})
	return functions, total
}
