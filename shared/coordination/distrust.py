"""Counts of records that were not believed, and one log line a minute for each reason, however many there are."""

import time
from collections import Counter
from collections.abc import Callable

import structlog

from shared.coordination.seals import Doubt
from shared.coordination.unreadable import MAX_SHOWN, TOLD_FOR_S
from shared.metrics.numbers import Tally

log = structlog.get_logger(__name__)


class Distrust:
    """One reader's counts."""

    def __init__(self, refused: Tally | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """`refused` counts them for metrics, too."""
        self._refused = refused
        self._clock = clock
        self._told_at_s: dict[Doubt, float] = {}
        self._told: Counter[Doubt] = Counter()
        self.counts: Counter[Doubt] = Counter()
        """Records since the start, by reason."""

    def count(self, place: str, doubt: Doubt) -> None:
        """Note a record that is not gone by."""
        self.counts[doubt] += 1
        if self._refused is not None:
            self._refused.add(doubt.name.lower())
        now_s = self._clock()
        if now_s - self._told_at_s.get(doubt, -TOLD_FOR_S) < TOLD_FOR_S:
            return
        num_new, self._told[doubt] = self.counts[doubt] - self._told[doubt], self.counts[doubt]
        self._told_at_s[doubt] = now_s
        log.warning("redis_not_believed", place=place[:MAX_SHOWN], why=doubt.value, records=num_new)
