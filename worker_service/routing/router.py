"""Finds the workers that a request should be forwarded to, and passes over those that were lost a moment ago."""

import itertools
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from contextlib import aclosing

import structlog
from cachetools import TTLCache

from hotslot.errors import (
    AdaptersDisabledError,
    CatalogBehindError,
    EngineFailedError,
    HotslotError,
    SourceUnavailableError,
    StoreUnavailableError,
    UnavailableError,
)
from hotslot.ids import Digest, TenantId, WorkerId
from shared.fleet.policy import Fleet, RankedWorker
from shared.fleet.records import WorkerRecord, placed_for
from shared.fleet.replica_policy import ReplicaPolicy
from shared.metrics.numbers import Measured, Tally
from worker_service.routing.fleet_view import FleetView
from worker_service.routing.forwarding import Parcel, Peers, forward
from worker_service.routing.plan import Here, before_here, instead_of_here
from worker_service.routing.unreported import Unreported

log = structlog.get_logger(__name__)

MAX_FORWARDS = 2
"""Other workers that one request is sent to, one after the other."""
COUNT_EVERY_S = 0.02
"""Largest age of the count of requests that were sent: taking it looks at every worker."""
MAX_AVOIDED = 1_024
AVOID_S = 2.0
"""Time for which a worker that could not be reached is passed over; its lease may run on for longer."""
# Errors that say nothing about the next request: others' failures, one tenant's switch or revision, a copy into slots,
# which one adapter's data can make fail. An engine that hangs is told of in Redis.
NOT_THE_WORKER = (
    StoreUnavailableError,
    SourceUnavailableError,
    CatalogBehindError,
    AdaptersDisabledError,
    EngineFailedError,
)


class Router:
    """One worker's way to the others of its pool. Belongs to one event loop."""

    def __init__(self, view: FleetView, peers: Peers, clock: Callable[[], float] = time.monotonic) -> None:
        self.view = view
        self._peers = peers
        self._clock = clock
        self._turns = itertools.count()
        self._avoided: TTLCache[WorkerId, None] = TTLCache(MAX_AVOIDED, AVOID_S, timer=clock)
        self._unreported = Unreported()
        self._seen: Fleet | None = None
        self._knowing: Fleet | None = None
        self._counted_at_s = float("-inf")
        self.decisions = Tally(
            "hotslot_routing_decisions_total", [(name,) for name in ("here", "cold", "away", "spilled", "none")]
        )
        self._forwards = Tally("hotslot_forwards_total", [(name,) for name in ("ok", "refused", "lost", "cancelled")])

    @property
    def worker_id(self) -> WorkerId:
        """Worker that routes."""
        return self.view.me.worker_id

    async def before(
        self, tenant: TenantId, digests: Sequence[Digest], here: Here, policy: ReplicaPolicy
    ) -> list[WorkerRecord]:
        """The workers to try before this one; none when the fleet is not known."""
        if here.keeps:
            return []
        ranked = await self._ranked(tenant, digests, here, policy)
        outstanding = {c.worker.info.worker_id: self._peers.users(c.worker.info.endpoint) for c in ranked}
        return before_here(ranked, here, outstanding, limit=MAX_FORWARDS)

    async def instead(
        self,
        tenant: TenantId,
        digests: Sequence[Digest],
        here: Here,
        policy: ReplicaPolicy,
        tried: Collection[WorkerId],
    ) -> list[WorkerRecord]:
        """The workers to try when this one has no room."""
        return instead_of_here(await self._ranked(tenant, digests, here, policy), here, tried, limit=MAX_FORWARDS)

    async def forward(self, peer: WorkerRecord, parcel: Parcel) -> AsyncGenerator[bytes, None]:
        """The answer of another worker, as `forwarding.forward`."""
        result, failed = "cancelled", "refused"
        try:
            async with aclosing(forward(self._peers, peer, parcel)) as messages:
                async for message in messages:
                    failed = "lost"
                    yield message
            result = "ok"
        except HotslotError as exc:
            result = failed
            if not isinstance(exc, UnavailableError):
                raise
            log.warning("peer_failed", peer=peer.info.worker_id, endpoint=peer.info.endpoint, why=exc.message)
            if not isinstance(exc, NOT_THE_WORKER):
                self._avoided[peer.info.worker_id] = None
            raise
        finally:
            self._forwards.add(result)

    def readings(self) -> Iterator[Measured]:
        """Numbers of what was decided, and of what was sent on."""
        yield from self.decisions.readings()
        yield from self._forwards.readings()

    async def close(self) -> None:
        """Close the connections to all others."""
        await self.view.close()
        await self._peers.close()

    def _fleet(self, fleet: Fleet, now_s: float) -> Fleet:
        """The fleet with what went from here to its workers since they reported."""
        if fleet is not self._seen or now_s - self._counted_at_s >= COUNT_EVERY_S:
            sent = self._unreported.count(fleet.workers, self._peers.users)
            self._seen, self._counted_at_s = fleet, now_s
            self._knowing = fleet.knowing(sent) if sent else fleet
        assert self._knowing is not None
        return self._knowing

    async def _ranked(
        self, tenant: TenantId, digests: Sequence[Digest], here: Here, policy: ReplicaPolicy
    ) -> list[RankedWorker]:
        sight = await self.view.look(digests)
        if sight is None:
            return []
        now_s = self._clock()
        avoided = frozenset(self._avoided)
        # The fleet's picture of this worker is older than its own.
        left_out = {here.worker_id, *avoided}
        placements = {
            digest: [placed for placed in placed_for(tenant, holders) if placed.worker_id not in left_out]
            for digest, holders in sight.placements.items()
        }
        count = MAX_FORWARDS + 1 + len(avoided)
        fleet = self._fleet(sight.fleet, now_s)
        ranked = fleet.pick(digests, placements, count=count, turn=next(self._turns), policy=policy)
        return [candidate for candidate in ranked if candidate.worker.info.worker_id not in avoided]
