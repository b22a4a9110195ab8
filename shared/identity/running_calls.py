"""Calls that run, each with what tells if its caller still may make it: one whose caller may no longer is ended.

A call is looked at every `LOOK_EVERY_S`, and files of principals and issuers as often, so that it ends within `ENDED_S`
of their change, or of the end of its token.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hotslot.errors import HotslotError, UnavailableError
from hotslot.rpc.tls_files import LOOK_EVERY_S

ENDED_S = 3 * LOOK_EVERY_S
"""Longest time from a change until a running call has been told."""
LOOKED_AT_ONCE = 64
"""Calls between which the event loop has its turn."""


@dataclass(eq=False, slots=True)
class RunningCall:
    """One of them."""

    check: Callable[[], None]
    """Raises a HotslotError once the caller may no longer make the call."""
    end: Callable[[HotslotError], None]
    """Ends the call, with that error; called once at most."""


class RunningCalls:
    """All calls that run in one process and have known callers. Belongs to one event loop."""

    def __init__(self) -> None:
        self._calls: set[RunningCall] = set()
        self._looking: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Look at calls no more."""
        if self._looking is not None:
            self._looking.cancel()

    @contextmanager
    def of(self, check: Callable[[], None], end: Callable[[HotslotError], None]) -> Iterator[None]:
        """A call, as long as it runs."""
        call = RunningCall(check, end)
        self._calls.add(call)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            yield
        finally:
            self._calls.discard(call)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for number, call in enumerate(tuple(self._calls)):
                if number % LOOKED_AT_ONCE == LOOKED_AT_ONCE - 1:
                    await asyncio.sleep(0)
                if call not in self._calls:
                    continue
                try:
                    call.check()
                except UnavailableError:
                    continue  # Nothing is known of what has changed.
                except HotslotError as exc:
                    self._calls.discard(call)
                    call.end(exc)
