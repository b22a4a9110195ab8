"""Background loops of a process, in one task group; the one place that decides what the end of a loop means.

An essential loop that fails ends the process: `until_failed` returns its reason. Any other is logged and begun anew
after a pause. Leaving the block first ends loops in order, the last that was begun first, then cancels what is left.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import structlog

from hotslot.backoff import Backoff
from hotslot.errors import HotslotError

log = structlog.get_logger(__name__)

T = TypeVar("T")
Once = Coroutine[Any, Any, None]

BACKOFF = Backoff(0.5, 15.0)


class Loops:
    """Loops between `async with` and its end. Belongs to one event loop."""

    def __init__(self, backoff: Backoff = BACKOFF) -> None:
        self._backoff = backoff
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ends: list[Callable[[], Awaitable[None]]] = []
        self._failure: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> "Loops":
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            while self._ends:
                await self._ends.pop()()
        finally:
            for task in self._tasks:
                task.cancel()
            await self._group.__aexit__(None, None, None)

    def essential(self, name: str, begin: Callable[[], Once], end: Callable[[], Awaitable[None]] | None = None) -> None:
        """Run what the process must not go on without; `end` ends it in order, before anything is cancelled."""
        if end is not None:
            self._ends.append(end)
        self._begin(name, self._essential(begin))

    def restarted(self, name: str, begin: Callable[[], Once]) -> None:
        """Run what the process can do without for a while; it may also come to an end."""
        self._begin(name, self._restarted(name, begin))

    def repeated(self, name: str, every_s: float, work: Callable[[], Once]) -> None:
        """Run work every so often, the first time after `every_s`; as `restarted` when it fails."""

        async def again() -> None:
            while True:
                await asyncio.sleep(every_s)
                await work()

        self.restarted(name, again)

    async def until_failed(self) -> Exception:
        """Return why an essential loop failed, once one has."""
        return await asyncio.shield(self._failure)

    def _begin(self, name: str, work: Once) -> None:
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _essential(self, begin: Callable[[], Once]) -> None:
        try:
            await begin()
        except Exception as exc:  # noqa: BLE001 (the process ends with it)
            if not self._failure.done():
                self._failure.set_result(exc)

    async def _restarted(self, name: str, begin: Callable[[], Once]) -> None:
        for failures in itertools.count():
            try:
                await begin()
                break
            except Exception as exc:  # noqa: BLE001 (a loop's failure is its own)
                pause_s = self._backoff.pause_s(failures)
                log.warning("loop_failed", loop=name, why=str(exc) or repr(exc), retry_s=round(pause_s, 3))
            await asyncio.sleep(pause_s)


async def first_of(*works: Coroutine[Any, Any, T]) -> T:
    """Run these until the first ends; returns or raises what that does, and cancels the others."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task in done).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def happens(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for an event, but no longer than so; False where it did not happen."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)
    return event.is_set()


async def until_it_works(call: Callable[[], Awaitable[T]], event: str, backoff: Backoff = BACKOFF) -> T:
    """Ask a service that may be away for a while until it answers; every failure is logged as `event`."""
    for failures in itertools.count():
        try:
            return await call()
        except HotslotError as exc:
            pause_s = backoff.pause_s(failures)
            log.warning(event, why=exc.message, retry_s=round(pause_s, 3))
        await asyncio.sleep(pause_s)
    raise AssertionError("counting has no end")
