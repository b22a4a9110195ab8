"""Five minutes of 200 streams that leave at any moment: a real worker ends them as it was, in memory too."""

import asyncio
import time
from pathlib import Path
from statistics import median

import psutil
import pytest

from hotslot import BlockingHotslotClient, WorkerClient
from hotslot.contract.control import WorkerStatus
from hotslot.local.children import Child
from tests.integration.conftest import DEMO_ADAPTERS
from tests.support.fickle_clients import Habits, Streams, run_fickle_clients
from tests.support.stack import Stack
from tests.support.waiting import until_async
from worker_service.demo_model import BASE_MODEL

pytestmark = [pytest.mark.integration, pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(1200)]

NUM_CLIENTS = 200
ROUND_S = 60.0
ROUNDS = 5
SAMPLE_S = 1.0
GROWTH_MIB = 16.0
"""Between the second round's median and the last one's; what grows with every stream grows by far more."""
MIB = 2**20
NAMES = sorted(folder.name for folder in DEMO_ADAPTERS.iterdir() if folder.is_dir())
SHARED = "You are a helpful assistant. Answer in one short sentence. "
PROMPTS = ("The capital of France is", SHARED + "What is rain?", SHARED * 6 + "Why is the sky blue?")


@pytest.fixture
def worker(stack: Stack, store_process: Child, model_folder: Path) -> Child:
    """Compiled, with fewer slots than adapters."""
    del store_process
    return stack.start_worker(model_folder, model_name=BASE_MODEL, num_slots="4", buckets="1,8,32", kv_tokens="4096")


async def _sample(process: psutil.Process, into: list[float], stop: asyncio.Event) -> None:
    while not stop.is_set():
        into.append(process.memory_info().rss / MIB)
        await asyncio.sleep(SAMPLE_S)


async def _at_rest(client: WorkerClient) -> WorkerStatus:
    """The worker's state once nothing is held any more; TimeoutError when something stays."""

    async def is_empty() -> bool:
        status = await client.status()
        queue, kv = status.queue, status.kv
        return not (queue.running_sequences or queue.waiting_sequences or status.slots.in_use) and (
            kv.free_blocks == kv.num_blocks
        )

    await until_async(is_empty, timeout_s=30)
    return await client.status()


async def test_five_minutes_of_streams_that_leave_cost_no_memory(stack: Stack, worker: Child) -> None:
    assert stack.store is not None
    with BlockingHotslotClient(stack.store.spec.endpoint, worker.spec.endpoint) as pusher:
        for name in NAMES:
            pusher.store.push(DEMO_ADAPTERS / name, f"fickle/{name}")
    process = psutil.Process(worker.pid)
    habits = Habits([f"fickle/{name}" for name in NAMES], PROMPTS, max_tokens=24, patience_s=4.0)
    rows = []
    async with WorkerClient(worker.spec.endpoint) as client:
        for number in range(ROUNDS):
            streams, stop, rss_mib = Streams(), asyncio.Event(), list[float]()
            asyncio.get_running_loop().call_later(ROUND_S, stop.set)
            began_s = time.monotonic()
            async with asyncio.TaskGroup() as group:
                group.create_task(_sample(process, rss_mib, stop))
                await run_fickle_clients(client, habits, streams, NUM_CLIENTS, stop, seed=number)
            assert not streams.failures, streams.failures[:3]
            status = await _at_rest(client)
            assert status.recompiles == 0
            rows.append((streams, median(rss_mib), process.num_threads(), process.num_fds(), status))
            print(  # noqa: T201 (the run is for its figures, too)
                f"round {number}: {time.monotonic() - began_s:.0f} s, {streams.ended} ended, {streams.left} left, "
                f"{streams.turned_away} turned away, {streams.tokens} tokens, RSS {rows[-1][1]:.0f} MiB, "
                f"{rows[-1][2]} threads, {rows[-1][3]} descriptors, {status.activations} activations, "
                f"{status.kv.preemptions} preemptions"
            )
    assert sum(streams.ended for streams, *_ in rows) > NUM_CLIENTS
    assert sum(streams.left for streams, *_ in rows) > NUM_CLIENTS
    _, second_mib, threads, descriptors, _ = rows[1]
    _, last_mib, last_threads, last_descriptors, _ = rows[-1]
    assert last_mib - second_mib < GROWTH_MIB
    assert last_threads <= threads
    assert last_descriptors <= descriptors
