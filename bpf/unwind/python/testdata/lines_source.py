# Code of many shapes for the golden line tables: see lines.py.
import contextlib


def straight(a):
    b = a + 1
    c = b * 2

    return c


def long_call(a, b):
    return dict(
        first=a,
        second=straight(
            b
            + a
        ),
        third=[x for x in range(a)
               if x % 2],
    )


def branches(n):
    total = 0
    for i in range(n):
        if i % 3 == 0:
            continue
        elif i % 5 == 0:
            total += i
        else:
            try:
                total //= i - 7
            except ZeroDivisionError as e:
                total = -1
            finally:
                total += 1
    else:
        total += 2
    while total > 100:
        total -= 9
    return total


def generator(n):
    for i in range(n):
        x = yield i
        if x:
            yield from generator(x)


async def coroutine(n):
    async with contextlib.AsyncExitStack() as s:
        await s.aclose()
    return [y async for y in agen(n)]


async def agen(n):
    for i in range(n):
        yield i


class Thing:
    """A class's body is code too."""

    def __init__(self):
        self.f = lambda z: (z +
                            1)
@GAP@

def far_away():
    with contextlib.suppress(Exception):
        assert straight(1) == 4, "no"
    return (branches(3),
            generator)
