/* swap SECONDS: for ever, loads libred.so, works in it for that long, unloads it, and does the same with libblue.so. Prints
 * where each landed. Both have to land at one address: that is what this program is for. */
#include "spin.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	double seconds = argc > 1 ? atof(argv[1]) : 1;
	void *first = 0;
	for (int i = 0;; i++) {
		const char *name = i % 2 ? "libblue.so" : "libred.so";
		void *lib = dlopen(name, RTLD_NOW);
		void (*run)(void) = lib ? (void (*)(void))dlsym(lib, "plugin_run") : 0;
		if (!run) {
			fprintf(stderr, "%s: %s\n", name, dlerror());
			return 1;
		}
		if (!first)
			first = (void *)run;
		if ((void *)run != first) {
			fprintf(stderr, "%s: at %p, not at %p\n", name, (void *)run, first);
			return 1;
		}
		for (double end = now() + seconds; now() < end;)
			run();
		dlclose(lib);
	}
}
