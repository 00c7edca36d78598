// Package symbol names code addresses: it reads the symbols of ELF files (.symtab, .dynsym, the PLT, MiniDebugInfo, Go's
// pclntab), of the kernel (/proc/kallsyms) and of the vDSO, and keeps them in a compact form under a byte budget.
//
// The way through it: [OpenInRoot] opens a file as a container names it, [Cache.Load] reads it, [Object.Address] turns an
// offset in the file into an ELF virtual address and [Object.Lookup] that address into functions and lines.
//
// Files of containers are hostile. They are opened without side effects, read and never mapped, every count and size that
// they claim is held against the file's size and against an absolute limit before anything is allocated, and two files share
// an Object only if every byte that was parsed is the same: a build id is a stranger's word. Whatever a file says, the worst
// result is an error, a name that the file itself gave, or no name.
//
// Everything exported is safe for concurrent use. The package starts no goroutine, holds no file open and writes nothing.
// An Object has inlined frames of Go only; a [LineReader] reads those of other languages from DWARF, for a few addresses and for a
// moment at a time, because nobody wants to hold that of a whole program. A [DebugFinder] finds the files that it is in.
package symbol
