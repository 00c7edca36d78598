/* Spends its time in the kernel: read_zeros asks for zeroed memory, which the kernel writes. */
#include "spin.h"
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

static char buffer[1 << 20];

NOINLINE long read_zeros(int fd) { return read(fd, buffer, sizeof buffer) - 1; }

int main(void)
{
	int fd = open("/dev/zero", O_RDONLY);
	if (fd < 0) {
		perror("open /dev/zero");
		return 1;
	}
	for (;;)
		read_zeros(fd);
}
