"""Which adapter makes room for another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.ids import Digest
from worker_service.engine.limits import EngineLimits
from worker_service.engine.slots import Holder, SlotTable, choose_victims


def digest(number: int) -> Digest:
    return Digest(f"sha256:{number:064x}")


def holder(number: int, num_slots: int, last_used_s: float, *, users: int = 0, pinned: bool = False) -> Holder:
    return Holder(digest(number), tuple(range(num_slots)), last_used_s, users, pinned, ready=True)


def limits(num_slots: int) -> EngineLimits:
    return EngineLimits(num_slots, 4, 1, 1, 10, 4, 4, 40)


def test_the_least_recently_used_adapter_is_evicted_first() -> None:
    holders = [holder(1, 1, 30.0), holder(2, 1, 10.0), holder(3, 1, 20.0)]
    victims = choose_victims(holders, 2)
    assert victims is not None
    assert [v.digest for v in victims] == [digest(2), digest(3)]


def test_adapters_in_use_pinned_or_being_copied_are_never_victims() -> None:
    copying = Holder(digest(3), (0,), 1.0)
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
    assert table.reserve({digest(1): 8}, 0.0) is not None
    table.acquire(digest(1))
    assert table.reserve({digest(2): 4, digest(3): 4}, 1.0) is None
    assert table.num_free == 1
    assert table.get(digest(2)) is None


def test_adapters_of_one_mix_do_not_evict_each_other() -> None:
    table = SlotTable(limits(2))
    first = table.reserve({digest(1): 4}, 0.0)
    assert first is not None
    first.placed[0].ready = True
    assert table.reserve({digest(1): 4, digest(2): 8}, 1.0) is None
    assert table.get(digest(1)) is not None


@pytest.mark.parametrize(("rank", "num_slots"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_an_adapter_takes_as_many_slots_as_its_rank_needs(rank: int, num_slots: int) -> None:
    table = SlotTable(limits(4))
    reservation = table.reserve({digest(1): rank}, 0.0)
    assert reservation is not None
    assert len(reservation.placed[0].slots) == num_slots
