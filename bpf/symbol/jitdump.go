package symbol

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of one JIT dump. It holds the machine code of each function beside its name, which is not read.
const (
	maxJITLines      = 8 << 20   // bytes of all lines, as we keep them
	maxJITDebug      = 4 << 20   // bytes of the lines of one function
	jitDebugBytes    = 16        // of a record of lines, before the first line
	jitEntryBytes    = 16        // of a line, before the file's name
	jitELFHeader     = 0x40      // see shift in PerfMap
	maxJITDump       = 4 << 30   // bytes of the file
	maxJITDumpRead   = 128 << 20 // bytes read of it
	maxJITName       = 512       // bytes of a name; longer ones are cut
	maxJITRecord     = 64 << 20  // bytes of one record
	jitHeaderBytes   = 40
	jitRecordBytes   = 16
	jitLoadBytes     = 40 // of a load record, before the name
	jitMoveBytes     = 48
	jitMagic         = 0x4a695444 // "JiTD" as the machine that writes it stores it
	jitVersion       = 1
	jitLoad, jitMove = 0, 1 // kinds of records; others are skipped
	jitDebug         = 2
	jitClose         = 3
)

// ReadJITDump reads the JIT dump that a runtime writes for perf (node --perf-prof, JVM agents): like a perf map a list of the code
// that it made, but binary and with code that moves. See tools/perf/Documentation/jitdump-specification.txt in the kernel's source.
// Functions, their places and their lines are read, not their code. What stands behind a record that makes no sense is left out,
// for a file that is being written ends in the middle of one; Bad counts it.
func ReadJITDump(f *os.File) (*PerfMap, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, ErrNotRegular
	}
	m, err := readJITDump(f, st.Size())
	if err != nil {
		return nil, fmt.Errorf("read JIT dump %s: %w", f.Name(), err)
	}
	return m, nil
}

// jitFunction is a function by the number that the runtime gave it.
type jitFunction struct {
	name  uint32
	lines uint32 // 0: none
	start uint64
	size  uint64
}

// jitLine is where the lines of a function begin to be those of a line of a file.
type jitLine struct {
	offset uint32 // from the function's start
	line   uint32
	file   string
}

// jitLines reads the lines of a function (the record JIT_CODE_DEBUG_INFO, without its header). sane is false if some of them make no
// sense, and those from there on are left out. name is the function's.
func jitLines(record []byte, start, size uint64, name string) (lines []jitLine, sane bool) {
	le := binary.LittleEndian
	b := record[jitDebugBytes:]
	file := ""
	for range le.Uint64(record[8:]) {
		if len(b) < jitEntryBytes+1 {
			return lines, false
		}
		at, line := le.Uint64(b), int32(le.Uint32(b[8:]))
		b = b[jitEntryBytes:]
		end := bytes.IndexByte(b, 0)
		if at < start || at-start > size+jitELFHeader || line < 0 || end < 0 {
			return lines, false
		}
		switch own := b[:end]; {
		case string(own) == "\xff": // the same as before
		case len(own) > 0 && len(own) <= maxJITName && utf8.Valid(own) && bytes.IndexFunc(own, unicode.IsControl) < 0:
			if string(own) != file {
				file = string(own)
			}
		default:
			if file, end = forgottenName(b, name); file == "" {
				return lines, false
			}
		}
		b = b[end+1:]
		lines = append(lines, jitLine{uint32(at - start), uint32(line), file})
	}
	slices.SortStableFunc(lines, func(a, b jitLine) int { return cmp.Compare(a.offset, b.offset) })
	return lines, true
}

// forgottenName recovers the name of a script that V8 has freed before it wrote it (Node.js 20): the C library has written its own
// pointers over the first 16 bytes. If the rest is that of the script which the function's name ends with ("JS:*f /app/a.js:2:15"), it
// is that one. "" if not.
func forgottenName(b []byte, function string) (script string, end int) {
	const pointers = 16
	_, script, _ = strings.Cut(function, " ")
	for range 2 { // line and column
		script = script[:max(0, strings.LastIndexByte(script, ':'))]
	}
	n := len(script)
	if n <= pointers || n >= len(b) || b[n] != 0 || string(b[pointers:n]) != script[pointers:] {
		return "", 0
	}
	return script, n
}

func readJITDump(r io.ReaderAt, size int64) (*PerfMap, error) {
	le := binary.LittleEndian
	head := make([]byte, jitHeaderBytes)
	if _, err := r.ReadAt(head, 0); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, &FormatError{0, "JIT dump shorter than its header"}
		}
		return nil, err
	}
	at := int64(le.Uint32(head[8:]))
	switch {
	case le.Uint32(head) != jitMagic:
		return nil, &FormatError{0, "file without the magic number of a JIT dump, or of another byte order"}
	case le.Uint32(head[4:]) != jitVersion:
		return nil, &FormatError{4, fmt.Sprintf("JIT dump of version %d", le.Uint32(head[4:]))}
	case at < jitHeaderBytes:
		return nil, &FormatError{8, "JIT dump whose header is too short"}
	}
	m := &PerfMap{}
	var (
		codes []code
		names packer
		known = map[uint64]jitFunction{} // by number: what may move
		files = map[string]uint32{}
		debug []byte // the record of lines before this one
		room  = maxJITLines
		least = ^uint32(0) // offset of a line in its function
		buf   = make([]byte, jitRecordBytes+jitLoadBytes+maxJITName)
		left  = int64(maxJITDumpRead)
	)
	add := func(f jitFunction) {
		switch {
		case f.size == 0 || f.size > 1<<31 || f.start+f.size < f.start:
			m.Bad++
		case len(codes) == maxPerfMapCodes:
			m.Dropped++
		default:
			codes = append(codes, code{start: f.start, end: f.start + f.size, name: f.name, order: len(codes), lines: f.lines})
		}
	}
	// keep writes the lines of a function and returns where, plus 1.
	keep := func(lines []jitLine) (uint32, error) {
		var packed []byte
		last := jitLine{}
		for _, l := range lines {
			file, ok := files[l.file]
			if !ok {
				file = names.size()
				if room -= len(l.file) + 1; room < 0 {
					m.Dropped++
					return 0, nil
				}
				if _, err := names.Write(append([]byte(l.file), 0)); err != nil {
					return 0, err
				}
				files[l.file] = file
			}
			packed = binary.AppendUvarint(packed, uint64(l.offset-last.offset))
			packed = binary.AppendVarint(packed, int64(l.line)-int64(last.line))
			packed = binary.AppendUvarint(packed, uint64(file))
			last = l
		}
		packed = append(binary.AppendUvarint(nil, uint64(len(packed))), packed...)
		if room -= len(packed); room < 0 {
			m.Dropped++
			return 0, nil
		}
		least = min(least, lines[0].offset)
		at := names.size() + 1
		_, err := names.Write(packed)
		return at, err
	}
	for size = min(size, maxJITDump); at+jitRecordBytes <= size; {
		n, err := r.ReadAt(buf[:min(int64(len(buf)), size-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		b := buf[:n]
		if left -= int64(n); left < 0 || len(b) < jitRecordBytes {
			m.Dropped++
			break
		}
		kind, total := le.Uint32(b), int64(le.Uint32(b[4:]))
		if total < jitRecordBytes || total > maxJITRecord || total > size-at {
			m.Bad++
			break
		}
		b = b[jitRecordBytes:min(int64(len(b)), total)]
		from := at + jitRecordBytes
		at += total
		if kind == jitDebug {
			if debug = debug[:0]; total-jitRecordBytes < jitDebugBytes || total > maxJITDebug || total > left {
				m.Dropped++
				continue
			}
			left -= total
			debug = slices.Grow(debug, int(total))[:total-jitRecordBytes]
			if _, err := r.ReadAt(debug, from); err != nil { // cut while it was read
				m.Bad++
				break
			}
			continue
		}
		switch {
		case kind == jitLoad && len(b) > jitLoadBytes:
			name := cstringAt(b, jitLoadBytes, maxJITName)
			if name == "" {
				m.Bad++
				continue
			}
			f := jitFunction{name: names.size(), start: le.Uint64(b[16:]), size: le.Uint64(b[24:])}
			if len(codes) < maxPerfMapCodes {
				if len(debug) > 0 && le.Uint64(debug) == f.start && f.size <= 1<<31 { // what stands before a function is about it
					lines, sane := jitLines(debug, f.start, f.size, name)
					if !sane {
						m.Bad++
					}
					if len(lines) > 0 {
						at, err := keep(lines)
						if err != nil {
							return nil, err
						}
						f.lines, f.name = at, names.size()
					}
				}
				if _, err := names.Write(append([]byte(name), 0)); err != nil {
					return nil, err
				}
				known[le.Uint64(b[32:])] = f
			}
			debug = debug[:0]
			add(f)
		case kind == jitMove && len(b) >= jitMoveBytes:
			f, ok := known[le.Uint64(b[40:])]
			if !ok || f.start != le.Uint64(b[16:]) {
				m.Bad++
				continue
			}
			f.start, f.size = le.Uint64(b[24:]), le.Uint64(b[32:])
			known[le.Uint64(b[40:])] = f
			add(f)
		case kind == jitLoad || kind == jitMove:
			m.Bad++
		}
		if kind == jitClose {
			break
		}
	}
	m.build(codes)
	m.text = names.done()
	if least != ^uint32(0) && least >= jitELFHeader {
		m.shift = jitELFHeader
	}
	return m, nil
}
