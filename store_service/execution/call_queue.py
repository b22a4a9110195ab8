"""Threads for the catalog's calls, which work on no call whose caller has gone or that waited too long."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import ParamSpec, TypeVar

from hotslot.errors import HotslotError
from hotslot.tracing import span_inside
from shared.metrics.numbers import Measured, Spreads
from shared.server.deadline import HasDeadline
from store_service.execution.backlog import Backlog
from store_service.execution.offload import Offload
from store_service.execution.queue_numbers import QueueNumbers

P = ParamSpec("P")
T = TypeVar("T")


class CallQueue:
    """Runs calls in order on a few threads; see `Backlog` for those that are refused."""

    def __init__(self, name: str, num_threads: int, max_wait_s: float) -> None:
        self._offload = Offload(name, num_threads)
        self._backlog = Backlog(num_threads, max_wait_s)
        self._lock = threading.Lock()
        self._numbers = QueueNumbers(name)
        self._durations = Spreads("hotslot_catalog_seconds", [(name,)])
        self._name = name

    def readings(self) -> Iterator[Measured]:
        """Numbers of its calls."""
        yield from self._numbers.readings(self._backlog.num_waiting)
        yield from self._durations.readings()

    async def __call__(self, caller: HasDeadline, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a blocking call for a caller, whose call's context says how long it waits.

        Raises StoreBusyError and RequestDeadlineError, in which case the call was not begun.
        """
        left_s = caller.time_remaining()
        with self._lock:
            refusal = self._backlog.arrive(left_s)
        if refusal is not None:
            self._numbers.refused(refusal)
            raise refusal
        turn = _Turn(self._backlog, self._lock, left_s, self._numbers.waited, self._ran)
        with span_inside("hotslot.catalog", {"hotslot.queue": self._name}) as begun:
            try:
                return await self._offload(turn.run, partial(function, *args, **kwargs))
            except BaseException:
                turn.leave()  # unless it has begun
                raise
            finally:
                begun.set({"hotslot.queue.seconds": turn.waited_s})

    def close(self) -> None:
        """Wait for what runs and take nothing more."""
        self._offload.close()

    def _ran(self, took_s: float) -> None:
        self._durations.add(took_s, self._name)


class _Turn:
    """One call, from its arrival to its end."""

    def __init__(
        self,
        backlog: Backlog,
        lock: threading.Lock,
        left_s: float | None,
        waited: Callable[[float, HotslotError | None], None],
        ran: Callable[[float], None],
    ) -> None:
        """`waited` and `ran` hear how long, and whether it was refused then."""
        self._backlog = backlog
        self._lock = lock
        self._left_s = left_s
        self._arrived_s = time.monotonic()
        self._waits = True
        self.waited_s = 0.0
        self._waited = waited
        self._ran = ran

    def run(self, function: Callable[[], T]) -> T:
        """Called on a thread when it is this call's turn."""
        began_s = time.monotonic()
        self.waited_s = waited_s = began_s - self._arrived_s
        left_s = self._left_s - waited_s if self._left_s is not None else None
        with self._lock:
            if not self._waits:
                raise asyncio.CancelledError
            self._waits = False
            refusal = self._backlog.begin(waited_s, left_s)
        self._waited(waited_s, refusal)
        if refusal is not None:
            raise refusal
        try:
            return function()
        finally:
            took_s = time.monotonic() - began_s
            self._ran(took_s)
            with self._lock:
                self._backlog.end(took_s)

    def leave(self) -> None:
        """Take back the call, as its caller has gone; work that runs goes on to its end."""
        with self._lock:
            if self._waits:
                self._waits = False
                self._backlog.leave()
