"""KV blocks are handed out once, side by side where they can be."""

from hypothesis import given
from hypothesis import strategies as st

from worker_service.engine.kv_blocks import KvBlocks


def test_a_sequence_grows_into_the_block_beside_its_last_one() -> None:
    blocks = KvBlocks(10)
    first = blocks.take(2, [])
    assert first == [0, 1]
    assert blocks.take(1, first) == [2]


def test_a_run_starts_where_it_fits_whole() -> None:
    blocks = KvBlocks(10)
    assert blocks.take(3, []) == [0, 1, 2]
    assert blocks.take(1, []) == [3]
    blocks.give_back([0, 1, 2])
    assert blocks.take(5, []) == [4, 5, 6, 7, 8]
    assert blocks.take(2, []) == [0, 1]


def test_nothing_is_taken_when_too_few_are_free() -> None:
    blocks = KvBlocks(3)
    assert blocks.take(4, []) is None
    assert blocks.num_free == 3


def test_what_has_a_name_is_kept_until_its_room_is_wanted() -> None:
    blocks = KvBlocks(3)
    taken = blocks.take(2, [])
    assert taken == [0, 1]
    blocks.name(0, b"a")
    blocks.name(1, b"b")
    blocks.give_back(taken)
    assert (blocks.num_free, blocks.num_kept, blocks.find(b"a")) == (3, 2, 0)
    assert blocks.take(2, []) is not None
    assert blocks.find(b"a") == 0, "the end gives way before the beginning"
    assert blocks.find(b"b") is None


def test_a_block_held_twice_is_free_when_both_have_given_it_back() -> None:
    blocks = KvBlocks(1)
    taken = blocks.take(1, [])
    assert taken == [0]
    blocks.hold(0)
    blocks.give_back(taken)
    assert blocks.num_free == 0
    blocks.give_back(taken)
    assert blocks.num_free == 1


@given(st.data())
def test_blocks_are_never_lost_nor_handed_out_twice(data: st.DataObject) -> None:
    blocks = KvBlocks(16)
    held: list[list[int]] = []
    for _ in range(data.draw(st.integers(1, 30))):
        ends_one: bool = data.draw(st.booleans())
        if held and ends_one:
            blocks.give_back(held.pop(data.draw(st.integers(0, len(held) - 1))))
            continue
        table: list[int] = []
        for count in data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)):
            taken = blocks.take(count, table)
            if taken is None:
                assert blocks.num_free < count
                break
            table += taken
        held.append(table)
        flat = [block for one in held for block in one]
        assert len(flat) == len(set(flat))
        assert len(flat) + blocks.num_free == 16
