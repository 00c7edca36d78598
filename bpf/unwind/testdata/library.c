/* A library with one function, whose name and surroundings the test chooses with -D. */
#ifndef PAD
#define PAD 0
#endif
__attribute__((noinline, used)) static int NAME(int x)
{
	return x * 3 + PAD;
}
__attribute__((noinline)) int exported(int x)
{
	return NAME(x) + 1;
}
