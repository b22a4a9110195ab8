"""Placement that does not answer in time is asked again, as one that is away is; a caller's own deadline stays one."""

import asyncio
from typing import Any

import pytest

from hotslot import AdapterSelection, GenerationRequest, HotslotClient
from hotslot.clients import hotslot as module
from hotslot.errors import RequestDeadlineError, UnavailableError
from tests.support.fake_worker import FakeWorker
from tests.support.memory_store import MemoryStore
from tests.unit.hotslot.conftest import BASE, NO_CHANNEL_RETRIES, serving

PIRATE = GenerationRequest("Hi", (AdapterSelection("pirate"),))


def late(store: MemoryStore, times: int) -> asyncio.Event:
    """Have placement answer nothing so many times; set once it was asked."""
    answer, asked, hangs = store.placement.PickWorkers, 0, asyncio.Event()

    async def pick(request: Any, context: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked <= times:
            hangs.set()
            await asyncio.Event().wait()
        return await answer(request, context)

    store.placement.PickWorkers = pick  # type: ignore[method-assign]
    return hangs


async def test_an_answer_that_is_late_once_is_asked_for_again(
    fake_store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = late(fake_store, times=1)
    async with serving(FakeWorker()) as worker, serving(fake_store) as store:
        fake_store.placement.start_worker(worker)
        fake_store.add("pirate", BASE)
        async with HotslotClient(store, None, options=NO_CHANNEL_RETRIES, patience_s=60.0) as client:
            monkeypatch.setattr(module, "PICK_TIMEOUT_S", 0.2)
            asking = asyncio.create_task(client.complete(PIRATE))
            await hangs.wait()
            monkeypatch.setattr(module, "PICK_TIMEOUT_S", 30.0)  # the second time it may be busy
            assert (await asking).text


@pytest.mark.parametrize(("timeout_s", "error"), [(60.0, UnavailableError), (0.1, RequestDeadlineError)])
async def test_without_patience_it_is_unavailable_and_after_the_callers_deadline_that_is_told(
    fake_store: MemoryStore, monkeypatch: pytest.MonkeyPatch, timeout_s: float, error: type[Exception]
) -> None:
    monkeypatch.setattr(module, "PICK_TIMEOUT_S", 0.3)
    late(fake_store, times=1_000)
    async with (
        serving(fake_store) as store,
        HotslotClient(store, None, options=NO_CHANNEL_RETRIES, patience_s=0.0) as client,
    ):
        with pytest.raises(error) as raised:
            await client.complete(PIRATE, timeout_s=timeout_s)
    assert type(raised.value) is error
