// Package offsets is where CRuby's structures have the fields that a walk of its control frames and a look-up of its names read, one row
// per minor version. table.go is made by the generate command below it, which compiles a file that asks the headers of a release;
// nobody edits it.
package offsets

// Table is one version's offsets, in bytes, of a 64-bit build for amd64.
type Table struct {
	// Source is the release that it was read from.
	Source string
	Context
	Frame
	Code
	Method
	Class
	Object
	Symbols
}

// Context is rb_execution_context_t; RunningContext, of rb_ractor_t, is the one that runs.
type Context struct{ RunningContext, VMStack, VMStackSize, ControlFrame, MachineStackStart, MachineStackSize int }

// Frame is rb_control_frame_t.
type Frame struct{ FrameSize, PC, Iseq, EP int }

// Code is rb_iseq_t and its rb_iseq_constant_body. Lines is insns_info.body, an array of LineCount entries of LineSize bytes that
// begin with the line; LineIndex is insns_info.succ_index_table.
type Code struct {
	Body, Encoded, EncodedSize, PathObject, Label, FirstLine, Lines, LineCount, LineIndex, LineSize int
}

// Method is rb_callable_method_entry_t.
type Method struct{ DefinedClass, Definition, CalledID int }

// Class is RClass and its rb_classext_t.
type Class struct{ ClassExt, ClassVariables, ClassIncluder int }

// Object is RString, RArray and st_table.
type Object struct {
	StringLength, StringPointer, StringEmbedded, ArrayLength, ArrayPointer, ArrayEmbedded int
	TableEntryPower, TableHash, TableEntriesStart, TableEntriesBound, TableEntries        int
}

// Symbols is rb_symbols_t: SymbolLast is the serial of the last name, SymbolIDs the array of arrays of names. LastOperatorID, a value,
// is the last id that is its own serial.
type Symbols struct{ SymbolLast, SymbolTable, SymbolIDs, SymbolSize, LastOperatorID int }
