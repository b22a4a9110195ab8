"""Threads for long work, which tenants share fairly; work that is not wanted any more leaves them."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, TypeVar

from hotslot.errors import RequestDeadlineError, StoreBusyError
from shared.metrics.numbers import Measured
from store_service.execution.fair_shares import FairShares
from store_service.execution.offload import Offload
from store_service.execution.queue_numbers import QueueNumbers
from store_service.execution.unwanted import Wish

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Turn:
    """One piece of work, from its arrival to its end."""

    tenant: str
    wish: Wish
    comes: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    has_come: bool = False


class FairQueue:
    """Runs long work on a few threads; see `FairShares` for whose is next. Lives on the event loop.

    A caller who is cancelled, or whose time has passed, takes its work out of the queue; work that runs is told, and
    ends soon (`stop_if_unwanted`).
    """

    def __init__(self, name: str, num_threads: int, max_waiting: int) -> None:
        self._offload = Offload(name, num_threads)
        self._shares: FairShares[_Turn] = FairShares(max_waiting)
        self._num_free = num_threads
        self._numbers = QueueNumbers(name)

    def readings(self) -> Iterator[Measured]:
        """Numbers of its calls."""
        yield from self._numbers.readings(self._shares.num_waiting)

    async def __call__(
        self, tenant: str, left_s: float | None, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The result of work for a caller who waits for so long, or for ever.

        Raises RequestDeadlineError and StoreBusyError, in which cases nothing was done.
        """
        turn, running = await self._start(tenant, left_s, partial(function, *args, **kwargs))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            turn.wish.withdraw()
            running.add_done_callback(_forget)
            raise

    async def to_its_end(
        self, tenant: str, left_s: float | None, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The same; a caller that is cancelled waits for the work to end first."""
        turn, running = await self._start(tenant, left_s, partial(function, *args, **kwargs))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            turn.wish.withdraw()
            await asyncio.wait([running])
            _forget(running)
            raise

    def close(self) -> None:
        """Wait for what runs and take nothing more."""
        self._offload.close()

    async def _start(
        self, tenant: str, left_s: float | None, function: Callable[[], T]
    ) -> "tuple[_Turn, asyncio.Future[T]]":
        """Begin the work when its turn comes."""
        turn, arrived_s = _Turn(tenant, Wish(left_s)), time.monotonic()
        try:
            self._shares.add(tenant, turn, arrived_s)
        except StoreBusyError as exc:
            self._numbers.refused(exc)
            raise
        self._give_turns()
        try:
            async with asyncio.timeout(left_s):
                await turn.comes
        except TimeoutError as exc:
            self._leave(turn)
            message = "the deadline passed before the store came to the call; nothing was done"
            late = RequestDeadlineError(message)
            self._numbers.waited(time.monotonic() - arrived_s, late)
            raise late from exc
        except BaseException:
            self._leave(turn)
            raise
        self._numbers.waited(time.monotonic() - arrived_s)
        running = self._offload.start(turn.wish.work, function)
        running.add_done_callback(lambda _: self._end(turn))
        return turn, running

    def _give_turns(self) -> None:
        while self._num_free and (turn := self._shares.next(time.monotonic())) is not None:
            self._num_free -= 1
            turn.has_come = True
            if not turn.comes.done():  # its caller may just be leaving
                turn.comes.set_result(None)

    def _leave(self, turn: _Turn) -> None:
        if turn.has_come:
            self._end(turn)
        else:
            self._shares.leave(turn.tenant, turn)

    def _end(self, turn: _Turn) -> None:
        self._shares.end(turn, time.monotonic())
        self._num_free += 1
        self._give_turns()


def _forget(running: "asyncio.Future[T]") -> None:
    """Take note of how work ended that no caller waits for."""
    if not running.cancelled():
        running.exception()
