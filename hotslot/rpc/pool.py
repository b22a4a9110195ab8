"""Pool of dialled servers, by endpoint: opened once, shared, and closed when neither used nor wanted any more."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar

MAX_IDLE = 16


class Closable(Protocol):
    """A channel, or a client around one."""

    async def close(self) -> Any:
        """Close it; calls that are under way are cancelled."""
        ...


T = TypeVar("T", bound=Closable)


class Pool(Generic[T]):
    """Open connections by endpoint; keeps some idle ones and never closes one that is in use."""

    def __init__(self, dial: Callable[[str], T], max_idle: int = MAX_IDLE) -> None:
        self._dial = dial
        self._max_idle = max_idle
        # Not a library's map: what is in use stays, however old, and closing takes time.
        self._open: OrderedDict[str, T] = OrderedDict()
        self._users: dict[str, int] = {}
        self._unwanted: set[str] = set()

    @asynccontextmanager
    async def use(self, endpoint: str) -> AsyncIterator[T]:
        """The connection to an endpoint, kept open at least until the block ends."""
        connection = self._open.get(endpoint)
        if connection is None:
            connection = self._open[endpoint] = self._dial(endpoint)
        self._open.move_to_end(endpoint)
        self._unwanted.discard(endpoint)
        self._users[endpoint] = self._users.get(endpoint, 0) + 1
        try:
            yield connection
        finally:
            self._users[endpoint] -= 1
            await self._close_surplus()

    def users(self, endpoint: str) -> int:
        """Number of users of the connection to an endpoint now."""
        return self._users.get(endpoint, 0)

    async def retain(self, endpoints: Collection[str]) -> None:
        """Close the connections to all other servers: the idle ones now, the others when their last user has ended."""
        self._unwanted = set(self._open).difference(endpoints)
        await self._close_surplus()

    async def close(self) -> None:
        """Close all connections."""
        connections = list(self._open.values())
        self._open.clear()
        await asyncio.gather(*(connection.close() for connection in connections))

    async def _close_surplus(self) -> None:
        idle = [endpoint for endpoint in self._open if not self._users.get(endpoint)]
        unwanted = [endpoint for endpoint in idle if endpoint in self._unwanted]
        wanted = [endpoint for endpoint in idle if endpoint not in self._unwanted]
        for endpoint in [*unwanted, *wanted[: max(0, len(wanted) - self._max_idle)]]:
            connection = self._open.pop(endpoint)
            self._users.pop(endpoint, None)
            await connection.close()
