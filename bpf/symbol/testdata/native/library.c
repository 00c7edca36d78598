/* A library with what libraries have: a global, a weak alias, an IFUNC, a local function. */
#include <stdlib.h>
static __attribute__((noinline)) int hidden_helper(int n) { return n + atoi("1"); }
int library_global(int n) { return hidden_helper(n) * 2; }
int library_alias(int n) __attribute__((weak, alias("library_global")));
static int one(int n) { return n; }
static int two(int n) { return n + 2; }
static int (*choose(void))(int) { return getenv("HOME") ? one : two; }
static int (*choose_plain(void))(int) { return one; }
int library_ifunc(int n) __attribute__((ifunc("choose_plain")));
void *library_address(void) { return (void *)library_global; }
int library_choose(int n) { return choose()(n); }
