/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Is the current task in a profiled container? The kernel knows cgroups, so a scope is a cgroup and all below it. The walk up
 * the cgroup tree happens once per leaf; the answer, also "none", is kept with the generation of the scopes it was made from,
 * so that adding or removing a scope makes every older answer void at once without touching them.
 */
#pragma once

#include "unwind.h"

/* Deepest tree we look through from the leaf upwards. Containers below that many levels of nesting are out of scope;
 * Kubernetes with systemd uses 5. */
#define MAX_CGROUP_DEPTH 24

struct scope {
	u32 id;
	u32 thinning; /* 1 in n samples is taken; 1 takes all; 0 in a cached answer: none */
};

struct scope_answer {
	u64 generation;
	struct scope scope; /* id 0: not in any scope */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* Go */
	__type(key, u64);       /* cgroup id */
	__type(value, struct scope);
} scopes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1); /* Go */
	__type(key, u64);       /* cgroup id of the leaf */
	__type(value, struct scope_answer);
} scope_answers SEC(".maps");

/* Raised by user space after each change of scopes. */
volatile u64 scope_generation;

/* -1: cgroup v2, also the v2 tree of a hybrid host. Else the index of a v1 controller in css_set.subsys, taken from the
 * kernel's BTF (enum cgroup_subsys_id): on a v1 host every task is in the root of the v2 tree. */
const volatile s32 cgroup_v1_subsys = -1;

static __always_inline struct cgroup *cgroup__of(struct task_struct *task)
{
	struct css_set *set = BPF_CORE_READ(task, cgroups);
	if (cgroup_v1_subsys < 0)
		return BPF_CORE_READ(set, dfl_cgrp);
	/* css_set.subsys has as many entries as the kernel has controllers: index it by hand. */
	struct cgroup_subsys_state *css = 0;
	bpf_core_read(&css, sizeof(css), (void *)set + bpf_core_field_offset(struct css_set, subsys) +
						 (u32)cgroup_v1_subsys * sizeof(css));
	return BPF_CORE_READ(css, cgroup);
}

static __always_inline struct scope scope__walk(struct cgroup *cgrp)
{
	struct scope none = {};
	for (int i = 0; i < MAX_CGROUP_DEPTH && cgrp; i++) {
		u64 id = BPF_CORE_READ(cgrp, kn, id);
		struct scope *s = bpf_map_lookup_elem(&scopes, &id);
		if (s)
			return *s; /* the deepest scope wins: a nested cgroup belongs to its container */
		struct cgroup_subsys_state *parent = BPF_CORE_READ(cgrp, self.parent);
		if (!parent)
			break;
		cgrp = BPF_CORE_READ(parent, cgroup);
	}
	return none;
}

static __always_inline u64 cgroup__leaf(struct task_struct *task)
{
	if (cgroup_v1_subsys < 0)
		return bpf_get_current_cgroup_id();
	return BPF_CORE_READ(cgroup__of(task), kn, id);
}

/* generation is that of before the answer: a change meanwhile makes the answer void. */
static __always_inline struct scope scope__of_leaf(struct task_struct *task, u64 leaf, u64 generation)
{
	struct scope_answer *known = bpf_map_lookup_elem(&scope_answers, &leaf);
	if (known && known->generation == generation)
		return known->scope;
	counters__event(ORIGIN_CPU, EVENT_SCOPE_WALKS);
	struct scope_answer answer = { .generation = generation };
	answer.scope = scope__walk(cgroup__of(task));
	bpf_map_update_elem(&scope_answers, &leaf, &answer, BPF_ANY); /* busy: the next sample walks again */
	return answer.scope;
}

static __always_inline struct scope scope__of(struct task_struct *task)
{
	u64 generation = scope_generation;
	return scope__of_leaf(task, cgroup__leaf(task), generation);
}

/* The same for the program that runs at each tick, which mostly meets the cgroup it met at the last one. */
static __always_inline struct scope scope__of_tick(struct counters *c, struct task_struct *task)
{
	u64 generation = scope_generation, leaf = cgroup__leaf(task);
	if (c->last_leaf != leaf || c->last_generation != generation) {
		struct scope scope = scope__of_leaf(task, leaf, generation);
		c->last_leaf = leaf;
		c->last_generation = generation;
		c->last_scope = scope.id;
		c->last_thinning = scope.thinning;
	}
	return (struct scope){ .id = c->last_scope, .thinning = c->last_thinning };
}
