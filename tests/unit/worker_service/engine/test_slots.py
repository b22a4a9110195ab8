"""Which adapter makes room for another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.ids import Digest
from tests.support.fake_model import FakeAdapter
from worker_service.engine.limits import EngineLimits
from worker_service.engine.slots import HALF_LIFE_S, Holder, SlotTable, choose_victims


def digest(number: int) -> Digest:
    return Digest(f"sha256:{number:064x}")


def holder(number: int, num_slots: int, last_used_s: float, *, users: int = 0, pinned: bool = False) -> Holder:
    return Holder(digest(number), tuple(range(num_slots)), 1000, last_used_s, 1.0, users, pinned, ready=True)


def wanted(**ranks: int) -> dict[Digest, FakeAdapter]:
    """Adapters by number, as `_1=8`."""
    adapters = [FakeAdapter(digest(int(name[1:])), rank) for name, rank in ranks.items()]
    return {adapter.digest: adapter for adapter in adapters}


def limits(num_slots: int) -> EngineLimits:
    return EngineLimits(num_slots, 4, 1, 1, 10, 4, 4, 40)


def test_the_least_recently_used_adapter_is_evicted_first() -> None:
    holders = [holder(1, 1, 30.0), holder(2, 1, 10.0), holder(3, 1, 20.0)]
    victims = choose_victims(holders, 2)
    assert victims is not None
    assert [v.digest for v in victims] == [digest(2), digest(3)]


def test_an_adapter_that_is_used_much_outlives_one_that_was_used_once_since() -> None:
    table = SlotTable(limits(2))
    for number in (1, 2):
        reservation = table.reserve(wanted(**{f"_{number}": 4}), 0.0)
        assert reservation is not None
        reservation.placed[0].ready = True
    for second in range(10):
        table.acquire(digest(1), float(second))
        table.release(digest(1), float(second))
    table.acquire(digest(2), 20.0)
    table.release(digest(2), 20.0)
    reservation = table.reserve(wanted(_3=4), 21.0)
    assert reservation is not None
    assert reservation.evicted == (digest(2),)


def test_uses_fade_so_that_an_adapter_once_popular_makes_room_in_the_end() -> None:
    popular, recent = holder(1, 1, 0.0), holder(2, 1, 10 * HALF_LIFE_S)
    popular.uses = 500.0
    assert choose_victims([popular, recent], 1) == [popular]
    recent.last_used_s = 5 * HALF_LIFE_S
    assert choose_victims([popular, recent], 1) == [recent]


def test_of_two_used_alike_the_one_goes_that_frees_more_slots_for_less_copying() -> None:
    dense, sparse = holder(1, 2, 1.0), holder(2, 2, 1.0)
    sparse.reload_bytes = dense.reload_bytes // 2
    assert choose_victims([dense, sparse], 1) == [sparse]


def test_what_others_need_first_is_kept() -> None:
    table = SlotTable(limits(1))
    reservation = table.reserve(wanted(_1=4), 0.0)
    assert reservation is not None
    reservation.placed[0].ready = True
    assert not table.has_room(wanted(_2=4), keep={digest(1)})
    assert table.reserve(wanted(_2=4), 1.0, keep={digest(1)}) is None
    assert table.has_room(wanted(_2=4))


def test_slots_are_emptied_of_the_fewest_users_and_of_those_already_being_emptied() -> None:
    table = SlotTable(limits(3))
    for number, users in ((1, 3), (2, 1), (3, 2)):
        assert table.reserve(wanted(**{f"_{number}": 4}), 0.0) is not None
        for _ in range(users):
            table.acquire(digest(number), 0.0)
    assert table.to_drain(wanted(_4=4), ()) == {digest(2)}
    assert table.to_drain(wanted(_4=8), {digest(1)}) == {digest(1), digest(2)}


def test_adapters_in_use_pinned_or_being_copied_are_never_victims() -> None:
    copying = Holder(digest(3), (0,), 1000, 1.0)
    assert choose_victims([holder(1, 1, 1.0, users=1), holder(2, 1, 1.0, pinned=True), copying], 1) is None


def test_small_victims_stay_when_a_large_one_suffices() -> None:
    holders = [holder(1, 1, 1.0), holder(2, 4, 2.0)]
    victims = choose_victims(holders, 4)
    assert victims is not None
    assert [v.digest for v in victims] == [digest(2)]


@given(
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.booleans(), st.booleans()), max_size=8),
    needed=st.integers(1, 12),
)
def test_victims_suffice_and_none_is_superfluous(sizes: list[tuple[int, int, bool, bool]], needed: int) -> None:
    holders = [
        holder(i, size, float(age), users=int(used), pinned=pinned) for i, (size, age, used, pinned) in enumerate(sizes)
    ]
    victims = choose_victims(holders, needed)
    evictable = sum(len(h.slots) for h in holders if h.evictable)
    if victims is None:
        assert evictable < needed
        return
    gained = sum(len(v.slots) for v in victims)
    assert gained >= needed
    assert all(v.evictable for v in victims)
    assert all(gained - len(v.slots) < needed for v in victims)


def test_adapters_of_one_mix_are_placed_together_or_not_at_all() -> None:
    table = SlotTable(limits(3))
    assert table.reserve(wanted(_1=8), 0.0) is not None
    table.acquire(digest(1), 0.0)
    assert table.reserve(wanted(_2=4, _3=4), 1.0) is None
    assert table.num_free == 1
    assert table.get(digest(2)) is None


def test_adapters_of_one_mix_do_not_evict_each_other() -> None:
    table = SlotTable(limits(2))
    first = table.reserve(wanted(_1=4), 0.0)
    assert first is not None
    first.placed[0].ready = True
    assert table.reserve(wanted(_1=4, _2=8), 1.0) is None
    assert table.get(digest(1)) is not None


@pytest.mark.parametrize(("rank", "num_slots"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_an_adapter_takes_as_many_slots_as_its_rank_needs(rank: int, num_slots: int) -> None:
    table = SlotTable(limits(4))
    reservation = table.reserve(wanted(_1=rank), 0.0)
    assert reservation is not None
    assert len(reservation.placed[0].slots) == num_slots
