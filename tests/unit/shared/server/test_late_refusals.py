"""Refusals that are told late are told one after the other, and those of one caller hold up no other's."""

import asyncio
import time

import pytest

from shared.server import late_refusals
from shared.server.late_refusals import LateRefusals


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_refusals, "HEARS_AFTER_S", 0.1)
    monkeypatch.setattr(late_refusals, "APART_S", 0.02)
    monkeypatch.setattr(late_refusals, "LATEST_S", 0.5)


async def told_s(refusals: LateRefusals, caller: str) -> float:
    await refusals.wait(caller)
    return time.monotonic()


async def test_refusals_that_come_at_once_are_told_apart() -> None:
    refusals, began_s = LateRefusals(), time.monotonic()
    times = [each - began_s for each in await asyncio.gather(*(told_s(refusals, "a") for _ in range(20)))]
    assert min(times) >= 0.09
    for place, heard_s in enumerate(sorted(times)):
        assert heard_s >= 0.09 + 0.02 * place - 0.005


async def test_another_caller_s_refusal_waits_for_itself_alone() -> None:
    refusals = LateRefusals()
    many = [asyncio.create_task(told_s(refusals, "a")) for _ in range(20)]
    await asyncio.sleep(0)
    other = await told_s(refusals, "b")
    assert other < max(await asyncio.gather(*many)), "it did not wait for those of the caller before"


async def test_refusals_that_are_given_up_put_off_later_ones_no_further_than_as_many_as_may_wait() -> None:
    refusals = LateRefusals()
    stays = asyncio.create_task(told_s(refusals, "a"))
    for _ in range(2_000):
        leaves = asyncio.create_task(told_s(refusals, "a"))
        await asyncio.sleep(0)
        leaves.cancel()
    async with asyncio.timeout(20.0):
        await told_s(refusals, "a")
    await stays


async def test_refusals_beyond_the_most_that_wait_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_refusals, "MAX_WAITING_OF_CALLER", 3)
    monkeypatch.setattr(late_refusals, "HEARS_AFTER_S", 60.0)
    refusals = LateRefusals()
    waiting = [asyncio.create_task(told_s(refusals, "a")) for _ in range(3)]
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await told_s(refusals, "a")
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
