/* Backup is a C program for the demo: three times a second it reads a few megabytes, which the kernel makes, packs and sums
 * them, and sleeps. It costs about a fifth of a CPU, a third of it in the kernel. */
#include "spin.h"
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 1 << 16, BLOCKS = 1024 };

static unsigned char block[BLOCK], packed[2 * BLOCK];
static uint32_t table[256];
static volatile uint32_t sum;

static void make_table(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t c = i;
		for (int k = 0; k < 8; k++)
			c = c & 1 ? 0xedb88320 ^ (c >> 1) : c >> 1;
		table[i] = c;
	}
}

NOINLINE int read_block(int fd)
{
	int n = read(fd, block, sizeof block);
	for (int i = 0; i < n; i += 61) /* not quite as empty as it comes */
		block[i] = (unsigned char)(i * 7);
	return n;
}

/* Runs of equal bytes become a count and the byte. */
NOINLINE int pack(int n)
{
	int out = 0;
	FRAME();
	for (int i = 0; i < n;) {
		int run = 1;
		while (i + run < n && run < 255 && block[i + run] == block[i])
			run++;
		packed[out++] = (unsigned char)run;
		packed[out++] = block[i];
		i += run;
	}
	return out;
}

NOINLINE uint32_t checksum(int n, uint32_t crc)
{
	FRAME();
	for (int i = 0; i < n; i++)
		crc = table[(crc ^ packed[i]) & 0xff] ^ (crc >> 8);
	return crc;
}

NOINLINE uint32_t back_up(int fd)
{
	uint32_t crc = ~0u;
	for (int i = 0; i < BLOCKS; i++) {
		int n = read_block(fd);
		crc = checksum(pack(n), crc);
	}
	return crc;
}

int main(void)
{
	int fd = open("/dev/zero", O_RDONLY);
	if (fd < 0) {
		perror("open /dev/zero");
		return 1;
	}
	make_table();
	for (;;) {
		sum = back_up(fd);
		nanosleep(&(struct timespec){ .tv_nsec = 300000000 }, NULL);
	}
}
