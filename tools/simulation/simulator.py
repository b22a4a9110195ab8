"""One run: a scenario's requests and events through one policy, on a simulated clock."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from hotslot.contract.control import WorkerState
from hotslot.ids import WorkerId, digest_of
from shared.fleet.policy_options import DEFAULT_POLICY, PolicyOptions
from shared.fleet.records import WorkerInfo
from tools.simulation.hints import PULSE_S, Hints
from tools.simulation.oracle import Oracle
from tools.simulation.routers import BoundedLoads, Hotslot, LeastLoaded, PlainRendezvous, RoundRobin, SimulatedRouter
from tools.simulation.scenarios import Scenario
from tools.simulation.worker import Request, SimulatedWorker

POLICIES = ("hotslot", "oracle", "bounded loads", "rendezvous", "least loaded", "round robin")
WINDOW_S = 60.0
BASE = digest_of(b"base model")
DRAIN_DELAY_S = 5.0
"""In which routers notice that a worker drains."""
FAILOVER_S = 0.01
"""Until a client has noticed that a worker is not there."""


@dataclass(slots=True)
class SimulatedOutcome:
    """Counts from the end of the warm-up on."""

    requests: int = 0
    cold_loads: int = 0
    loaded_slots: int = 0
    """Slots that the adapters of these loads take."""
    avoidable_by_minute: list[int] = field(default_factory=list)
    """Cold loads of an adapter that another worker, which took requests, had in memory."""
    failovers: int = 0
    delays_s: list[float] = field(default_factory=list)
    imbalances: list[float] = field(default_factory=list)
    """Largest by mean load of each window."""
    mean_loads: list[float] = field(default_factory=list)
    replicas: list[int] = field(default_factory=list)
    """Workers that have each adapter at the end, the most wanted adapter first."""
    num_ops: int = 0


class Simulation:
    """The world of one run."""

    def __init__(self, scenario: Scenario, policy: str, seed: int, options: PolicyOptions = DEFAULT_POLICY) -> None:
        self._scenario = scenario
        self._end_s = scenario.warm_up_s + scenario.duration_s
        self._trace = scenario.trace(seed)
        self._seed = seed
        self.chance = np.random.default_rng([seed, 3])
        self.digests = [digest_of(b"adapter %d" % n) for n in range(scenario.demand.num_adapters)]
        self.workers: dict[WorkerId, SimulatedWorker] = {}
        self.holders: dict[int, set[WorkerId]] = {}
        self._numbers = count()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = count()
        self._turns = count()
        self.outcome = SimulatedOutcome()
        self.outcome.avoidable_by_minute = [0] * (int(scenario.duration_s // 60) + 1)
        self.hints = Hints(
            refresh_s=scenario.refresh_s,
            heartbeat_s=scenario.heartbeat_s,
            num_routers=scenario.num_routers,
            options=options,
        )
        self._slots_of = scenario.slots_of(seed)
        for _ in range(scenario.num_workers):
            self.add_worker(0.0)
        for worker in self.workers.values():
            self.hints.pulse(worker, 0.0)
        self._router = self._make_router(policy)

    def run(self) -> SimulatedOutcome:
        """To the end."""
        scenario, trace = self._scenario, self._trace
        for event in scenario.events:
            self.at(scenario.warm_up_s + event.at_s, lambda t, event=event: event.happen(self, t))  # type: ignore[misc]
        for number in range(int(scenario.duration_s / WINDOW_S) + 1):
            self.at(scenario.warm_up_s + number * WINDOW_S, self._window)
        self.at(scenario.warm_up_s, self._begin)
        events = self._events
        for arrival, adapter, service in zip(
            trace.arrival_s.tolist(), trace.adapter.tolist(), trace.service_s.tolist(), strict=True
        ):
            while events and events[0][0] <= arrival:
                time_s, _, call = heapq.heappop(events)
                call(time_s)
            self.submit(Request(arrival, adapter, service), arrival)
        while events and events[0][0] <= self._end_s:
            time_s, _, call = heapq.heappop(events)
            call(time_s)
        self.outcome.num_ops = self.hints.num_ops - self._ops_before
        popularity = scenario.demand.popularity(self._seed)
        self.outcome.replicas = [len(self.holders.get(a, ())) for a in np.argsort(-popularity).tolist()]
        return self.outcome

    def at(self, time_s: float, call: Callable[[float], None]) -> None:
        """Schedule something."""
        heapq.heappush(self._events, (time_s, next(self._order), call))

    def submit(self, request: Request, now_s: float) -> None:
        """A client sends a request to where the policy says, and on to the next when nobody is there."""
        turn = next(self._turns)
        chosen = self._router.choose(request.adapter, 1, now_s, turn)
        worker = self.workers.get(chosen[0]) if chosen else None
        if worker is None or not worker.is_alive:
            worker = self._fail_over(request.adapter, now_s, turn)
        worker.accept(request, now_s)

    def add_worker(self, now_s: float) -> None:
        """A worker starts, with nothing in memory."""
        number = next(self._numbers)
        info = WorkerInfo(WorkerId(f"w-{self._seed}-{number:05}"), f"h{number}:1", BASE, "m", "bfloat16", 16, now_s, 1)
        worker = SimulatedWorker(
            info,
            self._scenario.size,
            self.digests,
            self.at,
            self._started,
            self._cold,
            self._resident,
            self._slots_of,
        )
        worker.counted_until_s = now_s
        self.workers[info.worker_id] = worker
        self.at(now_s + float(self.chance.uniform(0, PULSE_S)), lambda t: self._pulse(worker, t))

    def kill(self, worker: SimulatedWorker, now_s: float) -> None:
        """A worker is gone without a word; clients retry what it was doing."""
        lost = worker.lose()
        self._forget(worker)
        for request in lost:
            self.submit(request, now_s + FAILOVER_S)

    def retire(self, worker: SimulatedWorker, now_s: float) -> None:
        """A worker that drained is gone."""
        if worker.in_flight:
            self.at(now_s + 1.0, lambda t: self.retire(worker, t))
            return
        worker.is_alive = False
        self.hints.release(worker)
        self._forget(worker)

    def drain(self, worker: SimulatedWorker, now_s: float) -> None:
        """A worker says that it will leave, finishes what it has, and goes."""
        worker.state = WorkerState.DRAINING
        self.at(now_s + DRAIN_DELAY_S, lambda t: self.retire(worker, t))

    def _make_router(self, policy: str) -> SimulatedRouter:
        hints, digests = self.hints, self.digests
        match policy:
            case "hotslot":
                return Hotslot(hints, digests, self.workers, self._scenario.num_routers)
            case "oracle":
                return Oracle(self._scenario.demand, self._seed, self.workers, self.holders)
            case "bounded loads":
                return BoundedLoads(hints, digests)
            case "rendezvous":
                return PlainRendezvous(hints, digests)
            case "least loaded":
                return LeastLoaded(hints)
            case "round robin":
                return RoundRobin(hints)
        raise ValueError(policy)

    def _fail_over(self, adapter: int, now_s: float, turn: int) -> SimulatedWorker:
        self.outcome.failovers += 1
        for worker_id in self._router.choose(adapter, 16, now_s, turn):
            worker = self.workers.get(worker_id)
            if worker is not None and worker.is_alive:
                return worker
        # Nobody knows anybody: the client calls any worker.
        serving = [w for w in self.workers.values() if w.takes_requests]
        return serving[int(self.chance.integers(len(serving)))]

    def _pulse(self, worker: SimulatedWorker, now_s: float) -> None:
        if worker.is_alive:
            self.hints.pulse(worker, now_s)
            self.at(now_s + PULSE_S, lambda t: self._pulse(worker, t))

    def _begin(self, now_s: float) -> None:
        """The warm-up is over: count from here."""
        self._ops_before = self.hints.num_ops
        self.outcome.failovers = 0

    def _window(self, now_s: float) -> None:
        """Compare what the workers that were there for the whole window did in it."""
        loads = []
        for worker in self.workers.values():
            worker.count(now_s)
            if worker.window_from_s is not None and worker.takes_requests:
                loads.append((worker.busy_s - worker.window_busy_s) / (now_s - worker.window_from_s) / worker.size.rows)
            worker.window_from_s = now_s if worker.takes_requests else None
            worker.window_busy_s = worker.busy_s
        if loads:
            mean = sum(loads) / len(loads)
            self.outcome.mean_loads.append(mean)
            self.outcome.imbalances.append(max(loads) / mean)

    def _started(self, request: Request, now_s: float) -> None:
        if request.arrival_s >= self._scenario.warm_up_s:
            self.outcome.requests += 1
            self.outcome.delays_s.append(now_s - request.arrival_s)

    def _cold(self, worker: SimulatedWorker, adapter: int, now_s: float) -> None:
        since_s = now_s - self._scenario.warm_up_s
        if since_s < 0:
            return
        self.outcome.cold_loads += 1
        self.outcome.loaded_slots += self._slots_of[adapter] if self._slots_of else 1
        if any(self.workers[w].takes_requests for w in self.holders.get(adapter, ())):
            self.outcome.avoidable_by_minute[int(since_s // 60)] += 1

    def _resident(self, worker: SimulatedWorker, adapter: int, is_here: bool) -> None:
        if is_here:
            self.holders.setdefault(adapter, set()).add(worker.worker_id)
        else:
            self.holders[adapter].discard(worker.worker_id)

    def _forget(self, worker: SimulatedWorker) -> None:
        for adapter in worker.host:
            self.holders[adapter].discard(worker.worker_id)
        del self.workers[worker.worker_id]
