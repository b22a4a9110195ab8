"""Runs what blocks (files, the database, admission) on threads of its own, so that the event loop never waits."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

from store_service.execution.full_disk import no_room_is_a_quota

P = ParamSpec("P")
T = TypeVar("T")


class Offload:
    """A bounded set of threads. A cancelled caller leaves its thread to finish; nothing is half done."""

    def __init__(self, name: str, num_threads: int) -> None:
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix=name)

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a blocking call."""
        return await self.start(function, *args, **kwargs)

    def start(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "asyncio.Future[T]":
        """Begin a blocking call, to be awaited later; a full disk is a QuotaExceededError, wherever it shows.

        It has its caller's context: its log lines have the ids of the call, and its spans are below the call's.
        """
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._executor, copy_context().run, _run, partial(function, *args, **kwargs))

    async def to_its_end(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a blocking call; a caller that is cancelled waits for the thread to finish first."""
        running = self.start(function, *args, **kwargs)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            running.exception()  # no caller will ask for it
            raise

    def close(self) -> None:
        """Wait for what runs and take nothing more."""
        self._executor.shutdown(wait=True)


def _run(call: Callable[[], T]) -> T:
    with no_room_is_a_quota("this call"):
        return call()
