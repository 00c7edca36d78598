/* as ID PROGRAM [ARGUMENT…]: becomes the program, as the user and group of that number and no other. */
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int id = argc > 2 ? atoi(argv[1]) : 0;
	if (id == 0) {
		fprintf(stderr, "usage: as ID PROGRAM [ARGUMENT…]\n");
		return 2;
	}
	if (setgroups(0, 0) != 0 || setgid(id) != 0 || setuid(id) != 0) {
		perror("as");
		return 1;
	}
	execv(argv[2], argv + 2);
	perror(argv[2]);
	return 127;
}
