"""Values that are remembered for a short time."""

import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

MAX_ENTRIES = 1_000

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A bounded map that forgets; any thread may use it. Forgetting early is harmless to its users."""

    def __init__(self, ttl_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttl_s = ttl_s
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[K, tuple[float, V]] = {}
        """Oldest first."""

    def get(self, key: K) -> V | None:
        """The value, if it is recent."""
        with self._lock:
            added_s, value = self._entries.get(key, (0.0, None))
            return value if value is not None and self._clock() - added_s < self._ttl_s else None

    def add(self, key: K, value: V) -> None:
        """Remember a value from now on."""
        with self._lock:
            self._entries.pop(key, None)
            if len(self._entries) >= MAX_ENTRIES:
                del self._entries[next(iter(self._entries))]
            self._entries[key] = self._clock(), value
