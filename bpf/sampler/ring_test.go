package sampler

import (
	"bytes"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf/btf"

	"github.com/stoker-profiler/stoker/bpf/unwind"
)

// What ring.go reads by hand must be what the object writes.
func TestRecordLayout(t *testing.T) {
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		want    int
		goBytes uintptr
	}{
		{"record", recordBytes, unsafe.Sizeof(bpfRecord{})},
		{"frame", frameBytes, unsafe.Sizeof(bpfFrame{})},
		{"bpf_stack_build_id", hintBytes, unsafe.Sizeof(bpfBpfStackBuildId{})},
		{"stack_key", 40, unsafe.Sizeof(bpfStackKey{})},
		{"count", 16, unsafe.Sizeof(bpfCount{})},
		{"stack_record", recordBytes + maxFrames*frameBytes, 0},
		{"hints_record", recordBytes + maxHints*hintBytes, 0},
	} {
		var s *btf.Struct
		if err := spec.Types.TypeByName(c.name, &s); err != nil {
			t.Fatal(err)
		}
		if int(s.Size) != c.want || c.goBytes != 0 && int(c.goBytes) != c.want {
			t.Errorf("struct %s has %d bytes in C, %d in Go; the parser takes %d", c.name, s.Size, c.goBytes, c.want)
		}
	}
}

// Package unwind writes these numbers down for everybody; the C enums are the truth.
func TestConstantsMirrorTheObject(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want int
	}{
		{"KindKernel", unwind.KindKernel, int(bpfFrameKindFRAME_KERNEL)},
		{"KindTruncated", unwind.KindTruncated, int(bpfFrameKindFRAME_TRUNCATED)},
		{"ContextUser", int(unwind.ContextUser), int(bpfSampleContextCONTEXT_USER)},
		{"ContextKernel", int(unwind.ContextKernel), int(bpfSampleContextCONTEXT_KERNEL)},
	} {
		if c.got != c.want {
			t.Errorf("%s is %d, the object says %d", c.name, c.got, c.want)
		}
	}
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	n, err := readNames(spec)
	if err != nil {
		t.Fatal(err)
	}
	if len(n.outcomes) != int(bpfOutcomeOUTCOME_COUNT) || n.outcomes[bpfOutcomeOUTCOME_CHAIN_ENDED] != "chain_ended" {
		t.Errorf("outcomes %v", n.outcomes)
	}
	if len(n.events) != int(bpfEventEVENT_COUNT) || n.events[bpfEventEVENT_EXEC_LOST] != "exec_lost" {
		t.Errorf("events %v", n.events)
	}
}

func stackRecord(frames int) []byte {
	b := make([]byte, recordBytes+frames*frameBytes)
	b[0] = byte(bpfRecordTypeRECORD_STACK)
	b[4], b[5] = byte(frames), byte(frames>>8)
	for i := range frames {
		f := b[recordBytes+i*frameBytes:]
		f[0], f[1], f[2], f[8] = 1, 1, byte(min(i, 1)), byte(i+1)
	}
	return b
}

func TestParseRecord(t *testing.T) {
	r, err := parseRecord(stackRecord(3))
	if err != nil {
		t.Fatal(err)
	}
	if len(r.frames) != 3 || r.frames[0].ReturnAddress || !r.frames[1].ReturnAddress || r.frames[2].A != 3 {
		t.Errorf("frames %+v", r.frames)
	}
	for name, bad := range map[string][]byte{
		"empty":               nil,
		"short header":        make([]byte, recordBytes-1),
		"unknown type":        bytes.Repeat([]byte{9}, recordBytes),
		"more frames than it": stackRecord(3)[:recordBytes+2*frameBytes],
		"lying count":         append([]byte{1, 0, 0, 0, 255, 255, 255, 255}, make([]byte, 100)...),
	} {
		if _, err := parseRecord(bad); err == nil || !strings.Contains(err.Error(), "ring record") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestHintsFollowUserFrames(t *testing.T) {
	frames := []unwind.RawFrame{{Kind: unwind.KindKernel, A: 1}, {Unwinder: 1, A: 10}, {Unwinder: 1, A: 20}, {Kind: unwind.KindTruncated}}
	ids := []buildID{{valid: true, id: [20]byte{7}, value: 0x300a}, {valid: false, value: 20}, {valid: true, value: 5}}
	got, ok := hintsFor(ids, frames)
	if !ok || len(got) != 1 || got[0].Address != 10 || got[0].Offset != 0x300a || got[0].BuildID[0] != 7 {
		t.Errorf("hints %+v, %v", got, ok)
	}
	frames[1].A = 11 // another thread's stack came first
	if got, ok := hintsFor(ids, frames); ok {
		t.Errorf("hints %+v of another stack were taken", got)
	}
}

func TestParseIdleTimes(t *testing.T) {
	got, err := parseIdleTimes(strings.NewReader("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 10 0 5 100 7 0 0 3 0 0\ncpu12 1 1 1 1 1 1 1 1 0 0\nintr 5 5\n"))
	if err != nil || got[0].Seconds() != 1.1 || got[12].Seconds() != 0.03 || len(got) != 2 {
		t.Errorf("idle times %v, %v", got, err)
	}
	if _, err := parseIdleTimes(strings.NewReader("cpux 1 2 3 4 5 6 7 8 9\n")); err == nil {
		t.Error("no error for a CPU without a number")
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add(stackRecord(3))
	f.Add(stackRecord(maxFrames))
	exec := make([]byte, recordBytes)
	exec[0] = byte(bpfRecordTypeRECORD_EXEC)
	f.Add(exec)
	hints := make([]byte, recordBytes+2*hintBytes)
	hints[0], hints[4] = byte(bpfRecordTypeRECORD_HINTS), 2
	f.Add(hints)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err == nil && (len(r.frames) > maxFrames || len(r.hints) > maxHints) {
			t.Fatalf("%d frames, %d hints", len(r.frames), len(r.hints))
		}
		hintsFor(r.hints, r.frames)
	})
}

func FuzzParseIdleTimes(f *testing.F) {
	f.Add("cpu0 10 0 5 100 7 0 0 3 0 0\n")
	f.Fuzz(func(t *testing.T, s string) { _, _ = parseIdleTimes(strings.NewReader(s)) })
}
