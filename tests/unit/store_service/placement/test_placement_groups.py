"""Workers of one pool that are not alike share it by their rows, and each gets only what it can serve."""

from collections import Counter
from dataclasses import replace

from hotslot.contract.control import WorkerState
from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.ids import Digest, WorkerId, digest_of
from shared.fleet.policy_options import DEFAULT_POLICY
from shared.fleet.records import ReportedLoad, WorkerInfo, WorkerRecord
from store_service.placement.groups import Ranks, choose, group_workers

SMALL = WorkerInfo(WorkerId("s-1"), "s", digest_of(b"base"), "org/model", "float32", 8, 0.0, 1, 1, 8, 512)
LARGE = replace(SMALL, worker_id=WorkerId("l-1"), num_slots=4, max_rank=64)


def record(info: WorkerInfo, state: WorkerState = WorkerState.READY, rows: int = 4) -> WorkerRecord:
    return WorkerRecord(info, state, ReportedLoad(max_sequences=rows), 100.0, 1)


def chosen(records: list[WorkerRecord], key: str, *ranks: int) -> set[str]:
    """Of the workers, who may serve versions of these ranks together."""
    wanted = {digest_of(str(number).encode()): Ranks(rank, rank) for number, rank in enumerate(ranks)}
    return chosen_for(records, key, wanted)


def chosen_for(records: list[WorkerRecord], key: str, wanted: dict[Digest, Ranks]) -> set[str]:
    fleet = choose(group_workers(records, 0.0, DEFAULT_POLICY, {}), key, wanted)
    return set(fleet.workers) if fleet is not None else set()


def test_adapters_go_to_workers_whose_slots_and_ranks_they_fit() -> None:
    both = [record(SMALL), record(LARGE)]
    for key in map(str, range(50)):
        assert chosen(both, key, 8, 8) == {"l-1"}, "more adapters than slots"
        assert chosen(both, key, 9) == {"l-1"}, "a larger rank"
        assert chosen(both, key, 0, 0) == {"l-1"}, "of ranks that are not known"
        assert chosen(both, key, 65) in ({"l-1"}, {"s-1"}), "who can serve it nowhere hears that from a worker"


def test_a_bias_takes_one_rank_more_of_the_slots_but_not_of_the_largest_rank() -> None:
    module = AdapterModule("q_proj", 8, 2.0, has_bias=True)
    with_bias = Manifest(digest_of(b"base"), digest_of(b"weights"), 10, "F32", (module,))
    wanted = {with_bias.digest: Ranks.of(with_bias)}
    one_slot = record(replace(SMALL, slot_rank=8))
    two_slots = record(replace(SMALL, worker_id=WorkerId("t-1"), slot_rank=8, num_slots=2))
    too_small = record(replace(SMALL, worker_id=WorkerId("r-1"), slot_rank=16, max_rank=7))
    for key in map(str, range(50)):
        assert chosen_for([one_slot, two_slots, too_small], key, wanted) == {"t-1"}


def test_a_difference_in_any_ability_keeps_workers_apart() -> None:
    others = [replace(LARGE, dtype="bfloat16"), replace(LARGE, max_rank=32), replace(LARGE, max_sequence_tokens=256)]
    records = [record(replace(info, worker_id=WorkerId(f"w-{n}"))) for n, info in enumerate([LARGE, *others])]
    assert {frozenset(chosen(records, str(key), 8)) for key in range(100)} == {frozenset({f"w-{n}"}) for n in range(4)}


def test_kinds_share_versions_by_their_rows_and_one_that_grows_takes_from_the_other_alone() -> None:
    few = [record(SMALL, rows=2), record(LARGE, rows=6)]
    more = [*few, record(replace(LARGE, worker_id=WorkerId("l-2")), rows=6)]
    keys = [str(number) for number in range(2_000)]
    counts = Counter("l-1" in chosen(few, key, 8) for key in keys)
    assert 0.71 < counts[True] / len(keys) < 0.79
    assert all("l-1" in chosen(more, key, 8) for key in keys if "l-1" in chosen(few, key, 8))


def test_who_takes_no_requests_makes_no_kind_of_its_own() -> None:
    starting = record(replace(SMALL, num_slots=0, max_rank=0), WorkerState.STARTING)
    assert chosen([record(LARGE), starting], "any", 8) == {"l-1"}
    assert chosen([starting], "any", 8) == set()


def test_orders_are_kept_while_the_workers_are_the_same() -> None:
    before = group_workers([record(LARGE)], 0.0, DEFAULT_POLICY, {})
    after = group_workers([record(LARGE), record(SMALL)], 1.0, DEFAULT_POLICY, before)
    assert after[LARGE.abilities].fleet.rendezvous is before[LARGE.abilities].fleet.rendezvous
