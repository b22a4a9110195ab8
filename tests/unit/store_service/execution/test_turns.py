"""Turns: one in so many passes of the event loop, in order, whoever leaves."""

import asyncio
from contextlib import suppress
from itertools import pairwise

import pytest

from store_service.execution.turns import Turns


class Passes:
    """Counts the passes of the event loop."""

    def __init__(self) -> None:
        self.count = 0
        self._count()

    def _count(self) -> None:
        self.count += 1
        asyncio.get_running_loop().call_soon(self._count)


@pytest.mark.parametrize("passes_per_turn", [1, 4])
async def test_between_turns_the_loop_has_its_passes_and_no_more(passes_per_turn: int) -> None:
    turns, passes, taken = Turns(passes_per_turn), Passes(), list[int]()

    async def stream() -> None:
        for _ in range(5):
            await turns.take()
            taken.append(passes.count)

    await asyncio.gather(*(stream() for _ in range(7)))
    gaps = [after - before for before, after in pairwise(taken)]
    assert len(taken) == 35
    assert min(gaps[1:]) >= passes_per_turn
    assert max(gaps) <= passes_per_turn + 1


async def test_turns_are_taken_in_order() -> None:
    turns, taken = Turns(2), list[int]()

    async def stream(number: int) -> None:
        for _ in range(3):
            await turns.take()
            taken.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(stream(number) for number in range(4)))
    assert taken == [0, 1, 2, 3] * 3


async def test_who_leaves_takes_no_turn() -> None:
    turns, taken = Turns(2), list[int]()

    async def stream(number: int) -> None:
        await turns.take()
        taken.append(number)

    tasks = [asyncio.create_task(stream(number)) for number in range(9)]
    await asyncio.sleep(0)
    for task in tasks[5:8]:
        task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks[5:8])
    await tasks[8]
    assert taken == [0, 1, 2, 3, 4, 8]


async def test_who_comes_after_a_pause_waits_for_nobody() -> None:
    turns, passes = Turns(3), Passes()
    for _ in range(3):
        before = passes.count
        await turns.take()
        assert passes.count == before
        for _ in range(4):
            await asyncio.sleep(0)
