/* A process that says it is CPython 3.11 and lies: forged HOW SECONDS. Its structures have the offsets of that version. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

const unsigned long Py_Version = 0x030b00f0;
char PyCode_Type[512];
char _PyRuntime[4096];

static char interpreter[512], thread[512], cframe[64];

static void set(char *object, int at, const void *value) { memcpy(object + at, &value, sizeof(value)); }

__attribute__((noinline)) int _PyEval_EvalFrameDefault(double seconds)
{
	struct timespec t;
	volatile unsigned long n = 0;
	do {
		for (int i = 0; i < 100000; i++)
			n += i;
		clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	} while (t.tv_sec + t.tv_nsec / 1e9 < seconds);
	return n;
}

static char *string(const char *text, size_t length)
{
	char *s = calloc(1, 64 + length);
	unsigned state = 1 << 2 | 1 << 5 | 1 << 6; /* one byte each, compact, ASCII */
	memcpy(s + 16, &length, sizeof(length));
	memcpy(s + 32, &state, sizeof(state));
	memset(s + 48, 'x', length);
	memcpy(s + 48, text, strlen(text));
	return s;
}

int main(int argc, char **argv)
{
	const char *how = argv[1];
	char *page = mmap(0, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *frame = page, *next = page + 4096, *code = page + 2 * 4096;
	int line = 7;
	set(_PyRuntime, 40, interpreter);
	set(_PyRuntime, 576, thread);
	set(interpreter, 16, thread);
	set(thread, 152, (void *)pthread_self());
	long tid = gettid();
	memcpy(thread + 160, &tid, sizeof(tid));
	set(thread, 56, cframe);
	set(cframe, 8, frame);
	set(frame, 32, code);
	set(frame, 48, next);
	set(frame, 56, code + 184);
	set(next, 32, code);
	set(next, 56, code + 184);
	next[68] = 1;
	set(code, 8, PyCode_Type);
	memcpy(code + 72, &line, sizeof(line));
	set(code, 112, string("forged.py", 9));
	set(code, 120, string("forged", 6));
	set(code, 128, string("forged", 6));
	char *table = calloc(1, 64);
	set(code, 136, table);

	if (!strcmp(how, "loop"))
		set(frame, 48, frame);
	else if (!strcmp(how, "unmapped"))
		munmap(next, 4096);
	else if (!strcmp(how, "name"))
		set(code, 128, string("long", 1 << 20));
	else if (!strcmp(how, "threads")) { /* of which none is this one, without end */
		set(thread, 152, 0);
		memset(thread + 160, 0, 8);
		set(thread, 8, thread);
	} else if (!strcmp(how, "type"))
		set(code, 8, frame);
	else if (!strcmp(how, "everywhere")) { /* addresses that are none */
		set(cframe, 8, (void *)0xffff800000000000);
	} else if (!strcmp(how, "strings")) {
		size_t huge = ~0UL;
		char *s = string("huge", 4);
		memcpy(s + 16, &huge, sizeof(huge));
		set(code, 128, s);
		memcpy(table + 16, &huge, sizeof(huge));
	}
	return _PyEval_EvalFrameDefault(atof(argv[2])) == 1;
}
