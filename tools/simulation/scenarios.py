"""Scenarios of the simulation: fleets, traffic and events."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from hotslot.ids import WorkerId
from tools.simulation.hints import HEARTBEAT_S, Hints
from tools.simulation.traffic import Demand, FlashCrowd, Trace, make_trace
from tools.simulation.worker import SimulatedWorker, WorkerSize

ADAPTERS_PER_WORKER = 100
UTILISATION = 0.65
CROWD = 0.05
"""Share of the fleet that a flash crowd keeps busy."""
RESTART_S = 20.0


class World(Protocol):
    """World of a run, as far as an event may change it."""

    workers: Mapping[WorkerId, SimulatedWorker]
    hints: Hints
    chance: np.random.Generator

    def at(self, time_s: float, call: Callable[[float], None]) -> None:
        """Schedule something."""
        ...

    def add_worker(self, now_s: float) -> None:
        """A worker starts, with nothing in memory."""
        ...

    def kill(self, worker: SimulatedWorker, now_s: float) -> None:
        """A worker is gone without a word."""
        ...

    def drain(self, worker: SimulatedWorker, now_s: float) -> None:
        """A worker says that it will leave, finishes what it has, and goes."""
        ...


class Event(Protocol):
    """Something that happens to a fleet."""

    @property
    def at_s(self) -> float:
        """After the warm-up."""
        ...

    def happen(self, world: World, now_s: float) -> None:
        """Do it."""
        ...


@dataclass(frozen=True, slots=True)
class Loss:
    """A share of the workers dies at once; as many start a while later."""

    at_s: float
    share: float
    replaced_after_s: float = 60.0

    def happen(self, world: World, now_s: float) -> None:
        alive = sorted(world.workers)
        lost = world.chance.choice(len(alive), max(1, round(self.share * len(alive))), replace=False)
        victims = [world.workers[alive[n]] for n in lost.tolist()]
        for worker in victims:
            world.kill(worker, now_s)
        for _ in victims:
            world.at(now_s + self.replaced_after_s, world.add_worker)


@dataclass(frozen=True, slots=True)
class RollingRestart:
    """Every worker drains and is replaced, a few at a time."""

    at_s: float
    at_once: float = 0.05
    start_s: float = 20.0

    def happen(self, world: World, now_s: float) -> None:
        before = sorted(world.workers)
        batch = max(1, round(self.at_once * len(before)))
        for number, worker_id in enumerate(before):
            leaves_s = now_s + number // batch * self.start_s
            world.at(leaves_s, lambda t, w=world.workers[worker_id]: world.drain(w, t))  # type: ignore[misc]
            world.at(leaves_s + self.start_s, world.add_worker)


@dataclass(frozen=True, slots=True)
class Join:
    """Workers are added."""

    at_s: float
    workers: int = 1

    def happen(self, world: World, now_s: float) -> None:
        for _ in range(self.workers):
            world.add_worker(now_s)


@dataclass(frozen=True, slots=True)
class Flush:
    """Redis loses its memory."""

    at_s: float

    def happen(self, world: World, now_s: float) -> None:
        world.hints.flush()


@dataclass(frozen=True, slots=True)
class Scenario:
    """A fleet, its traffic and what happens to it."""

    name: str
    demand: Demand
    num_workers: int
    size: WorkerSize = field(default_factory=WorkerSize)
    events: tuple[Event, ...] = ()
    warm_up_s: float = 240.0
    duration_s: float = 360.0
    refresh_s: float = 0.5
    """Between two looks of a router at the pool."""
    heartbeat_s: float = HEARTBEAT_S
    num_routers: int = 4
    """Each of them looks by itself, at the same moments: the worst case for a herd."""

    slots: tuple[int, ...] = ()
    """Slots that adapters may take, each as often as the others; one each where none are given."""

    def slots_of(self, seed: int) -> list[int]:
        """Slots of each adapter; none where all take one."""
        if not self.slots:
            return []
        chance = np.random.default_rng([seed, 4])
        return [self.slots[at] for at in chance.integers(len(self.slots), size=self.demand.num_adapters).tolist()]

    def trace(self, seed: int) -> Trace:
        """Its requests."""
        return make_trace(self.demand, self.num_workers, self.size.rows, self.warm_up_s + self.duration_s, seed)


def scenarios(num_workers: int, *, warm_up_s: float = 240.0, duration_s: float = 360.0) -> dict[str, Scenario]:
    """All scenarios for a fleet of this size, by name."""
    num_adapters = ADAPTERS_PER_WORKER * num_workers
    zipf = Demand(num_adapters, 1.0, UTILISATION)
    uniform = Demand(num_adapters, 0.0, UTILISATION)
    swinging = Demand(num_adapters, 1.0, 0.5, diurnal=0.5, period_s=duration_s)
    crowd = FlashCrowd(num_adapters - 1, warm_up_s + 60.0, warm_up_s + duration_s, CROWD * num_workers)
    crowded = Demand(num_adapters, 1.0, UTILISATION - CROWD, flash=crowd)
    roomy = WorkerSize(host_adapters=2 * ADAPTERS_PER_WORKER)
    restart = RollingRestart(10.0, RESTART_S / (duration_s - 4 * RESTART_S), RESTART_S)
    found = [
        Scenario("zipf", zipf, num_workers),
        Scenario("zipf, all fit", zipf, num_workers, roomy),
        Scenario("uniform, all fit", uniform, num_workers, roomy),
        Scenario("diurnal", swinging, num_workers),
        Scenario("flash crowd", crowded, num_workers),
        Scenario("rolling restart", zipf, num_workers, events=(restart,)),
        Scenario("10 % lost at once", zipf, num_workers, events=(Loss(60.0, 0.1),)),
        Scenario("Redis flushed", zipf, num_workers, events=(Flush(60.0),)),
        Scenario("worker joins", zipf, num_workers, events=(Join(60.0),)),
        Scenario("stale hints", zipf, num_workers, refresh_s=5.0, heartbeat_s=10.0),
    ]
    return {s.name: replace(s, warm_up_s=warm_up_s, duration_s=duration_s) for s in found}
