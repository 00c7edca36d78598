/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The unwinder of the kernel, in user space: native.bpf.c as it is, compiled by gcc, with functions of this file in the place
 * of the kernel's helpers. So it can be single-stepped, and run under gcc's sanitizers.
 *
 *   walk CASE         walks one stack. CASE is what userspace_test.go writes: registers, tables and memory. Prints frames,
 *                     what user space is asked for, and the outcome.
 *   walk fuzz SEED N  walks N stacks of random registers, tables and memory. The sanitizers and the checks below are the judges.
 *
 * gcc -g -fsanitize=address,undefined -D__TARGET_ARCH_x86 -I. -I../../../include walk.c
 */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../native.bpf.c"

static void die(const char *what)
{
	fprintf(stderr, "walk: %s\n", what);
	exit(1);
}

/* A piece of the process's memory. */
struct piece {
	u64 at, size;
	unsigned char *bytes;
};

static struct piece *pieces;
static u64 pieces_n;
static struct {
	u64 n;
	struct space_bank *at;
} space_banks;
static struct {
	u64 n;
	struct page *at;
} pages;
static struct {
	u64 n;
	struct row_bank *at;
} row_banks;
static struct rule_table *rule_table;

static struct pt_regs registers;
static struct mm_struct mm;
static struct task_struct task = { .mm = &mm };
static struct unwind_state *state; /* on the heap, where the sanitizer sees its ends */
static struct memory *memory;
static struct counters counted;
static struct count *window_value; /* the window has one key at most */
static struct stack_key window_key;
static char window_of_one;
static struct scope_state budget = { .stacks_left = 1 << 20 };
static bool is_seen;

/* Those that a walk can have. */
static const char *const outcome_names[OUTCOME_COUNT] = {
	[OUTCOME_COMPLETE] = "complete", [OUTCOME_CHAIN_ENDED] = "chain_ended", [OUTCOME_FAULT] = "fault",
	[OUTCOME_TOO_DEEP] = "too_deep", [OUTCOME_NO_ROWS] = "no_rows",
};

static jmp_buf tail_call;
static bool quiet;
static u64 reads, delivered;

/* An array's entry, or nothing. */
#define entry(array, key) (*(const u32 *)(key) < (array).n ? (void *)&(array).at[*(const u32 *)(key)] : 0)

void *bpf_map_lookup_elem(void *map, const void *key)
{
	if (map == &unwind_state)
		return state;
	if (map == &memories)
		return memory;
	if (map == &counters)
		return &counted;
	if (map == &spaces)
		return entry(space_banks, key);
	if (map == &page_index)
		return entry(pages, key);
	if (map == &rows)
		return entry(row_banks, key);
	if (map == &rules)
		return rule_table;
	if (map == &scope_states)
		return &budget;
	if (map == &seen)
		return is_seen ? &is_seen : 0;
	if (map == &window)
		return &window_of_one;
	if (map == &window_of_one)
		return window_value && !memcmp(key, &window_key, sizeof(window_key)) ? window_value : 0;
	die("a map that nobody knows is read");
	return 0;
}

long bpf_map_update_elem(void *map, const void *key, const void *value, u64 flags)
{
	static struct count one;
	if (map == &seen) {
		is_seen = true;
		return 0;
	}
	if (map != &window_of_one)
		die("a map that nobody knows is written");
	if (window_value && !memcmp(key, &window_key, sizeof(window_key)))
		return flags == BPF_NOEXIST ? -EEXIST : 0;
	memcpy(&window_key, key, sizeof(window_key));
	memcpy(&one, value, sizeof(one));
	window_value = &one;
	return 0;
}

/* As the kernel's, it clears what it could not fill. */
long bpf_probe_read_user(void *to, u32 size, const void *from)
{
	u64 at = (u64)from;
	reads++;
	for (u64 i = 0; i < pieces_n; i++) {
		struct piece *p = &pieces[i];
		if (at >= p->at && at - p->at <= p->size && size <= p->size - (at - p->at)) {
			memcpy(to, p->bytes + (at - p->at), size);
			return 0;
		}
	}
	memset(to, 0, size);
	return -14; /* EFAULT */
}

long bpf_probe_read_kernel(void *to, u32 size, const void *from)
{
	u64 at = (u64)from, first = (u64)&registers;
	if (at < first || at - first > sizeof(registers) || size > sizeof(registers) - (at - first))
		die("the kernel's memory is read where no registers are");
	memcpy(to, from, size);
	return 0;
}

long bpf_ringbuf_output(void *ring, void *data, u64 size, u64 flags)
{
	if (ring == &misses) {
		struct miss *m = data;
		if (size != sizeof(*m))
			die("a miss of another size");
		if (!quiet)
			printf("miss %llx %x\n", m->address, m->page);
		return 0;
	}
	struct stack_record *r = data;
	if (ring != &stacks || r->head.n > MAX_FRAMES || size != sizeof(r->head) + r->head.n * sizeof(struct frame))
		die("a record that is none");
	delivered++;
	for (u32 i = 0; i < r->head.n && !quiet; i++) {
		struct frame *f = &r->frames[i];
		if (f->kind == KIND_NATIVE)
			printf("frame %llx %d\n", f->a, f->return_address);
	}
	return 0;
}

long bpf_tail_call(void *ctx, void *programs, u32 to)
{
	if (programs != &unwinders || to != slot) /* the process runs no language */
		die("a tail call to another program");
	longjmp(tail_call, 1);
}

struct task_struct *bpf_get_current_task_btf(void) { return &task; }
long bpf_task_pt_regs(struct task_struct *t) { return (long)&registers; }

/* One run of the sampler, from where it calls the first unwinder. Returns the outcome. */
static u32 walk(u64 space)
{
	static volatile u32 runs;
	struct counters before = counted;
	memset(state, 0xa5, sizeof(*state)); /* what the sampler does not set is what the last walk left */
	state->frames = state->user_frames = state->language_frames = state->language = 0;
	memset(state->languages, 0, sizeof(state->languages));
	state->return_address = state->guessed = state->rows_missing = 0;
	state->first = 1;
	state->space = space;
	state->hash = hash_seed;
	state->weight = 1;
	state->tail_calls = 1;
	memset(&state->record.head.key, 0, sizeof(state->record.head.key));
	state->record.head.key.pid = 1;
#if defined(__TARGET_ARCH_x86)
	state->pc = registers.ip;
	state->sp = registers.sp;
	state->fp = registers.bp;
	state->lr_known = 0;
	state->bx_at = BX_IN_REGISTER;
#else
	state->pc = registers.user_regs.pc;
	state->sp = registers.user_regs.sp;
	state->fp = registers.user_regs.regs[29];
	state->lr = registers.user_regs.regs[30];
	state->lr_known = 1;
#endif
	reads = 0;
	runs = 0;
	setjmp(tail_call);
	if (++runs > MAX_TAIL_CALLS)
		die("more tail calls than the kernel allows");
	unwind(0);

	/* A frame takes three reads of the stack at most, each tried twice. */
	if (reads > 6 * MAX_USER_FRAMES + 6)
		die("a walk reads without end");
	if (state->user_frames > MAX_USER_FRAMES || state->frames > MAX_USER_FRAMES + 1)
		die("more frames than there can be");
	u32 outcome = OUTCOME_COUNT;
	u64 outcomes = 0;
	for (u32 i = 0; i < OUTCOME_COUNT; i++) {
		if (counted.outcomes[i] != before.outcomes[i])
			outcome = i;
		outcomes += counted.outcomes[i] - before.outcomes[i];
	}
	if (outcomes != 1 || !outcome_names[outcome])
		die("not one outcome, or one that no walk has");
	return outcome;
}

static void *allocate(u64 n, u64 size)
{
	void *p = n <= 1 << 24 ? calloc(n ? n : 1, size) : 0;
	if (!p)
		die("not so much memory");
	return p;
}

static void setup(void)
{
	state = allocate(1, sizeof(*state));
	memory = allocate(1, sizeof(*memory));
}

static void load(FILE *f, void *to, u64 size)
{
	if (size && fread(to, size, 1, f) != 1)
		die("the case is cut");
}

static u64 load_u64(FILE *f)
{
	u64 v;
	load(f, &v, sizeof(v));
	return v;
}

/* In the order of userspace_test.go. */
static int walk_case(const char *path)
{
	FILE *f = fopen(path, "rb");
	if (!f)
		die("the case cannot be opened");
	load(f, &registers, sizeof(registers));
	mm.task_size = load_u64(f);
	u64 space = load_u64(f);
	generation = load_u64(f);
	space_banks.n = load_u64(f);
	space_banks.at = allocate(space_banks.n, sizeof(*space_banks.at));
	load(f, space_banks.at, space_banks.n * sizeof(*space_banks.at));
	pages.n = load_u64(f);
	pages.at = allocate(pages.n, sizeof(*pages.at));
	load(f, pages.at, pages.n * sizeof(*pages.at));
	row_banks.n = load_u64(f);
	row_banks.at = allocate(row_banks.n, sizeof(*row_banks.at));
	load(f, row_banks.at, row_banks.n * sizeof(*row_banks.at));
	rule_table = allocate(1, sizeof(*rule_table));
	load(f, rule_table, sizeof(*rule_table));
	pieces_n = load_u64(f);
	pieces = allocate(pieces_n, sizeof(*pieces));
	for (u64 i = 0; i < pieces_n; i++) {
		pieces[i].at = load_u64(f);
		pieces[i].size = load_u64(f);
		pieces[i].bytes = allocate(pieces[i].size, 1);
		load(f, pieces[i].bytes, pieces[i].size);
	}
	fclose(f);

	u32 outcome = walk(space);
	printf("outcome %s\n", outcome_names[outcome]);
	/* Once more, by the rules that the first walk has remembered: it has to be the same stack. */
	quiet = true;
	u64 hash = window_key.hash;
	if (walk(space) != outcome || window_value->n != 2 || window_key.hash != hash || delivered != 1)
		die("the second walk is another one");
	return 0;
}

/* xorshift64* */
static u64 seed;
static u64 random_u64(void)
{
	seed ^= seed >> 12;
	seed ^= seed << 25;
	seed ^= seed >> 27;
	return seed * 0x2545f4914f6cdd1dULL;
}
static u64 below(u64 n) { return random_u64() % n; }

enum { CODE = 0x400000, CODE_PAGES = 8, STACK = 0x7f0000000000, STACK_BYTES = 8192 };

static bool tame; /* most words lead somewhere, so that walks are long */

/* A word as stacks have them, and as they do not. */
static u64 random_word(void)
{
	switch (below(tame ? 2048 : 8)) {
	case 0:
		return random_u64();
	case 1:
		return 0;
	case 2:
	case 3:
	case 4:
		return CODE + below(CODE_PAGES << PAGE_SHIFT);
	case 5:
		return STACK + STACK_BYTES - 8 + below(16); /* the end */
	case 6:
	case 7:
		return STACK + below(STACK_BYTES) / 8 * 8;
	default:
		return CODE + below(CODE_PAGES << PAGE_SHIFT);
	}
}

static u64 random_rule(void)
{
	if (below(tame ? 256 : 8) == 0)
		return random_u64();
	u64 kind = tame || below(8) < 6 ? RULE_NORMAL : below(8);
	u64 base = tame || below(4) ? REG_SP : below(32);
	u64 cfa = below(tame ? 3 : 16) + 1, fp_at = -(below(4) + 1);
	return kind | (tame ? below(2) : below(4)) << 3 | (tame || below(4) ? ABOVE : below(4)) << 5 | base << 8 | cfa << 13 | (fp_at & 0xffff) << 32 |
	       (below(4) ? 0 : (random_u64() & 0xffff) << 48);
}

static int fuzz(u64 n)
{
	u64 outcomes[OUTCOME_COUNT] = {}, frames = 0;
	static struct piece stack = { .at = STACK, .size = STACK_BYTES };
	stack.bytes = allocate(STACK_BYTES, 1);
	pieces = &stack;
	pieces_n = 1;
	space_banks.n = row_banks.n = 1;
	space_banks.at = allocate(1, sizeof(*space_banks.at));
	row_banks.at = allocate(1, sizeof(*row_banks.at));
	rule_table = allocate(1, sizeof(*rule_table));
	pages.n = CODE_PAGES;
	pages.at = allocate(CODE_PAGES, sizeof(*pages.at));
	quiet = true;
	for (u64 i = 0; i < n; i++) {
		if (i % 16 == 0) { /* other tables: in a new generation, as what is remembered is of the old ones */
			generation++;
			tame = below(2);
			for (u32 r = 1; r < 64; r++)
				rule_table->rules[r] = random_rule();
			struct space_head *head = (void *)&space_banks.at->mappings[0];
			head->serial = below(16) ? 1 : 2;
			head->count = tame || below(8) ? CODE_PAGES : below(8) ? random_u64() % SPACE_MAPPINGS : random_u64();
			for (u32 m = 0; m < CODE_PAGES; m++) {
				struct mapping *e = &space_banks.at->mappings[m + 1];
				*e = (struct mapping){ .start = CODE + (m << PAGE_SHIFT), .end = CODE + ((m + 1) << PAGE_SHIFT), .bias = CODE,
						       .kind = tame || below(4) ? MAPPING_ROWS : below(6) };
				if (!tame && below(16) == 0)
					*e = (struct mapping){ random_u64(), random_u64(), random_u64(), random_u64(), below(6) };
				u64 rows_n = below(200) + 1, first = below(BANK_ROWS);
				pages.at[m].word = first | rows_n << 32 | (u64)(tame || below(8) ? PAGE_ROWS : below(4)) << 56;
				if (!tame && below(16) == 0)
					pages.at[m].word = random_u64();
				for (u64 r = 0; r < rows_n; r++)
					row_banks.at->rows[(first + r) % BANK_ROWS] =
						(r * (65536 / rows_n)) | (below(tame ? 1024 : 32) ? 1 + below(63) : random_u64() & 0xffff) << 16;
			}
		}
		for (u32 w = 0; w < STACK_BYTES / 8; w++) {
			u64 word = random_word();
			memcpy(stack.bytes + w * 8, &word, 8);
		}
		for (u32 w = 0; w < sizeof(registers) / 8; w++) {
			u64 word = random_word();
			memcpy((char *)&registers + w * 8, &word, 8);
		}
		mm.task_size = 1ULL << 47;
		if (below(8)) {
#if defined(__TARGET_ARCH_x86)
			registers.sp = STACK + below(64) * 8;
			registers.ip = CODE + below(CODE_PAGES << PAGE_SHIFT);
#else
			registers.user_regs.sp = STACK + below(64) * 8;
			registers.user_regs.pc = CODE + below(CODE_PAGES << PAGE_SHIFT);
#endif
		}
		is_seen = false;
		window_value = 0;
		outcomes[walk(below(8) ? 1ULL << 32 : below(2) ? 0 : random_u64())]++;
		frames += state->user_frames;
	}
	printf("frames %llu\n", frames);
	for (u32 i = 0; i < OUTCOME_COUNT; i++)
		if (outcome_names[i])
			printf("outcome %s %llu\n", outcome_names[i], outcomes[i]);
	return 0;
}

int main(int argc, char **argv)
{
	setup();
	if (argc == 2)
		return walk_case(argv[1]);
	if (argc == 4 && !strcmp(argv[1], "fuzz")) {
		seed = strtoull(argv[2], 0, 0) * 2 + 1;
		return fuzz(strtoull(argv[3], 0, 0));
	}
	die("usage: walk CASE | walk fuzz SEED N");
}
