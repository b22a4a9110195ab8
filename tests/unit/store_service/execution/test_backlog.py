"""Which calls to the catalog are refused, and that nothing is counted twice or forgotten."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.errors import HotslotError, RequestDeadlineError, StoreBusyError
from store_service.execution.backlog import Backlog


def busy_backlog(took_s: float, num_threads: int = 2, max_wait_s: float = 1.0) -> Backlog:
    """All threads run calls that take so long, and none waits."""
    backlog = Backlog(num_threads, max_wait_s)
    for _ in range(num_threads):
        run(backlog, took_s)
    for _ in range(num_threads):
        assert backlog.arrive(None) is None
        assert backlog.begin(0, None) is None
    return backlog


def run(backlog: Backlog, took_s: float) -> None:
    assert backlog.arrive(None) is None
    assert backlog.begin(0, None) is None
    backlog.end(took_s)


def admitted(backlog: Backlog, left_s: float | None = None) -> int:
    """How many calls it takes before it refuses one."""
    for number in range(10_000):
        if backlog.arrive(left_s) is not None:
            return number
    raise AssertionError("it refuses none")


def test_calls_are_taken_until_they_would_wait_for_too_long() -> None:
    # Two threads, a tenth of a second a call: the twenty-first would wait for more than a second.
    assert admitted(busy_backlog(0.1)) == 20


def test_a_call_is_refused_when_its_caller_would_have_gone_by_its_turn() -> None:
    assert admitted(busy_backlog(0.1), left_s=0.5) == 10


def test_a_refusal_says_when_the_calls_before_it_are_done() -> None:
    backlog = busy_backlog(0.5)
    admitted(backlog)
    refusal = backlog.arrive(None)
    assert isinstance(refusal, StoreBusyError)
    assert refusal.retry_after_s == pytest.approx(1.25)


def test_a_free_thread_takes_a_call_however_long_calls_take() -> None:
    backlog = Backlog(num_threads=2, max_wait_s=1.0)
    run(backlog, took_s=60)
    assert backlog.arrive(left_s=0.1) is None


def test_calls_that_take_longer_lately_let_fewer_wait() -> None:
    backlog = busy_backlog(0.01)
    backlog.end(2.0)
    assert backlog.arrive(None) is None
    assert backlog.begin(0, None) is None
    assert admitted(backlog) < 20


@pytest.mark.parametrize("left_s", [0.0, -3.0])
def test_a_call_whose_deadline_has_passed_is_not_taken(left_s: float) -> None:
    backlog = Backlog(num_threads=2, max_wait_s=1.0)
    assert isinstance(backlog.arrive(left_s), RequestDeadlineError)
    assert backlog.arrive(1.0) is None
    assert isinstance(backlog.begin(1.0 - left_s, left_s), RequestDeadlineError)


def test_a_call_that_waited_for_much_longer_than_was_expected_is_not_begun() -> None:
    backlog = Backlog(num_threads=2, max_wait_s=1.0)
    assert backlog.arrive(None) is None
    assert backlog.arrive(None) is None
    assert backlog.begin(1.9, None) is None
    refusal: HotslotError | None = backlog.begin(2.1, None)
    assert isinstance(refusal, StoreBusyError)


@given(st.lists(st.sampled_from(["arrive", "begin", "late", "leave", "end"]), max_size=200))
def test_whatever_happened_an_empty_backlog_takes_calls_again(steps: list[str]) -> None:
    backlog = Backlog(num_threads=2, max_wait_s=1.0)
    waiting = running = ended = 0
    for step in steps:
        if step == "arrive":
            waiting += backlog.arrive(None) is None
        elif step == "end" and running:
            backlog.end(5.0)
            running, ended = running - 1, ended + 1
        elif step == "leave" and waiting:
            backlog.leave()
            waiting -= 1
        elif step in ("begin", "late") and waiting and running < 2:
            running += backlog.begin(0.0, -1.0 if step == "late" else None) is None
            waiting -= 1
    for _ in range(waiting):
        backlog.leave()
    for _ in range(running):
        backlog.end(5.0)
        ended += 1
    assert backlog.expected_wait_s == 0
    assert backlog.arrive(0.1) is None
    assert backlog.arrive(0.1) is None
    assert isinstance(backlog.arrive(0.1), StoreBusyError) == (ended > 0)
