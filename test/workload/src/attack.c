/* attack HOW: what a container can do to a profiler with its own processes, for ever.
 *   mappings  as many executable mappings as the kernel lets it have, some of them coming and going, and code that runs in them
 *   storm     a stack that it never had before at every sample
 *   names     becomes a copy of itself whose file name is made of control characters and markup, and burns
 *   forks     processes that end at once, each renamed to something else
 *   chain     a frame chain that is a circle, and one that points everywhere
 */
#define _GNU_SOURCE
#include "spin.h"
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile unsigned long sink;
static uint64_t seed = 88172645463325252ULL;

static uint64_t dice(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	return seed ^= seed << 17;
}

/* mov $200000,%ecx; 1: dec %ecx; jnz 1b; ret — on arm64: the same */
#if defined(__x86_64__)
static const unsigned char loop[] = { 0xb9, 0x40, 0x0d, 0x03, 0x00, 0xff, 0xc9, 0x75, 0xfc, 0xc3 };
#else
static const unsigned char loop[] = { 0x01, 0xa8, 0x81, 0xd2, 0x61, 0x00, 0xa0, 0xf2, 0x21, 0x04, 0x00, 0xf1, 0xe1, 0xff, 0xff, 0x54, 0xc0, 0x03, 0x5f, 0xd6 };
#endif

static void mappings(void)
{
	enum { MOST = 1 << 20 };
	static unsigned char *at[MOST];
	size_t page = sysconf(_SC_PAGESIZE), n = 0;
	/* A file of its own in each second page: neighbours that are alike would become one mapping. */
	int fd = memfd_create("\x1b[31mmany", 0);
	if (fd < 0 || write(fd, loop, sizeof loop) != sizeof loop || ftruncate(fd, page) != 0)
		_exit(1);
	for (; n < MOST; n++) {
		at[n] = mmap(0, page, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
		if (at[n] == MAP_FAILED)
			break; /* vm.max_map_count */
	}
	if (n < 1000)
		_exit(1);
	for (unsigned turn = 0;; turn++) {
		size_t i = dice() % n;
		((void (*)(void))at[i])();
		if (turn % 64 == 0) {
			munmap(at[i], page);
			at[i] = mmap(at[i], page, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, fd, 0);
		}
	}
}

static void walk(int depth);
#define STEP(n) NOINLINE void step_##n(int depth) { FRAME(); walk(depth); sink += n; }
STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(7)
static void (*const steps[])(int) = { step_0, step_1, step_2, step_3, step_4, step_5, step_6, step_7 };

static NOINLINE void walk(int depth)
{
	if (depth == 0)
		sink = spin(sink, UNIT / 10);
	else
		steps[dice() % 8](depth - 1);
}

static void names(void)
{
	static const char *const name = "/tmp/\x1b]0;owned\x07\x1b[31m<img src=x onerror=alert(1)>";
	char self[4096];
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
	if (n < 0)
		_exit(1);
	self[n] = 0;
	if (strcmp(self, name) != 0) {
		struct stat st;
		mkdir("/tmp", 0777);
		int in = open(self, O_RDONLY), out = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0755);
		if (in < 0 || out < 0 || fstat(in, &st) != 0 || sendfile(out, in, 0, st.st_size) != st.st_size || close(out) != 0)
			_exit(1);
		execl(name, name, "names", NULL);
		_exit(1);
	}
	for (;;)
		sink = spin(sink, UNIT);
}

static void forks(void)
{
	for (;;) {
		pid_t pid = fork();
		if (pid == 0) {
			char name[16];
			snprintf(name, sizeof name, "\x1b[%dm", (int)(dice() % 100) + getpid());
			prctl(PR_SET_NAME, name);
			sink = spin(sink, UNIT * 10);
			_exit(0);
		}
		if (pid > 0)
			waitpid(pid, 0, 0);
	}
}

/* The frame pointer leads in a circle, to itself, into nothing and to the end of the address space in turn. */
static NOINLINE void astray(void *fp)
{
#if defined(__x86_64__)
	__asm__ volatile("push %%rbp; mov %0, %%rbp; mov $400000, %%ecx; 1: dec %%ecx; jnz 1b; pop %%rbp" : : "r"(fp) : "rcx", "memory", "cc");
#else
	__asm__ volatile("stp x29, x30, [sp, #-16]!; mov x29, %0; mov x9, #0x6a80; movk x9, #0x18, lsl #16; 1: subs x9, x9, #1; b.ne 1b; ldp x29, x30, [sp], #16" : : "r"(fp) : "x9", "memory", "cc");
#endif
}

static void chain(void)
{
	uintptr_t circle[8];
	circle[0] = (uintptr_t)&circle[4], circle[1] = (uintptr_t)chain;
	circle[4] = (uintptr_t)&circle[0], circle[5] = (uintptr_t)chain;
	circle[2] = (uintptr_t)&circle[2], circle[3] = (uintptr_t)chain;
	void *const to[] = { &circle[0], &circle[2], (void *)8, (void *)-16, (void *)(UINTPTR_MAX / 2), (void *)chain };
	for (unsigned i = 0;; i++)
		astray(to[i % (sizeof to / sizeof *to)]);
}

int main(int argc, char **argv)
{
	const char *how = argc > 1 ? argv[1] : "";
	seed += (uint64_t)getpid() * 0x9e3779b97f4a7c15ULL;
	if (!strcmp(how, "mappings"))
		mappings();
	if (!strcmp(how, "storm"))
		for (;;)
			walk(100);
	if (!strcmp(how, "names"))
		names();
	if (!strcmp(how, "forks"))
		forks();
	if (!strcmp(how, "chain"))
		chain();
	fprintf(stderr, "usage: attack mappings|storm|names|forks|chain\n");
	return 2;
}
