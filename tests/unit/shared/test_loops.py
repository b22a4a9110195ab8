"""The end of a background loop means the same in every process."""

import asyncio

import pytest
from structlog.testing import capture_logs

from hotslot.backoff import Backoff
from hotslot.errors import UnavailableError
from shared.loops import Loops, first_of, happens, until_it_works

SOON = Backoff(0.001, 0.002)


async def for_ever() -> None:
    await asyncio.Event().wait()


async def fails() -> None:
    raise UnavailableError("it broke")


async def test_an_essential_loop_that_fails_is_told_with_its_reason_and_ends_no_other() -> None:
    others: list[str] = []

    async def other() -> None:
        try:
            await for_ever()
        finally:
            others.append("ended")

    async with Loops() as loops:
        loops.essential("other", other)
        loops.essential("broken", fails)
        reason = await asyncio.wait_for(loops.until_failed(), 60)
        assert str(reason) == "it broke"
        assert others == []
    assert others == ["ended"]


async def test_any_other_loop_that_fails_is_logged_and_begun_anew_until_it_ends() -> None:
    begun, ended = [0], asyncio.Event()

    async def flaky() -> None:
        begun[0] += 1
        if begun[0] < 4:
            raise ZeroDivisionError
        ended.set()

    with capture_logs() as logs:
        async with Loops(SOON) as loops:
            loops.restarted("flaky", flaky)
            failed = asyncio.create_task(loops.until_failed())
            await asyncio.wait_for(ended.wait(), 60)
            assert not failed.done()
            failed.cancel()
    assert [(entry["event"], entry["loop"], entry["why"]) for entry in logs] == [
        ("loop_failed", "flaky", "ZeroDivisionError()")
    ] * 3


async def test_repeated_work_goes_on_after_a_failure() -> None:
    passes, enough = [0], asyncio.Event()

    async def work() -> None:
        passes[0] += 1
        if passes[0] == 2:
            raise OSError("disk")
        if passes[0] == 4:
            enough.set()

    async with Loops(SOON) as loops:
        loops.repeated("work", 0.001, work)
        await asyncio.wait_for(enough.wait(), 60)


async def test_loops_end_in_order_the_last_begun_first_before_any_is_cancelled() -> None:
    told: list[str] = []

    async def loop(name: str) -> None:
        try:
            await for_ever()
        finally:
            told.append(f"{name} cancelled")

    async def end(name: str) -> None:
        told.append(f"{name} ends")

    async with Loops() as loops:
        for name in ("first", "second"):
            loops.essential(name, lambda name=name: loop(name), lambda name=name: end(name))  # type: ignore[misc]
        await asyncio.sleep(0)
    assert told[:2] == ["second ends", "first ends"]
    assert sorted(told[2:]) == ["first cancelled", "second cancelled"]


async def test_an_error_of_the_block_leaves_it_as_it_is() -> None:
    async def block() -> None:
        async with Loops() as loops:
            loops.essential("loop", for_ever)
            raise UnavailableError("mine")

    with pytest.raises(UnavailableError, match="mine"):
        await block()


@pytest.mark.filterwarnings("error")
async def test_a_loop_that_never_ran_leaves_nothing_behind() -> None:
    async with Loops() as loops:
        loops.essential("loop", for_ever)
        loops.restarted("loop", for_ever)


async def test_the_first_to_end_decides_and_cancels_the_others() -> None:
    cancelled: list[bool] = []

    async def slow() -> str:
        try:
            await for_ever()
        finally:
            cancelled.append(True)
        return "slow"

    async def quick() -> str:
        await asyncio.sleep(0)
        return "quick"

    assert await first_of(slow(), quick()) == "quick"
    assert cancelled == [True]
    with pytest.raises(UnavailableError):
        await first_of(slow(), refused())
    assert cancelled == [True, True]


async def refused() -> str:
    raise UnavailableError("no")


async def test_a_service_that_is_away_is_asked_until_it_answers() -> None:
    answers: list[UnavailableError | int] = [UnavailableError("away"), UnavailableError("away"), 7]

    async def ask() -> int:
        answer = answers.pop(0)
        if isinstance(answer, UnavailableError):
            raise answer
        return answer

    with capture_logs() as logs:
        assert await until_it_works(ask, "not_yet", SOON) == 7
    assert [entry["event"] for entry in logs] == ["not_yet", "not_yet"]


async def test_an_event_is_waited_for_only_so_long() -> None:
    event = asyncio.Event()
    assert not await happens(event, 0.01)
    asyncio.get_running_loop().call_later(0.01, event.set)
    assert await happens(event, 60.0)
    assert await happens(event, 0.0)
