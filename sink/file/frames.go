package file

import (
	"fmt"
	"iter"
	"path"
	"strings"

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
		f.module = shorten(l.Mapping.File)
	}
	if ln.Function != nil {
		f.name, f.file = shorten(ln.Function.Name), shorten(ln.Function.Filename)
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

// maxText bounds the strings of a frame, in bytes. Outside of pprof a name is written once for each node that has it: with
// names as long as a profile may hold, a flame graph would have hundreds of megabytes.
const maxText = 1000

// shorten takes out the middle of a long string: what comes last, a method's name, matters as much as what comes first.
func shorten(s string) string {
	if len(s) <= maxText {
		return s
	}
	const half = maxText/2 - len("…")
	return strings.ToValidUTF8(s[:half], "") + "…" + strings.ToValidUTF8(s[len(s)-half:], "")
}
