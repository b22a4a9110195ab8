"""Tuning of a process that moves blobs or serves, once at its start: memory that is reused, threads that take turns."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# <malloc.h> of glibc.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

LARGEST_REUSED_BYTES = 4 * 2**20
MAX_ARENAS = 4
"""Threads share them; by default there are eight for each core."""
KEPT_FREE_BYTES = 32 * 2**20
"""At most, in each arena."""
SWITCH_INTERVAL_S = 0.0005
GC_THRESHOLDS = (1_000, 5, 2_000)
"""Passes over young, older and all objects. One over ten thousand took five milliseconds on a busy machine, and stops
every thread meanwhile; one over all takes longer still."""


def reuse_freed_memory() -> bool:
    """Have the C library hand out again what was freed; false where it is not glibc, and nothing changes.

    By default every buffer above 128 KiB is mapped anew and returned to the kernel: its pages are zeroed and faulted
    in again for each message of a stream, which costs more than everything else that moves it. Memory that is
    kept free is bounded by MAX_ARENAS times KEPT_FREE_BYTES.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    options = (
        (_M_MMAP_THRESHOLD, LARGEST_REUSED_BYTES),
        (_M_TRIM_THRESHOLD, KEPT_FREE_BYTES),
        (_M_ARENA_MAX, MAX_ARENAS),
    )
    return all(mallopt(name, value) == 1 for name, value in options)


def take_turns_often() -> None:
    """Let a waiting event loop have the interpreter after half a millisecond of another thread's Python, not five."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)


@contextmanager
def importing_much() -> Iterator[None]:
    """Pause garbage collection while libraries are imported, and take what they made out of it.

    Importing makes hundreds of thousands of objects that stay; looking through them takes a seventh of its time.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def spare_what_stays() -> None:
    """Take what was made so far out of garbage collection, and collect less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
