/* Known flat and nested shares, for ever (or for argv[1] milliseconds of wall time):
 *   main > cycle > alpha > leaf_sixty           60 %
 *   main > cycle > beta > leaf_thirty           30 %
 *   main > cycle > beta > gamma_ > leaf_ten     10 %
 */
#include "spin.h"
#include <stdlib.h>
#include <time.h>

static volatile unsigned long sink;

NOINLINE void leaf_sixty(void) { sink = spin(sink, 60 * UNIT / 10); }
NOINLINE void leaf_thirty(void) { sink = spin(sink, 30 * UNIT / 10); }
NOINLINE void leaf_ten(void) { sink = spin(sink, 10 * UNIT / 10); }

/* The additions after the calls keep them from becoming jumps. */
NOINLINE void gamma_(void) { leaf_ten(); sink++; }
NOINLINE void alpha(void) { leaf_sixty(); sink++; }
NOINLINE void beta(void) { leaf_thirty(); gamma_(); sink++; }
NOINLINE void cycle(void) { alpha(); beta(); sink++; }

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	double end = argc > 1 ? now() + atof(argv[1]) / 1000 : 0;
	do {
		for (int i = 0; i < 50; i++) /* 10 ms between two looks at the clock */
			cycle();
	} while (end == 0 || now() < end);
	return 0;
}
