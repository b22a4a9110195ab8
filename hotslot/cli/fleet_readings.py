"""Readings of `hotslot top`: the fleet as the store knows it, rates from workers; a slow one is not waited for."""

import asyncio
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from hotslot.clients.placement import PlacementClient
from hotslot.clients.worker import WorkerClient
from hotslot.contract.placement import Placement, Worker
from hotslot.errors import HotslotError, RequestDeadlineError, StoreUnavailableError, UnavailableError
from hotslot.rpc.channel import DEFAULT_OPTIONS, ChannelOptions

STORE_TIMEOUT_S = 5.0
STATUS_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Reading:
    """The fleet at one moment."""

    time: datetime
    workers: list[Worker]
    placements: list[Placement]
    tokens_per_s: dict[str, float]
    """By worker_id."""
    stale: str = ""
    """Reason for an earlier reading; empty when it was read now."""


class FleetReader:
    """Reads a fleet again and again. Belongs to one event loop."""

    def __init__(self, placement: PlacementClient, base_model: str, options: ChannelOptions = DEFAULT_OPTIONS) -> None:
        """`options` are those of calls to the store."""
        self._placement = placement
        self._base_model = base_model
        self._followed = FollowedPlacements(placement, base_model)
        self._meter = TokenMeter(options)
        self._last: Reading | None = None

    async def read(self) -> Reading:
        """The fleet now; while the store is away the last reading. Raises the store's errors when there is none."""
        try:
            workers, placements = await self._ask()
        except (UnavailableError, RequestDeadlineError) as exc:
            if self._last is None:
                raise
            return replace(self._last, stale=exc.message)
        self._last = Reading(datetime.now(UTC), workers, placements, await self._meter.rates(workers))
        return self._last

    async def close(self) -> None:
        """Stop following placements, and close the connections to workers."""
        await self._followed.close()
        await self._meter.close()

    async def _ask(self) -> tuple[list[Worker], list[Placement]]:
        try:
            async with asyncio.timeout(STORE_TIMEOUT_S):
                workers = [worker async for worker in self._placement.list_workers(base_model=self._base_model)]
                ids = {worker.worker_id for worker in workers}
                return workers, [p for p in await self._followed.read() if p.worker_id in ids]
        except TimeoutError as exc:
            raise StoreUnavailableError(f"the store did not answer within {STORE_TIMEOUT_S:g} s") from exc


class FollowedPlacements:
    """Placements as a watch keeps them; listed while there is none, or its state has not come whole yet."""

    def __init__(self, placement: PlacementClient, base_model: str) -> None:
        self._placement = placement
        self._base_model = base_model
        self._held: dict[tuple[str, str], Placement] = {}
        self._is_whole = False
        self._watch: asyncio.Task[None] | None = None

    async def read(self) -> list[Placement]:
        """Placements now, by worker and version; raises the store's errors when they must be listed."""
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._follow(), name="follow placements")
        if self._is_whole:
            return [self._held[key] for key in sorted(self._held)]
        return [placement async for placement in self._placement.list_placements()]

    async def close(self) -> None:
        """End the watch."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])

    async def _follow(self) -> None:
        self._held.clear()
        try:
            # A watch that broke, or that a store does not have, is begun again by the next reading.
            with suppress(HotslotError):
                async with aclosing(self._placement.watch_placements(base_model=self._base_model)) as events:
                    async for event in events:
                        key = event.placement.worker_id, event.placement.adapter_digest
                        if event.removed:
                            self._held.pop(key, None)
                        else:
                            self._held[key] = event.placement
                        # The last message of the state that comes first is the first with a revision.
                        self._is_whole |= event.revision > 0
        finally:
            self._is_whole = False


class TokenMeter:
    """Tokens per second of each worker, from the counters that they report themselves. Belongs to one event loop."""

    def __init__(self, options: ChannelOptions = DEFAULT_OPTIONS) -> None:
        """`options` are those of calls to the store."""
        self._options = replace(options, security=options.security.for_workers(), max_attempts=1)
        self._clients: dict[str, WorkerClient] = {}
        self._last: dict[str, tuple[float, int]] = {}

    async def rates(self, workers: list[Worker]) -> dict[str, float]:
        """The rate since the last call, by worker_id; none for one that is new, late, or counts back."""
        await self._forget({worker.endpoint for worker in workers})
        counts = await asyncio.gather(*(self._count(worker.endpoint) for worker in workers))
        rates: dict[str, float] = {}
        for worker, counted in zip(workers, counts, strict=True):
            if counted is None:
                continue
            before = self._last.get(worker.worker_id)
            if before is not None and counted[1] < before[1]:
                # Not its counter: a worker that starts anew has a new id.
                continue
            self._last[worker.worker_id] = counted
            if before is not None and counted[0] > before[0]:
                rates[worker.worker_id] = (counted[1] - before[1]) / (counted[0] - before[0])
        return rates

    async def close(self) -> None:
        """Close all connections."""
        await self._forget(set())

    async def _count(self, endpoint: str) -> tuple[float, int] | None:
        """Time of its answer, and the number of tokens that it has generated."""
        client = self._clients.get(endpoint)
        try:
            if client is None:
                client = self._clients[endpoint] = WorkerClient(endpoint, self._options)
            status = await client.status(timeout_s=STATUS_TIMEOUT_S)
        except HotslotError:
            return None
        return asyncio.get_running_loop().time(), status.generated_tokens

    async def _forget(self, endpoints: set[str]) -> None:
        """Keep connections to these alone."""
        gone = self._clients.keys() - endpoints
        await asyncio.gather(*(self._clients.pop(endpoint).close() for endpoint in gone))
