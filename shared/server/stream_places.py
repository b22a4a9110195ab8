"""Places for streams, which tenants share: one may have most of them while it is alone, and leaves room when it is not.

A stream whose caller sleeps, or is as slow, loses its place to a stream that comes, and so does one of the party that
has most places to a party that has fewer. Its message is still on its way then, in gRPC's memory, until its reader
takes it or leaves: how many of those a tenant, and a party, may leave behind is bounded too.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from hotslot.errors import HotslotError, QuotaExceededError, StreamStalledError, UnavailableError
from hotslot.ids import NO_PARTY

STALL_S = 120.0
"""A message of 1 MiB at 10 kB/s takes 105 s."""
SHARE = 8
"""Multiple of the free places that a tenant may have: eight ninths of them when it is alone (dynamic
thresholds, Choudhury and Hahne 1998)."""
SLEEPS_S = 30.0
"""A reader that took nothing for so long sleeps. One that takes 10 kB/s takes a stream's first chunk, of 256 KiB, in 26
s, and further ones, of 64 KiB, in 7 s."""
KEEPS_UP_BYTES_PER_S = 10_000
"""A caller that takes or sends less falls behind; once that makes as long as sleeping does, it counts as asleep."""
MAX_LEFT_BEHIND = 2
"""Streams of one tenant that ended while their readers slept, and of which gRPC still holds a message: so many times as
many as there are places."""
MAX_LEFT_BY_PARTY = 4
"""The same of one party."""
RETRY_AFTER_S = 0.5

T = TypeVar("T")


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

    def __init__(self, stall_s: float, task: "asyncio.Task[object] | None" = None) -> None:
        """`task` runs it, and is cancelled where it is ended while its caller is not waited for."""
        self._stall_s = stall_s
        self._task = task
        self._timeout: asyncio.Timeout | None = None
        self.waits_since_s: float | None = None
        """Time since which its caller is waited for: that its reader takes a message, or that its next one comes."""
        self.behind_s = 0.0
        """Time for which its caller was waited for, less what its bytes may take."""
        self.has_place = False
        """Set where streams of its kind are bounded: then it is counted what its caller takes and sends."""
        self.ended_by: HotslotError | None = None
        """Set where it lost its place to another party's stream."""

    async def write(self, writing: Awaitable[None], message: object = None) -> None:
        """Wait until a message is taken; raises StreamStalledError when that takes too long, and `ended_by`."""
        began_s = asyncio.get_running_loop().time()
        try:
            await self._wait(writing)
        except TimeoutError as exc:
            waited_s = asyncio.get_running_loop().time() - began_s
            message = f"the reader of this stream took nothing for {waited_s:.0f} s; go on from what has arrived"
            raise self.ended_by or StreamStalledError(message) from exc
        self._progressed(message, asyncio.get_running_loop().time() - began_s)

    async def read(self, reading: Awaitable[object]) -> object:
        """The next message of a client's stream; raises StreamStalledError when it does not come, and `ended_by`."""
        began_s = asyncio.get_running_loop().time()
        try:
            found = await self._wait(reading)
        except TimeoutError as exc:
            message = (
                f"nothing came on this stream for {self._stall_s:g} s; what arrived before is kept, go on from there"
            )
            raise self.ended_by or StreamStalledError(message) from exc
        self._progressed(found, asyncio.get_running_loop().time() - began_s)
        return found

    def lag_s(self, now_s: float) -> float:
        """Time that its caller has fallen behind."""
        return self.behind_s + (now_s - self.waits_since_s if self.waits_since_s is not None else 0.0)

    def end(self, error: HotslotError | None = None) -> None:
        """Let what waits for the caller fail as stalled, or with an error; with one, whatever it waits for."""
        self.ended_by = error
        if self._timeout is not None:
            self._timeout.reschedule(asyncio.get_running_loop().time())
        elif error is not None and self._task is not None:
            self._task.cancel()

    def _progressed(self, message: object, waited_s: float) -> None:
        if self.has_place and message is not None:
            size_bytes = len(message) if isinstance(message, bytes) else message.ByteSize()  # type: ignore[attr-defined]
            self.behind_s = max(self.behind_s + waited_s - size_bytes / KEEPS_UP_BYTES_PER_S, 0.0)

    async def _wait(self, waiting: "Awaitable[T]") -> "T":
        try:
            async with asyncio.timeout(self._stall_s) as self._timeout:
                self.waits_since_s = asyncio.get_running_loop().time()
                return await waiting
        finally:
            self._timeout = self.waits_since_s = None


class StreamPlaces:
    """The places of one limit."""

    def __init__(self, limit: StreamLimit) -> None:
        self._limit = limit
        self.methods = limit.methods
        self._owners: dict[Stream, tuple[str, str]] = {}
        """Tenants and parties by the streams that have a place."""
        self._held: Counter[str] = Counter()
        self._parties: Counter[str] = Counter()
        self._left_behind: Counter[str] = Counter()
        self._left_by_party: Counter[str] = Counter()

    def take(self, stream: Stream, tenant: str, now_s: float, party: str = NO_PARTY) -> None:
        """Give a stream a place, another's where that one's caller sleeps or its party has more.

        Raises QuotaExceededError.
        """
        if not self._has_room(tenant, party):
            sleeper = self._longest_asleep(now_s)
            if sleeper is not None:
                sleeper.end()
                self.leave(sleeper)
        if not self._has_room(tenant, party):
            crowding = self._crowding(party, now_s)
            if crowding is not None:
                message = "the place of this stream went to a caller who has fewer; go on from what has arrived"
                crowding.end(UnavailableError(message, retry_after_s=RETRY_AFTER_S))
                self.leave(crowding)
        if not self._has_room(tenant, party):
            held, most = self._held[tenant], self._limit.max_streams
            message = f"{len(self._owners)} of {most} streams are open, {held} of them this tenant's; try again shortly"
            raise QuotaExceededError(message, subject=self._limit.setting, retry_after_s=RETRY_AFTER_S)
        self._owners[stream] = tenant, party
        stream.has_place = True
        self._held[tenant] += 1
        self._parties[party] += 1

    def leave(self, stream: Stream) -> None:
        """A stream is over, or has lost its place; harmless when it had none."""
        owner = self._owners.pop(stream, None)
        if owner is not None:
            _decrease(self._held, owner[0])
            _decrease(self._parties, owner[1])

    @contextmanager
    def left_behind(self, tenant: str, party: str = NO_PARTY) -> Iterator[None]:
        """As long as gRPC holds what the reader of a stream that is over has not taken."""
        self._left_behind[tenant] += 1
        self._left_by_party[party] += 1
        try:
            yield
        finally:
            _decrease(self._left_behind, tenant)
            _decrease(self._left_by_party, party)

    def _has_room(self, tenant: str, party: str) -> bool:
        max_streams = self._limit.max_streams
        is_within_share = self._held[tenant] < SHARE * (max_streams - len(self._owners))
        leaves_few = self._left_behind[tenant] < MAX_LEFT_BEHIND * max_streams
        return is_within_share and leaves_few and self._left_by_party[party] < MAX_LEFT_BY_PARTY * max_streams

    def _longest_asleep(self, now_s: float) -> Stream | None:
        """The stream whose caller, who is waited for, has fallen behind most, of those that count as asleep."""
        lags = {stream: stream.lag_s(now_s) for stream in self._owners if stream.waits_since_s is not None}
        longest = max(lags, key=lags.__getitem__, default=None)
        return longest if longest is not None and lags[longest] >= SLEEPS_S else None

    def _crowding(self, party: str, now_s: float) -> Stream | None:
        """Stream of the party that has most places, and no fewer than this one once it gave one to it.

        The one whose caller has fallen behind most, of those that have not the latest.
        """
        most, num_held = max(self._parties.items(), key=lambda item: item[1], default=(NO_PARTY, 0))
        if num_held - 1 < self._parties[party] + 1:
            return None
        held = [stream for stream, owner in reversed(self._owners.items()) if owner[1] == most]
        return max(held, key=lambda stream: stream.lag_s(now_s))


def _decrease(counter: "Counter[str]", key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
