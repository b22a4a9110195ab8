"""The placement policy: deterministic, spread, stable under joins, bounded in load."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Tier
from hotslot.ids import Digest, WorkerId, digest_of
from shared.fleet.policy import Fleet, RankedWorker
from shared.fleet.policy_options import PolicyOptions
from shared.fleet.records import PlacedVersion, ReportedLoad, Resident, WorkerInfo, WorkerRecord
from shared.fleet.rendezvous import Rendezvous

NOW_S = 1_000.0
POOL = digest_of(b"base")


def record(
    number: int, in_flight: int = 0, *, state: WorkerState = WorkerState.READY, lease_s: float = 10.0, rows: int = 8
) -> WorkerRecord:
    info = WorkerInfo(WorkerId(f"w-{number:04}"), f"h{number}:1", POOL, "m", "bfloat16", 16, 0.0, 1)
    running = min(in_flight, rows)
    return WorkerRecord(info, state, ReportedLoad(running, in_flight - running, rows), NOW_S + lease_s, 1)


def digest(number: int) -> Digest:
    return digest_of(b"adapter %d" % number)


def held(number: int, tiers: dict[int, Tier]) -> dict[Digest, list[PlacedVersion]]:
    return {
        digest(number): [
            PlacedVersion(WorkerId(f"w-{w:04}"), Resident(digest(number), tier)) for w, tier in tiers.items()
        ]
    }


def names(candidates: list[RankedWorker]) -> list[str]:
    return [candidate.worker.info.worker_id for candidate in candidates]


worker_sets = st.sets(st.integers(0, 500), min_size=1, max_size=40).map(
    lambda numbers: [WorkerId(f"w-{n:04}") for n in numbers]
)


@given(worker_sets, st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_order_depends_on_the_set_alone(workers: list[WorkerId], key: int, chance: object) -> None:
    shuffled = list(workers)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    order = Rendezvous(workers).top(digest(key), len(workers))
    assert order == Rendezvous(shuffled).top(digest(key), len(workers))
    assert sorted(order) == sorted(workers)


@given(worker_sets, st.integers(0, 1000), st.integers(1, 10))
def test_a_shorter_answer_is_the_beginning_of_a_longer_one(workers: list[WorkerId], key: int, count: int) -> None:
    rendezvous = Rendezvous(workers)
    assert rendezvous.top(digest(key), count) == rendezvous.top(digest(key), len(workers))[:count]


@given(worker_sets, st.integers(501, 600), st.integers(0, 1000))
def test_a_join_moves_a_version_only_to_the_newcomer(workers: list[WorkerId], newcomer: int, key: int) -> None:
    joined = WorkerId(f"w-{newcomer:04}")
    before = Rendezvous(workers).top(digest(key), len(workers))
    after = Rendezvous([*workers, joined]).top(digest(key), len(workers) + 1)
    assert tuple(w for w in after if w != joined) == before


def test_a_join_moves_about_one_nth_of_all_versions_and_spread_is_even() -> None:
    workers = [WorkerId(f"w-{n:04}") for n in range(20)]
    before, after = Rendezvous(workers[:-1]), Rendezvous(workers)
    keys = [digest(n) for n in range(4000)]
    moved = sum(before.top(key, 1) != after.top(key, 1) for key in keys)
    assert 0.7 / 20 < moved / len(keys) < 1.5 / 20
    counts = Counter(after.top(key, 1)[0] for key in keys)
    assert max(counts.values()) < 1.4 * len(keys) / 20
    assert min(counts.values()) > 0.6 * len(keys) / 20


@given(st.lists(st.integers(0, 16), min_size=1, max_size=12), st.integers(0, 50), st.integers(1, 5), st.data())
def test_a_pick_is_eligible_distinct_and_as_many_as_there_are(
    loads: list[int], key: int, count: int, data: st.DataObject
) -> None:
    fleet = Fleet([record(n, load) for n, load in enumerate(loads)], NOW_S)
    tiers = data.draw(st.dictionaries(st.integers(0, 15), st.sampled_from(Tier), max_size=6))
    picked = names(fleet.pick([digest(key)], held(key, tiers), count=count))
    assert len(picked) == len(set(picked)) == min(count, len(loads))
    assert set(picked) <= set(fleet.workers)
    assert picked == names(fleet.pick([digest(key)], held(key, tiers), count=count))


@given(st.lists(st.integers(0, 16), min_size=1, max_size=12), st.integers(0, 50), st.data())
def test_an_overloaded_worker_is_first_only_if_all_are(loads: list[int], key: int, data: st.DataObject) -> None:
    fleet = Fleet([record(n, load) for n, load in enumerate(loads)], NOW_S)
    tiers = data.draw(st.dictionaries(st.integers(0, 15), st.sampled_from(Tier), max_size=6))
    (first, *_) = fleet.pick([digest(key)], held(key, tiers), count=1)
    spilling = [worker_id for worker_id in fleet.workers if fleet.spills(worker_id, digest(key))]
    assert first.worker.info.worker_id not in spilling
    assert len(spilling) < len(loads)


@pytest.mark.parametrize(
    "unfit", [{"state": WorkerState.STARTING}, {"state": WorkerState.DRAINING}, {"lease_s": 0.0}, {"lease_s": -1.0}]
)
def test_workers_that_do_not_take_requests_are_never_picked(unfit: dict[str, object]) -> None:
    fleet = Fleet([record(0), record(1, **unfit)], NOW_S)  # type: ignore[arg-type]
    assert names(fleet.pick([digest(1)], held(1, {1: Tier.SLOT}), count=5)) == ["w-0000"]


def test_an_empty_fleet_has_no_candidates() -> None:
    assert Fleet([], NOW_S).pick([digest(1)], {}, count=3) == []
    assert Fleet([], NOW_S).pick([], {}, count=3) == []


def test_a_cold_version_starts_at_the_first_in_its_order() -> None:
    fleet = Fleet([record(n) for n in range(10)], NOW_S)
    homes = fleet.rendezvous.top(digest(1), 2)
    picked = fleet.pick([digest(1)], {}, count=2)
    assert tuple(names(picked)) == homes
    assert [c.tier for c in picked] == [Tier.NONE, Tier.NONE]


def test_the_fastest_tier_wins_wherever_it_is() -> None:
    fleet = Fleet([record(n) for n in range(10)], NOW_S)
    homes = [int(w[2:]) for w in fleet.rendezvous.top(digest(1), 2)]
    far = next(n for n in range(10) if n not in homes)
    tiers = {homes[0]: Tier.DISK, homes[1]: Tier.HOST, far: Tier.SLOT}
    picked = fleet.pick([digest(1)], held(1, tiers), count=3)
    assert [c.tier for c in picked] == [Tier.SLOT, Tier.HOST, Tier.DISK]


def test_a_home_wins_over_an_equal_holder_elsewhere() -> None:
    fleet = Fleet([record(n) for n in range(10)], NOW_S)
    homes = [int(w[2:]) for w in fleet.rendezvous.top(digest(1), 2)]
    far = next(n for n in range(10) if n not in homes)
    picked = fleet.pick([digest(1)], held(1, {far: Tier.SLOT, homes[1]: Tier.SLOT}), count=2)
    assert names(picked) == [f"w-{homes[1]:04}", f"w-{far:04}"]


def test_a_hot_version_spills_to_the_next_home_past_the_bound() -> None:
    first = int(Fleet([record(n) for n in range(4)], NOW_S).rendezvous.top(digest(1), 1)[0][2:])
    for in_flight, stays in ((4, True), (12, False)):
        fleet = Fleet([record(n, in_flight if n == first else 2) for n in range(4)], NOW_S)
        picked = names(fleet.pick([digest(1)], held(1, {first: Tier.SLOT}), count=1))
        assert (picked == [f"w-{first:04}"]) is stays


def test_a_mix_goes_by_its_slowest_adapter() -> None:
    fleet = Fleet([record(n) for n in range(4)], NOW_S)
    placements = {**held(1, {0: Tier.SLOT, 1: Tier.HOST}), **held(2, {1: Tier.HOST, 2: Tier.SLOT})}
    first, *_ = fleet.pick([digest(1), digest(2)], placements, count=4)
    assert (first.worker.info.worker_id, first.tier) == ("w-0001", Tier.HOST)


def test_base_only_requests_go_to_the_least_loaded_in_turn() -> None:
    fleet = Fleet([record(0, 5), record(1, 1), record(2, 1), record(3, 7)], NOW_S)
    assert names(fleet.pick([], {}, count=4, turn=0)) == ["w-0001", "w-0002", "w-0000", "w-0003"]
    assert names(fleet.pick([], {}, count=4, turn=1)) == ["w-0002", "w-0001", "w-0000", "w-0003"]


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 12), st.integers(1, 40))
def test_one_very_hot_version_never_overloads_one_worker(num_workers: int, num_requests: int) -> None:
    loads = [0] * num_workers
    holders: dict[int, Tier] = {}
    options = PolicyOptions()
    for _ in range(num_requests):
        fleet = Fleet([record(n, load, rows=4) for n, load in enumerate(loads)], NOW_S, options=options)
        chosen = int(names(fleet.pick([digest(1)], held(1, holders), count=1))[0][2:])
        loads[chosen] += 1
        holders[chosen] = Tier.SLOT
    mean = num_requests / num_workers
    bound = max(mean * options.max_load_ratio, options.spill_above * 4) * (1 + options.spill_range)
    assert max(loads) <= bound + 1


def test_a_decision_looks_no_further_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet([record(n, n % 4) for n in range(1000)], NOW_S)
    asked: list[int] = []
    top = Rendezvous.top

    def counted(self: Rendezvous, key: Digest, count: int) -> Sequence[WorkerId]:
        asked.append(count)
        return top(self, key, count)

    monkeypatch.setattr(Rendezvous, "top", counted)
    assert len(fleet.pick([digest(1)], held(1, {3: Tier.SLOT, 5: Tier.HOST}), count=3)) == 3
    assert max(asked) <= 16, "a thousand workers are not put in order for one request"
