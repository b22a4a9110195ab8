"""Values that are remembered for a short time."""

import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from cachetools import TTLCache

MAX_ENTRIES = 1_000

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A bounded map that forgets; any thread may use it. Forgetting early is harmless to its users."""

    def __init__(self, ttl_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._entries: TTLCache[K, V] = TTLCache(MAX_ENTRIES, ttl_s, timer=clock)

    def get(self, key: K) -> V | None:
        """The value, if it is recent."""
        with self._lock:
            return self._entries.get(key)

    def add(self, key: K, value: V) -> None:
        """Remember a value from now on."""
        with self._lock:
            self._entries[key] = value
