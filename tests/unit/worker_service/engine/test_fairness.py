"""Nobody starves: adapters, tenants, priorities, prompts and places in the queue are shared."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.errors import QueueFullError
from hotslot.ids import TenantId
from tests.support.engine_bench import Bench, adapter, expected, small_limits
from worker_service.engine.budget import share_budget
from worker_service.engine.fair_share import FairShare
from worker_service.engine.limits import EnginePolicy
from worker_service.engine.messages import SequenceFailed
from worker_service.engine.tenant_places import TenantPlaces

ACME, ZETA = TenantId("acme"), TenantId("zeta")


def test_one_request_does_not_wait_behind_a_hundred_of_another_adapter() -> None:
    bench = Bench(small_limits(num_blocks=40, max_waiting=200))
    for number in range(1, 101):
        bench.submit(number, [number % 50], adapter(1), max_tokens=3)
    bench.turns(4)
    bench.submit(500, [7], adapter(2), max_tokens=3)
    bench.run()
    begun = bench.begun()
    assert begun.index(500) <= begun.index(3) + 4
    assert len(begun) == 101


def test_a_tenant_with_many_adapters_gets_no_more_than_one_with_one() -> None:
    bench = Bench(small_limits(num_blocks=40, max_running=1, num_slots=8, max_waiting=200), EnginePolicy(look_ahead=64))
    for number in range(1, 33):
        bench.submit(number, [1], adapter(number % 8), max_tokens=3, tenant=ACME)
    for number in range(101, 117):
        bench.submit(number, [1], adapter(20), max_tokens=3, tenant=ZETA)
    bench.run()
    first = bench.begun()[:32]
    assert sum(number > 100 for number in first) == 16


def test_a_priority_is_worth_nothing_against_another_tenant() -> None:
    bench = Bench(small_limits(max_running=1, num_blocks=40))
    for number in range(1, 11):
        bench.submit(number, [1], max_tokens=3, tenant=ACME, priority=1000)
    bench.submit(100, [1], max_tokens=3, tenant=ZETA)
    bench.run()
    assert bench.begun().index(100) <= 2


def test_a_low_priority_ages_until_its_turn() -> None:
    bench = Bench(small_limits(max_running=1), EnginePolicy(ageing_s=5.0))
    bench.submit(1, [1], max_tokens=1)
    numbers = itertools.count(2)
    for _ in range(40):
        bench.submit(next(numbers), [2], max_tokens=1, priority=3)
        bench.turns(1)
    waited = bench.begun().index(1)
    assert 0 < waited <= 3 * 5 + 1


@given(st.lists(st.integers(1, 300), min_size=1, max_size=8), st.integers(1, 64))
def test_every_prompt_is_done_within_the_bound_whatever_comes_with_it(prompts: list[int], budget: int) -> None:
    left = dict(enumerate(prompts))
    done: dict[int, int] = {}
    for step in itertools.count(1):
        if not left:
            break
        order = list(left)
        shares = share_budget([left[i] for i in order], budget)
        assert sum(shares) == min(budget, sum(left.values())), "no token of the budget is wasted"
        for index, count in zip(order, shares, strict=True):
            left[index] -= count
            if not left[index]:
                del left[index]
                done[index] = step
    for index in range(len(prompts)):
        bound = sum(math.ceil(2 * n / budget) for n in prompts[: index + 1])
        assert done[index] <= bound


def test_a_long_prompt_does_not_hold_up_short_ones() -> None:
    bench = Bench(small_limits(num_blocks=200, max_sequence_tokens=400, max_step_tokens=16, max_running=4))
    bench.submit(1, [1] * 320, max_tokens=1)
    bench.turns(2)
    for number in (2, 3, 4):
        bench.submit(number, [number] * 8, max_tokens=1)
    bench.run()
    assert bench.finished()[-1] == 1
    assert bench.first(4).time_s <= 2 + 4


def test_a_sequence_whose_adapter_has_no_slot_is_passed_over_only_so_often() -> None:
    bounds = small_limits(num_slots=1, max_running=2, num_blocks=40, max_waiting=200, max_bypasses=5)
    bench = Bench(bounds, EnginePolicy(residency_slack_tokens=10**9))
    numbers = itertools.count(1)
    for _ in range(4):
        bench.submit(next(numbers), [1], adapter(1), max_tokens=3)
    bench.turns(1)
    bench.submit(1000, [1], adapter(2), max_tokens=3)
    for _ in range(40):
        bench.submit(next(numbers), [1], adapter(1), max_tokens=3)
        bench.turns(1)
    bench.run()
    # Two ran and two waited before it; then five may pass, and what runs beside the last of them ends.
    assert bench.begun().index(1000) <= 4 + 5 + 2
    assert bench.tokens(1000) == expected([1], 3, adapter(2))


def test_while_slots_are_emptied_for_one_the_other_adapters_go_on() -> None:
    bench = Bench(small_limits(num_slots=2, max_running=4, num_blocks=60, max_bypasses=0, max_waiting=200))
    for number in range(1, 5):
        bench.submit(number, [1], adapter(number % 2), max_tokens=12)
    bench.turns(2)
    bench.submit(100, [1], adapter(9), max_tokens=2)
    bench.turns(1)
    bench.submit(5, [1], adapter(0), max_tokens=2)
    bench.submit(6, [1], adapter(1), max_tokens=2)
    bench.cancel(1)
    bench.cancel(2)
    bench.turns(4)
    assert len({5, 6} & set(bench.begun())) == 1, "one adapter is being emptied, the other still takes users"
    assert 100 not in bench.begun()
    bench.run()
    assert sorted(bench.finished()) == [3, 4, 5, 6, 100]


def test_with_twice_as_many_adapters_as_slots_slots_are_not_filled_anew_for_every_row() -> None:
    bounds = small_limits(
        num_slots=4, max_running=4, num_blocks=200, max_waiting=400, max_step_tokens=16, max_bypasses=16
    )
    bench = Bench(bounds)
    for number in range(1, 161):
        bench.submit(number, [number % 50] * 4, adapter(number % 8), max_tokens=4)
    bench.run()
    assert len(bench.finished()) == 160
    assert bench.snapshot().activations <= 40, "each copy should serve several sequences"
    begun = bench.begun()
    longest = max(
        max(b - a for a, b in itertools.pairwise([-1, *(i for i, n in enumerate(begun) if n % 8 == mix)]))
        for mix in range(8)
    )
    assert longest <= 8 * (bounds.max_bypasses + 1), "no adapter waits longer than its turns"


def test_an_adapter_is_brought_before_a_row_is_free() -> None:
    bench = Bench(small_limits(max_running=1))
    bench.submit(1, [1], adapter(1), max_tokens=8)
    bench.turns(1)
    bench.submit(2, [1], adapter(2), max_tokens=1)
    bench.turns(3)
    ready = {holder.digest: holder.users for holder in bench.snapshot().holders if holder.ready}
    assert ready == {adapter(1).digest: 1, adapter(2).digest: 0}
    bench.submit(3, [1], adapter(3), max_tokens=1)
    bench.turns(3)
    assert {h.digest for h in bench.snapshot().holders} == set(ready), "an earlier one's adapter was evicted"
    bench.run()
    assert bench.tokens(3) == expected([1], 1, adapter(3))


def test_one_tenant_cannot_fill_the_queue() -> None:
    bench = Bench(small_limits(max_running=1, max_waiting=18))
    for number in range(1, 30):
        bench.submit(number, [1], tenant=ACME)
    bench.submit(100, [1], tenant=ZETA)
    bench.turns(1)
    refused = [e for e in bench.events if isinstance(e, SequenceFailed)]
    assert all(isinstance(e.error, QueueFullError) and e.error.retry_after_s for e in refused)
    assert 100 not in bench.failed()
    assert len(refused) == 29 - 17
    assert "for other tenants" in refused[0].error.message


def test_the_whole_queue_is_bounded() -> None:
    bench = Bench(small_limits(max_running=1, max_waiting=3))
    for number in range(1, 8):
        bench.submit(number, [1], tenant=TenantId(f"t{number}"))
    bench.turns(1)
    assert sorted(bench.failed()) == [5, 6, 7]


@pytest.mark.parametrize("num_rows", [4, 16, 32])
@pytest.mark.parametrize("max_waiting", [0, 1, 2])
def test_idle_rows_are_places_whatever_may_wait_beyond_them(max_waiting: int, num_rows: int) -> None:
    limits = small_limits(max_running=num_rows, max_waiting=max_waiting, num_blocks=200, max_step_tokens=64)
    bench = Bench(limits)
    for number in range(1, num_rows + 1):
        bench.submit(number, [1], max_tokens=3)
    bench.turns(1)
    for number in range(num_rows + 1, num_rows + 5):
        bench.submit(number, [1], max_tokens=3)
    bench.run()
    assert sorted(bench.finished()) == list(range(1, num_rows + 1 + max_waiting))
    refused = [e.error for e in bench.events if isinstance(e, SequenceFailed)]
    assert all(isinstance(error, QueueFullError) for error in refused)
    assert {error.message for error in refused} == {
        f"{max_waiting} sequences wait for one of {num_rows} rows already; at most {max_waiting} may"
    }


def test_behind_idle_rows_the_last_places_are_for_other_tenants() -> None:
    bench = Bench(small_limits(max_running=16, max_waiting=18, num_blocks=200, max_step_tokens=64))
    for number in range(1, 41):
        bench.submit(number, [1], tenant=ACME)
    bench.submit(100, [1], tenant=ZETA)
    bench.turns(1)
    refused = [e.error.message for e in bench.events if isinstance(e, SequenceFailed)]
    assert sorted(bench.failed()) == list(range(32, 41))
    assert set(refused) == {
        "31 sequences wait for one of 16 rows already; "
        "this tenant has 31 of 34 places, and the last 3 are for other tenants"
    }


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 12), st.integers(0, 40))
def test_a_newcomer_finds_a_place_unless_several_tenants_fill_the_queue(
    arrivals: list[int], num_places: int, num_beyond: int
) -> None:
    places = TenantPlaces(num_places)
    for arrival in arrivals:
        tenant = TenantId(f"t{arrival}")
        has_room = places.has_room(tenant, num_beyond)
        assert has_room or len(places) >= num_beyond, "a place that anybody may have was refused"
        if has_room:
            places.take(tenant)
    assert len(places) <= num_places + num_beyond
    if num_places and num_places + num_beyond >= 9 and len(set(arrivals)) == 1:
        assert places.has_room(TenantId("newcomer"), num_beyond)
    for arrival in range(4):
        while places.taken_by(TenantId(f"t{arrival}")):
            places.give_back(TenantId(f"t{arrival}"))
    assert len(places) == 0


def test_however_many_newcomers_come_one_that_waits_gets_its_turn() -> None:
    shares: FairShare[str] = FairShare()
    shares.join("old")
    shares.join("waits")
    shares.charge("waits", 100.0)
    for number in range(1000):
        newcomer = f"new {number}"
        shares.join(newcomer)
        if shares.spent("waits") < shares.spent(newcomer):
            break
        shares.charge(newcomer, 10.0)
        shares.leave(newcomer)
    else:
        pytest.fail("newcomers always went first")
    assert number < 50


def test_being_idle_earns_no_credit() -> None:
    shares: FairShare[str] = FairShare()
    shares.join("busy")
    shares.charge("busy", 1000.0)
    shares.join("late")
    assert shares.spent("late") == pytest.approx(shares.spent("busy"))
