"""Deciding when a worker reports what it holds: soon where others go by it, seldom where only details changed."""

from collections.abc import Iterable, Mapping

from hotslot.ids import Digest
from shared.fleet.records import MEMORY_TIERS, Resident, distance_of

DETAILS_SHARE = 0.75
"""Least part of the time between heartbeats, between two reports that tell only which versions are in slots, or which
tenants used them last: they go with a heartbeat. A report is whole, and in a busy worker such details change all the
time."""


class ReportSchedule:
    """Revision of the newest report, and when the next is due. Pure state: times are passed in."""

    def __init__(self, heartbeat_s: float, report_every_s: float) -> None:
        """An unchanged residency is reported again every `report_every_s`."""
        self._heartbeat_s = heartbeat_s
        self._report_every_s = report_every_s
        self._reported: Mapping[Digest, Resident] = {}
        self._revision = 0
        self._reported_at_s = float("-inf")

    def due(self, residents: Mapping[Digest, Resident], known_revision: int, now_s: float) -> int | None:
        """Revision to report these residents under; None while no report is due.

        `known_revision` is that of the report that readers have; it is another one, or 0, when it was lost.
        """
        age_s = now_s - self._reported_at_s
        is_unknown = not self._revision or known_revision != self._revision
        if is_unknown or urgent(residents.values()) != urgent(self._reported.values()):
            is_due = True
        elif residents != self._reported:
            is_due = age_s >= self._heartbeat_s * DETAILS_SHARE
        else:
            is_due = age_s >= self._report_every_s
        if not is_due:
            return None
        if residents != self._reported or not self._revision:
            self._revision += 1
            self._reported = residents
        return self._revision

    def accepted(self, now_s: float) -> None:
        """Note that readers have the report that was due."""
        self._reported_at_s = now_s


def urgent(residents: Iterable[Resident]) -> dict[Digest, tuple[bool, bool, float]]:
    """Parts of residents that readers should hear of soon: memory or disk, whether it stays, and demand."""
    return {r.digest: (r.tier in MEMORY_TIERS, r.pinned, r.demand) for r in residents}


def by_digest(residents: Iterable[Resident]) -> dict[Digest, Resident]:
    """One resident for each digest: the one in the fastest tier."""
    fastest: dict[Digest, Resident] = {}
    for resident in residents:
        known = fastest.get(resident.digest)
        if known is None or distance_of(resident.tier) < distance_of(known.tier):
            fastest[resident.digest] = resident
    return fastest
