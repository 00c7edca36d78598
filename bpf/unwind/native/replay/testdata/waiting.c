/* Waits in a signal's handler, on an alternate stack, in the middle of a sort. */
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

static char alternate[32768] __attribute__((aligned(16)));
volatile int sink;

__attribute__((noinline)) static void wait_here(void) { write(1, "ready\n", 6); for (;;) pause(); }
__attribute__((noinline)) static void handler(int signal) { sink = signal; wait_here(); sink++; }
__attribute__((noinline)) static int compare(const void *a, const void *b) { raise(SIGUSR1); return *(const int *)a - *(const int *)b; }

int main(void)
{
	stack_t stack = {.ss_sp = alternate, .ss_size = sizeof(alternate)};
	struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
	int list[3] = {3, 2, 1};

	sigaltstack(&stack, 0);
	sigaction(SIGUSR1, &action, 0);
	qsort(list, 3, sizeof(list[0]), compare);
	return sink;
}
