"""Reasons and figures of the gateway's page, from what workers and the store tell."""

from dataclasses import replace

import pytest

from gateway_service.live_state import live_worker, none_ready, only_worker, reasons_of, shown_name, store_problems
from hotslot.contract.control import KvStatus, QueueStatus, SlotStatus, WorkerState, WorkerStatus
from hotslot.contract.placement import Worker, WorkerLoad
from hotslot.contract.store_status import StorePart, StoreStatus

LOAD = WorkerLoad(1, 2, 8, 3, 4, 0.5)
BEATEN = Worker("w-1", "10.0.0.1:7500", "base", "sha256:0", WorkerState.READY, LOAD, None, None, 1, 1, "bfloat16", 16)
STATUS = WorkerStatus(
    "w-1",
    WorkerState.READY,
    slots=SlotStatus(num_slots=8, free=5),
    kv=KvStatus(num_blocks=100, free_blocks=75),
    queue=QueueStatus(running_sequences=3, waiting_sequences=1, loading_requests=2, max_sequences=16, max_waiting=64),
    generated_tokens=7,
    version="1.2.3",
)


def test_a_worker_that_answers_is_shown_by_its_own_status() -> None:
    shown = live_worker(BEATEN, STATUS, "")
    assert (shown.running, shown.max_running, shown.waiting, shown.loading) == (3, 16, 1, 2)
    assert (shown.num_slots, shown.free_slots, shown.kv_usage) == (8, 5, 0.25)
    assert (shown.generated_tokens, shown.version, shown.reasons, shown.dtype) == (7, "1.2.3", (), "bfloat16")


def test_a_worker_that_does_not_answer_is_shown_by_its_heartbeat() -> None:
    shown = live_worker(BEATEN, None, "no answer")
    assert (shown.running, shown.waiting, shown.kv_usage, shown.generated_tokens) == (1, 2, 0.5, None)
    assert shown.reasons == ("it does not answer: no answer",)


def test_a_worker_that_was_not_asked_has_the_reason_of_its_heartbeat_alone() -> None:
    assert live_worker(BEATEN, None, "").reasons == ()
    assert live_worker(replace(BEATEN, state=WorkerState.DRAINING), None, "").reasons == (
        "its last heartbeat says draining",
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"state": WorkerState.STARTING, "why": "its model is being loaded"}, "its model is being loaded"),
        ({"state": WorkerState.DRAINING, "drained": True}, "it was drained"),
        ({"state": WorkerState.DRAINING}, "it is draining"),
        ({"recompiles": 2}, "it compiled 2 graphs after its warm-up, which delays requests"),
        ({"queue": QueueStatus(waiting_sequences=64, max_waiting=64)}, "its queue is full with 64 sequences"),
    ],
)
def test_each_reason_is_told(change: dict[str, object], reason: str) -> None:
    assert reasons_of(STATUS) == []
    assert reasons_of(replace(STATUS, **change)) == [reason]  # type: ignore[arg-type]


def test_no_address_is_shown() -> None:
    part = StorePart("redis", works=False, why="10.0.0.9:6379 refused", required=False)
    assert store_problems(StoreStatus(False, "1", parts=(part,)), "") == ["the store's redis does not work"]
    assert BEATEN.endpoint not in str(live_worker(BEATEN, STATUS, ""))


def test_a_whole_without_a_ready_worker_is_a_problem() -> None:
    assert none_ready([only_worker(None, STATUS, "")]) == ""
    assert none_ready([only_worker(None, None, "no answer")]) == "no worker takes requests"


def test_a_version_is_shown_by_its_name_as_clients_write_it() -> None:
    assert [shown_name(names, "sha256:1") for names in (("bot:latest",), ("bot:v1", "bot"), ())] == [
        "bot",
        "bot:v1",
        "sha256:1",
    ]
