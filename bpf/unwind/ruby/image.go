package ruby

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"regexp"

	"github.com/stoker-profiler/stoker/bpf/process"
	"github.com/stoker-profiler/stoker/bpf/symbol"
	"github.com/stoker-profiler/stoker/bpf/unwind/ruby/offsets"
)

// image is what an executable file has of CRuby. Immutable.
type image struct {
	release string         // as 3.1.2
	minor   string         // as 3.1
	table   *offsets.Table // nil: a version whose offsets nobody knows
	code    []symbol.Range // of the file: what is loaded as code
	loop    symbol.Range
	data    symbol.Range   // .data, in which the table of symbols is
	object  symbol.Address // rb_cObject
	ractor  symbol.Address // ruby_single_main_ractor; 0: none
	local   symbol.Address // slot with the number of the file's thread-local storage; 0: it is not used through one
	context uint64         // ruby_current_ec in that storage
}

const (
	symbolLoop    = "rb_vm_exec"
	symbolVersion = "ruby_version"
	symbolObject  = "rb_cObject"
	symbolRactor  = "ruby_single_main_ractor" // from 3.0
	symbolContext = "ruby_current_ec"         // from 3.0, thread-local
)

// What is read of a file at most.
const (
	maxLoopBytes   = 1 << 18 // of rb_vm_exec
	maxRelocations = 1 << 17
	maxDataBytes   = 1 << 18
)

var versionForm = regexp.MustCompile(`^(\d+\.\d+)\.\d+$`)

// readImage looks for CRuby in the ELF file of size bytes at r; nil: it is not in there. The file is a stranger's.
func readImage(r io.ReaderAt, size int64) (*image, error) {
	layout, err := symbol.ReadLayout(r, size)
	if err != nil {
		return nil, err
	}
	in := layout.Reader(r)
	found, err := layout.Lookup(in, false, symbolVersion, symbolObject, symbolLoop, symbolRactor, symbolContext)
	if err != nil {
		return nil, err
	}
	version, isRuby := found[symbolVersion]
	object, hasObject := found[symbolObject]
	if !isRuby || !hasObject {
		return nil, nil
	}
	b := in.ReadAddress(version.Address, 16)
	for i, c := range b {
		if c == 0 {
			b = b[:i]
			break
		}
	}
	m := versionForm.FindStringSubmatch(string(b))
	if m == nil {
		return nil, fmt.Errorf("%s is %q, which is no version of Ruby", symbolVersion, b)
	}
	im := &image{release: m[0], minor: m[1], code: layout.Code(), object: object.Address, ractor: found[symbolRactor].Address}
	t, known := offsets.Tables[im.minor]
	loop, hasLoop := found[symbolLoop]
	if !known || !hasLoop || loop.Size == 0 || layout.Machine != elf.EM_X86_64 {
		return im, in.Err()
	}
	im.loop = loopOf(layout, in, symbol.Range{Address: loop.Address, Size: loop.Size})
	im.data, _ = layout.Section(".data")
	im.data.Size = min(im.data.Size, maxDataBytes)
	if c, ok := found[symbolContext]; ok {
		im.local, im.context = localSlot(layout, in, c.Address), uint64(c.Address)
	}
	if im.local != 0 || im.ractor != 0 {
		im.table = &t
	}
	return im, in.Err()
}

// loopOf returns the code of the loop: vm_exec_core, which rb_vm_exec calls and which has no symbol in a stripped file, is the largest
// of the functions that are called from there; or it is in rb_vm_exec itself.
func loopOf(layout *symbol.Layout, in *symbol.Reader, exec symbol.Range) symbol.Range {
	code := append([]byte(nil), in.ReadAddress(exec.Address, min(exec.Size, maxLoopBytes))...)
	loop := exec
	for i := 0; i+5 <= len(code); i++ {
		if code[i] != 0xe8 { // call rel32; in the middle of an instruction it leads to no beginning of a function, or to a small one
			continue
		}
		to := exec.Address + symbol.Address(i+5) + symbol.Address(int64(int32(binary.LittleEndian.Uint32(code[i+1:]))))
		if f, ok := layout.Function(in, to); ok && f.Size > loop.Size {
			loop = f
		}
	}
	return loop
}

// localSlot returns where the dynamic linker puts the number of the file's thread-local storage for the symbol at an offset in it:
// the place of its R_X86_64_DTPMOD64; 0: there is none.
func localSlot(layout *symbol.Layout, in *symbol.Reader, offset symbol.Address) symbol.Address {
	relocations, ok := layout.Section(".rela.dyn")
	symbols, hasSymbols := layout.Section(".dynsym")
	if !ok || !hasSymbols {
		return 0
	}
	const relocationBytes, symbolBytes = 24, 24
	le := binary.LittleEndian
	for i := uint64(0); i < min(relocations.Size/relocationBytes, maxRelocations); i++ {
		b := in.ReadOffset(relocations.Offset+symbol.FileOffset(i*relocationBytes), relocationBytes)
		if len(b) < relocationBytes {
			return 0
		}
		at, info := le.Uint64(b), le.Uint64(b[8:])
		if elf.R_X86_64(info&0xffffffff) != elf.R_X86_64_DTPMOD64 || info>>32 == 0 || info>>32 >= symbols.Size/symbolBytes {
			continue
		}
		s := in.ReadOffset(symbols.Offset+symbol.FileOffset(info>>32*symbolBytes), symbolBytes)
		if len(s) == symbolBytes && elf.ST_TYPE(s[4]) == elf.STT_TLS && symbol.Address(le.Uint64(s[8:])) == offset {
			return symbol.Address(at)
		}
	}
	return 0
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

// Bytes of an entry of the vector of thread-local storage: dtv_t of glibc, a pointer in musl.
const strideGlibc, strideMusl = 16, 8

// attach returns what the kernel side needs to know of a process with the image at a bias.
func (im *image) attach(bias uint64, musl bool) bpfInterpreter {
	t := im.table
	p := bpfInterpreter{
		TlsOffset: im.context, Running: uint32(t.RunningContext), VmStack: uint16(t.VMStack), VmStackSize: uint16(t.VMStackSize),
		Cfp: uint16(t.ControlFrame), MachineStart: uint16(t.MachineStackStart), MachineSize: uint16(t.MachineStackSize),
		FrameSize: uint16(t.FrameSize), Pc: uint16(t.PC), Iseq: uint16(t.Iseq), Ep: uint16(t.EP),
		Body: uint16(t.Body), Encoded: uint16(t.Encoded), EncodedSize: uint16(t.EncodedSize),
		DefinedClass: uint16(t.DefinedClass), CalledId: uint16(t.CalledID), DtvStride: strideGlibc,
	}
	if musl {
		p.DtvStride = strideMusl
	}
	if im.ractor != 0 {
		p.Ractor = uint64(im.ractor) + bias
	}
	if im.local != 0 {
		p.TlsModule = uint64(im.local) + bias
	}
	p.Loops[0].Start, p.Loops[0].End = uint64(im.loop.Address)+bias, uint64(im.loop.End())+bias
	return p
}
