/* A program that tells an address in the middle of a function which is inlined into another one that is inlined too. */
#include <stdio.h>

static inline __attribute__((always_inline)) void *innermost(void)
{
	void *p;
#if defined(__x86_64__)
	__asm__ volatile("lea 0(%%rip), %0\n\tnop\n\tnop" : "=r"(p));
#else
	__asm__ volatile("adr %0, .\n\tnop\n\tnop" : "=r"(p));
#endif
	return p;
}

static inline __attribute__((always_inline)) void *between(void)
{
	return innermost();
}

__attribute__((noinline)) static void *outermost(void)
{
	return between();
}

int main(void)
{
	printf("inlined %p\n", outermost());
	fflush(stdout);
	return getchar() == EOF;
}
