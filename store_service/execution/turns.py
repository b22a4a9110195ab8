"""Lets what keeps the event loop busy take turns with everything else."""

import asyncio
from collections import deque


class Turns:
    """One turn in so many passes of the event loop; who has none waits, in order.

    gRPC needs several passes to take one call, and several more to answer it. Streams that write large messages
    whenever they can make every pass as long as all of their writes, and calls are taken as slowly as that. Passes
    without work cost next to nothing, so streams that are alone are not held up.
    """

    def __init__(self, passes_per_turn: int) -> None:
        self._passes_per_turn = passes_per_turn
        self._passes_left = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Return when it is the caller's turn."""
        loop = asyncio.get_running_loop()
        if not self._passes_left:
            self._begin(loop)
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._passes_left = self._passes_per_turn
        loop.call_soon(self._end_pass, loop)

    def _end_pass(self, loop: asyncio.AbstractEventLoop) -> None:
        self._passes_left -= 1
        if self._passes_left:
            loop.call_soon(self._end_pass, loop)
            return
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._begin(loop)
                return
