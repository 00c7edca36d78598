//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a sample costs at the least, to compare stoker's with in the same run: a program that does nothing, and one that
 * does nothing but have the kernel walk the user stack by frame pointers.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct stack {
	u64 ip[127];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct stack);
} buffer SEC(".maps");

SEC("perf_event")
int return_zero(void *ctx)
{
	return 0;
}

SEC("perf_event")
int get_stack(void *ctx)
{
	u32 zero = 0;
	struct stack *s = bpf_map_lookup_elem(&buffer, &zero);
	if (s)
		bpf_get_stack(ctx, s->ip, sizeof(s->ip), BPF_F_USER_STACK);
	return 0;
}
