"""Memory for weights, used again once no view of it is left.

A fresh mapping costs a fault and a zeroed page for every 4 KiB or 2 MiB of it. In a virtual machine that gives freed
memory back to its host that takes longer than receiving an adapter does, and a worker that swaps adapters would pay it
at every load.
"""

import mmap
import threading
import weakref
from contextlib import suppress

import numpy as np

SMALLEST_BYTES = 4 * 2**20
"""Smaller pieces are the C library's to reuse."""
KEPT_FREE_BYTES = 256 * 2**20
"""Most bytes that are kept and in no use."""
LARGEST_SHARE = 1.125
"""A block is taken again for no less than this part of itself."""
PAGE_BYTES = 2 * 2**20
"""A huge page's."""


class RecycledMemory:
    """Memory for one purpose, such as blobs that arrive; any thread may take it, and views of it may end on any."""

    def __init__(self, kept_free_bytes: int = KEPT_FREE_BYTES) -> None:
        self._kept_free_bytes = kept_free_bytes
        # Reentrant: a view may end, by garbage collection, while its own thread takes memory.
        self._lock = threading.RLock()
        self._free: list[mmap.mmap] = []
        """Oldest first."""

    @property
    def free_bytes(self) -> int:
        """Bytes that are kept and in no use."""
        return sum(map(len, tuple(self._free)))

    def take(self, size_bytes: int) -> memoryview:
        """Memory with any content, which is used again when this view, and all that were made of it, have ended."""
        if size_bytes < SMALLEST_BYTES:
            return np.empty(size_bytes, np.uint8).data
        block = self._take_free(size_bytes)
        if block is None:
            block = _map(size_bytes)
        view = np.frombuffer(block, np.uint8, count=size_bytes)
        weakref.finalize(view, self._give_back, block).atexit = False
        # Not the array: numpy's own views would refer to the block, and not keep this one from ending.
        return view.data

    def _take_free(self, size_bytes: int) -> mmap.mmap | None:
        with self._lock:
            fitting = [block for block in self._free if size_bytes <= len(block) <= LARGEST_SHARE * size_bytes]
            block = min(fitting, key=len, default=None)
            if block is not None:
                with suppress(ValueError):  # let go of in this moment by a view that ended
                    self._free.remove(block)
            return block

    def _give_back(self, block: mmap.mmap) -> None:
        with self._lock:
            self._free.append(block)
            while self.free_bytes > self._kept_free_bytes:
                del self._free[0]


def _map(size_bytes: int) -> mmap.mmap:
    size_bytes = -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
    block = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            block.madvise(mmap.MADV_HUGEPAGE)
    return block
