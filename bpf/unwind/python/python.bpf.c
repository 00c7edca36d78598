//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Appends the frames of CPython to a stack whose native frames have been walked: bpf/include/unwind.h says how the two come together.
 *
 * Which thread state is the current thread's: the one that holds the GIL, if it says so itself; else the one that this thread had last,
 * if it still says so; else whichever in the interpreters' lists does. A thread state says so by thread_id, which is what
 * pthread_self() returned in its thread: the thread pointer itself on x86-64, in glibc and in musl. On arm64 it is some distance from
 * that, so there native_thread_id says it (from 3.11 on), which is gettid() inside the container.
 *
 * Offsets of fields are the process's own; python.go fills them in. All memory is a stranger's: what cannot be read, and a chain
 * that never ends, end the walk and nothing else.
 */
#include "unwind.h"
#include "sample.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Given at load: what goes into frame.unwinder, and where we stand in the program array. */
const volatile u32 slot;

/* Frames walked before a tail call to ourselves. */
#define FRAMES_PER_CALL 32
/* Thread states looked at before a thread is taken for one that runs no Python. */
#define MAX_THREADS 96
/* Ranges of code that are the loop: one, its cold part, and what a compiler has made of it besides. */
#define MAX_LOOPS 4
/* Field that a version does not have. */
#define ABSENT 0xffff
/* Bytes of a frame and of a code object that hold all fields we read. */
#define FRAME_BYTES 128
#define CODE_BYTES 144

enum frame_chain {
	CHAIN_OBJECTS = 1, /* up to 3.10: PyFrameObject, a run of the loop for each */
	CHAIN_ENTRY,	   /* 3.11: _PyInterpreterFrame, is_entry on the last of a run */
	CHAIN_SHIM,	   /* from 3.12: a frame without code, owned by the C stack, behind the last of a run */
};

/* What happens to a stack, or to a part of it, that native frames say has Python in it. */
enum python_event {
	PYTHON_STACKS,	   /* had their frames appended */
	PYTHON_FRAMES,	   /* appended */
	PYTHON_NO_THREAD,  /* no thread state is the thread's: it runs no Python any more, or not yet */
	PYTHON_UNREADABLE, /* the walk ended in memory that cannot be read */
	PYTHON_TOO_DEEP,   /* more frames than are kept */
	PYTHON_EVENTS,
};

struct loop_range {
	u64 start, end; /* virtual addresses */
};

/* A process, as far as it is an interpreter: what user space has found out. */
struct interpreter {
	struct loop_range loops[MAX_LOOPS];
	u64 runtime;	 /* address of _PyRuntime */
	u64 code_type;	 /* address of PyCode_Type; 0: not known */
	u16 interpreters; /* _PyRuntimeState: first interpreter */
	u16 holder;	 /* _PyRuntimeState: thread state that holds the GIL */
	u16 next_interpreter, threads; /* PyInterpreterState: the next one, its first thread state */
	u16 next_thread, thread_id, native_id, frame; /* PyThreadState */
	u16 cframe;	 /* _PyCFrame: current frame; ABSENT: PyThreadState has it itself */
	u16 previous, code, instruction, mark; /* of a frame; mark: is_entry or owner */
	u16 first_line, flags, name, lines;    /* of the code object */
	u8 chain;
	u8 shim;    /* CHAIN_SHIM: value of owner that says that there is no code */
	u8 tagged;  /* bits of the code's reference that are no address */
	u8 indexed; /* instruction is an int, not an address in the code object */
	u8 frame_bytes; /* of a frame, that hold the fields above: behind them memory may end */
	u8 pad;
};

const enum python_event *python_event_type __attribute__((unused));
const enum frame_chain *frame_chain_type __attribute__((unused));
const enum language_kind *language_kind_type __attribute__((unused));

/* By the number in unwind_state.languages. User space makes and deletes the entries. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u32);
	__type(value, struct interpreter);
} pythons SEC(".maps");

struct thread_key {
	u64 start_boottime; /* of the process */
	u32 pid, tid;
};

/* The thread state that a thread had last. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct thread_key);
	__type(value, u64);
} python_threads SEC(".maps");

/* One walk. Programs of one type do not nest on a CPU. */
struct walk {
	u64 at;	  /* address of the frame that is next */
	u64 a, b; /* a frame that is not appended yet: the next one says whether it is the last of its run */
	u64 pending;
	u8 frame[FRAME_BYTES];
	u8 code[CODE_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct walk);
} python_walk SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PYTHON_EVENTS);
	__type(key, u32);
	__type(value, u64);
} python_counters SEC(".maps");

static __always_inline void python__count(u32 event, u64 n)
{
	u64 *c = bpf_map_lookup_elem(&python_counters, &event);
	if (c)
		*c += n;
}

static __always_inline bool read_u64(u64 *to, u64 at)
{
	return !bpf_probe_read_user(to, sizeof(*to), (void *)at);
}

/* Fields of what has been copied; offsets beyond it, which no table has, give something of it. */
static __always_inline u64 frame__u64(struct walk *w, u16 at) { return *(u64 *)&w->frame[at & (FRAME_BYTES - 8)]; }
static __always_inline u64 code__u64(struct walk *w, u16 at)
{
	return at > CODE_BYTES - 8 ? 0 : *(u64 *)&w->code[at & 0xf8];
}
static __always_inline u32 code__u32(struct walk *w, u16 at)
{
	return at > CODE_BYTES - 4 ? 0 : *(u32 *)&w->code[at & 0xfc];
}

/* Whether a native frame of the stack is in the interpreter's loop. */
static __always_inline bool stack__in_loop(struct unwind_state *st, struct interpreter *py)
{
	for (u32 i = 0; i < MAX_KERNEL_FRAMES + MAX_USER_FRAMES; i++) {
		if (i >= st->frames)
			return false;
		struct frame *f = &st->record.frames[i];
		u64 at = f->a - f->return_address;
		for (int r = 0; r < MAX_LOOPS; r++) {
			if (at - py->loops[r].start < py->loops[r].end - py->loops[r].start)
				return true;
		}
	}
	return false;
}

/* Whether a thread state is the current thread's. */
static __always_inline bool thread__mine(struct interpreter *py, u64 thread, u64 pointer, u32 tid)
{
#if defined(__TARGET_ARCH_x86)
	u64 id = 0;
	return read_u64(&id, thread + py->thread_id) && id == pointer;
#else
	u64 id = 0;
	return py->native_id != ABSENT && read_u64(&id, thread + py->native_id) && id == tid;
#endif
}

/* The current thread's state, or 0. */
static __always_inline u64 thread__find(struct interpreter *py, struct stack_key *key)
{
	struct task_struct *task = bpf_get_current_task_btf();
	u64 pointer = 0;
	u32 tid = 0;
#if defined(__TARGET_ARCH_x86)
	pointer = BPF_CORE_READ(task, thread.fsbase);
#else
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	u32 level = BPF_CORE_READ(pid, level);
	if (level > 32) /* MAX_PID_NS_LEVEL */
		return 0;
	bpf_probe_read_kernel(&tid, sizeof(tid), (void *)pid + bpf_core_field_offset(struct pid, numbers) + level * bpf_core_type_size(struct upid));
#endif
	u64 thread = 0;
	if (py->holder != ABSENT && read_u64(&thread, py->runtime + py->holder) && thread && thread__mine(py, thread, pointer, tid))
		return thread;
	struct thread_key tk = { .start_boottime = key->start_boottime, .pid = key->pid, .tid = (u32)bpf_get_current_pid_tgid() };
	u64 *last = bpf_map_lookup_elem(&python_threads, &tk);
	if (last && thread__mine(py, *last, pointer, tid))
		return *last;
	u64 interpreter = 0;
	thread = 0;
	if (!read_u64(&interpreter, py->runtime + py->interpreters))
		return 0;
	for (int i = 0; i < MAX_THREADS; i++) {
		if (!interpreter)
			return 0;
		if (!thread) { /* the first of an interpreter */
			if (!read_u64(&thread, interpreter + py->threads))
				return 0;
		} else if (thread__mine(py, thread, pointer, tid)) {
			bpf_map_update_elem(&python_threads, &tk, &thread, BPF_ANY);
			return thread;
		} else if (!read_u64(&thread, thread + py->next_thread)) {
			return 0;
		}
		if (!thread && !read_u64(&interpreter, interpreter + py->next_interpreter))
			return 0;
	}
	return 0;
}

/* How a step ended. */
enum step { STEP_ON, STEP_END, STEP_UNREADABLE, STEP_FULL };

/* Appends the frame that waits, as the kind that it has turned out to be. False: there is no room. */
static __always_inline bool walk__flush(struct unwind_state *st, struct walk *w, u8 kind)
{
	if (!w->pending)
		return kind != LANGUAGE_ENTRY || unwind__push_language(st, slot, LANGUAGE_EMPTY, 0, 0);
	w->pending = 0;
	return unwind__push_language(st, slot, kind, w->a, w->b);
}

static __always_inline u32 walk__step(struct unwind_state *st, struct interpreter *py, struct walk *w)
{
	if (!w->at)
		return !w->pending || walk__flush(st, w, LANGUAGE_ENTRY) ? STEP_END : STEP_FULL;
	if (bpf_probe_read_user(w->frame, py->frame_bytes & (FRAME_BYTES - 1), (void *)w->at))
		return STEP_UNREADABLE;
	u64 code = frame__u64(w, py->code) & ~(u64)py->tagged;
	w->at = frame__u64(w, py->previous);
	u8 mark = w->frame[py->mark & (FRAME_BYTES - 1)];
	if (py->chain == CHAIN_SHIM) {
		if (mark == py->shim)
			return walk__flush(st, w, LANGUAGE_ENTRY) ? STEP_ON : STEP_FULL;
		if (w->pending && !walk__flush(st, w, LANGUAGE_FRAME))
			return STEP_FULL;
	}
	u64 instruction = frame__u64(w, py->instruction);
	if (!py->indexed)
		instruction -= code; /* it is inside of the object */
	/* What tells a code object from the next one in the same place: user space looks later. If it is not in memory now, or no code
	 * object, 0 stands for it. */
	u64 cookie = 0;
	if (!bpf_probe_read_user(w->code, CODE_BYTES, (void *)code) && (!py->code_type || code__u64(w, 8) == py->code_type)) {
		cookie = hash__mix(code__u64(w, py->name), (u64)code__u32(w, py->first_line) << 32 | code__u32(w, py->flags));
		cookie = hash__mix(cookie, code__u64(w, py->lines)) >> 32 | 1;
	}
	w->a = code;
	w->b = cookie << 32 | (u32)instruction;
	w->pending = 1;
	bool ends = py->chain == CHAIN_OBJECTS || (py->chain == CHAIN_ENTRY && mark);
	if (py->chain != CHAIN_SHIM && !walk__flush(st, w, ends ? LANGUAGE_ENTRY : LANGUAGE_FRAME))
		return STEP_FULL;
	return STEP_ON;
}

SEC("perf_event")
int unwind(struct bpf_perf_event_data *ctx)
{
	struct unwind_state *st = unwind__state();
	u32 zero = 0;
	struct walk *w = bpf_map_lookup_elem(&python_walk, &zero);
	if (!st)
		return 0;
	u32 outcome = st->outcome, number = st->languages[(slot - FIRST_LANGUAGE_SLOT) % MAX_LANGUAGES];
	struct interpreter *py = bpf_map_lookup_elem(&pythons, &number);
	if (!w || !py) /* the process has just been forgotten; w cannot be missing: an array of one */
		return unwind__languages(ctx, st, slot, outcome);
	if (st->language != slot) {
		st->language = slot;
		w->pending = w->at = 0;
		/* Where the native walk was cut, the loop may be among what is missing. */
		if (outcome == OUTCOME_COMPLETE && !stack__in_loop(st, py))
			return unwind__languages(ctx, st, slot, outcome);
		u64 thread = thread__find(py, &st->record.head.key);
		if (!thread) {
			python__count(PYTHON_NO_THREAD, 1);
			return unwind__languages(ctx, st, slot, outcome);
		}
		python__count(PYTHON_STACKS, 1);
		u64 frame;
		if (!read_u64(&frame, thread + py->frame) || (py->cframe != ABSENT && !read_u64(&frame, frame + py->cframe))) {
			python__count(PYTHON_UNREADABLE, 1);
			unwind__language_lost(st, slot);
			return unwind__languages(ctx, st, slot, outcome);
		}
		w->at = frame;
	}
	u32 before = st->language_frames, step = STEP_ON;
	for (int i = 0; i < FRAMES_PER_CALL && step == STEP_ON; i++)
		step = walk__step(st, py, w);
	python__count(PYTHON_FRAMES, st->language_frames - before);
	if (step == STEP_ON) {
		unwind__language_again(ctx, st, slot);
		step = STEP_FULL;
	}
	if (step == STEP_UNREADABLE) {
		python__count(PYTHON_UNREADABLE, 1);
		walk__flush(st, w, LANGUAGE_FRAME);
		unwind__language_lost(st, slot);
	} else if (step == STEP_FULL) {
		python__count(PYTHON_TOO_DEEP, 1);
		walk__flush(st, w, LANGUAGE_FRAME);
		unwind__language_lost(st, slot);
	}
	return unwind__languages(ctx, st, slot, outcome);
}
