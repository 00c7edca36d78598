package sampler

import (
	"encoding/binary"
	"fmt"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/unwind"
)

// Sizes of what the ring carries; a test compares them with the generated types.
const (
	recordBytes = 48 // struct record
	frameBytes  = 24 // struct frame
	hintBytes   = 32 // struct bpf_stack_build_id
	maxFrames   = 640
	maxHints    = 32
)

// record is one parsed record of the ring. Which of frames and hints is filled depends on typ.
type record struct {
	typ    bpfRecordType
	key    unwind.Key
	frames []unwind.RawFrame
	hints  []buildID
}

// buildID is one entry of bpf_get_stack(BPF_F_USER_BUILD_ID): with valid, id and value = file offset; without, value = address.
type buildID struct {
	valid bool
	id    [20]byte
	value uint64
}

// parseRecord reads one record. It trusts no length in it.
func parseRecord(b []byte) (record, error) {
	if len(b) < recordBytes {
		return record{}, fmt.Errorf("ring record of %d bytes: a record has at least %d", len(b), recordBytes)
	}
	n := int(binary.LittleEndian.Uint32(b[4:]))
	r := record{typ: bpfRecordType(binary.LittleEndian.Uint32(b)), key: parseKey(b[8:])}
	body := b[recordBytes:]
	switch r.typ {
	case bpfRecordTypeRECORD_EXEC, bpfRecordTypeRECORD_EXIT, bpfRecordTypeRECORD_MAPS:
		return r, nil
	case bpfRecordTypeRECORD_STACK:
		if n > maxFrames || len(body) < n*frameBytes {
			return record{}, fmt.Errorf("ring record of a stack: %d frames in %d bytes", n, len(body))
		}
		r.frames = make([]unwind.RawFrame, n)
		for i := range r.frames {
			f := body[i*frameBytes:]
			r.frames[i] = unwind.RawFrame{
				Unwinder: f[0], Kind: f[1], ReturnAddress: f[2] != 0,
				A: binary.LittleEndian.Uint64(f[8:]), B: binary.LittleEndian.Uint64(f[16:]),
			}
		}
		return r, nil
	case bpfRecordTypeRECORD_HINTS:
		if n > maxHints || len(body) < n*hintBytes {
			return record{}, fmt.Errorf("ring record of build ids: %d of them in %d bytes", n, len(body))
		}
		r.hints = make([]buildID, n)
		for i := range r.hints {
			h := body[i*hintBytes:]
			r.hints[i].valid = binary.LittleEndian.Uint32(h) == 1 // BPF_STACK_BUILD_ID_VALID
			copy(r.hints[i].id[:], h[4:24])
			r.hints[i].value = binary.LittleEndian.Uint64(h[24:])
		}
		return r, nil
	}
	return record{}, fmt.Errorf("ring record of unknown type %d", r.typ)
}

// parseKey reads a struct stack_key; b has at least 40 bytes.
func parseKey(b []byte) unwind.Key {
	return keyOf(bpfStackKey{
		Hash:          binary.LittleEndian.Uint64(b),
		StartBoottime: binary.LittleEndian.Uint64(b[8:]),
		ExecId:        binary.LittleEndian.Uint64(b[16:]),
		Pid:           binary.LittleEndian.Uint32(b[24:]),
		Epoch:         binary.LittleEndian.Uint32(b[28:]),
		Scope:         binary.LittleEndian.Uint32(b[32:]),
		Origin:        b[36],
		Context:       b[37],
	})
}

func keyOf(k bpfStackKey) unwind.Key {
	return unwind.Key{
		Hash:    k.Hash,
		Process: process.ID{PID: k.Pid, StartBoottime: k.StartBoottime, ExecID: k.ExecId, Epoch: k.Epoch},
		Scope:   k.Scope,
		Origin:  unwind.Origin(k.Origin),
		Context: unwind.Context(k.Context),
	}
}

func rawKey(k unwind.Key) bpfStackKey {
	return bpfStackKey{
		Hash: k.Hash, StartBoottime: k.Process.StartBoottime, ExecId: k.Process.ExecID, Pid: k.Process.PID,
		Epoch: k.Process.Epoch, Scope: k.Scope, Origin: uint8(k.Origin), Context: uint8(k.Context),
	}
}

// hintsFor joins build ids with the user frames of the stack that they came with. Those are found by frame pointer; the stack's own
// may be found better, so only as far as both agree. It reports false if not even the first does: the ids are of another stack,
// for a thread on another CPU can send the first stack between the two.
func hintsFor(ids []buildID, frames []unwind.RawFrame) ([]unwind.Hint, bool) {
	const inPage = 0xfff // mappings begin at pages, so this part of an address is that of the file offset
	// For an address that lies in no mapping the kernel takes the next one (find_vma): then the offset is below zero.
	const maxOffset = 1 << 48
	hints := make([]unwind.Hint, 0, len(ids))
	i := 0
	for _, f := range frames {
		if f.Unwinder == unwind.KernelSlot {
			continue
		}
		if i == len(ids) {
			break
		}
		if ids[i].valid {
			if ids[i].value > maxOffset {
				return hints, i > 0
			}
			if (f.A^ids[i].value)&inPage != 0 {
				return hints, i > 0
			}
			hints = append(hints, unwind.Hint{Address: f.A, BuildID: ids[i].id, Offset: ids[i].value})
		} else if f.A != ids[i].value {
			return hints, i > 0
		}
		i++
	}
	return hints, true
}
