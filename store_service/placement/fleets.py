"""The pools as they were a moment ago, kept so that a decision does not read the whole fleet."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hotslot.ids import DIGEST_PREFIX, Digest, parse_digest
from shared.coordination.connection import RedisConnection
from shared.coordination.directory import Directory
from shared.coordination.directory_functions import REVISION_SEQUENCES
from shared.coordination.known_pool import KnownPool
from shared.coordination.seals import seals_of
from shared.fleet.policy_options import DEFAULT_POLICY
from shared.fleet.records import Abilities, PlacedVersion, WorkerRecord
from store_service.placement.groups import WorkerGroup, group_workers
from store_service.settings import StoreSettings

REFRESH_S = 0.5


@dataclass(frozen=True, slots=True)
class PoolPicture:
    """A pool and what was prepared from it."""

    workers: tuple[WorkerRecord, ...]
    """All whose leases run, also those that take no requests."""
    groups: Mapping[Abilities, WorkerGroup]
    revision: int
    """Revision at the moment of reading, on the scale of placement revisions."""
    read_at_s: float
    known: KnownPool

    async def placements(self, digests: Sequence[Digest]) -> Mapping[Digest, Sequence[PlacedVersion]]:
        """Placements of these versions now; raises CoordinationUnavailableError."""
        return await self.known.placements(digests)


class FleetCache:
    """Reads a pool at most once per REFRESH_S, however many ask. Raises CoordinationUnavailableError."""

    def __init__(self, directory: Directory, clock: Callable[[], float] = time.monotonic) -> None:
        self.directory = directory
        self._clock = clock
        self._pictures: dict[Digest, PoolPicture] = {}
        self._locks: dict[Digest, asyncio.Lock] = {}
        self._pools: list[Digest] = []
        self._pools_read_at_s = float("-inf")

    async def pools(self) -> list[Digest]:
        """The pools that exist or did lately."""
        if self._clock() - self._pools_read_at_s >= REFRESH_S:
            pools = set(await self.directory.pools())
            # Redis may have lost the list: other pools stay until no lease runs there.
            for pool in self._pictures.keys() - pools:
                if (await self.picture(pool)).workers:
                    pools.add(pool)
            self._pools = sorted(pools)
            self._pools_read_at_s = self._clock()
            self._pictures = {pool: picture for pool, picture in self._pictures.items() if pool in pools}
            self._locks = {pool: lock for pool, lock in self._locks.items() if pool in pools or lock.locked()}
        return self._pools

    async def pools_named(self, base_model: str) -> list[Digest]:
        """The pools of a base model by name or digest; all of them for an empty text."""
        if base_model.startswith(DIGEST_PREFIX):
            return [parse_digest(base_model, field="base_model")]
        pools = await self.pools()
        if not base_model:
            return list(pools)
        return [
            pool
            for pool in pools
            if any(each.info.base_model == base_model for each in (await self.picture(pool)).workers)
        ]

    async def picture(self, pool: Digest) -> PoolPicture:
        """The pool, at most REFRESH_S old."""
        known = self._fresh(pool)
        if known is not None:
            return known
        async with self._locks.setdefault(pool, asyncio.Lock()):
            known = self._fresh(pool)
            if known is not None:
                return known
            picture = await self._read(pool, self._pictures.get(pool))
            if picture.workers:
                self._pictures[pool] = picture
            else:
                # Callers choose the digests: what does not exist is not remembered.
                self._pictures.pop(pool, None)
            return picture

    def _fresh(self, pool: Digest) -> PoolPicture | None:
        picture = self._pictures.get(pool)
        return picture if picture is not None and self._clock() - picture.read_at_s < REFRESH_S else None

    async def _read(self, pool: Digest, before: PoolPicture | None) -> PoolPicture:
        known = before.known if before is not None else KnownPool(self.directory, pool)
        view = await known.workers()
        groups = group_workers(view.workers, view.time_s, DEFAULT_POLICY, before.groups if before is not None else {})
        revision = round(view.time_s * 1e3) * REVISION_SEQUENCES
        return PoolPicture(view.workers, groups, revision, self._clock(), known)


def open_fleets(redis: RedisConnection, settings: StoreSettings) -> FleetCache:
    """The fleets as Redis has them, as far as the settings let it be believed; raises InvalidRequestError."""
    assert settings.redis_url is not None, "there is a connection"
    return FleetCache(Directory(redis, seals_of(settings.redis_url, settings)))
