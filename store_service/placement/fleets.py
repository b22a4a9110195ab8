"""The pools as they were a moment ago, kept so that a decision does not read the whole fleet."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from shared.coordination.directory import Directory, PoolView
from shared.coordination.records import WorkerRecord
from shared.coordination.scripts import REVISION_SEQUENCES
from shared.ids import Digest
from shared.placement.policy import DEFAULT_POLICY, Fleet, PolicyOptions
from shared.placement.view import surviving_workers

REFRESH_S = 0.5


@dataclass(frozen=True, slots=True)
class PoolPicture:
    """A pool and what was prepared from it."""

    workers: tuple[WorkerRecord, ...]
    """All that hold a lease, also those that take no requests."""
    fleet: Fleet
    revision: int
    """Of the moment it was read, on the scale of placement revisions."""
    read_at_s: float


class FleetCache:
    """Reads a pool at most once per `refresh_s`, however many ask. Raises CoordinationUnavailableError."""

    def __init__(
        self,
        directory: Directory,
        clock: Callable[[], float],
        *,
        refresh_s: float = REFRESH_S,
        policy: PolicyOptions = DEFAULT_POLICY,
    ) -> None:
        self.refresh_s = refresh_s
        self._directory = directory
        self._clock = clock
        self._policy = policy
        self._pictures: dict[Digest, PoolPicture] = {}
        self._locks: dict[Digest, asyncio.Lock] = {}
        self._pools: list[Digest] = []
        self._pools_read_at_s = float("-inf")

    async def pools(self) -> list[Digest]:
        """The pools that exist or did lately."""
        if self._clock() - self._pools_read_at_s >= self.refresh_s:
            self._pools = await self._directory.pools()
            self._pools_read_at_s = self._clock()
            known = set(self._pools)
            self._pictures = {pool: picture for pool, picture in self._pictures.items() if pool in known}
            self._locks = {pool: lock for pool, lock in self._locks.items() if pool in known or lock.locked()}
        return self._pools

    async def picture(self, pool: Digest) -> PoolPicture:
        """The pool, at most `refresh_s` old."""
        known = self._fresh(pool)
        if known is not None:
            return known
        async with self._locks.setdefault(pool, asyncio.Lock()):
            known = self._fresh(pool)
            if known is not None:
                return known
            view = await self._directory.workers(pool)
            picture = self._prepare(view, self._pictures.get(pool))
            if view.workers or picture.fleet.workers:
                self._pictures[pool] = picture
            else:
                # Callers choose the digests: what does not exist is not remembered.
                self._pictures.pop(pool, None)
            return picture

    def _fresh(self, pool: Digest) -> PoolPicture | None:
        picture = self._pictures.get(pool)
        return picture if picture is not None and self._clock() - picture.read_at_s < self.refresh_s else None

    def _prepare(self, view: PoolView, before: PoolPicture | None) -> PoolPicture:
        known = before.fleet.workers.values() if before is not None else ()
        workers = surviving_workers(known, view.workers, view.time_s)
        rendezvous = before.fleet.rendezvous if before is not None else None
        fleet = Fleet(workers, view.time_s, options=self._policy, rendezvous=rendezvous)
        revision = round(view.time_s * 1e3) * REVISION_SEQUENCES
        return PoolPicture(view.workers, fleet, revision, self._clock())
