/* Compiled for arm64 into arm64.so and, with signed return addresses, arm64-pac.so. See arm64.sh. */
int outside(int *);

int leaf(int n) { return n * 3; }

int caller(int n) { return outside(&n) + leaf(n); }

int large_frame(int n)
{
	int many[40000]; /* more than the distance of a signed 9-bit offset, and of a page */
	many[n] = n;
	return outside(many) + many[0];
}

int moving_frame(int n)
{
	int *p = __builtin_alloca(n);
	return outside(p) + p[0];
}

int early_return(int n)
{
	if (n < 0)
		return n;
	if (outside(&n))
		return outside(&n) + 1;
	return outside(&n) - 1;
}

int many_registers(int a, int b, int c, int d)
{
	int e = outside(&a), f = outside(&b), g = outside(&c), h = outside(&d);
	return outside(&a) + e * f + g * h + e * h;
}
