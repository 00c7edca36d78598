package unwind

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Frames as words, leaf first: k kernel, n native, L and M native in the loop of languages 2 and 3, 2x and 3x frames of them, with !
// behind the last of a run, 2- an empty run, 2? what could not be read, 2p and the letters behind it frames that are in their places, and | a mark.
func TestMerge(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"no language", "k n L n |", "k n L n |"},
		{"one run", "n L n 2a 2b!", "n 2a 2b! n"},
		{"kernel frames stay the leaf", "k L n 2a!", "k 2a! n"},
		{"native code between", "L n L n 2a! 2b 2c!", "2a! n 2b 2c! n"},
		{"a loop that has just begun", "L n L n 2a!", "L n 2a! n"},
		{"an empty run", "n L n L n 2- 2a!", "n L n 2a! n"},
		{"native frames cut", "n L n L | 2a! 2b! 2c!", "n 2a! n 2b! 2c! |"},
		{"native frames cut, mark at the end", "n L n L 2a! 2b! 2c! |", "n 2a! n 2b! 2c! |"},
		{"own frames cut", "L n L n 2a! 2b 2?", "2a! n 2b 2? n"},
		{"own frames cut early", "L n L n 2a 2?", "2a 2? n L n"},
		{"more runs than loops", "n L n L n 2a! 2b! 2c! 2d!", "n 2a! 2b! 2c! n 2d! n"},
		{"no loop at all", "n n 2a!", "n n 2a!"},
		{"two languages", "M n L n 2a! 3b!", "3b! n 2a! n"},
		{"a language nobody reads", "n L 4x!", "n L 4x!"},
		{"frames in their places", "3p n 3q L 3r n 2a!", "3p n 3q 2a! 3r n"},
		{"frames in their places, cut", "3p L 3q | 2a 2?", "3p 2a 2? 3q |"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m merger
			for range 2 { // the second time in used memory
				var frames []RawFrame
				for i, w := range strings.Fields(c.in) {
					frames = append(frames, frameOf(w, uint64(i)))
				}
				words := map[RawFrame]string{}
				for i, w := range strings.Fields(c.in) {
					words[frames[i]] = w
				}
				var got []string
				for _, f := range m.merge(sorted(frames), func(slot uint8, address uint64) bool { return address>>32 == uint64(slot) }) {
					got = append(got, words[f])
				}
				if g := strings.Join(got, " "); g != c.want {
					t.Errorf("got  %s\nwant %s", g, c.want)
				}
			}
		})
	}
}

// sorted puts a mark at the end, where the kernel side has it.
func sorted(frames []RawFrame) []RawFrame {
	i := slices.IndexFunc(frames, func(f RawFrame) bool { return f.isMark() })
	if i < 0 {
		return frames
	}
	mark := frames[i]
	return append(slices.Delete(slices.Clone(frames), i, i+1), mark)
}

func frameOf(w string, i uint64) RawFrame {
	switch w[0] {
	case 'k':
		return RawFrame{Kind: KindKernel, A: i}
	case '|':
		return RawFrame{Kind: KindTruncated, A: i}
	case 'n', 'L', 'M':
		at := map[byte]uint64{'n': 0, 'L': 2, 'M': 3}[w[0]]<<32 | i
		return RawFrame{Unwinder: 1, Kind: 1, A: at + 1, ReturnAddress: true}
	}
	f := RawFrame{Unwinder: w[0] - '0', Kind: LanguageFrame, A: i}
	switch {
	case strings.HasSuffix(w, "!"):
		f.Kind = LanguageEntry
	case strings.HasSuffix(w, "-"):
		f.Kind = LanguageEmpty
	case strings.HasSuffix(w, "?"):
		f.Kind = LanguageLost
	case w[1] >= 'p':
		f.Kind = LanguagePlaced
	}
	return f
}

// Whatever comes, every frame is there once, but for those that are replaced, and natives keep their order.
func FuzzMerge(f *testing.F) {
	f.Add([]byte("kLn2!3"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var frames []RawFrame
		for i, c := range b {
			frames = append(frames, RawFrame{Unwinder: c & 7, Kind: c >> 3 & 7, A: uint64(c>>6)<<32 | uint64(i)})
		}
		var m merger
		out := m.merge(frames, func(slot uint8, address uint64) bool { return address>>32 == uint64(slot) })
		if len(out) > len(frames) {
			t.Fatalf("%d frames became %d", len(frames), len(out))
		}
		seen := map[string]bool{}
		for _, f := range out {
			k := fmt.Sprint(f)
			if seen[k] || !slices.Contains(frames, f) {
				t.Fatalf("%v is there twice, or was not", f)
			}
			seen[k] = true
		}
		for _, f := range frames {
			if f.Unwinder >= FirstLanguageSlot && f.Kind != LanguageEmpty && !seen[fmt.Sprint(f)] {
				t.Fatalf("%v is lost", f)
			}
		}
	})
}
