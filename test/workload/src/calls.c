/* For ever, a third of the time each: a callback out of qsort, memcpy, and snprintf; the C library is at the end or in the
 * middle of every stack. */
#include "spin.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static volatile unsigned long sink;

NOINLINE int compare(const void *a, const void *b)
{
	sink = spin(sink, UNIT / 100);
	return (*(const int *)a > *(const int *)b) - (*(const int *)a < *(const int *)b);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

NOINLINE void sorts(double end)
{
	int v[256];
	while (now() < end) {
		for (int i = 0; i < 256; i++)
			v[i] = rand();
		qsort(v, 256, sizeof(v[0]), compare);
	}
	sink++;
}

NOINLINE void copies(double end)
{
	static char from[1 << 20], to[1 << 20];
	while (now() < end)
		for (int i = 0; i < 16; i++) {
			memcpy(to, from, sizeof(to));
			from[i] = to[2 * i] + 1;
		}
	sink++;
}

NOINLINE void formats(double end)
{
	char text[200];
	while (now() < end)
		for (int i = 0; i < 100; i++)
			sink += snprintf(text, sizeof(text), "%d %s %f", i, "a string", i * 1.1);
	sink++;
}

int main(void)
{
	for (;;) {
		sorts(now() + 0.1);
		copies(now() + 0.1);
		formats(now() + 0.1);
	}
}
