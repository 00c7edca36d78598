/* swap MILLISECONDS LIBRARY…: loads each library, works in it for that much CPU time, and unloads it. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int main(int argc, char **argv)
{
	void *first = NULL;
	unsigned x = 1;

	for (int i = 2; i < argc; i++) {
		void *lib = dlopen(argv[i], RTLD_NOW);
		unsigned (*work)(unsigned) = lib ? (unsigned (*)(unsigned))dlsym(lib, "exported") : NULL;
		if (!work) {
			fprintf(stderr, "%s\n", dlerror());
			return 1;
		}
		if (first && first != (void *)work) {
			fprintf(stderr, "the libraries do not come to the same address: the test proves nothing\n");
			return 1;
		}
		first = (void *)work;
		for (long end = now() + atol(argv[1]); now() < end;)
			x = work(x);
		dlclose(lib);
	}
	return x == 42;
}
