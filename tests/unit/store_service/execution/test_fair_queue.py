"""Admissions: tenants take turns, and what nobody waits for leaves the queue or ends."""

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.errors import RequestCancelledError, RequestDeadlineError, StoreBusyError
from store_service.execution.fair_queue import FairQueue
from store_service.execution.fair_shares import FairShares
from store_service.execution.unwanted import Wish, stop_if_unwanted
from tests.support.waiting import until


@pytest.fixture
def queue() -> Iterator[FairQueue]:
    found = FairQueue("test", 1, 64)
    yield found
    found.close()


class Gate:
    """Work that holds the thread until it is let go or unwanted, and notes that it ran."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.has_begun = threading.Event()
        self.ended_with: BaseException | None = None

    def __call__(self) -> str:
        self.has_begun.set()
        try:
            while not self.opened.wait(0.005):
                stop_if_unwanted()
        except BaseException as exc:
            self.ended_with = exc
            raise
        return "done"


def noted(order: list[str], name: str) -> Callable[[], None]:
    return lambda: order.append(name)


async def test_tenants_take_turns_however_many_calls_one_of_them_has(queue: FairQueue) -> None:
    gate, order = Gate(), list[str]()
    holding = asyncio.create_task(queue("many", None, gate))
    await until(gate.has_begun.is_set)
    calls = [asyncio.create_task(queue("many", None, noted(order, "many"))) for _ in range(10)]
    await asyncio.sleep(0)
    calls += [asyncio.create_task(queue(name, None, noted(order, name))) for name in ("few", "other")]
    await asyncio.sleep(0)
    gate.opened.set()
    await asyncio.gather(holding, *calls)
    assert set(order[:2]) == {"few", "other"}, "first come, first served is no turn"


async def test_a_call_that_is_cancelled_leaves_the_queue(queue: FairQueue) -> None:
    gate, order = Gate(), list[str]()
    holding = asyncio.create_task(queue("a", None, gate))
    await until(gate.has_begun.is_set)
    waiting = asyncio.create_task(queue("a", None, noted(order, "cancelled")))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.opened.set()
    assert await holding == "done"
    await queue("a", None, noted(order, "next"))
    assert order == ["next"]


async def test_a_call_whose_deadline_passes_leaves_the_queue(queue: FairQueue) -> None:
    gate, order = Gate(), list[str]()
    holding = asyncio.create_task(queue("a", None, gate))
    await until(gate.has_begun.is_set)
    with pytest.raises(RequestDeadlineError, match="nothing was done"):
        await queue("a", 0.05, noted(order, "late"))
    gate.opened.set()
    await holding
    assert order == []


async def test_work_whose_caller_leaves_ends_soon_and_frees_its_thread(queue: FairQueue) -> None:
    gate = Gate()
    running = asyncio.create_task(queue("a", None, gate))
    await until(gate.has_begun.is_set)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await asyncio.wait_for(queue("a", None, lambda: "next"), 60) == "next"
    assert isinstance(gate.ended_with, RequestCancelledError)


async def test_work_whose_deadline_passes_ends_soon(queue: FairQueue) -> None:
    gate = Gate()
    with pytest.raises(RequestDeadlineError, match="under way"):
        await queue("a", 0.1, gate)


async def test_a_caller_of_work_to_its_end_is_cancelled_when_that_has_ended(queue: FairQueue) -> None:
    gate = Gate()
    running = asyncio.create_task(queue.to_its_end("a", None, gate))
    await until(gate.has_begun.is_set)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert isinstance(gate.ended_with, RequestCancelledError)


async def test_a_tenant_cannot_fill_the_queue(queue: FairQueue) -> None:
    gate = Gate()
    calls = [asyncio.create_task(queue("many", None, gate)) for _ in range(100)]
    await until(lambda: any(call.done() for call in calls))
    assert [type(call.exception()) for call in calls if call.done()] == [StoreBusyError] * 42
    other = asyncio.create_task(queue("other", None, lambda: "served"))
    gate.opened.set()
    assert await other == "served"
    await asyncio.gather(*calls, return_exceptions=True)


def test_work_that_nobody_asked_to_stop_goes_on() -> None:
    stop_if_unwanted()
    wish = Wish(60)
    wish.work(stop_if_unwanted)
    wish.withdraw()
    with pytest.raises(RequestCancelledError):
        wish.work(lambda: "done")
    stop_if_unwanted()


@given(st.dictionaries(st.sampled_from("abcd"), st.floats(0.1, 10), min_size=2), st.integers(50, 200))
def test_tenants_that_always_have_work_waiting_get_as_much_time_as_each_other(
    durations_s: dict[str, float], num_turns: int
) -> None:
    shares: FairShares[tuple[str, int]] = FairShares(100_000)
    for tenant in durations_s:
        for index in range(num_turns):
            shares.add(tenant, (tenant, index), 0.0)
    now_s, got_s = 0.0, dict.fromkeys(durations_s, 0.0)
    for _ in range(num_turns):
        work = shares.next(now_s)
        assert work is not None
        now_s += durations_s[work[0]]
        got_s[work[0]] += durations_s[work[0]]
        shares.end(work, now_s)
    assert max(got_s.values()) - min(got_s.values()) <= max(durations_s.values()) + 1e-6


def test_whoever_comes_back_has_no_credit_for_the_time_without_work() -> None:
    shares: FairShares[str] = FairShares(100)
    shares.add("busy", "b0", 0.0)
    assert shares.next(0.0) == "b0"
    shares.add("busy", "b1", 0.0)
    shares.end("b0", 100.0)
    for name in ("n0", "n1", "n2"):
        shares.add("new", name, 100.0)
    order = []
    now_s = 100.0
    while (work := shares.next(now_s)) is not None:
        order.append(work)
        now_s += 1.0
        shares.end(work, now_s)
    assert order.index("b1") <= 1
