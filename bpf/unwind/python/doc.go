// Package python is the unwinder of CPython 3.8 to 3.13: the functions that people wrote, with file and line, where a native stack has
// the interpreter's loop. docs/python.md says what is supported and what is not.
//
// image.go tells an interpreter's file by its content, once for each file. python.bpf.c, the kernel's half, walks the frames of a
// sampled thread. symbolize.go attaches to processes and names the frames; code.go reads a code object's names, file and line table from
// the process's memory, lines.go the line of an instruction in the three formats that there are. Where the fields lie says package
// offsets. What languages have in common is told by package unwind.
//
// The goroutine of the [unwind.Symbolizer] owns all of it; what loads programs and counts is behind a lock. Nothing is ever written to
// a process. Its memory is a stranger's: all that is read of it has a limit, whatever it says.
package python
