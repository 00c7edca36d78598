package python

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/stoker-profiler/stoker/bpf/unwind/python/offsets"
)

// describedBytes is how much of _Py_DebugOffsets of 3.13 is read: up to the code object's fields.
const describedBytes = 24 + 8*(3+13+9+6+10)

// describes checks what an interpreter of 3.13 says of itself at the beginning of _PyRuntime (struct _Py_DebugOffsets,
// Include/internal/pycore_runtime.h of 3.13) against the table: a build with other structures, as one without the GIL, is one that we
// do not know.
func describes(b []byte, t *offsets.Table) error {
	le := binary.LittleEndian
	if len(b) < describedBytes || string(b[:8]) != "xdebugpy" {
		return errors.New("_PyRuntime does not describe itself")
	}
	if minor := le.Uint64(b[8:]) >> 16 & 0xff; minor != uint64(t.Minor) {
		return fmt.Errorf("_PyRuntime is of 3.%d", minor)
	}
	if le.Uint64(b[16:]) != 0 {
		return errors.New("it is a free-threaded build")
	}
	const runtime, interpreter, thread, frame, code = 24, 24 + 8*3, 24 + 8*16, 24 + 8*25, 24 + 8*31
	for _, f := range []struct {
		name     string
		at, want int
	}{
		{"_PyRuntimeState.interpreters.head", runtime + 16, t.InterpretersHead},
		{"PyInterpreterState.next", interpreter + 16, t.InterpreterNext}, {"PyInterpreterState.threads.head", interpreter + 24, t.ThreadsHead},
		{"PyThreadState.next", thread + 16, t.ThreadNext}, {"PyThreadState.current_frame", thread + 32, t.CurrentFrame},
		{"PyThreadState.thread_id", thread + 40, t.ThreadID}, {"PyThreadState.native_thread_id", thread + 48, t.NativeThreadID},
		{"_PyInterpreterFrame.previous", frame + 8, t.Previous}, {"_PyInterpreterFrame.f_executable", frame + 16, t.Executable},
		{"_PyInterpreterFrame.instr_ptr", frame + 24, t.Frame.Instruction}, {"_PyInterpreterFrame.owner", frame + 40, t.Owner},
		{"PyCodeObject.co_filename", code + 8, t.FileName}, {"PyCodeObject.co_qualname", code + 24, t.QualName},
		{"PyCodeObject.co_linetable", code + 32, t.LineTable}, {"PyCodeObject.co_firstlineno", code + 40, t.FirstLine},
		{"PyCodeObject.co_code_adaptive", code + 72, t.Bytecode},
	} {
		if got := le.Uint64(b[f.at:]); got != uint64(f.want) {
			return fmt.Errorf("%s is at %d, not at %d as in %s", f.name, got, f.want, t.Source)
		}
	}
	return nil
}
