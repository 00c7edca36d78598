package replay

import (
	"debug/elf"
	"unsafe"

	"golang.org/x/sys/unix"
)

const machine = elf.EM_AARCH64

const (
	ntPRStatus   = 1     // NT_PRSTATUS
	ntARMPACMask = 0x406 // NT_ARM_PAC_MASK: struct user_pac_mask, for data and for instructions
)

// readRegisters returns the registers of a stopped thread, and the mask of its code addresses (0: all bits).
func readRegisters(tid int) (Registers, uint64, error) {
	var r unix.PtraceRegsArm64
	if err := unix.PtraceGetRegSetArm64(tid, ntPRStatus, &r); err != nil {
		return Registers{}, 0, err
	}
	g := Registers{PC: r.Pc, Known: 1<<32 - 1}
	copy(g.R[:], r.Regs[:])
	g.R[31] = r.Sp

	var pac struct{ data, instructions uint64 }
	iov := unix.Iovec{Base: (*byte)(unsafe.Pointer(&pac)), Len: uint64(unsafe.Sizeof(pac))}
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GETREGSET, uintptr(tid), ntARMPACMask, uintptr(unsafe.Pointer(&iov)), 0, 0)
	if errno != 0 { // a CPU or a kernel without
		return g, 0, nil
	}
	return g, ^pac.instructions, nil
}
