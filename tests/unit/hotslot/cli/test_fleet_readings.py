"""`hotslot top` shows what answers and waits for nothing that does not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Any

import pytest

from hotslot import PlacementClient
from hotslot.cli import fleet_readings
from hotslot.cli.fleet_readings import FleetReader, TokenMeter
from hotslot.contract.placement import Worker
from hotslot.errors import StoreUnavailableError
from tests.support.fake_worker import FakeWorker
from tests.support.memory_store import MemoryStore
from tests.unit.hotslot.conftest import NO_CHANNEL_RETRIES, serving


@pytest.fixture(autouse=True)
def one_worker(fake_store: MemoryStore) -> None:
    fake_store.placement.start_worker("127.0.0.1:1")


@pytest.fixture
async def placement(store_endpoint: str) -> AsyncIterator[PlacementClient]:
    async with PlacementClient(store_endpoint, NO_CHANNEL_RETRIES) as client:
        yield client


async def listed(placement: PlacementClient, *endpoints: str) -> list[Worker]:
    async with aclosing(placement.list_workers()) as workers:
        (worker,) = [worker async for worker in workers]
    return [replace(worker, worker_id=f"w-{n}", endpoint=endpoint) for n, endpoint in enumerate(endpoints)]


async def test_workers_are_asked_at_once(placement: PlacementClient) -> None:
    together = asyncio.Barrier(2)
    async with AsyncExitStack() as stack:
        endpoints = []
        for _ in range(2):
            fake = FakeWorker()
            fake.control.GetWorkerStatus = meeting(fake, together)  # type: ignore[method-assign]
            endpoints.append(await stack.enter_async_context(serving(fake)))
        meter = TokenMeter()
        stack.push_async_callback(meter.close)
        workers = await listed(placement, *endpoints)
        await meter.rates(workers)
        assert await meter.rates(workers) == {"w-0": 0.0, "w-1": 0.0}


async def test_a_worker_that_hangs_has_no_rate_and_holds_up_nobody(
    placement: PlacementClient, worker_endpoint: str
) -> None:
    hanging = FakeWorker()
    hanging.control.GetWorkerStatus = meeting(hanging, asyncio.Barrier(2))  # type: ignore[method-assign]
    async with serving(hanging) as endpoint, asyncio.timeout(60):
        meter = TokenMeter()
        workers = await listed(placement, endpoint, worker_endpoint)
        await meter.rates(workers)
        assert await meter.rates(workers) == {"w-1": 0.0}
        await meter.close()


async def test_a_worker_that_counts_back_has_no_rate_and_none_for_catching_up(placement: PlacementClient) -> None:
    fake, counts = FakeWorker(), iter((1000, 0, 1000))
    answer = fake.control.GetWorkerStatus

    async def count(request: Any, context: Any) -> Any:
        status = await answer(request, context)
        status.generated_tokens = next(counts)
        return status

    fake.control.GetWorkerStatus = count  # type: ignore[method-assign]
    async with serving(fake) as endpoint:
        meter = TokenMeter()
        workers = await listed(placement, endpoint)
        assert [await meter.rates(workers) for _ in range(3)] == [{}, {}, {"w-0": 0.0}]
        await meter.close()


async def test_a_store_that_hangs_leaves_the_last_reading_and_says_so(
    fake_store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_readings, "STORE_TIMEOUT_S", 1.0)
    answers, gate = fake_store.placement.ListWorkers, asyncio.Event()

    async def answer_while_open(request: Any, context: Any) -> Any:
        await gate.wait()
        return await answers(request, context)

    fake_store.placement.ListWorkers = answer_while_open  # type: ignore[method-assign]
    async with serving(fake_store) as endpoint, PlacementClient(endpoint, NO_CHANNEL_RETRIES) as placement:
        reader = FleetReader(placement, "")
        with pytest.raises(StoreUnavailableError):
            await reader.read()
        gate.set()
        first = await reader.read()
        assert (first.stale, len(first.workers)) == ("", 1)
        gate.clear()
        assert await reader.read() == replace(first, stale="the store did not answer within 1 s")
        gate.set()
        assert not (await reader.read()).stale
        await reader.close()


def meeting(fake: FakeWorker, barrier: asyncio.Barrier) -> Any:
    """The fake's own answer, once as many ask as the barrier wants."""
    answer = fake.control.GetWorkerStatus

    async def wait_and_answer(request: Any, context: Any) -> Any:
        await barrier.wait()
        return await answer(request, context)

    return wait_and_answer
