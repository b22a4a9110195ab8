"""Memory of a reader for the time after Redis lost its data: earlier reads, until they are said anew or have ended.

Redis names the moment since when it has known a pool without a gap. When that changes, or is missing, then everything
that it does not say may be unknown to it rather than untrue. So every worker that was known stays until its lease, as
last seen, would have ended, and so do its placements, until the worker has told its residency again. News
replaces memories, worker by worker. While the moment stays the same, placements that are not read are not there.

Several reads may be under way at once, and their answers come in any order: what a later one said of a worker says
nothing of what an earlier one could have seen.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cachetools import LRUCache

from hotslot.ids import Digest, WorkerId
from shared.fleet.records import PlacedVersion, PlacementsView, PoolView, WorkerRecord

MAX_REMEMBERED = 16_384
"""Versions whose placements are remembered, those read last."""
_MAX_LATE_S = 2.0
"""Largest age of an answer that another one overtook; from longer ago is a clock that was set back, by a failover."""


@dataclass(slots=True)
class _Untold:
    """A worker that was known when Redis lost its memory."""

    lease_expire_time_s: float
    """As last seen before."""
    told_at_s: float = math.inf
    """Time at which its residency was first seen again; it may have been told any time before."""


class PoolMemory:
    """One reader's memory of one pool. Pure state: times are those of the views, on Redis's clock."""

    def __init__(self, max_remembered: int = MAX_REMEMBERED) -> None:
        self._since = ""
        self._view = PoolView((), -math.inf, "")
        self._unlisted: set[WorkerId] = set()
        """Workers that have not been listed since the loss."""
        self._untold: dict[WorkerId, _Untold] = {}
        self._placements: LRUCache[Digest, tuple[PlacedVersion, ...]] = LRUCache(max_remembered)

    @property
    def since(self) -> str:
        """As last read; empty when Redis did not know the pool."""
        return self._since

    def workers(self, read: PoolView) -> PoolView:
        """The workers to go by, now that these were read."""
        if read.since == self._view.since and 0 < self._view.time_s - read.time_s < _MAX_LATE_S:
            return self._view
        self._note(read.since)
        self._tell((record.info.worker_id for record in read.workers if record.residency_revision), read.time_s)
        self._unlisted -= {record.info.worker_id for record in read.workers}
        kept = [
            record
            for record in self._view.workers
            if record.info.worker_id in self._unlisted and record.lease_expire_time_s > read.time_s
        ]
        workers = _newest_starts((*read.workers, *kept)) if kept else read.workers
        self._view = PoolView(workers, read.time_s, read.since)
        return self._view

    def placements(self, read: PlacementsView) -> Mapping[Digest, Sequence[PlacedVersion]]:
        """The placements to go by, now that these were read."""
        self._note(read.since)
        # A worker tells all of its residency at once.
        self._tell((p.worker_id for found in read.placements.values() for p in found), read.time_s)
        known: dict[Digest, tuple[PlacedVersion, ...]] = {}
        for digest, found in read.placements.items():
            here = {placement.worker_id for placement in found}
            kept = [
                placement
                for placement in self._placements.get(digest, ())
                if placement.worker_id not in here and self._is_untold(placement.worker_id, read.time_s)
            ]
            known[digest] = self._placements[digest] = (*found, *kept) if kept else tuple(found)
        return known

    def recall(self, digests: Sequence[Digest]) -> Mapping[Digest, Sequence[PlacedVersion]]:
        """The placements of these versions as they were last gone by; of some maybe none."""
        return {digest: self._placements[digest] for digest in digests if digest in self._placements}

    def _note(self, since: str) -> None:
        if since != self._since:
            self._since = since
            known = {record.info.worker_id: record for record in self._view.workers}
            self._unlisted = set(known)
            self._untold = {worker_id: _Untold(record.lease_expire_time_s) for worker_id, record in known.items()}

    def _tell(self, worker_ids: Iterable[WorkerId], now_s: float) -> None:
        for worker_id in worker_ids:
            if worker_id in self._untold:
                untold = self._untold[worker_id]
                untold.told_at_s = min(untold.told_at_s, now_s)

    def _is_untold(self, worker_id: WorkerId, now_s: float) -> bool:
        """Tell whether a read of this moment may have missed versions that the worker holds."""
        untold = self._untold.get(worker_id)
        return untold is not None and now_s < untold.lease_expire_time_s and now_s <= untold.told_at_s


def _newest_starts(records: Sequence[WorkerRecord]) -> tuple[WorkerRecord, ...]:
    """Newest start at each endpoint, by the largest epoch; sorted by worker_id.

    Redis has forgotten the epochs, too, so an older start that was frozen until now could be listed again.
    """
    epochs: dict[str, int] = {}
    for record in records:
        info = record.info
        epochs[info.endpoint] = max(info.epoch, epochs.get(info.endpoint, info.epoch))
    newest = (record for record in records if record.info.epoch == epochs[record.info.endpoint])
    return tuple(sorted(newest, key=lambda record: record.info.worker_id))
