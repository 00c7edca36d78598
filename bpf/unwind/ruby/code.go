package ruby

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// code is what a frame can run: an instruction sequence, or a native method.
type code struct {
	name  string // with its class
	file  string // "": a native method
	first int32

	count int // of instruction words
	lines []byte
	size  int // of an entry of lines
	index []byte
}

// sequence reads the instruction sequence, rb_iseq_t, at an address, and what it is called; the class is that of method, if that is
// not 0, as a name of Ruby's own from 3.4 on.
func (s *symbols) sequence(iseq, method uint64) (code, error) {
	t := s.t
	head := make([]byte, t.Body+8)
	if err := s.read(head, iseq); err != nil {
		return code{}, fmt.Errorf("read the code at %#x: %w", iseq, err)
	}
	le := binary.LittleEndian
	if !isImemo(le.Uint64(head), imemoIseq) {
		return code{}, fmt.Errorf("the object at %#x is no code", iseq)
	}
	body := make([]byte, max(t.LineIndex, t.FirstLine, t.Label, t.PathObject, t.Lines, t.LineCount)+8)
	if err := s.read(body, le.Uint64(head[t.Body:])); err != nil {
		return code{}, fmt.Errorf("read the body of the code at %#x: %w", iseq, err)
	}
	c := code{first: int32(fixnum(le.Uint64(body[t.FirstLine:]))), count: int(le.Uint32(body[t.EncodedSize:])), size: t.LineSize}
	label, err := s.text(le.Uint64(body[t.Label:]), maxNameBytes)
	if err != nil {
		return code{}, fmt.Errorf("name of the code at %#x: %w", iseq, err)
	}
	path := le.Uint64(body[t.PathObject:])
	if flags, err := s.u64(path); err == nil && flags&typeMask == typeArray { // [path, real path]
		if path, err = s.element(path, 0); err != nil {
			return code{}, fmt.Errorf("file of the code at %#x: %w", iseq, err)
		}
	}
	if c.file, err = s.text(path, maxFileBytes); err != nil {
		return code{}, fmt.Errorf("file of the code at %#x: %w", iseq, err)
	}
	c.name = label
	if method != 0 {
		if class, singleton, _, err := s.method(method); err == nil {
			c.name = qualify(label, class, singleton)
		}
	}
	// Without lines it has its first one.
	lines, count := le.Uint64(body[t.Lines:]), int(le.Uint32(body[t.LineCount:]))
	if n := indexBytes(c.count); count > 0 && count <= maxTableBytes/t.LineSize && n <= maxTableBytes {
		c.lines, c.index = make([]byte, count*t.LineSize), make([]byte, n)
		if s.read(c.lines, lines) != nil || (count > 1 && s.read(c.index, le.Uint64(body[t.LineIndex:])) != nil) {
			c.lines, c.index = nil, nil
		}
	}
	return c, nil
}

// native reads what a native method is called.
func (s *symbols) native(method uint64) (code, error) {
	class, singleton, id, err := s.method(method)
	if err != nil {
		return code{}, err
	}
	name, err := s.name(id)
	if err != nil {
		return code{}, err
	}
	return code{name: qualify(name, class, singleton)}, nil
}

// method reads the method entry at an address: the class that has it, and its name's id.
func (s *symbols) method(at uint64) (class string, singleton bool, id uint64, err error) {
	b := make([]byte, methodBytes)
	if err := s.read(b, at); err != nil {
		return "", false, 0, fmt.Errorf("read the method at %#x: %w", at, err)
	}
	le := binary.LittleEndian
	if !isImemo(le.Uint64(b), imemoMethod) {
		return "", false, 0, fmt.Errorf("the object at %#x is no method", at)
	}
	class, singleton, err = s.class(le.Uint64(b[s.t.DefinedClass:]))
	return class, singleton, le.Uint64(b[s.t.CalledID:]), err
}

// methodBytes is of a method entry what the kernel side reads, too: flags, class, definition, id.
const methodBytes = 32

func isImemo(flags, kind uint64) bool {
	return flags&typeMask == typeImemo && flags>>imemoShift&imemoMask == kind
}

// fixnum is the Integer that a VALUE is.
func fixnum(v uint64) int64 { return int64(v) >> 1 }

// qualify puts a class before a method's name, which may be that of a block in it: "block in each" of List is "block in List#each".
// Names in angle brackets are no methods': "<main>", "<class:List>".
func qualify(label, class string, singleton bool) string {
	before, name := "", label
	if i := strings.LastIndex(label, " in "); i >= 0 {
		before, name = label[:i+4], label[i+4:]
	}
	if class == "" || name == "" || name[0] == '<' {
		return label
	}
	if singleton {
		return before + class + "." + name
	}
	return before + class + "#" + name
}

// line returns the line of an instruction as a frame has it: the one behind that which runs.
func (c *code) line(instruction int) int32 {
	if instruction > c.count || len(c.lines) == 0 {
		return c.first
	}
	entry := 0
	if len(c.lines) > c.size {
		var err error
		if entry, err = entryOf(c.index, max(instruction-1, 0)); err != nil || entry >= len(c.lines)/c.size {
			return c.first
		}
	}
	return int32(binary.LittleEndian.Uint32(c.lines[entry*c.size:]))
}

// cookieOf mirrors what walk__step of ruby.bpf.c makes of what a frame runs.
func (s *symbols) cookieOf(iseq, method uint64) (uint16, error) {
	le := binary.LittleEndian
	mix := func(h, v uint64) uint64 {
		h = (h ^ v) * 0x9fb21c651e98df25
		return h ^ h>>32
	}
	var h uint64
	if iseq != 0 {
		body, err := s.u64(iseq + uint64(s.t.Body))
		if err != nil {
			return 0, err
		}
		encoded, err := s.u64(body + uint64(s.t.Encoded))
		if err != nil {
			return 0, err
		}
		h = mix(body, encoded)
	}
	if method != 0 {
		b := make([]byte, methodBytes)
		if err := s.read(b, method); err != nil {
			return 0, err
		}
		h = mix(mix(h, le.Uint64(b[s.t.CalledID:])), le.Uint64(b[s.t.DefinedClass:]))
	}
	return uint16(h >> 32), nil
}
