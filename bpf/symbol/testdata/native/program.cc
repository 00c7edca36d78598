#include <vector>
#include <cstdio>
namespace shapes {
template <class T> struct Box {
	T side;
	__attribute__((noinline)) T area(T n) { return side * n; }
};
}
int main(int argc, char **) {
	shapes::Box<int> box{argc};
	std::vector<int> list;
	list.push_back(box.area(3));
	std::printf("%d\n", list[0]);
}
