/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The few kernel types that stoker's programs look at, instead of a generated vmlinux.h of 3 MB per architecture. Every
 * struct carries only the fields we read; CO-RE finds them in the running kernel by name, so order and size here do not
 * matter (struct pt_regs and the bpf_* structs are ABI and are whole).
 */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;
enum { false = 0, true = 1 };

/* include/uapi/linux/bpf.h; the names that libbpf's helper headers and our maps use. */
enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PROG_ARRAY = 3,
	BPF_MAP_TYPE_PERCPU_HASH = 5,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_ARRAY_OF_MAPS = 12,
	BPF_MAP_TYPE_RINGBUF = 27,
};
enum { BPF_ANY = 0, BPF_NOEXIST = 1, BPF_EXIST = 2 };
enum { BPF_F_NO_PREALLOC = 1U << 0, BPF_F_MMAPABLE = 1U << 10 };
enum { BPF_F_USER_STACK = 1ULL << 8, BPF_F_USER_BUILD_ID = 1ULL << 11 };
enum { BPF_STACK_BUILD_ID_EMPTY = 0, BPF_STACK_BUILD_ID_VALID = 1, BPF_STACK_BUILD_ID_IP = 2 };

struct bpf_stack_build_id {
	__s32 status;
	unsigned char build_id[20];
	union {
		__u64 offset;
		__u64 ip;
	};
};

/* errno.h */
#define EEXIST 17

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
typedef struct pt_regs bpf_user_pt_regs_t;
#elif defined(__TARGET_ARCH_arm64)
struct user_pt_regs {
	__u64 regs[31];
	__u64 sp;
	__u64 pc;
	__u64 pstate;
};
struct pt_regs { /* begins with struct user_pt_regs: arch/arm64/include/asm/ptrace.h */
	struct user_pt_regs user_regs;
};
typedef struct user_pt_regs bpf_user_pt_regs_t;
#else
#error "stoker samples on amd64 and arm64: build with -D__TARGET_ARCH_x86 or -D__TARGET_ARCH_arm64"
#endif

struct bpf_perf_event_data {
	bpf_user_pt_regs_t regs;
	__u64 sample_period;
	__u64 addr;
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	int counter;
} atomic_t;

struct kernfs_node {
	u64 id; /* what user space sees as the directory's inode: the cgroup id */
};
struct cgroup;
struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
};
struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
};
struct css_set {
	struct cgroup_subsys_state *subsys[1]; /* one per v1 controller; see cgroup__of() */
	struct cgroup *dfl_cgrp;
};
struct signal_struct {
	atomic_t live; /* threads that have not exited */
};
struct mm_struct {
	unsigned long exec_vm;	 /* pages that are executable and not writable */
	unsigned long start_code; /* 0 until exec has set up the new program */
	unsigned long start_stack;
	unsigned long task_size; /* user addresses lie below it; a power of two on arm64 */
};
#if defined(__TARGET_ARCH_x86)
struct thread_struct {
	unsigned long fsbase; /* the thread pointer: glibc and musl set it by system call */
};
#else
struct thread_struct {
	struct {
		unsigned long tp_value; /* the thread pointer as of when the thread was last switched away */
	} uw;
};
#endif
struct upid {
	int nr;
	void *ns;
};
struct pid {
	unsigned int level;
	struct upid numbers[1]; /* by level of pid namespace, outermost first */
};
struct task_struct {
	struct thread_struct thread;
	struct pid *thread_pid;
	unsigned int flags;
	int pid;
	int tgid;
	struct task_struct *group_leader;
	struct task_struct *real_parent;
	u64 start_boottime; /* ns of CLOCK_BOOTTIME; field 22 of /proc/PID/stat in ticks */
	u64 self_exec_id;   /* 64 bits since v5.7, commit d1e7fd6462ca */
	struct mm_struct *mm;
	struct css_set *cgroups;
	struct signal_struct *signal;
};

#pragma clang attribute pop

#define PF_KTHREAD 0x00200000 /* include/linux/sched.h */
