// Functions that the compiler inlines into one another, in several files' worth of forms: templates, lambdas, statics, a switch
// that becomes cold parts, a recursion that stays a call.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

namespace shop {

static inline int half(int n) { return n / 2 + 1; }

template <typename T> inline T twice(T n) {
	T sum = n;
	for (T i = 0; i < half(int(n)); i++)
		sum += i ^ n;
	return sum;
}

struct Cart {
	std::vector<int> prices;
	int total() const {
		int sum = 0;
		for (int p : prices)
			sum += twice(p);
		return sum;
	}
	__attribute__((noinline)) void sort() {
		std::sort(prices.begin(), prices.end(), [](int a, int b) { return twice(a) > twice(b); });
	}
};

__attribute__((noinline)) long depth(long n) { return n < 2 ? twice(n) : depth(n - 1) + depth(n - 2) + half(int(n)); }

__attribute__((noinline)) std::string label(int n) {
	switch (n % 3) {
	case 0: return "zero" + std::to_string(twice(n));
	case 1: return "one";
	default: throw n;
	}
}

} // namespace shop

int main(int argc, char **argv) {
	shop::Cart cart;
	for (int i = 0; i < argc * 10; i++)
		cart.prices.push_back(shop::half(i * 7919));
	cart.sort();
	try {
		printf("%d %ld %s\n", cart.total(), shop::depth(argc), shop::label(argc).c_str());
	} catch (int n) {
		printf("%d\n", n);
	}
	return 0;
}
