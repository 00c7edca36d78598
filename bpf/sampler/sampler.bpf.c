//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The sampler's entry: what happens at a tick of the CPU clock before an unwinder takes over, and the two tracepoints that
 * tell of processes. Longer things live in bpf/include and in the unwinders.
 */
#include "unwind.h"
#include "sample.h"
#include "scope.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Enums reach Go through the object's BTF, which has only what something refers to. */
const enum outcome *outcome_type __attribute__((unused));
const enum event *event_type __attribute__((unused));
const enum record_type *record_type_type __attribute__((unused));
const enum frame_kind *frame_kind_type __attribute__((unused));
const enum sample_context *sample_context_type __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* Go */
	__type(key, u32);
	__type(value, struct process);
} processes SEC(".maps");

/* Fields of the current task are read through the verifier's typed pointers, not BPF_CORE_READ: a load each instead of a call,
 * a fifth of the program's time. */
static __always_inline void process__key(struct task_struct *task, u32 scope, struct stack_key *key)
{
	struct task_struct *leader = task->group_leader;
	__builtin_memset(key, 0, sizeof(*key));
	key->pid = task->tgid;
	key->start_boottime = leader->start_boottime;
	key->exec_id = leader->self_exec_id;
	key->scope = scope;
}

/* P1. Says something of a process in scope; when the ring is full a counter tells user space to look for itself. */
static __always_inline void process__tell(u32 type, struct stack_key *key)
{
	struct record r = { .type = type, .key = *key };
	if (bpf_ringbuf_output(&stacks, &r, sizeof(r), 0)) /* wakes the reader if it waits */
		counters__event(ORIGIN_CPU, EVENT_EXEC_LOST);
}

/* A process that has forked and not exec'd has its parent's mappings. Where the stack begins is random at each exec, so equal
 * places mean equal address spaces; a parent that was adopted later has another one. */
static __always_inline void process__inherit(struct task_struct *task, struct mm_struct *mm, struct process *child)
{
	if (!mm)
		return;
	struct task_struct *parent = BPF_CORE_READ(task, real_parent);
	if (BPF_CORE_READ(parent, mm, start_stack) != mm->start_stack || BPF_CORE_READ(parent, mm, start_code) != mm->start_code)
		return;
	u32 pid = BPF_CORE_READ(parent, tgid);
	struct process *p = bpf_map_lookup_elem(&processes, &pid);
	if (!p)
		return;
	child->space = p->space;
	__builtin_memcpy(child->languages, p->languages, sizeof(child->languages));
}

/* Completes the key with the epoch of the mappings, finds the process's space and the first unwinder; true when it is the first
 * sample of the program. */
static __always_inline bool process__identify(struct task_struct *task, struct stack_key *key, struct unwind_state *st, u32 *unwinder)
{
	struct mm_struct *mm = task->mm;
	u64 pages = mm ? mm->exec_vm : 0; /* 0: a thread that has given back its mm tells nothing of the others' */
	struct process *p = bpf_map_lookup_elem(&processes, &key->pid);
	if (p && p->start_boottime == key->start_boottime && p->exec_id == key->exec_id) {
		key->epoch = p->epoch;
		st->space = p->space;
		__builtin_memcpy(st->languages, p->languages, sizeof(st->languages));
		if (p->unwinder)
			*unwinder = p->unwinder;
		if (pages && p->exec_pages != pages) {
			u64 now = bpf_ktime_get_ns();
			if (!p->exec_pages) { /* no sample yet since the exec */
				p->exec_pages = pages;
				return true;
			} else if (!p->maps_told || now - p->maps_told >= MAPS_INTERVAL) {
				process__tell(RECORD_MAPS, key);
				p->exec_pages = pages;
				p->maps_told = now;
			} /* else a later sample tells, if it is still so */
		}
		return false;
	}
	struct process fresh = {
		.start_boottime = key->start_boottime, .exec_id = key->exec_id, .exec_pages = pages,
	};
	process__inherit(task, mm, &fresh);
	st->space = fresh.space;
	__builtin_memcpy(st->languages, fresh.languages, sizeof(st->languages));
	if (bpf_map_update_elem(&processes, &key->pid, &fresh, BPF_ANY)) {
		counters__event(key->origin, EVENT_PROCESS_FULL);
		return false; /* never drop a sample because its process is unknown */
	}
	return true;
}

/* The first stack of a process carries build ids of its files: the process may be gone when user space looks. About 20 µs. */
static __always_inline void process__send_hints(void *ctx, struct unwind_state *st)
{
	long bytes = bpf_get_stack(ctx, st->hints.ids, sizeof(st->hints.ids), BPF_F_USER_STACK | BPF_F_USER_BUILD_ID);
	if (bytes <= 0 || bytes > (long)sizeof(st->hints.ids))
		return;
	st->hints.head.type = RECORD_HINTS;
	st->hints.head.n = bytes / sizeof(struct bpf_stack_build_id);
	st->hints.head.key = st->record.head.key;
	if (bpf_ringbuf_output(&stacks, &st->hints, sizeof(struct record) + bytes, 0))
		counters__event(st->record.head.key.origin, EVENT_HINTS_LOST);
}

/* regs is the program's context or a copy of it: nothing but single fields may be read. */
#if defined(__TARGET_ARCH_x86)
#define USER32_CS 0x23 /* 32-bit user code; arch/x86/include/asm/segment.h */
static __always_inline u64 regs__pc(bpf_user_pt_regs_t *regs) { return regs->ip; }
static __always_inline bool regs__user_mode(bpf_user_pt_regs_t *regs) { return regs->cs & 3; }
static __always_inline void regs__start(struct unwind_state *st, bpf_user_pt_regs_t *regs)
{
	st->pc = regs->ip;
	st->sp = regs->sp;
	st->fp = regs->bp;
	st->lr_known = 0;
	st->bx_at = BX_IN_REGISTER;
}
static __always_inline bool regs__compat(bpf_user_pt_regs_t *regs) { return (u16)regs->cs == USER32_CS; /* FRED keeps more above */ }
#else
static __always_inline u64 regs__pc(bpf_user_pt_regs_t *regs) { return regs->pc; }
static __always_inline bool regs__user_mode(bpf_user_pt_regs_t *regs) { return (regs->pstate & 0xf) == 0; /* EL0t */ }
static __always_inline void regs__start(struct unwind_state *st, bpf_user_pt_regs_t *regs)
{
	st->pc = regs->pc;
	st->sp = regs->sp;
	st->fp = regs->regs[29];
	st->lr = regs->regs[30];
	st->lr_known = 1;
}
static __always_inline bool regs__compat(bpf_user_pt_regs_t *regs) { return regs->pstate & 0x10; /* PSR_MODE32_BIT */ }
#endif

/* The kernel's own frames, leaf first. */
static __always_inline void kernel__push(void *ctx, struct unwind_state *st)
{
	long bytes = bpf_get_stack(ctx, st->kernel, sizeof(st->kernel), 0);
	if (bytes <= 0)
		return;
	u32 n = (u32)bytes / sizeof(u64);
	for (u32 i = 0; i < MAX_KERNEL_FRAMES && i < n; i++)
		unwind__append(st, 0, FRAME_KERNEL, i > 0, st->kernel[i], 0);
}

SEC("perf_event")
int sample(struct bpf_perf_event_data *ctx)
{
	/* K1. runs is the first thing we do: what it misses against the clock is what the kernel did not deliver. */
	struct counters *c = counters__of(ORIGIN_CPU);
	if (!c)
		return 0;
	c->runs++;
	if (!(u32)bpf_get_current_pid_tgid()) { /* the idle task */
		c->idle++;
		return 0;
	}
	struct task_struct *task = bpf_get_current_task_btf();
	struct scope scope = scope__of_tick(c, task);
	if (!scope.id)
		return 0;
	c->taken++;
	if (scope.thinning > 1 && bpf_get_prandom_u32() % scope.thinning) {
		c->outcomes[OUTCOME_THINNED]++;
		return 0;
	}
	struct unwind_state *st = unwind__state();
	if (!st) { /* cannot be: an array of one */
		c->outcomes[OUTCOME_NO_UNWINDER]++;
		return 0;
	}
	st->frames = st->user_frames = st->language_frames = st->language = st->tail_calls = 0;
	__builtin_memset(st->languages, 0, sizeof(st->languages));
	st->return_address = st->guessed = st->rows_missing = st->sp_low = 0;
	st->first = 1;
	st->space = 0;
	st->hash = hash_seed;
	st->weight = scope.thinning ? scope.thinning : 1;

	/* K2 begins: who is it, what is in the kernel, where does user space stand. */
	struct stack_key *key = &st->record.head.key;
	process__key(task, scope.id, key);
	key->origin = ORIGIN_CPU;
	u32 unwinder = 1;
	bool fresh = process__identify(task, key, st, &unwinder);

	bool compat;
	if (regs__user_mode(&ctx->regs)) {
		key->context = CONTEXT_USER;
		compat = regs__compat(&ctx->regs);
		regs__start(st, &ctx->regs);
	} else {
		key->context = CONTEXT_KERNEL;
		kernel__push(ctx, st);
		struct mm_struct *mm = task->mm;
		if (!mm || (task->flags & PF_KTHREAD))
			return unwind__done(st, OUTCOME_COMPLETE); /* a kernel thread: no user stack */
		if (!mm->start_code) /* exec in progress: the registers are the old program's, the memory is the new one's */
			return unwind__done(st, OUTCOME_COMPLETE);
		bpf_user_pt_regs_t regs;
		bpf_probe_read_kernel(&regs, sizeof(regs), (void *)bpf_task_pt_regs(task));
		if (!regs__user_mode(&regs) || regs__pc(&regs) == 0)
			return unwind__done(st, OUTCOME_COMPLETE); /* a worker of io_uring or vhost */
		compat = regs__compat(&regs);
		regs__start(st, &regs);
	}
	if (fresh)
		process__send_hints(ctx, st);
	if (compat)
		return unwind__done(st, OUTCOME_COMPAT);
	return unwind__next(ctx, st, unwinder);
}

/* Tells of the current process, if it is in scope. */
static __always_inline void process__announce(struct task_struct *task, u32 type)
{
	struct scope scope = scope__of(task);
	if (!scope.id)
		return;
	struct stack_key key;
	process__key(task, scope.id, &key);
	if (type == RECORD_EXEC) { /* the first sample makes the entry; here the old program's is made void */
		struct process p = { .start_boottime = key.start_boottime, .exec_id = key.exec_id };
		bpf_map_update_elem(&processes, &key.pid, &p, BPF_EXIST);
	}
	process__tell(type, &key);
}

SEC("tp_btf/sched_process_exec")
int process_exec(u64 *ctx)
{
	process__announce(bpf_get_current_task_btf(), RECORD_EXEC);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int process_exit(u64 *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	if (BPF_CORE_READ(task, signal, live.counter) == 0) /* do_exit() has counted us out already: we were the last thread */
		process__announce(task, RECORD_EXIT);
	return 0;
}
