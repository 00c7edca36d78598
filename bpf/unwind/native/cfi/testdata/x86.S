/* Call frame information in every form that a rule can have, and in forms that none can. The tests assemble it; a label in
 * front of each address that they ask for. */
#ifdef DEBUG_FRAME
	.cfi_sections .debug_frame
#endif
	.text
	.globl	_start
	.type	_start, @function
_start: /* musl's, which has no call frame information */
	xor	%rbp, %rbp
	mov	%rsp, %rdi
	and	$-16, %rsp
	call	realigned
	hlt
	.size	_start, . - _start

	.p2align 7
	.globl	realigned
	.type	realigned, @function
realigned: /* as gcc does for locals of more than 16 bytes' alignment */
	.cfi_startproc
	lea	8(%rsp), %r10
	.cfi_def_cfa 10, 0
at_r10:	and	$-32, %rsp
	push	-8(%r10)
	push	%rbp
	mov	%rsp, %rbp
	.cfi_escape 0x10, 0x6, 0x2, 0x76, 0 /* rbp at rbp + 0 */
at_saved:	push	%r10
	.cfi_escape 0x0f, 0x3, 0x76, 0x78, 0x6 /* CFA = *(rbp - 8) */
at_deref:	call	plain
	pop	%r10
	.cfi_def_cfa 10, 0
	pop	%rbp
	.cfi_restore 6
	lea	-8(%r10), %rsp
	.cfi_def_cfa 7, 8
	ret
	.cfi_endproc
	.size	realigned, . - realigned

	.globl	plain
	.type	plain, @function
plain:
	.cfi_startproc
	push	%rbp
	.cfi_adjust_cfa_offset 8
	.cfi_offset 6, -16
	push	%rbx
	.cfi_adjust_cfa_offset 8
	.cfi_offset 3, -24
at_pushed:	test	%edi, %edi
	jz	1f
	.cfi_remember_state
	pop	%rbx
	.cfi_adjust_cfa_offset -8
	.cfi_restore 3
	pop	%rbp
	.cfi_adjust_cfa_offset -8
	.cfi_restore 6
at_popped:	ret
1:	.cfi_restore_state
at_restored:	call	plain@PLT
	.cfi_endproc /* a call that does not return ends the function */
	.size	plain, . - plain

	.globl	stacked
	.type	stacked, @function
stacked: /* OpenSSL's, and what no rule can be */
	.cfi_startproc
	mov	%rsp, %rax
	.cfi_def_cfa_register 0
at_rax:	sub	$64, %rsp
	.cfi_escape 0x0f, 6, 0x77, 0x30, 0x06, 0x23, 8, 0x96 /* CFA = *(rsp + 48) + 8, nop */
at_nop_expression:	nop
	.cfi_escape 0x0f, 5, 0x77, 0x30, 0x06, 0x23, 8 /* CFA = *(rsp + 48) + 8 */
at_plus:	nop
	.cfi_escape 0x0f, 11, 0x77, 8, 0x79, 0, 0x38, 0x1e, 0x22, 0x06, 0x23, 8, 0x96
at_nop_indexed:	nop
	.cfi_escape 0x0f, 10, 0x77, 8, 0x79, 0, 0x38, 0x1e, 0x22, 0x06, 0x23, 8 /* CFA = *(rsp + 8 + 8 r9) + 8 */
at_indexed:	nop
	.cfi_def_cfa 7, 8
	.cfi_register 16, 5
at_rdi:	nop
	.cfi_restore 16
	.cfi_def_cfa 7, 0x400000
at_far:	nop
	.cfi_def_cfa 7, 12
at_odd:	nop
	.cfi_def_cfa 7, 8
	.cfi_register 7, 8
at_other_stack:	nop
	.cfi_restore 7
	.cfi_val_offset 6, -16
at_lost:	nop
	.cfi_same_value 6
at_same:	nop
	.cfi_undefined 16
at_undefined:	nop
	.cfi_restore 16
	nop
#ifdef UNKNOWN
	.cfi_escape 0x3f /* an instruction nobody knows */
at_unknown:	nop
#endif
	.cfi_endproc
	.size	stacked, . - stacked

	.p2align 7
	.globl	hole
hole:	.fill 64, 1, 0xcc
at_trampoline:	mov	$15, %rax
	syscall
	.fill 16, 1, 0xcc
at_thread:	xor	%ebp, %ebp
	pop	%rdi
	call	*%r9
	mov	%eax, %edi
	xor	%eax, %eax
	mov	$60, %al
	syscall
	hlt
at_nothing:	.fill 64, 1, 0xcc
	.section .note.GNU-stack,"",@progbits
