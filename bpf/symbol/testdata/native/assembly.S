/* A function as assembly programmers leave them: no type, no size. */
	.text
	.globl assembly_function
assembly_function:
	ret
	.p2align 4
assembly_neighbour:
	ret
	.section .note.GNU-stack,"",%progbits
