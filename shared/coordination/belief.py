"""Belief in signed heartbeats: how long each holds for one reader, and which start at an endpoint is the newest. Pure.

A signature says who wrote a record, and not that Redis hands out the newest one. So a reader goes by its own clock: a
heartbeat holds for its lease from when it was first seen, an older one than was seen before is a replay, and of two
starts at one endpoint the larger epoch counts, also when Redis shows it no more. A reader that has just started has
seen nothing; then the worker's clock bounds how old a record may be.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shared.coordination.seals import Doubt, SignedBeat
from shared.fleet.records import WorkerRecord

MAX_SKEW_S = 60.0
"""Largest difference between the clocks of two machines of a fleet."""
MAX_LATE_S = 2.0
"""Largest time by which an answer of Redis overtakes another, so that an older heartbeat is read after a newer one."""
KEPT_FOR_S = 600.0
"""Time for which a heartbeat that is not seen any more is remembered; then its record is too old to be believed."""


@dataclass(slots=True)
class _Seen:
    beat: int
    first_s: float
    """By the reader's monotonic clock."""


@dataclass(slots=True)
class _Start:
    epoch: int
    last_s: float


class Beliefs:
    """One reader's memory of signed heartbeats; only workers of the pool can put something there."""

    def __init__(self) -> None:
        self._beats: dict[str, _Seen] = {}
        self._starts: dict[str, _Start] = {}
        self._forgot_at_s = 0.0

    def doubts(
        self, found: Sequence[tuple[WorkerRecord, SignedBeat]], now_s: float, wall_s: float
    ) -> Iterable[Doubt | None]:
        """Reason not to go by each of these records, or None. `now_s` is monotonic, `wall_s` the time of day."""
        self._forget(now_s)
        first = [self._doubt(record.info.worker_id, stamp, now_s, wall_s) for record, stamp in found]
        for (record, _), doubt in zip(found, first, strict=True):
            if doubt is None:
                self._note_start(record.info.endpoint, record.info.epoch, now_s)
        for (record, _), doubt in zip(found, first, strict=True):
            is_older = doubt is None and record.info.epoch < self._starts[record.info.endpoint].epoch
            yield Doubt.OLDER_START if is_older else doubt

    def _doubt(self, worker_id: str, stamp: SignedBeat, now_s: float, wall_s: float) -> Doubt | None:
        if (timing := doubt_of_time(stamp, wall_s)) is not None:
            return timing
        seen = self._beats.get(worker_id)
        if seen is None or stamp.beat > seen.beat:
            self._beats[worker_id] = _Seen(stamp.beat, now_s)
            return None
        age_s = now_s - seen.first_s
        if stamp.beat < seen.beat:
            return Doubt.REPLAYED if age_s > MAX_LATE_S else None
        return Doubt.SILENT if age_s > stamp.lease_ms / 1e3 else None

    def _note_start(self, endpoint: str, epoch: int, now_s: float) -> None:
        known = self._starts.get(endpoint)
        if known is None or epoch >= known.epoch:
            self._starts[endpoint] = _Start(epoch, now_s)

    def _forget(self, now_s: float) -> None:
        if now_s - self._forgot_at_s < KEPT_FOR_S:
            return
        self._forgot_at_s = now_s
        self._beats = {key: seen for key, seen in self._beats.items() if now_s - seen.first_s < KEPT_FOR_S}
        self._starts = {key: start for key, start in self._starts.items() if now_s - start.last_s < KEPT_FOR_S}


def doubt_of_time(stamp: SignedBeat, wall_s: float) -> Doubt | None:
    """Reason not to believe a stamp by the time of day; the worker's clock may differ by MAX_SKEW_S."""
    age_s = wall_s - stamp.at_ms / 1e3
    return None if -MAX_SKEW_S <= age_s <= stamp.lease_ms / 1e3 + MAX_SKEW_S else Doubt.OUT_OF_TIME
