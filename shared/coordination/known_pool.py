"""One pool as a process knows it: what Redis says, and what it said before it lost its memory or went away."""

import time
from collections.abc import Callable, Mapping, Sequence

import structlog

from hotslot.ids import Digest
from shared.coordination.directory import Directory
from shared.coordination.unreadable import TOLD_FOR_S
from shared.fleet.memory import PoolMemory
from shared.fleet.records import PlacedVersion, PoolView

log = structlog.get_logger(__name__)


def _nothing() -> None:
    """Ignore the news, for a pool whose reader needs none."""


class KnownPool:
    """Reads one pool of the directory. Belongs to one event loop; give it to all who read the same pool."""

    def __init__(
        self,
        directory: Directory,
        pool: Digest,
        on_loss: Callable[[], None] = _nothing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_loss` hears that Redis has lost what it knew of the pool."""
        self._directory = directory
        self._pool = pool
        self._on_loss = on_loss
        self._clock = clock
        self._memory = PoolMemory()
        self._ahead_s = 0.0
        self._lost = ""
        self._told_at_s = -TOLD_FOR_S

    @property
    def time_s(self) -> float:
        """Redis's time now, as far as that can be told from the last read."""
        return self._clock() + self._ahead_s

    async def workers(self) -> PoolView:
        """The workers to go by; raises CoordinationUnavailableError."""
        before = self._memory.since
        view = self._memory.workers(await self._directory.workers(self._pool))
        self._ahead_s = view.time_s - self._clock()
        self._notice(before)
        return view

    async def placements(self, digests: Sequence[Digest]) -> Mapping[Digest, Sequence[PlacedVersion]]:
        """The placements to go by; raises CoordinationUnavailableError."""
        if not digests:
            return {}
        before = self._memory.since
        known = self._memory.placements(await self._directory.placements_view(self._pool, digests))
        self._notice(before)
        return known

    def recall(self, digests: Sequence[Digest]) -> Mapping[Digest, Sequence[PlacedVersion]]:
        """The placements as last gone by, without asking."""
        return self._memory.recall(digests)

    def _notice(self, before: str) -> None:
        since = self._memory.since
        # These are times. Answers overtake each other, so one from before a loss may be the last.
        if before > self._lost and not "" < since <= before:
            self._lost = before
            self._on_loss()
            if (now_s := self._clock()) - self._told_at_s >= TOLD_FOR_S:
                self._told_at_s = now_s
                log.warning("redis_forgot", pool=self._pool, since=before)
