/* spawn COUNT PARALLEL PROGRAM [ARGUMENT…]: runs the program COUNT times, at most PARALLEL at a time, then exits with 0,
 * or 1 if any of them failed. COUNT 0: for ever. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc < 4) {
		fprintf(stderr, "usage: spawn COUNT PARALLEL PROGRAM [ARGUMENT…]\n");
		return 2;
	}
	long count = atol(argv[1]), parallel = atol(argv[2]), running = 0, failed = 0;
	for (long i = 0; count == 0 || i < count || running > 0;) {
		if ((count == 0 || i < count) && running < parallel) {
			pid_t pid = fork();
			if (pid == 0) {
				execv(argv[3], argv + 3);
				_exit(127);
			}
			if (pid < 0) {
				perror("fork");
				return 1;
			}
			i++, running++;
			continue;
		}
		int status;
		if (wait(&status) < 0 && errno != EINTR)
			break;
		running--;
		failed += status != 0;
	}
	return failed != 0;
}
