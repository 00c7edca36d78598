// Package python knows how CPython keeps its code: how to read a code object's names, file and line table from a process's
// memory, and the line of an instruction in the three formats of 3.8 to 3.13. Where the fields lie says package offsets.
//
// It walks nothing and attaches to nothing yet. It starts no goroutine, writes nothing, and is safe for concurrent use if the
// memory it is given is. That memory is a stranger's: all that is read of it has a limit, whatever it says.
package python
