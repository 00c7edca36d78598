"""A program that spends known shares of its time in functions of known names, on the lines marked "leaf"."""
import asyncio
import sys
import threading
import time

clock = time.thread_time


class Stage:
    def method(self, seconds):
        end = clock() + seconds
        while clock() < end:  # leaf method
            pass  # leaf method


def generator(seconds):
    end = clock() + seconds
    while clock() < end:  # leaf generator
        pass  # leaf generator
    yield


async def coroutine(seconds):
    end = clock() + seconds
    while clock() < end:  # leaf coroutine
        pass  # leaf coroutine


async def awaits(seconds):
    await coroutine(seconds)


def key(seconds):
    end = clock() + seconds
    while clock() < end:  # leaf key
        pass  # leaf key


def größe(seconds, depth):
    if depth:
        return größe(seconds, depth - 1)
    end = clock() + seconds
    while clock() < end:  # leaf größe
        pass  # leaf größe


def worker(seconds):
    end = clock() + seconds
    while clock() < end:  # leaf worker
        pass  # leaf worker


def main(seconds):
    for _ in range(int(seconds * 10)):
        Stage().method(0.02)
        for _ in generator(0.015):
            pass
        asyncio.run(awaits(0.015))
        sorted([0.02], key=key)
        größe(0.01, 60)
        thread = threading.Thread(target=worker, args=(0.02,))
        thread.start()
        thread.join()


main(float(sys.argv[1]))
