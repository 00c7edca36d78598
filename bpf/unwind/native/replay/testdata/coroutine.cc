// A coroutine of C++20 that waits within one that it has resumed: their frames are on the heap, their calls on the stack.
#include <coroutine>
#include <unistd.h>

#define CALL extern "C" __attribute__((noipa))

struct task {
	struct promise_type {
		task get_return_object() { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
		std::suspend_always initial_suspend() { return {}; }
		std::suspend_always final_suspend() noexcept { return {}; }
		void return_void() {}
		void unhandled_exception() {}
	};
	std::coroutine_handle<promise_type> handle;
};

CALL void wait_here()
{
	if (write(1, "ready\n", 6) == 6)
		for (;;)
			pause();
}

CALL void resume(std::coroutine_handle<> h)
{
	h.resume();
	__asm__ volatile("" ::: "memory");
}

static task inner()
{
	co_await std::suspend_always{};
	wait_here();
}

static task outer()
{
	task t = inner();
	resume(t.handle);
	resume(t.handle);
	co_return;
}

int main()
{
	resume(outer().handle);
	return 1;
}
