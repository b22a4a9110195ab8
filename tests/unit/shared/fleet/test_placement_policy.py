"""Homes follow demand and the adapter's policy; nothing moves without need; load goes where there is room."""

import json
from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Tier
from hotslot.ids import Digest, TenantId, WorkerId, digest_of
from shared.coordination.encoding import decode_resident, encode_resident
from shared.fleet.policy import Fleet
from shared.fleet.policy_options import PolicyOptions
from shared.fleet.records import PlacedVersion, ReportedLoad, Resident, WorkerInfo, WorkerRecord
from shared.fleet.replica_policy import ReplicaPolicy

NOW_S = 1_000.0
POOL = digest_of(b"base")
ROWS = 16
OPTIONS = PolicyOptions()


def record(number: int, in_flight: int = 8, usual: float | None = None, lease_s: float = 10.0) -> WorkerRecord:
    info = WorkerInfo(WorkerId(f"w-{number:04}"), f"h{number}:1", POOL, "m", "bfloat16", 16, 0.0, 1)
    load = ReportedLoad(min(in_flight, ROWS), max(0, in_flight - ROWS), ROWS, mean_in_flight=usual)
    return WorkerRecord(info, WorkerState.READY, load, NOW_S + lease_s, 1)


def fleet_of(num_workers: int, loads: dict[WorkerId, int] | None = None) -> Fleet:
    """Workers that are usually half busy; `loads` are those of the moment."""
    ids = [WorkerId(f"w-{n:04}") for n in range(num_workers)]
    return Fleet([record(n, (loads or {}).get(w, 8), usual=8.0) for n, w in enumerate(ids)], NOW_S)


def digest(number: int) -> Digest:
    return digest_of(b"adapter %d" % number)


def held(key: Digest, workers: list[WorkerId], demand: float = 0.0) -> dict[Digest, list[PlacedVersion]]:
    return {key: [PlacedVersion(worker, Resident(key, Tier.SLOT, demand=demand)) for worker in workers]}


def first(fleet: Fleet, key: Digest, placements: dict[Digest, list[PlacedVersion]], **more: object) -> WorkerId:
    return fleet.pick([key], placements, count=1, **more)[0].worker.info.worker_id  # type: ignore[arg-type]


@given(st.integers(1, 60), st.integers(0, 500), st.floats(0, 20), st.integers(1, 12), st.integers(0, 12))
def test_homes_are_the_first_in_the_order_and_as_many_as_demand_and_policy_want(
    num_workers: int, key: int, demand: float, least: int, further: int
) -> None:
    fleet = fleet_of(num_workers)
    policy = ReplicaPolicy(min_replicas=least, max_replicas=least + further)
    holder = fleet.rendezvous.top(digest(key), 1)[0]
    homes = fleet.homes(digest(key), held(digest(key), [holder], demand)[digest(key)], policy)
    assert list(homes) == list(fleet.rendezvous.top(digest(key), len(homes)))
    assert min(least, num_workers) <= len(homes) <= min(least + further, num_workers)
    unbounded = fleet.homes(digest(key), held(digest(key), [holder], demand)[digest(key)])
    wanted = min(num_workers, least + further, max(least, len(unbounded)))
    assert len(homes) == wanted


@given(st.integers(2, 30), st.integers(0, 200), st.integers(1, 5), st.lists(st.integers(0, 40), min_size=30), st.data())
def test_no_load_brings_a_version_to_more_workers_than_its_policy_allows(
    num_workers: int, key: int, most: int, loads: list[int], data: st.DataObject
) -> None:
    fleet = Fleet([record(n, loads[n]) for n in range(num_workers)], NOW_S)
    allowed = set(fleet.rendezvous.top(digest(key), most))
    holders = [WorkerId(f"w-{n:04}") for n in data.draw(st.sets(st.integers(0, num_workers - 1)))]
    picked = fleet.pick(
        [digest(key)], held(digest(key), holders, 0.5), count=10, turn=key, policy=ReplicaPolicy(max_replicas=most)
    )
    assert picked
    assert {candidate.worker.info.worker_id for candidate in picked} <= allowed


@given(st.integers(1, 30), st.integers(0, 200), st.integers(1, 5))
def test_a_pinned_adapter_is_kept_on_as_many_workers_as_its_policy_says(num_workers: int, key: int, least: int) -> None:
    fleet = fleet_of(num_workers)
    policy = ReplicaPolicy(min_replicas=least, pinned=True)
    holders = [worker_id for worker_id in fleet.workers if fleet.should_hold(worker_id, digest(key), policy)]
    assert set(holders) == set(fleet.homes(digest(key), [], policy))
    assert not any(fleet.should_hold(w, digest(key), ReplicaPolicy(min_replicas=least)) for w in fleet.workers)


@given(st.integers(1, 30), st.integers(0, 200), st.lists(st.integers(0, 40), min_size=30), st.data())
def test_a_worker_above_the_bound_is_not_chosen_while_another_is_below(
    num_workers: int, key: int, loads: list[int], data: st.DataObject
) -> None:
    fleet = Fleet([record(n, loads[n]) for n in range(num_workers)], NOW_S)
    mean = sum(loads[:num_workers]) / num_workers
    holders = [WorkerId(f"w-{n:04}") for n in data.draw(st.sets(st.integers(0, num_workers - 1)))]
    chosen = first(fleet, digest(key), held(digest(key), holders, 0.3), turn=key)
    bound = max(OPTIONS.max_load_ratio * mean, OPTIONS.full_above * ROWS) * (1 + OPTIONS.spill_range)
    assert loads[int(chosen[2:])] <= bound or min(loads[:num_workers]) > bound


@given(st.integers(2, 40), st.integers(0, 300), st.integers(0, 39))
def test_a_version_stays_where_it_is_when_others_join_or_leave(num_workers: int, key: int, other: int) -> None:
    fleet = fleet_of(num_workers)
    here = first(fleet, digest(key), {})
    joined = Fleet([*fleet.workers.values(), record(900)], NOW_S)
    assert first(joined, digest(key), held(digest(key), [here])) == here
    leaving = WorkerId(f"w-{other:04}")
    left = Fleet([r for w, r in fleet.workers.items() if w != leaving or w == here], NOW_S)
    assert first(left, digest(key), held(digest(key), [here])) == here


def test_a_join_makes_at_most_one_and_a_half_nths_of_cold_versions_go_elsewhere() -> None:
    before, after = fleet_of(50), fleet_of(51)
    moved = [n for n in range(4_000) if first(before, digest(n), {}) != first(after, digest(n), {})]
    assert len(moved) <= 1.5 / 51 * 4_000
    assert all(first(after, digest(n), {}) == "w-0050" for n in moved)


def test_what_a_lost_worker_had_spreads_over_all_others() -> None:
    before = fleet_of(20)
    lost = WorkerId("w-0003")
    after = Fleet([r for w, r in before.workers.items() if w != lost], NOW_S)
    orphans = [n for n in range(4_000) if first(before, digest(n), {}) == lost]
    heirs = Counter(first(after, digest(n), {}) for n in orphans)
    assert len(heirs) == 19
    assert max(heirs.values()) < 3 * len(orphans) / 19


def test_a_hot_version_is_shared_out_by_room_and_a_home_without_it_gets_some() -> None:
    busy, idle, cold = fleet_of(10).rendezvous.top(digest(1), 3)
    fleet = fleet_of(10, {busy: 14, idle: 4, cold: 4})
    placements = held(digest(1), [busy, idle], 0.27)
    assert len(fleet.homes(digest(1), placements[digest(1)])) == 3
    shares = Counter(first(fleet, digest(1), placements, turn=turn) for turn in range(3_000))
    assert shares.keys() == {busy, idle, cold}
    assert shares[idle] > 2 * shares[busy] > 0
    assert shares[idle] > 2 * shares[cold] > 0


def test_in_a_quiet_fleet_the_busier_of_two_homes_gets_less_as_well() -> None:
    busier, quieter = fleet_of(10).rendezvous.top(digest(1), 2)
    usual = {busier: 4.0, quieter: 2.5}
    fleet = Fleet([record(n, 3, usual.get(WorkerId(f"w-{n:04}"), 3.25)) for n in range(10)], NOW_S)
    placements = held(digest(1), [busier, quieter], 0.15)
    assert set(fleet.homes(digest(1), placements[digest(1)])) == {busier, quieter}
    shares = Counter(first(fleet, digest(1), placements, turn=turn) for turn in range(3_000))
    assert shares[quieter] > 3 * shares[busier] > 0


def test_what_nobody_has_goes_past_a_worker_that_is_near_its_bound() -> None:
    usual = 0.6 * ROWS
    fleet = Fleet([record(n, 8, usual * (1.25 if n == 0 else 1.0)) for n in range(20)], NOW_S)
    near = WorkerId("w-0000")
    keys = [digest(n) for n in range(2_000) if fleet.rendezvous.top(digest(n), 1)[0] == near]
    assert not any(fleet.spills(near, key) for key in keys)
    assert all(first(fleet, key, {}) == fleet.rendezvous.top(key, 2)[1] for key in keys)
    assert all(first(fleet, key, held(key, [near])) == near for key in keys)


def test_every_home_of_a_very_hot_version_gets_its_part() -> None:
    fleet = fleet_of(100)
    homes = list(fleet.rendezvous.top(digest(1), 40))
    placements = held(digest(1), homes, 0.175)
    shares = Counter(first(fleet, digest(1), placements, turn=turn) for turn in range(8_000))
    assert shares.keys() == set(fleet.homes(digest(1), placements[digest(1)]))
    assert max(shares.values()) < 1.5 * 8_000 / len(shares)


def test_an_overloaded_worker_spills_by_degrees_and_the_same_versions_whoever_decides() -> None:
    usual = [0.65 * ROWS] * 20
    spilled: list[set[int]] = []
    for above in (1.0, 1.3, 1.37, 2.0):
        usual[0] = 0.65 * ROWS * above
        fleet = Fleet([record(n, 8, usual[n]) for n in range(20)], NOW_S)
        spilled.append({n for n in range(1_000) if fleet.spills(WorkerId("w-0000"), digest(n))})
    none, few, many, all_of_them = spilled
    assert not none
    assert few < many < all_of_them
    assert len(all_of_them) == 1_000


def test_a_burst_of_a_moment_does_not_send_anything_to_a_worker_without_it() -> None:
    home = fleet_of(10).rendezvous.top(digest(1), 1)[0]
    assert first(fleet_of(10, {home: ROWS + 2}), digest(1), held(digest(1), [home])) == home


def test_demand_travels_with_the_placement_and_may_be_missing() -> None:
    resident = Resident(digest(1), Tier.HOST, True, "pirate", TenantId("acme"), 0.375)
    assert decode_resident(digest(1), encode_resident(resident)) == resident
    assert decode_resident(digest(1), '["slot",0,"acme","pirate"]').demand == 0.0


def test_a_version_that_takes_more_slots_has_fewer_homes_and_is_spilled_later() -> None:
    light, heavy = 1, 4
    workers = [
        replace(each, load=replace(each.load, slots_each=2.0)) for each in (record(n, usual=8.0) for n in range(20))
    ]
    fleet = Fleet(workers, NOW_S)

    def homes(num_slots: int) -> int:
        holder = Resident(digest(1), Tier.SLOT, demand=1.2, num_slots=num_slots)
        return len(fleet.homes(digest(1), [PlacedVersion(WorkerId("w-0000"), holder)]))

    assert homes(heavy) < homes(2) < homes(light)
    assert homes(2) == homes(0), "a version of the mean size, or of an unknown one, weighs 1"
    overloaded = [replace(w, load=replace(w.load, mean_in_flight=12.0)) for w in workers[:1]]
    busy, keys = Fleet([*overloaded, *workers[1:]], NOW_S), [digest(number) for number in range(200)]
    spilled = {n: {k for k in keys if busy.spills(WorkerId("w-0000"), k, n)} for n in (light, 0, heavy)}
    assert spilled[heavy] < spilled[0] < spilled[light]


@given(st.integers(0, 2**20), st.integers(0, 64), st.floats(0, 64))
def test_no_size_makes_a_version_weigh_more_than_the_bound(key: int, num_slots: int, slots_each: float) -> None:
    load = replace(record(0).load, slots_each=slots_each)
    fleet = Fleet([replace(record(n), load=load) for n in range(12)], NOW_S)
    holder = Resident(digest(key), Tier.HOST, demand=1.0, num_slots=num_slots)
    num_homes = len(fleet.homes(digest(key), [PlacedVersion(WorkerId("w-0000"), holder)]))
    assert 2 <= num_homes <= 12


def test_the_slots_of_a_version_travel_with_it_and_may_be_missing() -> None:
    known = Resident(digest(1), Tier.HOST, num_slots=4)
    assert decode_resident(digest(1), encode_resident(known)) == known
    earlier = json.dumps(json.loads(encode_resident(known))[:6])
    assert decode_resident(digest(1), earlier).num_slots == 0


def test_every_tenant_of_a_version_travels_with_it_and_is_shown_its_own_name_alone() -> None:
    acme, other = TenantId("acme"), TenantId("other")
    resident = Resident(digest(1), Tier.HOST, True, "pirate", acme, 0.375, ((other, "buccaneer"),))
    assert decode_resident(digest(1), encode_resident(resident)) == resident
    assert decode_resident(digest(1), '["host",1,"acme","pirate",0.375]').others == ()
    tier, pinned, tenant, name, demand, *_ = json.loads(encode_resident(resident))
    assert (tier, pinned, tenant, name, demand) == ("host", 1, "acme", "pirate", 0.375), "older readers know these"
    assert resident.seen_by(other) == Resident(digest(1), Tier.HOST, True, "buccaneer", other, 0.375)
    assert resident.seen_by(acme) == Resident(digest(1), Tier.HOST, True, "pirate", acme, 0.375)
    assert resident.seen_by(TenantId("stranger")) is None
