//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Walks native code by unwind rows: what the call frame information of a file says about each of its addresses, in the
 * compact form of bpf/unwind/native/cfi. tables.go puts them into the maps below, for the pages of text that samples hit.
 *
 * One step: the address lies in a mapping of the process; the mapping's file has an index of its pages of text; a page has
 * rows, sorted by address; a row names a rule, which leads to the caller's registers. Code without rows (Go, just-in-time code,
 * what no table speaks of, what has not been built yet) is walked by its frame pointers. x86-64 and arm64 agree on those: fp
 * points at the caller's fp, the return address lies above it (System V ABI x86-64 section 3.2.2, AAPCS64 section 6.4.6).
 */
#include "unwind.h"
#include "sample.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Given at load: what goes into frame.unwinder, and where we stand in the program array. */
const volatile u32 slot;

enum { KIND_NATIVE = 1 /* a: program counter */ };

/* Frames walked before a tail call to ourselves: each costs the verifier some thousand steps, for two binary searches. */
#define FRAMES_PER_CALL 10
_Static_assert(FRAMES_PER_CALL * MAX_TAIL_CALLS >= MAX_USER_FRAMES, "a stack of MAX_USER_FRAMES needs no more tail calls");

/* No code lies below: the zero page is never mapped. */
#define LOWEST_ADDRESS 4096
/* User addresses end below this on both architectures (48 bits and more: the sign bit is the kernel's). */
#define HIGHEST_ADDRESS (1ULL << 56)

/* Sizes of the maps' values. User space reads them from the object; how many values there are it decides. */
#define SPACE_MAPPINGS 4096  /* a process with more executable mappings has no space: the largest honest ones have some 3,000 */
#define SPACE_STEPS 12	     /* of a binary search among them */
#define BANK_ROWS (1U << 18) /* a megabyte */
#define PAGE_STEPS 15	     /* of a binary search among cfi.MaxPageRows rows */
#define MAX_RULES 8192	     /* 1.3 million rows of libLLVM have 800 different ones */
#define PAGE_SHIFT 16	     /* cfi.PageBytes */

/* What is known of a mapping's code. User space writes it, also while we read; we only turn UNKNOWN into ASKED. */
enum mapping_kind {
	MAPPING_UNKNOWN, /* its file has not been looked at */
	MAPPING_ASKED,	 /* and user space knows */
	MAPPING_ROWS,	 /* its pages are in page_index */
	MAPPING_FP,	 /* it has no rows: code that was made at run time keeps frame pointers, if anything */
	MAPPING_NONE,	 /* nothing is known, and nothing will be */
};

struct mapping {
	u64 start, end; /* virtual addresses */
	u64 bias;	/* virtual address minus ELF address */
	u32 pages;	/* index of the file's page 0 in page_index, modulo 2^32: its text may begin further up */
	u32 kind;
};

/* The first of a space's entries. A space is as many mappings of one process, or of several that have the same, in ascending
 * order. It is never changed but for pages and kind. */
struct space_head {
	u64 serial; /* which space it is: never used again, so a process that has been told of another one gets none */
	u32 count;  /* mappings that follow */
	u32 pad[5];
};
_Static_assert(sizeof(struct space_head) == sizeof(struct mapping), "a head takes the place of a mapping");

struct space_bank {
	struct mapping mappings[SPACE_MAPPINGS];
};

struct row_bank {
	u32 rows[BANK_ROWS]; /* the address within its page in the low half, the number of the rule in the high one */
};

struct rule_table {
	u64 rules[MAX_RULES]; /* cfi.Rule.Pack; number 0 is Invalid */
};

enum page_state {
	PAGE_EMPTY, /* nobody has asked for its rows */
	PAGE_ASKED,
	PAGE_ROWS,
	PAGE_NONE, /* it has none */
};

/* A page of text. word changes as a whole: rows are in their place before it says so. */
struct page {
	u64 word; /* first row in bits 0 to 31 (all banks in sequence), their number in 32 to 47, page_state in 56 to 63 */
	u32 used; /* generation in which it was last used */
	u32 pad;
};

/* What the manager is asked for: struct mapping's file, or the rows of one of its pages. */
struct miss {
	u64 start_boottime;
	u64 exec_id;
	u64 address; /* virtual */
	u32 pid;
	u32 page; /* in page_index; all ones: the file itself */
};

const enum mapping_kind *mapping_kind_type __attribute__((unused));
const enum page_state *page_state_type __attribute__((unused));
const struct miss *miss_type __attribute__((unused));
const struct space_head *space_head_type __attribute__((unused));

/* User space maps all of these into its memory and writes there, without system calls. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* Go */
	__type(key, u32);
	__type(value, struct space_bank);
} spaces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* Go */
	__type(key, u32);
	__type(value, struct page);
} page_index SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* Go */
	__type(key, u32);
	__type(value, struct row_bank);
} rows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct rule_table);
} rules SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096); /* Go */
} misses SEC(".maps");

/* Addresses whose rules each CPU remembers. The walk of a warm program finds most of its frames here, at a cache line each;
 * what it takes to find one by binary searches is ten. */
#define KNOWN_RULES 1024
/* Bytes of the stack that are copied at a time: a copy costs as much as reading one word, and holds the next few frames. */
#define STACK_WORDS 32
/* Where the copy of no stack is: further from any user address than a copy is long. */
#define NO_STACK (1ULL << 63)

/* What is true of an address until the generation ends: a space never changes but from what is not known to what is, and what is
 * not known is not kept. Once a generation everything is looked up again, so that pages.used says what is used. */
struct known_rule {
	u64 address;
	u64 tag; /* the space's serial above, the generation below; 0: none */
	u64 rule;
};

/* What this program keeps on each CPU. Programs of one type do not nest there. */
struct memory {
	u64 stack_at; /* address of stack[0]; what is copied is good for one run of the program */
	u64 stack[STACK_WORDS];
	struct known_rule known[KNOWN_RULES];
};
_Static_assert(sizeof(struct memory) <= 32 << 10, "the kernel has no larger values per CPU (PCPU_MIN_UNIT_SIZE)");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct memory);
} memories SEC(".maps");

/* Raised by user space from time to time: what was used last tells what to evict. */
volatile u32 generation = 1;

/* cfi.Kind */
enum rule_kind {
	RULE_INVALID,
	RULE_STOP,
	RULE_NORMAL,
	RULE_DEREF,
	RULE_INDEXED,
	RULE_PLT,
	RULE_SIGNAL,
	RULE_FP,
};

/* Two that no table has: of kind INVALID, because there is none yet; of kind FP, because it is the best that can be hoped for. */
#define RULE_MISSING (1ULL << 8)
#define RULE_HOPE (RULE_FP | 1ULL << 8)

/* cfi.Place; of a return address AT_FP does not exist and ABOVE takes LOST's place. */
enum place { UNCHANGED, AT_CFA, AT_FP, LOST, ABOVE = LOST };

/* A frame pointer that leads nowhere: no frame is at an odd address. */
#define NO_FP 1

/* cfi.Rule.Pack */
static __always_inline u32 rule__kind(u64 r) { return r & 7; }
static __always_inline u32 rule__fp(u64 r) { return (r >> 3) & 3; }
static __always_inline u32 rule__ra(u64 r) { return (r >> 5) & 3; }
static __always_inline u32 rule__base(u64 r) { return (r >> 8) & 31; }
static __always_inline s64 rule__cfa(u64 r) { return ((s64)(r << 32) >> 45) * 8; }
static __always_inline s64 rule__low(u64 r) { return (s64)(r << 16) >> 48; } /* FPAt / 8, or PLT's Plus */
static __always_inline s64 rule__last(u64 r) { return (s64)r >> 48; }	      /* RAAt / 8, its register, Plus / 8, or BXAt / 8 */

#if defined(__TARGET_ARCH_arm64)
enum { REG_FP = 29, REG_LR = 30, REG_SP = 31 };
#else
enum { REG_AX = 0, REG_BX = 3, REG_FP = 6, REG_SP = 7 };
/* Where the registers of DWARF's numbers are in struct pt_regs (System V ABI x86-64 figure 3.36). */
static const u8 dwarf_to_pt_regs[16] = { 10, 12, 11, 5, 13, 14, 4, 19, 9, 8, 7, 6, 3, 2, 1, 0 };
#endif

/* The bits of a return address that are address. On arm64 it may be signed, and the signature begins right above the largest
 * user address (Armv8.3-A PAuth): at bit 39, 42, 47, 48 or 52, as the kernel was built and the CPU can. */
static __always_inline u64 code_address_mask(void)
{
#if defined(__TARGET_ARCH_arm64)
	struct task_struct *task = bpf_get_current_task_btf();
	return BPF_CORE_READ(task, mm, task_size) - 1; /* all bits if it cannot be read */
#else
	return ~0ULL;
#endif
}

/* Of unwind_state.first. */
enum { IN_FIRST_FRAME = 1, IN_SECOND_FRAME = 2 };

/* The value of a register by its DWARF number; false if it is not known in this frame. */
static __always_inline bool register__value(struct unwind_state *st, u32 number, u64 *value)
{
	if (number == REG_SP) {
		*value = st->sp;
		return true;
	}
	if (number == REG_FP) {
		*value = st->fp;
		return true;
	}
#if defined(__TARGET_ARCH_arm64)
	if (number == REG_LR) {
		*value = st->lr;
		return st->lr_known;
	}
	if (number > REG_SP) /* no rule says so */
		return false;
	/* The compiler may go on with a signed copy of what it has checked, of which the verifier knows nothing. */
	u64 checked = number;
	asm volatile("" : "+r"(checked));
	number = checked & REG_SP;
	bool known = st->first == IN_FIRST_FRAME;
#else
	if (number >= sizeof(dwarf_to_pt_regs))
		return false;
	/* rax in the second frame, too: a row asks for it above a call only in hand-written code, as OpenSSL's AES-GCM, which calls nothing
	 * that changes it. */
	bool known = st->first == IN_FIRST_FRAME || (st->first == IN_SECOND_FRAME && number == REG_AX);
	if (number == REG_BX) {
		if (st->bx_at > BX_UNKNOWN)
			return !bpf_probe_read_user(value, sizeof(*value), (void *)st->bx_at);
		known = st->bx_at == BX_IN_REGISTER;
	}
	number = dwarf_to_pt_regs[number];
#endif
	if (!known)
		return false;
	void *regs = (void *)bpf_task_pt_regs(bpf_get_current_task_btf());
	return !bpf_probe_read_kernel(value, sizeof(*value), regs + number * sizeof(u64));
}

/* The process's space, or nothing. */
static __always_inline struct space_bank *space__of(struct unwind_state *st, u32 *first, u32 *count)
{
	u32 at = st->space; /* index of the head, all banks in sequence; the serial is above */
	if (!st->space)
		return 0;
	u32 bank = at / SPACE_MAPPINGS;
	struct space_bank *b = bpf_map_lookup_elem(&spaces, &bank);
	if (!b)
		return 0;
	struct space_head *head = (void *)&b->mappings[at % SPACE_MAPPINGS];
	if ((u32)head->serial != st->space >> 32) /* it has been given up since */
		return 0;
	*first = at % SPACE_MAPPINGS + 1;
	*count = head->count;
	return b;
}

/* The mapping that holds an address, or nothing. */
static __always_inline struct mapping *space__find(struct space_bank *b, u32 first, u32 count, u64 address)
{
	u32 base = first, n = count;
	for (int i = 0; i < SPACE_STEPS; i++) {
		if (n < 2)
			break;
		u32 half = n / 2;
		if (b->mappings[(base + half) % SPACE_MAPPINGS].start <= address)
			base += half;
		n -= half;
	}
	struct mapping *m = &b->mappings[base % SPACE_MAPPINGS];
	if (!n || address < m->start || address >= m->end)
		return 0;
	return m;
}

/* Asks user space, once: only a program that has changed what says so comes here. False if it could not be asked. */
static __always_inline bool miss__tell(struct unwind_state *st, u64 address, u32 page)
{
	struct stack_key *key = &st->record.head.key;
	struct miss miss = {
		.start_boottime = key->start_boottime, .exec_id = key->exec_id, .address = address, .pid = key->pid, .page = page,
	};
	if (!bpf_ringbuf_output(&misses, &miss, sizeof(miss), 0))
		return true;
	counters__event(key->origin, EVENT_ROWS_UNASKED);
	return false;
}

/* Zero, which the compiler takes for something that depends on v. */
static __always_inline u64 zero_after(u64 v)
{
#if defined(__bpf__)
	asm volatile("%0 &= 0" : "+r"(v));
	return v;
#else
	return 0; /* user space, where nobody writes while we read */
#endif
}

/* The rule for an address in a mapping, packed. */
static __always_inline u64 rule__find(struct unwind_state *st, struct mapping *m, u64 address)
{
	u32 kind = m->kind;
	if (kind == MAPPING_FP)
		return RULE_HOPE;
	if (kind == MAPPING_NONE)
		return RULE_INVALID;
	if (kind != MAPPING_ROWS) {
		if (kind == MAPPING_UNKNOWN &&
		    __sync_val_compare_and_swap(&m->kind, MAPPING_UNKNOWN, MAPPING_ASKED) == MAPPING_UNKNOWN &&
		    !miss__tell(st, address, ~0U))
			__sync_val_compare_and_swap(&m->kind, MAPPING_ASKED, MAPPING_UNKNOWN);
		return RULE_MISSING;
	}
	/* What user space wrote before it wrote kind is read after it: an address that depends on kind keeps the order. */
	m = (void *)m + zero_after(kind);
	u64 at = address - m->bias;
	u32 i = m->pages + (u32)(at >> PAGE_SHIFT);
	struct page *page = bpf_map_lookup_elem(&page_index, &i);
	if (!page)
		return RULE_INVALID;
	u32 now = generation;
	if (page->used != now)
		page->used = now;
	u64 word = *(volatile u64 *)&page->word;
	u32 state = word >> 56;
	if (state == PAGE_NONE)
		return RULE_INVALID;
	if (state != PAGE_ROWS) {
		if (state == PAGE_EMPTY &&
		    __sync_val_compare_and_swap(&page->word, 0, (u64)PAGE_ASKED << 56) == 0 && !miss__tell(st, address, i))
			__sync_val_compare_and_swap(&page->word, (u64)PAGE_ASKED << 56, 0);
		return RULE_MISSING;
	}
	u32 first = word, n = (word >> 32) & 0xffff, low = (u16)at;
	u32 bank = first / BANK_ROWS;
	struct row_bank *b = bpf_map_lookup_elem(&rows, &bank);
	if (!b || !n)
		return RULE_INVALID;
	for (int step = 0; step < PAGE_STEPS; step++) {
		if (n < 2)
			break;
		u32 half = n / 2;
		if ((u16)b->rows[(first + half) % BANK_ROWS] <= low)
			first += half;
		n -= half;
	}
	u32 row = b->rows[first % BANK_ROWS];
	if ((u16)row > low) /* before the first row of the page */
		return RULE_INVALID;
	u32 zero = 0;
	struct rule_table *t = bpf_map_lookup_elem(&rules, &zero);
	if (!t)
		return RULE_INVALID;
	return t->rules[(row >> 16) % MAX_RULES];
}

/* Reads a word of the stack, from the copy if it is there; false if it cannot be read. */
static __always_inline bool stack__word(struct memory *mem, u64 address, u64 *out)
{
	u64 at = address - mem->stack_at;
	if (at > sizeof(mem->stack) - sizeof(*out) || (at & 7)) {
		if (bpf_probe_read_user(mem->stack, sizeof(mem->stack), (void *)address)) { /* near the end of what can be read */
			mem->stack_at = NO_STACK;
			return !bpf_probe_read_user(out, sizeof(*out), (void *)address);
		}
		mem->stack_at = address;
		at = 0;
	}
	*out = mem->stack[(u32)at / sizeof(u64) % STACK_WORDS];
	return true;
}

/* How a step ended. */
#define STEPPED OUTCOME_COUNT

/* Where the walk stops because what comes is no frame. */
static __always_inline u32 walk__lost(struct unwind_state *st)
{
	return st->rows_missing ? OUTCOME_NO_ROWS : OUTCOME_CHAIN_ENDED;
}

/* Takes over the caller's registers. */
static __always_inline u32 walk__caller(struct unwind_state *st, u64 ra, u64 sp, u64 fp, u64 code_mask)
{
	ra &= code_mask;
	if (ra == 0)
		return OUTCOME_COMPLETE;
	if (ra < LOWEST_ADDRESS || ra >= HIGHEST_ADDRESS)
		return walk__lost(st);
	st->pc = ra;
	st->sp = sp;
	st->fp = fp;
	st->return_address = 1;
	st->first = st->first == IN_FIRST_FRAME ? IN_SECOND_FRAME : 0;
	st->lr_known = st->sp_low = 0;
	return STEPPED;
}

/* A step by frame pointer. Where a table says so it is Go's code, which changes stacks on the way (runtime.systemstack), so
 * there a caller's frame may lie anywhere; elsewhere the stack grows down. */
static __always_inline u32 walk__fp(struct unwind_state *st, struct memory *mem, u64 rule, bool guarded, u64 code_mask)
{
	u64 fp, ra;
	if (st->fp == 0) /* the ABI's mark for the outermost frame, where frame pointers are kept */
		return rule__kind(rule) == RULE_FP ? OUTCOME_COMPLETE : walk__lost(st);
	if ((st->fp & 7) || (st->fp < st->sp && !(rule == RULE_FP && guarded)))
		return walk__lost(st);
	if (!stack__word(mem, st->fp, &fp) || !stack__word(mem, st->fp + sizeof(fp), &ra))
		return OUTCOME_FAULT;
	if (ra == 0 && rule__kind(rule) != RULE_FP)
		return walk__lost(st);
	st->guessed = guarded;
	st->bx_at = BX_UNKNOWN;
	u32 ended = walk__caller(st, ra, st->fp + sizeof(fp) + sizeof(ra), fp, code_mask);
#if defined(__TARGET_ARCH_arm64)
	/* A frame record is at the bottom of its frame or anywhere in it (AAPCS64 6.4.6), so where the frame ends nobody has said. */
	st->sp_low = 1;
#endif
	return ended;
}

/* Out of a signal handler: the interrupted registers are on the stack. */
static __always_inline u32 walk__signal(struct unwind_state *st)
{
#if defined(__TARGET_ARCH_arm64)
	/* struct rt_sigframe: siginfo of 128 bytes, then struct ucontext, whose struct sigcontext is at 176; arch/arm64/kernel/signal.c */
	struct {
		u64 fp, lr, sp, pc;
	} r;
	if (bpf_probe_read_user(&r, sizeof(r), (void *)st->sp + 544))
		return OUTCOME_FAULT;
	st->lr = r.lr;
	st->lr_known = 1;
#else
	/* struct rt_sigframe without pretcode: struct ucontext, whose gregs are at 40; arch/x86/include/asm/sigframe.h */
	struct {
		u64 fp, bx, dx, ax, cx, sp, pc;
	} r;
	if (bpf_probe_read_user(&r, sizeof(r), (void *)st->sp + 120))
		return OUTCOME_FAULT;
	st->lr_known = 0;
	st->bx_at = st->sp + 128;
#endif
	if (r.pc < LOWEST_ADDRESS || r.pc >= HIGHEST_ADDRESS)
		return walk__lost(st);
	st->pc = r.pc;
	st->sp = r.sp;
	st->fp = r.fp;
	st->return_address = 0;
	st->guessed = st->first = st->sp_low = 0;
	return STEPPED;
}

/* A step by a rule of kind NORMAL, DEREF, INDEXED or PLT. */
static __always_inline u32 walk__rule(struct unwind_state *st, struct memory *mem, u64 rule, u64 code_mask)
{
	u32 kind = rule__kind(rule), ra_place = rule__ra(rule), fp_place = rule__fp(rule);
	s64 last = rule__last(rule) * 8, fp_at = rule__low(rule) * 8;
	u64 cfa = st->sp, ra, fp = st->fp;
	if (kind == RULE_PLT) {
		cfa += (st->pc & 15) >= (u64)rule__low(rule) ? 8 : 0;
		fp_place = UNCHANGED;
	} else if (!register__value(st, rule__base(rule), &cfa)) {
		return walk__lost(st);
	} else if (kind == RULE_INDEXED) {
		cfa = st->sp + 8 * cfa;
	}
	cfa += rule__cfa(rule);
#if defined(__TARGET_ARCH_arm64)
	/* The stack pointer is needed and not known. A function that saves the frame pointer and right above it the return address
	 * makes a frame record, to which the frame pointer leads; of another one nothing is known. */
	if (st->sp_low && rule__base(rule) == REG_SP) {
		if (kind != RULE_NORMAL || fp_place != AT_CFA || ra_place != AT_CFA || last != fp_at + 8 || (st->fp & 7) || st->fp < st->sp)
			return walk__lost(st);
		cfa = st->fp - fp_at;
	}
#endif
	if (kind == RULE_DEREF || kind == RULE_INDEXED) {
		if (bpf_probe_read_user(&cfa, sizeof(cfa), (void *)cfa))
			return OUTCOME_FAULT;
		cfa += last;
		st->bx_at = BX_UNKNOWN;
	} else if (kind == RULE_NORMAL && ra_place == ABOVE && last) {
		st->bx_at = cfa + last;
	}
	/* The stack grows down. A frame of size 0 there is only where the return address is in a register. */
	if (cfa < st->sp || (cfa == st->sp && ra_place != UNCHANGED))
		return walk__lost(st);
	if (fp_place == LOST)
		fp = NO_FP;
	/* The frame pointer first: it lies below, so the copy of the stack holds the return address too. */
	if (fp_place == AT_CFA || fp_place == AT_FP) {
		if (!stack__word(mem, (fp_place == AT_CFA ? cfa : st->fp) + fp_at, &fp))
			return OUTCOME_FAULT;
	}
	if (ra_place == UNCHANGED) {
		if (!register__value(st, rule__last(rule), &ra))
			return walk__lost(st);
	} else if (!stack__word(mem, cfa + (ra_place == ABOVE ? -8 : last), &ra)) {
		return OUTCOME_FAULT;
	}
	st->guessed = 0;
	return walk__caller(st, ra, cfa, fp, code_mask);
}

/* The rule for the address at which the walk stands; false if it stands where no code is, and so has been lost before. */
static __always_inline bool walk__find(struct unwind_state *st, struct memory *mem, struct space_bank *space, u32 first, u32 count,
				       u64 tag, u64 *rule)
{
	u64 at = st->pc - st->return_address;
	struct known_rule *known = &mem->known[hash__mix(0, at) % KNOWN_RULES];
	if (known->address == at && known->tag == tag) {
		*rule = known->rule;
		return true;
	}
	struct mapping *m = space__find(space, first, count, at);
	if (!m) {
		*rule = RULE_INVALID;
		if (st->guessed)
			return false;
		counters__event(st->record.head.key.origin, EVENT_UNMAPPED);
		return true;
	}
	*rule = rule__find(st, m, at);
	if (*rule != RULE_MISSING) {
		known->address = at;
		known->tag = tag;
		known->rule = *rule;
	}
	return true;
}

SEC("perf_event")
int unwind(struct bpf_perf_event_data *ctx)
{
	struct unwind_state *st = unwind__state();
	u32 zero = 0;
	struct memory *mem = bpf_map_lookup_elem(&memories, &zero);
	if (!st)
		return 0;
	if (!mem) /* cannot be: an array of one */
		return unwind__done(st, OUTCOME_NO_UNWINDER);
	mem->stack_at = NO_STACK;
	u64 code_mask = code_address_mask();
	u32 origin = st->record.head.key.origin;
	u32 first = 0, count = 0;
	struct space_bank *space = space__of(st, &first, &count);
	u64 tag = (st->space & 0xffffffff00000000) | generation;
	if (!space) {
		if (!st->user_frames)
			counters__event(origin, EVENT_NO_SPACE);
		st->space = 0;
	}
	for (int i = 0; i < FRAMES_PER_CALL; i++) {
		u64 rule = RULE_FP;
		if (space && !walk__find(st, mem, space, first, count, tag, &rule))
			return unwind__languages(ctx, st, slot, walk__lost(st));
		if (!unwind__push(st, slot, KIND_NATIVE, st->pc, 0))
			return unwind__languages(ctx, st, slot, OUTCOME_TOO_DEEP);
		u32 ended;
		u32 kind = rule__kind(rule);
		/* Go's code, of which a table speaks, is no other language's. */
		bool framed = space && (kind == RULE_INVALID || rule == RULE_HOPE);
		u32 last = st->user_frames - 1;
		if (last <= MAX_USER_FRAMES)
			st->fps[last] = framed ? (st->fp & ~7ULL) | (rule == RULE_HOPE ? FRAME_MADE : 0) : 0;
		if (kind == RULE_STOP) {
			ended = OUTCOME_COMPLETE;
		} else if (kind == RULE_SIGNAL) {
			ended = walk__signal(st);
		} else if (kind != RULE_INVALID && kind != RULE_FP) {
			ended = walk__rule(st, mem, rule, code_mask);
		} else {
			if (rule == RULE_MISSING) {
				counters__event(origin, EVENT_ROWS_MISSING);
				st->rows_missing = 1;
			} else if (kind == RULE_INVALID) {
				counters__event(origin, EVENT_NO_RULE);
			}
			ended = walk__fp(st, mem, rule, space != 0, code_mask);
		}
		if (ended != STEPPED)
			return unwind__languages(ctx, st, slot, ended);
	}
	return unwind__next(ctx, st, slot);
}
