package python

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/symbol"
	"github.com/stoker-profiler/stoker/bpf/unwind/python/offsets"
)

// image is what an executable file has of CPython. Immutable.
type image struct {
	minor    int // of 3.minor
	release  string
	table    *offsets.Table // nil: a version whose offsets nobody knows
	code     []symbol.Range // of the file: what is loaded as code
	loops    []symbol.Range
	runtime  symbol.Address
	codeType symbol.Address // 0: not known
}

// Symbols that tell the interpreter from everything else, and its versions from one another: each appeared in the public interface of
// the version behind it.
const (
	symbolLoop     = "_PyEval_EvalFrameDefault"
	symbolRuntime  = "_PyRuntime"
	symbolCodeType = "PyCode_Type"
	symbolVersion  = "Py_Version" // from 3.11: PY_VERSION_HEX
)

var symbolsSince = []struct {
	name  string
	minor int
}{{"PyModule_AddObjectRef", 10}, {"PyFrame_GetCode", 9}, {"PyCode_NewWithPosOnlyArgs", 8}}

// readImage looks for CPython in the ELF file of size bytes at r; nil: it is not in there. The file is a stranger's.
func readImage(r io.ReaderAt, size int64) (*image, error) {
	layout, err := symbol.ReadLayout(r, size)
	if err != nil {
		return nil, err
	}
	in := layout.Reader(r)
	// A debug build's symbols are all in .symtab as well, but only a file with such a section is searched for them.
	_, named := layout.Section(".PyRuntime")
	names := []string{symbolLoop, symbolRuntime, symbolCodeType, symbolVersion}
	for _, s := range symbolsSince {
		names = append(names, s.name)
	}
	found, err := layout.Lookup(in, named, names...)
	if err != nil {
		return nil, err
	}
	loop, isPython := found[symbolLoop]
	runtime, hasRuntime := found[symbolRuntime]
	if !isPython || !hasRuntime || loop.Size == 0 {
		return nil, nil
	}
	im := &image{code: layout.Code(), runtime: runtime.Address, codeType: found[symbolCodeType].Address}
	im.loops = append([]symbol.Range{{Address: loop.Address, Size: loop.Size}}, coldParts(layout, in, loop)...)
	if v, ok := found[symbolVersion]; ok {
		b := in.ReadAddress(v.Address, 8)
		if len(b) < 8 {
			return nil, fmt.Errorf("%s at %#x cannot be read", symbolVersion, uint64(v.Address))
		}
		hex := binary.LittleEndian.Uint64(b)
		if hex>>24 != 3 {
			return nil, fmt.Errorf("%s is %#x, which is no Python 3", symbolVersion, hex)
		}
		im.minor, im.release = int(hex>>16&0xff), fmt.Sprintf("3.%d.%d", hex>>16&0xff, hex>>8&0xff)
	} else {
		for _, s := range symbolsSince {
			if _, ok := found[s.name]; ok {
				im.minor, im.release = s.minor, fmt.Sprintf("3.%d", s.minor)
				break
			}
		}
	}
	if t, ok := offsets.Tables[im.minor]; ok {
		im.table = &t
	}
	if im.table != nil && im.minor >= 13 {
		if err := describes(in.ReadAddress(im.runtime, describedBytes), im.table); err != nil {
			im.table, im.release = nil, fmt.Sprintf("%s (%v)", im.release, err)
		}
	}
	return im, nil
}

// biasOf returns how far above its addresses in the file the image lies in memory, by a mapping of its code.
func (im *image) biasOf(m *process.Mapping) (uint64, bool) {
	for _, c := range im.code {
		start := uint64(c.Offset)
		if m.Offset < start+c.Size && m.Offset+(m.End-m.Start) > start {
			return m.Start - (uint64(c.Address) + m.Offset - start), true
		}
	}
	return 0, false
}

const absent = 0xffff // ABSENT of python.bpf.c

// ownedByShim is FRAME_OWNED_BY_CSTACK of Include/internal/pycore_frame.h, 3.12 and 3.13.
const ownedByShim = 3

// attach returns what the kernel side needs to know of a process with the image at a bias.
func (im *image) attach(bias uint64) bpfInterpreter {
	t := im.table
	field := func(offset int) uint16 {
		if offset < 0 || offset >= absent {
			return absent
		}
		return uint16(offset)
	}
	p := bpfInterpreter{
		Runtime:      uint64(im.runtime) + bias,
		Interpreters: field(t.InterpretersHead), Holder: field(t.TstateCurrent),
		NextInterpreter: field(t.InterpreterNext), Threads: field(t.ThreadsHead),
		NextThread: field(t.ThreadNext), ThreadId: field(t.ThreadID), NativeId: field(t.NativeThreadID), Cframe: absent,
		Previous: field(t.Previous), Code: field(t.Executable), Instruction: field(t.Frame.Instruction),
		FirstLine: field(t.FirstLine), Flags: field(t.Flags), Name: field(t.Name), Lines: field(t.LineTable),
	}
	if im.codeType != 0 {
		p.CodeType = uint64(im.codeType) + bias
	}
	for i := range min(len(im.loops), len(p.Loops)) {
		p.Loops[i].Start = uint64(im.loops[i].Address) + bias
		p.Loops[i].End = uint64(im.loops[i].End()) + bias
	}
	size := max(t.Previous, t.Executable, t.Frame.Instruction) + 8
	switch {
	case t.ThreadFrame != offsets.Absent:
		p.Chain, p.Frame, p.Indexed, p.Mark = uint8(bpfFrameChainCHAIN_OBJECTS), field(t.ThreadFrame), 1, 0
	case t.IsEntry != offsets.Absent:
		p.Chain, p.Mark = uint8(bpfFrameChainCHAIN_ENTRY), field(t.IsEntry)
	default:
		p.Chain, p.Mark, p.Shim = uint8(bpfFrameChainCHAIN_SHIM), field(t.Owner), ownedByShim
	}
	switch {
	case t.CFrame != offsets.Absent:
		p.Frame, p.Cframe = field(t.CFrame), field(t.CFrameCurrent)
	case t.CurrentFrame != offsets.Absent:
		p.Frame = field(t.CurrentFrame)
	}
	p.FrameBytes = uint8(max(size, int(p.Mark)+1))
	return p
}
