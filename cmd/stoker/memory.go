package main

import (
	"debug/elf"
	"fmt"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// trimMemory trades a little CPU for memory, once the agent has started: edge nodes have little of it.
//
// The heap that lives is small (symbols and stacks of what runs); most of what is allocated is garbage of the start and of new
// files, so the collector is told to run earlier, unless the operator has chosen. Of the program itself, more than half was
// needed to start only; the kernel brings back what is used again.
func trimMemory() error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(25)
	}
	debug.FreeOSMemory()
	return dropOwnText()
}

// dropOwnText unmaps the pages of our own executable that nobody can have written to. They stay in the page cache.
func dropOwnText() error {
	exe, err := elf.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("read our own executable: %w", err)
	}
	defer exe.Close()
	if exe.Type != elf.ET_EXEC {
		return nil // position-independent: where it lies is not in the file
	}
	page := uint64(os.Getpagesize())
	for _, p := range exe.Progs {
		if p.Type != elf.PT_LOAD || p.Flags&elf.PF_W != 0 {
			continue
		}
		start, end := p.Vaddr&^(page-1), (p.Vaddr+p.Filesz)&^(page-1) // not the page that may be shared with what follows
		_, _, errno := unix.RawSyscall(unix.SYS_MADVISE, uintptr(start), uintptr(end-start), unix.MADV_DONTNEED)
		if errno != 0 {
			return fmt.Errorf("drop pages of our own executable: %w", errno)
		}
	}
	return nil
}
