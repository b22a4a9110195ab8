"""Asks the workers of a deployment one after the other, until one begins."""

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from hotslot.clients.home import Home
from hotslot.clients.routing import NO_PLACEMENT, Picks, RouteKey, pause_before_retry_s
from hotslot.clients.rpc import checked_timeout
from hotslot.clients.worker import WorkerClient
from hotslot.errors import (
    ExhaustedError,
    HotslotError,
    NoWorkersError,
    RequestDeadlineError,
    TenantQuotaError,
    UnavailableError,
)
from hotslot.rpc.pool import Pool

T = TypeVar("T")
Ask = Callable[[WorkerClient, float], AsyncGenerator[T, None]]
"""Asks one worker, within so many seconds."""

# Before the first event nothing was generated, and another worker may well be able to.
TRY_ANOTHER_WORKER = (UnavailableError, ExhaustedError)


@dataclass(frozen=True, slots=True)
class FailOver:
    """Workers of one client, by placement's picks, and the one that is called without any."""

    home: Home
    pool: Pool[WorkerClient]
    picks: Picks
    fallback: str | None
    route: bool
    connect_timeout_s: float
    patience_s: float

    async def once(self, key: RouteKey, timeout_s: float, ask: Callable[[WorkerClient, float], Awaitable[T]]) -> T:
        """The one answer of the first worker that gives it."""

        async def answer(worker: WorkerClient, left_s: float) -> AsyncGenerator[T, None]:
            yield await ask(worker, left_s)

        async with aclosing(self.anywhere(key, timeout_s, answer)) as answers:
            return await anext(answers)

    async def anywhere(self, key: RouteKey, timeout_s: float, ask: Ask[T]) -> AsyncGenerator[T, None]:
        """Answers of the first worker that begins, tried again for as long as the client has patience."""
        timeout_s = checked_timeout(timeout_s)
        self.home.enter()
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        last_try_s = min(deadline_s, loop.time() + self.patience_s)
        for rounds in itertools.count():
            begun = False
            try:
                async with aclosing(self._try_each(key, deadline_s, ask)) as answers:
                    async for answer in answers:
                        begun = True
                        yield answer
                return
            except TRY_ANOTHER_WORKER as exc:
                pause_s = pause_before_retry_s(exc, rounds)
                is_final = isinstance(exc, TenantQuotaError) and exc.retry_after_s is None
                if begun or is_final or loop.time() + pause_s > last_try_s:
                    raise
            await asyncio.sleep(pause_s)

    async def _try_each(self, key: RouteKey, deadline_s: float, ask: Ask[T]) -> AsyncGenerator[T, None]:
        """Every worker that there is for it, until one begins."""
        loop = asyncio.get_running_loop()
        failure: HotslotError = NoWorkersError(
            "no worker to call: start one, or name one with worker_endpoint (HOTSLOT_WORKER)"
        )
        ready = self.picks.ready(key) if self.route else ()
        untried, asked = deque(ready), False
        while untried or not asked:
            if not untried:
                # Placement is asked once those that are known to be ready have failed.
                asked = True
                try:
                    untried.extend(each for each in await self._endpoints(key) if each not in ready)
                except NO_PLACEMENT as exc:
                    if not ready:
                        if isinstance(exc, RequestDeadlineError) and loop.time() < deadline_s:
                            # Placement's time was up, and not the caller's.
                            raise UnavailableError("placement did not answer in time; try again") from exc
                        raise
                    # What the workers themselves said tells more.
                continue
            endpoint = untried.popleft()
            remaining_s = deadline_s - loop.time()
            if remaining_s <= 0:
                raise RequestDeadlineError("no worker answered within the deadline") from failure
            begun = False
            try:
                async with self.pool.use(endpoint) as worker:
                    await worker.connect(min(self.connect_timeout_s, remaining_s))
                    async with aclosing(ask(worker, remaining_s)) as answers:
                        async for answer in answers:
                            begun = True
                            yield answer
                return
            except TRY_ANOTHER_WORKER as exc:
                if isinstance(exc, UnavailableError):
                    self.picks.forget_endpoint(endpoint)
                if begun or isinstance(exc, TenantQuotaError):
                    raise  # A tenant's quota is the same everywhere.
                failure = exc
        raise failure

    async def _endpoints(self, key: RouteKey) -> list[str]:
        """Workers to call, best first; the fallback comes last."""
        fallback = [] if self.fallback is None else [self.fallback]
        # Without adapters and without a base model there is nothing to choose by.
        if not self.route or (fallback and not (key.adapters or key.base_model)):
            return fallback
        try:
            pick = await self.picks.pick(key)
        except NO_PLACEMENT:
            if not fallback:
                raise
            return fallback
        return list(dict.fromkeys([*(c.worker.endpoint for c in pick.candidates), *fallback]))
