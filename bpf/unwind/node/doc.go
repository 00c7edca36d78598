// Package node reads the frames of JavaScript that V8 makes in Node.js: from the words that a frame has on the stack to functions as
// they were written, with file, line and column, those inlined by the compilers among them.
//
// What is where in V8's objects is a [Layout]: read from the v8dbg_ variables that every build of Node.js carries for debuggers, and,
// for the little that they leave out, from a table of versions. Versions that are not in the table have no layout.
//
// A [Heap] reads one process. All it reads is hostile: the process writes it, moves it and frees it while we read. Every length, depth and
// count has a limit, every object is read with its type, and what does not fit together is an error and never a name.
//
// A Heap belongs to one goroutine; a Layout is immutable.
package node
