package unwind

import "slices"

// merger puts the frames of languages where native code runs them. It is for one goroutine.
type merger struct {
	out, native, mark []RawFrame
	places            []int
	runs              [][]RawFrame
	at                map[int][]RawFrame // runs by index in native
}

// merge returns the frames of a stack, leaf first, in the order in which they have called each other. The kernel side sends the native
// frames first, then those of each language, from the leaf too, in runs that end with a [LanguageEntry]; one mark may be at the end. loop
// says whether an address is in the loop of the language in a slot: there a run takes the place of the native frame.
//
// Both sides know their outermost frame best: if both are whole, the last run belongs to the last loop, and what is left over at the
// leaf are loops that have just begun or are about to end, which stay native frames, or runs whose loop is in a place that we do not know to
// be one, which come before the first that we do. If one is cut, the first run belongs to the first loop, and what is left over follows at
// the end. The result is valid until the next call.
func (m *merger) merge(frames []RawFrame, loop func(slot uint8, address uint64) bool) []RawFrame {
	m.out, m.native, m.mark = m.out[:0], m.native[:0], m.mark[:0]
	if m.at == nil {
		m.at = map[int][]RawFrame{}
	}
	clear(m.at)
	rest := frames
	for len(rest) > 0 && !rest[0].appended() && !rest[0].isMark() {
		rest = rest[1:]
	}
	m.native = append(m.native, frames[:len(frames)-len(rest)]...)
	if n := len(rest); n > 0 && rest[n-1].isMark() {
		m.mark, rest = append(m.mark, rest[n-1]), rest[:n-1]
	}
	var left []RawFrame
	for len(rest) > 0 {
		slot := rest[0].Unwinder
		n := 1
		for n < len(rest) && rest[n].Unwinder == slot {
			n++
		}
		left = append(left, m.assign(slot, rest[:n], loop)...)
		rest = rest[n:]
	}
	for i, f := range m.native {
		if run, ok := m.at[i]; ok {
			m.out = append(m.out, run...)
		} else {
			m.out = append(m.out, f)
		}
	}
	m.out = append(m.out, left...)
	return append(m.out, m.mark...)
}

// appended reports whether a language has appended the frame, and not put it in a native one's place.
func (f *RawFrame) appended() bool { return f.Unwinder >= FirstLanguageSlot && f.Kind < LanguagePlaced }

func (f *RawFrame) isMark() bool { return f.Unwinder == KernelSlot && f.Kind == KindTruncated }

// assign gives the runs of one language places among the native frames, and returns those that have none.
func (m *merger) assign(slot uint8, frames []RawFrame, loop func(slot uint8, address uint64) bool) []RawFrame {
	m.places, m.runs = m.places[:0], m.runs[:0]
	for i, f := range m.native {
		address := f.A
		if f.ReturnAddress {
			address--
		}
		if _, taken := m.at[i]; f.Unwinder != KernelSlot && f.Unwinder < FirstLanguageSlot && !taken && loop(slot, address) {
			m.places = append(m.places, i)
		}
	}
	whole := len(m.mark) == 0
	for len(frames) > 0 {
		n := slices.IndexFunc(frames, func(f RawFrame) bool { return f.Kind == LanguageEntry || f.Kind == LanguageEmpty }) + 1
		if n == 0 { // cut
			n, whole = len(frames), false
		}
		m.runs = append(m.runs, frames[:n])
		frames = frames[n:]
	}
	places, runs := m.places, m.runs
	if whole && len(places) > len(runs) {
		places = places[len(places)-len(runs):]
	}
	extra := 0 // runs at the leaf for which there is no place
	if whole && len(places) > 0 {
		extra = max(0, len(runs)-len(places))
	}
	var left []RawFrame
	for i, run := range runs {
		// A loop without a frame stays a native one; what is at its end belongs to nobody.
		if last := len(run) - 1; run[last].Kind == LanguageEmpty {
			run = run[:last]
		}
		switch {
		case len(run) == 0:
		case i <= extra && extra > 0:
			m.at[places[0]] = append(m.at[places[0]], run...)
		case i-extra < len(places):
			m.at[places[i-extra]] = run
		default:
			left = append(left, run...)
		}
	}
	return left
}
