/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Instead of libbpf's, for user space: the kernel's helpers are functions of walk.c, and a map is known by its address. */
#pragma once

#define SEC(name)
#undef __always_inline /* the C library's */
#define __always_inline inline __attribute__((always_inline))
#define __uint(name, n) int(*name)[n]
#define __type(name, type) typeof(type) *name
#define __array(name, type) typeof(type) *name[]

void *bpf_map_lookup_elem(void *map, const void *key);
long bpf_map_update_elem(void *map, const void *key, const void *value, u64 flags);
long bpf_probe_read_user(void *to, u32 size, const void *from);
long bpf_probe_read_kernel(void *to, u32 size, const void *from);
long bpf_ringbuf_output(void *ring, void *data, u64 size, u64 flags);
long bpf_tail_call(void *ctx, void *programs, u32 slot);
struct task_struct *bpf_get_current_task_btf(void);
long bpf_task_pt_regs(struct task_struct *task);
