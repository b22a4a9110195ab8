"""One stretch of host memory that a device copies from, registered once, and shared out to adapters."""

import mmap
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import structlog

from shared.recycled_memory import RecycledMemory

log = structlog.get_logger(__name__)

PIECE_BYTES = 4096
"""Pieces begin and end at multiples of it."""


class PinnedArena:
    """Memory for adapters; any thread may take it, and views of it may end on any.

    Registering memory takes milliseconds and halts the device, so it is done once, for all of it. What finds no room,
    because it is full or in pieces, gets memory that is not registered: a copy from there is right, and slower.
    """

    def __init__(self, size_bytes: int, register: Callable[[int, int], None]) -> None:
        """`register` is called once, with address and size; memory that it refuses is used all the same."""
        size_bytes = -(-max(size_bytes, 1) // PIECE_BYTES) * PIECE_BYTES
        self._block = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without them
                self._block.madvise(mmap.MADV_HUGEPAGE)
        self.address = np.frombuffer(self._block, np.uint8).ctypes.data
        try:
            register(self.address, size_bytes)
        except RuntimeError as exc:
            log.warning("arena_not_registered", size_bytes=size_bytes, why=str(exc))
        self.size_bytes = size_bytes
        self._lock = threading.Lock()
        self._free: list[tuple[int, int]] = [(0, size_bytes)]
        """Begin and end of each free piece; they ascend, and no two touch."""
        self._ended: deque[tuple[int, int]] = deque()
        """Pieces whose last view has ended. A view may end, by garbage collection, while its thread is in `take`."""
        self._beside = RecycledMemory()

    @property
    def free_bytes(self) -> int:
        """Bytes that are in no use."""
        with self._lock:
            self._take_back()
            return sum(end - begin for begin, end in self._free)

    def take(self, size_bytes: int) -> memoryview:
        """Memory with any content, which is used again when this view, and all that were made of it, have ended."""
        length = -(-max(size_bytes, 1) // PIECE_BYTES) * PIECE_BYTES
        with self._lock:
            self._take_back()
            fitting = [piece for piece in self._free if piece[1] - piece[0] >= length]
            # The smallest that fits, so that large ones stay for large adapters.
            piece = min(fitting, key=lambda piece: piece[1] - piece[0], default=None)
            begin, end = piece or (0, 0)
            if piece is not None:
                index = self._free.index(piece)
                self._free[index : index + 1] = [(begin + length, end)] if end - begin > length else []
        if piece is None:
            log.info("arena_full", size_bytes=size_bytes)
            return self._beside.take(size_bytes)
        view = np.frombuffer(self._block, np.uint8, count=size_bytes, offset=begin)
        weakref.finalize(view, self._ended.append, (begin, begin + length)).atexit = False
        # Not the array: numpy's own views would refer to the block, and not keep this one from ending.
        return view.data

    def _take_back(self) -> None:
        while self._ended:
            self._free.append(self._ended.popleft())
        self._free.sort()
        joined: list[tuple[int, int]] = []
        for begin, end in self._free:
            if joined and joined[-1][1] == begin:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((begin, end))
        self._free = joined
