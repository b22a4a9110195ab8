"""The worker as a process: alive early, ready late, known to others, gone without losing a request."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Tier
from hotslot.errors import EngineFailedError, UnavailableError
from hotslot.local.child_processes import free_port
from hotslot.local.embedded_valkey import embedded_valkey
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2 as pb
from hotslot.pb.hotslot.worker.v1 import inference_pb2
from hotslot.rpc.status import from_rpc_error
from shared.coordination.connection import RedisConnection
from shared.coordination.directory import Directory
from shared.server.grpc_server import ServerOptions, serve
from tests.support.echo_model import UNHURRIED_STEP_S, echo_model
from tests.support.machine_pace import within
from tests.support.memory_store import MemoryStore
from tests.support.patient_redis import patient
from tests.support.waiting import until_async
from tests.support.worker_process import running_process

BASE = echo_model().spec.digest
UNHURRIED = f"step {UNHURRIED_STEP_S}"
SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with embedded_valkey() as valkey:
        yield valkey.url


@pytest.fixture
async def directory(redis_url: str) -> AsyncIterator[Directory]:
    async with RedisConnection(patient(redis_url)) as connection:
        yield Directory(connection)


async def test_a_worker_is_alive_while_its_model_loads_and_leaves_at_once_when_told(store_endpoint: str) -> None:
    async with running_process(store_endpoint, model="slow") as worker:
        await until_async(worker.is_alive)
        assert not await worker.is_ready()
        assert (await worker.calls.status()).state == pb.WORKER_STATE_STARTING
        with pytest.raises(grpc.RpcError) as caught:
            await worker.calls.generate()
        assert isinstance(from_rpc_error(caught.value), UnavailableError)
        with within(15.0):
            worker.process.send_signal(signal.SIGTERM)
            assert await worker.exit_code() == 0


async def test_a_model_that_cannot_be_loaded_ends_the_process_with_the_reason(store_endpoint: str) -> None:
    async with running_process(store_endpoint, model="broken") as worker:
        _, errors = await worker.process.communicate()
        assert worker.process.returncode == 2
        last = errors.decode().splitlines()[-1]
        assert last == "python -m tests.support.echo_process: cannot start: invalid request: model: it is broken"
        assert "Traceback" not in errors.decode()


async def test_an_address_that_is_taken_ends_the_process_with_the_reason(store_endpoint: str) -> None:
    async with running_process(store_endpoint, listen=store_endpoint) as worker:
        _, errors = await worker.process.communicate()
        assert worker.process.returncode == 1
        assert f"cannot start: [Errno 98] cannot listen on {store_endpoint}" in errors.decode().splitlines()[-1]
        assert "Traceback" not in errors.decode()


@pytest.mark.parametrize("failing", [{"model": "broken"}, {"buckets": "none"}, {"redis_url": "nonsense"}])
async def test_a_start_that_failed_waits_before_its_end_and_ends_at_once_when_told(
    store_endpoint: str, failing: dict[str, str]
) -> None:
    async with running_process(store_endpoint, start_pause_s="1.5", **failing) as worker:
        began_s = time.monotonic()
        assert await worker.exit_code() == 2
        assert time.monotonic() - began_s > 1.5
    async with running_process(store_endpoint, start_pause_s="600", **failing) as worker:
        assert worker.process.stderr is not None
        while b"cannot start" not in (line := await worker.process.stderr.readline()) and b"--help" not in line:
            assert line
        worker.process.send_signal(signal.SIGTERM)
        assert await worker.exit_code() == 2


async def test_an_engine_that_hangs_for_long_ends_the_process_so_that_it_is_started_anew(store_endpoint: str) -> None:
    async with running_process(store_endpoint, model="hang", engine_silence_s="0.3") as worker:
        await until_async(worker.is_ready)
        with pytest.raises(grpc.RpcError) as caught:
            await worker.calls.generate()
        assert isinstance(from_rpc_error(caught.value), EngineFailedError)
        assert await worker.is_alive()
        assert not await worker.is_ready()
        assert await worker.exit_code() == 1


async def test_a_worker_starts_without_its_store_and_registers_when_that_comes(store: MemoryStore) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    async with running_process(endpoint) as worker:
        await until_async(worker.is_ready)
        assert (await worker.calls.generate()).text == "base"
        async with serve(store.services(), ServerOptions(endpoint, grace_s=0.1), observers=()):

            async def is_registered() -> bool:
                return store.catalog.calls.registered == [BASE]

            await until_async(is_registered)


async def test_sigterm_lets_streams_finish_and_exits_with_0(
    store_endpoint: str, store: MemoryStore, redis_url: str, directory: Directory
) -> None:
    async with running_process(store_endpoint, redis_url=redis_url, model=UNHURRIED) as worker:
        await until_async(worker.is_ready)
        stream = asyncio.create_task(
            worker.calls.generate(text="endless", stop=inference_pb2.StopConditions(max_tokens=200))
        )

        async def generates() -> bool:
            return (await worker.calls.status()).generated_tokens > 3

        await until_async(generates)
        worker.process.send_signal(signal.SIGTERM)

        async def is_gone() -> bool:
            return worker.endpoint not in await endpoints(directory)

        await until_async(is_gone)
        assert not stream.done()
        answer = await stream
        assert len(answer.token_ids[0]) == 200
        assert await worker.exit_code() == 0


async def test_others_are_told_of_the_worker_its_load_and_what_it_holds(
    store_endpoint: str, store: MemoryStore, redis_url: str, directory: Directory
) -> None:
    digest = store.add("bot", BASE)
    async with running_process(store_endpoint, redis_url=redis_url) as worker:
        await until_async(worker.is_ready)
        await worker.calls.generate("bot")

        async def is_placed() -> bool:
            placements = (await directory.placements(BASE, [digest])).get(digest, ())
            return any(placement.resident.tier is Tier.SLOT for placement in placements)

        await until_async(is_placed)
        (placement,) = (await directory.placements(BASE, [digest]))[digest]
        assert (placement.resident.name, placement.resident.pinned) == ("bot", False)
        (record,) = [w for w in (await directory.workers(BASE)).workers if w.info.worker_id == placement.worker_id]
        assert record.info.endpoint == worker.endpoint
        assert record.state is WorkerState.READY

        async def load_is_fresh() -> bool:
            workers = (await directory.workers(BASE)).workers
            return any((w.load.num_slots, w.load.free_slots) == (4, 3) for w in workers)

        await until_async(load_is_fresh)


async def test_a_worker_that_was_killed_comes_back_on_the_same_address(
    store_endpoint: str, store: MemoryStore, redis_url: str, directory: Directory
) -> None:
    store.add("bot", BASE)
    listen = f"127.0.0.1:{free_port()}"
    async with running_process(store_endpoint, redis_url=redis_url, listen=listen) as first:
        await until_async(first.is_ready)
        first.process.kill()
        await first.exit_code()
    async with running_process(store_endpoint, redis_url=redis_url, listen=listen) as second:
        await until_async(second.is_ready)
        await second.calls.generate("bot")

        async def is_the_only_one() -> bool:
            return [w.info.endpoint for w in (await directory.workers(BASE)).workers] == [listen]

        await until_async(is_the_only_one)


async def endpoints(directory: Directory) -> set[str]:
    return {worker.info.endpoint for worker in (await directory.workers(BASE)).workers}


async def test_a_worker_ends_in_order_and_loses_nothing_on_the_way(
    store_endpoint: str, store: MemoryStore, redis_url: str, directory: Directory
) -> None:
    """Not ready, out of the fleet, serving what still comes; then no new connections, streams to their end, exit."""
    settings = {"drain_delay_s": "5.0", "drain_grace_s": "60", "model": UNHURRIED}
    async with running_process(store_endpoint, redis_url=redis_url, **settings) as worker:
        await until_async(worker.is_ready)
        stream = asyncio.create_task(
            worker.calls.generate(text="endless", stop=inference_pb2.StopConditions(max_tokens=300))
        )

        async def generates() -> bool:
            return (await worker.calls.status()).generated_tokens > 3

        await until_async(generates)
        worker.process.send_signal(signal.SIGTERM)

        async def has_left() -> bool:
            return not await worker.is_ready() and worker.endpoint not in await endpoints(directory)

        await until_async(has_left)
        assert await worker.is_alive()
        assert (await worker.calls.generate()).text == "base", "a request of a caller who has not noticed is served"

        async def accepts_nothing() -> bool:
            try:
                _, writer = await asyncio.open_connection(*worker.endpoint.split(":"))
            except OSError:
                return True
            writer.close()
            return False

        await until_async(accepts_nothing)
        assert not stream.done(), "a stream outlives the listening socket"
        assert len((await stream).token_ids[0]) == 300
        assert await worker.exit_code() == 0
