/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How a sample ends: its stack is sent if it is new, its count goes into the open window, its outcome is written. Every
 * program that can be the last of a walk has a copy of this (a few hundred instructions), because a tail call to a common
 * last program could itself fall through. The order of the steps is the kernel protocol of docs/architecture.md.
 */
#pragma once

#include "unwind.h"

/* K2: sends the stack and marks it as seen; false when it could not be sent. */
static __always_inline bool stack__deliver(struct unwind_state *st)
{
	struct stack_key *key = &st->record.head.key;
	u32 scope = key->scope;
	struct scope_state *budget = bpf_map_lookup_elem(&scope_states, &scope);
	if (!budget || budget->stacks_left <= 0)
		return false;
	u32 n = st->frames;
	if (n > MAX_FRAMES) /* for the verifier */
		return false;
	st->record.head.type = RECORD_STACK;
	st->record.head.n = n;
	if (bpf_ringbuf_output(&stacks, &st->record, sizeof(struct record) + n * sizeof(struct frame), 0))
		return false;
	__sync_fetch_and_add(&budget->stacks_left, -1);
	u8 one = 1;
	if (bpf_map_update_elem(&seen, key, &one, BPF_ANY)) /* full or busy: the stack is sent again, which is harmless */
		counters__event(key->origin, EVENT_SEEN_FULL);
	return true;
}

/* K3, for a key that is mostly not there. */
static __always_inline bool count__add(void *window_map, struct stack_key *key, u64 weight)
{
	struct count first = { .n = 1, .weight = weight };
	long err = bpf_map_update_elem(window_map, key, &first, BPF_NOEXIST);
	if (!err)
		return true;
	if (err != -EEXIST)
		return false;
	struct count *v = bpf_map_lookup_elem(window_map, key); /* another CPU was first; or the stackless key of a scope is there */
	if (!v)
		return false;
	__sync_fetch_and_add(&v->n, 1);
	__sync_fetch_and_add(&v->weight, weight);
	return true;
}

/* K2 to K4. Called once per walk, by whichever program ends it. */
static __always_inline int sample__finish(struct unwind_state *st)
{
	struct stack_key *key = &st->record.head.key;
	u32 outcome = st->outcome, zero = 0;
	u32 origin = key->origin;

	/* Without tables the end of a frame-pointer chain says little: what the C library's start-up code leaves there ends many
	 * complete stacks. */
	if (outcome != OUTCOME_COMPLETE && (outcome != OUTCOME_CHAIN_ENDED || st->space))
		unwind__append(st, 0, FRAME_TRUNCATED, false, outcome, 0);
	key->hash = st->hash ? st->hash : 1; /* 0 means: not delivered */
	/* Most stacks have been counted in this window. Whoever did so first has sent the stack or found it sent, and user space
	 * forgets no stack before it has read the window that was open when it was evicted: nothing else has to be looked at. */
	void *open = bpf_map_lookup_elem(&window, &zero);
	struct count *known = open ? bpf_map_lookup_elem(open, key) : 0;
	if (known) {
		__sync_fetch_and_add(&known->n, 1);
		__sync_fetch_and_add(&known->weight, st->weight);
		counters__outcome(origin, outcome);
		return 0;
	}
	if (!bpf_map_lookup_elem(&seen, key) && !stack__deliver(st)) {
		key->hash = 0;
		outcome = OUTCOME_UNDELIVERED;
	}
	/* Read again, after K2: a key counted in this map has its record in the ring before the map is closed. */
	open = bpf_map_lookup_elem(&window, &zero);
	if (!open || !count__add(open, key, st->weight)) {
		struct rest_key rk = { .scope = key->scope, .origin = origin };
		struct count *r = bpf_map_lookup_elem(&rest, &rk);
		if (r) {
			r->n++;
			r->weight += st->weight;
		}
		outcome = OUTCOME_OVERFLOW;
	}
	counters__outcome(origin, outcome);
	return 0;
}

/* An unwinder's way out: the walk is over, outcome says how. */
static __always_inline int unwind__done(struct unwind_state *st, u32 outcome)
{
	st->outcome = outcome;
	return sample__finish(st);
}

/* An unwinder's other way out: slot goes on from the state as it stands. */
static __always_inline int unwind__next(void *ctx, struct unwind_state *st, u32 slot)
{
	if (st->tail_calls >= MAX_TAIL_CALLS)
		return unwind__done(st, OUTCOME_TOO_DEEP);
	st->tail_calls++;
	bpf_tail_call(ctx, &unwinders, slot);
	return unwind__done(st, OUTCOME_NO_UNWINDER); /* fell through: the slot is empty */
}

/* The way out of the native walk and of each language: the next language of the process appends its frames, or the sample ends. slot is
 * the caller's own. */
static __always_inline int unwind__languages(void *ctx, struct unwind_state *st, u32 slot, u32 outcome)
{
	st->outcome = outcome;
	for (u32 i = 0; i < MAX_LANGUAGES; i++) {
		if (FIRST_LANGUAGE_SLOT + i > slot && st->languages[i])
			bpf_tail_call(ctx, &unwinders, FIRST_LANGUAGE_SLOT + i); /* falls through while it is not loaded */
	}
	return sample__finish(st);
}

/* A language goes on with its frames in another run of its program; returns if it may not. */
static __always_inline void unwind__language_again(void *ctx, struct unwind_state *st, u32 slot)
{
	if (st->tail_calls < MAX_LANGUAGE_CALLS - MAX_LANGUAGES) {
		st->tail_calls++;
		bpf_tail_call(ctx, &unwinders, slot);
	}
}
