//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Appends the frames of CRuby to a stack whose native frames have been walked: bpf/include/unwind.h says how the two come together.
 *
 * The execution context of the current thread is in the thread-local ruby_current_ec; if that is not to be had, it is the one that the
 * main ractor says is running, if the thread's stack is that one's. Its control frames are an array that grows down from the end of
 * its own stack. A frame with FINISH in its flags ends a run of the loop. What a frame runs is its iseq; which class's method that
 * is, or which native method, says the method entry that its environment leads to.
 *
 * Of a frame, a is the iseq, or the method entry of a native method and 1, with a cookie in its upper 16 bits; b is the method entry,
 * whose three lowest bits are 0, in the upper 44 bits, and the number of the instruction in the lower 20.
 *
 * Offsets of fields are the process's own; image.go fills them in. All memory is a stranger's: what cannot be read, and what is not
 * what it should be, end the walk and nothing else.
 */
#include "unwind.h"
#include "sample.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Given at load: what goes into frame.unwinder, and where we stand in the program array. */
const volatile u32 slot;

/* Frames walked before a tail call to ourselves. */
#define FRAMES_PER_CALL 10
_Static_assert(FRAMES_PER_CALL * (MAX_LANGUAGE_CALLS - MAX_LANGUAGES) > MAX_LANGUAGE_FRAMES, "enough calls for a full stack");
/* Blocks in blocks in a method: environments between a frame and its method's. */
#define MAX_ENVIRONMENTS 8
/* Ranges of code that are the loop: vm_exec_core, or rb_vm_exec where a compiler has put it in there. */
#define MAX_LOOPS 2
/* Bytes of a control frame that hold all fields we read. */
#define FRAME_BYTES 40
#define NO_INSTRUCTION 0xfffff

/* vm_core.h, 2.7 to 3.4. */
#define MAGIC_MASK 0x7fff0001
#define MAGIC_CFUNC 0x55550001
#define MAGIC_DUMMY 0x79990001
#define FLAG_FINISH 0x20
#define FLAG_LOCAL 2
/* include/ruby/internal/value_type.h and internal/imemo.h. */
#define TYPE_MASK 0x1f
#define TYPE_IMEMO 0x1a
#define IMEMO_SHIFT 12
#define IMEMO_MASK 15
#define IMEMO_SVAR 2
#define IMEMO_MENT 6
#define IMEMO_ISEQ 7

/* What happens to a stack, or to a part of it, that native frames say has Ruby in it. */
enum ruby_event {
	RUBY_STACKS,	 /* had their frames appended */
	RUBY_FRAMES,	 /* appended */
	RUBY_NO_CONTEXT, /* no execution context is the thread's */
	RUBY_UNREADABLE, /* the walk ended in memory that cannot be read, or is not what it should be */
	RUBY_TOO_DEEP,	 /* more frames than are kept */
	RUBY_EVENTS,
};

struct loop_range {
	u64 start, end; /* virtual addresses */
};

/* A process, as far as it is an interpreter: what user space has found out. */
struct interpreter {
	struct loop_range loops[MAX_LOOPS];
	u64 ractor;	/* address of ruby_single_main_ractor; 0: none */
	u64 tls_module; /* address of the dynamic linker's number of the library's thread-local storage; 0: not known */
	u64 tls_offset; /* of ruby_current_ec in it */
	u32 running;	/* rb_ractor_t: execution context that runs */
	u16 vm_stack, vm_stack_size, cfp, machine_start, machine_size; /* rb_execution_context_t */
	u16 frame_size, pc, iseq, ep;				       /* rb_control_frame_t */
	u16 body, encoded, encoded_size;			       /* rb_iseq_t, its body */
	u16 defined_class, called_id;				       /* method entry, in its first 32 bytes */
	u8 dtv_stride; /* bytes of an entry of the vector of thread-local storage: 16 in glibc, 8 in musl */
	u8 pad[3];
};

const enum ruby_event *ruby_event_type __attribute__((unused));

/* By the number in unwind_state.languages. User space makes and deletes the entries. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u32);
	__type(value, struct interpreter);
} rubies SEC(".maps");

/* One walk. Programs of one type do not nest on a CPU. */
struct walk {
	u64 at, end; /* address of the frame that is next, and behind the last one */
	u64 frame[FRAME_BYTES / 8];
	u64 environment[3]; /* ep[-2], ep[-1], ep[0] */
	u64 method[4];	    /* of a method entry: flags, class, definition, id in the order of its offsets */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct walk);
} ruby_walk SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, RUBY_EVENTS);
	__type(key, u32);
	__type(value, u64);
} ruby_counters SEC(".maps");

static __always_inline void ruby__count(u32 event, u64 n)
{
	u64 *c = bpf_map_lookup_elem(&ruby_counters, &event);
	if (c)
		*c += n;
}

static __always_inline bool read_u64(u64 *to, u64 at)
{
	return !bpf_probe_read_user(to, sizeof(*to), (void *)at);
}

/* Fields of what has been copied; offsets beyond it, which no table has, give something of it. */
static __always_inline u64 frame__u64(struct walk *w, u16 at)
{
	return at > FRAME_BYTES - 8 ? 0 : w->frame[at / 8];
}
static __always_inline u64 method__u64(struct walk *w, u16 at) { return w->method[at / 8 & 3]; }

/* Whether a native frame of the stack is in the interpreter's loop. */
static __always_inline bool stack__in_loop(struct unwind_state *st, struct interpreter *rb)
{
	for (u32 i = 0; i < MAX_KERNEL_FRAMES + MAX_USER_FRAMES; i++) {
		if (i >= st->frames)
			return false;
		struct frame *f = &st->record.frames[i];
		u64 at = f->a - f->return_address;
		for (int r = 0; r < MAX_LOOPS; r++) {
			if (at - rb->loops[r].start < rb->loops[r].end - rb->loops[r].start)
				return true;
		}
	}
	return false;
}

/* ruby_current_ec of the current thread, or 0: "ELF Handling For Thread-Local Storage", the dynamic model. */
static __always_inline u64 context__local(struct interpreter *rb)
{
	u64 module = 0, vector = 0, block = 0, context = 0;
#if defined(__TARGET_ARCH_x86)
	u64 pointer = BPF_CORE_READ(bpf_get_current_task_btf(), thread.fsbase) + 8;
#else
	u64 pointer = BPF_CORE_READ(bpf_get_current_task_btf(), thread.uw.tp_value);
#endif
	if (!rb->tls_module || !read_u64(&module, rb->tls_module) || !module || module > 1 << 16 || !read_u64(&vector, pointer))
		return 0;
	if (!read_u64(&block, vector + module * rb->dtv_stride) || !block || !read_u64(&context, block + rb->tls_offset))
		return 0;
	return context;
}

/* The execution context that the main ractor says is running, if the thread is on its stack; or 0. */
static __always_inline u64 context__running(struct interpreter *rb)
{
	bpf_user_pt_regs_t regs;
	u64 ractor = 0, context = 0, start = 0, size = 0;
	if (!rb->ractor || !read_u64(&ractor, rb->ractor) || !ractor || !read_u64(&context, ractor + rb->running) || !context)
		return 0;
	if (!read_u64(&start, context + rb->machine_start) || !read_u64(&size, context + rb->machine_size))
		return 0;
	if (bpf_probe_read_kernel(&regs, sizeof(regs), (void *)bpf_task_pt_regs(bpf_get_current_task_btf())))
		return 0;
	return start - regs.sp <= size ? context : 0;
}

/* How a step ended. */
enum step { STEP_ON, STEP_END, STEP_UNREADABLE, STEP_FULL };

/* Reads the imemo object at an address to w->method, and returns its kind; 0: it is none. */
static __always_inline u64 walk__imemo(struct walk *w, u64 object)
{
	if (!object || object & 7 || bpf_probe_read_user(w->method, sizeof(w->method), (void *)object))
		return 0;
	u64 flags = w->method[0];
	return (flags & TYPE_MASK) == TYPE_IMEMO ? flags >> IMEMO_SHIFT & IMEMO_MASK : 0;
}

/* The method entry that the environment at ep leads to, or 0; w->method has its fields then. rb_vm_frame_method_entry does this. */
static __always_inline u64 walk__method(struct walk *w, u64 ep)
{
	for (int i = 0; i < MAX_ENVIRONMENTS; i++) {
		if (bpf_probe_read_user(w->environment, sizeof(w->environment), (void *)(ep - 16)))
			return 0;
		u64 object = w->environment[0], imemo = walk__imemo(w, object);
		if (imemo == IMEMO_MENT)
			return object;
		if (w->environment[2] & FLAG_LOCAL) {
			if (imemo != IMEMO_SVAR)
				return 0;
			object = w->method[1]; /* cref_or_me of struct vm_svar */
			return walk__imemo(w, object) == IMEMO_MENT ? object : 0;
		}
		ep = w->environment[1] & ~3ULL;
	}
	return 0;
}

static __always_inline u32 walk__step(struct unwind_state *st, struct interpreter *rb, struct walk *w)
{
	if (w->at >= w->end)
		return STEP_END;
	if (bpf_probe_read_user(w->frame, sizeof(w->frame), (void *)w->at))
		return STEP_UNREADABLE;
	u64 ep = frame__u64(w, rb->ep), iseq = frame__u64(w, rb->iseq), pc = frame__u64(w, rb->pc), flags = 0;
	if (!read_u64(&flags, ep))
		return STEP_UNREADABLE;
	u64 magic = flags & MAGIC_MASK;
	if (magic == MAGIC_DUMMY) /* the outermost frame, which runs nothing */
		return STEP_END;
	w->at += rb->frame_size;
	u8 kind = flags & FLAG_FINISH ? LANGUAGE_ENTRY : LANGUAGE_FRAME;
	u64 a = 0, b = NO_INSTRUCTION, cookie = 0, type = 0;
	if (magic == MAGIC_CFUNC) {
		a = 1;
	} else if (iseq && !(iseq & 7) && read_u64(&type, iseq) && (type & TYPE_MASK) == TYPE_IMEMO &&
		   (type >> IMEMO_SHIFT & IMEMO_MASK) == IMEMO_ISEQ) {
		u64 body = 0, encoded = 0;
		u32 size = 0;
		if (!read_u64(&body, iseq + rb->body) || !read_u64(&encoded, body + rb->encoded) ||
		    bpf_probe_read_user(&size, sizeof(size), (void *)(body + rb->encoded_size)))
			return STEP_UNREADABLE;
		u64 instruction = (pc - encoded) / 8;
		cookie = hash__mix(body, encoded);
		a = iseq;
		if (instruction <= size && instruction < NO_INSTRUCTION)
			b = instruction;
	} else if (kind == LANGUAGE_FRAME) { /* a block in C, which has its native frames */
		return STEP_ON;
	} else {
		return unwind__push_language(st, slot, LANGUAGE_EMPTY, 0, 0) ? STEP_ON : STEP_FULL;
	}
	u64 method = walk__method(w, ep);
	b |= method << 17;
	if (a == 1)
		a |= method;
	if (method)
		cookie = hash__mix(hash__mix(cookie, method__u64(w, rb->called_id)), method__u64(w, rb->defined_class));
	a |= cookie >> 32 << 48;
	return unwind__push_language(st, slot, kind, a, b) ? STEP_ON : STEP_FULL;
}

SEC("perf_event")
int unwind(struct bpf_perf_event_data *ctx)
{
	struct unwind_state *st = unwind__state();
	u32 zero = 0;
	struct walk *w = bpf_map_lookup_elem(&ruby_walk, &zero);
	if (!st)
		return 0;
	u32 outcome = st->outcome, number = st->languages[(slot - FIRST_LANGUAGE_SLOT) % MAX_LANGUAGES];
	struct interpreter *rb = bpf_map_lookup_elem(&rubies, &number);
	if (!w || !rb) /* the process has just been forgotten; w cannot be missing: an array of one */
		return unwind__languages(ctx, st, slot, outcome);
	if (st->language != slot) {
		st->language = slot;
		w->at = w->end = 0;
		/* Where the native walk was cut, the loop may be among what is missing: in code that a compiler made, too. */
		if (outcome == OUTCOME_COMPLETE && !stack__in_loop(st, rb))
			return unwind__languages(ctx, st, slot, outcome);
		u64 context = context__local(rb);
		if (!context)
			context = context__running(rb);
		if (!context) {
			ruby__count(RUBY_NO_CONTEXT, 1);
			return unwind__languages(ctx, st, slot, outcome);
		}
		ruby__count(RUBY_STACKS, 1);
		u64 stack = 0, size = 0, frame = 0;
		if (!read_u64(&stack, context + rb->vm_stack) || !read_u64(&size, context + rb->vm_stack_size) ||
		    !read_u64(&frame, context + rb->cfp) || frame < stack || frame - stack > size * 8) {
			ruby__count(RUBY_UNREADABLE, 1);
			unwind__language_lost(st, slot);
			return unwind__languages(ctx, st, slot, outcome);
		}
		w->at = frame;
		w->end = stack + size * 8;
	}
	u32 before = st->language_frames, step = STEP_ON;
	for (int i = 0; i < FRAMES_PER_CALL && step == STEP_ON; i++)
		step = walk__step(st, rb, w);
	ruby__count(RUBY_FRAMES, st->language_frames - before);
	if (step == STEP_ON) {
		unwind__language_again(ctx, st, slot);
		step = STEP_FULL;
	}
	if (step == STEP_UNREADABLE) {
		ruby__count(RUBY_UNREADABLE, 1);
		unwind__language_lost(st, slot);
	} else if (step == STEP_FULL) {
		ruby__count(RUBY_TOO_DEEP, 1);
		unwind__language_lost(st, slot);
	}
	return unwind__languages(ctx, st, slot, outcome);
}
