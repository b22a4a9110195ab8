"""Which worker a request goes to: picks cached for as long as the placement service allows, workers dialled once."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from client.types.placement import WorkerPick
from client.worker import WorkerClient

MAX_CACHED_PICKS = 1024
MAX_IDLE_WORKERS = 16


@dataclass(frozen=True, slots=True)
class RouteKey:
    """What a pick depends on."""

    adapters: tuple[str, ...]
    base_model: str


class PickCache:
    """Picks until they expire, at most `MAX_CACHED_PICKS`. Time is passed in."""

    def __init__(self) -> None:
        self._picks: OrderedDict[RouteKey, tuple[float, WorkerPick]] = OrderedDict()

    def get(self, key: RouteKey, now_s: float) -> WorkerPick | None:
        """A pick that may still be used."""
        expires_s, pick = self._picks.get(key, (0.0, None))
        return pick if pick is not None and now_s < expires_s else None

    def put(self, key: RouteKey, pick: WorkerPick, now_s: float) -> None:
        """Remember a pick for as long as it says."""
        self._picks[key] = (now_s + pick.ttl_s, pick)
        self._picks.move_to_end(key)
        while len(self._picks) > MAX_CACHED_PICKS:
            self._picks.popitem(last=False)

    def forget_endpoint(self, endpoint: str) -> None:
        """Drop every pick that names a worker which just failed."""
        for key, (_, pick) in list(self._picks.items()):
            if any(candidate.worker.endpoint == endpoint for candidate in pick.candidates):
                del self._picks[key]


class WorkerPool:
    """Open connections to workers by endpoint; keeps some idle ones and never closes one that is in use."""

    def __init__(self, dial: Callable[[str], WorkerClient]) -> None:
        self._dial = dial
        self._workers: OrderedDict[str, WorkerClient] = OrderedDict()
        self._users: dict[str, int] = {}

    @asynccontextmanager
    async def use(self, endpoint: str) -> AsyncIterator[WorkerClient]:
        """The client of a worker, kept open at least until the block ends."""
        worker = self._workers.get(endpoint)
        if worker is None:
            worker = self._workers[endpoint] = self._dial(endpoint)
        self._workers.move_to_end(endpoint)
        self._users[endpoint] = self._users.get(endpoint, 0) + 1
        try:
            yield worker
        finally:
            self._users[endpoint] -= 1
            await self._close_surplus()

    async def _close_surplus(self) -> None:
        idle = [endpoint for endpoint in self._workers if not self._users.get(endpoint)]
        for endpoint in idle[: max(0, len(idle) - MAX_IDLE_WORKERS)]:
            worker = self._workers.pop(endpoint)
            self._users.pop(endpoint, None)
            await worker.close()

    async def close(self) -> None:
        """Close all connections."""
        workers = list(self._workers.values())
        self._workers.clear()
        await asyncio.gather(*(worker.close() for worker in workers))
