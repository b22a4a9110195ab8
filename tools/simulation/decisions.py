"""Costs of the policy by itself: the time of a decision, and the versions that a join moves."""

import time
from collections.abc import Callable, Sequence

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Tier
from hotslot.ids import Digest, WorkerId, digest_of
from shared.fleet.policy import Fleet
from shared.fleet.records import PlacedVersion, ReportedLoad, Resident, WorkerInfo, WorkerRecord

BASE = digest_of(b"base model")
NUM_DECISIONS = 3_000


def fleet_of(num_workers: int) -> Fleet:
    """Workers at all loads up to their number of rows."""
    return Fleet(
        (
            WorkerRecord(
                WorkerInfo(WorkerId(f"w-{n:04}"), f"h{n}:1", BASE, "m", "bfloat16", 16, 0.0, 1),
                WorkerState.READY,
                ReportedLoad(n % 16, 0, 16, mean_in_flight=8.0),
                1e9,
                1,
            )
            for n in range(num_workers)
        ),
        0.0,
    )


def versions(count: int) -> list[Digest]:
    """Distinct ones."""
    return [digest_of(b"version %d" % n) for n in range(count)]


def decision_us(num_workers: int) -> dict[str, float]:
    """Median time of a decision, by what is known of the version; each version is asked for once."""
    fleet, keys = fleet_of(num_workers), versions(5 * NUM_DECISIONS)
    cases: dict[str, Callable[[Digest], Sequence[PlacedVersion]]] = {
        "on no worker": lambda key: (),
        "on a worker that is not its home": lambda key: (_placement(WorkerId("w-0003"), key),),
        "on its home": lambda key: tuple(_placement(w, key) for w in fleet.rendezvous.top(key, 1)),
        "on 4 homes": lambda key: tuple(_placement(w, key, 0.15) for w in fleet.rendezvous.top(key, 4)),
        "on 100 homes": lambda key: tuple(_placement(w, key, 0.15) for w in fleet.rendezvous.top(key, 100)),
    }
    medians = {}
    for number, (name, holders_of) in enumerate(cases.items()):
        took = []
        for turn, key in enumerate(keys[number * NUM_DECISIONS : (number + 1) * NUM_DECISIONS]):
            placements = {key: holders_of(key)}
            started = time.perf_counter()
            fleet.pick([key], placements, count=1, turn=turn)
            took.append(time.perf_counter() - started)
        medians[name] = sorted(took)[NUM_DECISIONS // 2] * 1e6
    return medians


def moved_by_a_join(num_workers: int, num_versions: int = 20_000) -> float:
    """Versions whose first home is another one with one worker more, by the even share of that worker."""
    before, after = fleet_of(num_workers - 1).rendezvous, fleet_of(num_workers).rendezvous
    moved = sum(before.top(key, 1) != after.top(key, 1) for key in versions(num_versions))
    return moved / num_versions * num_workers


def _placement(worker_id: WorkerId, key: Digest, demand: float = 0.0) -> PlacedVersion:
    return PlacedVersion(worker_id, Resident(key, Tier.SLOT, demand=demand))
