"""The pool as this worker knows it: a moment old, and never waited for longer than a request can spare.

Readers get the last picture at once and a newer one is read behind their backs. While Redis is away or slow the last
picture is used for as long as the leases in it run; then there is none, and a request is served where it is.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from hotslot.errors import CoordinationUnavailableError
from hotslot.ids import Digest
from shared.coordination.known_pool import KnownPool
from shared.fleet.policy import Fleet
from shared.fleet.records import Placement, WorkerInfo

log = structlog.get_logger(__name__)

MAX_REMEMBERED = 4_096


@dataclass(frozen=True, slots=True)
class ViewLimits:
    """How fresh and how patient."""

    refresh_s: float = 0.5
    """How old a picture may be before a newer one is read."""
    refresh_per_worker_s: float = 0.005
    """The same for each worker of the pool, where that is longer: all of them read, and each reads all."""
    max_age_s: float = 5.0
    """How old a picture may be while Redis is there; in a large pool two refreshes, where that is longer."""
    placement_ttl_s: float = 0.25
    """How long it is believed who holds a version."""
    patience_s: float = 0.1
    """How long a request waits for Redis."""
    away_s: float = 1.0
    """After it waited in vain, how long nobody else does."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What a decision is made from."""

    fleet: Fleet
    placements: Mapping[Digest, Sequence[Placement]]


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
        """Who asks; only workers that serve alike are seen."""
        self._pool = pool
        self._on_members = on_members
        self._limits = limits
        self._clock = clock
        self._fleet: Fleet | None = None
        self._read_at_s = float("-inf")
        self._recalled_at_s = float("-inf")
        self._every_s = limits.refresh_s
        self._away_until_s = float("-inf")
        self._refresh: asyncio.Task[Fleet] | None = None
        self._placements: OrderedDict[Digest, tuple[float, Sequence[Placement]]] = OrderedDict()
        self._reads: dict[tuple[Digest, ...], asyncio.Task[None]] = {}

    async def look(self, digests: Sequence[Digest]) -> Sight | None:
        """The fleet and who holds these versions; None when nobody else is known."""
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
        tasks: list[asyncio.Task[None] | asyncio.Task[Fleet]] = [*self._reads.values()]
        if self._refresh is not None:
            tasks.append(self._refresh)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _recall(self, digests: Sequence[Digest]) -> Sight | None:
        """What was known before Redis went away; None once no other worker's lease runs."""
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
        if age_s >= self._every_s and self._refresh is None:
            self._refresh = asyncio.create_task(self._read_fleet(), name="read the fleet")
            self._refresh.add_done_callback(self._refreshed)
        if self._fleet is not None and age_s < max(self._limits.max_age_s, 2 * self._every_s):
            return self._fleet
        assert self._refresh is not None, "an old picture is being replaced"
        return await asyncio.shield(self._refresh)

    async def _read_fleet(self) -> Fleet:
        view = await self._pool.workers()
        alike = [record for record in view.workers if record.info.serves_like(self.me)]
        rendezvous = self._fleet.rendezvous if self._fleet is not None else None
        self._fleet = Fleet(alike, view.time_s, rendezvous=rendezvous)
        self._read_at_s = self._clock()
        self._every_s = max(self._limits.refresh_s, len(view.workers) * self._limits.refresh_per_worker_s)
        await self._on_members(frozenset(record.info.endpoint for record in view.workers))
        return self._fleet

    def _refreshed(self, task: "asyncio.Task[Fleet]") -> None:
        self._refresh = None
        if not task.cancelled():
            task.exception()  # marks it as seen when nobody waits any more

    async def _current_placements(self, digests: tuple[Digest, ...]) -> Mapping[Digest, Sequence[Placement]]:
        now_s = self._clock()
        unknown = tuple(d for d in digests if d not in self._placements or self._placements[d][0] <= now_s)
        if unknown:
            task = self._reads.get(unknown)
            if task is None:
                task = self._reads[unknown] = asyncio.create_task(self._read_placements(unknown))
                task.add_done_callback(lambda done: self._placements_read(unknown, done))
            await asyncio.shield(task)
        return {digest: self._placements[digest][1] for digest in digests if digest in self._placements}

    async def _read_placements(self, digests: tuple[Digest, ...]) -> None:
        found = await self._pool.placements(digests)
        expires_s = self._clock() + self._limits.placement_ttl_s
        for digest, placements in found.items():
            self._placements[digest] = (expires_s, placements)
            self._placements.move_to_end(digest)
        while len(self._placements) > MAX_REMEMBERED:
            self._placements.popitem(last=False)

    def _placements_read(self, digests: tuple[Digest, ...], task: "asyncio.Task[None]") -> None:
        del self._reads[digests]
        if not task.cancelled():
            task.exception()
