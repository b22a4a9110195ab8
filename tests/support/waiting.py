"""Waiting for a condition, for tests: never a sleep of a guessed length."""

import asyncio
from collections.abc import Awaitable, Callable

PATIENCE_S = 120.0
"""Tells what hangs from what a machine with ten other things to do has not come to."""


async def until(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """Return when the condition holds; TimeoutError when it does not become true."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (conditions that no event announces)
            await asyncio.sleep(0.005)


async def until_async(condition: Callable[[], Awaitable[bool]], timeout_s: float = PATIENCE_S) -> None:
    """The same for a condition that has to ask somebody."""
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 (conditions that no event announces)
            await asyncio.sleep(0.01)
