"""What a fleet goes through: Redis flushed, frozen and gone, workers frozen and killed, readers that do not read."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest

from hotslot.contract.control import WorkerState
from hotslot.ids import Digest, new_worker_id
from hotslot.local.embedded_valkey import EmbeddedValkey, embedded_valkey
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from hotslot.rpc.tenant import FORWARDED_KEY
from shared.coordination.connection import RedisConnection, RedisOptions
from shared.coordination.directory import Directory
from shared.fleet.records import ReportedLoad, WorkerRecord
from shared.server.grpc_server import ServerOptions, serve
from tests.integration.fleet.conftest import SPEC, Catalog
from tests.integration.fleet.test_forwarding import hold
from tests.support.echo_model import voice
from tests.support.echo_worker import Calls, make_request
from tests.support.fake_worker import FakeWorker
from tests.support.fleet import Member, fleet_of, joined
from tests.support.waiting import until_async
from tests.support.worker_process import WorkerProcess, running_process
from worker_service.routing.router import Router

BIG = "x" * 64 * 1024
MANY = 2_000
SETTLED_ROUNDS = 20


@pytest.fixture
def own_valkey() -> Iterator[EmbeddedValkey]:
    with embedded_valkey() as server:
        yield server


async def served_by(calls: Calls, worker_id: str) -> bool:
    return (await calls.generate("one")).started.worker_id == worker_id


async def test_a_flushed_redis_costs_nothing_but_hops(
    pair: list[Member], store: Catalog, redis: RedisConnection, directory: Directory
) -> None:
    front, holder = pair
    await hold(directory, holder, store, "one", front)
    calls = await front.calls()
    await redis.run(lambda client: client.flushall())
    assert (await calls.generate("two")).text == voice(store.digests["two"])

    digest = Digest(store.digests["one"])

    async def is_seen() -> bool:
        sight = await front.router.view.look([digest])
        return sight is not None and len(sight.fleet.workers) == len(sight.placements[digest]) + 1 == 2

    await until_async(is_seen)
    assert await served_by(calls, holder.worker_id)


async def test_without_redis_the_worker_that_is_called_serves(store: Catalog, own_valkey: EmbeddedValkey) -> None:
    async with fleet_of(2, store.endpoint, own_valkey.url) as (front, holder):
        async with RedisConnection(RedisOptions(own_valkey.url)) as connection:
            await hold(Directory(connection), holder, store, "one", front)
        calls = await front.calls()
        assert await served_by(calls, holder.worker_id)
        os.kill(own_valkey.pid, signal.SIGSTOP)
        try:
            await until_async(lambda: served_by(calls, front.worker_id))
            assert (await calls.generate("two")).text == voice(store.digests["two"])
        finally:
            os.kill(own_valkey.pid, signal.SIGCONT)
        os.kill(own_valkey.pid, signal.SIGKILL)
        assert (await calls.generate("three")).text == voice(store.digests["three"])


@pytest.fixture
async def front_and_process(
    store: Catalog, redis_url: str, directory: Directory
) -> AsyncIterator[tuple[Member, WorkerProcess]]:
    """A worker here, and a process that holds adapter `one`, as the worker here knows."""
    async with (
        joined(store.endpoint, redis_url) as front,
        running_process(store.endpoint, redis_url=redis_url, lease_s="2") as process,
    ):
        await until_async(process.is_ready)
        metadata = ((FORWARDED_KEY, "test"),)
        async for _ in process.calls.inference.Generate(make_request("one"), timeout=20, metadata=metadata):
            pass
        digest = Digest(store.digests["one"])

        async def is_seen() -> bool:
            sight = await front.router.view.look([digest])
            return sight is not None and bool(sight.placements[digest]) and len(sight.fleet.workers) == 2

        await until_async(is_seen)
        yield front, process


@pytest.mark.chaos
async def test_a_frozen_worker_is_noticed_and_replaced_before_the_first_token(
    front_and_process: tuple[Member, WorkerProcess],
) -> None:
    front, process = front_and_process
    calls = await front.calls()
    assert not await served_by(calls, front.worker_id)
    process.process.send_signal(signal.SIGSTOP)
    assert await served_by(calls, front.worker_id)


@pytest.mark.chaos
async def test_the_placements_of_a_killed_worker_vanish_with_its_lease(
    front_and_process: tuple[Member, WorkerProcess], store: Catalog, directory: Directory
) -> None:
    front, process = front_and_process
    process.process.kill()
    assert await served_by(await front.calls(), front.worker_id)

    async def only_the_front_is_left() -> bool:
        digest = Digest(store.digests["one"])
        placements = (await directory.placements(SPEC.digest, [digest]))[digest]
        workers = (await directory.workers(SPEC.digest)).workers
        return [p.worker_id for p in placements] == [r.info.worker_id for r in workers] == [front.worker_id]

    await until_async(only_the_front_is_left)


async def test_a_slow_reader_slows_both_hops_down_and_fills_neither(
    store: Catalog, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWorker("w-fake")
    sent = 0

    async def endless(self: Any, request: Any, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        nonlocal sent
        yield pb.GenerateResponse(started=pb.GenerateStarted(worker_id="w-fake"))
        for _ in range(MANY):
            yield pb.GenerateResponse(chunk=pb.GenerateChunk(text=BIG))
            sent += 1

    monkeypatch.setattr(type(fake.inference), "Generate", endless)
    async with (
        joined(store.endpoint, redis_url) as front,
        serve(fake.services(), ServerOptions(grace_s=0), observers=()) as server,
    ):
        info = replace(front.router.view.me, worker_id=new_worker_id(), endpoint=f"127.0.0.1:{server.port}")
        peer = WorkerRecord(info, WorkerState.READY, ReportedLoad(), 0.0, 0)

        async def to_the_fake(self: Any, tenant: Any, digests: Any, here: Any, policy: Any) -> list[WorkerRecord]:
            return [peer]

        monkeypatch.setattr(Router, "before", to_the_fake)
        call = (await front.calls()).inference.Generate(make_request(), timeout=60)
        assert (await call.read()).started.worker_id == "w-fake"
        before, quiet = -1, 0
        while quiet < SETTLED_ROUNDS:
            quiet = quiet + 1 if sent == before else 0
            before = sent
            await asyncio.sleep(0.01)
        assert sent < MANY / 4, "at most what fits into the windows of two connections was sent"
        for _ in range(MANY):
            await call.read()
        assert sent == MANY
