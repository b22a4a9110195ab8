"""Turns of loads: so many run at a time, and parties take turns, so that one with many holds up no other's."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hotslot.ids import PartyId


class LoadTurns:
    """Turns of one worker. Belongs to one event loop."""

    def __init__(self, most: int) -> None:
        """`most` loads run at a time."""
        self._num_free = most
        self._running: Counter[PartyId] = Counter()
        self._waiting: dict[PartyId, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, party: PartyId) -> AsyncIterator[None]:
        """Wait for a turn, and have it until the block is left."""
        if self._num_free:
            self._begin(party)
        else:
            await self._wait(party)
        try:
            yield
        finally:
            self._end(party)

    async def _wait(self, party: PartyId) -> None:
        comes: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(party, deque()).append(comes)
        try:
            await comes
        except asyncio.CancelledError:
            if comes.cancelled():
                self._leave(party, comes)
            else:
                self._end(party)
            raise

    def _begin(self, party: PartyId) -> None:
        self._num_free -= 1
        self._running[party] += 1

    def _end(self, party: PartyId) -> None:
        self._num_free += 1
        self._running[party] -= 1
        if not self._running[party]:
            del self._running[party]
        while self._waiting and self._num_free:
            # Of those with the fewest, the one that had a turn longest ago.
            following = min(self._waiting, key=lambda each: self._running[each])
            comes = self._waiting[following][0]
            self._leave(following, comes)
            if following in self._waiting:
                self._waiting[following] = self._waiting.pop(following)
            if not comes.done():
                self._begin(following)
                comes.set_result(None)

    def _leave(self, party: PartyId, comes: "asyncio.Future[None]") -> None:
        if party in self._waiting and comes in self._waiting[party]:
            self._waiting[party].remove(comes)
            if not self._waiting[party]:
                del self._waiting[party]
