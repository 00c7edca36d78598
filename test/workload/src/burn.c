/* burn MILLISECONDS [NUMBER]: that much CPU time of this thread in short_lived_work (or, with a number, in the function
 * unique_NUMBER), then exit 0. 0 milliseconds: for ever. */
#include "spin.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static volatile unsigned long sink;

NOINLINE void short_lived_work(void) { sink = spin(sink, UNIT * 5); }
#define UNIQUE(n) NOINLINE void unique_##n(void) { sink = spin(sink + n, UNIT * 5); }
#define ALL(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15) X(16) X(17) X(18) X(19)
ALL(UNIQUE)
#define ENTRY(n) unique_##n,
static void (*const unique[])(void) = { ALL(ENTRY) };

static double cpu(void)
{
	struct timespec t;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

NOINLINE void run(void (*work)(void), double ms)
{
	/* Each call is about 100 microseconds: the look at the clock between two is not seen in the profile. */
	while (ms == 0 || cpu() < ms)
		work();
}

int main(int argc, char **argv)
{
	unsigned long n = argc > 2 ? strtoul(argv[2], 0, 10) : 0;
	if (argc < 2 || n >= sizeof unique / sizeof *unique) {
		fprintf(stderr, "usage: burn MILLISECONDS [NUMBER below %zu]\n", sizeof unique / sizeof *unique);
		return 2;
	}
	run(argc > 2 ? unique[n] : short_lived_work, atof(argv[1]));
	return 0;
}
