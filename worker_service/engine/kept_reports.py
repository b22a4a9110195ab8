"""Reports of the engine that are kept for another thread, beside the listener that hears them too."""

from collections import deque
from collections.abc import Callable, Iterator

from hotslot.ids import Digest
from worker_service.engine.listener import (
    ActivationReport,
    EngineListener,
    SequenceReport,
    SilentListener,
    StepReport,
)

MAX_KEPT = 4096
"""Reports that wait to be taken; further ones take the place of the oldest."""


class KeptReports:
    """Listener of the engine. A step does not notice it: what hears of steps is the other listener itself."""

    def __init__(self, other: EngineListener | None = None) -> None:
        other = other or SilentListener()
        self.stepped: Callable[[StepReport], None] = other.stepped
        self.evicted: Callable[[Digest], None] = other.evicted
        self._other = other
        # Its ends are safe without a lock: the engine's thread appends, the taker's takes from the other end.
        self._kept: deque[SequenceReport | ActivationReport] = deque(maxlen=MAX_KEPT)

    def ended(self, report: SequenceReport) -> None:
        """Keep a sequence's report."""
        self._other.ended(report)
        self._kept.append(report)

    def activated(self, report: ActivationReport) -> None:
        """Keep an adapter's report."""
        self._other.activated(report)
        self._kept.append(report)

    def take(self) -> Iterator[SequenceReport | ActivationReport]:
        """Take the reports that there are, in the order of what they tell; called by one other thread."""
        while self._kept:
            yield self._kept.popleft()
