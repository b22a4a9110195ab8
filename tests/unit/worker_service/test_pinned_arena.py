"""The arena shares one stretch of memory: pieces never meet, and all of it comes back."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker_service.pinned_arena import PIECE_BYTES, PinnedArena

NUM_PIECES = 16


def test_it_is_registered_once_and_whole() -> None:
    heard: list[tuple[int, int]] = []
    arena = PinnedArena(3 * PIECE_BYTES - 1, lambda address, size: heard.append((address, size)))
    assert heard == [(arena.address, 3 * PIECE_BYTES)]
    arena.take(10)
    assert len(heard) == 1


def test_memory_that_cannot_be_registered_is_used_all_the_same() -> None:
    def refuse(address: int, size_bytes: int) -> None:
        raise RuntimeError("out of memory")

    view = PinnedArena(PIECE_BYTES, refuse).take(8)
    view[:] = b"somebyte"
    assert bytes(view) == b"somebyte"


@given(st.lists(st.one_of(st.integers(1, NUM_PIECES * PIECE_BYTES + 1), st.integers(-NUM_PIECES, -1)), max_size=40))
@settings(max_examples=40, deadline=None)
def test_pieces_never_meet_and_all_come_back(sizes: list[int]) -> None:
    """Positive numbers take so many bytes; negative ones let go of a piece."""
    arena = PinnedArena(NUM_PIECES * PIECE_BYTES, lambda address, size: None)
    held: list[memoryview] = []
    for number, size in enumerate(sizes):
        if size > 0:
            room = arena.free_bytes
            held.append(arena.take(size))
            assert len(held[-1]) == size
            assert room - arena.free_bytes in (0, -(-size // PIECE_BYTES) * PIECE_BYTES)
            held[-1][:] = bytes([number % 256]) * size
        elif held:
            del held[size % len(held)]
    used = sorted(_range(view) for view in held)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(used))
    assert all(len(set(bytes(view))) == 1 for view in held), "a piece was written to through another"
    held.clear()
    assert arena.free_bytes == arena.size_bytes
    assert len(arena.take(arena.size_bytes)) == arena.size_bytes
    assert arena.free_bytes in (0, arena.size_bytes)


def _range(view: memoryview) -> tuple[int, int]:
    begin = np.frombuffer(view, np.uint8).ctypes.data
    return begin, begin + len(view)


@pytest.mark.parametrize("size_bytes", [1, PIECE_BYTES, PIECE_BYTES + 1])
def test_what_finds_no_room_gets_memory_beside_it(size_bytes: int) -> None:
    arena = PinnedArena(PIECE_BYTES, lambda address, size: None)
    first = arena.take(PIECE_BYTES)
    second = arena.take(size_bytes)
    assert arena.address <= _range(first)[0] < arena.address + PIECE_BYTES
    assert not arena.address <= _range(second)[0] < arena.address + PIECE_BYTES
