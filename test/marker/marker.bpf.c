//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The smallest unwinder that is one: it pushes a frame of its own, leaves the registers alone and hands over. The tests load it
 * beside native to prove that two unwinders share a stack.
 */
#include "unwind.h"
#include "sample.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

const volatile u32 slot;
const volatile u32 next_slot;

SEC("perf_event")
int unwind(struct bpf_perf_event_data *ctx)
{
	struct unwind_state *st = unwind__state();
	if (!st)
		return 0;
	if (!unwind__push(st, slot, 7, 0x1234, st->pc))
		return unwind__done(st, OUTCOME_TOO_DEEP);
	return unwind__next(ctx, st, next_slot);
}
