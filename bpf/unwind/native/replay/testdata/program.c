/* Stacks of every kind, to be single-stepped: each path through it is short. */
#define _GNU_SOURCE
#include <alloca.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

volatile int sink;
static jmp_buf back;
static char alternate[32768] __attribute__((aligned(16)));

__attribute__((noinline)) static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
__attribute__((noinline)) static int recurse(int n) { return n ? recurse(n - 1) + sink : sink; }
__attribute__((noinline)) static int tail(int n) { return recurse(n + 1); }
__attribute__((noinline)) static void moving(int n) { char *p = alloca(n); memset(p, 1, n); sink += p[n / 2] + tail(2); }

__attribute__((noinline)) static void realigned(int n)
{
	char many[128] __attribute__((aligned(64)));
	memset(many, n, sizeof(many));
	moving(n + many[3]);
	sink += many[5];
}

__attribute__((noinline)) static void leave(void) { longjmp(back, 1); }
__attribute__((noinline)) static void handler(int signal) { sink += signal; moving(100); }
__attribute__((noinline)) static void jumper(int signal) { sink += signal; siglongjmp(back, 2); }

int main(int argc, char **argv)
{
	stack_t stack = {.ss_sp = alternate, .ss_size = sizeof(alternate)};
	struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
	int list[20];
	char text[64];
	struct timespec now;

	sigaltstack(&stack, 0);
	sigaction(SIGUSR1, &action, 0);
	raise(SIGUSR1);
	action.sa_flags = 0;
	sigaction(SIGUSR2, &action, 0);
	raise(SIGUSR2);
	for (int i = 0; i < 20; i++)
		list[i] = (i * 7919) % 20;
	qsort(list, 20, sizeof(list[0]), compare);
	realigned(argc);
#ifndef NO_JUMPS /* musl's assembly moves return addresses about as a shadow stack of calls cannot follow */
	if (!setjmp(back))
		leave();
	action.sa_handler = jumper;
	sigaction(SIGUSR2, &action, 0);
	if (!sigsetjmp(back, 1))
		raise(SIGUSR2);
#endif
	clock_gettime(CLOCK_MONOTONIC, &now);
	snprintf(text, sizeof(text), "%d %.3f %s %ld", list[3], 1.5 * argc, argv[0], (long)now.tv_sec);
	sink += strtod("1.25e3", 0) + strlen(text) + atoi("77");
	char *p = strdup(text);
	free(p);
	system(0);
	return 0;
}
