// A program without frame pointers whose stacks are known. Each function called s_… spends some time in leaf, on a stack of
// its own kind, for as many milliseconds of CPU as the argument says.
#include <alloca.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define KEEP extern "C" __attribute__((noinline, noclone, used))
#define AFTER asm volatile("" ::: "memory") // a call before it is no tail call

static long milliseconds;
static volatile unsigned long sink;

// What this process has spent, so that a busy machine takes no samples from a function.
static long now()
{
	timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static long deadline;
static bool more() { return now() < deadline; }

KEEP void leaf()
{
	for (int i = 0; i < 200000; i++)
		sink = sink + i;
}

KEEP void begin() { deadline = now() + milliseconds; }

KEEP int recurse(int n)
{
	if (n == 0) {
		leaf();
		return 1;
	}
	int r = recurse(n - 1);
	AFTER;
	return r + n;
}

KEEP void s_recursion()
{
	for (begin(); more();)
		sink = sink + recurse(40);
}

// The first samples in a page of text find no rows yet, for long on an emulated machine.
KEEP void s_warm()
{
	for (int i = 0; i < 3; i++)
		for (begin(); more();)
			leaf();
}

KEEP int endless(int n)
{
	if (n == 0) {
		leaf();
		return 1;
	}
	int r = endless(n - 1);
	AFTER;
	return r + n;
}

KEEP void s_deep()
{
	for (begin(); more();)
		sink = sink + endless(400);
}

KEEP void tail_two(int n) { sink = sink + n; return leaf(); }
KEEP void tail_one(int n) { sink = sink + n; return tail_two(n + 1); }

KEEP void s_tail()
{
	for (begin(); more();)
		tail_one(1);
}

KEEP void on_alloca(int n)
{
	char *p = (char *)alloca(n);
	memset(p, n, n);
	leaf();
	sink = sink + p[n / 2];
}

KEEP void s_alloca()
{
	for (begin(); more();)
		on_alloca(100 + sink % 4000);
}

// The compiler keeps the incoming stack pointer in a register (DRAP): the frame has a fixed and a variable part.
KEEP void realigned(int n, ...)
{
	char aligned[256] __attribute__((aligned(64)));
	char *p = (char *)alloca(n);
	__builtin_va_list ap;
	__builtin_va_start(ap, n);
	memset(aligned, __builtin_va_arg(ap, int), sizeof(aligned));
	__builtin_va_end(ap);
	memset(p, n, n);
	leaf();
	sink = sink + p[n / 2] + aligned[n % 256];
}

KEEP void s_realigned()
{
	for (begin(); more();)
		realigned(100 + sink % 400, 1, 2, 3, 4, 5, 6, 7, 8, 9);
}

KEEP void handler(int)
{
	while (more())
		leaf();
}

// The signal comes out of a system call made right here.
KEEP void interrupted()
{
	long pid = getpid(), tid = syscall(SYS_gettid);
#if defined(__x86_64__)
	long r;
	asm volatile("syscall" : "=a"(r) : "a"(SYS_tgkill), "D"(pid), "S"(tid), "d"(SIGUSR1) : "rcx", "r11", "memory");
#else
	register long r asm("x0") = pid;
	register long x1 asm("x1") = tid;
	register long x2 asm("x2") = SIGUSR1;
	register long x8 asm("x8") = SYS_tgkill;
	asm volatile("svc #0" : "+r"(r) : "r"(x1), "r"(x2), "r"(x8) : "memory");
#endif
	sink = sink + r;
}

KEEP void s_signal()
{
	struct sigaction sa = {};
	sa.sa_handler = handler;
	sigaction(SIGUSR1, &sa, 0);
	begin();
	interrupted();
	AFTER;
}

KEEP void s_altstack()
{
	stack_t ss = {};
	ss.ss_size = 64 << 10;
	ss.ss_sp = malloc(ss.ss_size);
	sigaltstack(&ss, 0);
	struct sigaction sa = {};
	sa.sa_handler = handler;
	sa.sa_flags = SA_ONSTACK;
	sigaction(SIGUSR1, &sa, 0);
	begin();
	interrupted();
	ss.ss_flags = SS_DISABLE;
	sigaltstack(&ss, 0);
	free(ss.ss_sp);
}

// Its first instruction faults: looked up one byte earlier it would be another function.
extern "C" void faults_at_once(int *);
#define FUNCTION(name, body) \
	asm(".text\n.globl " #name "\n.type " #name ",%function\n" #name ":\n.cfi_startproc\n" body "\n.cfi_endproc\n.size " #name ",.-" #name "\n")
#if defined(__x86_64__)
FUNCTION(before_it, "push %rbx\n.cfi_def_cfa_offset 16\nnop\nhlt");
FUNCTION(faults_at_once, "movl $1,(%rdi)\nret");
#else
FUNCTION(before_it, "stp x19,x20,[sp,#-16]!\n.cfi_def_cfa_offset 16\nnop\nbrk #0");
FUNCTION(faults_at_once, "str wzr,[x0]\nret");
#endif
static sigjmp_buf out;
KEEP void on_fault(int)
{
	while (more())
		leaf();
	siglongjmp(out, 1);
}

KEEP void s_fault()
{
	struct sigaction sa = {};
	sa.sa_handler = on_fault;
	sigaction(SIGSEGV, &sa, 0);
	begin();
	if (!sigsetjmp(out, 1))
		faults_at_once((int *)8);
	AFTER;
}

KEEP void in_child()
{
	for (begin(); more();) // a child's clock begins with it
		leaf();
	AFTER;
}

KEEP void s_vfork()
{
	begin();
	pid_t p = vfork();
	if (p == 0) {
		in_child();
		_exit(0);
	}
	waitpid(p, 0, 0);
}

KEEP void s_fork()
{
	begin();
	pid_t p = fork();
	if (p == 0) {
		in_child();
		_exit(0);
	}
	waitpid(p, 0, 0);
}

KEEP void *in_thread(void *)
{
	while (more())
		leaf();
	AFTER;
	return 0;
}

KEEP void s_thread()
{
	begin();
	pthread_t t;
	pthread_create(&t, 0, in_thread, 0);
	pthread_join(t, 0);
}

static ucontext_t here, there;
KEEP void in_coroutine()
{
	while (more())
		leaf();
	AFTER;
}

KEEP void s_coroutine()
{
	begin();
	getcontext(&there);
	there.uc_stack.ss_size = 64 << 10;
	there.uc_stack.ss_sp = malloc(there.uc_stack.ss_size);
	there.uc_link = &here;
	makecontext(&there, in_coroutine, 0);
	swapcontext(&here, &there);
	free(there.uc_stack.ss_sp);
}

struct Guard {
	__attribute__((noinline)) ~Guard()
	{
		leaf();
		AFTER;
	}
};

KEEP void throws(int n)
{
	if (n > 0)
		throw n;
}

KEEP void guarded(int n)
{
	Guard g;
	throws(n);
	AFTER;
}

KEEP void s_exception()
{
	for (begin(); more();) {
		try {
			guarded(1);
		} catch (int n) {
			sink = sink + n;
		}
	}
}

KEEP int compare(const void *a, const void *b)
{
	for (int i = 0; i < 2000; i++)
		sink = sink + i;
	return *(const int *)a - *(const int *)b;
}

KEEP void s_qsort()
{
	int v[64];
	for (begin(); more();) {
		for (int &x : v)
			x = rand();
		qsort(v, 64, sizeof(v[0]), compare);
	}
}

KEEP void s_memcpy()
{
	size_t n = 8 << 20;
	char *a = (char *)malloc(n), *b = (char *)malloc(n);
	memset(a, 1, n);
	for (begin(); more();) {
		memcpy(b, a, n);
		sink = sink + b[n / 2];
	}
	free(a);
	free(b);
}

KEEP void s_write()
{
	FILE *f = fopen("/dev/null", "w");
	setvbuf(f, 0, _IONBF, 0);
	for (begin(); more();)
		for (int i = 0; i < 100; i++)
			fprintf(f, "%d %s\n", i, "written");
	fclose(f);
}


int main(int, char **argv)
{
	milliseconds = atoi(argv[1]);
	void (*all[])() = {s_warm, s_recursion, s_deep, s_tail, s_alloca, s_realigned, s_signal, s_altstack, s_fault, s_vfork, s_fork, s_thread,
			   s_coroutine, s_exception, s_qsort, s_memcpy, s_write};
	for (auto f : all)
		f();
	return 0;
}
