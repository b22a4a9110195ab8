"""Whether a request leaves a worker, and for whom."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Tier
from hotslot.ids import TenantId, WorkerId, digest_of
from hotslot.rpc.tenant import FORWARDED_KEY
from shared.fleet.policy import RankedWorker
from shared.fleet.records import ReportedLoad, WorkerInfo, WorkerRecord
from worker_service.routing.forwarding import is_forwarded, metadata_to_carry
from worker_service.routing.plan import Here, before_here, instead_of_here

ME = WorkerId("w-me")
ROWS = 4


def worker(name: str, in_flight: int = 0) -> WorkerRecord:
    info = WorkerInfo(WorkerId(name), f"{name}:1", digest_of(b"base"), "base", "float32", 8, 0.0, 1)
    load = ReportedLoad(running_sequences=in_flight, max_sequences=ROWS)
    return WorkerRecord(info, WorkerState.READY, load, 0.0, 0)


def ranked(*workers: WorkerRecord) -> list[RankedWorker]:
    return [RankedWorker(record, Tier.SLOT) for record in workers]


def here(*, holds_all: bool = True, in_flight: int = 0, takes_requests: bool = True) -> Here:
    return Here(ME, holds_all, in_flight, ROWS, takes_requests)


def names(records: list[WorkerRecord]) -> list[str]:
    return [record.info.worker_id for record in records]


A, B, C, SELF = worker("a"), worker("b"), worker("c"), worker(ME)


def test_a_worker_with_everything_and_a_free_row_keeps_the_request() -> None:
    assert before_here(ranked(A, B), here(in_flight=ROWS - 1), {}, limit=2) == []


def test_a_full_worker_with_everything_leaves_it_only_to_free_rows() -> None:
    order = ranked(worker("busy", ROWS), A, SELF, B)
    assert names(before_here(order, here(in_flight=ROWS), {}, limit=3)) == ["a", "b"]


def test_streams_that_the_last_report_does_not_know_of_take_rows_too() -> None:
    assert before_here(ranked(A), here(in_flight=ROWS), {WorkerId("a"): ROWS}, limit=3) == []


def test_a_worker_without_the_adapters_leaves_the_request_to_those_ranked_before_it() -> None:
    assert names(before_here(ranked(A, B, SELF, C), here(holds_all=False), {}, limit=3)) == ["a", "b"]
    assert before_here(ranked(SELF, A), here(holds_all=False), {}, limit=3) == []
    assert names(before_here(ranked(A, B, C), here(holds_all=False), {}, limit=2)) == ["a", "b"]


def test_a_draining_worker_leaves_everything_to_others() -> None:
    assert names(before_here(ranked(SELF, worker("busy", ROWS), A), here(takes_requests=False), {}, limit=2)) == [
        "busy",
        "a",
    ]


def test_who_was_tried_is_not_tried_again_and_the_bound_counts_both() -> None:
    assert names(instead_of_here(ranked(A, SELF, B, C), here(), [WorkerId("a")], limit=2)) == ["b"]
    assert instead_of_here(ranked(A, B), here(), [WorkerId("x"), WorkerId("y")], limit=2) == []


@given(
    st.lists(st.sampled_from([A, B, C, SELF, worker("busy", ROWS)]), unique_by=lambda r: r.info.worker_id),
    st.booleans(),
    st.integers(0, 2 * ROWS),
    st.booleans(),
    st.integers(0, 3),
)
def test_a_request_is_never_sent_to_its_own_worker_nor_twice_to_another_nor_to_too_many(
    order: list[WorkerRecord], holds_all: bool, in_flight: int, takes_requests: bool, limit: int
) -> None:
    me = here(holds_all=holds_all, in_flight=in_flight, takes_requests=takes_requests)
    first = before_here(ranked(*order), me, {}, limit=limit)
    then = instead_of_here(ranked(*order), me, [r.info.worker_id for r in first], limit=limit)
    tried = names([*first, *then])
    assert ME not in tried
    assert len(set(tried)) == len(tried) <= limit


def test_metadata_is_carried_on_except_for_what_belongs_to_the_connection() -> None:
    received: list[tuple[str, str | bytes]] = [
        ("hotslot-tenant", "acme"),
        ("traceparent", "00-1-2-01"),
        ("x-request-id", "r-1"),
        ("custom-bin", b"\x00\xff"),
        ("user-agent", "grpc"),
        ("grpc-timeout", "1S"),
        (FORWARDED_KEY, "somebody"),
        ("authorization", "Bearer secret"),
        ("hotslot-principal", "alice"),
        ("hotslot-scopes", "use"),
    ]
    carried = metadata_to_carry(received, TenantId("acme"), ME)
    assert carried == (*received[1:4], ("hotslot-tenant", "acme"), (FORWARDED_KEY, ME))
    assert is_forwarded(carried)
    assert not is_forwarded(received[:6])


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "bfloat16"},
        {"slot_rank": 16},
        {"num_slots": 2},
        {"max_rank": 4},
        {"max_sequence_tokens": 64},
        {"base_model_digest": digest_of(b"other")},
    ],
)
def test_workers_that_differ_in_what_they_accept_or_compute_do_not_stand_in_for_each_other(
    change: dict[str, object],
) -> None:
    assert A.info.serves_like(B.info)
    assert not A.info.serves_like(replace(A.info, **change))  # type: ignore[arg-type]
