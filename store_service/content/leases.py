"""Leases of blobs: a blob in use is not evicted. Told from any thread."""

import io
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from store_service.content.keys import BlobKey


class Leases:
    """Holds that end when they are given back, and hints that end by themselves after `lease_s`."""

    def __init__(self, lease_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease_s = lease_s
        self._clock = clock
        self._held: Counter[BlobKey] = Counter()
        self._until_s: dict[BlobKey, float] = {}
        # A file that is forgotten gives its lease back from wherever it is collected, maybe inside of here.
        self._lock = threading.RLock()

    def take(self, key: BlobKey) -> None:
        """Hold a blob that is read or published, until `give_back`."""
        with self._lock:
            self._held[key] += 1

    def give_back(self, key: BlobKey) -> None:
        """End one hold."""
        with self._lock:
            self._held[key] -= 1
            if self._held[key] <= 0:
                del self._held[key]

    @contextmanager
    def holding(self, key: BlobKey) -> Iterator[None]:
        """`take` and `give_back` around a block."""
        self.take(key)
        try:
            yield
        finally:
            self.give_back(key)

    def extend(self, key: BlobKey) -> None:
        """Hold a blob that will probably be wanted within `lease_s`, for so long."""
        with self._lock:
            self._until_s[key] = self._clock() + self._lease_s

    def leased(self) -> set[BlobKey]:
        """All blobs in use now."""
        with self._lock:
            now_s = self._clock()
            self._until_s = {key: until_s for key, until_s in self._until_s.items() if until_s > now_s}
            return set(self._held) | set(self._until_s)

    @contextmanager
    def excluded(self, key: BlobKey) -> Iterator[bool]:
        """Tell if a blob is free; it stays so until the block ends, which must therefore be short."""
        with self._lock:
            yield key not in self._held and self._until_s.get(key, -math.inf) <= self._clock()


class LeasedFile(io.FileIO):
    """A blob open for reading, whose lease ends when it is closed or forgotten."""

    def __init__(self, path: Path, leases: Leases, key: BlobKey) -> None:
        """Raises OSError, and then there is no lease."""
        self._give_back: Callable[[], None] | None = None
        leases.take(key)
        try:
            super().__init__(path, "r")
        except BaseException:
            leases.give_back(key)
            raise
        self._give_back = lambda: leases.give_back(key)

    def close(self) -> None:
        """Close, and give the lease back once."""
        give_back, self._give_back = self._give_back, None
        super().close()
        if give_back is not None:
            give_back()
