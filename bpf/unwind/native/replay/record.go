package replay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/stoker-profiler/stoker/bpf/process"
)

const (
	// stackBytes is how much of the stack above SP a snapshot has, besides what the walk read elsewhere; the red zone below it
	// too.
	stackBytes = 32 << 10
	redZone    = 128
	// pieceBytes is the unit in which memory is recorded.
	pieceBytes = 4096
)

// Record stops the thread tid of process pid for as long as its stack is read (a few milliseconds), and lets it go on. The
// snapshot has what a walk by today's rows needed, and the stack's first 32 KiB. It needs the right to trace the process.
func Record(pid, tid int, program string) (*Snapshot, error) {
	runtime.LockOSThread() // a tracer is a thread
	defer runtime.UnlockOSThread()
	if err := seize(tid); err != nil {
		return nil, fmt.Errorf("stop thread %d: %w (it needs the right to trace it: root, or the same user and kernel.yama.ptrace_scope 0)", tid, err)
	}
	defer unix.PtraceDetach(tid)
	registers, mask, err := readRegisters(tid)
	if err != nil {
		return nil, fmt.Errorf("read registers of thread %d: %w", tid, err)
	}
	s := &Snapshot{Program: program, Machine: machine, CodeMask: mask, Registers: registers}

	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	if s.Maps, err = process.ParseMaps(bytes.NewReader(text)); err != nil {
		return nil, err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, err
	}
	defer mem.Close()

	pages := map[uint64][]byte{}
	page := func(a uint64) []byte {
		b, known := pages[a]
		if !known {
			b = make([]byte, pieceBytes)
			if n, err := mem.ReadAt(b, int64(a)); n < len(b) || err != nil {
				b = nil
			}
			pages[a] = b
		}
		return b
	}
	sp := registers.R[(&Walker{Machine: machine}).place().sp]
	for a := (sp - redZone) &^ (pieceBytes - 1); a < sp+stackBytes; a += pieceBytes {
		if page(a) == nil && a > sp {
			break
		}
	}
	word := func(a uint64) (uint64, bool) {
		var b [8]byte
		for i := range b {
			p := page((a + uint64(i)) &^ (pieceBytes - 1))
			if p == nil {
				return 0, false
			}
			b[i] = p[(a+uint64(i))%pieceBytes]
		}
		return binary.LittleEndian.Uint64(b[:]), true
	}
	reader := process.Reader{}
	var opened []*os.File
	defer func() {
		for _, f := range opened {
			f.Close()
		}
	}()
	excerpts := map[string]*Excerpt{}
	files := NewFiles(process.NewMaps(slices.Clone(s.Maps)), func(m *process.Mapping) (*File, error) {
		e := &Excerpt{Path: m.Path}
		excerpts[m.Path] = e
		if m.Path == "[vdso]" {
			b := make([]byte, m.End-m.Start)
			if _, err := mem.ReadAt(b, int64(m.Start)); err != nil {
				return nil, fmt.Errorf("read the vDSO: %w", err)
			}
			e.Size, e.Pieces = int64(len(b)), []Piece{{0, b}}
			return OpenFile(e, e.Size)
		}
		file, err := reader.Open(uint32(pid), m)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", m.Path, err)
		}
		opened = append(opened, file)
		st, err := file.Stat()
		if err != nil {
			return nil, err
		}
		e.Size = st.Size()
		return OpenFile(&recorder{file, e}, e.Size)
	})
	w := Walker{Machine: machine, Memory: word, Code: files.Rule, CodeMask: mask}
	w.Walk(registers)
	for _, e := range excerpts {
		e.tidy()
		s.Files = append(s.Files, *e)
	}
	slices.SortFunc(s.Files, func(a, b Excerpt) int { return bytes.Compare([]byte(a.Path), []byte(b.Path)) })
	all := Excerpt{}
	for a, b := range pages {
		if b != nil {
			all.Pieces = append(all.Pieces, Piece{a, b})
		}
	}
	all.tidy()
	s.Memory = all.Pieces
	// A file that could not be opened is as it was for the walk: no code. But a snapshot of nothing is no snapshot.
	if len(s.Memory) == 0 {
		return nil, errors.Join(errors.New("the stack could not be read"), files.Err)
	}
	return s, nil
}

// seize attaches to a thread without a signal, and stops it.
func seize(tid int) error {
	if err := unix.PtraceSeize(tid); err != nil {
		return err
	}
	if err := unix.PtraceInterrupt(tid); err != nil {
		return err
	}
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(tid, &ws, unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		if err == nil && !ws.Stopped() {
			err = fmt.Errorf("it ended: wait status 0x%x", uint32(ws))
		}
		return err
	}
}
