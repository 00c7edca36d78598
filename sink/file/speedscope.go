package file

import (
	"cmp"
	"encoding/json"
	"io"

	"github.com/google/pprof/profile"
)

// The parts of speedscope's file format that we write; the names are its own.
type (
	speedscopeFile struct {
		Schema             string              `json:"$schema"`
		Name               string              `json:"name"`
		Exporter           string              `json:"exporter"`
		ActiveProfileIndex int                 `json:"activeProfileIndex"`
		Shared             speedscopeShared    `json:"shared"`
		Profiles           []speedscopeProfile `json:"profiles"`
	}
	speedscopeShared struct {
		Frames []speedscopeFrame `json:"frames"`
	}
	speedscopeFrame struct {
		Name string `json:"name"`
		File string `json:"file,omitempty"`
		Line int64  `json:"line,omitempty"`
	}
	speedscopeProfile struct {
		Type       string  `json:"type"`
		Name       string  `json:"name"`
		Unit       string  `json:"unit"`
		StartValue int64   `json:"startValue"`
		EndValue   int64   `json:"endValue"`
		Samples    [][]int `json:"samples"`
		Weights    []int64 `json:"weights"`
	}
)

// speedscopeUnits are the units that the format knows; others are "none".
var speedscopeUnits = map[string]bool{"nanoseconds": true, "microseconds": true, "milliseconds": true, "seconds": true, "bytes": true}

// writeSpeedscope writes one "sampled" profile for each sample type.
func writeSpeedscope(w io.Writer, p *profile.Profile, opts Options) error {
	out := speedscopeFile{Schema: "https://www.speedscope.app/file-format-schema.json", Name: cmp.Or(opts.Title, "stoker"),
		Exporter: "stoker", ActiveProfileIndex: opts.SampleIndex, Shared: speedscopeShared{Frames: []speedscopeFrame{}}}
	index := map[speedscopeFrame]int{}
	stacks := make([][]int, len(p.Sample))
	for i, s := range p.Sample {
		stacks[i] = []int{}
		for f := range frames(s) {
			// A function is one frame wherever in it the sample was: with the line of the sample in it, speedscope would
			// show one function many times.
			k := speedscopeFrame{Name: f.name, File: cmp.Or(f.file, f.module)}
			n, ok := index[k]
			if !ok {
				n = len(out.Shared.Frames)
				index[k] = n
				out.Shared.Frames = append(out.Shared.Frames, speedscopeFrame{Name: f.name, File: k.File, Line: f.start})
			}
			stacks[i] = append(stacks[i], n)
		}
	}
	for t, st := range p.SampleType {
		sp := speedscopeProfile{Type: "sampled", Name: st.Type, Unit: "none", Samples: [][]int{}, Weights: []int64{}}
		if speedscopeUnits[st.Unit] {
			sp.Unit = st.Unit
		}
		for i, s := range p.Sample {
			if v := s.Value[t]; v > 0 {
				sp.Samples = append(sp.Samples, stacks[i])
				sp.Weights = append(sp.Weights, v)
				sp.EndValue += v
			}
		}
		out.Profiles = append(out.Profiles, sp)
	}
	return json.NewEncoder(w).Encode(out)
}
