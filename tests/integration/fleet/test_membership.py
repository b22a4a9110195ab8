"""Joining and leaving: starting before ready, with its share in memory, gone within a lease, fenced by epochs."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from hotslot.contract.control import WorkerState
from hotslot.errors import StaleEpochError
from hotslot.ids import DEFAULT_TENANT, Digest, TenantId, new_worker_id
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as store_pb
from shared.coordination.connection import RedisConnection
from shared.coordination.directory import Directory
from shared.coordination.known_pool import KnownPool
from shared.fleet.rendezvous import Rendezvous
from shared.loops import Loops
from shared.server.grpc_server import ServerOptions, serve
from shared.settings import RedisUrl
from tests.integration.coordination.fleet import Member as Claim
from tests.integration.fleet.conftest import SPEC, Catalog
from tests.support.echo_model import EchoModel, echo_model
from tests.support.fleet import Member, joined
from tests.support.waiting import until, until_async
from worker_service.app import services
from worker_service.ending import ProcessEnding
from worker_service.front.worker import ServingWorker
from worker_service.model.shared_code import SharedCode
from worker_service.routing.fleet_view import FleetView
from worker_service.settings import WorkerSettings
from worker_service.starting import Host, start


async def states(directory: Directory) -> dict[str, WorkerState]:
    return {record.info.worker_id: record.state for record in (await directory.workers(SPEC.digest)).workers}


async def nobody(endpoints: frozenset[str]) -> None:
    """Who does not care for members."""


@asynccontextmanager
async def loading(store: Catalog, redis_url: str, gate: threading.Event) -> AsyncIterator[ServingWorker]:
    """A worker whose model is loaded once the gate opens."""
    worker = ServingWorker(new_worker_id())
    settings = WorkerSettings(
        model="echo", listen="127.0.0.1:0", store=store.endpoint, redis_url=RedisUrl(redis_url), lease_s=2.0
    )

    def load(_: SharedCode | None) -> EchoModel:
        gate.wait()
        return echo_model()

    async with (
        serve(services(worker), ServerOptions(grace_s=0), observers=()) as server,
        AsyncExitStack() as stack,
        Loops() as loops,
    ):
        stack.callback(gate.set)
        host = Host(settings, worker, server, stack, loops, ProcessEnding())
        starting = asyncio.create_task(start(host, lambda: SPEC, load))
        yield worker
        gate.set()
        await starting


async def test_a_worker_is_listed_as_starting_and_sent_nothing_until_its_model_is_loaded(
    store: Catalog, redis_url: str, directory: Directory
) -> None:
    gate = threading.Event()
    async with joined(store.endpoint, redis_url) as first, loading(store, redis_url, gate) as second:

        async def are_listed(state: WorkerState) -> bool:
            return await states(directory) == {first.worker_id: WorkerState.READY, second.worker_id: state}

        await until_async(lambda: are_listed(WorkerState.STARTING))

        fresh = FleetView(KnownPool(directory, SPEC.digest), first.router.view.me, nobody)
        sight = await fresh.look([])
        assert sight is not None
        assert set(sight.fleet.workers) == {first.worker_id}
        gate.set()
        await until_async(lambda: are_listed(WorkerState.READY))


async def test_a_joining_worker_loads_its_share_before_it_is_ready(
    store: Catalog, redis_url: str, directory: Directory
) -> None:
    names = [f"bot-{number}" for number in range(8)]
    digests = [Digest(await store.push(name, 100 + number)) for number, name in enumerate(names)]
    async with joined(store.endpoint, redis_url) as first:
        calls = await first.calls()
        for name in names:
            await calls.generate(name)

        async def is_reported() -> bool:
            return len(await directory.residency(SPEC.digest, first.worker.worker_id)) == len(names)

        await until_async(is_reported)
        async with joined(store.endpoint, redis_url) as second:
            order = Rendezvous([first.worker.worker_id, second.worker.worker_id])
            share = {digest for digest in digests if order.top(digest, 1)[0] == second.worker_id}
            assert share <= set(second.model.decoder.decoded)
            assert all(second.worker.parts.provider.tiers.is_resident(digest) for digest in share)


async def test_a_worker_that_is_like_nobody_begins_with_what_all_others_hold(
    store: Catalog, redis_url: str, directory: Directory
) -> None:
    async with joined(store.endpoint, redis_url) as first:
        calls = await first.calls()
        for name in ("one", "two", "three"):
            await calls.generate(name)

        async def are_reported() -> bool:
            return len(await directory.residency(SPEC.digest, first.worker.worker_id)) == 3

        await until_async(are_reported)
        async with joined(store.endpoint, redis_url, echo_model(num_slots=3)) as second:
            assert set(second.model.decoder.decoded) == set(store.digests.values())


async def test_a_version_is_preloaded_for_those_who_have_it_still(
    store: Catalog, redis_url: str, directory: Directory
) -> None:
    acme = TenantId("acme")
    other = Catalog(store.client.of(acme), {})
    digest = Digest(await other.push("mine", 0))
    async with joined(store.endpoint, redis_url) as first:
        await (await first.calls()).generate("one")
        await (await first.calls(acme)).generate("mine")

        async def users() -> list[str]:
            held = await directory.residency(SPEC.digest, first.worker.worker_id)
            return [name for p in held for name in (p.resident.name, *(name for _, name in p.resident.others))]

        async def both_are_reported() -> bool:
            return await users() == ["mine", "one"]

        await until_async(both_are_reported)
        await other.client.call("DeleteAdapter", store_pb.DeleteAdapterRequest(name="mine"))
        async with joined(store.endpoint, redis_url, echo_model(num_slots=3)) as second:
            assert second.model.decoder.decoded == [digest]
        assert await users() == ["mine", "one"]


async def test_a_preload_is_bounded_by_half_of_the_host_memory(store: Catalog, redis_url: str) -> None:
    async with joined(store.endpoint, redis_url) as first:
        await (await first.calls()).generate("one")
        async with joined(store.endpoint, redis_url, host_cache_bytes=16) as second:
            assert not second.model.decoder.decoded


async def test_each_start_has_a_larger_epoch_and_an_older_one_is_refused(
    store: Catalog, redis_url: str, redis: RedisConnection, directory: Directory
) -> None:
    async with joined(store.endpoint, redis_url) as first, joined(store.endpoint, redis_url) as second:

        async def both_are_listed() -> bool:
            return set(await states(directory)) == {first.worker_id, second.worker_id}

        await until_async(both_are_listed)
        infos = {r.info.worker_id: r.info for r in (await directory.workers(SPEC.digest)).workers}
        assert infos[first.worker.worker_id].epoch < infos[second.worker.worker_id].epoch
        old = replace(
            infos[second.worker.worker_id], worker_id=new_worker_id(), epoch=infos[first.worker.worker_id].epoch
        )
        with pytest.raises(StaleEpochError):
            await Claim(redis, old).announce()
        newer = replace(old, epoch=infos[second.worker.worker_id].epoch + 1)
        await Claim(redis, newer).announce()
        async with asyncio.timeout(60):
            assert isinstance(await second.loops.until_failed(), StaleEpochError)


async def test_a_worker_that_leaves_is_forgotten_by_the_others(store: Catalog, redis_url: str) -> None:
    async with joined(store.endpoint, redis_url) as first:
        async with joined(store.endpoint, redis_url) as second:
            left: Member = second

            async def is_seen() -> bool:
                sight = await first.router.view.look([])
                return sight is not None and left.worker_id in sight.fleet.workers

            await until_async(is_seen)

        async def is_gone() -> bool:
            sight = await first.router.view.look([])
            return sight is not None and left.worker_id not in sight.fleet.workers

        await until_async(is_gone)
        await until(lambda: first.in_flight == 0)


async def test_a_worker_reports_every_tenant_of_the_same_content(
    pair: list[Member], store: Catalog, directory: Directory
) -> None:
    acme = TenantId("acme")
    other = Catalog(store.client.of(acme), {})
    digest = Digest(await other.push("mine", 0))
    assert digest == store.digests["one"]
    holder = pair[0]
    await (await holder.calls(marked=True)).generate("one")
    await (await holder.calls(acme, marked=True)).generate("mine")

    async def both_are_named() -> bool:
        held = [p.resident for p in (await directory.placements(SPEC.digest, [digest]))[digest]]
        shown = [resident.seen_by(tenant) for resident in held for tenant in (DEFAULT_TENANT, acme)]
        return [resident.name for resident in shown if resident is not None] == ["one", "mine"]

    await until_async(both_are_named)
