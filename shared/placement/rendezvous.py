"""Rendezvous hashing: every version orders the workers in its own way, the same on every machine.

Each worker scores each version; the order is by score. When a worker joins or leaves, only the versions that it is
first for move (1/N of all), and they spread over all the others (Thaler and Ravishankar, "Using name-based mappings
to increase hit rates", 1998).
"""

import hashlib
import heapq
from collections.abc import Iterable, Sequence
from functools import lru_cache

from shared.ids import Digest, WorkerId

_MAX_REMEMBERED = 10_000
_STEP = 8
"""Orders are computed in lengths of a multiple of this, so that asking for one more is free."""


def score(key: Digest, worker_id: WorkerId) -> bytes:
    """How much this worker wants this version: uniform over 64 bits, compared as bytes."""
    return hashlib.blake2b(f"{key} {worker_id}".encode(), digest_size=8).digest()


class Rendezvous:
    """The orders of one set of workers; remembers what it computed, so keep it while the set stays the same."""

    def __init__(self, worker_ids: Iterable[WorkerId]) -> None:
        self.worker_ids = tuple(sorted(worker_ids))
        self._remembered = lru_cache(maxsize=_MAX_REMEMBERED)(self._compute)

    def top(self, key: Digest, count: int) -> Sequence[WorkerId]:
        """The first `count` workers in the version's order."""
        return self._remembered(key, -(-count // _STEP) * _STEP)[:count]

    def _compute(self, key: Digest, count: int) -> tuple[WorkerId, ...]:
        # Equal scores (one in 2**64) are ordered by id, so that every machine agrees.
        best = heapq.nlargest(count, ((score(key, worker_id), worker_id) for worker_id in self.worker_ids))
        return tuple(worker_id for _, worker_id in best)
