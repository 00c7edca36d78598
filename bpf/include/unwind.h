/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel's half of the contract between the sampler and its unwinders: the frames, the state of a walk, and the maps
 * that all programs share. Every unwinder includes this text and is loaded onto the sampler's maps, so the structs are
 * declared here once; bpf2go makes their Go types in bpf/sampler only.
 *
 * A walk: bpf/sampler/sampler.bpf.c fills the state with the user registers and tail-calls an unwinder. An unwinder pushes
 * frames with unwind__push(), moves pc, sp and fp, and leaves through unwind__next() (another unwinder, or itself again) or
 * unwind__done(). Whichever program ends the walk runs sample__finish() (sample.h) and so writes the sample's one outcome.
 *
 * Interpreted languages. The native walk goes through the whole stack first, the interpreter's own code too, and leaves through
 * unwind__languages(). Then the program of each language that the process is known to run is called, once: it looks among
 * st->record.frames for frames in the interpreter's loop (if there are none the thread is not in it now, and there is nothing to do),
 * walks the interpreter's own frames, and appends them with unwind__push_language(), leaf first. Code that runs the loop anew begins a
 * new run: the last frame of each run has kind LANGUAGE_ENTRY. It leaves through unwind__languages(), too, with the outcome of the native
 * walk: that one is the sample's. User space puts the runs where the loops are among the native frames (bpf/unwind/merge.go). So no walk
 * goes back and forth between programs: a language costs a tail call or two however its frames are mixed with native ones.
 *
 * A language that compiles has its frames among the native ones already: where those were walked by frame pointer, st->fps has it, and the
 * language turns them into its own where they are (LANGUAGE_PLACED), and takes them into the hash again.
 *
 * Which languages a process runs is in struct process, by language: a number that its user space has chosen, under which the language's
 * own maps have what it knows of the process. 0 is none, which costs nothing. A program is loaded when the first process needs it.
 */
#pragma once

#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

/* Longest kernel stack we keep: perf_event_max_stack's default, PERF_MAX_STACK_DEPTH. */
#define MAX_KERNEL_FRAMES 127
/* Longest user stack we keep, twice perf's default. Deeper ones end with OUTCOME_TOO_DEEP and a mark. */
#define MAX_USER_FRAMES 255
/* Longest stack of interpreted languages we keep, beside the native frames that run them. */
#define MAX_LANGUAGE_FRAMES 255
/* All of them, and one mark that says why the walk ended early. */
#define MAX_FRAMES 640
_Static_assert(MAX_KERNEL_FRAMES + MAX_USER_FRAMES + MAX_LANGUAGE_FRAMES + 1 <= MAX_FRAMES, "a mark always fits");
/* The kernel allows 33 tail calls in a chain (MAX_TAIL_CALL_CNT); we stop before it does, to write an outcome of our own. */
#define MAX_TAIL_CALLS 30
/* What is left to the languages behind the native walk, which calls each once: of its own a language makes this many at most. */
#define MAX_LANGUAGE_CALLS 32
/* User frames for which the first stack of a process carries build ids. */
#define MAX_HINTS 32
/* A just-in-time compiler that flips its pages between writable and executable changes the number at each sample; user space
 * would read the maps no more often than this anyway. In ns. */
#define MAPS_INTERVAL 100000000ULL
/* Slots of the program array: 0 is never used, 1 is the first unwinder of the list in cmd/stoker/agent.go. */
#define MAX_UNWINDERS 16
/* The slots of languages begin behind that of the native walk, which ends in them. */
#define FIRST_LANGUAGE_SLOT 2
#define MAX_LANGUAGES 4

/* What became of a sample that was in scope. Exactly one per sample: taken = sum of outcomes. */
enum outcome {
	OUTCOME_COMPLETE,    /* the walk reached the outermost frame, or there was no user stack to walk */
	OUTCOME_CHAIN_ENDED, /* the walk ended in something that is no frame: callers may be missing */
	OUTCOME_FAULT,       /* user memory could not be read (not resident, or no frame pointer there) */
	OUTCOME_TOO_DEEP,    /* more than MAX_USER_FRAMES frames or MAX_TAIL_CALLS programs */
	OUTCOME_NO_UNWINDER, /* a tail call fell through */
	OUTCOME_NO_ROWS,     /* as CHAIN_ENDED, in code whose unwind rows were not there yet: user space has been asked for them */
	OUTCOME_COMPAT,      /* a 32-bit task: not walked */
	OUTCOME_THINNED,     /* left out by the scope's thinning; its weight is in the samples that stayed */
	OUTCOME_UNDELIVERED, /* counted without its stack: ring full, or the scope's budget of new stacks spent */
	OUTCOME_OVERFLOW,    /* counted per scope only: the window's map was full or busy */
	OUTCOME_COUNT,
};

/* Things worth counting that are no sample's outcome. */
enum event {
	EVENT_EXEC_LOST,    /* an exec, exit or maps record did not fit in the ring: user space looks itself */
	EVENT_HINTS_LOST,   /* build ids of a first stack did not fit */
	EVENT_PROCESS_FULL, /* the process table is full: this process gets no hints and no epochs */
	EVENT_SEEN_FULL,    /* seen could not take a key: its stack will be sent again */
	EVENT_SCOPE_WALKS,  /* cache misses of the cgroup → scope answer */
	EVENT_NO_SPACE,     /* samples of a process whose mappings the kernel side has not been told: walked by frame pointer */
	EVENT_ROWS_MISSING, /* frames in code whose unwind rows are not there yet: walked on by frame pointer */
	EVENT_ROWS_UNASKED, /* of them, those for which user space could not be asked: it is asked again */
	EVENT_NO_RULE,      /* frames in code of which no unwind information speaks: walked on by frame pointer */
	EVENT_UNMAPPED,     /* frames that lie in no mapping we know of: walked on by frame pointer */
	EVENT_COUNT,
};

enum origin {
	ORIGIN_CPU,
	ORIGIN_COUNT,
};

enum sample_context {
	CONTEXT_USER = 1,
	CONTEXT_KERNEL = 2,
};

/* Kinds of frames of slot 0: no unwinder's. */
enum frame_kind {
	FRAME_KERNEL = 1,    /* a: kernel address */
	FRAME_TRUNCATED = 2, /* a: the outcome that ended the walk */
};

/* Kinds of frames that languages append. Of FRAME and ENTRY a names the code, b has a cookie of it in the upper half, by which user
 * space tells that other code is in its place by now, and the instruction in the lower one, in the language's own terms. */
enum language_kind {
	LANGUAGE_FRAME = 1, /* its caller runs in the same loop */
	LANGUAGE_ENTRY = 2, /* native code has called it: what follows belongs to the next loop */
	LANGUAGE_EMPTY = 3, /* a loop that has no frame: a run of its own */
	LANGUAGE_LOST = 4,  /* callers are missing: their memory could not be read, or they never end */
	LANGUAGE_PLACED = 16, /* and above: it has taken the place of a native frame itself; kind, a and b are the language's own */
};

/* Of unwind_state.fps: no frame is at an odd address. */
#define FRAME_MADE 1

struct frame {
	u8 unwinder; /* slot of the program that made it: who reads kind, a and b in user space */
	u8 kind;
	u8 return_address; /* a is a return address: the call is at a - 1 */
	u8 pad[5];
	u64 a;
	u64 b;
};

struct stack_key {
	u64 hash; /* 0: stack not delivered */
	u64 start_boottime;
	u64 exec_id;
	u32 pid;
	u32 epoch;
	u32 scope;
	u8 origin;
	u8 context;
	u8 pad[2];
};

struct count {
	u64 n;
	u64 weight; /* in sampling periods for ORIGIN_CPU */
};

enum record_type {
	RECORD_STACK = 1,
	RECORD_HINTS = 2, /* precedes the first stack of a process */
	RECORD_EXEC = 3,
	RECORD_EXIT = 4,
	RECORD_MAPS = 5, /* the process has more or fewer executable pages than before; at most one per MAPS_INTERVAL */
};

/* What the ring carries. Every record begins with this header; n counts what follows it. */
struct record {
	u32 type;
	u32 n;
	struct stack_key key; /* all but STACK: hash and context are 0 */
};

struct stack_record {
	struct record head;
	struct frame frames[MAX_FRAMES]; /* only head.n of them are sent; leaf first: kernel, user, mark */
};

struct hints_record {
	struct record head;
	struct bpf_stack_build_id ids[MAX_HINTS]; /* in the order of the user frames */
};

/* One walk, one per CPU. Programs of one type do not nest on a CPU (bpf_prog_active), and each origin has its own state. */
struct unwind_state {
	u64 pc, sp, fp;
	u64 lr;	   /* arm64: the link register, if lr_known */
	u64 bx_at; /* x86-64: where rbx was saved, if above BX_UNKNOWN */
	u64 hash;
	u64 weight;
	u64 space; /* the process's: see struct process */
	u32 frames, user_frames, language_frames;
	u32 language; /* slot of the language that is appending its frames; 0: none has begun */
	u32 languages[MAX_LANGUAGES]; /* the process's: see struct process */
	u32 tail_calls;
	u32 outcome;
	u8 return_address; /* pc is one */
	u8 first;	   /* 1: pc, sp and fp are the task's own user registers, so all others are known too; 2: its caller's */
	u8 lr_known;
	u8 guessed;	/* pc was found by a frame pointer that nobody vouches for: it must be in code */
	u8 rows_missing; /* a frame was walked by frame pointer because its rows were not there yet */
	u8 sp_low; /* arm64: sp is only below the frame: the step was by frame pointer */
	u8 pad[2];
	struct stack_record record;
	struct hints_record hints;
	u64 kernel[MAX_KERNEL_FRAMES];
	/* Of each user frame that was walked by its frame pointer, that frame pointer; 0 of others. Compilers that keep one keep there
	 * what they run. FRAME_MADE is set where the code was made at run time. */
	u64 fps[MAX_USER_FRAMES + 1];
};

/* Values of bx_at that are no address. */
enum { BX_IN_REGISTER, BX_UNKNOWN };

struct counters {
	u64 runs;
	u64 idle; /* of them: the CPU had nothing to do */
	u64 taken;
	/* The last answer of scope__of() on this CPU, here because this cache line is warm: what is out of scope costs no more
	 * than this. Only the sampler's own program reads and writes it. */
	u64 last_leaf;
	u64 last_generation; /* 0: none yet */
	u32 last_scope, last_thinning;
	u64 outcomes[OUTCOME_COUNT];
	u64 events[EVENT_COUNT];
};

struct process {
	u64 start_boottime;
	u64 exec_id;
	u32 epoch;
	u32 unwinder;   /* slot to begin with; 0: the first */
	u32 languages[MAX_LANGUAGES]; /* by slot - FIRST_LANGUAGE_SLOT: under which number the language knows the process; 0: not at all */
	u64 space;      /* where an unwinder's user space has put the process's mappings, in its own terms; 0: nowhere */
	u64 exec_pages; /* mm->exec_vm when user space was last told or first saw it: it changes with dlopen and dlclose */
	u64 maps_told;  /* when that was, ns of CLOCK_MONOTONIC; 0: never */
};

struct scope_state {
	s64 stacks_left; /* new stacks this scope may still send in this window */
};

struct rest_key {
	u32 scope;
	u32 origin;
};

/* Sizes marked "Go" are set by bpf/sampler from CPUs and configuration before loading. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct unwind_state);
} unwind_state SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, MAX_UNWINDERS);
	__type(key, u32);
	__type(value, u32);
} unwinders SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ORIGIN_COUNT);
	__type(key, u32);
	__type(value, struct counters);
} counters SEC(".maps");

struct { /* key → 1: the kernel inserts, only user space deletes */
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* Go */
	__type(key, struct stack_key);
	__type(value, u8);
} seen SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096); /* Go */
} stacks SEC(".maps");

struct window_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* Go: from the last window */
	__type(key, struct stack_key);
	__type(value, struct count);
};

struct { /* [0] is the open window; user space replaces it and reads the closed one in peace */
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, u32);
	__array(values, struct window_map);
} window SEC(".maps");

struct { /* what the window could not take; cumulative; user space makes the entries with the scope */
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1); /* Go */
	__type(key, struct rest_key);
	__type(value, struct count);
} rest SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* Go */
	__type(key, u32);
	__type(value, struct scope_state);
} scope_states SEC(".maps");

/* Random per agent, so that nobody can build stacks that collide. */
const volatile u64 hash_seed;

static __always_inline struct counters *counters__of(u32 origin)
{
	return bpf_map_lookup_elem(&counters, &origin);
}

static __always_inline void counters__outcome(u32 origin, u32 outcome)
{
	struct counters *c = counters__of(origin);
	if (c && outcome < OUTCOME_COUNT)
		c->outcomes[outcome]++;
}

static __always_inline void counters__event(u32 origin, u32 event)
{
	struct counters *c = counters__of(origin);
	if (c && event < EVENT_COUNT) /* atomic: a tick can interrupt the tracepoints' programs, which count here too */
		__sync_fetch_and_add(&c->events[event], 1);
}

static __always_inline u64 hash__mix(u64 h, u64 v)
{
	h ^= v;
	h *= 0x9fb21c651e98df25ULL; /* odd, high entropy: one round of a multiply-xorshift hash per word */
	return h ^ (h >> 32);
}

static __always_inline struct unwind_state *unwind__state(void)
{
	u32 zero = 0;
	return bpf_map_lookup_elem(&unwind_state, &zero);
}

/* Appends a frame and takes it into the hash. The caller has checked that there is room. */
static __always_inline void unwind__append(struct unwind_state *st, u8 slot, u8 kind, bool return_address, u64 a, u64 b)
{
	u32 i = st->frames;
	if (i >= MAX_FRAMES) /* for the verifier */
		return;
	struct frame *f = &st->record.frames[i];
	*(u64 *)f = 0;
	f->unwinder = slot;
	f->kind = kind;
	f->return_address = return_address;
	f->a = a;
	f->b = b;
	st->hash = hash__mix(hash__mix(st->hash, a), b ^ *(u64 *)f);
	st->frames = i + 1;
}

/* Appends a user frame; false when the stack is as deep as we keep. */
static __always_inline bool unwind__push(struct unwind_state *st, u8 slot, u8 kind, u64 a, u64 b)
{
	if (st->user_frames >= MAX_USER_FRAMES)
		return false;
	st->user_frames++;
	unwind__append(st, slot, kind, st->return_address, a, b);
	return true;
}

/* Appends a frame of an interpreted language; false when there are as many as we keep. */
static __always_inline bool unwind__push_language(struct unwind_state *st, u8 slot, u8 kind, u64 a, u64 b)
{
	if (st->language_frames >= MAX_LANGUAGE_FRAMES)
		return false;
	st->language_frames++;
	unwind__append(st, slot, kind, false, a, b);
	return true;
}

/* Says that callers are missing. There is room for it when there is none for frames. */
static __always_inline void unwind__language_lost(struct unwind_state *st, u8 slot)
{
	if (st->frames < MAX_FRAMES - 1)
		unwind__append(st, slot, LANGUAGE_LOST, false, 0, 0);
}
