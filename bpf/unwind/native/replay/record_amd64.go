package replay

import (
	"debug/elf"

	"golang.org/x/sys/unix"
)

const machine = elf.EM_X86_64

// readRegisters returns the registers of a stopped thread, and the mask of its code addresses (0: all bits).
func readRegisters(tid int) (Registers, uint64, error) {
	var r unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &r); err != nil {
		return Registers{}, 0, err
	}
	return registersOf(&r), 0, nil
}

// registersOf puts registers in the order of DWARF's numbers.
func registersOf(r *unix.PtraceRegs) Registers {
	return Registers{PC: r.Rip, Known: 0xffff, R: [32]uint64{r.Rax, r.Rdx, r.Rcx, r.Rbx, r.Rsi, r.Rdi, r.Rbp, r.Rsp,
		r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15}}
}
