// A program whose frame's size is given when it is built: two of them have the same code at the same addresses, and unlike tables.
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

__attribute__((noinline)) void decoy(void) { __asm__ volatile("nop\n\tnop" ::: "memory"); }

// What a walk by the other one's table takes for the return address lies in here.
__attribute__((noinline)) static uintptr_t spins(double seconds)
{
	volatile uintptr_t frame[FRAME];
	struct timespec at;
	uintptr_t sum = 0;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &at);
	double end = at.tv_sec + at.tv_nsec / 1e9 + seconds;
	do {
		for (int round = 0; round < 1000; round++)
			for (int i = 0; i < FRAME; i++) {
				frame[i] = (uintptr_t)decoy + 1;
				sum += frame[i];
			}
		clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &at);
	} while (at.tv_sec + at.tv_nsec / 1e9 < end);
	return sum;
}

__attribute__((noinline)) static int NAME(double seconds)
{
	volatile uintptr_t sum = spins(seconds);
	return sum == 1;
}

int main(int argc, char **argv)
{
	return argc == 2 ? NAME(atof(argv[1])) : 2;
}
