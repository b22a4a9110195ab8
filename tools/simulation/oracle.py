"""The oracle: knows every adapter's rate beforehand, and every worker's state as it is now, and assigns offline.

It gives each adapter its workers so that expected loads are equal (largest first, to the least loaded; an adapter
worth more than half of a worker is cut into pieces), changes as little as it can when workers come and go, and sends
each request to the least busy of its adapter's workers, or, when all of their rows are taken, to an idle worker that
has the adapter anyway. It never loads an adapter elsewhere. It does not choose what workers evict: that is the
workers' own, least recently used, as with all other policies.
"""

import heapq
from collections.abc import Sequence

import numpy as np

from hotslot.ids import WorkerId
from tools.simulation.traffic import Demand
from tools.simulation.worker import SimulatedWorker

LARGEST_PIECE = 0.5
"""Largest piece, as a share of a worker's expected load."""


class Oracle:
    """An offline assignment that follows the fleet."""

    def __init__(
        self, demand: Demand, seed: int, workers: dict[WorkerId, SimulatedWorker], holders: dict[int, set[WorkerId]]
    ) -> None:
        """`workers` and `holders` (of each adapter) are the true state, now and later."""
        self._workers = workers
        self._holders = holders
        self._size = next(iter(workers.values())).size.rows
        # In workers: an adapter's share of all load, by the mean load of a worker.
        self._worth = demand.popularity(seed) * len(workers)
        self._utilisation = demand.utilisation
        self._crowd = demand.flash
        self._crowd_is_here = False
        self._pieces: dict[int, list[WorkerId]] = {}
        self._assigned: dict[WorkerId, set[int]] = {}
        self._load: dict[WorkerId, float] = {}
        self._assign(set(workers))

    def choose(self, adapter: int, count: int, now_s: float, turn: int) -> Sequence[WorkerId]:
        self._follow(now_s)
        mine = self._pieces[adapter]
        best = min(mine, key=lambda w: (self._workers[w].in_flight, w))
        if self._workers[best].in_flight >= self._size:
            idle = [
                w for w in self._holders.get(adapter, ()) if w in self._load and self._workers[w].in_flight < self._size
            ]
            if idle:
                best = min(idle, key=lambda w: (self._workers[w].in_flight, w))
        return [best]

    def _follow(self, now_s: float) -> None:
        """Take note of what changed since the last request."""
        crowd = self._crowd
        if crowd is not None and not self._crowd_is_here and now_s >= crowd.start_s:
            self._crowd_is_here = True
            self._worth[crowd.adapter] = crowd.workers / self._utilisation
            self._place([crowd.adapter])
        serving = {w for w, worker in self._workers.items() if worker.takes_requests}
        if serving != self._load.keys():
            self._rebalance(serving)

    def _assign(self, serving: set[WorkerId]) -> None:
        self._load = dict.fromkeys(sorted(serving), 0.0)
        self._assigned = {worker_id: set() for worker_id in serving}
        self._place(np.argsort(-self._worth).tolist())

    def _place(self, adapters: Sequence[int]) -> None:
        """Put whole adapters where the least load is, the largest first; the expected loads follow."""
        queue = [(load, w) for w, load in self._load.items()]
        heapq.heapify(queue)
        for adapter in adapters:
            worth = float(self._worth[adapter])
            pieces = min(len(queue), max(1, int(np.ceil(worth / LARGEST_PIECE))))
            taken = [heapq.heappop(queue) for _ in range(pieces)]
            self._pieces[adapter] = [w for _, w in taken]
            for load, worker_id in taken:
                self._assigned[worker_id].add(adapter)
                self._load[worker_id] = load + worth / pieces
                heapq.heappush(queue, (load + worth / pieces, worker_id))

    def _rebalance(self, serving: set[WorkerId]) -> None:
        """Only what was on workers that are gone moves, and to newcomers as few adapters as even the loads out."""
        gone = self._load.keys() - serving
        orphans = sorted((a for w in gone for a in self._assigned.pop(w)), key=lambda a: -self._worth[a])
        for worker_id in gone:
            del self._load[worker_id]
        newcomers = sorted(serving - self._load.keys())
        for worker_id in newcomers:
            self._load[worker_id] = 0.0
            self._assigned[worker_id] = set()
        queue = [(load, w) for w, load in self._load.items()]
        heapq.heapify(queue)
        for adapter in orphans:
            kept = [w for w in self._pieces[adapter] if w in serving]
            piece = float(self._worth[adapter]) / len(self._pieces[adapter])
            spare = []
            while queue and queue[0][1] in kept:
                spare.append(heapq.heappop(queue))
            if queue:
                load, worker_id = heapq.heappop(queue)
                kept.append(worker_id)
                self._assigned[worker_id].add(adapter)
                self._load[worker_id] = load + piece
                heapq.heappush(queue, (load + piece, worker_id))
            for item in spare:
                heapq.heappush(queue, item)
            self._pieces[adapter] = kept
        for worker_id in newcomers:
            self._fill(worker_id)

    def _fill(self, newcomer: WorkerId) -> None:
        """Move the largest pieces that fit from the most loaded workers until the newcomer has its share."""
        share = sum(self._load.values()) / len(self._load)
        for worker_id in sorted(self._load, key=lambda w: -self._load[w]):
            for adapter in sorted(self._assigned[worker_id], key=lambda a: -self._worth[a]):
                piece = float(self._worth[adapter]) / len(self._pieces[adapter])
                surplus = min(share - self._load[newcomer], self._load[worker_id] - share)
                if piece > surplus or newcomer in self._pieces[adapter]:
                    continue
                self._pieces[adapter][self._pieces[adapter].index(worker_id)] = newcomer
                self._assigned[worker_id].remove(adapter)
                self._assigned[newcomer].add(adapter)
                self._load[worker_id] -= piece
                self._load[newcomer] += piece
            if share - self._load[newcomer] < 1e-3 * share:
                return
