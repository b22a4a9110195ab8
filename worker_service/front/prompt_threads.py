"""Threads on which prompts are tokenised: one of them for short texts, so that long ones hold up none."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from hotslot.errors import QueueFullError

RETRY_AFTER_S = 1.0

P = ParamSpec("P")
T = TypeVar("T")


class PromptThreads:
    """Two threads, and a bound on what waits for them.

    A text is worked on in pieces, and each piece queues anew, so that texts take turns. Pieces of a call that
    is cancelled are not begun.
    """

    def __init__(self) -> None:
        self._short = ThreadPoolExecutor(1, "short prompts")
        self._long = ThreadPoolExecutor(1, "long prompts")
        self._waiting_chars = 0

    async def short(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call what takes milliseconds."""
        return await asyncio.wrap_future(self._short.submit(function, *args, **kwargs))

    async def long(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call what takes longer."""
        return await asyncio.wrap_future(self._long.submit(function, *args, **kwargs))

    @contextmanager
    def place_for(self, num_chars: int, most_chars: int) -> Iterator[None]:
        """Count a text while it is worked on. Raises QueueFullError where all would be more than `most_chars`."""
        if self._waiting_chars and self._waiting_chars + num_chars > most_chars:
            raise QueueFullError(
                f"{self._waiting_chars} characters of other prompts are being tokenised, and with these {num_chars} it "
                f"would be more than {most_chars}; try again",
                subject="prompts",
                retry_after_s=RETRY_AFTER_S,
            )
        self._waiting_chars += num_chars
        try:
            yield
        finally:
            self._waiting_chars -= num_chars

    def close(self) -> None:
        """Let go of the threads; what is queued is not begun."""
        for pool in (self._short, self._long):
            pool.shutdown(wait=False, cancel_futures=True)
