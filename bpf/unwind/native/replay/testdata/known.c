/* known KIND: comes to wait_here by the calls of that kind, says so and waits. Nothing may be inlined or cloned: the calls are what is
 * written here, but for those in place of a return, which leave no frame. */
#define _GNU_SOURCE
#include <alloca.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#define CALL __attribute__((noipa))
#define AFTER __asm__ volatile("" ::: "memory") /* there is something to do after the call: it leaves a frame */

CALL void wait_here(void)
{
	if (write(1, "ready\n", 6) == 6)
		for (;;)
			pause();
}

CALL int recurse(int n)
{
	int m = 0;
	if (n)
		m = recurse(n - 1);
	else
		wait_here();
	AFTER;
	return m + n;
}

CALL void last(void) { wait_here(); AFTER; }
CALL void gone(int n) { if (n) last(); }
CALL void tail(int n) { gone(n + 1); AFTER; }

CALL void moving(int n)
{
	char *p = alloca(n);
	memset(p, n, n);
	wait_here();
	__asm__ volatile("" ::"r"(p) : "memory");
}

CALL void realigned(int n)
{
	char many[128] __attribute__((aligned(64)));
	memset(many, n, sizeof(many));
	moving(n + many[3]);
	__asm__ volatile("" ::"r"(many) : "memory");
}

CALL void handler(int signal) { (void)signal; wait_here(); AFTER; }

CALL void interrupted(void)
{
	static char alternate[32768] __attribute__((aligned(16)));
	stack_t stack = {.ss_sp = alternate, .ss_size = sizeof(alternate)};
	struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
	sigaltstack(&stack, 0);
	sigaction(SIGUSR1, &action, 0);
	raise(SIGUSR1);
	AFTER;
}

CALL void *of_thread(void *p) { wait_here(); AFTER; return p; }

CALL void threads(void)
{
	pthread_t thread;
	pthread_create(&thread, 0, of_thread, 0);
	pthread_join(thread, 0);
	AFTER;
}

CALL void of_child(void) { wait_here(); AFTER; }

CALL void vforks(void)
{
	if (vfork() == 0) {
		of_child();
		_exit(0);
	}
	AFTER;
}

static ucontext_t outside, inside;

CALL void coroutine(void) { wait_here(); AFTER; }

CALL void contexts(void)
{
	static char stack[65536] __attribute__((aligned(16)));
	getcontext(&inside);
	inside.uc_stack.ss_sp = stack;
	inside.uc_stack.ss_size = sizeof(stack);
	inside.uc_link = &outside;
	makecontext(&inside, coroutine, 0);
	swapcontext(&outside, &inside);
	AFTER;
}

#if defined(__x86_64__)
/* As OpenSSL's aesni_gcm_encrypt: the frame is found through rax, which nobody saves and what it calls leaves alone. */
void finds_by_rax(void);
__asm__(".text\n.globl finds_by_rax\n.type finds_by_rax,@function\nfinds_by_rax:\n.cfi_startproc\n"
	"lea (%rsp), %rax\n.cfi_def_cfa_register %rax\n"
	"push %rbx\n.cfi_offset %rbx, -16\npush %rbp\n.cfi_offset %rbp, -24\n"
	"sub $256, %rsp\nand $-128, %rsp\ncall leaves_rax\n"
	"mov -16(%rax), %rbp\n.cfi_restore %rbp\nmov -8(%rax), %rbx\n.cfi_restore %rbx\nlea (%rax), %rsp\n.cfi_def_cfa_register %rsp\nret\n"
	".cfi_endproc\n.size finds_by_rax, . - finds_by_rax\n"
	".type leaves_rax,@function\nleaves_rax:\n.cfi_startproc\n1: pause\njmp 1b\n.cfi_endproc\n.size leaves_rax, . - leaves_rax\n");

CALL void through_rax(void)
{
	if (write(1, "ready\n", 6) == 6)
		finds_by_rax();
	AFTER;
}
#endif

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} kinds[] = {{"interrupted", interrupted}, {"threads", threads}, {"vforks", vforks}, {"contexts", contexts},
#if defined(__x86_64__)
		     {"through_rax", through_rax},
#endif
	};
	const char *kind = argc > 1 ? argv[1] : "";
	if (!strcmp(kind, "recurse"))
		recurse(9);
	if (!strcmp(kind, "tail"))
		tail(argc);
	if (!strcmp(kind, "realigned"))
		realigned(100 + argc);
	for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (!strcmp(kind, kinds[i].name))
			kinds[i].run();
	return 1;
}
