package main

import (
	"context"
	"strconv"

	"github.com/stoker-profiler/stoker/test/workload"
)

// Frames of the stacks whose difference in cost is that of a frame, and how many of them are not the program's own: the C
// library's.
const (
	shallow, deep = 8, 100
	libraryFrames = 3
)

// depth measures what a frame costs that is walked by unwind rows: the difference between stacks of 8 and of 100 frames.
func (b *bench) depth(ctx context.Context, a *sampler, r *result) error {
	for at, frames := range map[*runs]int{&r.shallow: shallow, &r.deep: deep} {
		samples, _, err := b.inScope(ctx, a, r, workload.DeepOmit, strconv.Itoa(frames-libraryFrames))
		if err != nil {
			return err
		}
		*at = samples.runs
	}
	return nil
}

// perFrame is that difference in nanoseconds.
func (r *result) perFrame() float64 { return (r.deep.each() - r.shallow.each()) / (deep - shallow) }
