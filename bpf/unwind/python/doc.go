// Package python knows how CPython keeps its code: so far its line tables, in the three formats of 3.8 to 3.13, and where the
// fields lie that a walk reads (package offsets). It is pure: no I/O, no goroutine, safe for concurrent use. What it reads is a
// stranger's memory, so every function does work in proportion to the bytes it was given, whatever is in them.
package python
