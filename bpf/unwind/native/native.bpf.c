//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Walks native code by its frame pointers. x86-64 and arm64 agree on the frame: fp points at the caller's fp, the return
 * address lies above it (System V ABI x86-64 section 3.2.2, AAPCS64 section 6.4.6).
 */
#include "unwind.h"
#include "sample.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Given at load: what goes into frame.unwinder, and where we stand in the program array. */
const volatile u32 slot;

enum { KIND_NATIVE = 1 /* a: program counter */ };

/* Frames walked before a tail call to ourselves; 32 keep the verifier's work small and 255 frames within 8 calls. */
#define FRAMES_PER_CALL 32
_Static_assert(FRAMES_PER_CALL * MAX_TAIL_CALLS >= MAX_USER_FRAMES, "a stack of MAX_USER_FRAMES needs no more tail calls");

/* No code lies below: the zero page is never mapped. */
#define LOWEST_ADDRESS 4096
/* User addresses end below this on both architectures (48 bits and more: the sign bit is the kernel's). */
#define HIGHEST_ADDRESS (1ULL << 56)

/* The bits of a return address that are address. On arm64 it may be signed, and the signature begins right above the largest
 * user address (Armv8.3-A PAuth): at bit 39, 42, 47, 48 or 52, as the kernel was built and the CPU can. */
static __always_inline u64 code_address_mask(void)
{
#if defined(__TARGET_ARCH_arm64)
	struct task_struct *task = bpf_get_current_task_btf();
	return BPF_CORE_READ(task, mm, task_size) - 1; /* all bits if it cannot be read */
#else
	return ~0ULL;
#endif
}

struct native_frame {
	u64 fp;
	u64 return_address;
};

SEC("perf_event")
int unwind(struct bpf_perf_event_data *ctx)
{
	struct unwind_state *st = unwind__state();
	if (!st)
		return 0;
	u64 code_mask = code_address_mask();
	for (int i = 0; i < FRAMES_PER_CALL; i++) {
		struct native_frame f;
		if (!unwind__push(st, slot, KIND_NATIVE, st->pc, 0))
			return unwind__done(st, OUTCOME_TOO_DEEP);
		if (st->fp == 0) /* the ABI's mark for the outermost frame */
			return unwind__done(st, OUTCOME_COMPLETE);
		if ((st->fp & 7) || st->fp < st->sp) /* the stack grows down: a caller's frame lies above */
			return unwind__done(st, OUTCOME_CHAIN_ENDED);
		if (bpf_probe_read_user(&f, sizeof(f), (void *)st->fp))
			return unwind__done(st, OUTCOME_FAULT);
		f.return_address &= code_mask;
		if (f.return_address == 0)
			return unwind__done(st, OUTCOME_COMPLETE);
		if (f.return_address < LOWEST_ADDRESS || f.return_address >= HIGHEST_ADDRESS)
			return unwind__done(st, OUTCOME_CHAIN_ENDED);
		st->pc = f.return_address;
		st->return_address = 1;
		st->sp = st->fp + sizeof(f);
		st->fp = f.fp;
	}
	return unwind__next(ctx, st, slot);
}
