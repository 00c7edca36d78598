package symbol

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// Limits of one JIT dump. It holds the machine code of each function beside its name, which is not read.
const (
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
	jitClose         = 3
)

// ReadJITDump reads the JIT dump that a runtime writes for perf (node --perf-prof, JVM agents): like a perf map a list of the code
// that it made, but binary and with code that moves. See tools/perf/Documentation/jitdump-specification.txt in the kernel's source.
// Functions and their places are read, not their code and their lines. What stands behind a record that makes no sense is left out,
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
	start uint64
	size  uint64
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
			codes = append(codes, code{start: f.start, end: f.start + f.size, name: f.name, order: len(codes)})
		}
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
		at += total
		switch {
		case kind == jitLoad && len(b) > jitLoadBytes:
			name := cstringAt(b, jitLoadBytes, maxJITName)
			if name == "" {
				m.Bad++
				continue
			}
			f := jitFunction{name: names.size(), start: le.Uint64(b[16:]), size: le.Uint64(b[24:])}
			if len(codes) < maxPerfMapCodes {
				if _, err := names.Write(append([]byte(name), 0)); err != nil {
					return nil, err
				}
				known[le.Uint64(b[32:])] = f
			}
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
	return m, nil
}
