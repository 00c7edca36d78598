/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Instead of libbpf's, for user space: the structs of kernel.h are what they are. */
#pragma once

/* Only of two pointers, as native.bpf.c does. */
#define BPF_CORE_READ(a, b, c) ((a)->b->c)
