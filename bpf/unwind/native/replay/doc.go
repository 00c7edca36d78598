// Package replay walks a native stack in user space, by the same rows as the kernel's walk: over a [Snapshot], which is the
// registers, the stack and the mappings that one thread had at one moment, with what was needed of its files. A stack that the
// unwinder got wrong becomes a file in testdata and a row in a test, and can be single-stepped in a debugger.
//
// [Record] makes a snapshot of a live thread (record/ is the tool), [Read] and [Snapshot.Write] keep it in a file,
// [Walker.Walk] walks, [Walker.Step] goes one frame up.
//
// It is for tests and for the tool. The agent does not import it. Nothing here is safe for concurrent use.
package replay
