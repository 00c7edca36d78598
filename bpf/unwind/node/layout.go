package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/stoker-profiler/stoker/bpf/symbol"
)

// Version is V8's version, of which Node.js has its own builds.
type Version struct{ Major, Minor, Build, Patch int }

func (v Version) String() string {
	return fmt.Sprintf("%d.%d.%d.%d", v.Major, v.Minor, v.Build, v.Patch)
}

// Layout is where things are in V8's objects, for one build of V8: offsets in bytes from the beginning of an object.
type Layout struct {
	Version Version

	// Instance types (Map::instance_type) of the objects that are read.
	types struct {
		script, scopeInfo, sharedFunction, functionLow, functionHigh     uint16
		bytecodeArray, interpreterData, code, sharedWrapper              uint16
		instructionStream                                                uint16 // before 11.0: code itself
		byteArray, trustedByteArray                                      uint16
		fixedArray, weakArray, trustedArray, protectedArray, trustedWeak uint16
	}

	mapInstanceType uint64

	string struct {
		length, chars, first, second, parent, offset, actual, resource uint64
	}
	fixedArray struct{ length, data uint64 }

	function struct{ shared uint64 }
	shared   struct{ data, name, script, length, flags uint64 }
	script   struct{ source, name, lineOffset, columnOffset, lineEnds uint64 }

	scopeInfo struct {
		firstVars, locals uint64 // slots after the flags
		positions         uint64 // slot of the positions, where their place is fixed; 0: after the names
		plainFlags        bool   // the flags are a number of 32 bits and not a small integer
		module            uint32 // ScopeType::MODULE_SCOPE
	}

	bytecode         struct{ length, positions, data uint64 }
	flaggedPositions bool // distances in tables of positions have two bits below them
	// bytecodeSizes is the length of each bytecode in bytes: of all of them without prefix, then with Wide, then with ExtraWide. It is
	// empty in a V8 from 13 on that was stripped: then the lines of baseline code are not known.
	bytecodeSizes []byte

	code struct {
		deopt, positions, start, flags, size uint64
		inline                               bool // the instructions are in the object itself; else it has their address at start
		kindMask, kindShift, baseline        uint32
	}
	stream struct{ code, start uint64 }
	deopt  struct{ inlinedCount, literals, shared, inlining uint64 }

	wrapped bool // the deoptimization data name their function through a wrapper

	frame struct{ marker, function, bytecodeArray, bytecodeOffset int64 } // from the frame pointer
}

// ErrNotV8 says that a file has no V8 in it.
var ErrNotV8 = errors.New("no V8")

// UnknownVersion says that a file has a V8 that this package has no layout for.
type UnknownVersion struct{ Version Version }

func (e *UnknownVersion) Error() string {
	return fmt.Sprintf("V8 %s is none of the versions whose objects can be read", e.Version)
}

// OddLayout says that a file has a V8 that is not as its version should be.
type OddLayout struct {
	Version Version
	What    string
}

func (e *OddLayout) Error() string { return fmt.Sprintf("V8 %s %s", e.Version, e.What) }

// minUnexported is the size of the smallest file that is searched for variables that it does not export, in bytes.
const minUnexported = 64 << 20

const (
	debugPrefix   = "v8dbg_"
	versionPrefix = "_ZN2v88internal7Version"
	sizesVariable = "_ZN2v88internal11interpreter9Bytecodes14kBytecodeSizesE"
)

// ReadLayout reads the layout of the V8 in an ELF file of size bytes: a node, or a library that it uses. It is ErrNotV8 for a file
// without V8, an *UnknownVersion or an *OddLayout for a V8 whose objects cannot be read for sure, and another error for what is no honest file.
func ReadLayout(r io.ReaderAt, size int64) (*Layout, error) {
	// Builds export the variables; one that does not is as large as a node, if anything, and is searched from one end to the other.
	headers, err := symbol.ReadLayout(r, size)
	if err != nil {
		return nil, fmt.Errorf("look for V8: %w", err)
	}
	found, err := headers.Lookup(headers.Reader(r), size >= minUnexported, debugPrefix+"off_fp_function")
	if err != nil {
		return nil, fmt.Errorf("look for V8: %w", err)
	}
	if len(found) == 0 {
		return nil, ErrNotV8
	}
	vars, err := symbol.ReadVariables(r, size, func(name []byte) bool {
		return bytes.HasPrefix(name, []byte(debugPrefix)) || bytes.HasPrefix(name, []byte(versionPrefix)) || string(name) == sizesVariable
	})
	if err != nil {
		return nil, fmt.Errorf("look for V8's variables: %w", err)
	}
	return newLayout(vars)
}

// newLayout puts a layout together from what a file says and from the table of versions.
func newLayout(vars *symbol.Variables) (*Layout, error) {
	l := &Layout{}
	for name, to := range map[string]*int{
		"6major_E": &l.Version.Major, "6minor_E": &l.Version.Minor, "6build_E": &l.Version.Build, "6patch_E": &l.Version.Patch,
	} {
		n, ok := vars.Int(versionPrefix + name)
		if !ok || n < 0 {
			return nil, &OddLayout{What: "does not say its version"}
		}
		*to = int(n)
	}
	v := versionOf(l.Version)
	if v == nil {
		return nil, &UnknownVersion{l.Version}
	}
	d := debugVariables{vars: vars}
	d.layout(l, v)
	if len(d.missing) > 0 {
		return nil, &OddLayout{l.Version, fmt.Sprintf("does not say %s", d.missing[0])}
	}
	if d.tagging(); d.err != "" {
		return nil, &OddLayout{l.Version, d.err}
	}
	if !kernelLayoutFits(l) {
		return nil, &OddLayout{l.Version, "has frames of another form"}
	}
	if sizes, ok := vars.Bytes(sizesVariable); ok && len(sizes)%3 == 0 && len(sizes) <= 3*256 {
		l.bytecodeSizes = sizes
	}
	return l, nil
}

// debugVariables reads V8's v8dbg_ variables.
type debugVariables struct {
	vars    *symbol.Variables
	missing []string
	err     string
}

// number is the first of the names that is there.
func (d *debugVariables) number(names ...string) int64 {
	for _, name := range names {
		if n, ok := d.vars.Int(debugPrefix + name); ok {
			return int64(n)
		}
	}
	d.missing = append(d.missing, names[0])
	return 0
}

// offset is a number that fits an offset in an object.
func (d *debugVariables) offset(names ...string) uint64 {
	n := d.number(names...)
	if n < 0 || n > maxOffset {
		d.missing = append(d.missing, names[0])
		return 0
	}
	return uint64(n)
}

// instance is an instance type.
func (d *debugVariables) instance(class, name string) uint16 {
	return uint16(d.offset("type_" + class + "__" + name + "_TYPE"))
}

// maxOffset bounds offsets: none of the objects that are read is larger.
const maxOffset = 4 << 10

func (d *debugVariables) layout(l *Layout, v *version) {
	t := &l.types
	t.script = d.instance("Script", "SCRIPT")
	t.scopeInfo = d.instance("ScopeInfo", "SCOPE_INFO")
	t.sharedFunction = d.instance("SharedFunctionInfo", "SHARED_FUNCTION_INFO")
	t.functionLow = d.instance("JSFunction", "JS_FUNCTION")
	t.functionHigh = t.functionLow + v.functionTypes - 1
	if n, ok := d.vars.Int(debugPrefix + "LastJSFunctionType"); ok {
		t.functionLow, t.functionHigh = uint16(d.offset("FirstJSFunctionType")), uint16(n)
	}
	t.bytecodeArray = d.instance("BytecodeArray", "BYTECODE_ARRAY")
	t.interpreterData = d.instance("InterpreterData", "INTERPRETER_DATA")
	t.code = d.instance("Code", "CODE")
	t.byteArray = d.instance("ByteArray", "BYTE_ARRAY")
	t.fixedArray = d.instance("FixedArray", "FIXED_ARRAY")
	t.weakArray = d.instance("WeakFixedArray", "WEAK_FIXED_ARRAY")
	t.instructionStream = t.code
	if !v.codeInline {
		t.instructionStream = d.instance("InstructionStream", "INSTRUCTION_STREAM")
	}
	if v.trusted {
		t.trustedByteArray = d.instance("TrustedByteArray", "TRUSTED_BYTE_ARRAY")
		t.trustedArray = d.instance("TrustedFixedArray", "TRUSTED_FIXED_ARRAY")
		t.protectedArray = d.instance("ProtectedFixedArray", "PROTECTED_FIXED_ARRAY")
		t.trustedWeak = t.trustedArray // 12.4 does not say it; then literals are one of the others
		if n, ok := d.vars.Int(debugPrefix + "type_TrustedWeakFixedArray__TRUSTED_WEAK_FIXED_ARRAY_TYPE"); ok {
			t.trustedWeak = uint16(n)
		} else {
			t.trustedWeak = t.trustedArray + 1
		}
	}

	l.mapInstanceType = d.offset("class_Map__instance_type__uint16_t")
	s := &l.string
	s.length = d.offset("class_String__length__int32_t")
	s.chars = d.offset("class_SeqOneByteString__chars__char")
	s.first = d.offset("class_ConsString__first__String")
	s.second = d.offset("class_ConsString__second__String")
	s.parent = d.offset("class_SlicedString__parent__String")
	s.offset = d.offset("class_SlicedString__offset__SMI")
	s.actual = d.offset("class_ThinString__actual__String")
	s.resource = d.offset("class_ExternalString__resource__Object")
	l.fixedArray.length = d.offset("class_FixedArrayBase__length__SMI")
	l.fixedArray.data = d.offset("class_FixedArray__data__uintptr_t")
	l.function.shared = d.offset("class_JSFunction__shared__SharedFunctionInfo")

	f := &l.shared
	f.data = sharedData
	f.name = d.offset("class_SharedFunctionInfo__name_or_scope_info__Tagged_NameOrScopeInfoT_",
		"class_SharedFunctionInfo__name_or_scope_info__Tagged_Object_", "class_SharedFunctionInfo__name_or_scope_info__Object")
	f.script = d.offset("class_SharedFunctionInfo__script__Tagged_HeapObject_", "class_SharedFunctionInfo__script_or_debug_info__HeapObject")
	f.length = d.offset("class_SharedFunctionInfo__length__uint16_t")
	f.flags = d.offset("class_SharedFunctionInfo__flags__int")

	c := &l.script
	c.source = d.offset("class_Script__source__Object")
	c.name = d.offset("class_Script__name__Object")
	c.lineOffset = c.name + 8
	c.columnOffset = c.name + 16
	c.lineEnds = d.offset("class_Script__line_ends__Object")

	i := &l.scopeInfo
	i.firstVars = d.offset("scopeinfo_idx_first_vars")
	i.locals = d.offset("scopeinfo_idx_ncontextlocals")
	i.positions, i.plainFlags, i.module = v.positions, v.plainFlags, v.module

	l.bytecode.length = l.fixedArray.length
	l.bytecode.positions = v.bytecodePositions
	l.bytecode.data = d.offset("class_BytecodeArray__data__uintptr_t")

	l.code.deopt, l.code.positions = v.codeDeopt, v.codePositions
	l.code.start, l.code.flags, l.code.size = v.codeStart, v.codeFlags, v.codeSize
	if l.code.inline = v.codeInline; l.code.inline {
		l.stream.start = d.offset("class_Code__instruction_start__uintptr_t")
	} else {
		l.stream.start = d.offset("class_InstructionStream__instruction_start__uintptr_t")
	}
	if d.vars.Has(debugPrefix + "class_Code__instruction_size__int") { // 11.3 says nothing of it
		l.code.flags, l.code.size = d.offset("class_Code__flags__uint32_t"), d.offset("class_Code__instruction_size__int")
	}
	if d.vars.Has(debugPrefix + "class_Code__instruction_start__Address") {
		l.code.start = d.offset("class_Code__instruction_start__Address")
	}
	l.code.kindMask = uint32(d.number("CodeKindFieldMask"))
	l.code.kindShift = uint32(d.offset("CodeKindFieldShift")) & 31
	l.code.baseline = uint32(d.offset("CodeKindBaseline"))
	l.stream.code = 8 // behind its map
	l.flaggedPositions = v.flaggedPositions

	p := &l.deopt
	*p = struct{ inlinedCount, literals, shared, inlining uint64 }{1, 2, 6, 7} // 10.2 does not say them
	if d.vars.Has(debugPrefix + "DeoptimizationDataInlinedFunctionCountIndex") {
		p.inlinedCount = d.offset("DeoptimizationDataInlinedFunctionCountIndex")
		p.literals = d.offset("DeoptimizationDataLiteralArrayIndex")
		p.inlining = d.offset("DeoptimizationDataInliningPositionsIndex")
		if l.wrapped = v.wrapped; l.wrapped {
			p.shared = d.offset("DeoptimizationDataWrappedSharedFunctionInfoIndex", "DeoptimizationDataSharedFunctionInfoWrapperIndex")
			t.sharedWrapper = d.instance("SharedFunctionInfoWrapper", "SHARED_FUNCTION_INFO_WRAPPER")
		} else {
			p.shared = d.offset("DeoptimizationDataSharedFunctionInfoIndex")
		}
	}

	l.frame.marker = d.number("off_fp_context_or_frame_type")
	l.frame.function = d.number("off_fp_function")
	l.frame.bytecodeArray = d.number("off_fp_bytecode_array")
	l.frame.bytecodeOffset = d.number("off_fp_bytecode_offset")
}

// tagging checks that words are tagged as this package reads them: a pointer to an object ends in 01, a small integer is the upper half
// of a word that ends in 0. Builds with compressed pointers differ.
func (d *debugVariables) tagging() {
	for name, want := range map[string]int64{
		"HeapObjectTag": 1, "HeapObjectTagMask": 3, "SmiTag": 0, "SmiTagMask": 1, "SmiShiftSize": 31, "TaggedSize": 8,
		"FirstNonstringType": firstNonstring, "StringRepresentationMask": 7, "StringEncodingMask": 8, "OneByteStringTag": 8,
		"SeqStringTag": sequential, "ConsStringTag": cons, "ExternalStringTag": external, "SlicedStringTag": sliced, "ThinStringTag": thin,
		"class_HeapObject__map__Map": 0,
	} {
		if n := d.number(name); len(d.missing) > 0 || n != want {
			d.err = fmt.Sprintf("tags words in another way than Node.js's own builds: %s%s is %d", debugPrefix, name, n)
			return
		}
	}
}
