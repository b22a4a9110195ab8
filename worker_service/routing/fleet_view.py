"""The pool as this worker knows it: a moment old, and never waited for longer than a request can spare.

Readers get the last picture at once and a newer one is read behind their backs. While Redis is away or slow the last
picture is used for as long as the leases in it run; then there is none, and a request is served where it is.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog
from cachetools import TTLCache

from hotslot.errors import CoordinationUnavailableError
from hotslot.ids import Digest
from hotslot.single_flight import SingleFlight
from shared.coordination.known_pool import KnownPool
from shared.fleet.policy import Fleet
from shared.fleet.records import PlacedVersion, WorkerInfo

log = structlog.get_logger(__name__)

MAX_REMEMBERED = 4_096


@dataclass(frozen=True, slots=True)
class ViewLimits:
    """Freshness of the picture, and patience for it."""

    refresh_s: float = 0.5
    """Age of a picture at which a newer one is read."""
    refresh_per_worker_s: float = 0.005
    """The same for each worker of the pool, where that is longer: all of them read, and each reads all."""
    max_age_s: float = 5.0
    """Largest age of a picture while Redis is there; in a large pool two refreshes, where that is longer."""
    placement_ttl_s: float = 0.25
    """Time for which the holders of a version are believed."""
    patience_s: float = 0.1
    """Longest wait of a request for Redis."""
    away_s: float = 1.0
    """Time for which no request waits after one waited in vain."""


@dataclass(frozen=True, slots=True)
class Sight:
    """Picture from which a decision is made."""

    fleet: Fleet
    placements: Mapping[Digest, Sequence[PlacedVersion]]


class FleetView:
    """Reads the pool of one worker. Belongs to one event loop."""

    def __init__(
        self,
        pool: KnownPool,
        me: WorkerInfo,
        on_members: Callable[[frozenset[str]], Awaitable[None]],
        limits: ViewLimits = ViewLimits(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_members` hears the endpoints of each new picture, this worker's own included."""
        self.me = me
        """Worker that asks; only workers that serve alike are seen."""
        self._pool = pool
        self._on_members = on_members
        self._limits = limits
        self._clock = clock
        self._fleet: Fleet | None = None
        self._read_at_s = float("-inf")
        self._recalled_at_s = float("-inf")
        self._every_s = limits.refresh_s
        self._away_until_s = float("-inf")
        self._refreshes: SingleFlight[None, Fleet] = SingleFlight()
        self._placements: TTLCache[Digest, Sequence[PlacedVersion]] = TTLCache(
            MAX_REMEMBERED, limits.placement_ttl_s, timer=clock
        )
        self._reads: SingleFlight[tuple[Digest, ...], Mapping[Digest, Sequence[PlacedVersion]]] = SingleFlight()

    async def look(self, digests: Sequence[Digest]) -> Sight | None:
        """The fleet and who holds these versions; None when no other worker is known."""
        if self._clock() >= self._away_until_s:
            try:
                async with asyncio.timeout(self._limits.patience_s):
                    fleet = await self._current_fleet()
                    return Sight(fleet, await self._current_placements(tuple(dict.fromkeys(digests))))
            except (CoordinationUnavailableError, TimeoutError) as exc:
                self._away_until_s = self._clock() + self._limits.away_s
                log.warning("fleet_not_read", why=str(exc) or "Redis did not answer in time")
        return self._recall(digests)

    async def close(self) -> None:
        """End what is under way."""
        await self._reads.close()
        await self._refreshes.close()

    def _recall(self, digests: Sequence[Digest]) -> Sight | None:
        """Picture from before Redis went away; None once no other worker's lease runs."""
        if self._fleet is None:
            return None
        if self._clock() - self._recalled_at_s >= self._every_s:
            self._recalled_at_s = self._clock()
            self._fleet = Fleet(self._fleet.workers.values(), self._pool.time_s, rendezvous=self._fleet.rendezvous)
        if self._fleet.workers.keys() <= {self.me.worker_id}:
            return None
        return Sight(self._fleet, self._pool.recall(digests))

    async def _current_fleet(self) -> Fleet:
        age_s = self._clock() - self._read_at_s
        if age_s >= self._every_s:
            self._refreshes.begin(None, self._read_fleet)
        if self._fleet is not None and age_s < max(self._limits.max_age_s, 2 * self._every_s):
            return self._fleet
        return await self._refreshes.run(None, self._read_fleet)

    async def _read_fleet(self) -> Fleet:
        view = await self._pool.workers()
        alike = [record for record in view.workers if record.info.serves_like(self.me)]
        rendezvous = self._fleet.rendezvous if self._fleet is not None else None
        self._fleet = Fleet(alike, view.time_s, rendezvous=rendezvous)
        self._read_at_s = self._clock()
        self._every_s = max(self._limits.refresh_s, len(view.workers) * self._limits.refresh_per_worker_s)
        await self._on_members(frozenset(record.info.endpoint for record in view.workers))
        return self._fleet

    async def _current_placements(self, digests: tuple[Digest, ...]) -> Mapping[Digest, Sequence[PlacedVersion]]:
        known = {digest: found for digest in digests if (found := self._placements.get(digest)) is not None}
        unknown = tuple(digest for digest in digests if digest not in known)
        if unknown:
            return {**known, **await self._reads.run(unknown, lambda: self._read_placements(unknown))}
        return known

    async def _read_placements(self, digests: tuple[Digest, ...]) -> Mapping[Digest, Sequence[PlacedVersion]]:
        found = await self._pool.placements(digests)
        self._placements.update(found)
        return found
