package ruby

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/stoker-profiler/stoker/bpf/unwind/ruby/offsets"
)

// What is read of a process at most, whatever it says.
const (
	maxNameBytes   = 1 << 10 // of a name; longer ones are cut
	maxFileBytes   = 4 << 10 // PATH_MAX
	maxTableBytes  = 1 << 20 // of a table of lines or its index: without it the function has its first line only
	maxVariables   = 256     // of a class, among which its name is looked for
	maxSymbolLast  = 1 << 28 // serial of a name
	maxClassDepth  = 3       // singleton class of a class of an included module
	idEntryUnit    = 512     // symbol.c: names in an array of ids, of two words each
	idEntryWords   = 2
	idScopeShift   = 4    // template/id.h.tmpl: ID_SCOPE_SHIFT
	symbolPlus     = 0x2b // the id of + is the character
	notDeletedHash = ^uint64(0)
)

// Types and flags of objects: include/ruby/internal/value_type.h, fl_type.h, internal/imemo.h; those of strings and arrays as they are
// up to 3.1.
const (
	typeMask        = 0x1f
	typeClass       = 2
	typeModule      = 3
	typeString      = 5
	typeArray       = 7
	typeIncluded    = 0x1c // T_ICLASS: a module as an ancestor
	typeImemo       = 0x1a
	imemoShift      = 12
	imemoMask       = 15
	imemoMethod     = 6
	imemoIseq       = 7
	flagSingleton   = 1 << 12
	flagNoEmbed     = 1 << 13 // of a string
	stringLenShift  = 14
	stringLenMask   = 31
	flagArrayEmbed  = 1 << 13
	arrayLenShift   = 15
	arrayLenMask    = 3
	embeddedStrings = 24 // bytes in an object that is a string, with the zero behind them
)

// memory reads objects of a process.
type memory struct {
	io.ReaderAt
	t *offsets.Table
}

// read fills b or fails. Addresses above those of user space are none.
func (m memory) read(b []byte, at uint64) error {
	if at == 0 || at >= 1<<56 {
		return fmt.Errorf("%#x is no address", at)
	}
	n, err := m.ReadAt(b, int64(at))
	if n == len(b) {
		return nil
	}
	if err == nil {
		err = errors.New("short read")
	}
	return fmt.Errorf("read %d bytes at %#x: %w", len(b), at, err)
}

func (m memory) u64(at uint64) (uint64, error) {
	var b [8]byte
	err := m.read(b[:], at)
	return binary.LittleEndian.Uint64(b[:]), err
}

// object reads the first bytes of an object and checks its type.
func (m memory) object(b []byte, at uint64, typ uint64) (flags uint64, err error) {
	if at&7 != 0 {
		return 0, fmt.Errorf("%#x is no object", at)
	}
	if err := m.read(b, at); err != nil {
		return 0, err
	}
	flags = binary.LittleEndian.Uint64(b)
	if flags&typeMask != typ {
		return 0, fmt.Errorf("the object at %#x has type %d, not %d", at, flags&typeMask, typ)
	}
	return flags, nil
}

// text reads a String. What is longer than limit is cut.
func (m memory) text(at uint64, limit int) (string, error) {
	var b [40]byte
	flags, err := m.object(b[:], at, typeString)
	if err != nil {
		return "", err
	}
	if flags&flagNoEmbed == 0 {
		n := min(int(flags>>stringLenShift&stringLenMask), embeddedStrings-1, limit)
		return string(b[m.t.StringEmbedded:][:n]), nil
	}
	n := binary.LittleEndian.Uint64(b[m.t.StringLength:])
	text := make([]byte, min(n, uint64(limit)))
	if len(text) == 0 {
		return "", nil
	}
	if err := m.read(text, binary.LittleEndian.Uint64(b[m.t.StringPointer:])); err != nil {
		return "", err
	}
	return strings.ToValidUTF8(string(text), "\uFFFD"), nil
}

// element reads one element of an Array; 0: it is not that long.
func (m memory) element(at, i uint64) (uint64, error) {
	var b [40]byte
	flags, err := m.object(b[:], at, typeArray)
	if err != nil {
		return 0, err
	}
	if flags&flagArrayEmbed != 0 {
		if i >= flags>>arrayLenShift&arrayLenMask {
			return 0, nil
		}
		return binary.LittleEndian.Uint64(b[m.t.ArrayEmbedded+int(i)*8:]), nil
	}
	if i >= binary.LittleEndian.Uint64(b[m.t.ArrayLength:]) || i > maxSymbolLast {
		return 0, nil
	}
	return m.u64(binary.LittleEndian.Uint64(b[m.t.ArrayPointer:]) + i*8)
}

// symbols are the names of a process's ids.
type symbols struct {
	memory
	ids uint64 // the Array of Arrays

	path, temporaryPath, attached uint64 // ids of a class's variables that say what it is called; 0: not seen yet
}

// findSymbols looks for the table of symbols, rb_symbols_t, among the bytes of .data at an address, by what is in it.
func findSymbols(m memory, at uint64, size int) (*symbols, error) {
	data := make([]byte, size)
	if err := m.read(data, at); err != nil {
		return nil, fmt.Errorf("look for the table of symbols: %w", err)
	}
	le := binary.LittleEndian
	for i := 0; i+m.t.SymbolSize <= len(data); i += 8 {
		last, ids := le.Uint32(data[i+m.t.SymbolLast:]), le.Uint64(data[i+m.t.SymbolIDs:])
		if int(last) <= m.t.LastOperatorID || last >= maxSymbolLast || ids == 0 || ids&7 != 0 || le.Uint64(data[i+m.t.SymbolTable:]) == 0 {
			continue
		}
		s := &symbols{memory: m, ids: ids}
		if name, err := s.name(symbolPlus); err == nil && name == "+" {
			return s, nil
		}
	}
	return nil, errors.New("the table of symbols is not where it should be")
}

// name returns the name of an id: get_id_serial_entry of symbol.c.
func (s *symbols) name(id uint64) (string, error) {
	serial := id
	if id > uint64(s.t.LastOperatorID) {
		serial = id >> idScopeShift
	}
	names, err := s.element(s.ids, serial/idEntryUnit)
	if err != nil {
		return "", fmt.Errorf("name of id %#x: %w", id, err)
	}
	name, err := s.element(names, serial%idEntryUnit*idEntryWords)
	if err != nil {
		return "", fmt.Errorf("name of id %#x: %w", id, err)
	}
	return s.text(name, maxNameBytes)
}

// class returns the name of a class or module, and whether it is the singleton class of that: "" for one without a name.
func (s *symbols) class(at uint64) (name string, singleton bool, err error) {
	for range maxClassDepth {
		b := make([]byte, s.t.ClassExt+8)
		if at&7 != 0 {
			return "", false, fmt.Errorf("%#x is no class", at)
		}
		if err := s.read(b, at); err != nil {
			return "", false, fmt.Errorf("read the class at %#x: %w", at, err)
		}
		le := binary.LittleEndian
		flags := le.Uint64(b)
		switch flags & typeMask {
		case typeIncluded: // its class is the module
			at = le.Uint64(b[8:])
			continue
		case typeClass, typeModule:
		default:
			return "", false, fmt.Errorf("the object at %#x has type %d, which is no class", at, flags&typeMask)
		}
		path, attached, err := s.variables(le.Uint64(b[s.t.ClassExt:]))
		if err != nil {
			return "", false, fmt.Errorf("the class at %#x: %w", at, err)
		}
		if flags&typeMask == typeClass && flags&flagSingleton != 0 {
			if singleton || attached == 0 || attached&7 != 0 {
				return "", true, nil
			}
			if of, err := s.u64(attached); err != nil || (of&typeMask != typeClass && of&typeMask != typeModule) {
				return "", true, err // of an object that is no class
			}
			at, singleton = attached, true
			continue
		}
		if path == 0 {
			return "", singleton, nil
		}
		name, err = s.text(path, maxNameBytes)
		return name, singleton, err
	}
	return "", singleton, nil
}

// variables returns what of a class's own variables says what it is called: classname of variable.c, and __attached__ of a singleton
// class. Which ids these are is found by their names, once.
func (s *symbols) variables(ext uint64) (path, attached uint64, err error) {
	table, err := s.u64(ext + uint64(s.t.ClassVariables))
	if err != nil || table == 0 {
		return 0, 0, err
	}
	head := make([]byte, s.t.TableEntries+8)
	if err := s.read(head, table); err != nil {
		return 0, 0, err
	}
	le := binary.LittleEndian
	start, bound := le.Uint64(head[s.t.TableEntriesStart:]), le.Uint64(head[s.t.TableEntriesBound:])
	if start >= bound {
		return 0, 0, nil
	}
	const entryBytes = 24 // struct st_table_entry: hash, key, record
	n := min(bound-start, maxVariables)
	entries := make([]byte, n*entryBytes)
	if start > 1<<32 {
		return 0, 0, fmt.Errorf("its table begins at entry %d", start)
	}
	if err := s.read(entries, le.Uint64(head[s.t.TableEntries:])+start*entryBytes); err != nil {
		return 0, 0, err
	}
	var temporary uint64
	for ; len(entries) > 0; entries = entries[entryBytes:] {
		hash, id, value := le.Uint64(entries), le.Uint64(entries[8:]), le.Uint64(entries[16:])
		if hash == notDeletedHash {
			continue
		}
		if s.path == 0 || s.temporaryPath == 0 || s.attached == 0 {
			if name, err := s.name(id); err == nil {
				switch name {
				case "__classpath__":
					s.path = id
				case "__tmp_classpath__":
					s.temporaryPath = id
				case "__attached__":
					s.attached = id
				}
			}
		}
		switch {
		case id == 0:
		case id == s.path:
			path = value
		case id == s.temporaryPath:
			temporary = value
		case id == s.attached:
			attached = value
		}
	}
	if path == 0 {
		path = temporary
	}
	return path, attached, nil
}
