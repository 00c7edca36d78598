/* Prints its executable mappings and where some of its functions are. */
#include <stdio.h>
#include <string.h>
extern int library_global(int), library_ifunc(int), library_choose(int);
extern void *library_address(void);
extern void assembly_function(void);
static __attribute__((noinline)) int program_local(int n) { return n * 7; }
__attribute__((noinline)) int program_global(int n) { return program_local(n) + library_global(n) + library_ifunc(n) + library_choose(n); }
int main(int argc, char **argv) {
	char line[4096];
	FILE *f = fopen("/proc/self/maps", "r");
	if (!f) return 1;
	while (fgets(line, sizeof line, f))
		if (strstr(line, "r-xp")) printf("M %s", line);
	fclose(f);
	printf("S program_local %p\n", (void *)program_local);
	printf("S program_global %p\n", (void *)program_global);
	printf("S assembly_function %p\n", (void *)assembly_function);
	printf("S library_global %p\n", library_address());
	return program_global(argc) == 0;
}
