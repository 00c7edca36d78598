/* What all C and C++ programs of known truth share: a loop whose cost depends on its count only. */
#ifndef SPIN_H
#define SPIN_H

/* Makes the function it stands in set up a frame: gcc leaves it out of a leaf that needs no stack, whatever
 * -fno-omit-frame-pointer says, and the caller would be missing from the known stack. */
#ifdef NO_FRAMES /* a program that is meant to have none */
#define FRAME()
#else
#define FRAME() __asm__ volatile("" : : "r"(__builtin_frame_address(0)))
#endif

/* spin runs a chain of dependent multiplications: a few cycles per turn whatever the code around it looks like, so that the
 * shares of CPU time are the ratios of the counts. always_inline: the time belongs to the function it stands in. */
static inline __attribute__((always_inline)) unsigned long spin(unsigned long seed, unsigned long turns)
{
	FRAME();
	for (unsigned long i = 0; i < turns; i++) {
		seed = seed * 6364136223846793005UL + 1442695040888963407UL;
		__asm__ volatile("" : "+r"(seed));
	}
	return seed;
}

#define NOINLINE __attribute__((noinline, noclone))

/* Turns of one unit: about 20 microseconds. */
#define UNIT 15000UL

#endif
