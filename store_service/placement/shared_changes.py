"""Changes of placements for all who watch: however many there are, and wherever they begin, a pool is read once a time.

A watcher that lags reads on its own until it has caught up. One that begins beyond the newest change reads from there.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from cachetools import LRUCache

from hotslot.errors import RevisionCompactedError
from hotslot.ids import Digest
from hotslot.single_flight import SingleFlight
from shared.coordination.directory import ChangesRead, Directory

FRESH_S = 0.1
MAX_POOLS = 256
"""Callers choose the digests of pools."""


@dataclass(frozen=True, slots=True)
class _Read:
    after: int
    at_s: float
    found: ChangesRead


class SharedChanges:
    """Reads of one process. Lives on the event loop."""

    def __init__(self, directory: Directory, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._clock = clock
        self._reads: SingleFlight[tuple[Digest, int], ChangesRead] = SingleFlight()
        self._looks: SingleFlight[Digest, int] = SingleFlight()
        self._newest: LRUCache[Digest, int] = LRUCache(MAX_POOLS)
        """Revisions of the newest changes that are known."""
        self._latest: LRUCache[Digest, _Read] = LRUCache(MAX_POOLS)
        """Reads from these."""

    async def __call__(self, pool: Digest, after: int) -> ChangesRead:
        """As `Directory.changes`, at most FRESH_S old."""
        newest = self._newest.get(pool)
        if newest is None:
            newest = await self._looks.run(pool, partial(self._directory.revision, pool))
            newest = self._newest[pool] = max(newest, self._newest.get(pool, 0))
        if after < newest:
            return await self._reads.run((pool, after), partial(self._lagging, pool, after))
        try:
            found = await self._from(pool, newest)
        except RevisionCompactedError:
            self._newest.pop(pool, None)
            return await self._lagging(pool, after)
        changes = tuple(change for change in found.changes if change.revision > after)
        return replace(found, changes=changes, next_revision=max(found.next_revision, after))

    async def _lagging(self, pool: Digest, after: int) -> ChangesRead:
        return self._noted(pool, await self._directory.changes(pool, after))

    async def _from(self, pool: Digest, newest: int) -> ChangesRead:
        latest = self._latest.get(pool)
        if latest is not None and latest.after == newest and self._clock() - latest.at_s < FRESH_S:
            return latest.found
        return await self._reads.run((pool, newest), lambda: self._read(pool, newest))

    async def _read(self, pool: Digest, newest: int) -> ChangesRead:
        began_s = self._clock()
        found = await self._directory.changes(pool, newest)
        self._latest[pool] = _Read(newest, began_s, found)
        return self._noted(pool, found)

    def _noted(self, pool: Digest, found: ChangesRead) -> ChangesRead:
        if found.changes:
            self._newest[pool] = max(self._newest.get(pool, 0), found.changes[-1].revision)
        return found
