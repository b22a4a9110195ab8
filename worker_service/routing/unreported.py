"""Requests from here on workers that have not reported since these were sent. Pure state.

A worker's load is what it last reported, and what this router has on it now beyond what it had then. A request sent
between a report and its reading counts as reported, so the estimate is rather too low.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hotslot.ids import WorkerId
from shared.fleet.records import WorkerRecord


@dataclass(slots=True)
class Unreported:
    """Requests open from here when each worker's newest report was first seen."""

    _at_report: dict[WorkerId, tuple[float, int]] = field(default_factory=dict)

    def count(self, workers: Mapping[WorkerId, WorkerRecord], open_at: Callable[[str], int]) -> dict[WorkerId, int]:
        """By worker, where there are any; `open_at` says how many requests from here are open at an endpoint."""
        sent: dict[WorkerId, int] = {}
        known: dict[WorkerId, tuple[float, int]] = {}
        for worker_id, record in workers.items():
            now_open = open_at(record.info.endpoint)
            # A lease is renewed with every report.
            report, then_open = self._at_report.get(worker_id, (None, now_open))
            if report != record.lease_expire_time_s:
                then_open = now_open
            elif now_open > then_open:
                sent[worker_id] = now_open - then_open
            known[worker_id] = (record.lease_expire_time_s, then_open)
        self._at_report = known
        return sent
