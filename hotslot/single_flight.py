"""Single flights: work that many callers want at once is done once for all of them."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(slots=True)
class _Flight(Generic[V]):
    """Work under way, and the number of callers who wait for it."""

    task: "asyncio.Task[V]"
    waiters: int = 0


class SingleFlight(Generic[K, V]):
    """Flights by key: the first caller begins one, callers until its end share its outcome. Belongs to one event loop.

    A failure goes to all who wait and is not kept: the next caller begins anew. A caller that is cancelled leaves the
    flight to the others.
    """

    def __init__(self, *, ends_unwanted: bool = False) -> None:
        """`ends_unwanted` cancels a flight when the last caller who waits for it was cancelled; else it goes on."""
        self._ends_unwanted = ends_unwanted
        self._flights: dict[K, _Flight[V]] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._flights

    def keys(self) -> tuple[K, ...]:
        """Keys of the flights under way."""
        return tuple(self._flights)

    async def run(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """Wait for the flight of a key, begun with `work` unless one is under way; raises what the work does."""
        self.begin(key, work)
        flight = self._flights[key]
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if self._ends_unwanted and not flight.waiters and not flight.task.done():
                # The next caller begins anew, also while the end of this one takes its time.
                self._forget(key, flight)
                flight.task.cancel()

    def begin(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> "asyncio.Task[V]":
        """Begin a flight unless one is under way; returns the task, for callers who wait in their own way."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(work(), name=f"single flight {key}"))
            flight.task.add_done_callback(lambda task: self._landed(key, flight, task))
        return flight.task

    def again(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> None:
        """Begin another flight once the one of a key that is under way has ended, unless that is cancelled."""
        self._flights[key].task.add_done_callback(lambda task: None if task.cancelled() else self.begin(key, work))

    async def settled(self) -> None:
        """Wait for the flights under way, whatever their outcome."""
        if self._flights:
            await asyncio.wait([flight.task for flight in self._flights.values()])

    async def close(self) -> None:
        """Cancel the flights under way and wait until they have ended."""
        for flight in self._flights.values():
            flight.task.cancel()
        await self.settled()

    def _landed(self, key: K, flight: _Flight[V], task: "asyncio.Task[V]") -> None:
        self._forget(key, flight)
        if not task.cancelled():
            task.exception()  # marks it as seen when no caller waits any more

    def _forget(self, key: K, flight: _Flight[V]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
