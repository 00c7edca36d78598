/* A program that tells where its code is and changes its mappings on command: one line in, one line of addresses out. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

__attribute__((noinline)) static void *leaf(void)
{
	return __builtin_return_address(0);
}

__attribute__((noinline)) void *middle(void)
{
	void *p = leaf();
	__asm__ volatile("" : : "r"(p)); /* no tail call */
	return p;
}

/* A call as the last instruction: its return address is the first byte behind the function. */
__attribute__((noinline, noreturn)) static void last(void *into)
{
	*(void **)into = __builtin_return_address(0);
	pthread_exit(NULL);
}

__attribute__((noinline, noreturn)) void calls_last(void *into)
{
	last(into);
}

__attribute__((noinline)) void after_calls_last(void)
{
	__asm__ volatile("");
}

static void *thread(void *into)
{
	calls_last(into);
}

static void *rest(void *unused)
{
	char line[4096], path[4096];
	unsigned long address, offset, length;
	(void)unused;

	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "open %s", path) == 1) {
			void *lib = dlopen(path, RTLD_NOW);
			if (!lib) {
				printf("%s\n", dlerror());
				exit(1);
			}
			printf("%p\n", dlsym(lib, "exported"));
		} else if (sscanf(line, "map %s %lx %lx %lx", path, &offset, &length, &address) == 4) {
			int fd = open(path, O_RDONLY);
			void *p = mmap((void *)address, length, PROT_READ | PROT_EXEC, MAP_PRIVATE | (address ? MAP_FIXED : 0), fd, offset);
			close(fd);
			printf("%p\n", p);
		} else if (!strcmp(line, "jit\n")) {
			printf("%p\n", mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
		} else if (!strcmp(line, "fork\n")) {
			pid_t pid = fork();
			if (!pid) { /* the child lives until it is killed */
				for (;;)
					pause();
			}
			printf("%d\n", pid);
		}
		fflush(stdout);
	}
	exit(0);
}

int main(int argc, char **argv)
{
	void *behind = NULL;
	pthread_t t;

	if (argc > 1 && !strcmp(argv[1], "pivot")) { /* the working directory becomes the root of our mount namespace */
		if (syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/")) {
			perror("pivot_root");
			return 1;
		}
	}
	pthread_create(&t, NULL, thread, &behind);
	pthread_join(t, NULL);
	printf("leaf %p middle %p behind %p main %p puts %p\n", (void *)leaf, middle(), behind, (void *)main, dlsym(RTLD_DEFAULT, "puts"));
	fflush(stdout);
	if (argc > 1 && !strcmp(argv[1], "end")) { /* the first thread ends, the process goes on */
		pthread_create(&t, NULL, rest, NULL);
		pthread_exit(NULL);
	}
	rest(NULL);
}
