// What musl's code, which has no call frame information, can be in the middle of: a callback out of qsort, a signal handler, a
// thread, formatting. Each for as many milliseconds as the argument says.
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define KEEP __attribute__((noinline, noclone, used))
#define AFTER __asm__ volatile("" ::: "memory") // a call before it is no tail call

static volatile unsigned long sink;
static long milliseconds, deadline;

static long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int more(void) { return now() < deadline; }
static void begin(void) { deadline = now() + milliseconds; }

KEEP void leaf(void)
{
	for (int i = 0; i < 100000; i++)
		sink += i;
}

KEEP void spins(void)
{
	while (more())
		leaf();
	AFTER;
}

KEEP void handler(int s)
{
	spins();
	sink += s;
}

KEEP int compare(const void *a, const void *b)
{
	leaf();
	return *(const int *)a - *(const int *)b;
}

KEEP void *in_thread(void *x)
{
	spins();
	return x;
}

KEEP void s_signal(void)
{
	begin();
	raise(SIGUSR1);
	AFTER;
}

KEEP void s_qsort(void)
{
	int v[32];
	for (begin(); more();) {
		for (int i = 0; i < 32; i++)
			v[i] = rand();
		qsort(v, 32, sizeof(v[0]), compare);
	}
}

KEEP void s_thread(void)
{
	pthread_t t;
	begin();
	pthread_create(&t, 0, in_thread, 0);
	pthread_join(t, 0);
}

KEEP void s_format(void)
{
	char text[200];
	for (begin(); more();)
		for (int i = 0; i < 100; i++)
			sink += snprintf(text, sizeof(text), "%d %f %s", i, i * 1.3, "text");
}

int main(int argc, char **argv)
{
	milliseconds = argc > 1 ? atoi(argv[1]) : 100;
	signal(SIGUSR1, handler);
	usleep(300000); // our tables are read meanwhile
	begin();
	spins(); // the first samples in a page of text find no rows yet
	s_signal();
	s_qsort();
	s_thread();
	s_format();
	return 0;
}
