// Package offsets is where CPython's structures have the fields that a walk of its frames and a look-up of its names read, one
// row per minor version. table.go is made by the command in generate from the debug information of interpreters, which not every machine has;
// nobody edits it. Versions from 3.13 on describe themselves (_Py_DebugOffsets), and the table is what that is held against.
package offsets

// Absent is the offset of a field that a version does not have.
const Absent = -1

// Table is one version's offsets, all in bytes, of a 64-bit build with the GIL.
type Table struct {
	// Minor is n of 3.n. Other releases of it are expected to agree, which CPython promises of public structures only: whoever
	// uses a row for a process checks it there first.
	Minor int
	// Source is the release that it was read from.
	Source string
	Runtime
	Interpreter
	Thread
	Frame
	Code
	Unicode
}

// Runtime is _PyRuntimeState.
type Runtime struct{ InterpretersHead, AutoTSSKey, TstateCurrent int }

// Interpreter is PyInterpreterState. ThreadsHead is tstate_head up to 3.10.
type Interpreter struct{ InterpreterNext, ThreadsHead int }

// Thread is PyThreadState. Frame is PyFrameObject * up to 3.10; CFrame, 3.11 and 3.12, leads to a _PyCFrame, which has the
// current frame at CFrameCurrent; CurrentFrame is _PyInterpreterFrame * from 3.13.
type Thread struct {
	ThreadNext, ThreadInterp, ThreadID, NativeThreadID, ThreadFrame, CFrame, CFrameCurrent, CurrentFrame int
}

// Frame is PyFrameObject up to 3.10, _PyInterpreterFrame from 3.11. Instruction is f_lasti, prev_instr or instr_ptr.
type Frame struct{ Previous, Executable, Instruction, IsEntry, Owner int }

// Code is PyCodeObject. LineTable is co_lnotab up to 3.9. Bytecode, from 3.11, is where the instructions begin in the object itself.
type Code struct {
	ArgCount, KwOnlyArgCount, Flags, FirstLine, FileName, Name, QualName, LineTable, Bytecode int
}

// Unicode is PyUnicodeObject: where its length and its state bits are, where the text of an ASCII string and of any other
// compact string begins. Bytes objects have theirs at BytesText and its length at BytesSize.
type Unicode struct{ UnicodeLength, UnicodeState, ASCIIText, CompactText, BytesSize, BytesText int }
