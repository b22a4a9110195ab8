"""The policies that are compared: each orders workers for a request, from the same hints."""

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from hotslot.ids import Digest, WorkerId
from shared.fleet.policy import Fleet, relative_load
from tools.simulation.hints import Hints
from tools.simulation.worker import SimulatedWorker
from worker_service.routing.router import COUNT_EVERY_S


class SimulatedRouter(Protocol):
    """Chooses for one request."""

    def choose(self, adapter: int, count: int, now_s: float, turn: int) -> Sequence[WorkerId]:
        """The workers to try, best first; empty when none is known."""
        ...


class Hotslot:
    """The real thing: `shared.fleet` over the hints of Redis.

    Each of the routers counts what it sent since the workers reported, which is its part of what all of them did.
    """

    def __init__(
        self, hints: Hints, digests: Sequence[Digest], workers: Mapping[WorkerId, SimulatedWorker], num_routers: int
    ) -> None:
        self._hints = hints
        self._digests = digests
        self._workers = workers
        self._num_routers = num_routers
        self._seen: Fleet | None = None
        self._knowing: Fleet | None = None
        self._counted_at_s = 0.0

    def choose(self, adapter: int, count: int, now_s: float, turn: int) -> Sequence[WorkerId]:
        digest = self._digests[adapter]
        placements = {digest: self._hints.placements(digest, now_s)}
        picked = self._fleet(now_s).pick([digest], placements, count=count, turn=turn)
        return [candidate.worker.info.worker_id for candidate in picked]

    def _fleet(self, now_s: float) -> Fleet:
        fleet = self._hints.fleet(now_s)
        if fleet is not self._seen or self._knowing is None or now_s - self._counted_at_s >= COUNT_EVERY_S:
            sent = {}
            for worker_id, record in fleet.workers.items():
                worker = self._workers.get(worker_id)
                if worker is not None and worker.in_flight > record.load.in_flight:
                    sent[worker_id] = (worker.in_flight - record.load.in_flight) / self._num_routers
            self._seen, self._counted_at_s = fleet, now_s
            self._knowing = fleet.knowing(sent) if sent else fleet
        return self._knowing


class RoundRobin:
    """Every worker in turn."""

    def __init__(self, hints: Hints) -> None:
        self._hints = hints

    def choose(self, adapter: int, count: int, now_s: float, turn: int) -> Sequence[WorkerId]:
        ids = self._hints.fleet(now_s).rendezvous.worker_ids
        return [ids[(turn + n) % len(ids)] for n in range(min(count, len(ids)))]


class LeastLoaded:
    """The worker with the fewest requests for its rows, wherever adapters are; equal ones in turn.

    It counts what it sent since the report that it goes by: else everything would go to one worker for seconds.
    """

    def __init__(self, hints: Hints) -> None:
        self._hints = hints
        self._fleet: Fleet | None = None
        self._queue: list[tuple[float, int, WorkerId]] = []

    def choose(self, adapter: int, count: int, now_s: float, turn: int) -> Sequence[WorkerId]:
        fleet = self._hints.fleet(now_s)
        if fleet is not self._fleet:
            self._fleet = fleet
            self._queue = [(relative_load(r), turn + n, w) for n, (w, r) in enumerate(fleet.workers.items())]
            heapq.heapify(self._queue)
        if not self._queue:
            return []
        load, _, worker_id = self._queue[0]
        rows = fleet.workers[worker_id].load.max_sequences
        heapq.heapreplace(self._queue, (load + 1 / rows, turn + len(self._queue), worker_id))
        return [worker_id, *(w for _, _, w in self._queue[1:count])]


class PlainRendezvous:
    """Always the first in the order."""

    def __init__(self, hints: Hints, digests: Sequence[Digest]) -> None:
        self._hints = hints
        self._digests = digests

    def choose(self, adapter: int, count: int, now_s: float, turn: int) -> Sequence[WorkerId]:
        return self._hints.fleet(now_s).rendezvous.top(self._digests[adapter], count)


class BoundedLoads:
    """The first in the order whose load is at most 1.25 × the mean (Mirrokni, Thorup and Zadimoghaddam, 2018)."""

    def __init__(self, hints: Hints, digests: Sequence[Digest], ratio: float = 1.25) -> None:
        self._hints = hints
        self._digests = digests
        self._ratio = ratio
        self._fleet: Fleet | None = None
        self._above: frozenset[WorkerId] = frozenset()

    def choose(self, adapter: int, count: int, now_s: float, turn: int) -> Sequence[WorkerId]:
        fleet = self._hints.fleet(now_s)
        if fleet is not self._fleet:
            self._fleet = fleet
            loads = {worker_id: record.load.in_flight for worker_id, record in fleet.workers.items()}
            bound = math.ceil(self._ratio * sum(loads.values()) / max(1, len(loads)))
            self._above = frozenset(worker_id for worker_id, load in loads.items() if load > bound)
        looked_at = 8
        while True:
            order = fleet.rendezvous.top(self._digests[adapter], looked_at)
            below = [worker_id for worker_id in order if worker_id not in self._above]
            if len(below) >= count or len(order) < looked_at:
                return (below or list(order))[:count]
            looked_at *= 2
