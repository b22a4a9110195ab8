"""Bounds of time that documents promise, at the pace that a busy machine has just then."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

WORK_S = 0.1


def slowness() -> float:
    """How many times longer than alone this process's work takes now: 1 where a core is free for it."""
    began_s, worked_s = time.monotonic(), time.thread_time()
    while time.thread_time() - worked_s < WORK_S:
        pass
    return max(1.0, (time.monotonic() - began_s) / WORK_S)


@contextmanager
def within(bound_s: float) -> Iterator[None]:
    """A block that ends within a bound, which is longer by as much as the machine is slower before or after it."""
    before = slowness()
    began_s = time.monotonic()
    yield
    took_s = time.monotonic() - began_s
    pace = max(before, slowness())
    assert took_s <= bound_s * pace, f"it took {took_s:.1f} s of {bound_s:.1f} s on a machine {pace:.1f} times slower"
