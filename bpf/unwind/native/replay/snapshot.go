package replay

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/stoker-profiler/stoker/bpf/process"
)

// maxSnapshot is how many bytes a snapshot may have, uncompressed.
const maxSnapshot = 64 << 20

// Piece is bytes at an address or an offset.
type Piece struct {
	At    uint64
	Bytes []byte
}

// Excerpt is what was read of one file.
type Excerpt struct {
	Path   string
	Size   int64
	Pieces []Piece // sorted, not overlapping
}

// Snapshot is one thread at one moment.
type Snapshot struct {
	// Program says what ran and how the snapshot was made, for people.
	Program   string
	Machine   elf.Machine
	CodeMask  uint64 // see [Walker]
	Registers Registers
	Maps      []process.Mapping
	Memory    []Piece // of the stack; sorted, not overlapping
	Files     []Excerpt
}

// Read reads a snapshot that Write wrote.
func Read(r io.Reader) (*Snapshot, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("read snapshot: %w", err)
	}
	var s Snapshot
	if err := json.NewDecoder(io.LimitReader(z, maxSnapshot)).Decode(&s); err != nil {
		return nil, fmt.Errorf("read snapshot: %w", err)
	}
	return &s, nil
}

// Write writes s: JSON, compressed.
func (s *Snapshot) Write(w io.Writer) error {
	z := gzip.NewWriter(w)
	if err := json.NewEncoder(z).Encode(s); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	return nil
}

// Word is a [Memory].
func (s *Snapshot) Word(address uint64) (uint64, bool) {
	b, ok := find(s.Memory, address, 8)
	if !ok {
		return 0, false
	}
	return binary.LittleEndian.Uint64(b), true
}

// find returns n bytes at an address, from one piece.
func find(pieces []Piece, at, n uint64) ([]byte, bool) {
	i, found := slices.BinarySearchFunc(pieces, at, func(p Piece, at uint64) int { return cmp.Compare(p.At, at) })
	if !found {
		i--
	}
	if i < 0 || at-pieces[i].At > uint64(len(pieces[i].Bytes)) || n > uint64(len(pieces[i].Bytes))-(at-pieces[i].At) {
		return nil, false
	}
	return pieces[i].Bytes[at-pieces[i].At:][:n], true
}

// errNotRecorded is what reading more of a file than was recorded gives.
var errNotRecorded = errors.New("not a part of the snapshot")

// ReadAt is an io.ReaderAt over what was recorded.
func (e *Excerpt) ReadAt(p []byte, off int64) (int, error) {
	if off >= e.Size {
		return 0, io.EOF
	}
	n := min(int64(len(p)), e.Size-off)
	b, ok := find(e.Pieces, uint64(off), uint64(n))
	if !ok {
		return 0, fmt.Errorf("read %d bytes at offset 0x%x of %s: %w", n, off, e.Path, errNotRecorded)
	}
	if copy(p, b); n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// recorder is an io.ReaderAt that keeps what was read.
type recorder struct {
	r   io.ReaderAt
	out *Excerpt
}

func (r *recorder) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.r.ReadAt(p, off)
	if n > 0 {
		r.out.Pieces = append(r.out.Pieces, Piece{uint64(off), bytes.Clone(p[:n])})
	}
	return n, err
}

// tidy sorts the pieces and joins those that overlap or touch.
func (e *Excerpt) tidy() {
	slices.SortFunc(e.Pieces, func(a, b Piece) int { return cmp.Compare(a.At, b.At) })
	var out []Piece
	for _, p := range e.Pieces {
		if n := len(out); n > 0 && p.At <= out[n-1].At+uint64(len(out[n-1].Bytes)) {
			last := &out[n-1]
			if have := last.At + uint64(len(last.Bytes)) - p.At; have < uint64(len(p.Bytes)) {
				last.Bytes = append(last.Bytes, p.Bytes[have:]...)
			}
			continue
		}
		out = append(out, p)
	}
	e.Pieces = out
}

// Walk walks the snapshot's stack.
func (s *Snapshot) Walk() ([]Registers, End, error) {
	files := NewFiles(process.NewMaps(slices.Clone(s.Maps)), func(m *process.Mapping) (*File, error) {
		for i := range s.Files {
			if e := &s.Files[i]; e.Path == m.Path {
				return OpenFile(e, e.Size)
			}
		}
		return nil, fmt.Errorf("open %s: %w", m.Path, errNotRecorded)
	})
	w := Walker{Machine: s.Machine, Memory: s.Word, Code: files.Rule, CodeMask: s.CodeMask}
	frames, end := w.Walk(s.Registers)
	return frames, end, files.Err
}
