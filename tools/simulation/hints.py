"""Simulated Redis: what workers said of themselves, as old as routers see it, and how often it was talked to."""

from collections.abc import Sequence

from hotslot.ids import Digest, WorkerId
from shared.fleet.memory import PoolMemory
from shared.fleet.policy import Fleet
from shared.fleet.policy_options import DEFAULT_POLICY, PolicyOptions
from shared.fleet.records import PlacedVersion, PlacementsView, PoolView, WorkerRecord
from tools.simulation.worker import SimulatedWorker

HEARTBEAT_S = 10 / 3
LEASE_HEARTBEATS = 3
"""Length of a lease."""
PULSE_S = 1.0
"""Time between two looks of a worker for something new to tell; the real one looks every half second."""
NUDGE_SHARE = 0.5
"""Change of the load, by rows, that is told at once."""
_OPS_PER_REPORT = 2
"""The residency, and the pool's entry in the list of pools."""


class Hints:
    """The records and placements that routers see."""

    def __init__(
        self, *, refresh_s: float, heartbeat_s: float, num_routers: int, options: PolicyOptions = DEFAULT_POLICY
    ) -> None:
        self._options = options
        self._refresh_s = refresh_s
        self._heartbeat_s = heartbeat_s
        self._num_routers = num_routers
        self._records: dict[WorkerId, WorkerRecord] = {}
        self._held: dict[Digest, dict[WorkerId, PlacedVersion]] = {}
        self._reported: dict[WorkerId, set[int]] = {}
        self._heartbeat_at_s: dict[WorkerId, float] = {}
        self._since = ""
        self._memory = PoolMemory()
        """Memory of routers; all of them see the same."""
        self._fleet: Fleet | None = None
        self._fleet_at_s = 0.0
        self.num_ops = 0

    def pulse(self, worker: SimulatedWorker, now_s: float) -> None:
        """The worker's turn: it renews its lease when that is due, and reports what changed."""
        worker.observe(now_s)
        worker_id = worker.worker_id
        told = self._records.get(worker_id)
        jumped = told is not None and abs(told.load.in_flight - worker.in_flight) >= NUDGE_SHARE * worker.size.rows
        due = now_s - self._heartbeat_at_s.get(worker_id, -1e9) >= self._heartbeat_s
        if not (due or jumped or worker.changed or (told is not None and told.state is not worker.state)):
            return
        self._heartbeat_at_s[worker_id] = now_s
        self.num_ops += 1
        self._since = self._since or str(now_s)
        self._records[worker_id] = worker.record(now_s + LEASE_HEARTBEATS * self._heartbeat_s)
        if worker_id not in self._reported:
            self._reported[worker_id] = set()
            worker.changed.update(worker.host)
        if worker.changed:
            self.num_ops += _OPS_PER_REPORT
            self._report(worker)

    def _report(self, worker: SimulatedWorker) -> None:
        worker_id, reported = worker.worker_id, self._reported[worker.worker_id]
        for adapter in worker.changed:
            digest = worker.digests[adapter]
            if adapter in worker.host:
                self._held.setdefault(digest, {})[worker_id] = PlacedVersion(worker_id, worker.resident(adapter))
                reported.add(adapter)
            elif adapter in reported:
                reported.discard(adapter)
                self._held[digest].pop(worker_id, None)
        worker.changed.clear()

    def release(self, worker: SimulatedWorker) -> None:
        """The worker leaves in good order."""
        self.num_ops += 1
        self._records.pop(worker.worker_id, None)
        for adapter in self._reported.pop(worker.worker_id, ()):
            self._held[worker.digests[adapter]].pop(worker.worker_id, None)

    def flush(self) -> None:
        """Redis loses its memory."""
        self._since = ""
        self._records.clear()
        self._held.clear()
        self._reported.clear()

    def fleet(self, now_s: float) -> Fleet:
        """Fleet that every router prepared from its last look at the pool."""
        if self._fleet is None or now_s - self._fleet_at_s >= self._refresh_s:
            self.num_ops += self._num_routers
            listed = tuple(r for r in self._records.values() if r.lease_expire_time_s > now_s)
            before = self._fleet.rendezvous if self._fleet is not None else None
            known = self._memory.workers(PoolView(listed, now_s, self._since))
            self._fleet = Fleet(known.workers, now_s, options=self._options, rendezvous=before)
            self._fleet_at_s = now_s
        return self._fleet

    def placements(self, digest: Digest, now_s: float) -> Sequence[PlacedVersion]:
        """Placements of a version, by the workers that said so."""
        self.num_ops += 1
        said = tuple(self._held.get(digest, {}).values())
        return self._memory.placements(PlacementsView({digest: said}, now_s, self._since))[digest]
