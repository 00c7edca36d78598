package python

import (
	"encoding/binary"
	"testing"

	"github.com/stoker-profiler/stoker/bpf/unwind"
	"github.com/stoker-profiler/stoker/bpf/unwind/python/offsets"
)

// What is written down on both sides is the same.
func TestTheKernelSideAgrees(t *testing.T) {
	for _, c := range []struct {
		name string
		c    bpfLanguageKind
		g    uint8
	}{
		{"FRAME", bpfLanguageKindLANGUAGE_FRAME, unwind.LanguageFrame}, {"ENTRY", bpfLanguageKindLANGUAGE_ENTRY, unwind.LanguageEntry},
		{"EMPTY", bpfLanguageKindLANGUAGE_EMPTY, unwind.LanguageEmpty}, {"LOST", bpfLanguageKindLANGUAGE_LOST, unwind.LanguageLost},
	} {
		if uint8(c.c) != c.g {
			t.Errorf("LANGUAGE_%s is %d there and %d here", c.name, c.c, c.g)
		}
	}
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := int(spec.Maps["pythons"].ValueSize), binary.Size(bpfInterpreter{}); got != want {
		t.Errorf("an interpreter has %d bytes there and %d here", got, want)
	}
}

// All fields that the kernel side reads lie in what it copies of a frame and of a code object.
func TestFieldsAreWithinWhatIsCopied(t *testing.T) {
	for minor, table := range offsets.Tables {
		k := (&image{table: &table}).attach(0)
		for name, at := range map[string]uint16{"previous": k.Previous, "code": k.Code, "instruction": k.Instruction} {
			if at%8 != 0 || int(at)+8 > int(k.FrameBytes) || k.FrameBytes >= 128 {
				t.Errorf("3.%d: %s of a frame is at %d of %d bytes", minor, name, at, k.FrameBytes)
			}
		}
		if int(k.Mark) >= int(k.FrameBytes) {
			t.Errorf("3.%d: the mark of a frame is at %d of %d bytes", minor, k.Mark, k.FrameBytes)
		}
		for name, at := range map[string]uint16{"name": k.Name, "lines": k.Lines, "first line": k.FirstLine &^ 7, "flags": k.Flags &^ 7} {
			if at%8 != 0 || int(at)+8 > codeBytes {
				t.Errorf("3.%d: %s of a code object is at %d of %d bytes", minor, name, at, codeBytes)
			}
		}
	}
}

// Builds of 3.13 with other structures are not taken for those of the table.
func TestDescribes(t *testing.T) {
	table := offsets.Tables[13]
	// What _PyRuntime of CPython 3.13.0 begins with, as far as it is compared; 0 stands for most of the rest.
	words := []uint64{0x30d00f0, 0,
		282808, 640, 632, // _runtime_state
		267272, 7272, 7264, 7344, 0, 0, 0, 0, 0, 0, 0, 0, 0, // _interpreter_state
		0, 0, 8, 16, 72, 152, 160, 0, 0, // _thread_state
		80, 8, 0, 56, 72, 70, // _interpreter_frame
		208, 112, 120, 128, 136, 68, 52, 96, 104, 200, // _code_object
	}
	text := func() []byte {
		b := []byte("xdebugpy")
		for _, w := range words {
			b = binary.LittleEndian.AppendUint64(b, w)
		}
		return b
	}
	if err := describes(text(), &table); err != nil {
		t.Error(err)
	}
	for i := range words {
		was := words[i]
		words[i] = was ^ 1<<17
		ignored := map[int]bool{2: true, 3: true, 5: true, 6: true, 18: true, 19: true, 21: true, 25: true, 26: true, 27: true, 31: true, 33: true, 35: true, 39: true, 40: true, 41: true}
		if i >= 9 && i < 18 {
			ignored[i] = true
		}
		if err := describes(text(), &table); (err == nil) != ignored[i] {
			t.Errorf("word %d changed: %v", i, err)
		}
		words[i] = was
	}
	if err := describes(text()[:describedBytes-1], &table); err == nil {
		t.Error("cut short, and taken")
	}
}
