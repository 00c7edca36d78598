/* deep FRAMES: for ever, the same work at the end of a stack of that many frames of this program, main included. */
#include "spin.h"
#include <stdio.h>
#include <stdlib.h>

static volatile unsigned long sink;
static volatile int ended; /* never set: the compiler is not to know that nothing returns */

NOINLINE void work(void) { sink = spin(sink, UNIT); }

NOINLINE void level(long below)
{
	if (below > 0)
		level(below - 1);
	else
		while (!ended)
			work();
	sink++;
}

int main(int argc, char **argv)
{
	long frames = argc > 1 ? atol(argv[1]) : 0;
	if (frames < 3) {
		fprintf(stderr, "usage: deep FRAMES, at least 3: main, level, work\n");
		return 2;
	}
	level(frames - 3);
}
