// Package cfi turns the call frame information of ELF files (.eh_frame, .debug_frame, Go's pclntab) into compact rows: for
// each range of code addresses the rule that leads from a frame to its caller's. The kernel's walk in bpf/unwind/native
// looks them up; the walk in bpf/unwind/native/replay does the same in user space.
//
// The way through it: [Open] reads a file's headers and learns where its tables are; [File.Page] gives the rows of one page
// of text in the form the kernel keeps, [File.Rows] those of any range of addresses. Only the entries that describe the
// range are parsed, found through .eh_frame_hdr's search table.
//
// Code that no table describes is read itself: musl and what is built with -fno-asynchronous-unwind-tables, the startup code
// of every program, stubs of the PLT, trampolines of signals. On x86-64 the pushes and pops of a function tell where its return
// address is; a function is believed only if all ways through it agree.
//
// A [File] holds no descriptor: the caller opens the file again for each call and closes it soon, for an open file in a
// container's mount blocks the container's removal. A file that was rewritten in between gives other rows or an error. Rows
// depend on nothing but bytes of the file, so equal pages of rows may be shared between files, whoever owns those.
//
// Files are hostile: every count, length and offset is held against the file and against a limit of this package before it
// is believed, no loop runs longer than a limit allows, and whatever a file says the worst result is an error or rows that
// are wrong for that file alone. What cannot be expressed is a row of kind [Invalid], counted by [Reason].
//
// The package does no input or output but through the reader it is given, starts no goroutine and knows no process. A File
// is immutable and safe for concurrent use.
package cfi
