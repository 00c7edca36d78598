/* Call frame information as people write it by hand. */
	.text
	.globl	_start
	.type	_start, %function
_start:
	.cfi_startproc
	.cfi_undefined x30
	mov	x29, #0
	bl	caller
	brk	#0
	.cfi_endproc
	.size	_start, . - _start

	.p2align 6
	nop
	.globl	trampoline
	.type	trampoline, %function
trampoline: /* the vDSO's, without call frame information */
	mov	x8, #139
	svc	#0
	.size	trampoline, . - trampoline

	.p2align 6
	.globl	thread
	.type	thread, %function
thread: /* the end of musl's clone */
	ldp	x1, x0, [sp], #16
	blr	x1
	mov	x8, #93
	svc	#0
	.size	thread, . - thread

	.p2align 6
	.globl	odd
	.type	odd, %function
odd:
	.cfi_startproc
	stp	x29, x30, [sp, #-32]!
	.cfi_def_cfa_offset 32
	.cfi_offset 29, -32
	.cfi_offset 30, -24
	.cfi_remember_state
	mov	x9, sp
	.cfi_def_cfa_register 9
	nop
	.cfi_escape 0x0f, 3, 0x8f, 16, 0x06 /* CFA = *(sp + 16) */
	nop
	.cfi_restore_state
	ldp	x29, x30, [sp], #32
	.cfi_def_cfa_offset 0
	.cfi_restore 29
	.cfi_restore 30
	.cfi_register 30, 10
	ret	x10
	.cfi_endproc
	.size	odd, . - odd
	.section .note.GNU-stack,"",%progbits
