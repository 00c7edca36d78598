package wire

import "unicode/utf8"

// State is what the hook reads of an OCI state (runtime-spec 1.3.0, runtime.md, "State"). Its slices are views of the bytes that
// were parsed.
type State struct {
	ID  []byte
	PID int
	// Annotations are those that were asked for.
	Annotations []Annotation
}

// Annotation is one annotation of a container.
type Annotation struct{ Key, Value []byte }

// ParseState reads a state as far as it is one. What comes after a mistake, or is cut off, is missing from the result, which
// may still have an id and a pid: a hook tells what it knows. keep says which annotations are wanted. The bytes are written to:
// escapes are undone in place. Keys are told apart as JSON does, the last of equal ones counts, and what is not known is skipped.
// It reads any JSON value that can be skipped leniently: this is no validator.
func ParseState(b []byte, keep func(key []byte) bool) State {
	var s State
	p := parser{b: b}
	p.object(func(key []byte) bool {
		switch string(key) {
		case "id":
			v, ok := p.text()
			if ok {
				s.ID = v
			}
			return ok
		case "pid":
			v, ok := p.number()
			if ok {
				s.PID = v
			}
			return ok
		case "annotations":
			s.Annotations = s.Annotations[:0]
			if p.peek() != '{' { // null, or nonsense
				return p.skip()
			}
			return p.object(func(key []byte) bool {
				if !keep(key) || p.peek() != '"' {
					return p.skip()
				}
				v, ok := p.text()
				if ok {
					s.Annotations = append(s.Annotations, Annotation{key, v})
				}
				return ok
			})
		}
		return p.skip()
	})
	return s
}

// parser reads JSON from the front of b. Each method reports whether it found what it is for.
type parser struct {
	b []byte
	i int
}

// peek returns the next byte that is no space, 0 at the end.
func (p *parser) peek() byte {
	for ; p.i < len(p.b); p.i++ {
		switch c := p.b[p.i]; c {
		case ' ', '\t', '\r', '\n':
		default:
			return c
		}
	}
	return 0
}

func (p *parser) take(c byte) bool {
	if p.peek() != c || p.i >= len(p.b) {
		return false
	}
	p.i++
	return true
}

// object calls member for each key; member consumes the value.
func (p *parser) object(member func(key []byte) bool) bool {
	if !p.take('{') {
		return false
	}
	if p.take('}') {
		return true
	}
	for {
		key, ok := p.text()
		if !ok || !p.take(':') || !member(key) {
			return false
		}
		if p.take('}') {
			return true
		}
		if !p.take(',') {
			return false
		}
	}
}

// number reads a whole number that fits a pid.
func (p *parser) number() (int, bool) {
	p.peek()
	start, n := p.i, 0
	for ; p.i < len(p.b) && p.b[p.i] >= '0' && p.b[p.i] <= '9'; p.i++ {
		if n = n*10 + int(p.b[p.i]-'0'); n > 1<<31-1 {
			return 0, false
		}
	}
	if p.i == start || p.i == len(p.b) { // cut off in the middle it would be another number
		return 0, false
	}
	switch p.b[p.i] {
	case '.', 'e', 'E':
		return 0, false
	}
	return n, p.i-start == 1 || p.b[start] != '0'
}

// skip goes past one value of any kind.
func (p *parser) skip() bool {
	switch c := p.peek(); c {
	case '"':
		_, _, ok := p.raw()
		return ok
	case '{', '[':
		depth := 0
		for p.i < len(p.b) {
			switch p.b[p.i] {
			case '"':
				if _, _, ok := p.raw(); !ok {
					return false
				}
				continue
			case '{', '[':
				depth++
			case '}', ']':
				depth--
			}
			p.i++
			if depth == 0 {
				return true
			}
		}
		return false
	case 0, ',', ':', '}', ']':
		return false
	}
	for p.i < len(p.b) { // a number or a word
		switch p.b[p.i] {
		case ',', '}', ']', ' ', '\t', '\r', '\n':
			return true
		}
		p.i++
	}
	return false
}

// raw goes past a string and returns where it is, without its quotes, and whether it has escapes or bytes that have to be replaced.
func (p *parser) raw() (s []byte, plain, ok bool) {
	if !p.take('"') {
		return nil, false, false
	}
	start := p.i
	plain = true
	for ; p.i < len(p.b); p.i++ {
		switch c := p.b[p.i]; {
		case c == '"':
			s = p.b[start:p.i]
			p.i++
			return s, plain, true
		case c == '\\':
			plain = false
			p.i++
		case c < ' ':
			return nil, false, false
		case c >= utf8.RuneSelf:
			plain = false
		}
	}
	return nil, false, false
}

// text reads a string. What is not UTF-8 becomes U+FFFD, as in encoding/json.
func (p *parser) text() ([]byte, bool) {
	s, plain, ok := p.raw()
	if !ok || plain {
		return s, ok
	}
	// An escape is never shorter than what it stands for; a byte that is no UTF-8 is.
	out := s[:0]
	if !utf8.Valid(s) {
		out = make([]byte, 0, 3*len(s))
	}
	for i := 0; i < len(s); {
		if s[i] != '\\' {
			r, n := utf8.DecodeRune(s[i:])
			out = utf8.AppendRune(out, r)
			i += n
			continue
		}
		i++ // raw has seen that a byte follows
		switch c := s[i]; c {
		case '"', '\\', '/':
			out = append(out, c)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r, ok := hex4(s[i+1:])
			if !ok {
				return nil, false
			}
			i += 4
			if r >= 0xd800 && r < 0xe000 { // half of a pair
				low, ok := rune(0), false
				if rest := s[i+1:]; r < 0xdc00 && len(rest) >= 6 && rest[0] == '\\' && rest[1] == 'u' {
					low, ok = hex4(rest[2:])
				}
				if ok && low >= 0xdc00 && low < 0xe000 {
					r = (r-0xd800)<<10 | (low - 0xdc00) + 0x10000
					i += 6
				} else {
					r = utf8.RuneError
				}
			}
			out = utf8.AppendRune(out, r)
		default:
			return nil, false
		}
		i++
	}
	return out, true
}

func hex4(s []byte) (r rune, ok bool) {
	if len(s) < 4 {
		return 0, false
	}
	for _, c := range s[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}
