"""Places for streams, which tenants share: one may have most of them while it is alone, and leaves room when it is not.

A stream whose reader sleeps loses its place to a stream that comes. Its message is still on its way then, in gRPC's
memory, until its reader takes it or leaves: how many of those a tenant may leave behind is bounded too.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hotslot.errors import QuotaExceededError, StreamStalledError

STALL_S = 120.0
"""A message of 1 MiB at 10 kB/s takes 105 s."""
SHARE = 8
"""Multiple of the free places that a tenant may have: eight ninths of them when it is alone (dynamic
thresholds, Choudhury and Hahne 1998)."""
SLEEPS_S = 30.0
"""A reader that took nothing for so long sleeps. One that takes 10 kB/s takes a stream's first chunk, of 256 KiB, in 26
s, and further ones, of 64 KiB, in 7 s."""
MAX_LEFT_BEHIND = 2
"""Streams of one tenant that ended while their readers slept, and of which gRPC still holds a message: so many times as
many as there are places."""
RETRY_AFTER_S = 0.5


@dataclass(frozen=True, slots=True)
class StreamLimit:
    """Limit of calls of some methods that run at the same time."""

    setting: str
    """Setting that has the number, as errors name it."""
    max_streams: int
    methods: tuple[str, ...]
    """`/package.Service/Method`."""


class Stream:
    """One call as long as it runs: how long its caller has been waited for."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._timeout: asyncio.Timeout | None = None
        self.waits_since_s: float | None = None
        """Time at which the message that its reader has not taken yet was given to gRPC; None while there is no such
        message."""

    async def write(self, writing: Awaitable[None]) -> None:
        """Wait until a message is taken; raises StreamStalledError when that takes too long."""
        try:
            async with asyncio.timeout(self._stall_s) as self._timeout:
                self.waits_since_s = asyncio.get_running_loop().time()
                await writing
        except TimeoutError as exc:
            waited_s = asyncio.get_running_loop().time() - (self.waits_since_s or 0.0)
            message = f"the reader of this stream took nothing for {waited_s:.0f} s; go on from what has arrived"
            raise StreamStalledError(message) from exc
        finally:
            self._timeout = self.waits_since_s = None

    async def read(self, reading: Awaitable[object]) -> object:
        """The next message of a client's stream; raises StreamStalledError when it does not come."""
        try:
            async with asyncio.timeout(self._stall_s):
                return await reading
        except TimeoutError as exc:
            message = (
                f"nothing came on this stream for {self._stall_s:g} s; what arrived before is kept, go on from there"
            )
            raise StreamStalledError(message) from exc

    def end(self) -> None:
        """Let the write that waits fail as one that has stalled."""
        if self._timeout is not None:
            self._timeout.reschedule(asyncio.get_running_loop().time())


class StreamPlaces:
    """The places of one limit."""

    def __init__(self, limit: StreamLimit) -> None:
        self._limit = limit
        self.methods = limit.methods
        self._tenants: dict[Stream, str] = {}
        """Tenants by the streams that have a place."""
        self._held: Counter[str] = Counter()
        self._left_behind: Counter[str] = Counter()

    def take(self, stream: Stream, tenant: str, now_s: float) -> None:
        """Give a stream a place, another's where that one's reader sleeps; raises QuotaExceededError."""
        if not self._has_room(tenant):
            sleeper = self._longest_asleep(now_s)
            if sleeper is not None:
                sleeper.end()
                self.leave(sleeper)
        if not self._has_room(tenant):
            held, most = self._held[tenant], self._limit.max_streams
            message = (
                f"{len(self._tenants)} of {most} streams are open, {held} of them this tenant's; try again shortly"
            )
            raise QuotaExceededError(message, subject=self._limit.setting, retry_after_s=RETRY_AFTER_S)
        self._tenants[stream] = tenant
        self._held[tenant] += 1

    def leave(self, stream: Stream) -> None:
        """A stream is over, or has lost its place; harmless when it had none."""
        tenant = self._tenants.pop(stream, None)
        if tenant is not None:
            _decrease(self._held, tenant)

    @contextmanager
    def left_behind(self, tenant: str) -> Iterator[None]:
        """As long as gRPC holds what the reader of a stream that is over has not taken."""
        self._left_behind[tenant] += 1
        try:
            yield
        finally:
            _decrease(self._left_behind, tenant)

    def _has_room(self, tenant: str) -> bool:
        num_free = self._limit.max_streams - len(self._tenants)
        is_within_share = self._held[tenant] < SHARE * num_free
        return is_within_share and self._left_behind[tenant] < MAX_LEFT_BEHIND * self._limit.max_streams

    def _longest_asleep(self, now_s: float) -> Stream | None:
        asleep = [
            (stream.waits_since_s, position, stream)
            for position, stream in enumerate(self._tenants)
            if stream.waits_since_s is not None and now_s - stream.waits_since_s >= SLEEPS_S
        ]
        return min(asleep)[2] if asleep else None


def _decrease(counter: "Counter[str]", key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
