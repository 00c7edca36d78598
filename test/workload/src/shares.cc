// The same truth as shares.c, in C++ with names that need demangling:
//   main > app::Engine::cycle() > app::Stage<int>::alpha(unsigned long) > app::(anonymous namespace)::leaf_sixty … 60 %
#include "spin.h"
#include <cstdlib>
#include <string>
#include <vector>

static volatile unsigned long result;

namespace app {
namespace {
NOINLINE void leaf_sixty(unsigned long turns) { result = spin(result, 60 * turns / 10); }
} // namespace

NOINLINE void leaf_thirty(const std::string &name, unsigned long turns) { result = spin(result + name.size(), 30 * turns / 10); }

template <typename T> struct Stage {
	NOINLINE void alpha(T turns) { leaf_sixty(turns); result = result + 1; }
	NOINLINE void leaf_ten(T turns) { result = spin(result, 10 * turns / 10); }
	NOINLINE void beta(T turns) { leaf_thirty("thirty", turns); leaf_ten(turns); result = result + 1; }
};

class Engine {
	std::vector<Stage<unsigned long>> stages_{1};

public:
	NOINLINE void cycle()
	{
		for (auto &s : stages_) {
			s.alpha(UNIT);
			s.beta(UNIT);
		}
		result = result + 1;
	}
};
} // namespace app

int main()
{
	app::Engine e;
	for (;;)
		e.cycle();
}
