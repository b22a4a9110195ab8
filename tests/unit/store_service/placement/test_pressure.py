"""Pressure is in workers' worth: it adds up over workers, and asks for as many as keep each below its target."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Tier
from hotslot.errors import InvalidRequestError
from hotslot.ids import WorkerId, digest_of
from shared.fleet.records import PlacedVersion, ReportedLoad, Resident, WorkerInfo, WorkerRecord
from store_service.placement.pressure import DEFAULT_TARGETS, Measure, is_busy, num_busy_versions, pressure_of
from store_service.placement.scaling import DEFAULT_ACTIVE_S, scaled_pool_of
from store_service.placement.unserved import MAX_NAMES, UnservedPicks

ROWS = 8


def record(name: str, running: int = 0, waiting: int = 0, mean: float | None = None, **kwargs: object) -> WorkerRecord:
    info = WorkerInfo(WorkerId(name), f"{name}:1", digest_of(b"base"), "org/model", "bfloat16", 16, 0.0, 1)
    load = ReportedLoad(running, waiting, ROWS, num_slots=4, mean_in_flight=mean)
    return replace(WorkerRecord(info, WorkerState.READY, load, 0.0, 1), **kwargs)  # type: ignore[arg-type]


LOADS = st.lists(st.tuples(st.integers(0, ROWS), st.integers(0, 50)), max_size=8)


@given(LOADS)
def test_workers_that_divide_the_work_evenly_are_as_many_as_the_measure_asks_for(loads: list[tuple[int, int]]) -> None:
    workers = [record(f"w-{n}", *load) for n, load in enumerate(loads)]
    for measure in (Measure.ROWS, Measure.WAITING):
        target = DEFAULT_TARGETS[measure]
        total = pressure_of(measure, workers, {})
        needed = math.ceil(total / target - 1e-9)
        assert total == pytest.approx(sum(pressure_of(measure, [worker], {}) for worker in workers))
        if needed:
            assert total / needed <= target + 1e-9
            assert needed == 1 or total / (needed - 1) > target - 1e-9


def test_a_measure_counts_what_it_is_about() -> None:
    workers = [record("a", running=6, waiting=4), record("b", running=2)]
    assert pressure_of(Measure.ROWS, workers, {}) == (10 + 2) / ROWS
    assert pressure_of(Measure.WAITING, workers, {}) == 4 / ROWS
    assert pressure_of(Measure.SLOTS, workers, {WorkerId("a"): 6}) == 6 / 4


def test_rows_go_by_the_smoothed_load_but_a_sudden_queue_counts_at_once() -> None:
    assert pressure_of(Measure.ROWS, [record("a", running=8, mean=2.0)], {}) == 2 / ROWS
    assert pressure_of(Measure.ROWS, [record("a", running=8, waiting=16, mean=2.0)], {}) == 16 / ROWS


def test_a_worker_that_drains_asks_for_no_other_and_is_busy_still() -> None:
    leaving = record("a", running=8, waiting=8, state=WorkerState.DRAINING)
    assert [pressure_of(measure, [leaving], {WorkerId("a"): 4}) for measure in Measure] == [0, 0, 0]
    assert is_busy([leaving])
    assert not is_busy([record("b")])


def test_only_versions_with_sequences_in_flight_take_slots_from_others() -> None:
    residents = [Resident(digest_of(b"%d" % n), Tier.SLOT, demand=n / 8) for n in range(3)]
    assert num_busy_versions(PlacedVersion(WorkerId("a"), each) for each in residents) == 2


def test_metadata_has_defaults_and_passes_over_what_is_of_the_autoscaler() -> None:
    scaled = scaled_pool_of({"baseModel": "org/model", "scalerAddress": "store:7400", "waiting": "0", "rows": "0.5"})
    assert scaled.targets == {Measure.ROWS: 0.5, Measure.SLOTS: 1.0}
    assert (scaled.base_model, scaled.active_s) == ("org/model", DEFAULT_ACTIVE_S)


@pytest.mark.parametrize(
    ("metadata", "fields"),
    [
        ({}, ["baseModel"]),
        ({"baseModel": " "}, ["baseModel"]),
        ({"baseModel": "m", "rows": "many", "slots": "-1"}, ["rows", "slots"]),
        ({"baseModel": "m", "waiting": "nan", "activeS": "inf"}, ["waiting", "activeS"]),
        ({"baseModel": "m", "rows": "0", "waiting": "0", "slots": "0"}, ["rows, waiting, slots"]),
    ],
)
def test_wrong_metadata_is_refused_with_every_problem(metadata: dict[str, str], fields: list[str]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        scaled_pool_of(metadata)
    assert [problem.field for problem in caught.value.fields] == fields


def test_a_pick_without_a_worker_is_remembered_by_name_and_by_no_more_names_than_allowed() -> None:
    now_s = 100.0
    unserved = UnservedPicks(lambda: now_s)
    assert unserved.age_s(["org/model"]) == math.inf
    unserved.note("org/model")
    now_s += 7
    assert unserved.age_s(["other", "org/model"]) == 7
    for number in range(MAX_NAMES):
        unserved.note(f"made-up/{number}")
    assert unserved.age_s(["org/model"]) == math.inf
