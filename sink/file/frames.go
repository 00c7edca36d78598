package file

import (
	"fmt"
	"iter"
	"path"

	"github.com/google/pprof/profile"
)

// frame is one function of a stack, inlined ones included.
type frame struct {
	name, module, file string
	start              int64 // the line where the function begins, 0 when not known
	other              bool
}

// frames yields the functions of a sample from the root to the leaf.
func frames(s *profile.Sample) iter.Seq[frame] {
	return func(yield func(frame) bool) {
		for i := len(s.Location) - 1; i >= 0; i-- {
			l := s.Location[i]
			if len(l.Line) == 0 {
				if !yield(frameOf(l, profile.Line{})) {
					return
				}
				continue
			}
			for j := len(l.Line) - 1; j >= 0; j-- { // the innermost inlined function comes first
				if !yield(frameOf(l, l.Line[j])) {
					return
				}
			}
		}
	}
}

func frameOf(l *profile.Location, ln profile.Line) frame {
	var f frame
	if l.Mapping != nil {
		f.module = l.Mapping.File
	}
	if ln.Function != nil {
		f.name, f.file = ln.Function.Name, ln.Function.Filename
		f.start = max(0, ln.Function.StartLine)
	}
	if f.name == "" {
		module := "unknown"
		if f.module != "" {
			module = path.Base(f.module)
		}
		f.name = fmt.Sprintf("%s!0x%x", module, l.Address)
	}
	return f
}
