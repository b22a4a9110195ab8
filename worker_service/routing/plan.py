"""Plan of a request: whether it leaves this worker, and to which others. Pure.

A worker that has everything keeps the request while it has a free row; then only a free row elsewhere is worth the
hop. One that would have to pull an adapter leaves the request to the worker that the placement policy ranks before it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from hotslot.ids import WorkerId
from shared.fleet.policy import RankedWorker
from shared.fleet.records import WorkerRecord


@dataclass(frozen=True, slots=True)
class Here:
    """This worker, for one request."""

    worker_id: WorkerId
    holds_all: bool
    """True if every adapter that the request needs is in memory here, or on its way."""
    in_flight: int
    """Sequences accepted and not finished."""
    max_sequences: int
    """Rows that can run at once."""
    takes_requests: bool = True
    """False once it drains, and while its engine hangs."""

    @property
    def keeps(self) -> bool:
        """True if the request stays, whatever other workers could do for it."""
        return self.takes_requests and self.holds_all and self.in_flight < self.max_sequences


def before_here(
    ranked: Sequence[RankedWorker], here: Here, outstanding: Mapping[WorkerId, int], *, limit: int
) -> list[WorkerRecord]:
    """The workers to try before this one, best first.

    `ranked` is the policy's order. `outstanding` are the streams from here to each worker, which its last report may
    not know of.
    """
    others = [candidate.worker for candidate in ranked if candidate.worker.info.worker_id != here.worker_id]
    if not here.takes_requests:
        return others[:limit]
    if here.keeps:
        return []
    if here.holds_all:
        return [worker for worker in others if _has_row(worker, outstanding)][:limit]
    ahead = []
    for candidate in ranked:
        if candidate.worker.info.worker_id == here.worker_id:
            break
        ahead.append(candidate.worker)
    return ahead[:limit]


def instead_of_here(
    ranked: Sequence[RankedWorker], here: Here, tried: Collection[WorkerId], *, limit: int
) -> list[WorkerRecord]:
    """The workers to try when this one has no room, best first."""
    passed_over = {here.worker_id, *tried}
    return [c.worker for c in ranked if c.worker.info.worker_id not in passed_over][: max(0, limit - len(tried))]


def _has_row(worker: WorkerRecord, outstanding: Mapping[WorkerId, int]) -> bool:
    in_flight = max(worker.load.in_flight, outstanding.get(worker.info.worker_id, 0))
    return in_flight < worker.load.max_sequences
