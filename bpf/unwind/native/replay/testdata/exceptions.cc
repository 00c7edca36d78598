// An exception through frames, single-stepped through libgcc's own unwinder.
struct Guard {
	int *n;
	~Guard() { ++*n; }
};

__attribute__((noinline)) static int thrower(int n)
{
	if (n == 0)
		throw n + 42;
	return thrower(n - 1) + 1;
}

__attribute__((noinline)) static int guarded(int n, int *count)
{
	Guard guard{count};
	return thrower(n) + 1;
}

int main()
{
	int count = 0;
	try {
		return guarded(3, &count);
	} catch (int n) {
		return n == 42 && count == 1 ? 0 : 1;
	}
}
