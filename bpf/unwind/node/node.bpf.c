//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Says which functions of JavaScript the frames of V8 are, in a stack whose native frames have been walked (bpf/include/unwind.h).
 *
 * All code that V8 makes keeps a frame pointer, and so do its built-in functions, which have no call frame information: the native walk
 * steps through both by frame pointer and leaves it in st->fps. Below it are, in all versions (V8: src/execution/frame-constants.h):
 *
 *	-8   the context, or a small integer: a frame of V8's own
 *	-16  the function, a JSFunction
 *	-32  of interpreted functions the bytecode, -40 the offset in it, a small integer
 *
 * A frame is taken for one of JavaScript only if all of these are of the types they must be. What is sent is words of the function that
 * do not move with it, because the function itself is young and moves: its SharedFunctionInfo, and a hash over what never changes of that;
 * of compiled code the address, and a hash over the instruction there. All memory is a stranger's: what cannot be read leaves the native
 * frame as it is.
 */
#include "unwind.h"
#include "sample.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Given at load: what goes into frame.unwinder, and where we stand in the program array. */
const volatile u32 slot;

/* Frames looked at before a tail call to ourselves. */
#define FRAMES_PER_CALL 64

/* The upper 16 bits of a and b are hashes: user addresses have 48. */
_Static_assert(((MAX_USER_FRAMES + 1) & MAX_USER_FRAMES) == 0, "an index of fps is bounded by a mask");

enum node_kind {
	NODE_INTERPRETED = LANGUAGE_PLACED, /* a: SharedFunctionInfo and its identity; b: offset of the bytecode */
	NODE_COMPILED,	/* a: address in code and the code's identity; b: SharedFunctionInfo and its identity */
	NODE_FUNCTION,	/* a: SharedFunctionInfo and its identity: it has called a built-in function that has no frame */
};

enum node_event {
	NODE_STACKS,	  /* of processes that run V8 */
	NODE_FRAMES,	  /* found to be of JavaScript */
	NODE_UNREADABLE, /* frames whose memory could not be read */
	NODE_EVENTS,
};

/* Bits of words. */
#define OBJECT_BITS 3 /* of a pointer to an object: 01 */
#define HASH_SHIFT 48
/* Map::instance_type */
#define INSTANCE_TYPE 12
/* SharedFunctionInfo::function_data */
#define SHARED_DATA 8

struct v8 {
	u16 function_low, function_high, shared_type, bytecode_type; /* instance types */
	u16 shared;	  /* JSFunction: SharedFunctionInfo */
	u16 length, literal; /* SharedFunctionInfo: numbers of parameters; number of the function in its script */
	u16 code_type;
};

const struct v8 *v8_type __attribute__((unused));
const enum node_kind *node_kind_type __attribute__((unused));
const enum node_event *node_event_type __attribute__((unused));

/* By the number of the process (struct process). User space makes and deletes the entries. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u32);
	__type(value, struct v8);
} nodes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u32); /* frames looked at, of the walk under way */
} node_walk SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NODE_EVENTS);
	__type(key, u32);
	__type(value, u64);
} node_counters SEC(".maps");

static __always_inline void node__count(u32 event)
{
	u64 *c = bpf_map_lookup_elem(&node_counters, &event);
	if (c)
		*c += 1;
}

static __always_inline bool read_u64(u64 *to, u64 at)
{
	return !bpf_probe_read_user(to, sizeof(*to), (void *)at);
}

static __always_inline bool is_object(u64 word) { return (word & OBJECT_BITS) == 1; }
static __always_inline bool is_small(u64 word) { return (u32)word == 0; }

/* The instance type of what a word points to; 0: it points to nothing of V8's. */
static __always_inline u16 object__type(u64 word)
{
	u64 map;
	u16 type = 0;
	if (!is_object(word) || !read_u64(&map, word - 1) || !is_object(map) ||
	    bpf_probe_read_user(&type, sizeof(type), (void *)(map - 1 + INSTANCE_TYPE)))
		return 0;
	return type;
}

/* Node's Heap.Identity */
static __always_inline bool shared__identity(struct v8 *v8, u64 shared, u64 *word)
{
	u64 numbers;
	u32 literal;
	if (!read_u64(&numbers, shared - 1 + v8->length) ||
	    bpf_probe_read_user(&literal, sizeof(literal), (void *)(shared - 1 + v8->literal)))
		return false;
	u64 hash = hash__mix(hash__mix(0, numbers & ((1ULL << 48) - 1)), literal);
	*word = (shared & ((1ULL << HASH_SHIFT) - 1)) | (hash >> HASH_SHIFT) << HASH_SHIFT;
	return true;
}

/* Turns a native frame into one of JavaScript, if it is one. */
static __always_inline void frame__look(struct unwind_state *st, struct v8 *v8, struct frame *f, u64 fp, bool made)
{
	struct {
		u64 offset, bytecode, count, function, context;
	} s;
	if (bpf_probe_read_user(&s, sizeof(s), (void *)(fp - sizeof(s)))) {
		node__count(NODE_UNREADABLE);
		return;
	}
	if (!is_object(s.context))
		return;
	u16 type = object__type(s.function);
	if (type < v8->function_low || type > v8->function_high)
		return;
	u64 shared, data, a, b = 0;
	if (!read_u64(&shared, s.function - 1 + v8->shared) || object__type(shared) != v8->shared_type ||
	    !shared__identity(v8, shared, &a))
		return;
	u8 kind = NODE_FUNCTION;
	u64 pc = f->a;
	if (made) {
		u64 instruction;
		if (!read_u64(&instruction, f->return_address ? pc - sizeof(instruction) : pc))
			return;
		kind = NODE_COMPILED;
		b = a;
		a = (pc & ((1ULL << HASH_SHIFT) - 1)) | (hash__mix(0, instruction) >> HASH_SHIFT) << HASH_SHIFT;
	} else if (is_small(s.offset) && object__type(s.bytecode) == v8->bytecode_type) {
		kind = NODE_INTERPRETED;
		b = s.offset >> 32;
	} else {
		/* A built-in function has no bytecode; its symbol names it. */
		if (!read_u64(&data, shared - 1 + SHARED_DATA))
			return;
		type = object__type(data);
		if (type != v8->bytecode_type && type != v8->code_type)
			return;
	}
	f->unwinder = slot;
	f->kind = kind;
	f->a = a;
	f->b = b;
	st->hash = hash__mix(hash__mix(st->hash, a), b ^ *(u64 *)f);
	node__count(NODE_FRAMES);
}

SEC("perf_event")
int unwind(struct bpf_perf_event_data *ctx)
{
	struct unwind_state *st = unwind__state();
	u32 zero = 0;
	u32 *looked = bpf_map_lookup_elem(&node_walk, &zero);
	if (!st)
		return 0;
	u32 number = st->languages[(slot - FIRST_LANGUAGE_SLOT) % MAX_LANGUAGES];
	struct v8 *v8 = bpf_map_lookup_elem(&nodes, &number);
	if (!looked || !v8) /* the process has just been forgotten; looked cannot be missing: an array of one */
		return unwind__languages(ctx, st, slot, st->outcome);
	if (st->language != slot) {
		st->language = slot;
		*looked = 0;
		node__count(NODE_STACKS);
	}
	u32 at = *looked, end = st->user_frames;
	u32 first = st->frames - st->language_frames - end; /* behind the kernel's */
	for (int i = 0; i < FRAMES_PER_CALL; i++) {
		if (at >= end)
			break;
		u64 fp = st->fps[at % (MAX_USER_FRAMES + 1)];
		/* For the verifier, which knows nothing of a copy of what it has checked. */
		u64 j = first + at;
		asm volatile("" : "+r"(j));
		if (j >= MAX_FRAMES)
			break;
		if (fp)
			frame__look(st, v8, &st->record.frames[j], fp & ~(u64)FRAME_MADE, fp & FRAME_MADE);
		at++;
	}
	*looked = at;
	if (at < end)
		unwind__language_again(ctx, st, slot);
	return unwind__languages(ctx, st, slot, st->outcome);
}
