/* Spends its time in the kernel: read_zeros asks for zeroed memory, which the kernel writes. */
#include "spin.h"
#include <fcntl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

static char buffer[1 << 20];

/* The system call itself and not read(): the C library's function has no frame, so its caller would be missing from the
 * known stack. */
NOINLINE long read_zeros(int fd)
{
	long n;
	FRAME();
	__asm__ volatile("syscall" : "=a"(n) : "a"(SYS_read), "D"(fd), "S"(buffer), "d"(sizeof buffer) : "rcx", "r11", "memory");
	return n;
}

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
