// Render is a C++ program for the demo: it draws the Mandelbrot set again and again, deeper each time, and keeps a histogram
// of the colours, which costs it one CPU.
#include <algorithm>
#include <cmath>
#include <complex>
#include <map>
#include <string>
#include <vector>

namespace render {

class Palette {
	std::map<int, std::string> names_;

public:
	Palette()
	{
		for (int i = 0; i <= 256; i++)
			names_[i] = "colour-" + std::to_string(i * 37 % 257);
	}
	__attribute__((noinline)) const std::string &name(int depth) const { return names_.find(depth)->second; }
};

__attribute__((noinline)) int escape(std::complex<double> c, int limit)
{
	std::complex<double> z = 0;
	int n = 0;
	for (; n < limit && std::norm(z) < 4; n++)
		z = z * z + c;
	return n;
}

class Frame {
	int width_, height_;
	std::vector<int> depth_;

public:
	Frame(int width, int height) : width_(width), height_(height), depth_(width * height) {}

	__attribute__((noinline)) void draw(std::complex<double> centre, double scale)
	{
		for (int y = 0; y < height_; y++)
			for (int x = 0; x < width_; x++)
				depth_[y * width_ + x] = escape(centre + scale * std::complex<double>(x - width_ / 2, y - height_ / 2), 256);
	}

	__attribute__((noinline)) std::map<std::string, int> histogram(const Palette &p) const
	{
		std::map<std::string, int> h;
		for (int d : depth_)
			h[p.name(d)]++;
		return h;
	}

	__attribute__((noinline)) int median() const
	{
		std::vector<int> sorted(depth_);
		std::sort(sorted.begin(), sorted.end());
		return sorted[sorted.size() / 2];
	}
};

} // namespace render

int main()
{
	render::Palette palette;
	render::Frame frame(320, 200);
	volatile size_t seen = 0;
	for (int n = 0;; n = (n + 1) % 60) {
		frame.draw({-0.7436, 0.1318}, std::pow(0.9, n) / 100);
		seen = seen + frame.histogram(palette).size() + frame.median();
	}
}
