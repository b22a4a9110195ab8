"""Rows, blocks and slots are split evenly between those who want them, and none is taken without need."""

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from hotslot.ids import PartyId, TenantId
from tests.support.engine_bench import Bench, adapter, expected, small_limits
from worker_service.engine.giving_way import Hold, Owner, giving_way, heaviest
from worker_service.engine.limits import EnginePolicy
from worker_service.engine.messages import Activate, SequenceFailed

LOUD, QUIET = PartyId("loud"), PartyId("quiet")
OWNERS = [Owner(PartyId(party), TenantId(tenant)) for party in "ab" for tenant in "xyz"]
HOLDS = st.lists(st.builds(Hold, st.sampled_from(OWNERS), st.integers(0, 4), st.booleans()), max_size=12)


def no_lead(first: Owner, second: Owner) -> float:
    return 0.0


def held_by(holds: list[Hold]) -> "tuple[Counter[str], Counter[Owner]]":
    parties: Counter[str] = Counter()
    owners: Counter[Owner] = Counter()
    for owner, amount, _ in holds:
        parties[owner.party] += amount
        owners[owner] += amount
    return parties, owners


@given(HOLDS, st.sampled_from(OWNERS), st.integers(1, 4), st.integers(0, 3))
def test_an_owner_gives_way_only_to_one_that_holds_no_more_afterwards(
    holds: list[Hold], claimant: Owner, needed: int, num_free: int
) -> None:
    given_way = giving_way(holds, claimant, needed, num_free, no_lead, math.inf)
    if given_way is None:
        return
    assert len(set(given_way)) == len(given_way)
    assert num_free + sum(holds[index].amount for index in given_way) >= needed, "taken in vain"
    left = [hold for index, hold in enumerate(holds) if index not in given_way]
    parties, owners = held_by(left)
    for index in given_way:
        owner = holds[index].owner
        assert owner != claimant
        assert holds[index].may_end
        if owner.party != claimant.party:
            assert parties[owner.party] >= parties[claimant.party] + needed
        else:
            assert owners[owner] >= owners[claimant] + needed


@given(HOLDS, st.sampled_from(OWNERS))
def test_who_holds_two_fewer_than_another_never_waits_for_one(holds: list[Hold], claimant: Owner) -> None:
    ones = [Hold(hold.owner, 1) for hold in holds]
    parties, owners = held_by(ones)
    is_short = any(
        (parties[o.party] - parties[claimant.party] if o.party != claimant.party else owners[o] - owners[claimant]) >= 2
        for o in {hold.owner for hold in ones}
    )
    found = giving_way(ones, claimant, 1, 0, no_lead, math.inf)
    assert (found is not None) is is_short
    if found is not None and parties[ones[found[0]].owner.party] and ones[found[0]].owner.party != claimant.party:
        assert parties[ones[found[0]].owner.party] == max(parties.values())


def test_a_turn_is_taken_from_the_one_that_was_served_more_by_a_slice() -> None:
    first, second = OWNERS[0], OWNERS[3]
    for lead, slice_tokens, found in ((99.0, 100.0, None), (100.0, 100.0, [0])):
        assert giving_way([Hold(first, 1)], second, 1, 0, lambda a, b, lead=lead: lead, slice_tokens) == found  # type: ignore[misc]


def test_the_last_row_of_the_heaviest_gives_blocks_up() -> None:
    a, b = OWNERS[0], OWNERS[3]
    holds = [Hold(a, 3), Hold(b, 2), Hold(a, 1), Hold(b, 1)]
    assert heaviest(holds, range(4)) == 2
    assert heaviest(holds, [1, 3]) == 3


def flood(bench: Bench, number: int, *, tenants: int = 1, **options: object) -> None:
    """Long requests of one party, as many as there are."""
    for index in range(number):
        tenant = TenantId(f"t{index % tenants}")
        bench.submit(1000 + index, [index % 40, 1], max_tokens=200, tenant=tenant, party=LOUD)


def roomy(**changes: int) -> Bench:
    values = {"max_running": 4, "num_blocks": 400, "max_sequence_tokens": 240, "max_step_tokens": 16, **changes}
    return Bench(small_limits(**values), EnginePolicy(slice_tokens=32))


def test_long_requests_of_one_party_give_way_to_another_at_once_and_lose_no_token() -> None:
    bench = roomy()
    flood(bench, 8)
    bench.turns(10)
    began_s = bench.now_s
    bench.submit(1, [7], max_tokens=3, party=QUIET)
    bench.turns(4)
    assert bench.first(1).time_s - began_s <= 1
    assert bench.tokens(1) == expected([7], 3)
    assert bench.snapshot().preemptions == 1
    bench.run()
    for index in range(8):
        assert bench.tokens(1000 + index) == expected([index, 1], 200)


def test_two_hundred_tenants_of_one_party_have_one_share() -> None:
    bench = roomy(max_waiting=300)
    flood(bench, 200, tenants=200)
    bench.turns(5)
    waited = []
    for number in range(1, 21):
        began_s = bench.now_s
        bench.submit(number, [number], max_tokens=2, party=QUIET)
        bench.turns(5)
        waited.append(bench.first(number).time_s - began_s)
    assert max(waited) <= 1


def test_tenants_of_one_party_share_its_rows() -> None:
    bench = roomy()
    flood(bench, 8)
    bench.turns(5)
    bench.submit(1, [7], max_tokens=2, tenant=TenantId("other"), party=LOUD)
    bench.turns(3)
    assert bench.finished() == [1]


def test_rows_are_split_evenly_and_none_is_idle_while_one_waits() -> None:
    bench = roomy()
    flood(bench, 8)
    bench.turns(5)
    for number in range(1, 9):
        bench.submit(number, [number], max_tokens=150, party=QUIET)
    for _ in range(60):
        bench.turns(1)
        owners = Counter(sequence.owner.party for sequence in bench.core._scheduler.running)
        assert owners == {LOUD: 2, QUIET: 2}
    bench.run()
    assert len(bench.finished()) == 16


def test_one_row_is_taken_in_turns() -> None:
    bench = roomy(max_running=1)
    bench.submit(1, [1], max_tokens=200, party=LOUD)
    bench.turns(5)
    bench.submit(2, [2], max_tokens=100, party=QUIET)
    bench.turns(45)
    assert bench.first(2).time_s <= 5 + 45
    bench.run()
    assert bench.tokens(1) == expected([1], 200)
    assert bench.tokens(2) == expected([2], 100)
    assert bench.finished() == [2, 1]
    assert 1 <= bench.snapshot().preemptions <= 12


def test_a_party_alone_is_never_preempted_for_itself() -> None:
    bench = roomy()
    flood(bench, 20)
    bench.run()
    assert bench.snapshot().preemptions == 0


def test_slots_that_one_party_holds_are_given_up_for_another() -> None:
    bench = roomy(num_slots=3)
    for index in range(3):
        bench.submit(1000 + index, [index, 1], adapter(index), max_tokens=200, party=LOUD)
    bench.turns(10)
    began_s = bench.now_s
    bench.submit(1, [7], adapter(9), max_tokens=3, party=QUIET)
    bench.turns(10)
    assert bench.finished() == [1]
    assert bench.first(1).time_s - began_s <= 3
    assert bench.tokens(1) == expected([7], 3, adapter(9))
    bench.run()
    for index in range(3):
        assert bench.tokens(1000 + index) == expected([index, 1], 200, adapter(index))


def test_slots_that_a_pin_keeps_are_not_given_up() -> None:
    bench = roomy(num_slots=2)
    bench.core.handle(Activate(adapter(1), True, lambda outcome: None))
    bench.submit(1000, [1], adapter(1), max_tokens=100, party=LOUD)
    bench.submit(1001, [1], adapter(2), max_tokens=100, party=LOUD)
    bench.turns(5)
    bench.submit(1, [7], adapter(9), max_tokens=3, party=QUIET)
    bench.turns(10)
    assert bench.finished() == [1]
    assert any(h.digest == adapter(1).digest and h.pinned for h in bench.snapshot().holders)


def test_blocks_that_one_party_holds_are_given_up_for_another() -> None:
    bench = Bench(
        small_limits(max_running=4, num_blocks=24, max_sequence_tokens=60, max_step_tokens=32), EnginePolicy()
    )
    for index in range(3):
        bench.submit(1000 + index, [index] * 28, max_tokens=30, party=LOUD)
    bench.turns(12)
    began_s = bench.now_s
    bench.submit(1, [7] * 12, max_tokens=2, party=QUIET)
    bench.turns(4)
    assert bench.first(1).time_s - began_s <= 2
    bench.run()
    assert bench.tokens(1) == expected([7] * 12, 2)
    for index in range(3):
        assert bench.tokens(1000 + index) == expected([index] * 28, 30)


def test_a_place_in_a_full_queue_goes_to_the_party_that_has_fewer() -> None:
    bench = roomy(max_running=1, max_waiting=9)
    flood(bench, 40, tenants=40)
    before = len(bench.failed())
    for number in range(1, 6):
        bench.submit(number, [number], max_tokens=1, party=QUIET)
    bench.turns(1)
    refused = bench.failed()
    assert not {1, 2, 3, 4} & set(refused)
    assert set(refused.values()) == {"QueueFullError"}
    assert 5 in refused or len(refused) > before
    bench.run()


def test_a_request_with_a_deadline_is_not_refused_for_rows_that_give_way_to_it() -> None:
    bench = roomy()
    for number in range(50):
        bench.submit(2000 + number, [1], max_tokens=60, party=LOUD)
    bench.turns(400)
    flood(bench, 8)
    bench.turns(5)
    bench.submit(1, [7], max_tokens=1, party=QUIET, deadline_s=bench.now_s + 3)
    bench.turns(3)
    assert not [e for e in bench.events if isinstance(e, SequenceFailed)]
    assert 1 in bench.finished()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 20)), min_size=1, max_size=40), st.integers(1, 4))
def test_whatever_comes_all_is_answered_and_no_row_is_idle(arrivals: list[tuple[str, int]], num_rows: int) -> None:
    bench = roomy(max_running=num_rows)
    scheduler = bench.core._scheduler

    def check() -> None:
        assert len(scheduler.running) == num_rows or not len(scheduler.waiting)

    bench.runner.on_step = check
    for number, (party, length) in enumerate(arrivals):
        bench.submit(number, [number % 40], max_tokens=length, party=PartyId(party))
        bench.turns(1)
    bench.run()
    assert len(bench.finished()) == len(arrivals)
