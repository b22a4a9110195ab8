"""Pressure on a pool: what its workers have to do, in workers' worth, from which their number follows. Pure."""

from collections.abc import Iterable, Mapping
from enum import StrEnum

from hotslot.contract.control import WorkerState
from hotslot.ids import WorkerId
from shared.fleet.records import PlacedVersion, WorkerRecord


class Measure(StrEnum):
    """Measure of a pool: its sum over the workers, by a target, is the number of workers that there should be."""

    ROWS = "rows"
    """Sequences that were accepted and are not finished, by the rows that can run at once."""
    WAITING = "waiting"
    """Sequences that wait for a row, by the same."""
    SLOTS = "slots"
    """Versions with sequences in flight, by the slots: above 1 versions wait for each other's."""


DEFAULT_TARGETS: Mapping[Measure, float] = {Measure.ROWS: 0.7, Measure.WAITING: 0.2, Measure.SLOTS: 1.0}
"""Share of a worker that each measure may take before there is to be another worker."""


def pressure_of(measure: Measure, workers: Iterable[WorkerRecord], num_busy: Mapping[WorkerId, int]) -> float:
    """The sum over the workers that stay; `num_busy` has each worker's versions with sequences in flight.

    A worker that drains finishes by itself, and needs no other one for that.
    """
    staying = [worker for worker in workers if worker.state is not WorkerState.DRAINING]
    return sum(_share(measure, worker, num_busy.get(worker.info.worker_id, 0)) for worker in staying)


def is_busy(workers: Iterable[WorkerRecord]) -> bool:
    """True if any worker has something to do."""
    return any(worker.load.in_flight for worker in workers)


def num_busy_versions(placements: Iterable[PlacedVersion]) -> int:
    """Versions among a worker's placements that have sequences in flight there."""
    return sum(placement.resident.demand > 0 for placement in placements)


def _share(measure: Measure, worker: WorkerRecord, num_busy: int) -> float:
    load = worker.load
    rows = max(load.max_sequences, 1)
    if measure is Measure.WAITING:
        return load.waiting_sequences / rows
    if measure is Measure.SLOTS:
        num_slots = load.num_slots or worker.info.num_slots
        return num_busy / num_slots if num_slots else 0.0
    # Smoothed by the worker where it can; a queue that has just come counts in full.
    smoothed = load.in_flight if load.mean_in_flight is None else load.mean_in_flight
    return max(smoothed, float(load.waiting_sequences)) / rows
