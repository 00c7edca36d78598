// Package ruby is the unwinder of CRuby: the methods that people wrote, with class, file and line, where a native stack has the
// interpreter's loop. docs/ruby.md says what is supported and what is not.
//
// image.go tells an interpreter's file by its content, once for each file. ruby.bpf.c, the kernel's half, walks the control frames of a
// sampled thread. symbolize.go attaches to processes and names the frames; code.go reads what a frame runs from the process's memory:
// objects.go the strings, arrays, tables and symbols that it is made of, lines.go the line of an instruction. Where the fields lie says
// package offsets. What languages have in common is told by package unwind.
//
// The goroutine of the [unwind.Symbolizer] owns all of it; what loads programs and counts is behind a lock. Nothing is ever written to
// a process. Its memory is a stranger's: all that is read of it has a limit, whatever it says.
package ruby
