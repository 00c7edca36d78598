"""A program whose functions take known shares of its time."""
import sys
import time


def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        for _ in range(1000):
            pass


def twenty(seconds):
    spin_twenty(seconds * 0.2)


def spin_twenty(seconds):
    end = time.process_time() + seconds
    n = 0
    while time.process_time() < end:
        for i in range(1000):
            n += i
    return n


def key(x):
    return spin_key(x)


def spin_key(x):
    end = time.process_time() + x
    n = 0
    while time.process_time() < end:
        for i in range(1000):
            n ^= i
    return n


def main(seconds):
    spin(seconds * 0.5)
    twenty(seconds)
    sorted([seconds * 0.1, seconds * 0.2], key=key)


if __name__ == "__main__":
    main(float(sys.argv[1]))
