"""Rendezvous hashing: every version orders the workers in its own way, the same on every machine.

Each worker has a score for each version that depends on no other worker; the order is by score. So when a worker joins
or leaves, nothing changes but its own place in the orders, and only the versions that it is first for move (1/N of
all), from and to all the others (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998).

The score is that of multi-probe consistent hashing (Appleton and O'Reilly, 2015): a worker is a few points on a
circle, a version is a few others, and the score is the shortest way forward from one of the version's to one of the
worker's. Unlike independent scores, the best of these are found by bisection, without looking at every worker.
"""

import hashlib
import struct
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import lru_cache
from heapq import heapify, heapreplace

from hotslot.ids import Digest, WorkerId

PROBES = 24
"""Points of a version. More make the shares of the workers more even, and take longer."""
POINTS = 16
"""Points of a worker. More make the shares more even, also those of what a lost worker had, and use more memory."""
_PROBES_FORMAT = struct.Struct(f"<{PROBES}Q")
_POINTS_FORMAT = struct.Struct(f"<{POINTS}Q")
_CIRCLE = 2**64 - 1
_MAX_REMEMBERED = 10_000
_SHORTEST = 8
"""Orders are computed in lengths of this times a power of two: one that is needed a little longer is there already."""


class Rendezvous:
    """The orders of one set of workers; remembers what it computed, so keep it while the set stays the same."""

    def __init__(self, worker_ids: Iterable[WorkerId]) -> None:
        self.worker_ids = tuple(sorted(worker_ids))
        # Equal points (one pair in 2**64) are ordered by id, so that every machine agrees.
        placed = sorted((point, worker_id) for worker_id in self.worker_ids for point in _points(worker_id))
        self._points = [point for point, _ in placed]
        self._ids = [worker_id for _, worker_id in placed]
        self._remembered = lru_cache(maxsize=_MAX_REMEMBERED)(self._compute)

    def top(self, key: Digest, count: int) -> Sequence[WorkerId]:
        """The first `count` workers in the version's order."""
        return self._remembered(key, _SHORTEST << ((count - 1) // _SHORTEST).bit_length())[:count]

    def _compute(self, key: Digest, count: int) -> tuple[WorkerId, ...]:
        """Walk on from all probes at once, always from the one that has come the shortest way."""
        points, size = self._points, len(self._points)
        wanted = min(count, len(self.worker_ids))
        if not wanted:
            return ()
        walks = []
        for probe in _probes(key):
            at = bisect_left(points, probe) % size
            walks.append(((points[at] - probe) & _CIRCLE, at))
        heapify(walks)
        found: dict[WorkerId, None] = {}
        while len(found) < wanted:
            way, at = walks[0]
            found[self._ids[at]] = None
            following = (at + 1) % size
            heapreplace(walks, (way + ((points[following] - points[at]) & _CIRCLE), following))
        return tuple(found)


def _points(worker_id: WorkerId) -> tuple[int, ...]:
    return _POINTS_FORMAT.unpack(hashlib.shake_128(worker_id.encode()).digest(_POINTS_FORMAT.size))


def _probes(key: Digest) -> tuple[int, ...]:
    return _PROBES_FORMAT.unpack(hashlib.shake_128(key.encode()).digest(_PROBES_FORMAT.size))
