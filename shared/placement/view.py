"""What to believe of a list of workers, when the place that keeps it may have lost its memory."""

from collections.abc import Iterable

from shared.coordination.records import WorkerRecord

_LOST_SHARE = 0.2
_LOST_AT_LEAST = 8
"""Workers leave one by one; that so many go at once is a flushed Redis rather than workers that left."""


def surviving_workers(
    before: Iterable[WorkerRecord], listed: Iterable[WorkerRecord], now_s: float
) -> tuple[WorkerRecord, ...]:
    """The workers to go by, given those that took requests before and those listed now.

    Many workers that are missing though their leases, as last seen, still run are kept until these end. Otherwise all
    requests would meet at the few workers that were first to announce themselves again.
    """
    found = {record.info.worker_id: record for record in listed}
    running = [record for record in before if record.lease_expire_time_s > now_s]
    missing = [record for record in running if record.info.worker_id not in found]
    if len(missing) < max(_LOST_AT_LEAST, _LOST_SHARE * len(running)):
        missing = []
    return (*found.values(), *missing)
