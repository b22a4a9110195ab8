"""Routing of requests to workers by the placement service's picks, asked for once and kept for as long as they say.

Placement is a hint. While it is away, the last pick is as good as a guess can be; without one, any worker does.
"""

import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from cachetools import LRUCache, TTLCache

from hotslot.backoff import Backoff
from hotslot.contract.placement import WorkerPick
from hotslot.errors import (
    ExhaustedError,
    HotslotError,
    NotImplementedYetError,
    NoWorkersError,
    RequestDeadlineError,
    UnavailableError,
)
from hotslot.single_flight import SingleFlight

FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 2.0
MAX_CACHED_PICKS = 1024
AWAY_S = 1.0
"""After placement did not answer, how long it is not asked again."""

READY_S = 1.0
"""Time after a publication by which placement surely knows which workers have it."""
MAX_READY = 256

NO_PLACEMENT = (UnavailableError, RequestDeadlineError, NotImplementedYetError)


@dataclass(frozen=True, slots=True)
class RouteKey:
    """Key of a pick: all that it depends on."""

    adapters: tuple[str, ...]
    base_model: str


class Picks:
    """The picks of one client. Belongs to one event loop."""

    def __init__(self, ask: Callable[[RouteKey], Awaitable[WorkerPick]], clock: Callable[[], float]) -> None:
        """`ask` asks placement now."""
        self._ask = ask
        self._clock = clock
        # Picks past their time stay: they are what there is while placement is away.
        self._known: LRUCache[RouteKey, tuple[float, WorkerPick]] = LRUCache(MAX_CACHED_PICKS)
        self._asking: SingleFlight[RouteKey, WorkerPick] = SingleFlight()
        self._ready: TTLCache[RouteKey, tuple[str, ...]] = TTLCache(MAX_READY, READY_S, timer=clock)
        self._away: tuple[float, HotslotError] | None = None
        self._turns = itertools.count()

    async def pick(self, key: RouteKey) -> WorkerPick:
        """The workers to call, best first; an old answer while placement is away.

        Raises what placement does: UnavailableError and its kinds, RequestDeadlineError or NotImplementedYetError
        when it cannot help and nothing is known from before.
        """
        expires_s, known = self._known.get(key, (0.0, None))
        if known is not None and self._clock() < expires_s:
            return known
        try:
            return await self._fresh(key)
        except NoWorkersError:
            raise
        except NO_PLACEMENT:
            if known is None:
                raise
            return known

    def note_ready(self, key: RouteKey, endpoints: Sequence[str]) -> None:
        """Take note of workers that were just made to serve what a key asks for: placement may not name them yet."""
        self._ready[key] = tuple(endpoints)

    def ready(self, key: RouteKey) -> tuple[str, ...]:
        """Workers that were made ready for a key a moment ago, another one first each time."""
        endpoints = self._ready.get(key, ())
        if len(endpoints) < 2:
            return endpoints
        turn = next(self._turns) % len(endpoints)
        return endpoints[turn:] + endpoints[:turn]

    def forget_endpoint(self, endpoint: str) -> None:
        """Drop every pick that names a worker which just failed."""
        for ready_key, endpoints in list(self._ready.items()):
            if endpoint in endpoints:
                # It may have expired since.
                self._ready.pop(ready_key, None)
        for key, (_, pick) in list(self._known.items()):
            if any(candidate.worker.endpoint == endpoint for candidate in pick.candidates):
                del self._known[key]

    async def close(self) -> None:
        """End what is under way."""
        await self._asking.close()

    async def _fresh(self, key: RouteKey) -> WorkerPick:
        if self._away is not None and self._clock() < self._away[0]:
            raise self._away[1].with_traceback(None)
        return await self._asking.run(key, lambda: self._ask_and_keep(key))

    async def _ask_and_keep(self, key: RouteKey) -> WorkerPick:
        try:
            pick = await self._ask(key)
        except NoWorkersError:
            raise
        except NO_PLACEMENT as exc:
            self._away = (self._clock() + AWAY_S, exc)
            raise
        self._away = None
        self._known[key] = (self._clock() + pick.ttl_s, pick)
        return pick


def pause_before_retry_s(failure: HotslotError, rounds: int) -> float:
    """Pause before all workers are tried again; at least as long as the one that refused asked for."""
    asked_s = failure.retry_after_s if isinstance(failure, UnavailableError | ExhaustedError) else None
    return max(asked_s or 0.0, Backoff(FIRST_PAUSE_S, MAX_PAUSE_S).pause_s(rounds))
