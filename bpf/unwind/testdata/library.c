/* A library with one function that works, whose name the test chooses with -DNAME. */
__attribute__((noinline, used)) static unsigned NAME(unsigned x)
{
	for (int i = 0; i < 20000; i++)
		x = x * 31 + i;
	return x;
}
__attribute__((noinline)) unsigned exported(unsigned x)
{
	return NAME(x) + 1;
}
