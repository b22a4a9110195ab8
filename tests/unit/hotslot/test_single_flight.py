"""Single flights: shared outcomes, cancelled callers, errors, many keys."""

import asyncio
import gc
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotslot.backoff import Backoff
from hotslot.errors import UnavailableError
from hotslot.single_flight import SingleFlight
from tests.support.waiting import until


class Work:
    """Counts how often it is begun for each key, and ends when the test says."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.cancelled: Counter[str] = Counter()
        self.outcomes: dict[tuple[str, int], asyncio.Future[str]] = {}

    async def __call__(self, key: str) -> str:
        self.begun[key] += 1
        outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.outcomes[key, self.begun[key]] = outcome
        try:
            return await outcome
        except asyncio.CancelledError:
            self.cancelled[key] += 1
            raise


def call(flights: SingleFlight[str, str], work: Work, key: str) -> "asyncio.Task[str]":
    return asyncio.create_task(flights.run(key, lambda: work(key)))


@pytest.mark.parametrize("ends_unwanted", [False, True])
async def test_callers_at_the_same_time_share_one_flight_and_the_next_begins_anew(ends_unwanted: bool) -> None:
    flights, work = SingleFlight[str, str](ends_unwanted=ends_unwanted), Work()
    calls = [call(flights, work, key) for key in ("a", "b", "a", "b", "a")]
    await until(lambda: work.begun == {"a": 1, "b": 1})
    assert set(flights.keys()) == {"a", "b"}
    for key in ("a", "b"):
        work.outcomes[key, 1].set_result(key.upper())
    assert await asyncio.gather(*calls) == ["A", "B", "A", "B", "A"]
    assert flights.keys() == ()
    again = call(flights, work, "a")
    await until(lambda: work.begun["a"] == 2)
    work.outcomes["a", 2].set_result("anew")
    assert await again == "anew"


@pytest.mark.parametrize("ends_unwanted", [False, True])
async def test_a_first_caller_that_is_cancelled_leaves_the_flight_to_the_others(ends_unwanted: bool) -> None:
    flights, work = SingleFlight[str, str](ends_unwanted=ends_unwanted), Work()
    first, second = call(flights, work, "a"), call(flights, work, "a")
    await until(lambda: work.begun["a"] == 1)
    first.cancel()
    await until(first.done)
    work.outcomes["a", 1].set_result("A")
    assert await second == "A"
    assert (work.begun["a"], work.cancelled["a"]) == (1, 0)


async def test_without_callers_a_flight_goes_on_to_its_end() -> None:
    flights, work = SingleFlight[str, str](), Work()
    only = call(flights, work, "a")
    await until(lambda: work.begun["a"] == 1)
    only.cancel()
    await until(only.done)
    joined = call(flights, work, "a")
    await asyncio.sleep(0)
    work.outcomes["a", 1].set_result("A")
    assert await joined == "A"
    assert (work.begun["a"], work.cancelled["a"]) == (1, 0)


async def test_an_unwanted_flight_ends_and_the_next_caller_does_not_wait_for_its_end() -> None:
    flights = SingleFlight[str, int](ends_unwanted=True)
    ending = asyncio.Event()

    async def stubborn() -> int:
        try:
            await asyncio.Event().wait()
        finally:
            await ending.wait()
        return 1

    async def quick() -> int:
        return 2

    only = asyncio.create_task(flights.run("a", stubborn))
    await asyncio.sleep(0.01)
    only.cancel()
    await until(only.done)
    assert "a" not in flights
    assert await flights.run("a", quick) == 2
    ending.set()


async def test_an_error_reaches_all_who_wait_and_is_not_kept() -> None:
    flights, work = SingleFlight[str, str](), Work()
    calls = [call(flights, work, "a") for _ in range(3)]
    await until(lambda: work.begun["a"] == 1)
    work.outcomes["a", 1].set_exception(UnavailableError("away"))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [UnavailableError] * 3
    again = call(flights, work, "a")
    await until(lambda: work.begun["a"] == 2)
    work.outcomes["a", 2].set_result("A")
    assert await again == "A"


async def test_an_error_that_nobody_waits_for_is_not_reported_as_lost() -> None:
    flights, work = SingleFlight[str, str](), Work()
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    flights.begin("a", lambda: work("a"))
    await until(lambda: work.begun["a"] == 1)
    work.outcomes["a", 1].set_exception(UnavailableError("away"))
    work.outcomes.clear()
    await flights.settled()
    await asyncio.sleep(0)
    gc.collect()
    assert reported == []


async def test_closing_cancels_all_flights_and_their_callers_hear_of_it() -> None:
    flights, work = SingleFlight[str, str](), Work()
    calls = [call(flights, work, key) for key in ("a", "b")]
    await until(lambda: sum(work.begun.values()) == 2)
    await flights.close()
    assert work.cancelled == {"a": 1, "b": 1}
    await asyncio.wait(calls)
    assert all(waiting.cancelled() for waiting in calls)
    assert flights.keys() == ()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["call", "cancel", "end", "fail"])), max_size=40))
@settings(max_examples=60, deadline=None)
def test_a_key_has_one_flight_at_most_and_all_who_stay_get_its_outcome(
    steps: list[tuple[str, str]],
) -> None:
    asyncio.run(drive(steps))


async def drive(steps: list[tuple[str, str]]) -> None:
    flights, work = SingleFlight[str, str](ends_unwanted=True), Work()
    waiting: dict[str, list[asyncio.Task[str]]] = {key: [] for key in "abc"}
    num_begun: Counter[str] = Counter()
    for key, step in steps:
        if step == "call":
            num_begun[key] += not waiting[key]
            waiting[key].append(call(flights, work, key))
        elif waiting[key] and step == "cancel":
            caller = waiting[key].pop(0)
            caller.cancel()
            await asyncio.wait([caller])
        elif waiting[key]:
            outcome = work.outcomes[key, work.begun[key]]
            if step == "end":
                outcome.set_result(key)
            else:
                outcome.set_exception(UnavailableError(key))
            outcomes = await asyncio.gather(*waiting[key], return_exceptions=True)
            expected = key if step == "end" else UnavailableError
            assert all(found == expected or type(found) is expected for found in outcomes)
            waiting[key] = []
        for _ in range(4):
            await asyncio.sleep(0)
        assert work.begun == +num_begun
        assert set(flights.keys()) == {key for key, callers in waiting.items() if callers}
    await flights.close()


@given(st.floats(1e-3, 10.0), st.floats(1.0, 100.0), st.integers(0, 10_000))
def test_pauses_double_up_to_their_bound_and_are_shortened_by_half_at_most(
    first_s: float, factor: float, pauses_before: int
) -> None:
    longest_s = min(first_s * factor, first_s * 2.0 ** min(pauses_before, 100))
    pause_s = Backoff(first_s, first_s * factor).pause_s(pauses_before)
    assert longest_s / 2 <= pause_s <= longest_s
