"""Working on resources by name: one look at each at a time, again when it changed meanwhile, and after a while."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from hotslot.backoff import Backoff

log = structlog.get_logger(__name__)

ResourceLook = Callable[[str], Awaitable[float | None]]
"""One look at a resource; returns the time after which to look again, or None."""


class NamedWork:
    """Work by name. Belongs to one event loop; ends with `close`."""

    def __init__(self, look: ResourceLook, max_running: int, backoff: Backoff) -> None:
        """`backoff` has the pauses after looks that failed unexpectedly."""
        self._look = look
        self._places = asyncio.Semaphore(max_running)
        self._backoff = backoff
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._closed = False

    def add(self, name: str) -> None:
        """Have a look at a resource, now or as soon as the one that is under way has ended."""
        if self._closed:
            return
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()
        if name in self._tasks:
            self._again.add(name)
        else:
            self._tasks[name] = asyncio.create_task(self._work(name))

    def interrupt(self, name: str) -> None:
        """End the look that is under way, since what it works for is not wanted any more, and have another one."""
        if (task := self._tasks.get(name)) is not None:
            self._again.add(name)
            task.cancel()

    async def close(self) -> None:
        """End everything."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _work(self, name: str) -> None:
        retry_s: float | None = None
        try:
            async with self._places:
                retry_s = await self._look(name)
        except asyncio.CancelledError:
            if self._closed:
                raise
        except Exception as exc:
            # One resource that breaks the controller's own code ends no other's work.
            log.exception("look_failed", name=name, why=str(exc))
            retry_s = self._backoff.max_s
        finally:
            del self._tasks[name]
        if name in self._again:
            self._again.discard(name)
            self.add(name)
        elif retry_s is not None and not self._closed:
            self._timers[name] = asyncio.get_running_loop().call_later(retry_s, self.add, name)
