/* brief MILLISECONDS: burns that much CPU time in brief_work, a part of it in libc, and ends. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

static char block[1 << 16];

__attribute__((noinline)) static unsigned brief_work(unsigned x)
{
	for (int i = 0; i < 20000; i++)
		x = x * 31 + i;
	memset(block, (int)x, sizeof(block));
	__asm__ volatile("" : : "r"(block) : "memory");
	return x;
}

int main(int argc, char **argv)
{
	long milliseconds = argc > 1 ? atol(argv[1]) : 1;
	struct timespec t;
	unsigned x = 0;

	do {
		x = brief_work(x);
		clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	} while (t.tv_sec * 1000 + t.tv_nsec / 1000000 < milliseconds);
	return x == 42;
}
