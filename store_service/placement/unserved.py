"""Memory of the pools that callers asked for lately and that had no worker."""

import math
import time
from collections.abc import Callable, Iterable

from cachetools import LRUCache

MAX_NAMES = 1024
"""Names are callers' own: the oldest go first."""


class UnservedPicks:
    """Times of the last picks that found no worker, by a base model's name or digest. Belongs to one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times_s: LRUCache[str, float] = LRUCache(MAX_NAMES)

    def note(self, name_or_digest: str) -> None:
        """A pick for this base model found no worker."""
        self._times_s[name_or_digest] = self._clock()

    def age_s(self, names: Iterable[str]) -> float:
        """Time since the last such pick under one of the names; infinite without one."""
        return self._clock() - max((self._times_s.get(name, -math.inf) for name in names), default=-math.inf)
