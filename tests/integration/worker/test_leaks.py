"""Streams that end at any moment leave nothing behind: no row, block, slot, task or thread."""

import asyncio
import threading

import pytest

from hotslot import WorkerClient
from tests.support.echo_model import EchoModel, echo_model
from tests.support.echo_worker import ADDRESS, RunningWorker
from tests.support.fickle_clients import Habits, Streams, run_fickle_clients
from tests.support.memory_store import MemoryStore
from tests.support.waiting import until, until_async

NUM_CLIENTS = 200
NUM_ADAPTERS = 12
ROUND_S = 2.0


@pytest.fixture
def model() -> EchoModel:
    return echo_model(num_slots=4, max_running=8, max_waiting=256, step_s=0.002)


async def test_200_streams_with_random_cancellations_leave_nothing_behind(
    running: RunningWorker, store: MemoryStore, model: EchoModel
) -> None:
    names = [f"bot-{number}" for number in range(NUM_ADAPTERS)]
    for number, name in enumerate(names):
        store.add(name, model.spec.digest, seed=number, rank=8)
    habits = Habits(names, ("hello", "endless", "endless " + "x" * 60), max_tokens=40, patience_s=0.5)

    async def is_empty() -> bool:
        found = await running.parts.engine.inspect()
        holds = found.running or found.waiting or found.users or any(holder.users for holder in found.holders)
        return not holds and found.free_blocks == found.num_blocks

    async with WorkerClient(f"{ADDRESS}:{running.server.port}") as client:
        after: list[tuple[int, int]] = []
        for number in range(2):
            streams, stop = Streams(), asyncio.Event()
            asyncio.get_running_loop().call_later(ROUND_S, stop.set)
            await run_fickle_clients(client, habits, streams, NUM_CLIENTS, stop, seed=number)
            assert not streams.failures
            assert streams.most_open == NUM_CLIENTS
            assert min(streams.ended, streams.left) > NUM_CLIENTS / 4
            await until(lambda: running.worker.in_flight == 0)
            await until_async(is_empty)
            running.assert_nothing_is_held()
            after.append((len(asyncio.all_tasks()), threading.active_count()))
        found = await running.parts.engine.inspect()
        # What is in no slot is free, and adapters stay in slots for the next request.
        assert found.free_slots + sum(len(holder.slots) for holder in found.holders) == found.num_slots
        await until(lambda: len(asyncio.all_tasks()) <= after[0][0])
        await until(lambda: threading.active_count() <= after[0][1])
