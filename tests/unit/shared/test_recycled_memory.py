"""Memory is used again once nothing looks at it any more, and never before."""

import threading

import numpy as np
import torch

from shared.recycled_memory import LARGEST_SHARE, SMALLEST_BYTES, RecycledMemory

MIB = 2**20
SIZE = 8 * MIB


def address(view: memoryview) -> int:
    return np.frombuffer(view, np.uint8).ctypes.data


def test_a_block_is_taken_again_when_its_view_has_ended() -> None:
    memory = RecycledMemory()
    first = memory.take(SIZE)
    where = address(first)
    second = memory.take(SIZE)
    assert address(second) != where
    del first
    assert memory.free_bytes == SIZE
    third = memory.take(SIZE - 1)
    assert (address(third), third.nbytes, memory.free_bytes) == (where, SIZE - 1, 0)


def test_whatever_was_made_of_a_view_keeps_its_block() -> None:
    memory = RecycledMemory()
    view = memory.take(SIZE)
    holders: list[object] = [
        view,
        view[5:10],
        np.frombuffer(view, np.uint8)[1:3],
        torch.frombuffer(view, dtype=torch.bfloat16, count=100, offset=64).view(10, 10)[2:].T,
    ]
    del view
    while holders:
        assert memory.free_bytes == 0
        holders.pop(0)
    assert memory.free_bytes == SIZE


def test_what_is_held_keeps_its_bytes_while_others_are_taken_and_given_back() -> None:
    memory = RecycledMemory()
    held = {value: memory.take(SIZE) for value in range(4)}
    for value, view in held.items():
        np.frombuffer(view, np.uint8).fill(value)

    def churn() -> None:
        for _ in range(50):
            np.frombuffer(memory.take(SIZE), np.uint8).fill(255)

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(bool((np.frombuffer(view, np.uint8) == value).all()) for value, view in held.items())
    assert memory.free_bytes <= len(threads) * SIZE


def test_a_block_much_larger_than_what_is_asked_for_is_left_alone() -> None:
    memory = RecycledMemory()
    memory.take(2 * SIZE)
    assert memory.free_bytes == 2 * SIZE
    small = memory.take(int(2 * SIZE / LARGEST_SHARE) - 1)
    assert memory.free_bytes == 2 * SIZE
    fitting = memory.take(int(2 * SIZE / LARGEST_SHARE) + 1)
    assert memory.free_bytes == 0
    assert fitting.nbytes > small.nbytes


def test_no_more_is_kept_than_was_said_and_the_oldest_goes_first() -> None:
    memory = RecycledMemory(kept_free_bytes=2 * SIZE)
    views = [memory.take(SIZE) for _ in range(3)]
    second, third = address(views[1]), address(views[2])
    for _ in range(3):
        del views[0]
    assert memory.free_bytes == 2 * SIZE
    again = [memory.take(SIZE), memory.take(SIZE)]
    assert {address(view) for view in again} == {second, third}


def test_small_pieces_are_not_kept() -> None:
    memory = RecycledMemory()
    assert memory.take(SMALLEST_BYTES - 1).nbytes == SMALLEST_BYTES - 1
    assert memory.take(0).nbytes == 0
    assert memory.free_bytes == 0
